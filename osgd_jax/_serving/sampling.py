"""The choice of the next token of each text: the likeliest, or a draw."""

import functools
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from osgd_jax._host_arrays import as_array
from osgd_jax._serving.decoder import Answer
from osgd_jax._serving.placement import alone, move
from osgd_jax._validation import as_number, check_positive

# Below, and above as the reciprocal, which compilers multiply by, devices may take a number for 0.
_LOWEST = float(np.finfo(np.float32).tiny)
_HIGHEST = 1e37


class Sampling(NamedTuple):
    """The choice of a token.

    Attributes:
      temperature: divides the logits.
      top_k: of how many of the likeliest; None for all.
      keys: `[batch]`, one of each text; None where the likeliest token is taken.
    """

    temperature: float = 0.0
    top_k: int | None = None
    keys: jax.Array | None = None


def check_sampling(
    temperature: Any, top_k: Any, key: Any, *, vocab_size: int, num_texts: int, device: Any
) -> Sampling:
    """Give how tokens are chosen, with the keys on a device.

    Raises:
      ValueError: an argument is wrong, or there is no key where one is needed.
    """
    number = as_number(temperature)
    if not 0 <= number < np.inf:
        raise ValueError(f"temperature={temperature!r} must be a number of 0 or more.")
    if top_k is not None:
        top_k = check_positive("top_k", top_k)
        if top_k > vocab_size:
            raise ValueError(f"top_k={top_k} must be at most vocab_size={vocab_size}.")
    with alone(device):
        keys = None if key is None else _check_keys(key, num_texts, device)
    if number < _LOWEST:
        return Sampling()
    if keys is None:
        raise ValueError(f"temperature={temperature!r} needs key=, such as key=0.")
    return Sampling(min(number, _HIGHEST), top_k, keys)


def _check_keys(key: Any, num_texts: int, device: Any) -> jax.Array:
    """Give one typed key for each text."""
    if np.iterable(key) and not isinstance(key, str | bytes | jax.Array | np.ndarray):
        given = [_as_keys(each, device) for each in key]
        shape = (len(given), *max((each.shape for each in given), default=()))
        keys = jnp.stack(given) if shape == (num_texts,) else None
    else:
        keys = _as_keys(key, device)
        shape = keys.shape
    if keys is None or shape not in ((), (num_texts,)):
        raise ValueError(
            "key must be one seed or key, or one for each text, [batch]; got keys of shape"
            f" {shape} for {num_texts} texts."
        )
    if keys.ndim:
        return keys
    # A single text uses the key directly, so that it is the same in a batch with one key for each
    # text.
    rows = np.arange(num_texts)
    return keys[None] if num_texts == 1 else jax.vmap(jax.random.fold_in, (None, 0))(keys, rows)


def _as_keys(value: Any, device: Any) -> jax.Array:
    """Return typed keys, given as such, as their data or by a seed."""
    typed = _is_typed(value)
    data = getattr(value, "dtype", None) == np.uint32 and value.ndim
    try:
        if typed or data:
            keys = move("key", as_array("key", value), device)
            return keys if typed else jax.random.wrap_key_data(keys)
        if not isinstance(value, bool | np.bool_):
            return jax.random.key(operator.index(value))
    except (TypeError, OverflowError):
        pass
    raise ValueError(
        f"key={value!r:.80} must be a seed, such as 0, or a key of jax.random, or one of these for"
        " each text."
    )


def _is_typed(value: Any) -> bool:
    return jnp.issubdtype(getattr(value, "dtype", float), jax.dtypes.prng_key)


def choose(answer: Answer, sampling: Sampling, index: int) -> np.ndarray:
    """Return the next tokens, `[batch]`."""
    if sampling.keys is None:
        return np.asarray(answer.likeliest)
    (device,) = sampling.keys.devices()
    with alone(device):
        return np.asarray(_draw(answer.logits, *sampling, index))


@functools.partial(jax.jit, static_argnames="top_k")
def _draw(
    logits: jax.Array, temperature: float, top_k: int | None, keys: jax.Array, index: int
) -> jax.Array:
    tokens = None
    if top_k is not None:  # not by a least logit: there may be several of them
        logits, tokens = lax.top_k(logits, top_k)
    # Of differences, as logits over a small temperature overflow.
    scaled = (logits - logits.max(-1, keepdims=True)) / temperature

    def draw(key: jax.Array, row: jax.Array) -> jax.Array:
        return jax.random.categorical(jax.random.fold_in(key, index), row)

    # Not `vmap`, under which keys other than threefry's draw what depends on the other texts.
    drawn = lax.map(lambda text: draw(*text), (keys, scaled))
    return drawn if tokens is None else jnp.take_along_axis(tokens, drawn[:, None], axis=1)[:, 0]
