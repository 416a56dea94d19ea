"""TorchJD on the same branched net with the same parameters: each library over its own plain SGD.

Both compute the same gradients, or this raises an error. Ours is timed with OSGD and with UPGrad,
which TorchJD is timed with, in its three ways. One library runs after the other, each in turn with
its own SGD.
"""

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from rich.table import Table

import osgd_jax
from experiments.benchmark.steps import Problem, make_steps
from experiments.lab.timing import spread, time_in_turn

# Of the norm of a gradient; in float32, and sums in another order.
_TOLERANCE = 1e-3


def check(python: Path) -> None:
    """Raise a ValueError where an interpreter lacks what TorchJD is run with."""
    command = [str(python), "-c", "import numpy; from torchjd.aggregation import UPGrad; UPGrad()"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise ValueError(
            f"peer={python} cannot run TorchJD; it needs numpy, torch and"
            f" torchjd[quadprog_projector]: {ran.stderr.strip().splitlines()[-1]}"
        )


def measure(problem: Problem, python: Path, rounds: int) -> dict[str, Any]:
    """Run both libraries.

    Args:
      problem: of a `BranchedResNet` of basic blocks, batch normalisation and float32.
      python: an interpreter that has numpy, torch and torchjd[quadprog_projector].
      rounds: how often each step is timed.

    Raises:
      ValueError: TorchJD does not run, or its gradients are not ours.
    """
    params = _by_path(problem.params)
    images, labels = map(np.asarray, problem.batch)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.npz", Path(folder) / "out.npz"
        np.savez(source, **(params | {"images": images, "labels": labels}))  # pyright: ignore[reportArgumentType] - names of arrays
        script = Path(__file__).with_name("steps.py")
        command = [str(python), str(script), str(source), str(target), str(rounds)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode:
            raise ValueError(f"peer={python} cannot run TorchJD: {ran.stderr[-2000:]}")
        theirs = dict(np.load(target))
    seconds = json.loads(str(theirs.pop("seconds")))
    versions = json.loads(str(theirs.pop("versions")))
    difference = largest_difference(_our_gradients(problem), theirs)
    if not difference <= _TOLERANCE:
        raise ValueError(f"TorchJD's gradients differ from ours by {difference:.1e} of their norm.")
    steps = make_steps(problem, ("sgd", "osgd", "upgrad"), "all")
    ours = time_in_turn({name: step.run for name, step in steps.items()}, rounds)
    theirs = {name: np.array(each) for name, each in seconds.items()}
    result = {
        "batch_size": len(labels),
        "versions": versions,
        "largest_gradient_difference": difference,
        "osgd_jax": _figures(ours),
        "torchjd": _figures(theirs),
    }
    overheads = {
        library: min(
            row["time_over_sgd"]["median"] - 1 for row in result[library] if row["step"] != "sgd"
        )
        for library in ("osgd_jax", "torchjd")
    }
    return result | {"overhead_over_torchjd": overheads["osgd_jax"] / overheads["torchjd"]}


def largest_difference(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> float:
    """Over the losses, the norm of the difference of two gradients over that of one.

    Raises:
      ValueError: arrays that the other does not have.
    """
    if ours.keys() != theirs.keys():
        raise ValueError(f"only one of the two has {sorted(ours.keys() ^ theirs.keys())}.")
    ratios = []
    for task in {key.partition("/")[0] for key in ours}:
        keys = [key for key in ours if key.partition("/")[0] == task]
        difference = sum(np.square(ours[key] - theirs[key]).sum() for key in keys)
        ratios.append(np.sqrt(difference / sum(np.square(ours[key]).sum() for key in keys)))
    return float(np.max(ratios))


def table(results: list[dict[str, Any]]) -> Table:
    """Times of both libraries, each over its own SGD."""
    shown = Table(title="osgd_jax and TorchJD on the same branched net, each over its own SGD")
    for column in ("batch", "library", "step"):
        shown.add_column(column, no_wrap=True)
    for column in ("ms", "time", "overhead"):
        shown.add_column(column, justify="right", no_wrap=True)
    for result in results:
        for library in ("osgd_jax", "torchjd"):
            for row in result[library]:
                time = row["time_over_sgd"]["median"]
                ms = f"{row['step_ms']['median']:.1f}"
                described = (str(result["batch_size"]), library, row["step"])
                shown.add_row(*described, ms, f"{time:.2f}", f"{100 * (time - 1):.0f} %")
        share = f"{result['overhead_over_torchjd']:.2f}"
        shown.add_row("", "", "least overhead over TorchJD's least", "", "", share)
    return shown


def _figures(seconds: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    return [
        {
            "step": name,
            "step_ms": spread(1e3 * each),
            "time_over_sgd": spread(each / seconds["sgd"]),
        }
        for name, each in seconds.items()
    ]


def _our_gradients(problem: Problem) -> dict[str, np.ndarray]:
    grads = jax.jit(osgd_jax.task_grads(problem.losses, has_aux=True))
    rows, _ = grads(problem.params, problem.rest, *problem.batch)
    dense = _by_path(osgd_jax.densify(rows))
    num_tasks = len(next(iter(dense.values())))
    return {f"{task}/{path}": dense[path][task] for task in range(num_tasks) for path in dense}


def _by_path(params: Any) -> dict[str, np.ndarray]:
    flat, _ = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(params))
    return {".".join(str(key.key) for key in path): np.asarray(leaf) for path, leaf in flat}
