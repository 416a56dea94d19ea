"""A training step on Burgers' equation by jinns, by ours on the loss of jinns, and by all ours.

jinns is a library of physics-informed nets, installed by hand: `pip install jinns`. Its step takes
the gradient of each loss to set the weights by its `lr_annealing`; ours has `inverse_norms`. All
calls are timed in turn, each of some steps in `lax.scan`, with Adam.
"""

import dataclasses
import functools
import importlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.table import Table

import osgd_jax
from experiments.app.machine import versions
from experiments.app.settings import require
from experiments.benchmark import command
from experiments.lab.timing import spread, time_in_turn
from experiments.pinn.problems import PROBLEMS
from experiments.pinn.training import Solver, SolverSettings

TITLE = "A step on Burgers' equation by jinns and by ours"


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure: nets of four layers of 50, with 1,000 + 50 + 50 points.

    Attributes:
      steps: in a call.
      rounds: how often each call is timed.
      output: file for the results.
    """

    steps: int = 20
    rounds: int = 10
    output: Path = Path("runs/benchmark_pinn_jinns.json")

    def __post_init__(self):
        require(self, fields=("steps", "rounds"), at_least=1)


def measure(config: Config, report: Callable[[str], None]) -> dict[str, Any]:
    """A row of figures for each way."""
    report("Burgers")
    calls = _of_jinns(config.steps)
    for method in ("sum", "inverse_norms"):
        trainer = Solver(PROBLEMS["burgers"], SolverSettings(method, resample=False))
        state = jax.jit(trainer.start)(0, 1e-3)
        advance = jax.jit(functools.partial(trainer.advance, count=config.steps))
        calls[f"all ours, {method}"] = functools.partial(advance, state, 1e-3, 0)
    seconds = time_in_turn(calls, config.rounds)
    base = seconds["jinns, lr_annealing"]
    rows = [
        {"way": way, "ms": spread(1e3 * each / config.steps), "over_jinns": spread(each / base)}
        for way, each in seconds.items()
    ]
    return {"jinns": versions("jinns")["jinns"], "rows": rows}


def _problem_of_jinns() -> tuple[Any, Any, Any]:
    """The loss of jinns, parameters to start from, and points."""
    jinns: Any = importlib.import_module("jinns")
    equinox: Any = importlib.import_module("equinox")
    key, sizes = jax.random.key(0), (2, 50, 50, 50, 50, 1)
    layers = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [(equinox.nn.Linear, inputs, outputs), (jnp.tanh,)]
    net, initial = jinns.nn.PINN_MLP.create(
        key=key, eq_type="PDENonStatio", eqx_list=tuple(layers[:-1])
    )
    start = jinns.parameters.Params(initial, {"nu": jnp.array(0.01 / np.pi)})
    bounds = {"tmin": 0.0, "tmax": 1.0, "min_pts": (-1.0,), "max_pts": (1.0,)}
    data = jinns.data.CubicMeshPDENonStatio(
        key=key, n=1000, nb=50, ni=50, dim=1, method="uniform", **bounds
    )
    loss = jinns.loss.LossPDENonStatio(
        u=net,
        dynamic_loss=jinns.loss.BurgersEquation(),
        boundary_condition=jinns.loss.Dirichlet(),
        initial_condition_fun=lambda x: -jnp.sin(jnp.pi * x).squeeze(),
        params=start,
        loss_weights=jinns.loss.LossWeightsPDENonStatio(
            dyn_loss=1.0, initial_condition=1.0, boundary_loss=1.0
        ),
        update_weight_method="lr_annealing",
    )
    return loss, start, data.get_batch()[1]


def _of_jinns(steps: int) -> dict[str, Callable[[], Any]]:
    """Steps on a loss of jinns: its own, and with our task gradients; both have the same rows."""
    equinox: Any = importlib.import_module("equinox")
    loss, start, batch = _problem_of_jinns()
    adam = optax.adam(1e-3)
    balanced = optax.chain(
        osgd_jax.aggregate(osgd_jax.weightings.inverse_norms(num_tasks=3), scope="all"), adam
    )

    def terms(params: Any) -> Any:
        return loss.evaluate(params, batch)[1]

    def theirs(carry: Any, _: Any) -> Any:
        params, moments, weights = carry
        weighted = equinox.tree_at(lambda loss: loss.loss_weights, loss, weights)
        values, grads = weighted.values_and_grads(params, batch)
        direction = weighted.ponderate_and_sum_gradient(grads)
        updates, moments = adam.update(direction, moments, params)
        weighted = weighted.update_weights(1, values, None, grads, jax.random.key(0))
        return (optax.apply_updates(params, updates), moments, weighted.loss_weights), None

    def ours(carry: Any, _: Any) -> Any:
        params, moments = carry
        values, grads = osgd_jax.value_and_task_grads(terms)(params)
        updates, moments = balanced.update(grads, moments, params, losses=values)
        return (optax.apply_updates(params, updates), moments), None

    _check_rows(loss.values_and_grads(start, batch)[1], osgd_jax.task_grads(terms)(start))
    first = start, adam.init(start), jax.tree.map(jnp.asarray, loss.loss_weights)
    carries = {
        "jinns, lr_annealing": (theirs, first),
        "ours on the loss of jinns": (ours, (start, balanced.init(start))),
    }
    return {
        way: functools.partial(
            jax.jit(lambda c, step=step: jax.lax.scan(step, c, None, steps)[0]), c
        )
        for way, (step, c) in carries.items()
    }


def _check_rows(theirs: Any, ours: Any) -> None:
    """Both are the same task gradients, each with its leaves in the order of the losses."""
    found = [np.ravel(row) for leaf in jax.tree.leaves(osgd_jax.densify(ours)) for row in leaf]
    wanted = [np.ravel(leaf) for leaf in jax.tree.leaves(theirs)]
    count = len(found) // 3
    by_task = [found[3 * i + task] for task in range(3) for i in range(count)]
    for one, other in zip(by_task, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def tables(results: dict[str, Any]) -> list[Table]:
    """One row for each way."""
    shown = Table(title=f"Milliseconds of a step, and over that of jinns {results['jinns']}")
    for column in ("way", "ms", "over jinns"):
        shown.add_column(column, justify="left" if column == "way" else "right")
    for row in results["rows"]:
        shown.add_row(row["way"], *[f"{row[name]['median']:.2f}" for name in ("ms", "over_jinns")])
    return [shown]


if __name__ == "__main__":
    command.run("experiments.benchmark.pinn_jinns", __doc__, Config, measure, tables, TITLE)
