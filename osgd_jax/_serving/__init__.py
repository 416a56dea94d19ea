"""The parts that predictor and generator share."""
