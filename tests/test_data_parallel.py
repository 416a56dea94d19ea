"""Task gradients split over devices inside `jax.shard_map`."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

import osgd_jax


def test_on_eight_devices():
    script = pathlib.Path(__file__).parent / "helpers" / "data_parallel_steps.py"
    flags = "--xla_force_host_platform_device_count=8"
    result = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-4000:]


def test_an_axis_outside_of_shard_map_is_an_error():
    tx = osgd_jax.osgd(0.1, axis_name="data")
    grads = {"w": jnp.ones((2, 3))}
    with pytest.raises(NameError, match="unbound axis name: data"):
        jax.jit(tx.update)(grads, tx.init({"w": jnp.ones(3)}))
