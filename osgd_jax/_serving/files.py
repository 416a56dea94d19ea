"""The files of exported predictors and generators: containers (`container.py`).

The manifest of a predictor has input_shape, input_dtype, combine and multiply_adds, and for each
stage `passes` (see `Stage`). Its stages are functions of a list of weights and a list of the
carry's arrays. The manifest of a generator has max_length, vocab_size and multiply_adds, which the
first version did not write. Its stages are functions of lists of arrays, as `Stages.call` describes
them, for any number of texts and positions.
"""

import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from osgd_jax._serving import container
from osgd_jax._serving.placement import copy_to_one_device
from osgd_jax._serving.stages import Stage
from osgd_jax._serving.token_stages import Arrays, Kept, Stages


class _File:
    """The stages of a file, and its weights on one device.

    Args:
      content: of the file.
    """

    def __init__(self, content: container.Content):
        self._content = content
        entries = content.manifest["stages"]
        self.num_outputs = len(entries)
        self.device, arrays = copy_to_one_device(content.weights)
        self.weights = [[arrays[index] for index in entry["weights"]] for entry in entries]
        self._exported = [
            export.deserialize(bytearray(content.members[entry["member"]])) for entry in entries
        ]

    def __reduce__(self) -> Any:
        return type(self), (self._content,)


class FileModel(_File):
    """The stages of a predictor's file."""

    def __init__(self, content: container.Content):
        super().__init__(content)
        manifest = content.manifest
        self.input_shape: tuple[int | None, ...] | None = tuple(manifest["input_shape"])
        self.input_dtype = jnp.dtype(manifest["input_dtype"])
        calls: list[Any] = [exported.call for exported in self._exported]
        passes = [tuple(entry["passes"]) for entry in manifest["stages"]]
        self._stages = list(map(Stage, calls, self.weights, passes))

    def takes_integers(self, input_shape: tuple[int, ...]) -> bool:
        """Tell whether examples are integers."""
        del input_shape
        return jnp.issubdtype(self.input_dtype, jnp.integer)

    def stages(self, input_shape: tuple[int, ...], dtype: Any) -> list[Stage]:
        """Return the stages, which are for one shape and dtype."""
        del input_shape, dtype
        return self._stages

    def multiply_adds(self, input_shape: tuple[int, ...], dtype: Any) -> list[int]:
        """Return the counts that the file holds."""
        del input_shape, dtype
        return self._content.manifest["multiply_adds"]


class FileStages(_File):
    """The stages of a generator's file."""

    def __init__(self, content: container.Content):
        super().__init__(content)
        self.vocab_size: int = content.manifest["vocab_size"]
        self.kept = []
        for k, stage in enumerate(self._exported):
            (_, past, state, starts, *_), _ = jax.tree.unflatten(stage.in_tree, stage.in_avals)
            (batch,) = starts.shape
            heads = [jax.ShapeDtypeStruct((a.shape[0] // batch, a.shape[1]), a.dtype) for a in past]
            left = [jax.ShapeDtypeStruct(a.shape[2:], a.dtype) for a in state if k]
            self.kept.append(Kept(heads, left))
        self._calls: list[Any] = [exported.call for exported in self._exported]

    def call(self, k: int, *arguments: Any) -> tuple[jax.Array, Arrays, Arrays]:
        """Run a stage; see `Stages.call`."""
        return self._calls[k](*arguments)

    def multiply_adds(self, length: int) -> list[int]:
        """Return the counts that the file holds, for its `max_length`.

        Raises:
          ValueError: the file has none.
        """
        del length
        if "multiply_adds" not in self._content.manifest:
            raise ValueError(
                "`budget` must be None for this generator, whose file is of a version that did not"
                " count multiply-adds; export the net again."
            )
        return self._content.manifest["multiply_adds"]


def read_predictor(path: str | os.PathLike[str]) -> tuple[FileModel, str]:
    """Return the model in a file, and how its outputs combine.

    Raises:
      ValueError: there is no such model in the file.
    """
    content = container.read(path, "AnytimePredictor")
    return FileModel(content), content.manifest["combine"]


def read_generator(path: str | os.PathLike[str]) -> tuple[FileStages, int]:
    """Return the stages in a file, and the most tokens of a text.

    Raises:
      ValueError: there is no generator in the file.
    """
    content = container.read(path, "AnytimeGenerator")
    return FileStages(content), content.manifest["max_length"]


def write_predictor(
    path: Path,
    *,
    stages: list[Stage],
    example: tuple[tuple[int, ...], str],
    multiply_adds: list[int],
    combine: str,
) -> None:
    """Write a file whole or not at all."""
    input_shape, input_dtype = example
    about = {
        "input_shape": input_shape,
        "input_dtype": input_dtype,
        "combine": combine,
        "multiply_adds": multiply_adds,
    }
    container.write(path, "AnytimePredictor", about, _lower(stages, input_shape, input_dtype))


def write_generator(path: Path, stages: Stages, max_length: int) -> None:
    """Write a file whole or not at all."""
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
    about = {
        "max_length": max_length,
        "vocab_size": stages.vocab_size,
        "multiply_adds": stages.multiply_adds(max_length),
    }
    container.write(path, "AnytimeGenerator", about, parts)


def _lower(stages: list[Stage], input_shape: tuple[int, ...], dtype: str) -> list[container.Part]:
    """Lower the stages for a batch of any size."""
    (batch,) = export.symbolic_shape("batch")
    carry: list[Any] = [jax.ShapeDtypeStruct((batch, *input_shape), jnp.dtype(dtype))]
    parts = []
    for stage in stages:
        lowered = container.lower(stage.call, stage.weights, carry)
        parts.append(container.Part(lowered, stage.weights, {"passes": stage.passes}))
        fresh = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in lowered.out_avals[1:]]
        carry = stage.next_carry(carry, fresh)
    return parts
