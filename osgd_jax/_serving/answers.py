"""The results of predictors and generators."""

import dataclasses

import jax
import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class AnytimeOutput:
    """One output of a net.

    Attributes:
      index: which one, from 0.
      logits: `[batch, …, classes]`, ready.
      elapsed: seconds from the call of `stream` to this output.

    Example:
      >>> import jax.numpy as jnp
      >>> import osgd_jax
      >>> from flax import nnx
      >>> net = osgd_jax.nets.BranchedResNet(
      ...     num_classes=3, num_outputs=2, in_channels=1, widths=(4,), blocks=(2,),
      ...     rngs=nnx.Rngs(0),
      ... )
      >>> predictor = osgd_jax.AnytimePredictor(net)
      >>> output = next(predictor.stream(jnp.ones((2, 4, 4, 1))))
      >>> output.index, output.logits.shape, output.elapsed > 0
      (0, (2, 3), True)
    """

    index: int
    logits: jax.Array
    elapsed: float


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """The answer to `AnytimePredictor.predict`.

    Attributes:
      logits: `[batch, …, classes]`, ready.
      exits: `[batch]`, the index of the output that each example's logits are from.
      elapsed: seconds from the call of `predict` to the answer.
      lateness: seconds by which the answer came after the deadline; 0 where it was kept or none
        was given.

    Example:
      >>> import jax.numpy as jnp
      >>> import osgd_jax
      >>> from flax import nnx
      >>> net = osgd_jax.nets.BranchedResNet(
      ...     num_classes=3, num_outputs=2, in_channels=1, widths=(4,), blocks=(2,),
      ...     rngs=nnx.Rngs(0),
      ... )
      >>> prediction = osgd_jax.AnytimePredictor(net).predict(jnp.ones((2, 4, 4, 1)))
      >>> prediction.logits.shape, prediction.exits, prediction.lateness
      ((2, 3), array([1, 1]), 0.0)
    """

    logits: jax.Array
    exits: np.ndarray
    elapsed: float
    lateness: float


@dataclasses.dataclass(frozen=True, eq=False)
class GeneratedToken:
    """The next token of each prompt.

    Attributes:
      index: how many came before.
      tokens: `[batch]`; −1 for a prompt whose text has stopped.
      logits: `[batch, vocab_size]`, from which the tokens were chosen.
      exits: `[batch]`, the index of the output that gave them; −1 where there is no token.
      elapsed: seconds from the call of `stream` to these tokens.

    Example:
      >>> import osgd_jax
      >>> from flax import nnx
      >>> net = osgd_jax.nets.BranchedTransformer(
      ...     vocab_size=5, num_outputs=2, width=8, depth=2, num_heads=2,
      ...     rngs=nnx.Rngs(0),
      ... )
      >>> generator = osgd_jax.AnytimeGenerator(net, max_length=4)
      >>> token = next(generator.stream([1, 2], max_new_tokens=1, output=0))
      >>> token.index, token.tokens.shape, token.logits.shape, token.exits
      (0, (1,), (1, 5), array([0]))
    """

    index: int
    tokens: np.ndarray
    logits: jax.Array | np.ndarray
    exits: np.ndarray
    elapsed: float


@dataclasses.dataclass(frozen=True, eq=False)
class Generation:
    """The answer to `AnytimeGenerator.generate`.

    Attributes:
      tokens: for each prompt the new tokens, a stop token included.
      exits: for each prompt the index of the output that each of them is from.
      elapsed: seconds from the call of `generate` to the last token.

    Example:
      >>> import osgd_jax
      >>> from flax import nnx
      >>> net = osgd_jax.nets.BranchedTransformer(
      ...     vocab_size=5, num_outputs=2, width=8, depth=2, num_heads=2,
      ...     rngs=nnx.Rngs(0),
      ... )
      >>> generator = osgd_jax.AnytimeGenerator(net, max_length=4)
      >>> generation = generator.generate([[1], [1, 2]], max_new_tokens=2, output=0)
      >>> [len(tokens) for tokens in generation.tokens]
      [2, 2]
    """

    tokens: list[np.ndarray]
    exits: list[np.ndarray]
    elapsed: float
