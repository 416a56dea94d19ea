"""Several devices: sharded data, sharded parameters, `jax.shard_map`."""

from tests.helpers.run_on_eight import run_on_eight


def test_sharded_steps_are_those_of_one_device():
    run_on_eight("sharded_steps")
