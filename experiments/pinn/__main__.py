"""Train a physics-informed net: `python -m experiments.pinn --problem burgers --method upgrad`.

The losses are one for the equation, `pde`, and one for each condition: `bc` at the boundary, `ic`
at the beginning. The same command continues a run that was stopped, from its last checkpoint.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from rich.console import Console

import osgd_jax
from experiments.app import command_line
from experiments.app.checkpoints import Checkpoints
from experiments.app.devices import StoppedError, StopSignal
from experiments.app.files import read_json, write_json
from experiments.app.metrics_log import Clock, MetricsLog, read_metrics
from experiments.app.settings import SEEDS, flat, require
from experiments.app.step import State
from experiments.app.workdir import open_workdir
from experiments.pinn.pictures import draw
from experiments.pinn.problems import PROBLEMS, Name
from experiments.pinn.training import Look, Solver, SolverSettings


@dataclasses.dataclass(frozen=True)
class Config:
    """Train a physics-informed net.

    Attributes:
      problem: what to solve.
      workdir: folder for config.json, metrics.jsonl, results.json, solution.png, checkpoints and
        event files; runs/pinn/PROBLEM-METHOD if not given.
      learning_rate: of Adam at the first step; it falls to zero along half a cosine.
      seed: of initial parameters and points.
      log_every: steps from one line of metrics.jsonl to the next.
      save_every: steps from one checkpoint to the next.
      settings: of net, points and training.
    """

    problem: Name = "burgers"
    workdir: Path | None = None
    learning_rate: float = 1e-3
    seed: int = 0
    log_every: int = 50
    save_every: int = 1000
    settings: SolverSettings = dataclasses.field(default_factory=SolverSettings)

    def __post_init__(self):
        require(self, fields=("learning_rate",), above=0)
        require(self, fields=("seed",), **SEEDS)
        require(self, fields=("log_every", "save_every"), at_least=1)

    @property
    def folder(self) -> Path:
        """The workdir, or else its default."""
        return self.workdir or Path("runs/pinn") / f"{self.problem}-{self.settings.method}"

    def as_json(self) -> dict[str, Any]:
        """The fields as config.json holds them."""
        return flat(dataclasses.replace(self, workdir=self.folder))


def solve(config: Config, console: Console) -> dict[str, Any]:
    """Run, or continue, a training; return what results.json holds.

    Raises:
      ValueError: settings or a workdir that are not as they should be.
      FloatingPointError: a loss that is not finite.
      StoppedError: on SIGTERM or SIGINT.
    """
    trainer = Solver(PROBLEMS[config.problem], config.settings)
    about = open_workdir(config)
    initial = jax.jit(trainer.start)(config.seed, config.learning_rate)
    file, clock = config.folder / "results.json", None
    checkpoints = Checkpoints(config.folder / "checkpoints", 2, about)
    try:
        state = checkpoints.restore_last(initial) or initial
        step, end = int(state.step), config.settings.steps
        if step == end and file.exists():
            return read_json(file, "diagnosis")
        if step:
            console.print(f"Continuing after step {step} of {end}.")
        if step < end:
            file.unlink(missing_ok=True)
            state, clock = _train(config, console, trainer, checkpoints, state)
        checkpoints.wait()
    finally:
        checkpoints.close()

    records = read_metrics(config.folder)
    last = records[-1]
    found = osgd_jax.diagnose(np.array([each["gramian"] for each in records]), last["losses"])
    draw(trainer.problem, trainer.values(state), records, config.folder / "solution.png")
    results = {
        "relative_error": last["relative_error"],
        "losses": last["losses"],
        "steps": last["step"],
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "diagnosis": jax.tree.map(_for_json, found._asdict()) | {"text": str(found)},
        "clock": clock,
    }
    write_json(file, results)
    return results


def _train(
    config: Config,
    console: Console,
    trainer: Solver,
    checkpoints: Checkpoints,
    state: State,
) -> tuple[State, dict[str, float]]:
    """Train from the state's step to the end; return the last state and the time it took."""
    advance, look = jax.jit(trainer.advance, static_argnames="count"), jax.jit(trainer.look)
    step, rate, last = int(state.step), config.learning_rate, config.settings.steps
    clock = Clock(step)
    with (
        StopSignal() as stop,
        MetricsLog(config.folder, step) as log,
        console.status("compiling") as status,
    ):
        while step < last:
            count = min(config.log_every, last - step)
            state = advance(state, rate, step, count=count)
            step += count
            record = _record(step, look(state)) | {"clock": clock.at(step)}
            log.write(record)
            status.update(_line(record))
            stopping = stop.number_after(step)
            if stopping or step == last or step % config.save_every < count:
                console.print(_line(record), highlight=False)
                checkpoints.save(state, None)
            if stopping and step < last:
                checkpoints.wait()
                raise StoppedError(step, stopping)
    return state, clock.total(last, 0.0)


def _record(step: int, seen: Look) -> dict[str, Any]:
    """A line of metrics.jsonl.

    Raises:
      FloatingPointError: a loss or gradient is not finite.
    """
    losses, gramian, error = jax.device_get(seen)
    for name, loss, square in zip(losses, losses.values(), np.diagonal(gramian), strict=True):
        if not np.isfinite([loss, square]).all():
            raise FloatingPointError(
                f"the loss {name} or its gradient is not finite at step {step}; the last checkpoint"
                " before it is kept. A smaller --learning-rate may help."
            )
    return {
        "step": step,
        "losses": {name: float(loss) for name, loss in losses.items()},
        "gramian": gramian.tolist(),
        "relative_error": float(error),
    }


def _line(record: dict[str, Any]) -> str:
    losses = ", ".join(f"{name} {loss:.2e}" for name, loss in record["losses"].items())
    return f"step {record['step']}: relative L2 error {record['relative_error']:.2e}, {losses}"


def _for_json(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    # JSON has no NaN.
    plain = value.astype(object)
    plain[np.isnan(value)] = None
    return plain.tolist()


def main() -> None:
    """Command line."""
    console = Console()
    try:
        config = command_line.read(tyro.conf.OmitArgPrefixes[Config], "experiments.pinn", __doc__)
        results = solve(config, console)
    except StoppedError as stopped:
        console.print(str(stopped), highlight=False)
        sys.exit(128 + stopped.number)
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    console.print(results["diagnosis"]["text"], highlight=False, soft_wrap=True)
    console.print(f"Wrote {config.folder / 'results.json'}, and solution.png beside it.")


if __name__ == "__main__":
    main()
