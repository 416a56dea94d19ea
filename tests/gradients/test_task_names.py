"""Arguments for each task: by name as by position, which only an order that was written allows."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import osgd_jax
from osgd_jax import weightings

# JAX numbers these bc, ic, pde; no argument below is the same in both orders.
WRITTEN = ("pde", "ic", "bc")
PARAMS = {"w": jnp.array([0.3, -0.8, 1.1, 0.4]), "b": jnp.array(0.7)}


def losses_of(params):
    w, b = params["w"], params["b"]
    return {
        "pde": jnp.sum((w * jnp.array([1.0, 2.0, 0.5, 1.0]) - b) ** 2),
        "ic": jnp.sum(jnp.cos(w + jnp.arange(4))) + 4,
        "bc": jnp.sum((w[:2] - 2 * w[2:]) ** 2) + b**2,
    }


def in_a_tuple(params):
    return tuple(losses_of(params)[name] for name in WRITTEN)


def by_weighting(make):
    return lambda *arguments: osgd_jax.aggregate(make(*arguments))


NUMBERS = (1.0, 0.25, 3.0)
# What makes a transformation, and its arguments by name and by position.
ARGUMENTS = {
    "weights": (by_weighting(weightings.constant), [NUMBERS]),
    "preference of upgrad": (by_weighting(weightings.upgrad), [NUMBERS]),
    "preference of dualproj": (by_weighting(weightings.dualproj), [NUMBERS]),
    "preference of config": (by_weighting(weightings.config), [NUMBERS]),
    "preference of aligned_mtl": (by_weighting(weightings.aligned_mtl), [NUMBERS]),
    "preference of stch": (by_weighting(lambda p: weightings.stch(1.0, p)), [NUMBERS]),
    "what smooth is given": (
        by_weighting(lambda p: weightings.smooth(weightings.upgrad(p), 3, 0.5)),
        [NUMBERS],
    ),
    "leak": (lambda leak: osgd_jax.graddrop(0, leak), [(0.1, 0.9, 0.5)]),
    "max_norm": (
        lambda norms: optax.chain(osgd_jax.clip_task_norms(norms), osgd_jax.aggregate(sum_())),
        [(0.1, 2.0, 0.5)],
    ),
}


def sum_():
    return weightings.sum()


def by_name(values):
    return dict(zip(WRITTEN, values, strict=True))


@pytest.fixture(scope="module")
def gradients():
    """Losses and gradients: of the dict, of the tuple, and of the dict without names."""
    named = jax.jit(osgd_jax.value_and_task_grads(losses_of))(PARAMS)
    written = jax.jit(osgd_jax.value_and_task_grads(in_a_tuple))(PARAMS)
    return named, written, (named[0], osgd_jax.densify(named[1]))


def update(tx, losses, grads):
    return tx.update(grads, tx.init(PARAMS), PARAMS, losses=losses)[0]


def assert_close(found, expected):
    jax.tree.map(
        lambda f, e: np.testing.assert_allclose(f, e, rtol=2e-5, atol=1e-6), found, expected
    )


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_numbers_by_name_are_those_by_position(argument, gradients):
    make, (values,) = ARGUMENTS[argument]
    named, written, dense = gradients
    expected = update(make(values), *written)
    if argument != "leak":  # it draws for each number in the parameters, whatever the tasks
        assert not np.allclose(update(make(values[::-1]), *written)["w"], expected["w"])
    for losses, grads in (named, dense):
        assert_close(update(make(by_name(values)), losses, grads), expected)
        # The order of the keys is of no account.
        again = make(dict(reversed(by_name(values).items())))
        assert_close(update(again, losses, grads), expected)
        with pytest.raises(
            ValueError, match=r"goes by the position .*sorts: the losses 'bc', 'ic'"
        ):
            update(make(values), losses, grads)
        for wrong in ({"pde": 1.0, "ic": 1.0}, by_name(values) | {"data": 1.0}):
            with pytest.raises(
                ValueError, match="must name each of the losses 'bc', 'ic', 'pde' o"
            ):
                update(make(wrong), losses, grads)
        update(make((0.5,) * 3), losses, grads)
    if "stch" not in argument:
        assert_close(update(make(by_name(values)), None, named[1]), expected)
        with pytest.raises(ValueError, match=r"must name each .* pass the losses"):
            update(make(by_name(values)), None, dense[1])


def test_numbers_may_be_traced_and_nested(gradients):
    _, grads = gradients[0]
    expected = update(osgd_jax.aggregate(weightings.constant(by_name(NUMBERS))), None, grads)

    @jax.jit
    def traced(numbers):
        return update(osgd_jax.aggregate(weightings.constant(by_name(numbers))), None, grads)

    assert_close(traced(NUMBERS), expected)

    def nested(params):
        pde, ic, bc = in_a_tuple(params)
        return {"pde": pde, "conditions": {"ic": ic, "bc": bc}}

    grads = osgd_jax.task_grads(nested)(PARAMS)
    for weights in (
        {"pde": 1.0, "conditions": {"ic": 0.25, "bc": 3.0}},
        {"conditions/ic": 0.25, "pde": 1.0, "conditions/bc": 3.0},
    ):
        tx = osgd_jax.aggregate(weightings.constant(weights))
        assert_close(update(tx, None, grads), expected)


def test_pcd_by_name(gradients):
    named, written, dense = gradients

    def pcd(tau, primary):
        return osgd_jax.aggregate(weightings.pcd(3, tau, primary=primary))

    expected = update(pcd((0.1, 0.6), 1), *written)  # ic, with shares for pde and bc
    assert not np.allclose(update(pcd((0.6, 0.1), 1), *written)["w"], expected["w"])
    for losses, grads in (named, dense):
        assert_close(update(pcd({"bc": 0.6, "pde": 0.1}, "ic"), losses, grads), expected)
        for tau, primary, words in (
            (0.1, 0, "primary=0 goes by the position .* Name them: primary='pde'"),
            ((0.1, 0.6), "ic", r"tau=\(0.1, 0.6\) goes by the position .*'bc', 'pde'\. Name them"),
            ({"ic": 0.1, "pde": 0.1}, "ic", "tau=.* must name each of the losses 'bc', 'pde' once"),
            (0.1, "data", "primary='data' must be one of the losses 'bc', 'ic', 'pde'"),
        ):
            with pytest.raises(ValueError, match=words):
                update(pcd(tau, primary), losses, grads)
        update(pcd(0.1, "ic"), losses, grads)


@pytest.mark.parametrize("hold", [(), ("ic",), ("bc", "pde")])
def test_orders_and_holds_by_name(hold, gradients):
    named, written, dense = gradients
    order, indices = ("ic", "bc", "pde"), (1, 2, 0)
    held = [WRITTEN.index(name) for name in hold]
    expected = update(osgd_jax.orthogonalize(indices, hold=held), *written)
    for make in (
        lambda: osgd_jax.orthogonalize(order, hold=hold),
        lambda: osgd_jax.osgd(-1.0, order=iter(order), hold=iter(hold)),
        lambda: osgd_jax.aggregate(weightings.orthogonal(order, hold)),
    ):
        assert_close(update(make(), None, named[1]), expected)
        assert_close(update(make(), *named), expected)
        assert_close(update(make(), *dense), expected)
    random = osgd_jax.orthogonalize("random", key=0, hold=hold)
    update(random, *named)


def test_names_of_losses_name_the_tasks_of_a_tuple(gradients):
    _, (_, grads), _ = gradients
    named = dict(zip(("a", "b", "c"), (1.0, 2.0, 3.0), strict=True))
    expected = update(osgd_jax.orthogonalize((2, 0, 1)), None, grads)
    assert_close(update(osgd_jax.orthogonalize(("c", "a", "b")), named, grads), expected)


def test_momenta_of_named_tasks():
    one = osgd_jax.task_momenta(WRITTEN, 0.5)
    tx = optax.chain(one, osgd_jax.orthogonalize(("ic", "bc", "pde")))
    by_index = optax.chain(osgd_jax.task_momenta(3, 0.5), osgd_jax.orthogonalize((1, 2, 0)))
    states = tx.init(PARAMS), by_index.init(PARAMS)
    for name in ("ic", "pde", "bc", "ic"):
        grad = jax.grad(lambda params, name=name: losses_of(params)[name])(PARAMS)
        found, first = tx.update(grad, states[0], task=name)
        expected, second = by_index.update(grad, states[1], task=WRITTEN.index(name))
        states = first, second
        assert_close(found, expected)
    assert one.update(grad, one.init(PARAMS), task=0)[0]["w"].names == WRITTEN
    for tasks in (WRITTEN, 3):
        tx = osgd_jax.m_config(0.1, tasks)
        with pytest.raises(ValueError, match="task='data' must be one of the losses"):
            tx.update(grad, tx.init(PARAMS), task="data")
