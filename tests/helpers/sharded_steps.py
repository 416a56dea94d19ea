"""Steps on several devices, which `test_sharding.py` runs on eight forced CPU devices.

Each case compares a step over a mesh with the same step on one device.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import osgd_jax

rng = np.random.default_rng(0)
PARAMS = jax.tree.map(
    lambda shape: rng.normal(size=shape).astype(np.float32),
    {"stem": (4, 8), "conv": (2, 2, 8, 8), "heads": [(8,), (8,), (8,), (8,), (8,)]},
    is_leaf=lambda node: isinstance(node, tuple),
)
INPUTS = rng.normal(size=(16, 4)).astype(np.float32)
TX = osgd_jax.osgd(0.1, momentum=0.9)


def losses(params, inputs):
    hidden = jnp.tanh(inputs @ params["stem"])
    hidden = hidden + jnp.tanh(jnp.einsum("bi,hwio->bo", hidden, params["conv"]))
    return tuple(jnp.mean((hidden @ head) ** 2) for head in params["heads"])


def step(params, inputs, loss_fn=losses):
    values, grads = osgd_jax.value_and_task_grads(loss_fn)(params, inputs)
    updates, _ = TX.update(grads, TX.init(params), params)
    dense, _ = TX.update(osgd_jax.densify(grads), TX.init(params), params)
    second = osgd_jax.task_grads(loss_fn)(params, 2 * inputs)
    return jnp.stack(values), grads, updates, dense, osgd_jax.gramian(grads, second)


def assert_close(actual, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), actual, expected
    )


EXPECTED = jax.jit(step)(PARAMS, INPUTS)


def check_sharded_inputs(axis_type):
    mesh = jax.make_mesh((8,), ("d",), axis_types=(axis_type,))
    specs = [
        (P(), P(), P("d")),  # data parallel
        (P(None, "d"), P(None, None, None, "d"), P()),  # parameters over their last axis
        (P(None, "d"), P(None, None, "d"), P()),  # and over another one
    ]
    with jax.set_mesh(mesh):
        for stem, conv, data in specs:
            shardings = {"stem": stem, "conv": conv, "heads": [P()] * 5}
            shardings = jax.tree.map(
                lambda spec: NamedSharding(mesh, spec),
                shardings,
                is_leaf=lambda node: isinstance(node, P),
            )
            params = jax.device_put(PARAMS, shardings)
            inputs = jax.device_put(INPUTS, NamedSharding(mesh, data))
            if axis_type == AxisType.Explicit and conv == P(None, None, "d"):
                continue  # the net itself, contracting a sharded axis, would need out_sharding=
            assert_close(jax.jit(step)(params, inputs), EXPECTED)


def check_losses_of_examples(axis_type):
    """One loss for each example, where the mesh divides the examples."""
    mesh = jax.make_mesh((4, 2), ("d", "m"), axis_types=(axis_type,) * 2)
    params = {name: PARAMS[name] for name in ("stem", "conv")}

    def of_examples(params, inputs):
        hidden = jnp.tanh(inputs @ params["stem"])
        return jnp.mean(jnp.sin(hidden @ params["conv"][0, 0]) ** 2, axis=1)

    def mapped(params, inputs):
        return jax.vmap(lambda x: of_examples(params, x[None])[0])(inputs)

    def tupled(params, inputs):
        return tuple(jnp.mean(of_examples(params, inputs) * k) for k in range(len(inputs)))

    with jax.set_mesh(mesh):
        for num_losses in (4, 8):
            inputs = jax.device_put(INPUTS[:num_losses], NamedSharding(mesh, P("d")))
            for loss_fn in (of_examples, mapped, tupled):
                rows = jax.jit(osgd_jax.task_grads(loss_fn))(params, inputs)
                expected = jax.jacrev(lambda *args, f=loss_fn: jnp.stack([*f(*args)]))(
                    params, INPUTS[:num_losses]
                )
                assert_close(jax.jit(osgd_jax.densify)(rows), expected)
        eager = osgd_jax.densify(osgd_jax.task_grads(of_examples)(params, inputs))
        assert_close(eager, jax.jacrev(of_examples)(params, INPUTS[:8]))


def check_methods_with_a_memory(axis_type):
    """Parameters that not all losses reach, sharded, and what is remembered with them."""
    mesh = jax.make_mesh((8,), ("d",), axis_types=(axis_type,))
    reach = {"all": (0, 1, 2), "some": (1, 2), "own": (0,), "none": ()}
    params = {name: rng.normal(size=(3, 16)).astype(np.float32) for name in reach}
    values = jnp.array([0.5, 1.0, 2.0])
    methods = [osgd_jax.moco(3), osgd_jax.db_mtl(3), osgd_jax.excess_mtl(3), osgd_jax.graddrop(0)]
    methods.append(osgd_jax.aggregate(osgd_jax.weightings.upgrad(), scope="reach"))

    def loss_fn(params):
        sums = {name: jnp.sum(jnp.sin(p)) for name, p in params.items()}
        return tuple(
            sum((k + 1) * sums[name] ** 2 for name, tasks in reach.items() if k in tasks)
            for k in range(3)
        )

    def step(tx, params):
        grads = osgd_jax.task_grads(loss_fn)(params)
        updates, state = tx.update(grads, tx.init(params), params, losses=values)
        updates, _ = tx.update(grads, state, params, losses=values)
        return optax.apply_updates(params, updates)

    with jax.set_mesh(mesh):
        sharded = jax.device_put(params, NamedSharding(mesh, P(None, "d")))
        found = [jax.jit(functools.partial(step, tx))(sharded) for tx in methods]
        for leaf in jax.tree.leaves(found):
            assert leaf.sharding.spec == P(None, "d") or axis_type == AxisType.Auto
    for tx, moved in zip(methods, found, strict=True):
        assert_close(moved, jax.jit(functools.partial(step, tx))(params))


def check_shard_map(averaged_in_loss):
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))

    def averaged(params, inputs):
        return tuple(jax.lax.pmean(loss, "d") for loss in losses(params, inputs))

    def local(params, inputs):
        if averaged_in_loss:
            return step(params, inputs, averaged)
        own = jax.tree.map(lambda p: jax.lax.pcast(p, "d", to="varying"), params)
        values, grads = osgd_jax.value_and_task_grads(losses)(own, inputs)
        second = osgd_jax.task_grads(losses)(own, 2 * inputs)
        values, grads, second = jax.lax.pmean((jnp.stack(values), grads, second), "d")
        updates, _ = TX.update(grads, TX.init(params), params)
        dense, _ = TX.update(osgd_jax.densify(grads), TX.init(params), params)
        return values, grads, updates, dense, osgd_jax.gramian(grads, second)

    mapped = jax.shard_map(local, mesh=mesh, in_specs=(P(), P("d")), out_specs=P())
    assert_close(jax.jit(mapped)(PARAMS, INPUTS), EXPECTED)


if __name__ == "__main__":
    assert len(jax.devices()) == 8
    check_sharded_inputs(AxisType.Auto)
    check_sharded_inputs(AxisType.Explicit)
    check_losses_of_examples(AxisType.Auto)
    check_losses_of_examples(AxisType.Explicit)
    check_methods_with_a_memory(AxisType.Auto)
    check_methods_with_a_memory(AxisType.Explicit)
    check_shard_map(averaged_in_loss=True)
    check_shard_map(averaged_in_loss=False)
