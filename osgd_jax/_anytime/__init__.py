"""A trained net run stage by stage, with its policies, export and load."""

from osgd_jax._anytime.answers import AnytimeOutput, Prediction
from osgd_jax._anytime.predictor import AnytimePredictor

__all__ = ["AnytimeOutput", "AnytimePredictor", "Prediction"]
