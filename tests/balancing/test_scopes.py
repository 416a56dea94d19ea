"""Scopes: which groups are formed, and that the groups do not interfere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import osgd_jax
from tests.helpers import reference


def rows(seed: int, num_tasks: int = 3, size: int = 8) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=(num_tasks, size)), jnp.float32)


def masked(seed: int, tasks) -> jax.Array:
    mask = np.zeros((3, 1), np.float32)
    mask[list(tasks)] = 1
    return rows(seed) * mask


REACH = {"a": (0, 1, 2), "b": (0, 1, 2), "c": (1, 2), "d": (1, 2), "e": (1,), "f": (2,), "g": ()}
DENSE = {name: masked(i, tasks) for i, (name, tasks) in enumerate(REACH.items())}
PARAMS = {name: jnp.zeros(8) for name in REACH}

GROUPS = {
    "shared": ["abcd"],
    "all": ["abcdefg"],
    "leaf": list("abcdefg"),
    "reach": ["ab", "cd", "e", "f", "g"],
}


def orthogonalized(grads, scope, params=None):
    tx = osgd_jax.orthogonalize(scope=scope)
    return jax.jit(tx.update)(grads, tx.init(params), params)[0]


@pytest.mark.parametrize("form", ["dense", "ragged"])
@pytest.mark.parametrize("scope", GROUPS)
def test_a_group_is_as_if_it_were_alone(scope, form):
    grads = DENSE if form == "dense" else osgd_jax.to_task_rows(DENSE, REACH)
    updates = orthogonalized(grads, scope)
    for group in GROUPS[scope]:
        flat = np.concatenate([DENSE[name] for name in group], axis=1)
        alone = reference.gram_schmidt(flat, range(3)).sum(axis=0)
        update = np.concatenate([updates[name] for name in group])
        np.testing.assert_allclose(update, alone, atol=1e-5)
    for name in set(REACH) - set("".join(GROUPS[scope])):
        np.testing.assert_array_equal(updates[name], DENSE[name].sum(axis=0))


@pytest.mark.parametrize("scope", GROUPS)
def test_named_scopes_are_label_trees(scope):
    groups = GROUPS[scope] + [c for c in REACH if c not in "".join(GROUPS[scope])]
    labels = {name: next(g for g in groups if name in g) for name in REACH}
    expected = orthogonalized(DENSE, scope)
    for argument in (labels, lambda params: {name: labels[name] for name in params}):
        updates = orthogonalized(DENSE, argument, PARAMS)
        jax.tree.map(lambda u, e: np.testing.assert_allclose(u, e, atol=1e-5), updates, expected)


def test_labels_of_any_hashable_kind():
    labels = {"a": 0, "b": "zero", "c": (1, 2), "d": None, "e": 0, "f": 0, "g": 0}
    # A tuple is a label here, since the gradients have an array in its place; None is a label too.
    updates = orthogonalized(DENSE, labels)
    np.testing.assert_allclose(updates["c"], orthogonalized(DENSE, "leaf")["c"], atol=1e-5)


def test_order_of_the_arrays_does_not_matter():
    names = list(REACH)
    by_list = orthogonalized([DENSE[name] for name in names[::-1]], "reach")[::-1]
    expected = orthogonalized(DENSE, "reach")
    for name, update in zip(names, by_list, strict=True):
        np.testing.assert_allclose(update, expected[name], atol=1e-5)


@pytest.mark.parametrize("scope", ["shared", "reach"])
def test_with_debug_nans(scope):
    # Groups that no array belongs to must not make a NaN that nobody reads.
    tx = osgd_jax.orthogonalize(scope=scope)
    with jax.debug_nans(True):
        updates, _ = tx.update(DENSE, tx.init(PARAMS))
    assert all(np.all(np.isfinite(update)) for update in updates.values())


def test_mean_over_all_is_the_gradient_of_the_mean_loss():
    tx = osgd_jax.aggregate(osgd_jax.weightings.mean(), scope="all")
    updates, _ = tx.update(DENSE, tx.init(PARAMS), PARAMS)
    jax.tree.map(
        lambda u, g: np.testing.assert_allclose(u, g.mean(axis=0), atol=1e-6), updates, DENSE
    )


@pytest.mark.parametrize("scope", [*GROUPS, dict.fromkeys(REACH, 0)])
def test_sum_is_the_gradient_of_the_sum_in_every_scope(scope):
    tx = osgd_jax.aggregate(osgd_jax.weightings.sum(), scope=scope)
    for grads in (DENSE, osgd_jax.to_task_rows(DENSE, REACH)):
        updates, _ = jax.jit(tx.update)(grads, tx.init(PARAMS), PARAMS)
        jax.tree.map(
            lambda u, g: np.testing.assert_allclose(u, g.sum(axis=0), atol=1e-6), updates, DENSE
        )


def test_private_parameters_have_weight_one_under_every_weighting():
    tx = osgd_jax.aggregate(osgd_jax.weightings.mean(), scope="shared")
    updates, _ = tx.update(DENSE, tx.init(PARAMS), PARAMS)
    np.testing.assert_array_equal(updates["e"], DENSE["e"][1])
    np.testing.assert_allclose(updates["a"], DENSE["a"].mean(axis=0), atol=1e-6)


# ---------------------------------------------------------------------------------------------
# The same losses, written in other ways
# ---------------------------------------------------------------------------------------------


def parts(params):
    """Two losses through a shared array, each with a head; a third of the first head alone."""
    hidden = jnp.tanh(jnp.linspace(-1, 1, 12).reshape(4, 3) @ params["stem"])
    return (
        jnp.mean((hidden @ params["heads"][0] - 1) ** 2),
        3 * jnp.mean(jnp.abs(hidden @ params["heads"][1] + 0.3) ** 1.5),
        0.2 * jnp.sum(params["heads"][0] ** 2),
    )


def filled(params):
    losses = jnp.zeros(3)
    for k, loss in enumerate(parts(params)):
        losses = losses.at[k].set(loss)
    return losses


WRITTEN = {
    "tuple": parts,
    "stack": lambda params: jnp.stack(parts(params)),
    "at set": filled,
    "checkpoint": jax.checkpoint(lambda params: jnp.stack(parts(params))),
    "matrix": lambda params: jnp.eye(3) @ jnp.stack(parts(params)),
    "map": lambda params: jax.lax.map(
        lambda k: jax.lax.switch(k, [lambda i=i: parts(params)[i] for i in range(3)]), jnp.arange(3)
    ),
    "scan": lambda params: jax.lax.scan(
        lambda carry, k: (carry.at[k].set(jnp.stack(parts(params))[k]), None),
        jnp.zeros(3),
        jnp.arange(3),
    )[0],
}
METHODS = {
    "orthogonal": lambda: osgd_jax.weightings.orthogonal(),
    "mgda": lambda: osgd_jax.weightings.mgda(),
    "upgrad": lambda: osgd_jax.weightings.upgrad((1.0, 2.0, 3.0)),
    "mean": lambda: osgd_jax.weightings.mean(),
    "config": lambda: osgd_jax.weightings.config(),
    "held": lambda: osgd_jax.weightings.orthogonal((2, 0, 1), hold=(2,)),
}


def test_the_update_does_not_depend_on_how_the_losses_are_written(x64):
    rng = np.random.default_rng(0)
    arrays = {"stem": (3, 2), "heads": [(2,), (2,)], "unused": (2,)}
    params = jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape)),
        arrays,
        is_leaf=lambda node: isinstance(node, tuple),
    )
    transformations = {
        (scope, name): osgd_jax.aggregate(make(), scope)
        for scope in GROUPS
        for name, make in METHODS.items()
    }

    @jax.jit
    def updates(grads):
        return {
            key: tx.update(grads, tx.init(params), params)[0] for key, tx in transformations.items()
        }

    dense = jax.jit(jax.jacrev(WRITTEN["stack"]))(params)
    expected = updates(dense)
    reaches = set()
    for name, losses in WRITTEN.items():
        grads = jax.jit(osgd_jax.task_grads(losses))(params)
        reaches.add(str(osgd_jax.reach(losses)(params)))
        found = updates(grads)
        for key in expected:
            for u, e in zip(
                jax.tree.leaves(found[key]), jax.tree.leaves(expected[key]), strict=True
            ):
                np.testing.assert_allclose(u, e, rtol=0, atol=1e-10, err_msg=f"{name}, {key}")
    # Otherwise nothing was tested.
    assert len(reaches) > 1
    np.testing.assert_allclose(
        expected["shared", "mgda"]["heads"][1], dense["heads"][1].sum(axis=0), atol=1e-12
    )
    assert not np.allclose(
        expected["all", "mgda"]["heads"][1], expected["shared", "mgda"]["heads"][1]
    )
