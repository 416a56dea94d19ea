"""Runs put where the study keeps its own."""

import json


def store(folder, problem, name, runs):
    """Write the runs of a candidate."""
    path = folder / problem.name / f"{name}.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(run) + "\n" for run in runs))
