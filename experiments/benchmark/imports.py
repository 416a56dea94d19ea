"""How long the imports take: `python -m experiments.benchmark.imports`.

Each in a fresh interpreter, in turn, the median of several. `osgd_jax` needs Flax and Optax: what
it adds is the last line less the one before.
"""

import statistics
import subprocess
import sys

_RUNS = 7
_PROGRAMS = ("import jax", "import flax", "from flax import nnx; import optax", "import osgd_jax")
_TIMED = "import time; begun = time.perf_counter(); {}; print(time.perf_counter() - begun)"


def main() -> None:
    """Measure and print."""
    seconds = {program: [] for program in _PROGRAMS}
    for _ in range(_RUNS):
        for program in _PROGRAMS:
            command = [sys.executable, "-c", _TIMED.format(program)]
            ran = subprocess.run(command, capture_output=True, text=True, check=True)
            seconds[program].append(float(ran.stdout))
    for program in _PROGRAMS:
        print(f"{statistics.median(seconds[program]):6.2f} s  {program}")


if __name__ == "__main__":
    main()
