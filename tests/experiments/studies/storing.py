"""Rows as the study of anytime nets stores them."""

from experiments.lab.store import Store
from experiments.studies.anytime.results import sweep


def study(*methods):
    """Return a sweep of methods, each a problem, a name and its rows."""
    store = Store(None)
    for problem, name, rows in methods:
        store.add({"problem": problem.name, "method": name} | row for row in rows)
    return sweep(store)
