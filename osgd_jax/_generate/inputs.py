"""Checks of what a generator is given."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from osgd_jax._anytime.rules import Exit, make_exit
from osgd_jax.nets._checks import as_number, check_positive


class Limits(NamedTuple):
    """Which output gives each token; the last, where all are None.

    Attributes:
      output: always this one.
      leave: the first that is sure.
      deadline: the last that is there after so many seconds.
    """

    output: int | None
    leave: Exit | None
    deadline: float | None


def check_limits(
    num_outputs: int, output: Any, confidence: Any, rule: Any, deadline: Any
) -> Limits:
    """Give the arguments that choose outputs, checked.

    Raises:
      ValueError: one is wrong, or there is more than one.
    """
    limits = {"output": output, "confidence": confidence, "deadline": deadline}
    given = [f"{name}={limit!r}" for name, limit in limits.items() if limit is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} are too many: give one of them at most.")
    if output is not None and as_number(output) not in range(num_outputs):
        raise ValueError(f"output={output!r} must be one from 0 to {num_outputs - 1}.")
    if deadline is not None and not as_number(deadline) >= 0:
        raise ValueError(f"deadline={deadline!r} must be 0 seconds or more for each token.")
    return Limits(
        None if output is None else int(output),
        make_exit(confidence, rule, num_outputs),
        None if deadline is None else float(deadline),
    )


def check_prompts(prompt: Any, vocab_size: int) -> list[np.ndarray]:
    """Give a prompt, or several, as a list of arrays of tokens.

    Raises:
      ValueError: there is none, one is empty, or holds something other than tokens.
    """
    if isinstance(prompt, str):
        raise ValueError(f"prompt={prompt!r:.60} must be tokens: encode the text first.")
    if isinstance(prompt, bytes) or np.ndim(_first(prompt)) == 0:
        prompt = [prompt]
    prompts = [_check_prompt(each, vocab_size) for each in prompt]
    if not prompts:
        raise ValueError("prompt holds no text; give one sequence of tokens at least.")
    return prompts


def _first(prompt: Any) -> Any:
    if not np.iterable(prompt):
        raise ValueError(f"prompt={prompt!r:.60} must be a sequence of tokens, or several.")
    return next(iter(prompt), ())


def _check_prompt(prompt: Any, vocab_size: int) -> np.ndarray:
    tokens = np.asarray(list(prompt) if isinstance(prompt, bytes) else prompt)
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
    tokens: list[Any] = [stop] if np.ndim(stop) == 0 else list(stop)
    if not all(as_number(token) in range(vocab_size) for token in tokens):
        raise ValueError(
            f"stop={stop!r} must be a token from 0 to {vocab_size - 1}, or several, or None."
        )
    return frozenset(int(token) for token in tokens)


class Sampling(NamedTuple):
    """How a token is chosen.

    Attributes:
      temperature: 0 for the likeliest.
      top_k: of how many of the likeliest; None for all.
      key: of the draws; None where there are none.
    """

    temperature: float
    top_k: int | None
    key: jax.Array | None


def check_sampling(temperature: Any, top_k: Any, key: Any, vocab_size: int) -> Sampling:
    """Give how tokens are chosen.

    Raises:
      ValueError: an argument is wrong, or there is no key where one is needed.
    """
    number = as_number(temperature)
    if not 0 <= number < math.inf:
        raise ValueError(f"temperature={temperature!r} must be a number of 0 or more.")
    if top_k is not None:
        top_k = check_positive("top_k", top_k)
        if top_k > vocab_size:
            raise ValueError(f"top_k={top_k} must be at most vocab_size={vocab_size}.")
    if number > 0 and key is None:
        raise ValueError(f"temperature={temperature!r} needs key=, such as jax.random.key(0).")
    return Sampling(number, top_k, key if number > 0 else None)
