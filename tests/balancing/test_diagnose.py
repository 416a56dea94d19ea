"""`diagnose` against made gradients, and what it says of odd ones."""

import jax.numpy as jnp
import numpy as np
import pytest

import osgd_jax
from osgd_jax._balancing.confidence import cosine_intervals, ratio_intervals

RNG = np.random.default_rng(0)
LOSSES = {"pde": 1.0, "bc": 2.0, "ic": 3.0}  # tasks 2, 0 and 1, by their sorted keys
LOSSES_OF_TWO = {"pde": 1.0, "bc": 2.0}


def gramians_of(rows):
    rows = np.asarray(rows, np.float64)
    return rows @ rows.transpose(0, 2, 1)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def made(kind, steps=50, num_tasks=3, columns=20):
    """Gradients `[steps, K, columns]`."""
    noise = RNG.normal(size=(steps, num_tasks, columns))
    if kind == "aligned":
        return noise + 4 * RNG.normal(size=(steps, 1, columns))
    if kind == "imbalanced":
        return noise * np.array([1, 100, 0.1])[:, None]
    signs = np.array([1, -1, 1])[:, None]
    return noise + 4 * signs * RNG.normal(size=(steps, 1, columns))


@pytest.mark.parametrize("kind", ["aligned", "imbalanced", "conflicting"])
def test_all_numbers_from_the_gradients(kind):
    rows = made(kind)
    found = osgd_jax.diagnose(gramians_of(rows))
    cosines = np.einsum("nip,njp->nij", unit(rows), unit(rows))
    np.testing.assert_allclose(found.cosines, cosines.mean(axis=0), atol=1e-12)
    off = ~np.eye(3, dtype=bool)
    np.testing.assert_allclose(found.opposed[off], (cosines < 0).mean(axis=0)[off])
    norms = np.exp(np.log(np.linalg.norm(rows, axis=2)).mean(axis=0))
    np.testing.assert_allclose(found.norms, norms)
    np.testing.assert_allclose(found.norm_ratio, norms.max() / norms.min())
    score = 2 * np.linalg.norm(unit(rows).mean(axis=1), axis=1) ** 2 - 1
    np.testing.assert_allclose(found.alignment, score.mean())
    assert (found.steps, found.left_out, found.tasks) == (50, 0, ("0", "1", "2"))


def test_the_kinds_are_told_apart_by_their_numbers():
    aligned, imbalanced, conflicting = (
        osgd_jax.diagnose(gramians_of(made(kind)))
        for kind in ("aligned", "imbalanced", "conflicting")
    )
    assert aligned.alignment > 0.8 > 0 > imbalanced.alignment > conflicting.alignment
    assert imbalanced.norm_ratio > 500 > 2 > max(aligned.norm_ratio, conflicting.norm_ratio)
    assert conflicting.opposed[0, 1] == 1 > 0.7 > imbalanced.opposed.max()
    assert not aligned.opposed.any()


def test_known_directions():
    orthogonal = osgd_jax.diagnose(np.eye(4)[None])
    np.testing.assert_allclose(orthogonal.alignment, 2 / 4 - 1)
    opposite = osgd_jax.diagnose(gramians_of([[[1, 0], [-3, 0]]]))
    np.testing.assert_allclose(opposite.alignment, -1)
    np.testing.assert_allclose(opposite.cosines, [[1, -1], [-1, 1]])
    np.testing.assert_allclose(opposite.opposed, [[0, 1], [1, 0]])


@pytest.mark.parametrize("scale", [1e-18, 1e18])
def test_only_the_norms_depend_on_the_scale(scale):
    rows = made("conflicting")
    near, far = (osgd_jax.diagnose(gramians_of(rows * s)) for s in (1, scale))
    np.testing.assert_allclose(far.norms, near.norms * scale)
    for field in ("cosines", "opposed", "norm_ratio", "alignment"):
        np.testing.assert_allclose(getattr(far, field), getattr(near, field), atol=1e-12)


def test_float32_gramians_of_the_library_and_logged_cosines_and_norms():
    rows = made("imbalanced").astype(np.float32)
    gramians = np.stack([osgd_jax.gramian([jnp.asarray(step)]) for step in rows])
    found, wanted = osgd_jax.diagnose(gramians), osgd_jax.diagnose(gramians_of(rows))
    np.testing.assert_allclose(found.cosines, wanted.cosines, atol=1e-6)
    norms = np.sqrt(np.diagonal(gramians, axis1=1, axis2=2))
    cosines = np.stack([osgd_jax.task_cosines(jnp.asarray(gramian)) for gramian in gramians])
    logged = osgd_jax.diagnose(cosines * norms[:, :, None] * norms[:, None, :])
    np.testing.assert_allclose(logged.norm_ratio, wanted.norm_ratio, rtol=1e-5)


def test_steps_that_are_not_finite_are_left_out():
    gramians = gramians_of(made("conflicting"))
    spoiled = gramians.copy()
    spoiled[3, 0, 1], spoiled[7] = np.nan, np.inf
    found = osgd_jax.diagnose(spoiled)
    wanted = osgd_jax.diagnose(np.delete(gramians, [3, 7], axis=0))
    assert (found.steps, found.left_out) == (48, 2)
    np.testing.assert_allclose(found.cosines, wanted.cosines)
    assert "48 steps (2 not finite, left out)" in str(found)
    with pytest.raises(ValueError, match="none of 50 is"):
        osgd_jax.diagnose(np.full_like(gramians, np.nan))


def test_gradients_of_zero_do_not_count():
    rows = made("conflicting")
    with_zeros = np.concatenate([rows, rows], axis=0)
    with_zeros[50:, 1] = 0
    found = osgd_jax.diagnose(gramians_of(with_zeros))
    wanted = osgd_jax.diagnose(gramians_of(rows))
    np.testing.assert_allclose(found.cosines, wanted.cosines)
    np.testing.assert_allclose(found.norms, wanted.norms)
    pair = osgd_jax.diagnose(gramians_of(rows[:, [0, 2]]))
    np.testing.assert_allclose(found.alignment, (wanted.alignment + pair.alignment) / 2)


def test_a_task_that_never_has_a_gradient_and_none_at_all():
    rows = made("aligned")
    rows[:, 2] = 0
    found = osgd_jax.diagnose(gramians_of(rows))
    assert found.norms[2] == 0
    assert found.norm_ratio < 2
    assert np.isnan(found.cosines[2]).all()
    assert "0 and 1" in str(found)
    nothing = osgd_jax.diagnose(np.zeros((5, 2, 2)))
    assert np.isnan([nothing.alignment, nothing.norm_ratio]).all()
    assert "nothing to balance" in str(nothing)


def test_one_task():
    found = osgd_jax.diagnose(np.full((5, 1, 1), 4.0))
    np.testing.assert_allclose(
        [found.alignment, found.norm_ratio, found.norms[0], found.cosines[0, 0]], [1, 1, 2, 1]
    )
    assert "nothing to balance" in str(found)


def test_lines_with_the_names_of_the_tasks():
    rows = made("conflicting")[:, [1, 0, 2]] * np.array([1, 1, 50])[:, None]
    found = osgd_jax.diagnose(gramians_of(rows), LOSSES)
    assert found.tasks == ("bc", "ic", "pde")
    first, second, warning, third = str(found).split("\n")
    assert "50 steps, 3 tasks: alignment" in first
    assert "-0.33 orthogonal" in first
    assert second.startswith(("Most opposed: bc and ic", "Most opposed: bc and pde"))
    assert "negative in 100% of the steps" in second
    assert f"Norms: pde {found.norm_ratio:.3g} times" in second
    assert "do not tell whether the losses agree" in warning
    np.testing.assert_array_equal(found.cosine_intervals, np.tile([-1, 1], (3, 3, 1)))
    np.testing.assert_array_equal(found.noise_intervals, np.tile([0, 1], (3, 1)))
    assert np.isnan(found.unbiased_cosines).all()
    assert "does not tell which method wins" in third


def noisy(rng, true, noise, steps=40):
    """Unbiased and biased Gramians of two halves of each batch, whose losses share their noise.

    Args:
      rng: where the noise is drawn.
      true: gradients `[K, columns]`.
      noise: squared norm of the noise of a half over that of the gradient.
      steps: number of steps.
    """
    num_tasks, columns = true.shape
    mixing = rng.normal(size=(num_tasks, num_tasks)) + rng.choice([0, 2])
    mixing /= np.linalg.norm(mixing, axis=1, keepdims=True)
    mixing *= np.sqrt(noise / columns) * np.linalg.norm(true, axis=1, keepdims=True)
    first, second = true + mixing @ rng.normal(size=(2, steps, num_tasks, columns))
    batch = (first + second) / 2
    return first @ second.transpose(0, 2, 1), batch @ batch.transpose(0, 2, 1)


def cosines_of(rows):
    return unit(rows) @ unit(rows).T


def gradients(rng, num_tasks, columns=40):
    """Gradients of different lengths, from nearly parallel to orthogonal and opposed."""
    common = rng.normal(size=columns) * rng.choice([0, 1, 3])
    signs = rng.choice([-1, 1], size=(num_tasks, 1))
    return (
        signs
        * (rng.normal(size=(num_tasks, columns)) + common)
        * 10.0 ** rng.uniform(-1, 1, (num_tasks, 1))
    )


def test_intervals_cover_the_truth():
    """In one call for the pairs of all cases: `diagnose` makes one for those of each."""
    rng = np.random.default_rng(1)
    triples, cosines, squares, shares = [], [], [], []
    for case in range(1000):
        true = gradients(rng, 2 + case % 4)
        noise = 200 ** rng.uniform(0, 1)
        cross, gramians = noisy(rng, true, noise)
        one, other = np.triu_indices(len(true), 1)
        cross = (cross + cross.transpose(0, 2, 1)) / 2
        triples.append(np.stack([cross[:, one, other], cross[:, one, one], cross[:, other, other]]))
        cosines.append(cosines_of(true)[one, other])
        squares.append([cross[:, 0, 0], gramians[:, 0, 0]])
        # A batch is two halves, so that half of their noise is in its gradient.
        shares.append(1 / (1 + noise / 2))
        if case < 10:
            found = osgd_jax.diagnose(gramians, cross=cross)
            expected = cosine_intervals(np.moveaxis(triples[-1], 0, -1))
            np.testing.assert_allclose(found.cosine_intervals[one, other], expected, atol=1e-4)

    low, high = cosine_intervals(np.moveaxis(np.concatenate(triples, axis=2), 0, -1)).T
    cosines = np.concatenate(cosines)
    hits = (low <= cosines + 1e-4) & (cosines - 1e-4 <= high)
    assert 0.93 <= hits.mean() <= 0.97
    # Also where they tell something, which they often do.
    narrow = high - low < 1
    assert narrow.mean() > 0.3
    assert 0.93 <= hits[narrow].mean() <= 0.97

    low, high = ratio_intervals(*np.moveaxis(np.array(squares), 0, -1)).T
    assert 0.93 <= np.mean((low <= shares) & (shares <= high)) <= 0.97


def test_intervals_are_the_whole_range_where_nothing_can_be_told():
    rng = np.random.default_rng(2)
    true = gradients(rng, 3) * 1e-6
    _, nothing = noisy(rng, true * 1e6, 1)
    cross = rng.normal(size=nothing.shape)
    found = osgd_jax.diagnose(nothing, cross=cross)
    few = osgd_jax.diagnose(nothing[:4], cross=nothing[:4])
    off = ~np.eye(3, dtype=bool)
    np.testing.assert_array_equal(few.cosine_intervals[off], [[-1, 1]] * 6)
    np.testing.assert_array_equal(few.noise_intervals, [[0, 1]] * 3)
    widths = np.diff(found.cosine_intervals[off])
    assert np.median(widths) == 2
    assert "undecided" in str(found)


def test_without_noise_the_intervals_are_points():
    rows = gradients(np.random.default_rng(3), 4)
    rows[3] = rows[2]
    gramians = gramians_of(np.tile(rows, (10, 1, 1)))
    found = osgd_jax.diagnose(gramians, cross=gramians)
    for ends in (found.unbiased_cosines, *np.moveaxis(found.cosine_intervals, 2, 0)):
        np.testing.assert_allclose(ends, cosines_of(rows), atol=1e-4)
    np.testing.assert_allclose(found.noise, 0, atol=1e-9)
    np.testing.assert_allclose(found.noise_intervals, 0, atol=1e-4)
    assert "both kinds of cosine are meaningful" in str(found)


@pytest.mark.parametrize("scale", [1e-18, 1, 1e18])
def test_losses_that_conflict_though_a_batch_says_that_they_agree(scale):
    rng = np.random.default_rng(4)
    true = np.zeros((2, 400))
    true[:, :2] = [[1, 0], [-0.6, 0.8]]
    shared, own = rng.normal(size=(2, 200, 1, 400)), 0.3 * rng.normal(size=(2, 200, 2, 400))
    first, second = scale * (true + (shared + own) / 8)
    batch = (first + second) / 2
    found = osgd_jax.diagnose(gramians_of(batch), LOSSES_OF_TWO, cross=first @ second.mT)
    low, high = found.cosine_intervals[0, 1]
    assert found.cosines[0, 1] > 0.5
    assert -1 < low < -0.6 < high < -0.2
    assert low < found.unbiased_cosines[0, 1] < high
    np.testing.assert_allclose(found.squared_norms, scale**2, rtol=0.3)
    noise = 400 * 1.09 / 64 / 2
    np.testing.assert_allclose(found.noise, noise / (1 + noise), rtol=0.1)
    text = str(found)
    assert "agree: 0, conflict: 1, undecided: 0" in text
    assert f"bc and pde: {found.unbiased_cosines[0, 1]:+.2f} [" in text
    assert f"conflict; same batch {found.cosines[0, 1]:+.2f}" in text
    assert "judge by the unbiased cosines" in text


def test_steps_that_are_not_finite_in_either_are_left_out():
    cross, gramians = noisy(np.random.default_rng(5), gradients(np.random.default_rng(6), 2), 1)
    spoiled = cross.copy()
    spoiled[3, 0, 1] = np.nan
    found = osgd_jax.diagnose(gramians, cross=spoiled)
    rest = osgd_jax.diagnose(np.delete(gramians, 3, 0), cross=np.delete(cross, 3, 0))
    assert (found.steps, found.left_out) == (39, 1)
    np.testing.assert_allclose(found.cosine_intervals, rest.cosine_intervals)


def test_a_task_without_a_gradient_has_no_unbiased_cosine():
    rng = np.random.default_rng(7)
    rows = gradients(rng, 3)
    rows[1] = 0
    cross, gramians = noisy(rng, rows, 1)
    found = osgd_jax.diagnose(gramians, cross=cross)
    assert np.isnan(found.unbiased_cosines[1]).all()
    np.testing.assert_array_equal(found.cosine_intervals[1, [0, 2]], [[-1, 1]] * 2)
    assert np.isnan(found.noise[1])
    assert np.isfinite(found.unbiased_cosines[0, 2])
    assert "unknown" in str(found)


def test_cross_of_other_steps():
    with pytest.raises(
        ValueError, match=r"cross must be of the same steps.*\(4, 2, 2\).*\(5, 2, 2\)"
    ):
        osgd_jax.diagnose(np.ones((4, 2, 2)), cross=np.ones((5, 2, 2)))


@pytest.mark.parametrize(
    ("gramians", "losses", "message"),
    [
        (np.eye(3), None, r"shape \(3, 3\).*\[N, K, K\]"),
        (np.zeros((4, 3, 2)), None, r"shape \(4, 3, 2\)"),
        (np.zeros((0, 3, 3)), None, r"shape \(0, 3, 3\)"),
        (np.zeros((4, 0, 0)), None, r"shape \(4, 0, 0\)"),
        (-np.ones((4, 2, 2)), None, "negative on the diagonal"),
        (np.ones((4, 2, 2)), LOSSES, "3 losses; the Gramians are of 2 tasks"),
    ],
)
def test_wrong_arguments(gramians, losses, message):
    with pytest.raises(ValueError, match=message):
        osgd_jax.diagnose(gramians, losses)
