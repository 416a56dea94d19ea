"""Text from a net with several outputs, token by token, each by an output of its own."""

from osgd_jax._generate.answers import GeneratedToken, Generation
from osgd_jax._generate.generator import AnytimeGenerator

__all__ = ["AnytimeGenerator", "GeneratedToken", "Generation"]
