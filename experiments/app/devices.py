"""Placement of arrays: one mesh over all devices of all processes, data parallel.

The same code runs on one CPU and on many hosts. A batch is split over the devices and everything
else is the same on all of them, or split too where `shard_state` asks for it; the compiler adds the
communication. Means over the batch are means over all devices, batch statistics included. With
`TRAIN` for `python -m experiments.train --workdir DIR …`, DIR being one folder that all hosts see:

    one GPU, eight GPUs of one host  TRAIN
    two hosts, on each               TRAIN --coordinator HOST0:1234 --num-processes 2 --process-id I
    SLURM                            srun TRAIN --coordinator auto
    a TPU slice, on each host        TRAIN --coordinator auto

The batch size is that of all devices together; `--shard-state` splits a net too large for one.
"""

import dataclasses
import signal
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.app.settings import require

# Arrays below this size are not worth splitting.
_LEAST_SPLIT = 4096


@dataclasses.dataclass(frozen=True)
class Hosts:
    """Devices and hosts.

    Attributes:
      shard_state: split parameters and optimizer state over the devices, for nets too large for
        one.
      coordinator: HOST:PORT of process 0, or auto to find it on SLURM, Kubernetes, Open MPI or a
        TPU pod; one process alone if not given.
      num_processes: number of processes, with an explicit coordinator.
      process_id: of this process, from 0, with an explicit coordinator.
    """

    shard_state: bool = False
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None

    def __post_init__(self):
        require(self, fields=("num_processes",), at_least=1)
        require(self, fields=("process_id",), at_least=0)
        addressed = self.coordinator not in (None, "auto")
        if addressed and None in (self.num_processes, self.process_id):
            raise ValueError("--coordinator HOST:PORT needs --num-processes and --process-id.")


def connect(hosts: Hosts) -> None:
    """Join the other processes of the run, before any computation.

    Raises:
      ValueError: no other process found.
    """
    coordinator = hosts.coordinator
    if coordinator is None:
        return
    try:
        if coordinator == "auto":
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(coordinator, hosts.num_processes, hosts.process_id)
    except RuntimeError as error:
        raise ValueError(f"coordinator={coordinator} cannot be reached: {error}") from None


@dataclasses.dataclass(frozen=True)
class Placement:
    """Shardings over all devices.

    Attributes:
      mesh: of all devices of all processes, one axis "data".
      shard_state: whether large arrays of the state are split over the devices.
    """

    mesh: Mesh
    shard_state: bool = False

    @property
    def everywhere(self) -> NamedSharding:
        """Sharding of arrays that are equal on all devices."""
        return NamedSharding(self.mesh, PartitionSpec())

    def split(self, axis: int = 0) -> NamedSharding:
        """Return the sharding that splits an axis over the devices."""
        return NamedSharding(self.mesh, PartitionSpec(*[None] * axis, "data"))

    def of_state(self, state: Any) -> Any:
        """Return the sharding of each array of a training state."""

        def sharding(leaf: Any) -> NamedSharding:
            if self.shard_state and leaf.size >= _LEAST_SPLIT:
                for axis in np.argsort(leaf.shape)[::-1]:
                    if leaf.shape[axis] % self.mesh.size == 0:
                        return self.split(int(axis))
            return self.everywhere

        return jax.tree.map(sharding, state)

    def put_state(self, state: Any) -> Any:
        """Place a state that every process holds in full."""
        return jax.tree.map(self._put, state, self.of_state(state))

    def put_everywhere(self, tree: Any) -> Any:
        """Place arrays that every process holds in full on every device."""
        return jax.tree.map(lambda leaf: self._put(leaf, self.everywhere), tree)

    def put_batch(self, tree: Any, axis: int = 0) -> Any:
        """Split arrays over the devices, of which each process holds its own part."""
        return jax.tree.map(
            lambda leaf: jax.make_array_from_process_local_data(self.split(axis), leaf), tree
        )

    def _put(self, leaf: Any, sharding: NamedSharding) -> Any:
        if jax.process_count() == 1:
            # A copy, since arrays of the state may share a buffer and the first step uses it up.
            return jax.device_put(leaf, sharding, may_alias=False)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = self._put(jax.random.key_data(leaf), self.everywhere)
            return jax.jit(jax.random.wrap_key_data, out_shardings=sharding)(data)
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def placement(batch_size: int, shard_state: bool) -> Placement:
    """Use all devices.

    Raises:
      ValueError: a batch that cannot be split evenly over them.
    """
    devices = np.array(jax.devices())
    if batch_size % len(devices):
        raise ValueError(f"batch_size={batch_size} must be divisible by {len(devices)} devices.")
    return Placement(Mesh(devices, ("data",)), shard_state)


class StoppedError(Exception):
    """The process was asked to end; the state is saved.

    Attributes:
      number: of the signal that asked for it.
    """

    def __init__(self, step: int, number: int):
        super().__init__(f"Stopped after step {step}; the same command continues.")
        self.number = number


class StopSignal:
    """Watch for SIGTERM and SIGINT in a `with`; all processes agree on the step to stop after.

    A second SIGINT interrupts at once, as it does outside.
    """

    def __enter__(self) -> "StopSignal":
        self._number: int | None = None
        if jax.process_count() == 1:
            self._previous: dict[int, Any] = {
                number: signal.signal(number, self._note)
                for number in (signal.SIGTERM, signal.SIGINT)
                if signal.getsignal(number) != signal.SIG_IGN
            }
        return self

    def __exit__(self, *_: object) -> None:
        if jax.process_count() == 1:
            for number, action in self._previous.items():
                signal.signal(number, action)

    def number_after(self, step: int) -> int | None:
        """Return the number of the signal that asks to stop after this step, or None."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            return signal.SIGTERM
        return self._number

    def _note(self, number: int, _: object) -> None:
        self._number = number
        if number == signal.SIGINT:
            signal.signal(number, self._previous[number])
