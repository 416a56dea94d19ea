"""Tables and plots from any set of runs: `python -m experiments.report WORKDIR… --output DIR`.

Writes report.md, curves.png (losses and validation accuracy over the steps) and anytime.png
(accuracy against multiply-adds).
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import tyro

from experiments import command_line
from experiments.files import open_folder, read_json, write_text
from experiments.tables import markdown
from experiments.training.workdir import read_config, read_metrics
from osgd_jax.plots import anytime_curve

_SAME_EVERYWHERE = frozenset({"workdir"})


@dataclasses.dataclass(frozen=True)
class Config:
    """What to report.

    Attributes:
      workdirs: of runs of `python -m experiments.train`.
      output: folder for the report.
    """

    workdirs: tyro.conf.Positional[tuple[Path, ...]]
    output: Path = Path("runs/report")


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run has left behind.

    Attributes:
      name: of its workdir.
      fields: of its configuration.
      metrics: records of metrics.jsonl.
      summary: contents of summary.json; None while it is not finished.
    """

    name: str
    fields: dict[str, Any]
    metrics: list[dict[str, Any]]
    summary: dict[str, Any] | None


def read_run(workdir: Path) -> Run:
    """Read the files of a run.

    Raises:
      ValueError: there is none in the folder, or it has not logged a step yet.
    """
    fields, metrics = read_config(workdir).as_json(), read_metrics(workdir)
    file = workdir / "summary.json"
    summary = read_json(file, "test_accuracy", "multiply_adds") if file.exists() else None
    return Run(workdir.name, fields, metrics, summary)


def table(runs: list[Run]) -> str:
    """A Markdown table: one row a run, with the options in which the runs differ."""
    varied = [
        name
        for name in runs[0].fields
        if name not in _SAME_EVERYWHERE and len({str(run.fields[name]) for run in runs}) > 1
    ]
    outputs = max(run.fields["outputs"] for run in runs)
    head = ["run", *varied, "steps", *[f"output {k + 1}" for k in range(outputs)], "mean"]
    rows = []
    for run in runs:
        accuracy = [100 * each for each in run.summary["test_accuracy"]] if run.summary else []
        cells = [f"{each:.1f}" for each in accuracy] + ["—"] * (outputs - len(accuracy))
        mean = f"{sum(accuracy) / len(accuracy):.1f}" if accuracy else "—"
        options = [str(run.fields[name]) for name in varied]
        rows.append([run.name, *options, str(run.metrics[-1]["step"]), *cells, mean])
    return "Test accuracy, %; — where a run is not finished.\n\n" + markdown(head, rows)


def plot_curves(runs: list[Run], path: Path) -> None:
    """Draw each output's loss and validation accuracy over the steps."""
    from matplotlib.figure import Figure

    outputs = max(run.fields["outputs"] for run in runs)
    figure = Figure(figsize=(3.2 * outputs, 5.6), layout="constrained")
    axes = figure.subplots(2, outputs, squeeze=False)
    for run in runs:
        validated = [record for record in run.metrics if "validation_accuracy" in record]
        for k in range(run.fields["outputs"]):
            steps = [record["step"] for record in run.metrics]
            losses = [record["losses"][k] for record in run.metrics]
            axes[0, k].plot(steps, losses, label=run.name)
            steps = [record["step"] for record in validated]
            accuracy = [100 * record["validation_accuracy"][k] for record in validated]
            axes[1, k].plot(steps, accuracy, marker=".", label=run.name)
    for k in range(outputs):
        axes[0, k].set_title(f"output {k + 1}")
        axes[1, k].set_xlabel("step")
    axes[0, 0].set_ylabel("training loss")
    axes[1, 0].set_ylabel("validation accuracy, %")
    axes[0, 0].legend()
    figure.savefig(path, dpi=150)


def plot_anytime(runs: list[Run], path: Path) -> None:
    """Draw the test accuracy of each output against its multiply-adds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for run in runs:
        if run.summary:
            accuracy = [100 * each for each in run.summary["test_accuracy"]]
            anytime_curve(run.summary["multiply_adds"], accuracy, label=run.name, axes=axes)
    axes.set_ylabel("test accuracy, %")
    if axes.lines:
        axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Command line."""
    try:
        config = command_line.read(Config, "experiments.report", __doc__)
        if not config.workdirs:
            raise ValueError("give the workdir of at least one run.")
        open_folder(config.output, "output")
        runs = [read_run(workdir) for workdir in config.workdirs]
        write_text(config.output / "report.md", table(runs))
        plot_curves(runs, config.output / "curves.png")
        plot_anytime(runs, config.output / "anytime.png")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(table(runs))
    print(f"Wrote report.md, curves.png and anytime.png in {config.output}.")


if __name__ == "__main__":
    main()
