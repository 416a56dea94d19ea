"""Train an anytime net on real data: `python -m experiments.train --workdir DIR …`.

On digits with the default options it takes about a minute on two CPU cores.
"""

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import tyro
from flax import nnx
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

import osgd_jax
from experiments import data, devices, programs
from experiments.checkpoints import Checkpoints
from experiments.config import Config
from experiments.nets import make_net
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
    devices.connect(config.hosts)
    placed = devices.placement(config.run.batch_size, config.hosts.shard_state)
    about = open_workdir(config)
    dataset = data.load(config.dataset)
    if dataset.about:
        console.print(dataset.about, highlight=False, markup=False, soft_wrap=True)

    # ---- net, and what is compiled for its training
    net = make_net(config.net, dataset, nnx.Rngs(config.run.seed))
    costs = osgd_jax.cost(net, dataset.input_shape)
    built = programs.build(config, dataset, placed, net)

    # ---- the last checkpoint, if there is one
    checkpoints = Checkpoints(config.workdir / "checkpoints", config.run.keep_last, about)
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
    batch_size = config.run.batch_size
    test_accuracy, _ = programs.evaluate(built, placed, batch_size, state, dataset.test)
    last = read_metrics(config.workdir)[-1]
    summary = {
        "test_accuracy": test_accuracy,
        "validation_accuracy": last["validation_accuracy"],
        "final_losses": last["losses"],
        "steps": built.num_steps,
        "parameters": [cost.parameters for cost in costs],
        "multiply_adds": [cost.multiply_adds for cost in costs],
        "clock": clock,
    }
    if jax.process_index() == 0:
        write_json(config.workdir / "summary.json", summary)
    return summary


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
    run, step, clock = config.run, int(state.step), _Clock(int(state.step))
    batches = data.Batches(
        run.seed,
        run.batch_size,
        built.num_steps,
        (jax.process_index(), jax.process_count()),
        config.dataset.workers,
    )
    source, each = _feed(batches, dataset.train, placed, step)
    together = run.steps_per_dispatch or (1 if jax.default_backend() == "cpu" else 10)
    save_every = run.save_every or built.steps_per_epoch
    boundaries = (run.log_every, save_every, built.steps_per_epoch, built.num_steps)
    primary = jax.process_index() == 0
    log_file = MetricsLog(config.workdir, step) if primary else contextlib.nullcontext()
    unchecked: list[tuple[int, Measured]] = []

    with _StopSignal() as stop, _progress(console) as progress, log_file as log:
        task = progress.add_task("compiling", total=built.num_steps, completed=step)
        while step < built.num_steps:
            # Several steps in one call, where none of them is a boundary but the last.
            boundary = min((step // every + 1) * every for every in boundaries)
            count = together if step % together == 0 and step + together <= boundary else 1
            parts = [next(each) for _ in range(count)]
            batch = placed.put_batch(jax.tree.map(lambda *part: np.stack(part), *parts), axis=1)
            cosines = None
            if built.conflict is not None and step + count == boundary:
                cosines = built.conflict(state, source, batch)
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
                record = _record(built, step, measured, cosines) | {"clock": clock.at(step)}
                if step % built.steps_per_epoch == 0:
                    examples = dataset.validation
                    found = programs.evaluate(built, placed, run.batch_size, state, examples)
                    record["validation_accuracy"], record["validation_losses"] = found
                    accuracy = float(np.mean(found[0]))
                    console.print(_epoch_line(record), highlight=False)
                if log is not None:
                    log.write(record)
                progress.update(task, completed=step, description=_progress_line(record))
                clock.go_on()
            if step % save_every == 0 or step == built.num_steps or stopping:
                checkpoints.save(state, accuracy)
            if stopping and step < built.num_steps:
                checkpoints.wait()
                raise StoppedError(f"Stopped after step {step}; the same command continues.")
    return state, clock.total(step, batches.waited)


def _feed(
    batches: data.Batches, train: data.Examples, placed: devices.Placement, step: int
) -> tuple[data.Split | None, Iterator[Any]]:
    """What lives on the devices, and from a step on the indices into it or else the examples."""
    if isinstance(train, data.Split):
        return placed.put_everywhere(train), batches.indices(train.size, step)
    return None, batches.examples(train, step)


def _record(
    built: programs.Programs, step: int, measured: Measured, cosines: jax.Array | None
) -> dict[str, Any]:
    """A line of metrics.jsonl: what was measured in the last of the steps."""
    last = jax.device_get(jax.tree.map(lambda leaf: leaf[-1], measured))
    if cosines is not None:
        last = last._replace(task_cosines=jax.device_get(cosines))
    return {
        "step": step,
        "epoch": round(step / built.steps_per_epoch, 6),
        "learning_rate": float(np.asarray(built.schedule(step - 1))),
        **{name: each.tolist() for name, each in last._asdict().items() if each is not None},
    }


class _Clock:
    """Times of a run, from a step on."""

    def __init__(self, step: int):
        self._begun = self._since = time.perf_counter()
        self._first = self._last = step

    def at(self, step: int) -> dict[str, float]:
        """Seconds from the beginning, and steps per second from the last call on."""
        now = time.perf_counter()
        rate = (step - self._last) / (now - self._since)
        self._last = step
        return {"seconds": round(now - self._begun, 3), "steps_per_second": round(rate, 3)}

    def go_on(self) -> None:
        """Leave out of the next rate what was done since the last call of `at`."""
        self._since = time.perf_counter()

    def total(self, step: int, waited: float) -> dict[str, float]:
        """Of the whole run."""
        seconds = time.perf_counter() - self._begun
        return {
            "seconds": round(seconds, 3),
            "steps_per_second": round((step - self._first) / seconds, 3),
            "waiting_for_input": round(waited / seconds, 4),
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


def _progress_line(record: dict[str, Any]) -> str:
    losses = " ".join(f"{loss:.3f}" for loss in record["losses"])
    rate = record["clock"]["steps_per_second"]
    return f"epoch {record['epoch']:.1f} · {rate:.1f} steps/s · losses {losses}"


def main() -> None:
    """Command line."""
    console = Console(quiet=False)
    try:
        settings = tyro.conf.OmitArgPrefixes[Config]
        config = tyro.cli(settings, prog="python -m experiments.train", description=__doc__)
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
