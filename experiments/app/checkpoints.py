"""Checkpoints of a training run, by orbax: asynchronous, atomic, the last few and the best."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers

from experiments.app.step import State

# Beside the arrays a checkpoint holds descriptions of them, and the configuration.
_SLACK = 1_000_000


class Checkpoints:
    """Saves and restores the state of a run.

    A checkpoint holds the state (parameters, batch statistics, optimizer state, random key and
    step, which is the position in the data too), the configuration and versions, and a checksum,
    since the files themselves do not tell every kind of damage.

    Args:
      folder: where they lie.
      keep_last: how many are kept beside the one with the best validation accuracy; None to read
        only, which changes nothing in the folder and leaves a run that is saving alone.
      about: configuration and versions.
    """

    def __init__(self, folder: Path, keep_last: int | None = None, about: Any = None):
        # What goes wrong is raised here too, and told in one sentence instead of many traces.
        logging.set_verbosity(logging.FATAL)
        best = checkpoint_managers.BestN(
            get_metric_fn=_validation_accuracy, n=1, keep_checkpoints_without_metrics=False
        )
        options = ocp.CheckpointManagerOptions(best_fn=_validation_accuracy, read_only=True)
        if keep_last is not None:
            last = checkpoint_managers.LatestN(keep_last)
            options = ocp.CheckpointManagerOptions(
                best_fn=_validation_accuracy,
                preservation_policy=checkpoint_managers.AnyPreservationPolicy([last, best]),
                cleanup_tmp_directories=True,
            )
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)
        self._folder = folder
        self._about = about

    def save(self, state: State, validation_accuracy: float | None) -> None:
        """Start saving; training can go on meanwhile.

        Args:
          state: what to save.
          validation_accuracy: mean over the outputs, by which the best is told; None if unknown.

        Raises:
          OSError: there is no room, or an earlier one could not be saved; existing
            ones stay.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        self._check_room(step, state)
        about = {**self._about, "checksum": int(_checksum(state))}
        metrics = None if validation_accuracy is None else {"accuracy": validation_accuracy}
        with self._failures():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(state), about=ocp.args.JsonSave(about)
                ),
                metrics=metrics,
            )

    def restore_last(self, example: State) -> State | None:
        """Restore the newest intact state, or None; later, damaged ones are removed.

        Args:
          example: a state with the structure, shapes and shardings wanted.

        Raises:
          ValueError: there are checkpoints and none of them is whole.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for place, step in enumerate(steps):
            state = self._restore(step, example)
            if state is not None:
                for damaged in steps[:place]:
                    self._manager.delete(damaged)
                return state
        if steps:
            raise ValueError(f"no checkpoint in {self._folder} can be read; remove it to restart.")
        return None

    def restore(self, which: str, example: State) -> State:
        """Restore the last or the best state.

        Args:
          which: "last" or "best".
          example: as for `restore_last`.

        Raises:
          ValueError: there is none, or it is damaged.
        """
        last, best = self._manager.latest_step(), self._manager.best_step()
        step = last if which == "last" else best
        state = None if step is None else self._restore(step, example)
        if state is None:
            raise ValueError(f"{self._folder} has no readable {which} checkpoint.")
        return state

    def wait(self) -> None:
        """Wait until everything is saved.

        Raises:
          OSError: something could not be.
        """
        with self._failures():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Finish saving and stop; raises as `wait`."""
        with self._failures():
            self._manager.close()

    def _check_room(self, step: int, state: State) -> None:
        """Reserve the room of a checkpoint for a moment, so that no half checkpoint is written."""
        if jax.process_index() > 0 or not hasattr(os, "posix_fallocate"):
            return
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + _SLACK
        try:
            with tempfile.TemporaryFile(dir=self._folder) as file:
                os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            raise OSError(
                f"there is no room in {self._folder} for the checkpoint of step {step}, {size:,}"
                f" bytes ({error.strerror}); those before it are kept. Make room, and start again."
            ) from None

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever the writers raise, in their threads too
            reason = " ".join(str(error).split())[:200]
            raise OSError(
                f"a checkpoint could not be saved in {self._folder} ({reason}); those before it"
                " are kept."
            ) from None

    def _restore(self, step: int, example: State) -> State | None:
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, example)
        arguments = ocp.args.Composite(
            state=ocp.args.PyTreeRestore(
                shapes, restore_args=ocp.checkpoint_utils.construct_restore_args(shapes)
            ),
            about=ocp.args.JsonRestore(),
        )
        try:
            found: Any = self._manager.restore(step, args=arguments)
        except Exception as error:  # whatever a damaged file makes the readers raise
            return _report_damage(step, " ".join(str(error).split())[:100])
        if int(_checksum(found.state)) != found.about["checksum"]:
            return _report_damage(step, "its checksum is wrong.")
        return found.state


def _report_damage(step: int, reason: str) -> None:
    print(f"The checkpoint of step {step} cannot be used: {reason}", file=sys.stderr)


def _validation_accuracy(metrics: Any) -> float:
    return metrics["accuracy"]


@jax.jit
def _checksum(state: State) -> jax.Array:
    """Sum over all bits; the sum does not depend on how devices split the arrays."""
    total = jnp.uint32(0)
    for number, leaf in enumerate(jax.tree.leaves(state)):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        if leaf.dtype == bool:
            leaf = leaf.astype(jnp.uint8)
        words = jax.lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}")
        places = jnp.arange(words.size, dtype=jnp.uint32).reshape(words.shape) * 2 + 1
        total += (number + 1) * (words.astype(jnp.uint32) * places).sum(dtype=jnp.uint32)
    return total
