"""Loop of a training run: feed batches, step, check, log, validate and save."""

import contextlib
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from experiments.app import data, devices, programs
from experiments.app.checkpoints import Checkpoints
from experiments.app.config import TrainConfig
from experiments.app.metrics_log import Clock, MetricsLog
from experiments.app.step import Conflict, Measured, State


def run_steps(
    config: TrainConfig,
    console: Console,
    dataset: data.Dataset,
    placed: devices.Placement,
    built: programs.Programs,
    checkpoints: Checkpoints,
    state: State,
) -> tuple[State, dict[str, float]]:
    """Train from a state's step to the last one; return the last state and the time it took.

    Raises:
      FloatingPointError: a loss or gradient is not finite.
      devices.StoppedError: a signal came; the state is saved.
      OSError: a checkpoint or the log cannot be written.
    """
    run, step, clock = config.run, int(state.step), Clock(int(state.step))
    feed = _feed(config, dataset.train, placed, built.num_steps, step)
    save_every = run.save_every or built.steps_per_epoch
    boundaries = (run.log_every, save_every, built.steps_per_epoch, built.num_steps)
    unchecked: list[tuple[int, Measured]] = []

    with (
        contextlib.closing(feed.batches),
        devices.StopSignal() as stop,
        _progress(console) as progress,
        _log(config, step) as log,
    ):
        task = progress.add_task("compiling", total=built.num_steps, completed=step)
        while step < built.num_steps:
            count, boundary = _next_call(step, run.steps_per_dispatch, boundaries)
            batch = placed.put_batch(_stacked([next(feed.batches) for _ in range(count)]), axis=1)
            conflict = None
            if built.conflict is not None and step + count == boundary:
                conflict = built.conflict(state, feed.source, batch)
            state, measured = built.steps(state, feed.source, batch)
            unchecked.append((step, measured))
            step += count
            stopping = stop.number_after(step)
            if step == boundary or stopping:
                _check_finite(unchecked)
                unchecked.clear()
            accuracy = None
            if step == boundary:
                record = _record(built, step, measured, conflict, clock)
                if step % built.steps_per_epoch == 0:
                    record |= _validated(built, placed, state, dataset)
                    accuracy = float(np.mean(record["validation_accuracy"]))
                    console.print(_epoch_line(record), highlight=False)
                if log is not None:
                    log.write(record)
                progress.update(task, completed=step, description=_progress_line(record))
                clock.go_on()
            if step % save_every == 0 or step == built.num_steps or stopping:
                checkpoints.save(state, accuracy)
            if stopping and step < built.num_steps:
                checkpoints.wait()
                raise devices.StoppedError(step, stopping)
    return state, clock.total(step, feed.order.waited)


def _next_call(step: int, together: int | None, boundaries: Sequence[int]) -> tuple[int, int]:
    """Return the number of steps in the next call, and the next step that ends an interval.

    Args:
      step: number of steps done.
      together: steps in a call; 1 on CPU and 10 elsewhere if None.
      boundaries: lengths of the intervals, whose ends no call passes.
    """
    together = together or (1 if jax.default_backend() == "cpu" else 10)
    boundary = min((step // every + 1) * every for every in boundaries)
    return together if step % together == 0 and step + together <= boundary else 1, boundary


def _log(config: TrainConfig, step: int) -> contextlib.AbstractContextManager[MetricsLog | None]:
    if jax.process_index() > 0:
        return contextlib.nullcontext()
    return MetricsLog(config.workdir, step)


class _Feed(NamedTuple):
    """Input of the steps.

    Attributes:
      order: of the examples.
      source: examples that live on the devices; None where they are read while training.
      batches: from a step on, indices into the source or else examples.
    """

    order: data.Batches
    source: data.Split | None
    batches: Generator[Any]


def _feed(
    config: TrainConfig,
    train: data.Examples,
    placed: devices.Placement,
    num_steps: int,
    step: int,
) -> _Feed:
    process = jax.process_index(), jax.process_count()
    run, workers = config.run, config.dataset.workers
    order = data.Batches(run.seed, run.batch_size, num_steps, process, workers)
    if isinstance(train, data.Split):
        return _Feed(order, placed.put_everywhere(train), order.indices(train.size, step))
    return _Feed(order, None, order.examples(train, step))


def _stacked(batches: list[Any]) -> Any:
    return jax.tree.map(lambda *parts: np.stack(parts), *batches)


def _check_finite(unchecked: list[tuple[int, Measured]]) -> None:
    for start, measured in unchecked:
        for what, values in (("loss", measured.losses), ("gradient", measured.gradient_norms)):
            finite = np.isfinite(0.0 if values is None else jax.device_get(values))
            if not finite.all():
                step, place = np.argwhere(~finite)[0].tolist()
                # The first outputs of a grown net may have no gradients.
                output = place + measured.losses.shape[-1] - finite.shape[-1]
                raise FloatingPointError(
                    f"the {what} of output {output + 1} is not finite at step {start + step + 1};"
                    " the last checkpoint before it is kept. A smaller --learning-rate may help."
                )


def _record(
    built: programs.Programs,
    step: int,
    measured: Measured,
    conflict: Conflict | None,
    clock: Clock,
) -> dict[str, Any]:
    """Return the measures of the last of the steps, a line of metrics.jsonl."""
    last = jax.device_get(jax.tree.map(lambda leaf: leaf[-1], measured))
    if conflict is not None:
        norms, cosines = jax.device_get(conflict)
        last = last._replace(gradient_norms=norms, task_cosines=cosines)
    return {
        "step": step,
        "epoch": round(step / built.steps_per_epoch, 6),
        "learning_rate": float(np.asarray(built.schedule(step - 1))),
        **{name: value.tolist() for name, value in last._asdict().items() if value is not None},
        "clock": clock.at(step),
    }


def _validated(
    built: programs.Programs, placed: devices.Placement, state: State, dataset: data.Dataset
) -> dict[str, Any]:
    accuracy, losses = built.measure(placed, state, dataset.validation)
    return {"validation_accuracy": accuracy, "validation_losses": losses}


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
    accuracies = " ".join(f"{100 * share:5.1f}" for share in record["validation_accuracy"])
    losses = " ".join(f"{loss:.3f}" for loss in record["losses"])
    return f"epoch {record['epoch']:g}: validation accuracy {accuracies} %, losses {losses}"


def _progress_line(record: dict[str, Any]) -> str:
    losses = " ".join(f"{loss:.3f}" for loss in record["losses"])
    rate = record["clock"]["steps_per_second"]
    return f"epoch {record['epoch']:.1f} · {rate:.1f} steps/s · losses {losses}"
