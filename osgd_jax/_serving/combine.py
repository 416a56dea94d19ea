"""Combinations of the outputs so far into one answer."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

# (k, number of outputs, logits of output k, what output k − 1 left) → (answer, what is left)
Combine = Callable[[int, int, jax.Array, jax.Array | None], tuple[jax.Array, jax.Array | None]]


def latest(
    k: int, num_outputs: int, logits: jax.Array, state: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
    """Return the latest output alone."""
    del k, num_outputs
    return logits, state


def product(
    k: int, num_outputs: int, logits: jax.Array, state: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
    """Multiply all outputs so far (Jazbec et al. 2023, arXiv 2306.02652: "PA").

    With the logits f_i of the outputs 1 … m of K, the probability of class y is proportional to
    Π_{i ≤ m} max(f_i(y), 0)^{w_i}, w_i = i / K. A class without a positive logit in one output is
    ruled out for all later outputs, so the set of possible classes only shrinks. An example whose
    set is empty gets the softmax of output m alone, as in the authors' code.

    Returns:
      Logits whose softmax is this distribution, −∞ for a class that is ruled out, and the logarithm
      of the product.

    Raises:
      ValueError: there is only one logit, whose class no output can rule out.
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
