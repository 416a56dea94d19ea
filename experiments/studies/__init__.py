"""Studies: sweeps of the laboratory with their own measures and tables."""
