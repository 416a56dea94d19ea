"""Continue texts by a trained net, freely or within deadlines."""

from typing import Any

import jax
import numpy as np

import osgd_jax
from experiments.app.data import Dataset

_PROMPT, _NEW = 32, 64
_TEMPERATURE = 0.7
_TOKENS, _LATE, _BINS = 16, 1.1, 6


def sample(net: Any, dataset: Dataset) -> list[str]:
    """Continue the beginning of the test text by each output.

    Returns:
      A text for each output; the numbers of the tokens if these are not bytes.
    """
    prompt = dataset.test.inputs[0, :_PROMPT]
    generator = osgd_jax.AnytimeGenerator(net, max_length=len(prompt) + _NEW)
    drawn = {"temperature": _TEMPERATURE, "key": jax.random.key(0)}
    outputs = range(generator.num_outputs)
    found = [generator.generate(prompt, _NEW, output=k, **drawn).tokens[0] for k in outputs]
    return [_as_text(np.concatenate([prompt, tokens]), dataset.num_classes) for tokens in found]


def _as_text(tokens: np.ndarray, num_classes: int) -> str:
    if num_classes == 256:
        return tokens.astype(np.uint8).tobytes().decode(errors="replace")
    return " ".join(map(str, tokens.tolist()))


def at_deadlines(
    net: Any, dataset: Dataset, bits: list[float], texts: int, seed: int = 0
) -> list[dict[str, Any]]:
    """Continue texts, each with a deadline for its tokens that is drawn at random.

    Args:
      net: what generates.
      dataset: whose test text is continued.
      bits: of each output for a token of the test text. An output gives the same logits whatever
        was skipped, so that their mean over the exits is what these answers are worth.
      texts: how many.
      seed: of the deadlines, even from 0 to half as much again as all stages take together.

    Returns:
      By rising deadlines: their mean in seconds, the share of tokens that each output gave, mean
      bits, and the share of tokens that came later than a tenth after their deadline.
    """
    generator = osgd_jax.AnytimeGenerator(net, max_length=_PROMPT + _TOKENS)
    generator.calibrate()
    rng = np.random.default_rng(seed)
    deadlines = np.sort(rng.uniform(0, 1.5 * sum(generator.latencies[1][1]), texts))
    rows = []
    for part in np.array_split(deadlines, min(_BINS, texts)):
        exits, late = [], []
        for deadline in part:
            prompt = dataset.test.inputs[rng.integers(dataset.test.size), :_PROMPT]
            steps = list(generator.stream(prompt, _TOKENS, deadline=deadline))
            exits += [int(step.exits[0]) for step in steps]
            elapsed = np.diff([step.elapsed for step in steps])
            late += (elapsed > _LATE * deadline).tolist()
        shares = np.bincount(exits, minlength=len(bits)) / len(exits)
        rows.append(
            {
                "deadline": float(part.mean()),
                "exit_shares": shares.tolist(),
                "bits_per_token": float(shares @ np.array(bits)),
                "late": float(np.mean(late)),
            }
        )
    return rows
