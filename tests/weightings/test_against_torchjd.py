"""The same directions as TorchJD, for the methods that both have.

Runs by `make test-peer`, in an environment with the extra `peer`; skipped elsewhere.
"""

import jax
import numpy as np
import pytest

from osgd_jax import weightings
from tests.weightings import matrices

torch = pytest.importorskip("torch")
torchjd = pytest.importorskip("torchjd.aggregation")
torchjd_linalg = pytest.importorskip("torchjd.linalg")

# Without the larger numbers that TorchJD adds to the Gramian.
EXACT = {"projector": torchjd_linalg.QuadprogProjector(norm_eps=1e-12, reg_eps=1e-12)}

# Ours, theirs, relative tolerance, and the matrices beyond the well-conditioned ones.
METHODS = {
    "aligned_mtl": (weightings.aligned_mtl, lambda: torchjd.AlignedMTL(), 1e-4, ("low rank",)),
    "aligned_mtl, preference": (
        lambda: weightings.aligned_mtl((1, 2, 3)),
        lambda: torchjd.AlignedMTL(torch.tensor([1.0, 2.0, 3.0]).double()),
        1e-4,
        (),
    ),
    "cagrad": (
        lambda: weightings.cagrad(0.5),
        lambda: torchjd.CAGrad(c=0.5, norm_eps=1e-12),
        1e-4,
        ("conflicting", "duplicates", "low rank"),
    ),
    "config": (weightings.config, lambda: torchjd.ConFIG(), 1e-4, ("duplicates",)),
    "config, preference": (
        lambda: weightings.config((1, 2, 3)),
        lambda: torchjd.ConFIG(torch.tensor([1.0, 2.0, 3.0]).double()),
        1e-4,
        (),
    ),
    "constant": (
        lambda: weightings.constant((1, 2, 3)),
        lambda: torchjd.Constant(torch.tensor([1.0, 2.0, 3.0]).double()),
        1e-6,
        ("conflicting", "zero row"),
    ),
    "dualproj": (
        weightings.dualproj,
        lambda: torchjd.DualProj(**EXACT),
        1e-4,
        ("conflicting", "low rank"),
    ),
    "dualproj, preference": (
        lambda: weightings.dualproj((1, 2, 3)),
        lambda: torchjd.DualProj(torch.tensor([1.0, 2.0, 3.0]).double(), **EXACT),
        1e-4,
        (),
    ),
    "fairgrad": (lambda: weightings.fairgrad(2.0), lambda: torchjd.FairGrad(alpha=2.0), 1e-3, ()),
    "imtl_g": (weightings.imtl_g, lambda: torchjd.IMTLG(), 1e-4, ("duplicates",)),
    "mean": (weightings.mean, lambda: torchjd.Mean(), 1e-6, ("conflicting", "zero row")),
    # Theirs stops at a Frank-Wolfe step below 1e-6.
    "mgda": (
        weightings.mgda,
        lambda: torchjd.MGDA(epsilon=1e-9, max_iters=20_000),
        1e-2,
        ("duplicates", "low rank"),
    ),
    "sum": (weightings.sum, lambda: torchjd.Sum(), 1e-6, ("conflicting", "zero row")),
    "upgrad": (
        weightings.upgrad,
        lambda: torchjd.UPGrad(**EXACT),
        1e-4,
        ("conflicting", "low rank"),
    ),
    "upgrad, preference": (
        lambda: weightings.upgrad((1, 2, 3)),
        lambda: torchjd.UPGrad(torch.tensor([1.0, 2.0, 3.0]).double(), **EXACT),
        1e-4,
        (),
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_same_direction(name):
    make_ours, make_theirs, relative, also = METHODS[name]
    zoo = matrices.zoo(3)
    stack = list(matrices.well_conditioned(3).values()) + [zoo[kind] for kind in also]
    weights = matrices.weights_of(make_ours(), stack)
    for rows, w in zip(stack, weights, strict=True):
        theirs = make_theirs()(torch.tensor(rows).double()).numpy()
        ours = rows.T.astype(np.float64) @ w
        size = max(np.linalg.norm(theirs), 0.01 * np.linalg.norm(rows, axis=1).max())
        assert np.linalg.norm(ours - theirs) <= relative * size


@pytest.mark.filterwarnings("ignore")
def test_nash_mtl_up_to_the_length():
    """Theirs scales the direction, and stops after twenty convex approximations."""
    stack = list(matrices.well_conditioned(3).values())
    weights = matrices.weights_of(weightings.nash_mtl(), stack)
    for rows, w in zip(stack, weights, strict=True):
        theirs = torchjd.NashMTL(n_tasks=3, optim_niter=100)(torch.tensor(rows)).numpy()
        ours = rows.T @ w
        cosine = ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs)
        assert cosine > 1 - 1e-5


@pytest.mark.parametrize("name", ["pcgrad", "gradvac"])
def test_two_tasks_have_but_one_order(name):
    ours = {"pcgrad": weightings.pcgrad(), "gradvac": weightings.gradvac(2, beta=0.5)}[name]
    theirs = {"pcgrad": torchjd.PCGrad(), "gradvac": torchjd.GradVac(beta=0.5)}[name]
    state = ours.init()
    for rows in matrices.well_conditioned(2).values():
        gramian, scales = matrices.scaled_gramian(ours, rows)
        weights, state = matrices.call(ours, gramian, scales, state)
        expected = theirs(torch.tensor(rows)).numpy()
        np.testing.assert_allclose(rows.T @ weights, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["pcgrad", "gradvac"])
def test_three_tasks_have_the_same_possible_directions(name):
    """Each task's order is one of two, so there are at most eight directions; both draw them."""
    rows = matrices.zoo(3)["conflicting"]
    ours, theirs = {
        "pcgrad": (weightings.pcgrad(), torchjd.PCGrad),
        "gradvac": (weightings.gradvac(3, beta=0.5), lambda: torchjd.GradVac(beta=0.5)),
    }[name]
    torch.manual_seed(0)
    found = [matrices.direction_of(ours, rows, key=jax.random.key(seed)) for seed in range(60)]
    expected = [theirs()(torch.tensor(rows)).numpy() for _ in range(60)]
    distances = np.linalg.norm(np.array(found)[:, None] - np.array(expected), axis=2)
    scale = np.linalg.norm(expected[0])
    assert (distances.min(axis=1) < 1e-4 * scale).all()
    assert (distances.min(axis=0) < 1e-4 * scale).all()
    assert (distances > 1e-3 * scale).any()


@pytest.mark.parametrize("tau", [0.02, (0.3, 0.05)])
def test_pcd_over_steps(tau):
    ours = weightings.pcd(3, tau)
    theirs = torchjd.PCD(tau if isinstance(tau, float) else torch.tensor(tau))
    state = ours.init()
    zoo = matrices.zoo(3)
    kinds = ("typical", "conflicting", "duplicates", "zero row", "aligned", "rows of two scales")
    for rows in [zoo[kind] for kind in kinds]:
        gramian, scales = matrices.scaled_gramian(ours, rows)
        weights, state = matrices.call(ours, gramian, scales, state)
        expected = theirs(torch.tensor(rows)).numpy()
        np.testing.assert_allclose(rows.T @ weights, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["modo", "sdmgrad", "sdmgrad, preference"])
def test_methods_of_two_batches_over_steps(name):
    shares = torch.tensor([0.2, 0.3, 0.5]).double()
    ours, theirs = {
        "modo": (weightings.modo(3, 0.02, 0.1), torchjd.MoDoWeighting(0.02, 0.1)),
        "sdmgrad": (weightings.sdmgrad(3), torchjd.SDMGradWeighting()),
        "sdmgrad, preference": (
            weightings.sdmgrad(3, 1.0, (2, 3, 5), learning_rate=0.1, momentum=0.8, steps=7),
            torchjd.SDMGradWeighting(0.1, 0.8, 7, 1.0, shares),
        ),
    }[name]
    rng, state = np.random.default_rng(0), ours.init()
    for _ in range(10):
        first, second = rng.normal(size=(3, 8)) + 0.5 * rng.normal(size=(2, 3, 8))
        gramian = (first @ second.T + second @ first.T) / 2
        weights, state = ours.weigh(gramian.astype(np.float32), state)
        expected = theirs(torch.tensor(gramian)).numpy()
        # The default rate of SDMGrad multiplies rounding.
        np.testing.assert_allclose(weights, expected, rtol=5e-3, atol=5e-4)
