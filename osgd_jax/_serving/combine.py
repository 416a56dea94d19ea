"""How the outputs so far become one answer."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

# (k, number of outputs, logits of output k, what output k − 1 left) → (answer, what is left)
Combine = Callable[[int, int, jax.Array, jax.Array | None], tuple[jax.Array, jax.Array | None]]


def latest(
    k: int, num_outputs: int, logits: jax.Array, state: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
    """The latest output alone."""
    del k, num_outputs
    return logits, state


def product(
    k: int, num_outputs: int, logits: jax.Array, state: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
    """The product of all outputs so far (Jazbec et al. 2023, arXiv 2306.02652: "PA").

    With the logits f_i of the outputs 1 … m of K, the probability of class y is proportional to
    Π_{i ≤ m} max(f_i(y), 0)^{w_i}, w_i = i / K. A class to which one output gives no positive logit
    is out for good, so the set of possible classes only shrinks. An example whose set is empty gets
    the softmax of output m alone, as in the authors' code.

    Returns:
      Logits whose softmax is that distribution, −∞ for a class that is out, and the logarithm of
      the product.

    Raises:
      ValueError: there is one logit alone, whose class no output can rule out.
    """
    if logits.shape[-1] == 1:
        raise ValueError(
            "combine='product' needs two classes or more and the net has one logit; use 'latest'."
        )
    factor = (k + 1) / num_outputs * jnp.log(jax.nn.relu(logits))
    total = factor if state is None else state + factor
    empty = jnp.all(total == -jnp.inf, axis=-1, keepdims=True)
    return jnp.where(empty, logits, total), total


COMBINATIONS: dict[str, Combine] = {"latest": latest, "product": product}
