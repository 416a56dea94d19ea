"""Training steps to compare: SGD on the sum of the losses, and OSGD in several ways.

The work of OSGD cannot fall below one forward pass and, for each loss, the backward pass through
what it depends on. That limit is counted from programs of a single loss each, which know nothing of
task gradients. Its memory cannot fall below SGD's by more than the rows that it keeps in place of
one gradient.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import osgd_jax
from experiments.lab.timing import operations, spread, time_in_turn

MICRO_BATCHES = 4


class Problem(NamedTuple):
    """A net, its parameters and a batch.

    Attributes:
      losses: `(params, rest, inputs, labels) -> (losses, rest)`.
      params: trained arrays.
      rest: the net's other arrays.
      batch: inputs and labels, or what else the losses take.
    """

    losses: Callable[..., tuple[tuple[jax.Array, ...], Any]]
    params: Any
    rest: Any
    batch: tuple[Any, ...]


class Step(NamedTuple):
    """A compiled training step.

    Attributes:
      run: takes the step, from the same state each time.
      programs: what it calls, and how often.
      rows_bytes: of task gradients that wait between calls.
      compile_seconds: of all programs.
    """

    run: Callable[[], Any]
    programs: list[tuple[Any, int]]
    rows_bytes: int
    compile_seconds: float

    @property
    def work(self) -> float:
        """Operations of a step, as the compiler counts them."""
        return sum(count * operations(program) for program, count in self.programs)

    @property
    def temporary_bytes(self) -> int:
        """The most memory beyond parameters, state and batch."""
        largest = max(each.memory_analysis().temp_size_in_bytes for each, _ in self.programs)
        return largest + self.rows_bytes


def classification(net: osgd_jax.nets.AnytimeNet, inputs_shape: tuple[int, ...]) -> Problem:
    """Return the cross-entropies of a net on random inputs and labels."""
    rng = np.random.default_rng(0)
    inputs = jnp.asarray(rng.normal(size=inputs_shape), jnp.float32)
    labels = jnp.asarray(rng.integers(0, net.num_classes, inputs_shape[0]))
    return problem_of(net, inputs, labels)


def problem_of(net: osgd_jax.nets.AnytimeNet, inputs: jax.Array, labels: jax.Array) -> Problem:
    """Return the cross-entropies of a net on a batch."""
    graphdef, params, rest = nnx.split(net, nnx.Param, ...)

    def losses(params: Any, rest: Any, inputs: jax.Array, labels: jax.Array):
        net = nnx.merge(graphdef, params, rest, copy=True)
        logits = net(inputs)
        entropy = optax.softmax_cross_entropy_with_integer_labels
        return tuple(entropy(each, labels).mean() for each in logits), nnx.split(
            net, nnx.Param, ...
        )[2]

    return Problem(losses, params, rest, (inputs, labels))


def make_steps(problem: Problem, methods: tuple[str, ...], scope: str) -> dict[str, Step]:
    """Compile a step for each method: "sgd", "osgd", "jacrev", "upgrad" or "micro-batches"."""
    in_one_call = in_one_call_by(problem, scope)
    return {
        name: _accumulating_step(problem, *in_one_call["osgd"])
        if name == "micro-batches"
        else _step(problem, *in_one_call[name])
        for name in methods
    }


def in_one_call_by(
    problem: Problem, scope: str, axis_name: str | tuple[str, ...] | None = None
) -> dict[str, tuple[Callable, Any]]:
    """Make the function of gradients, and what takes the step, by method."""

    def summed(*args: Any):
        losses, rest = problem.losses(*args)
        return sum(losses), rest

    def stacked(*args: Any):
        losses, rest = problem.losses(*args)
        return jnp.stack(losses), rest

    task_grads = osgd_jax.task_grads(problem.losses, has_aux=True)
    sgd = optax.sgd(0.1, momentum=0.9)
    osgd = optax.chain(osgd_jax.orthogonalize(scope=scope, axis_name=axis_name), sgd)
    upgrad = optax.chain(osgd_jax.aggregate(osgd_jax.weightings.upgrad(), scope), sgd)
    return {
        "sgd": (jax.grad(summed, has_aux=True), sgd),
        "osgd": (task_grads, osgd),
        "jacrev": (jax.jacrev(stacked, has_aux=True), osgd),
        "upgrad": (task_grads, upgrad),
    }


def step_by(grad_fn: Callable, tx: Any) -> Callable[..., tuple[Any, Any, Any]]:
    """Make the function `(params, rest, state, batch) -> (params, rest, state)`."""

    def step(params: Any, rest: Any, state: Any, batch: Any):
        grads, rest = grad_fn(params, rest, *batch)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), rest, state

    return step


def _step(problem: Problem, grad_fn: Callable, tx: Any) -> Step:
    args = (problem.params, problem.rest, tx.init(problem.params), problem.batch)
    compiled, seconds = _compile(step_by(grad_fn, tx), *args)
    return Step(lambda: compiled(*args), [(compiled, 1)], 0, seconds)


def _accumulating_step(problem: Problem, task_grads: Callable, tx: Any) -> Step:
    """Task gradients of a few parts of the batch are added up, one call after the other."""
    size = len(problem.batch[1]) // MICRO_BATCHES
    parts = [
        jax.tree.map(lambda each, i=i: each[i * size : (i + 1) * size], problem.batch)
        for i in range(MICRO_BATCHES)
    ]

    def add(sums: Any, params: Any, rest: Any, batch: Any):
        grads, rest = task_grads(params, rest, *batch)
        return jax.tree.map(lambda a, b: a + b / MICRO_BATCHES, sums, grads), rest

    def update(sums: Any, params: Any, state: Any):
        updates, state = tx.update(sums, state, params)
        return optax.apply_updates(params, updates), state

    params, rest, state = problem.params, problem.rest, tx.init(problem.params)
    like = jax.eval_shape(task_grads, params, rest, *parts[0])[0]
    zeros = jax.tree.map(lambda each: jnp.zeros(each.shape, each.dtype), like)
    added, add_seconds = _compile(add, zeros, params, rest, parts[0], donate_argnums=0)
    updated, update_seconds = _compile(update, zeros, params, state)

    def run():
        sums, new_rest = jax.tree.map(jnp.zeros_like, zeros), rest
        for part in parts:
            sums, new_rest = added(sums, params, new_rest, part)
        return updated(sums, params, state), new_rest

    programs = [(added, MICRO_BATCHES), (updated, 1)]
    return Step(run, programs, tree_bytes(zeros), add_seconds + update_seconds)


def _compile(function: Callable, *args: Any, **options: Any) -> tuple[Any, float]:
    started = time.perf_counter()
    compiled = jax.jit(function, **options).lower(*args).compile()
    return compiled, time.perf_counter() - started


def least_work(problem: Problem) -> float:
    """Operations of one forward pass and the backward pass of each loss alone."""

    def count(function: Callable) -> float:
        args = (problem.params, problem.rest, *problem.batch)
        return operations(jax.jit(function).lower(*args))

    def one(task: int) -> Callable:
        return lambda *args: problem.losses(*args)[0][task]

    num_tasks = len(jax.eval_shape(problem.losses, problem.params, problem.rest, *problem.batch)[0])
    backward = [
        count(jax.value_and_grad(one(task))) - count(one(task)) for task in range(num_tasks)
    ]
    return count(lambda *args: problem.losses(*args)[0]) + sum(backward)


def extra_rows_bytes(problem: Problem) -> int:
    """Return the bytes of the rows of the task gradients, less the bytes of one gradient."""
    grads = osgd_jax.task_grads(problem.losses, has_aux=True)
    rows = jax.eval_shape(grads, problem.params, problem.rest, *problem.batch)[0]
    return tree_bytes(rows) - tree_bytes(problem.params)


def tree_bytes(tree: Any) -> int:
    """Return the bytes of all arrays in a tree."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def compare(problem: Problem, methods: tuple[str, ...], scope: str, rounds: int) -> Iterator[dict]:
    """Yield a row of figures for each method, with their limits."""
    steps = make_steps(problem, methods, scope)
    seconds = time_in_turn({name: step.run for name, step in steps.items()}, rounds)
    sgd = steps["sgd"]
    least = {"work": least_work(problem), "memory": sgd.temporary_bytes + extra_rows_bytes(problem)}
    for name, step in steps.items():
        is_sgd = name == "sgd"
        time_over_sgd = spread(seconds[name] / seconds["sgd"])
        work_over_sgd = step.work / sgd.work
        work_limit = 1.0 if is_sgd else least["work"] / sgd.work
        memory_limit = 1.0 if is_sgd else least["memory"] / sgd.temporary_bytes
        memory_over_sgd = step.temporary_bytes / sgd.temporary_bytes
        yield {
            "method": name,
            "step_ms": spread(1e3 * seconds[name]),
            "time_over_sgd": time_over_sgd,
            "time_over_limit": time_over_sgd["median"] / work_limit,
            "gflop": step.work / 1e9,
            "work_over_sgd": work_over_sgd,
            "work_limit_over_sgd": work_limit,
            "temporary_mb": step.temporary_bytes / 1e6,
            "memory_over_sgd": memory_over_sgd,
            "memory_limit_over_sgd": memory_limit,
            "memory_over_limit": memory_over_sgd / memory_limit,
            "compile_seconds": step.compile_seconds,
        }
