"""Train an anytime net on real data: `python -m experiments.train --workdir DIR …`.

On digits with the default options it takes about a minute on two CPU cores.
"""

import contextlib
import signal
import sys
import time
from typing import Any

import jax
import numpy as np
import tyro
from jax.experimental import multihost_utils
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from experiments import data, devices, programs
from experiments.checkpoints import Checkpoints
from experiments.config import Config
from experiments.step import Measured, State
from experiments.workdir import MetricsLog, open_workdir, read_metrics, write_json


class StoppedError(Exception):
    """The process was asked to end; the state is saved."""


def train(config: Config, console: Console) -> dict[str, Any]:
    """Run, or continue, the training of a configuration; return what summary.json holds.

    Raises:
      ValueError: settings, data or a workdir that are not as they should be.
      FloatingPointError: a loss that is not finite.
      StoppedError: on SIGTERM.
    """
    # ---- devices and data
    devices.connect(config.coordinator, config.num_processes, config.process_id)
    placed = devices.placement(config.batch_size, config.shard_state)
    about = open_workdir(config)
    dataset = load_data(config)

    # ---- net, method, compiled functions
    built = programs.build(config, dataset, placed)

    # ---- the last checkpoint, if there is one
    checkpoints = Checkpoints(config.workdir / "checkpoints", config.keep_last, about)
    try:
        state = checkpoints.restore_last(built.initial) or built.initial
        start = int(state.step)
        if start:
            console.print(f"Continuing after step {start} of {built.num_steps}.")

        # ---- train
        clock = {"seconds": 0.0, "steps_per_second": 0.0, "waiting_for_input": 0.0}
        if start < built.num_steps:
            state, clock = _loop(config, console, dataset, placed, built, checkpoints, state)
        checkpoints.wait()
    finally:
        checkpoints.close()

    # ---- test
    test_accuracy, _ = programs.evaluate(built, placed, config, state, dataset.test)
    last = read_metrics(config.workdir)[-1]
    summary = {
        "test_accuracy": test_accuracy,
        "validation_accuracy": last["validation_accuracy"],
        "final_losses": last["losses"],
        "steps": built.num_steps,
        "parameters": [cost.parameters for cost in built.costs],
        "multiply_adds": [cost.multiply_adds for cost in built.costs],
        "clock": clock,
    }
    if jax.process_index() == 0:
        write_json(config.workdir / "summary.json", summary)
    return summary


def load_data(config: Config) -> data.Dataset:
    """The data set of a configuration."""
    return data.load_named(
        config.data,
        train_size=config.train_size,
        validation_fraction=config.validation_fraction,
        image_size=config.image_size,
        resident_megabytes=config.resident_megabytes,
        skip_corrupt=config.skip_corrupt,
        data_dir=config.data_dir,
        manual_dir=config.manual_dir,
        test_split=config.test_split,
    )


def _loop(
    config: Config,
    console: Console,
    dataset: data.Dataset,
    placed: devices.Placement,
    built: programs.Programs,
    checkpoints: Checkpoints,
    state: State,
) -> tuple[State, dict[str, float]]:
    """Train from the state's step to the end; return the last state and the time it took."""
    begun, step = time.perf_counter(), int(state.step)
    first = step
    process = jax.process_index(), jax.process_count()
    order = data.Batches(
        config.seed, config.batch_size, built.num_steps, process, workers=config.workers
    )
    resident = isinstance(dataset.train, data.Split)
    source = placed.put_everywhere(dataset.train) if resident else None
    examples = dataset.train
    batches = order.indices(examples.size, step) if resident else order.examples(examples, step)
    save_every = config.save_every or built.steps_per_epoch
    together = config.steps_per_dispatch or (1 if jax.default_backend() == "cpu" else 10)
    boundaries = (config.log_every, save_every, built.steps_per_epoch, built.num_steps)
    primary = jax.process_index() == 0
    log_file = MetricsLog(config.workdir, step) if primary else contextlib.nullcontext()
    last_logged = step, begun
    unchecked: list[tuple[int, Measured]] = []

    with _StopSignal() as stop, _progress(console) as progress, log_file as log:
        task = progress.add_task("compiling", total=built.num_steps, completed=step)
        while step < built.num_steps:
            # Several steps in one call, where none of them is a boundary but the last.
            boundary = min((step // every + 1) * every for every in boundaries)
            count = together if step % together == 0 and step + together <= boundary else 1
            cosines = None
            if count == 1:
                batch = placed.put_batch(next(batches))
                if built.conflict is not None and step + 1 == boundary:
                    cosines = built.conflict(state, source, batch)
                state, measured = built.step(state, source, batch)
                measured = jax.tree.map(lambda leaf: leaf[None], measured)
            else:
                parts = [next(batches) for _ in range(count)]
                stacked = jax.tree.map(lambda *each: np.stack(each), *parts)
                batch = placed.put_batch(stacked, axis=1)
                if built.conflict is not None and step + count == boundary:
                    cosines = built.conflict(state, source, jax.tree.map(lambda x: x[0], batch))
                state, measured = built.steps(state, source, batch)
            unchecked.append((step, measured))
            step += count
            stopping = stop.requested(step)

            # ---- check, log, validate and save
            if step == boundary or stopping:
                _check_finite(unchecked)
                unchecked.clear()
            accuracy = None
            if step == boundary:
                epoch = step / built.steps_per_epoch
                latest = jax.device_get(jax.tree.map(lambda leaf: leaf[-1], measured))
                now = time.perf_counter()
                rate = (step - last_logged[0]) / (now - last_logged[1])
                record = {
                    "step": step,
                    "epoch": round(epoch, 6),
                    "learning_rate": float(np.asarray(built.schedule(step - 1))),
                    **{k: v.tolist() for k, v in latest._asdict().items() if v is not None},
                }
                if cosines is not None:
                    record["task_cosines"] = jax.device_get(cosines).tolist()
                if step % built.steps_per_epoch == 0:
                    found = programs.evaluate(built, placed, config, state, dataset.validation)
                    record["validation_accuracy"], record["validation_losses"] = found
                    accuracy = float(np.mean(found[0]))
                    console.print(_epoch_line(record), highlight=False)
                record["clock"] = {
                    "seconds": round(now - begun, 3),
                    "steps_per_second": round(rate, 3),
                }
                if log is not None:
                    log.write(record)
                losses = " ".join(f"{loss:.3f}" for loss in record["losses"])
                shown = f"epoch {epoch:.1f} · {rate:.1f} steps/s · losses {losses}"
                progress.update(task, completed=step, description=shown)
                last_logged = step, time.perf_counter()
            if step % save_every == 0 or step == built.num_steps or stopping:
                checkpoints.save(state, accuracy)
            if stopping and step < built.num_steps:
                checkpoints.wait()
                raise StoppedError(f"Stopped after step {step}; the same command continues.")
    seconds = time.perf_counter() - begun
    return state, {
        "seconds": round(seconds, 3),
        "steps_per_second": round((step - first) / seconds, 3),
        "waiting_for_input": round(order.waited / seconds, 4),
    }


def _check_finite(unchecked: list[tuple[int, Measured]]) -> None:
    for start, measured in unchecked:
        for what, values in (("loss", measured.losses), ("gradient", measured.gradient_norms)):
            finite = np.isfinite(0.0 if values is None else jax.device_get(values))
            if not finite.all():
                step, output = np.argwhere(~finite)[0].tolist()
                raise FloatingPointError(
                    f"the {what} of output {output + 1} is not finite at step {start + step + 1};"
                    " the last checkpoint before it is kept. A smaller --learning-rate may help."
                )


class _StopSignal:
    """Whether SIGTERM has come, agreed upon by all processes; the default action comes back."""

    def __enter__(self) -> "_StopSignal":
        self._came = False
        if jax.process_count() == 1:
            self._previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, self._previous)

    def requested(self, step: int) -> bool:
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._came

    def _note(self, *_: object) -> None:
        self._came = True


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TextColumn("steps, remaining"),
        TimeRemainingColumn(),
        console=console,
        disable=jax.process_index() != 0,
    )


def _epoch_line(record: dict[str, Any]) -> str:
    accuracies = " ".join(f"{100 * each:5.1f}" for each in record["validation_accuracy"])
    losses = " ".join(f"{each:.3f}" for each in record["losses"])
    return f"epoch {record['epoch']:g}: validation accuracy {accuracies} %, losses {losses}"


def main() -> None:
    """Command line."""
    console = Console(quiet=False)
    try:
        config = tyro.cli(Config, prog="python -m experiments.train", description=__doc__)
        summary = train(config, console)
    except StoppedError as stopped:
        console.print(str(stopped), highlight=False)
        return
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    accuracies = " ".join(f"{100 * each:.1f}" for each in summary["test_accuracy"])
    waited = 100 * summary["clock"]["waiting_for_input"]
    console.print(f"test accuracy {accuracies} % at the outputs in order", highlight=False)
    console.print(f"waited for input {waited:.1f} % of the time", highlight=False)
    console.print(f"Wrote {config.workdir / 'summary.json'}.", highlight=False)


if __name__ == "__main__":
    main()
