"""The benchmark, as far as it is exact: counted work, never the time."""

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_benchmark_counts_less_work_for_pruned_rows_than_for_jacrev(tmp_path):
    output = tmp_path / "benchmark.json"
    command = [sys.executable, "-m", "experiments.benchmark", "--nets", "width-nested"]
    command += ["--batch-sizes", "8", "--image-size", "8", "--rounds", "1"]
    ran = subprocess.run(
        [*command, "--output", str(output)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    work = {row["method"]: row["work_over_sgd"] for row in json.loads(output.read_text())["rows"]}
    assert work["sgd"] == 1
    # Every loss reaches the first stripe, and only the last reaches the widest.
    assert work["osgd"] < 1.5
    assert work["jacrev"] > 2


def test_a_wrong_size_is_refused_in_a_sentence():
    command = [sys.executable, "-m", "experiments.benchmark", "--rounds", "0"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode != 0
    assert "rounds=0 must be at least 1" in ran.stderr
    assert "Traceback" not in ran.stderr
