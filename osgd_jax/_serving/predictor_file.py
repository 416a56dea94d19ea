"""The file of an exported predictor: a container (`container.py`).

Its manifest has input_shape, input_dtype, combine and multiply_adds, and for each stage `passes`
(see `Stage`). A stage is a function of a list of weights and a list of the carry's arrays.
"""

import os
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import export

from osgd_jax._serving import container
from osgd_jax._serving.placement import copy_to_one_device
from osgd_jax._serving.stages import Stage

_KIND = "AnytimePredictor"


class FileModel:
    """The stages of a file.

    Args:
      manifest: its description.
      weights: the arrays of all stages.
      members: the stages by name, serialised.
    """

    def __init__(self, manifest: dict[str, Any], weights: list[Any], members: dict[str, bytes]):
        self.num_outputs = len(manifest["stages"])
        self.input_shape: tuple[int | None, ...] | None = tuple(manifest["input_shape"])
        self.input_dtype = jnp.dtype(manifest["input_dtype"])
        self.device, arrays = copy_to_one_device(weights)
        self._parts = manifest, arrays, members
        self._stages = [
            Stage(
                cast(Any, export.deserialize(bytearray(members[entry["member"]])).call),
                [arrays[index] for index in entry["weights"]],
                tuple(entry["passes"]),
            )
            for entry in manifest["stages"]
        ]

    def __reduce__(self) -> Any:
        return FileModel, self._parts

    def takes_integers(self, input_shape: tuple[int, ...]) -> bool:
        """Whether examples are integers."""
        del input_shape
        return jnp.issubdtype(self.input_dtype, jnp.integer)

    def stages(self, input_shape: tuple[int, ...], dtype: Any) -> list[Stage]:
        """The stages, which are for one shape and dtype alone."""
        del input_shape, dtype
        return self._stages

    def multiply_adds(self, input_shape: tuple[int, ...], dtype: Any) -> list[int]:
        """As counted when the file was written."""
        del input_shape, dtype
        return self._parts[0]["multiply_adds"]


def write(
    path: Path,
    *,
    stages: list[Stage],
    example: tuple[tuple[int, ...], str],
    multiply_adds: list[int],
    combine: str,
) -> None:
    """Write a file, or leave what is there as it is."""
    input_shape, input_dtype = example
    about = {
        "input_shape": input_shape,
        "input_dtype": input_dtype,
        "combine": combine,
        "multiply_adds": multiply_adds,
    }
    container.write(path, _KIND, about, _lower(stages, input_shape, input_dtype))


def read(path: str | os.PathLike[str]) -> tuple[FileModel, str]:
    """The model in a file, and how its outputs combine.

    Raises:
      ValueError: there is no such model in the file.
    """
    content = container.read(path, _KIND)
    return FileModel(*content), content.manifest["combine"]


def _lower(stages: list[Stage], input_shape: tuple[int, ...], dtype: str) -> list[container.Part]:
    """The stages for a batch of any size."""
    (batch,) = export.symbolic_shape("batch")
    carry: list[Any] = [jax.ShapeDtypeStruct((batch, *input_shape), jnp.dtype(dtype))]
    parts = []
    for stage in stages:
        lowered = container.lower(stage.call, stage.weights, carry)
        parts.append(container.Part(lowered, stage.weights, {"passes": stage.passes}))
        fresh = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in lowered.out_avals[1:]]
        carry = stage.next_carry(carry, fresh)
    return parts
