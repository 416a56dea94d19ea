"""A trained net run stage by stage, with its policies, export and load."""

from osgd_jax._anytime.predictor import AnytimeOutput, AnytimePredictor, Prediction

__all__ = ["AnytimeOutput", "AnytimePredictor", "Prediction"]
