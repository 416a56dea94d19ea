"""The file of an exported generator: a container (`osgd_jax._serving.container`).

Its manifest has max_length and vocab_size. A stage is a function of lists of arrays, of which
`Stages.call` says what they are, for any number of texts and of positions.
"""

import os
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import export

from osgd_jax._serving import container
from osgd_jax._serving.placement import copy_to_one_device
from osgd_jax._serving.token_stages import Arrays, Kept, Stages

_KIND = "AnytimeGenerator"


class FileStages:
    """The stages of a file.

    Args:
      content: of the file.
    """

    def __init__(self, content: container.Content):
        self._content, manifest = content, content.manifest
        self.num_outputs = len(manifest["stages"])
        self.vocab_size: int = manifest["vocab_size"]
        self.device, arrays = copy_to_one_device(content.weights)
        self.weights, self.kept, self._calls = [], [], []
        for k, entry in enumerate(manifest["stages"]):
            stage = export.deserialize(bytearray(content.members[entry["member"]]))
            (_, past, state, starts, *_), _ = jax.tree.unflatten(stage.in_tree, stage.in_avals)
            self.weights.append([arrays[index] for index in entry["weights"]])
            (batch,) = starts.shape
            heads = [jax.ShapeDtypeStruct((a.shape[0] // batch, a.shape[1]), a.dtype) for a in past]
            left = [jax.ShapeDtypeStruct(a.shape[2:], a.dtype) for a in state if k]
            self.kept.append(Kept(heads, left))
            self._calls.append(cast(Any, stage.call))

    def __reduce__(self) -> Any:
        return FileStages, (self._content,)

    def call(self, k: int, *arguments: Any) -> tuple[jax.Array, Arrays, Arrays]:
        """As in `Stages`."""
        return self._calls[k](*arguments)


def write(path: Path, stages: Stages, max_length: int) -> None:
    """Write a file, or leave what is there as it is."""
    batch, count = export.symbolic_shape("batch, count")
    integers = jax.ShapeDtypeStruct((batch,), jnp.int32)
    state, logits = [jax.ShapeDtypeStruct((batch, count), jnp.int32)], None
    parts = []
    for k, (weights, kept) in enumerate(zip(stages.weights, stages.kept, strict=True)):
        past = kept.past_of(batch, max_length)
        if k > 0:
            state = kept.state_of(batch, count)
        run = lambda *arguments, k=k: stages.call(k, *arguments)  # noqa: E731
        lowered = container.lower(run, weights, past, state, integers, integers, logits)
        parts.append(container.Part(lowered, weights, {}))
        logits = jax.ShapeDtypeStruct(lowered.out_avals[0].shape, lowered.out_avals[0].dtype)
    about = {"max_length": max_length, "vocab_size": stages.vocab_size}
    container.write(path, _KIND, about, parts)


def read(path: str | os.PathLike[str]) -> tuple[FileStages, int]:
    """The stages in a file, and the most tokens of a text.

    Raises:
      ValueError: there is no generator in the file.
    """
    content = container.read(path, _KIND)
    return FileStages(content), content.manifest["max_length"]
