"""A predictor for other runtimes: an ONNX file for each stage, and one for all outputs.

Inputs and outputs of all stages have different names, so that a runtime keeps all arrays in one
table and feeds each stage by the names of its inputs.
"""

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from osgd_jax._serving.runner import ExampleKey, Runner

Table = dict[str, Any]  # arrays, or their shapes and dtypes, by name


@dataclasses.dataclass
class _Step:
    """A stage as a function of a table.

    Attributes:
      call: gives what the stage makes, by name.
      inputs: names of what it takes.
      carry: names of the arrays that the next stage takes.
      combined: name of what the next answer needs of the earlier ones, or None.
    """

    call: Callable[[Table], Table]
    inputs: list[str]
    carry: list[str]
    combined: str | None


def write(folder: Path, runner: Runner, example: ExampleKey) -> None:
    """Write `stage-0.onnx`, `stage-1.onnx`, … and `all.onnx`, with a batch of any size."""
    convert = _converter()
    shape, dtype = example
    (batch,) = export.symbolic_shape("batch")
    table: Table = {"x": jax.ShapeDtypeStruct((batch, *shape), jnp.dtype(dtype))}
    folder.mkdir(parents=True, exist_ok=True)

    def save(file: str, call: Callable[[Table], Table], inputs: list[str], outputs: list[str]):
        def of_arrays(*arrays: jax.Array) -> tuple[jax.Array, ...]:
            made = call(dict(zip(inputs, arrays, strict=True)))
            return tuple(made[name] for name in outputs)

        convert(
            of_arrays,
            [table[name] for name in inputs],
            model_name=Path(file).stem,
            input_names=inputs,
            output_names=outputs,
            enable_double_precision=dtype == "float64",
            return_mode="file",
            output_path=str(folder / file),
        )

    steps, carry, combined = [], ["x"], None
    for k in range(runner.model.num_outputs):
        step = _step(runner, example, k, carry, combined)
        made, step = _without_copies(step, table)
        save(f"stage-{k}.onnx", step.call, step.inputs, list(made))
        table |= made
        steps.append(step)
        carry, combined = step.carry, step.combined

    def everything(seen: Table) -> Table:
        for step in steps:
            seen = seen | step.call(seen)
        return seen

    save("all.onnx", everything, ["x"], [f"logits_{k}" for k in range(len(steps))])


def _step(
    runner: Runner, example: ExampleKey, k: int, carry: list[str], combined: str | None
) -> _Step:
    stage = runner.stages(example)[k]
    fresh_names = [f"carry_{k}_{i}" for i in range(stage.passes.count(None))]
    last = k + 1 == runner.model.num_outputs
    combining = None if runner.combine == "latest" or last else f"combined_{k}"

    def call(seen: Table) -> Table:
        before = seen[combined] if combined else None
        arrays = [seen[name] for name in carry]
        logits, fresh, after = runner.run(k, stage, stage.weights, arrays, before)
        made = {f"logits_{k}": logits, **dict(zip(fresh_names, fresh, strict=True))}
        return made if combining is None else {**made, combining: after}

    inputs = list(dict.fromkeys(carry))
    if combined is not None and combined not in inputs:
        inputs.append(combined)
    return _Step(call, inputs, stage.next_carry(carry, fresh_names), combining)


def _without_copies(step: _Step, table: Table) -> tuple[Table, _Step]:
    """Return the shapes that a step makes, and the step with one name for each array.

    An array that it only hands on, or gives twice, keeps its first name, because a graph cannot
    rename it.
    """
    names: list[str] = []

    def call(*arrays: jax.Array) -> list[jax.Array]:
        made = step.call(dict(zip(step.inputs, arrays, strict=True)))
        names[:] = made
        return list(made.values())

    closed = jax.make_jaxpr(call)(*(table[name] for name in step.inputs))
    first = {id(v): name for v, name in zip(closed.jaxpr.invars, step.inputs, strict=True)}
    outputs = zip(names, closed.jaxpr.outvars, closed.out_avals, strict=True)
    same, made = {}, {}
    for name, variable, aval in outputs:
        same[name] = first.setdefault(id(variable), name)
        if same[name] == name:
            made[name] = jax.ShapeDtypeStruct(aval.shape, aval.dtype)
    carry = [same.get(name, name) for name in step.carry]
    combined = same[step.combined] if step.combined else None
    return made, dataclasses.replace(step, carry=carry, combined=combined)


def _converter() -> Callable[..., Any]:
    try:
        return importlib.import_module("jax2onnx").to_onnx
    except ImportError:
        raise ImportError("export_onnx needs jax2onnx: pip install 'osgd-jax[onnx]'") from None
