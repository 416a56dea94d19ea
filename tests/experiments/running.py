"""Runs of the training application as a user starts them."""

import contextlib
import io
import json
import os
import runpy
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental.compilation_cache import compilation_cache

SMALL = (
    *("--data", "digits", "--net", "width-nested", "--outputs", "2", "--widths", "4"),
    *("--train-size", "200", "--batch-size", "40", "--epochs", "2", "--log-every", "2"),
)

# Results of compilation are kept between the runs of a test session, which start anew each time.
_CACHE = {
    "jax_compilation_cache_dir": str(Path(__file__).parents[2] / ".cache" / "jax"),
    "jax_persistent_cache_min_compile_time_secs": 0.1,
}


def environment(**variables: str) -> dict[str, str]:
    """Return the environment of a run; `XLA_FLAGS` are added to the flags of the tests."""
    cache = {name.upper(): str(value) for name, value in _CACHE.items()}
    if "XLA_FLAGS" in variables:
        variables["XLA_FLAGS"] += f" {os.environ.get('XLA_FLAGS', '')}"
    return {**os.environ, "JAX_PLATFORMS": "cpu", **cache, **variables}


def start(module: str, *arguments, **variables: str) -> subprocess.Popen:
    """Start `python -m experiments.MODULE`; both outputs go to one pipe."""
    return subprocess.Popen(
        [sys.executable, "-m", f"experiments.{module}", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(**variables),
    )


def finish(module: str, *arguments) -> str:
    """Run to the end in this process and return what was printed; it must succeed."""
    status, printed = _called(module, arguments)
    assert status == 0, printed
    return printed


def finish_apart(module: str, *arguments, **variables: str) -> str:
    """Do the same as `finish` in a separate process, with environment variables."""
    process = start(module, *arguments, **variables)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    return printed


def refuse(module: str, *arguments) -> str:
    """Run to its end in this process and return what was printed, on one line; it must exit."""
    status, printed = _called(module, arguments)
    assert status != 0, printed
    return " ".join(printed.replace("│", " ").split())


def _called(module: str, arguments: tuple) -> tuple[int, str]:
    """Status and output of `python -m experiments.MODULE` in this process: that saves imports."""
    printed, status = io.StringIO(), 0
    argv = [f"experiments/{module}", *map(str, arguments)]
    both = contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed)
    argv = mock.patch.object(sys, "argv", argv)
    with argv, both[0], both[1], _compilation_kept(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'experiments.* found in sys.modules", RuntimeWarning)
        try:
            runpy.run_module(f"experiments.{module}", run_name="__main__")
        except SystemExit as exit:
            status = exit.code if isinstance(exit.code, int) else 1
            printed.write(exit.code if isinstance(exit.code, str) else "")
    return status, printed.getvalue()


@contextlib.contextmanager
def _compilation_kept() -> Iterator[None]:
    before = {name: getattr(jax.config, name) for name in _CACHE}
    _configure(_CACHE)
    try:
        yield
    finally:
        _configure(before)


def _configure(options: dict[str, Any]) -> None:
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def metrics(workdir: Path) -> list[dict]:
    """Records of metrics.jsonl without the clock."""
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: each[name] for name in each if name != "clock"} for each in records]


def summary(workdir: Path) -> dict:
    """summary.json without the clock."""
    found = json.loads((workdir / "summary.json").read_text())
    del found["clock"]
    return found


def parameters(workdir: Path) -> list[np.ndarray]:
    """All arrays of the last checkpoint, whatever devices they were saved from."""
    manager = ocp.CheckpointManager(
        (workdir / "checkpoints").absolute(),
        item_names=("state",),
        item_handlers={"state": ocp.PyTreeCheckpointHandler()},
    )
    try:
        step = manager.latest_step()
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        here = jax.tree.map(
            lambda _: ocp.ArrayRestoreArgs(sharding=device), manager.item_metadata(step).state.tree
        )
        arguments = ocp.args.Composite(state=ocp.args.PyTreeRestore(restore_args=here))
        restored = manager.restore(step, args=arguments)
    finally:
        manager.close()
    leaves = jax.tree.leaves(restored.state)
    is_key = [jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves]
    return [
        np.asarray(jax.random.key_data(leaf) if key else leaf)
        for leaf, key in zip(leaves, is_key, strict=True)
    ]
