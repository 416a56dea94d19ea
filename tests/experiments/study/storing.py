"""Runs as a study keeps them."""

from experiments.study.store import Store


def store(folder, *candidates):
    """A store of candidates, each a problem, a name and its runs."""
    found = Store(folder / "runs.jsonl")
    for problem, name, runs in candidates:
        found.add({"problem": problem.name, "candidate": name} | run for run in runs)
    return found
