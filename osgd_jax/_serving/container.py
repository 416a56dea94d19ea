"""The container of exported files.

A line of text with what the file is for and the format's version, a line with the SHA-256 of the
rest, and a ZIP archive:

- `manifest.json`: the description of the file by its writer; `weights`, the shape, dtype and offset
  of each array in `weights.bin`; `stages`, for each its member and the indices of the weights that
  it reads;
- `weights.bin`: the arrays, row by row, little-endian, each once, whatever number of stages and
  platforms use it;
- `stage-0.bin` …: `jax.export` of the stages.

Readers of ZIP skip the two lines, so that the file opens with any of them too.
"""

import hashlib
import io
import json
import math
import os
import uuid
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from osgd_jax._serving.paths import as_path
from osgd_jax._serving.placement import alone, default_device

_VERSION = 1
_PLATFORMS = ("cpu", "cuda", "tpu")


class Part(NamedTuple):
    """A stage to write.

    Attributes:
      lowered: of `lower`.
      weights: the arrays that it reads.
      about: what else the manifest says of it.
    """

    lowered: export.Exported
    weights: Sequence[Any]
    about: Mapping[str, Any]


class Content(NamedTuple):
    """The content of a file.

    Attributes:
      manifest: its description.
      weights: the arrays of all stages.
      members: the stages by name, serialized.
    """

    manifest: dict[str, Any]
    weights: list[np.ndarray]
    members: dict[str, bytes]


def lower(function: Callable[..., Any], *arguments: Any) -> export.Exported:
    """Lower a function for all platforms; the machine needs none of them but CPU."""
    shapes = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), arguments)
    with alone(default_device()):
        return export.export(jax.jit(function), platforms=_PLATFORMS)(*shapes)


def write(path: Path, kind: str, about: Mapping[str, Any], parts: Sequence[Part]) -> None:
    """Write a file whole or not at all.

    Args:
      path: of the file.
      kind: the class that reads it.
      about: what the manifest says of the whole.
      parts: the stages in order.
    """
    weights, offset = {}, 0
    for array in (array for part in parts for array in part.weights):
        if id(array) not in weights:
            weights[id(array)] = len(weights), array, offset
            offset += array.nbytes
    manifest = {
        **about,
        "jax": jax.__version__,
        "platforms": _PLATFORMS,
        "weights": [
            {"shape": array.shape, "dtype": array.dtype.name, "offset": offset}
            for _, array, offset in weights.values()
        ],
        "stages": [
            {
                "member": f"stage-{k}.bin",
                "weights": [weights[id(array)][0] for array in part.weights],
                **part.about,
            }
            for k, part in enumerate(parts)
        ],
    }
    payload = io.BytesIO()
    with zipfile.ZipFile(payload, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", json.dumps(manifest, indent=1))
        with archive.open("weights.bin", "w") as member:
            for _, array, _ in weights.values():
                member.write(np.asarray(array).tobytes())
        for entry, part in zip(manifest["stages"], parts, strict=True):
            archive.writestr(entry["member"], bytes(part.lowered.serialize()))
    digest = hashlib.sha256(payload.getbuffer()).hexdigest().encode()
    _replace(path, _magic(kind) + b"%d\n" % _VERSION + digest + b"\n", payload.getbuffer())


def read(path: str | os.PathLike[str], kind: str) -> Content:
    """Read a file.

    Raises:
      ValueError: it is of another kind, damaged, of another version, or needs 64-bit floats where
        JAX has them switched off.
    """
    magic = _magic(kind)
    with open(as_path(path), "rb") as file:
        head, digest = file.readline(len(magic) + 16), file.readline(80).strip()
        payload = file.read()
    if not head.startswith(magic):
        raise ValueError(f"{path} was not written by {kind}.export.")
    version = head.removeprefix(magic).strip().decode("ascii", "replace")
    if version != str(_VERSION):
        raise ValueError(
            f"{path} has the format {version!r}, this version of osgd_jax reads {_VERSION}: export"
            " the net again with this version, or load the file with the one that wrote it."
        )
    if hashlib.sha256(payload).hexdigest().encode() != digest:
        raise ValueError(f"{path} is damaged or cut short (its checksum differs): copy it again.")
    with zipfile.ZipFile(io.BytesIO(payload)) as archive:
        manifest = json.loads(archive.read("manifest.json"))
        dtypes = {manifest.get("input_dtype"), *(entry["dtype"] for entry in manifest["weights"])}
        if "float64" in dtypes and jnp.result_type(float) != jnp.float64:
            raise ValueError(f"{path} computes in float64: load it under jax.enable_x64(True).")
        data = archive.read("weights.bin")
        weights = [_array(data, **entry) for entry in manifest["weights"]]
        members = {entry["member"]: archive.read(entry["member"]) for entry in manifest["stages"]}
    return Content(manifest, weights, members)


def _magic(kind: str) -> bytes:
    return f"osgd_jax {kind}, format ".encode()


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
