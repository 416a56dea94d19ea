"""Checks of the arguments of a generator."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from osgd_jax._host_arrays import as_array
from osgd_jax._validation import as_number, check_positive

_BYTES = (bytes, bytearray, memoryview)


def check_prompts(prompt: Any, vocab_size: int) -> list[np.ndarray]:
    """Give a prompt, or several, as a list of arrays of tokens.

    Raises:
      ValueError: there is none, one is empty, or holds something other than tokens.
    """
    if isinstance(prompt, str) or not np.iterable(prompt):
        raise _no_tokens(prompt)
    parts = [prompt] if isinstance(prompt, _BYTES) else _entries(prompt)
    if not len(parts):
        raise ValueError("prompt holds no text; give one sequence of tokens at least.")
    several = isinstance(parts[0], _BYTES) or np.iterable(parts[0])
    return [_check_prompt(part, vocab_size) for part in (parts if several else [parts])]


def _entries(values: Iterable[Any]) -> Any:
    """Return an array as it is, and another iterable, which may end after one pass, as a list."""
    return values if hasattr(values, "__array__") else list(values)


def _no_tokens(prompt: Any) -> ValueError:
    if isinstance(prompt, str):
        return ValueError(f"prompt={prompt!r:.60} must be tokens: encode the text first.")
    return ValueError(f"prompt={prompt!r:.60} must be a sequence of tokens, or several.")


def _check_prompt(prompt: Any, vocab_size: int) -> np.ndarray:
    if isinstance(prompt, str) or not np.iterable(prompt):
        raise _no_tokens(prompt)
    if isinstance(prompt, _BYTES):
        tokens = np.frombuffer(prompt, np.uint8)
    else:
        tokens = np.asarray(as_array("prompt", _entries(prompt)))
    if tokens.size == 0:
        raise ValueError("prompt is empty; begin with one token at least, such as a separator.")
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise ValueError(
            f"prompt of shape {tokens.shape} and dtype {tokens.dtype} must be integers [length]."
        )
    if tokens.min() < 0 or tokens.max() >= vocab_size:
        raise ValueError(
            f"prompt has tokens from {tokens.min()} to {tokens.max()}; they must be from 0 to"
            f" {vocab_size - 1}, as vocab_size={vocab_size}."
        )
    return tokens.astype(np.int32)


def check_room(prompts: Sequence[np.ndarray], max_new_tokens: Any, max_length: int) -> int:
    """Give the number of new tokens.

    Raises:
      ValueError: it is no integer of at least one, or more than there is room for.
    """
    count = check_positive("max_new_tokens", max_new_tokens)
    longest = max(len(prompt) for prompt in prompts)
    if longest + count > max_length:
        raise ValueError(
            f"a prompt of {longest} tokens and max_new_tokens={count} are more than"
            f" max_length={max_length}: ask for {max(0, max_length - longest)} at most, or make an"
            " AnytimeGenerator with more room."
        )
    return count


def check_stop(stop: Any, vocab_size: int) -> frozenset[int]:
    """Give the tokens that end a text.

    Raises:
      ValueError: they are something else.
    """
    if stop is None:
        return frozenset()
    several = np.iterable(stop) and not isinstance(stop, str | bytes)
    given = list(stop) if several else [stop]
    tokens: list[Any] = [
        ord(each) if isinstance(each, bytes) and len(each) == 1 else each for each in given
    ]
    if not all(as_number(token) in range(vocab_size) for token in tokens):
        raise ValueError(
            f"stop={(given if several else stop)!r} must be a token from 0 to {vocab_size - 1}, or"
            " several, or None. Of bytes, each token is one."
        )
    return frozenset(int(token) for token in tokens)
