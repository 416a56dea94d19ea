"""Every loss and net of the benchmark: right gradients, at the work of `vmap` of `grad`."""

import jax
import numpy as np
import pytest

from experiments.benchmark import losses

CASES = [("dense", loss) for loss in losses.LOSSES]
CASES += [(net, "integer labels") for net in losses.NETS if net != "dense"]
# Rows and columns by two arrays: which rows these are is known only when the program runs.
WITHOUT_SLICES = ("contrastive", "indexed")


@pytest.mark.parametrize(("net", "loss"), CASES)
def test_gradients_are_those_of_jacrev_at_the_work_of_vmap(net, loss):
    ways, args = losses.ways_of(net, loss, 9)
    both = jax.jit(lambda *args: (ways["task_grads"](*args), ways["jacrev"](*args)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *both(*args))

    def work(way):
        return jax.jit(ways[way]).lower(*args).cost_analysis()["flops"]

    other = "jacrev" if loss in WITHOUT_SLICES else "vmap of grad"
    assert work("task_grads") <= 1.1 * work(other)


def test_figures_are_compared_with_the_cheaper_way():
    config = losses.Config(
        examples=(2,), nets=("dense",), losses=("squared", "contrastive"), tasks=3, rounds=1
    )
    results = losses.measure(config, lambda _: None)
    for row in results["examples"]:
        for name in ("time", "compile", "memory"):
            figures = dict(row[name])
            ours = figures.pop("task_grads")
            assert row["ratios"][name] == pytest.approx(ours / min(figures.values()))
    assert [len(row["time"]) for row in results["examples"]] == [3, 2]
    assert [len(table.rows) for table in losses.tables(results)] == [2, 2]


def test_unknown_cases_are_refused():
    with pytest.raises(ValueError, match=r"`nets` must be among \['dense', .*got \['deep'\]"):
        losses.Config(nets=("deep",))
