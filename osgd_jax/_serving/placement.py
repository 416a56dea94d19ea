"""The one device that a predictor or generator runs on, wherever weights and inputs come from.

Compiled programs take arrays of the placement that they were compiled for, and exported files keep
it. Everything is therefore brought to one device, and traced outside of the mesh that the caller
may have set.
"""

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh, SingleDeviceSharding

from osgd_jax._host_arrays import as_array, traced_error


def default_device() -> Any:
    """Return the device on which JAX puts arrays that name none."""
    chosen = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    return chosen if isinstance(chosen, jax.Device) else jax.local_devices(backend=chosen)[0]


def alone(device: Any) -> AbstractContextManager[Any]:
    """Return a context in which programs are traced for a device, whatever mesh the caller set.

    It begins with the call, so that it must be entered at once.

    Raises:
      ValueError: the call is under `jax.jit` or another transformation.
    """
    try:
        return jax.set_mesh(_mesh(device))
    except ValueError:
        raise traced_error("the call") from None


@functools.cache
def _mesh(device: Any) -> Mesh:
    return Mesh(np.array(device), ())


def move(name: str, array: Any, device: Any, *, copy: bool = False) -> jax.Array:
    """Return an array on one device alone.

    Args:
      name: of the argument, for the error.
      array: on the host, or on devices.
      device: where to.
      copy: also where it is there already.

    Raises:
      ValueError: parts of the array are on devices of other processes.
    """
    target = SingleDeviceSharding(device)
    if isinstance(array, jax.Array):
        # On a device, an array may keep the type that it had on a mesh, until it is copied.
        copy = copy or not jax.typeof(array).sharding.mesh.empty
        if array.sharding == target and not copy:
            return array
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        if not array.is_fully_replicated:
            raise ValueError(
                f"`{name}` has an array that is split over several processes; gather it first by"
                " jax.experimental.multihost_utils.process_allgather."
            )
        array = array.addressable_data(0)
    return jax.device_put(array, target, may_alias=False if copy else None)


def copy_to_one_device(leaves: Sequence[Any]) -> tuple[Any, list[jax.Array]]:
    """Return copies of a net's arrays on the first device that has them, and that device.

    They are copies because a training step that donates its buffers would delete the net's own.

    Raises:
      ValueError: an array is traced, abstract, deleted, or split over several processes.
    """
    arrays = [_check_leaf(leaf) for leaf in leaves]
    placed = [array.sharding for array in arrays if isinstance(array, jax.Array)]
    device = default_device()
    if placed:
        device = min(placed[0].addressable_devices, key=lambda device: device.id)
    return device, [move("net", array, device, copy=True) for array in arrays]


def _check_leaf(leaf: Any) -> Any:
    if isinstance(leaf, Tracer):
        raise ValueError(
            "`net` must have arrays with values; got traced ones. Make predictors and generators"
            " outside of jax.jit and other transformations."
        )
    if isinstance(leaf, jax.ShapeDtypeStruct):
        raise ValueError(
            "`net` must have arrays with values; got an abstract net, as nnx.eval_shape makes."
        )
    if isinstance(leaf, jax.Array) and leaf.is_deleted():
        raise ValueError(
            "`net` must have arrays with values; got one that is deleted, such as by a step that"
            " donates its buffers. Update the net with what the step returned."
        )
    return as_array("net", leaf)
