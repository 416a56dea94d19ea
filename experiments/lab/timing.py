"""Time calls in turn and compilations, and read counts of the compiler."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx


def time_in_turn(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, np.ndarray]:
    """Return the seconds of each call, all called once in each round; the first round warms up."""
    seconds = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            jax.block_until_ready(call())
            seconds[name].append(time.perf_counter() - started)
    return {name: np.array(each[1:]) for name, each in seconds.items()}


def compile_anew(function: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    """Compile a function with empty caches; return it and the seconds of the processor."""
    jax.clear_caches()
    # Of the processor, which a busy machine hardly changes.
    started = time.process_time()
    compiled = jax.jit(function).lower(*args).compile()
    return compiled, time.process_time() - started


def spread(values: np.ndarray) -> dict[str, float]:
    """Return median and quartiles."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return {"median": middle, "quarter": low, "three_quarters": high}


def operations(program: Any) -> float:
    """Return the operations of a lowered or compiled function, as the compiler counts them."""
    return program.cost_analysis()["flops"]


def forward(net: nnx.Module, outputs: Any = slice(None)) -> Callable[[Any], Any]:
    """Return one compiled forward pass of some outputs, as it would be without stages."""
    graphdef, state = nnx.split(nnx.view(net, use_running_average=True))
    # A flat list costs less to hand over than the state.
    leaves, treedef = jax.tree.flatten(state)

    @jax.jit
    def run(leaves: list[jax.Array], x: jax.Array) -> Any:
        state = jax.tree.unflatten(treedef, leaves)
        return nnx.merge(graphdef, state, copy=True)(x)[outputs]

    return lambda x: run(leaves, x)
