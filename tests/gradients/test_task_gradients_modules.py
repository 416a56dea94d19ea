"""Flax NNX modules among the arguments: as `nnx.value_and_grad` treats them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import osgd_jax
from osgd_jax import nets
from tests.helpers.three_exits import is_rows

INPUTS = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)), jnp.float32)


class Stem(nnx.Module):
    """Layers with every kind of state: averages, random numbers, a count, an intermediate."""

    def __init__(self, rngs, dropout=0.0):
        self.linear = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.calls = nnx.Variable(jnp.zeros((), int))

    def __call__(self, x):
        self.calls[...] += 1
        hidden = nnx.tanh(self.norm(self.linear(x)))
        self.mean = nnx.Intermediate(hidden.mean())
        return self.dropout(hidden)


class Net(nnx.Module):
    """Two outputs; where tied, the second one uses the first one's kernel again."""

    def __init__(self, rngs, dropout=0.0, tied=False):
        self.stem = Stem(rngs, dropout)
        self.first = nnx.Linear(4, 4, rngs=rngs)
        self.heads = nnx.List([nnx.Linear(4, 2, rngs=rngs) for _ in range(2)])
        if tied:
            self.heads[1].kernel = self.heads[0].kernel

    def __call__(self, x):
        hidden = self.stem(x)
        return self.heads[0](hidden), self.heads[1](nnx.tanh(self.first(hidden)))


def losses_of(net, x=INPUTS, scale=1.0):
    return tuple(scale * jnp.mean(output**2) for output in net(x))


def total(losses):
    """The function of the sum, for `nnx.value_and_grad`."""

    def fun(*args, **kwargs):
        return sum(jax.tree.leaves(losses(*args, **kwargs)))

    return fun


def assert_same(ours, theirs):
    """Equal trees: states with the same variables, of the same types, with the same values."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


def summed(grads):
    """The gradient of the sum of the losses, in place of the rows."""
    return jax.tree.map(lambda rows: rows.rows.sum(axis=0), grads, is_leaf=is_rows)


def assert_as_nnx(make_args, losses=losses_of, argnums=0, **kwargs):
    """Gradients, losses and what becomes of the arguments, against the gradient of the sum."""
    ours, theirs = make_args(), make_args()
    values, grads = osgd_jax.value_and_task_grads(losses, argnums)(*ours, **kwargs)
    value, expected = nnx.value_and_grad(total(losses), argnums=argnums)(*theirs, **kwargs)
    np.testing.assert_allclose(sum(jax.tree.leaves(values)), value, rtol=1e-5)
    assert_same(summed(grads), expected)
    assert_same(nnx.state(ours), nnx.state(theirs))

    again = make_args()
    alone = osgd_jax.task_grads(losses, argnums)(*again, **kwargs)
    assert_same(alone, grads)
    assert_same(nnx.state(again), nnx.state(ours))

    before = nnx.state(fresh := make_args())
    reach = osgd_jax.reach(losses, argnums)(*fresh, **kwargs)
    assert_same(nnx.state(fresh), before)
    tasks = jax.tree.map(lambda rows: rows.tasks, grads, is_leaf=is_rows)
    assert jax.tree.leaves(reach) == jax.tree.leaves(tasks)
    return values, grads


NETS = {
    "batch norm": {},
    "dropout": {"dropout": 0.5},
    "shared parameter": {"tied": True},
}


@pytest.mark.parametrize("name", NETS)
def test_equals_the_gradient_of_the_sum(name):
    assert_as_nnx(lambda: (Net(nnx.Rngs(0), **NETS[name]),))


def test_the_reach_is_that_of_the_outputs():
    reach = osgd_jax.reach(losses_of)(Net(nnx.Rngs(0)))
    assert reach["stem"]["linear"]["kernel"].get_value() == (0, 1)
    assert reach["first"]["kernel"].get_value() == (1,)
    assert reach["heads"][0]["kernel"].get_value() == (0,)
    tied = osgd_jax.reach(losses_of)(Net(nnx.Rngs(0), tied=True))
    assert tied["heads"][0]["kernel"].get_value() == (0, 1)
    assert "kernel" not in tied["heads"][1]


def test_state_that_changes():
    net = Net(nnx.Rngs(0), dropout=0.5)
    count = int(net.stem.dropout.rngs.count[...])
    osgd_jax.value_and_task_grads(losses_of)(net)
    assert int(net.stem.calls[...]) == 1
    assert int(net.stem.dropout.rngs.count[...]) == count + 1
    assert np.abs(net.stem.norm.mean[...]).max() > 0
    assert net.stem.mean.shape == ()  # the variable that the call itself has made


def test_keyword_arguments_and_a_module_among_them():
    net, other = Net(nnx.Rngs(0)), Net(nnx.Rngs(1))

    def losses(net, *, target, scale):
        return tuple(
            scale * jnp.mean((a - b) ** 2) for a, b in zip(net(INPUTS), target(INPUTS), strict=True)
        )

    values, grads = osgd_jax.value_and_task_grads(losses)(net, target=other, scale=2.0)
    expected = [Net(nnx.Rngs(0)), Net(nnx.Rngs(1))]
    value, sums = nnx.value_and_grad(
        lambda net, target: sum(losses(net, target=target, scale=2.0))
    )(*expected)
    np.testing.assert_allclose(sum(values), value, rtol=1e-5)
    assert_same(summed(grads), sums)
    assert_same(nnx.state([net, other]), nnx.state(expected))


def test_has_aux():
    def losses(net):
        outputs = net(INPUTS)
        return losses_of(lambda _: outputs), {"outputs": outputs, "calls": net.stem.calls}

    net = Net(nnx.Rngs(0))
    (values, aux), grads = osgd_jax.value_and_task_grads(losses, has_aux=True)(net)
    assert aux["calls"] is net.stem.calls
    np.testing.assert_allclose(values, losses_of(lambda _: aux["outputs"]), rtol=1e-6)
    grads_alone, aux = osgd_jax.task_grads(losses, has_aux=True)(Net(nnx.Rngs(0)))
    assert_same(grads_alone, grads)
    assert int(aux["calls"][...]) == 1
    reach = osgd_jax.reach(losses, has_aux=True)(net)
    assert reach["first"]["bias"].get_value() == (1,)
    assert int(net.stem.calls[...]) == 1


# ---------------------------------------------------------------------------------------------
# Which arguments, which variables
# ---------------------------------------------------------------------------------------------


def of_two(a, b):
    return (*losses_of(a), jnp.mean(a(INPUTS)[0] * b(INPUTS)[1]))


def in_containers(models, x, scale):
    (first,), named = models
    return scale * jnp.mean(first(x)[0] * named["b"](x)[1]), jnp.sum(named["w"] * first(x)[1])


ARGNUMS = {
    "the second": 1,
    "from the end": -1,
    "both": (0, 1),
    "the other way round": [1, 0],
    "NumPy": np.int64(1),
    "kernels": nnx.DiffState(0, nnx.PathContains("kernel")),
    "averages": nnx.DiffState(1, nnx.BatchStat),
    "any of two": (nnx.DiffState(0, (nnx.PathContains("bias"), nnx.BatchStat)), 1),
    "one only": (nnx.DiffState(1, nnx.All(nnx.Param, nnx.PathContains("heads"))),),
}


@pytest.mark.parametrize("name", ARGNUMS)
def test_argnums(name):
    argnums = ARGNUMS[name]
    if name in ("from the end", "NumPy"):  # which nnx.value_and_grad does not take
        grads = osgd_jax.task_grads(of_two, argnums)(Net(nnx.Rngs(0)), Net(nnx.Rngs(1)))
        assert_same(grads, osgd_jax.task_grads(of_two, 1)(Net(nnx.Rngs(0)), Net(nnx.Rngs(1))))
    else:
        assert_as_nnx(lambda: (Net(nnx.Rngs(0)), Net(nnx.Rngs(1))), of_two, argnums)


def test_modules_within_containers():
    def make_args():
        named = {"b": Net(nnx.Rngs(1)), "w": jnp.full(2, 0.5)}
        return ((Net(nnx.Rngs(0)),), named), INPUTS, 2.0

    _, grads = assert_as_nnx(make_args, in_containers)
    assert grads[1]["w"].tasks == (1,)


def test_one_module_as_two_arguments():
    def make_args():
        net = Net(nnx.Rngs(0))
        return net, net

    _, grads = assert_as_nnx(make_args, of_two, (0, 1))
    assert not jax.tree.leaves(grads[1])


def test_a_variable_and_random_numbers_as_arguments():
    def losses(scale, rngs, calls):
        calls[...] += 1
        noise = jax.random.normal(rngs(), (3,))
        return jnp.sum(scale * noise), jnp.sum(scale**2)

    _, grads = assert_as_nnx(
        lambda: (nnx.Param(jnp.ones(3)), nnx.Rngs(0), nnx.Variable(jnp.zeros(()))), losses
    )
    assert isinstance(grads, nnx.Param)


def test_what_is_differentiated_must_be_real_arrays():
    net = Net(nnx.Rngs(0), dropout=0.5)
    everything = nnx.DiffState(0, ...)
    with pytest.raises(ValueError, match=r"parameter\['stem'\]\['calls'\].* has dtype int32"):
        osgd_jax.task_grads(losses_of, everything)(net)


def test_after_an_error_the_module_is_as_it_was():
    def losses(net):
        net(INPUTS)
        raise RuntimeError

    net = Net(nnx.Rngs(0))
    with pytest.raises(RuntimeError):
        osgd_jax.task_grads(losses)(net)
    assert_same(nnx.state(net), nnx.state(Net(nnx.Rngs(0))))
    assert_as_nnx(lambda: (Net(nnx.Rngs(0)),))


# ---------------------------------------------------------------------------------------------
# In training steps
# ---------------------------------------------------------------------------------------------


def sum_step(net, optimizer):
    value, grads = nnx.value_and_grad(total(losses_of))(net)
    optimizer.update(net, grads)
    return value


def our_step(net, optimizer):
    losses, grads = osgd_jax.value_and_task_grads(losses_of)(net)
    optimizer.update(net, grads)
    return sum(losses)


@pytest.mark.parametrize("compiled", [False, True])
def test_steps_with_an_optimizer(compiled):
    """With the weighting `sum` three steps are those of the gradient of the sum."""
    transform = nnx.jit if compiled else lambda step: step
    results = []
    for step, balance in [
        (our_step, osgd_jax.aggregate(osgd_jax.weightings.sum())),
        (sum_step, optax.identity()),
    ]:
        net = Net(nnx.Rngs(0), dropout=0.5, tied=True)
        tx = optax.chain(balance, optax.sgd(0.1, momentum=0.9))
        optimizer = nnx.Optimizer(net, tx, wrt=nnx.Param)
        values = [transform(step)(net, optimizer) for _ in range(3)]
        results.append((jnp.stack(values), nnx.state(net)))
    assert_same(*results)


def test_an_optimizer_of_some_variables_takes_their_gradients():
    kernels = nnx.PathContains("kernel")
    net = Net(nnx.Rngs(0))
    before = nnx.state(Net(nnx.Rngs(0)), nnx.Param)
    tx = osgd_jax.aggregate(osgd_jax.weightings.sum())
    optimizer = nnx.Optimizer(net, optax.chain(tx, optax.sgd(0.1)), wrt=kernels)
    optimizer.update(net, osgd_jax.task_grads(losses_of, nnx.DiffState(0, kernels))(net))
    gradient = nnx.grad(total(losses_of))(Net(nnx.Rngs(0)))
    expected = jax.tree.map_with_path(
        lambda path, p, g: p - 0.1 * g if "kernel" in jax.tree_util.keystr(path) else p,
        before,
        gradient,
    )
    assert_same(nnx.state(net, nnx.Param), expected)


def test_an_optimizer_passes_losses_on():
    net = Net(nnx.Rngs(0))
    famo = osgd_jax.aggregate(osgd_jax.weightings.famo(num_tasks=2))
    optimizer = nnx.Optimizer(net, optax.chain(famo, optax.sgd(0.1)), wrt=nnx.Param)
    losses, grads = osgd_jax.value_and_task_grads(losses_of)(net)
    state = famo.init(params := nnx.as_pure(nnx.state(Net(nnx.Rngs(0)), nnx.Param)))
    direction, _ = famo.update(nnx.as_pure(grads), state, params, losses=losses)
    updates = optimizer.update(net, grads, losses=losses)
    assert_same(updates, jax.tree.map(lambda leaf: -0.1 * leaf, direction))


def test_under_jit_with_split_and_merge():
    graphdef, state = nnx.split(Net(nnx.Rngs(0), dropout=0.5))

    @jax.jit
    def step(state):
        net = nnx.merge(graphdef, state, copy=True)
        losses, grads = osgd_jax.value_and_task_grads(losses_of)(net)
        return losses, grads, nnx.state(net)

    net = Net(nnx.Rngs(0), dropout=0.5)
    assert_same(step(state), (*osgd_jax.value_and_task_grads(losses_of)(net), nnx.state(net)))


def test_gradients_come_out_of_a_compiled_function():
    compiled = nnx.jit(lambda net: osgd_jax.value_and_task_grads(losses_of)(net))
    net, other = Net(nnx.Rngs(0)), Net(nnx.Rngs(0))
    assert_same(compiled(net), osgd_jax.value_and_task_grads(losses_of)(other))
    assert_same(nnx.state(net), nnx.state(other))


def test_within_nnx_grad():
    """Differentiated again, by the parameters."""

    def penalty(net):
        return sum(
            jnp.sum(leaf**2) for leaf in jax.tree.leaves(osgd_jax.task_grads(losses_of)(net))
        )

    net = Net(nnx.Rngs(0))
    grads = nnx.grad(penalty)(net)
    assert int(net.stem.calls[...]) == 1
    kernel = net.first.kernel[...]
    direction = jnp.asarray(np.random.default_rng(0).normal(size=kernel.shape), jnp.float32)
    values = []
    for size in (1e-2, -1e-2):
        net = Net(nnx.Rngs(0))
        net.first.kernel[...] = kernel + size * direction
        values.append(penalty(net))
    slope = jnp.sum(grads["first"]["kernel"][...] * direction)
    np.testing.assert_allclose(slope, (values[0] - values[1]) / 2e-2, rtol=2e-2)


def test_averages_are_as_good_in_evaluation_as_in_training():
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=96)
    x = jnp.asarray(
        rng.normal(2, 1, size=(96, 8, 1)) * (1 + 2 * labels[:, None, None]), jnp.float32
    )
    net = nets.WidthNestedResNet(
        num_classes=3,
        num_outputs=2,
        in_channels=1,
        spatial_dims=1,
        widths=(8,),
        blocks=(1,),
        rngs=nnx.Rngs(0),
    )
    optimizer = nnx.Optimizer(net, osgd_jax.osgd(0.1), wrt=nnx.Param)

    def losses(net):
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels
        return tuple(cross_entropy(logits, labels).mean() for logits in net(x))

    @nnx.jit
    def step(net, optimizer):
        optimizer.update(net, osgd_jax.task_grads(losses)(net))

    def accuracies(net):
        return np.array([np.mean(logits.argmax(-1) == labels) for logits in net(x)])

    for _ in range(60):
        step(net, optimizer)
    # A view in the mode of evaluation; the training call moves the averages of the net itself.
    evaluated = accuracies(nnx.view(net, use_running_average=True))
    trained = accuracies(net)
    assert trained.min() > 0.8
    np.testing.assert_allclose(evaluated, trained, atol=0.05)
