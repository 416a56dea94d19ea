"""Run a script of checks on eight CPU devices, in a separate process."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def run_on_eight(script: str, *arguments: str) -> None:
    """Run a module of `tests.helpers` on eight devices; its failure is a failure here."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    result = subprocess.run(
        [sys.executable, "-W", "error", "-m", f"tests.helpers.{script}", *arguments],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags.strip()},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-4000:]
