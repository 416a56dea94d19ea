"""Task gradients split over devices inside `jax.shard_map`."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec as P

import osgd_jax
from osgd_jax import weightings
from tests.helpers.run_on_eight import run_on_eight


def test_steps_of_eight_devices_are_those_of_one():
    run_on_eight("data_parallel_steps")


def test_an_axis_outside_of_shard_map_is_an_error():
    tx = osgd_jax.osgd(0.1, axis_name="data")
    grads = {"w": jnp.ones((2, 3))}
    with pytest.raises(NameError, match="unbound axis name: data"):
        jax.jit(tx.update)(grads, tx.init({"w": jnp.ones(3)}))


TRANSFORMATIONS = {
    "orthogonalize": osgd_jax.orthogonalize(),
    "aggregate": osgd_jax.aggregate(weightings.mean(), scope="leaf"),
    "graddrop": osgd_jax.graddrop(0),
    "moco": osgd_jax.moco(2),
    "db_mtl": osgd_jax.db_mtl(2),
    "excess_mtl": osgd_jax.excess_mtl(2),
    "clip_task_norms": osgd_jax.clip_task_norms(1.0),
    "normalize_task_norms": osgd_jax.normalize_task_norms(),
}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_gradients_of_each_device_alone_are_refused(name):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    tx, params = TRANSFORMATIONS[name], jnp.ones(3)

    def step(rows, average):
        rows = jax.lax.pcast(rows, "data", to="varying")
        rows = jax.lax.pmean(rows, "data") if average else rows
        updates, _ = tx.update(rows, tx.init(params), params, losses=jnp.ones(2))
        return updates

    def traced(average):
        mapped = jax.shard_map(
            lambda rows: step(rows, average), mesh=mesh, in_specs=P(), out_specs=P()
        )
        return jax.eval_shape(mapped, jnp.ones((2, 3)))

    tx = optax.with_extra_args_support(tx)
    traced(average=True)
    with pytest.raises(ValueError, match=r"mesh axis 'data'.*jax\.lax\.pmean"):
        traced(average=False)
