"""Compile training steps for TPU v5e and H100, on a machine that has neither.

Nothing is run: programs are compiled ahead of time, and work, memory, traffic between devices and
precision are read from them (`compiled.py`). Each environment has one of the compilers
(`make accelerators`); a repeated command adds the rows that its output lacks.
"""

import dataclasses
import functools
import importlib.util
import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import osgd_jax
from experiments.app import methods
from experiments.app.nets import NETS, TRANSFORMERS
from experiments.app.settings import require
from experiments.benchmark import compiled, training_steps
from experiments.lab.report import Table, runs, settings, store
from experiments.pinn.problems import PROBLEMS
from experiments.pinn.training import Solver, SolverSettings

TITLE = "Training steps compiled for TPU and GPU"
Chips = Literal["v5e-1", "v5e-4", "v5e-8", "v5e-16", "h100-1", "h100-4"]
Net = Literal[
    "kernels",
    "branched",
    "width-nested",
    "depth-nested",
    "nested",
    "width-nested-transformer",
    "depth-nested-transformer",
    "burgers",
]
Way = Literal["sgd", "osgd", "jacrev", "osgd, axis_name"]
# On one device nothing is sent; on several, jacrev would send what "osgd" does.
_WAYS: dict[bool, tuple[Way, ...]] = {
    False: ("sgd", "osgd", "jacrev"),
    True: ("sgd", "osgd", "osgd, axis_name"),
}
_DESCRIBED = ("chips", "update", "net", "precision", "batch", "way")
_GRIDS = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4"}
# Of one axis of 16, the compiler for TPU makes no reduce-scatter.
_MESHES = {16: (4, 4)}
_OPTIONS: dict[str, Any] = {
    # Six times faster to compile, with the same work and traffic and somewhat other memory.
    "v5e": {"exec_time_optimization_effort": -1.0},
    # To choose among kernels takes a device to run them on.
    "h100": {"xla_gpu_autotune_level": 0},
}
_CASE = ("chips", "net", "precision", "batch")
# Figures of a step: name in a row, what is said of SGD's, and the unit of that.
_MEMORY = (("peak_bytes", "MB", 1e6), ("temporary_bytes", "temporary MB", 1e6))
_ALONE = (("flops", "GFLOP", 1e9), ("seconds", "µs", 1e-6), *_MEMORY)
_TOGETHER = (("sent", "MB sent", 1e6), *_MEMORY)
_COLUMN = {
    "flops": "work",
    "seconds": "time",
    "peak_bytes": "memory",
    "temporary_bytes": "temporary",
    "sent": "sent",
}
# Enough for products of matrices in the Gramian (`osgd_jax._balancing.gramians`).
_TASKS = 6
_TOKENS = 128


@dataclasses.dataclass(frozen=True)
class Config:
    """Choose what to compile.

    Attributes:
      chips: kinds and numbers of devices, of which this environment compiles for some.
      nets: with 3 outputs; "kernels" are three of 1024 × 1024, one after the other, "burgers" is a
        physics-informed net with 3 losses.
      precisions: dtypes of the computation; parameters are float32, and all of burgers is.
      batch_sizes: of 32 × 32 images, of vectors, of texts with 128 tokens or of points for each
        loss; on several devices 128 in all, in float32.
      updates: methods whose update is compiled alone, for 6 tasks; all if not given.
      output: file for the results.
    """

    chips: tuple[Chips, ...] = get_args(Chips)
    nets: tuple[Net, ...] = get_args(Net)
    precisions: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    batch_sizes: tuple[int, ...] = (128, 1024)
    updates: tuple[str, ...] | None = None
    output: Path = Path("runs/benchmark_accelerators.jsonl.gz")

    def __post_init__(self):
        require(self, fields=("batch_sizes",), at_least=1)


def measure(config: Config, report: Callable[[str], None]) -> dict[str, Any]:
    """Add the rows that the output lacks; write it after each.

    Raises:
      ValueError: an environment that compiles for none of the chips.
    """
    chips = [each for each in config.chips if can_compile_for(each)]
    if not chips:
        raise ValueError(
            "`chips` must be among the chips for which this environment has a compiler, got"
            f" {config.chips}; `make accelerators` sets up environments for all."
        )
    same = [run for run in runs(config.output) if run["config"] == settings(config)]
    rows = same[0]["rows"] if same else []
    known = [_case(row) for row in rows]
    for case in cases(config, chips):
        if case in known:
            continue
        report(", ".join(map(str, case.values())))
        program = step_program(**case) if "net" in case else update_program(**case)
        started = time.process_time()
        made = compiled_for(case["chips"], program)
        rows.append(case | {"compile_seconds": time.process_time() - started} | figures(made))
        store("experiments.benchmark accelerators", config, {"rows": rows})
    return {"rows": rows}


def can_compile_for(chips: Chips) -> bool:
    """Tell whether the compiler is installed."""
    package = "libtpu" if chips.startswith("v5e") else "jax_cuda12_plugin"
    return importlib.util.find_spec(package) is not None


def cases(config: Config, chips: Sequence[str]) -> Iterator[dict[str, Any]]:
    """List what is to be compiled."""
    for each in chips:
        if each.endswith("-1"):
            names = methods.names() if config.updates is None else config.updates
            yield from ({"chips": each, "update": name} for name in names if name != "sgd")
    for each in chips:
        several = not each.endswith("-1")
        sizes = itertools.product(config.nets, config.precisions, config.batch_sizes)
        for net, precision, batch in sizes:
            if several and (precision, batch) != ("float32", 128):
                continue
            if net == "burgers" and precision != "float32":
                continue
            case = {"chips": each, "net": net, "precision": precision, "batch": batch}
            yield from (case | {"way": way} for way in _WAYS[several])


def _case(row: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a row that describes the program."""
    return {name: row[name] for name in _DESCRIBED if name in row}


def compiled_for(chips: Chips, program: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compile as far as that goes without a device."""
    return program.compile(_OPTIONS[chips.split("-")[0]])


def figures(made: jax.stages.Compiled) -> dict[str, Any]:
    """Return the costs of a program."""
    # There is none from the compiler for GPUs.
    costs: Any = made.cost_analysis() or {}
    memory: Any = made.memory_analysis()
    text: Any = made.as_text()
    seconds = costs.get("optimal_seconds", -1)
    return {
        "flops": costs.get("flops"),
        "bytes": costs.get("bytes accessed"),
        # Each call that the compiler has no estimate for counts as a negative second.
        "seconds": seconds if seconds > 0 else None,
        "temporary_bytes": memory.temp_size_in_bytes,
        "peak_bytes": memory.peak_memory_in_bytes,
        **compiled.facts(text),
    }


def step_program(
    chips: Chips, net: Net, precision: str, batch: int, way: Way
) -> jax.stages.Lowered:
    """Lower a training step on some devices, with the batch split over them."""
    mesh = mesh_of(chips)
    problem = _problem_of_net(net, batch, precision, norm="batch" if mesh.size == 1 else "group")
    axes = mesh.axis_names
    everywhere, split = PartitionSpec(), PartitionSpec(axes)
    if way == "osgd, axis_name":
        grad_fn, tx = training_steps.in_one_call_by(problem, "all", axis_name=axes)["osgd"]

        def own_grads(params: Any, rest: Any, *batch: Any):
            return grad_fn(jax.lax.pcast(params, axes, to="varying"), rest, *batch)

        step = jax.shard_map(
            training_steps.step_by(own_grads, tx),
            mesh=mesh,
            in_specs=(everywhere, everywhere, everywhere, split),
            out_specs=everywhere,
        )
    else:
        grad_fn, tx = training_steps.in_one_call_by(problem, "all")[way]
        step = training_steps.step_by(grad_fn, tx)
    state = jax.eval_shape(tx.init, problem.params)
    whole = placed((problem.params, problem.rest, state), mesh, everywhere)
    return jax.jit(step).lower(*whole, placed(problem.batch, mesh, split))


def update_program(chips: Chips, update: str) -> jax.stages.Lowered:
    """Lower a method's update of a few small arrays, two of which not all losses reach."""
    tx = methods.method(methods.Settings(update), num_tasks=_TASKS).balance
    assert tx is not None
    params = {"stem": (64, 128), "bias": (128,), "late": (128, 128), "head": (128, 10)}
    reach = {"stem": 0, "bias": 0, "late": 2, "head": _TASKS - 1}
    arrays, grads = {}, {}
    for name, shape in params.items():
        tasks = tuple(range(reach[name], _TASKS))
        arrays[name] = jax.ShapeDtypeStruct(shape, jnp.float32)
        rows: Any = jax.ShapeDtypeStruct((len(tasks), *shape), jnp.float32)
        grads[name] = osgd_jax.TaskRows(rows, tasks, _TASKS)
    state = jax.eval_shape(tx.init, arrays)
    losses = jax.ShapeDtypeStruct((_TASKS,), jnp.float32)
    mesh = mesh_of(chips)
    given = placed((grads, state, arrays, losses), mesh, PartitionSpec())

    def step(grads: Any, state: Any, params: Any, losses: jax.Array):
        return tx.update(grads, state, params, losses=losses)

    return jax.jit(step).lower(*given)


def placed(tree: Any, mesh: Mesh, spec: PartitionSpec) -> Any:
    """Shapes of arrays as they lie on the devices."""
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )


@functools.cache
def mesh_of(chips: Chips) -> Mesh:
    """Devices that are not there."""
    # A plugin for GPUs would look for one.
    jax.config.update("jax_platforms", "cpu")
    kind, number = chips.split("-")
    shape = _MESHES.get(int(number), (int(number),))
    if kind == "v5e":
        # Where there is no TPU, there is nobody to ask about it.
        os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
        os.environ |= {"TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_WORKER_ID": "0"}
        os.environ |= {"TPU_WORKER_HOSTNAMES": "localhost"}
        one = {"chips_per_host_bounds": (1, 1, 1)} if number == "1" else {}
        name = f"v5e:{_GRIDS[int(number)]}"
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **one)
    else:
        target = Path(__file__).with_name("h100.txtpb").read_text()
        found = topologies.get_topology_desc(
            "", "cuda", topology=f"1x1x{number}", target_config=target
        )
    axes = ("data", "data_2")[: len(shape)]
    devices = np.array(found.devices).reshape(shape)
    return Mesh(devices, axes, axis_types=(AxisType.Auto,) * len(axes))


@functools.cache
def _problem_of_net(net: Net, batch: int, precision: str, norm: str) -> training_steps.Problem:
    """Return a net with a random batch; group normalization keeps the devices' batches apart."""
    if net == "kernels":
        return _kernels(batch, jnp.dtype(precision))
    if net == "burgers":
        return _burgers(batch)
    if net in TRANSFORMERS:
        text = jnp.zeros((batch, _TOKENS), jnp.int32)
        made = TRANSFORMERS[net](
            vocab_size=256, num_outputs=3, dtype=jnp.dtype(precision), rngs=nnx.Rngs(0)
        )
        return training_steps.problem_of(made, text, text)
    made = NETS[net](
        num_classes=10, num_outputs=3, norm=norm, dtype=jnp.dtype(precision), rngs=nnx.Rngs(0)
    )
    return training_steps.classification(made, (batch, 32, 32, 3))


def _kernels(batch: int, dtype: Any) -> training_steps.Problem:
    def losses(params: Any, rest: Any, inputs: jax.Array):
        outputs = [inputs.astype(dtype)]
        for kernel in params:
            outputs.append(jnp.tanh(outputs[-1] @ kernel.astype(dtype)))
        return tuple(jnp.mean(jnp.square(each)) for each in outputs[1:]), rest

    return training_steps.Problem(
        losses, [jnp.zeros((1024, 1024))] * 3, (), (jnp.zeros((batch, 1024)),)
    )


def _burgers(batch: int) -> training_steps.Problem:
    trainer = Solver(PROBLEMS["burgers"], SolverSettings())
    state = trainer.start(0, 1e-3)

    def losses(params: Any, rest: Any, points: Any):
        found = trainer.problem.losses(trainer.field(params, rest), points)
        return tuple(found.values()), rest

    points = trainer.problem.sample(jax.random.key(0), batch, batch)
    return training_steps.Problem(losses, state.params, state.rest, (points,))


def tables(results: dict[str, Any]) -> list[Table]:
    """Return tables of steps on one device and on several, over SGD's, and of updates alone."""
    ways: dict[tuple[str, ...], dict[Way, dict[str, Any]]] = {}
    for row in results["rows"]:
        if "net" in row:
            case = tuple(str(row[name]) for name in _CASE)
            ways.setdefault(case, {})[row["way"]] = row
    kinds = [f"{way}: collectives" for way in _WAYS[True]]
    alone = _ratios("A step on one device, over SGD's", _WAYS[False], _ALONE)
    together = _ratios("A step on several devices, over SGD's", _WAYS[True], _TOGETHER, kinds)
    for case, rows in ways.items():
        several = not case[0].endswith("-1")
        shown = together if several else alone
        named = _TOGETHER if several else _ALONE
        sgd, *others = (rows.get(way, {}) for way in _WAYS[several])
        figures = [_number(_figure(sgd, name), unit) for name, _, unit in named]
        for row in others:
            figures += [_ratio(_figure(row, name), _figure(sgd, name)) for name, *_ in named]
        if several:
            figures += [_kinds(row) for row in (sgd, *others)]
        shown.add(*case, *figures)
    columns = ["chips", "method", "products", "scatters", "loops", "callbacks"]
    updates = Table("The update alone, of 6 tasks", columns, words=3)
    for row in results["rows"]:
        if "update" in row:
            products = ", ".join(f"{n} {name}" for name, n in row["products"].items())
            counts = [str(row[name]) for name in ("scatters", "loops", "callbacks")]
            updates.add(row["chips"], row["update"], products or "none", *counts)
    return [table for table in (alone, together, updates) if table.rows]


def _ratios(
    title: str,
    ways: Sequence[Way],
    named: Sequence[tuple[str, str, float]],
    further: Sequence[str] = (),
) -> Table:
    sgd, *others = ways
    columns = [f"{sgd}: {unit}" for _, unit, _ in named]
    columns += [f"{way}: {_COLUMN[name]}" for way in others for name, *_ in named]
    return Table(title, [*_CASE, *columns, *further], words=len(_CASE))


def _figure(row: dict[str, Any], name: str) -> float | None:
    return sum(row["sent_bytes"].values()) if name == "sent" and row else row.get(name)


def _kinds(row: dict[str, Any]) -> str:
    return ", ".join(f"{n} {kind}" for kind, n in row.get("collectives", {}).items()) or "–"


def _number(value: float | None, unit: float) -> str:
    if value is None:
        return "–"
    return f"{value / unit:,.0f}" if value >= 100 * unit else f"{value / unit:.3g}"


def _ratio(value: float | None, of_sgd: float | None) -> str:
    return "–" if value is None or not of_sgd else f"{value / of_sgd:.2f}"
