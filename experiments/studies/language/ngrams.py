"""Measure a text by a model that counts: bits per token of n-grams."""

from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np

from experiments.app.data.dataset import Split


def bits(train: Split, test: Split, vocab_size: int, order: int) -> list[float]:
    """Bits per test token of the 1-gram to the `order`-gram, of windows as a net sees them.

    Each is mixed with the next shorter one by the rule of Witten and Bell (IEEE Transactions on
    Information Theory 37, 1991), the shortest with equal chances.

    Args:
      train: windows of tokens and of the tokens that follow, `[N, length]`.
      test: windows likewise.
      vocab_size: number of different tokens.
      order: of the longest; it sees the `order` − 1 tokens before, fewer where a window begins.
    """
    followers = defaultdict(Counter)
    for contexts, token in _read(train, order):
        for context in contexts:
            followers[context][token] += 1
    totals = {context: seen.total() for context, seen in followers.items()}

    spent, number = np.zeros(order), 0
    for contexts, token in _read(test, order):
        chances = [1 / vocab_size]
        for context in contexts:
            seen, total = followers.get(context, Counter()), totals.get(context, 0)
            shorter = chances[-1]
            unseen = len(seen) or 1
            chances.append((seen[token] + unseen * shorter) / (total + unseen))
        chances += chances[-1:] * (order + 1 - len(chances))
        spent -= np.log2(chances[1:])
        number += 1
    return (spent / number).tolist()


def _read(split: Split, order: int) -> Iterator[tuple[list[tuple[int, ...]], int]]:
    """Return the contexts of each token, from none to the longest, and the token."""
    for window, following in zip(split.inputs.tolist(), split.labels.tolist(), strict=True):
        for t, token in enumerate(following):
            seen = tuple(window[max(0, t + 2 - order) : t + 1])
            yield [seen[len(seen) - n :] for n in range(min(order, len(seen) + 1))], token
