"""Runs of the training application as a user starts them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

SMALL = (
    *("--data", "digits", "--net", "width-nested", "--outputs", "2", "--widths", "4"),
    *("--train-size", "200", "--batch-size", "40", "--epochs", "2", "--log-every", "2"),
)

# Results of compilation are kept between the runs of a test session, which start anew each time.
_CACHE = {
    "JAX_COMPILATION_CACHE_DIR": str(Path(__file__).parents[2] / ".cache" / "jax"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
}


def environment(**variables: str) -> dict[str, str]:
    """The environment of a run."""
    return {**os.environ, "JAX_PLATFORMS": "cpu", **_CACHE, **variables}


def start(module: str, *arguments, **variables: str) -> subprocess.Popen:
    """Start `python -m experiments.MODULE`; both outputs go to one pipe."""
    return subprocess.Popen(
        [sys.executable, "-m", f"experiments.{module}", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(**variables),
    )


def finish(module: str, *arguments, **variables: str) -> str:
    """Run to the end and return what was printed; it must succeed."""
    process = start(module, *arguments, **variables)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    return printed


def refuse(module: str, *arguments, **variables: str) -> str:
    """Run to the end and return what was printed, on one line; it must fail without traceback."""
    process = start(module, *arguments, **variables)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode not in (0, None), printed
    assert "Traceback" not in printed
    return " ".join(printed.replace("│", " ").split())


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
