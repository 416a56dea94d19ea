"""Many losses from one operation are pulled back together; their rows are those of `jax.jacrev`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import osgd_jax

K = 9
rng = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


PARAMS = {
    "w1": normal(6, 5),
    "b1": normal(5),
    "w2": normal(5, 4),
    "heads": normal(K, 5, 3),
    "kernel": normal(3, 3, 2, 4),
    "offsets": normal(K),
    "unused": normal(2),
}
X, IMAGES = normal(K, 6), normal(K, 4, 4, 2)
LABELS = jnp.arange(K) % 4


def hidden(p, x):
    return jnp.tanh(x @ p["w1"] + p["b1"])


def one_example(p, x, label):
    return -jax.nn.log_softmax(hidden(p, x) @ p["w2"])[label]


def each_example(p):
    entropies = jax.nn.log_softmax(jax.jit(hidden)(p, X) @ p["w2"])
    return -jnp.take_along_axis(entropies, LABELS[:, None], axis=1)[:, 0]


def mapped_examples(p):
    return jax.vmap(one_example, in_axes=(None, 0, 0))(p, X, LABELS)


def normalised_over_examples(p):
    h = hidden(p, X)
    h = (h - h.mean(axis=0)) / jnp.sqrt(h.var(axis=0) + 1e-3)
    return jnp.mean((h @ p["w2"]) ** 2, axis=1) + p["offsets"]


def mapped_heads(p):
    h = hidden(p, X)
    return jax.vmap(lambda head: jnp.mean((h @ head) ** 2))(p["heads"])


def convolved(p):
    maps = jax.lax.conv_general_dilated(
        IMAGES, p["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    pooled = jax.lax.reduce_window(maps, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return jnp.mean(jnp.transpose(pooled, (0, 3, 1, 2)).reshape(K, -1) ** 2, axis=1)


def multiplied(p):
    return normal(K, K) @ jnp.sin(p["offsets"])


def scanned(p):
    step = functools.partial(lambda weights, _, h: jnp.tanh(h @ weights), p["w1"][:5])
    return jnp.sum(jax.lax.fori_loop(0, 2, step, X[:, :5]), axis=1)


LOSSES = [
    each_example,
    mapped_examples,
    normalised_over_examples,
    mapped_heads,
    convolved,
    multiplied,
    scanned,
    lambda p: p["offsets"],
    lambda p: jnp.ones(K),
]


@pytest.mark.parametrize("losses", LOSSES)
def test_rows_are_those_of_jacrev(losses):
    constant = rng.bit_generator.state
    values, grads = jax.jit(osgd_jax.value_and_task_grads(losses))(PARAMS)
    rng.bit_generator.state = constant
    expected = jax.jit(jax.jacrev(losses))(PARAMS)
    assert values.shape == (K,)
    for name, rows in osgd_jax.densify(grads).items():
        np.testing.assert_allclose(rows, expected[name], rtol=1e-4, atol=1e-5)
        is_reached = np.any(expected[name] != 0)
        assert grads[name].tasks == (tuple(range(K)) if is_reached else ())


# ---------------------------------------------------------------------------------------------
# Losses that are followed to their own example, whose net takes the whole batch
# ---------------------------------------------------------------------------------------------


def merged_with_another_axis(p, x):
    tokens = jnp.stack([x, 2 * x, x * x], axis=1)
    h = hidden(p, tokens.reshape(-1, x.shape[1])).reshape(len(x), 3, -1)
    return jnp.mean((h @ p["w2"]) ** 2, axis=(1, 2))


def along_a_later_axis(p, x):
    h = jnp.tanh(p["w1"].T @ x.T)
    return jnp.sum(jnp.cumsum(p["w2"].T @ h, axis=0) ** 2, axis=0)


def scanned_over_time(p, x):
    def step(carry, x):
        state, total, count = carry
        state = jnp.tanh(state @ p["w1"][:5] + x[:, None] * p["b1"])
        return (state, total + state[:, 0] / (count + 1), count + 1), state

    start = jnp.zeros((len(x), 5)), jnp.zeros(len(x)), 0.0
    (_, total, _), states = jax.lax.scan(step, start, x.T)
    return total + jnp.sum(states[-1] ** 2, axis=1)


def computed_again(p, x):
    def layer(p, x):
        h = jax.jit(hidden)(p, x)
        return jax.lax.fori_loop(0, 2, lambda i, h: jnp.tanh(h @ p["w1"][:5] + i), h)

    return jnp.sum(jax.checkpoint(layer)(p, x) ** 2, axis=1)


def by_a_branch(p, x):
    h = jax.lax.cond(p["b1"][0] > 0, hidden, lambda p, x: x @ p["w1"], p, x)
    return jnp.sum((h @ p["w2"]) ** 2, axis=1)


def into_elements(p, x):
    h = hidden(p, x).at[:, 1].add(x[:, 0])
    rows = jax.vmap(lambda h, i: h.at[i].set(0.0))(h, jnp.argmax(x, axis=1) % 5)
    return jnp.sum(jnp.pad(jnp.flip(rows, 1), ((0, 0), (0, 1)))[:, 1:] ** 2, axis=1)


FOLLOWED = [
    merged_with_another_axis,
    along_a_later_axis,
    scanned_over_time,
    computed_again,
    by_a_branch,
    into_elements,
]


@pytest.mark.parametrize("losses", FOLLOWED)
def test_a_loss_is_pulled_back_through_its_own_slice(losses):
    def ours(p):
        return osgd_jax.densify(osgd_jax.task_grads(losses)(p, X))

    def by_example(p):
        return jax.vmap(jax.grad(lambda p, x: losses(p, x[None])[0]), in_axes=(None, 0))(p, X)

    actual, expected = jax.jit(lambda p: (ours(p), jax.jacrev(losses)(p, X)))(PARAMS)
    for name, rows in actual.items():
        np.testing.assert_allclose(rows, expected[name], rtol=1e-4, atol=1e-5)
    assert work(ours) <= 1.1 * work(by_example)


def work(function):
    return jax.jit(function).lower(PARAMS).cost_analysis()["flops"]


def test_a_loss_of_each_example_is_pulled_back_through_its_own_slice():
    def by_example(p):
        return jax.vmap(jax.grad(one_example), in_axes=(None, 0, 0))(p, X, LABELS)

    ours = work(lambda p: osgd_jax.densify(osgd_jax.task_grads(each_example)(p)))
    assert ours <= 1.25 * work(by_example)
    assert ours <= 0.7 * work(jax.jacrev(each_example))
