"""Several devices: sharded data, sharded parameters, `jax.shard_map`."""

import os
import pathlib
import subprocess
import sys


def test_on_eight_devices():
    script = pathlib.Path(__file__).parent / "helpers" / "sharded_steps.py"
    flags = "--xla_force_host_platform_device_count=8"
    result = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-4000:]
