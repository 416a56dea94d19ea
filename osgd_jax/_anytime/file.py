"""The file of an exported predictor.

A line of text with the format's version, a line with the SHA-256 of the rest, and a ZIP archive:

- `manifest.json`: input_shape, input_dtype, combine, multiply_adds; `weights`, the shape, dtype and
  offset of each array in `weights.bin`; `stages`, for each its member, the indices of the weights
  that it reads, and `passes` (see `Stage`);
- `weights.bin`: the arrays, row by row, little-endian, each once, whatever number of stages and
  platforms use it;
- `stage-0.bin` …: `jax.export` of the stage, a function of a list of weights and a list of the
  carry's arrays.

Readers of ZIP skip the two lines, so that the file opens with any of them too.
"""

import hashlib
import io
import json
import math
import os
import uuid
import zipfile
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from osgd_jax._anytime.paths import as_path
from osgd_jax._anytime.stages import Stage

_MAGIC = b"osgd_jax AnytimePredictor, format "
_VERSION = 1
_PLATFORMS = ("cpu", "cuda", "tpu")


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
        arrays = [jnp.array(weight) for weight in weights]
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
    weights, offset = {}, 0
    for array in (array for stage in stages for array in stage.weights):
        if id(array) not in weights:
            weights[id(array)] = len(weights), array, offset
            offset += array.nbytes
    input_shape, input_dtype = example
    members = _lower(stages, input_shape, input_dtype)
    manifest = {
        "input_shape": input_shape,
        "input_dtype": input_dtype,
        "combine": combine,
        "multiply_adds": multiply_adds,
        "jax": jax.__version__,
        "platforms": _PLATFORMS,
        "weights": [
            {"shape": array.shape, "dtype": array.dtype.name, "offset": offset}
            for _, array, offset in weights.values()
        ],
        "stages": [
            {
                "member": name,
                "weights": [weights[id(array)][0] for array in stage.weights],
                "passes": stage.passes,
            }
            for name, stage in zip(members, stages, strict=True)
        ],
    }
    payload = io.BytesIO()
    with zipfile.ZipFile(payload, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", json.dumps(manifest, indent=1))
        with archive.open("weights.bin", "w") as member:
            for _, array, _ in weights.values():
                member.write(np.asarray(array).tobytes())
        for name, blob in members.items():
            archive.writestr(name, blob)
    digest = hashlib.sha256(payload.getbuffer()).hexdigest().encode()
    _replace(path, _MAGIC + b"%d\n" % _VERSION + digest + b"\n", payload.getbuffer())


def read(path: str | os.PathLike[str]) -> tuple[FileModel, str]:
    """The model in a file, and how its outputs combine.

    Raises:
      ValueError: there is no such model in the file.
    """
    with open(as_path(path), "rb") as file:
        head, digest = file.readline(len(_MAGIC) + 16), file.readline(80).strip()
        payload = file.read()
    if not head.startswith(_MAGIC):
        raise ValueError(f"{path} is no file that AnytimePredictor.export wrote.")
    version = head.removeprefix(_MAGIC).strip().decode("ascii", "replace")
    if version != str(_VERSION):
        raise ValueError(
            f"{path} has the format {version!r}, this version of osgd_jax reads {_VERSION}: export"
            " the net again with this version, or load the file with the one that wrote it."
        )
    if hashlib.sha256(payload).hexdigest().encode() != digest:
        raise ValueError(f"{path} is damaged or cut short (its checksum differs): copy it again.")
    with zipfile.ZipFile(io.BytesIO(payload)) as archive:
        manifest = json.loads(archive.read("manifest.json"))
        dtypes = {manifest["input_dtype"], *(entry["dtype"] for entry in manifest["weights"])}
        if "float64" in dtypes and jnp.result_type(float) != jnp.float64:
            raise ValueError(f"{path} computes in float64: load it under jax.enable_x64(True).")
        data = archive.read("weights.bin")
        weights = [_array(data, **entry) for entry in manifest["weights"]]
        members = {entry["member"]: archive.read(entry["member"]) for entry in manifest["stages"]}
    return FileModel(manifest, weights, members), manifest["combine"]


def _lower(stages: list[Stage], input_shape: tuple[int, ...], dtype: str) -> dict[str, bytes]:
    """The stages by name of member, for a batch of any size and all platforms."""
    (batch,) = export.symbolic_shape("batch")
    carry: list[Any] = [jax.ShapeDtypeStruct((batch, *input_shape), jnp.dtype(dtype))]
    members = {}
    for k, stage in enumerate(stages):
        lowered = export.export(jax.jit(stage.call), platforms=_PLATFORMS)(stage.weights, carry)
        members[f"stage-{k}.bin"] = bytes(lowered.serialize())
        fresh = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in lowered.out_avals[1:]]
        carry = stage.next_carry(carry, fresh)
    return members


def _array(data: bytes, *, shape: list[int], dtype: str, offset: int) -> np.ndarray:
    kind = np.dtype(jnp.dtype(dtype))
    return np.frombuffer(data, kind, count=math.prod(shape), offset=offset).reshape(shape)


def _replace(path: Path, *parts: Any) -> None:
    """Write beside `path` and move into place, so that nobody ever finds half a file."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "xb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
