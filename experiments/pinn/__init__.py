"""Physics-informed nets: one loss for the equation, one for each condition, one net for all."""
