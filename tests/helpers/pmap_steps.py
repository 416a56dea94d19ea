"""The recipe for `jax.pmap`, which `test_frameworks.py` runs on eight devices."""

import jax
import jax.numpy as jnp
import numpy as np

import osgd_jax
from tests.test_frameworks import run

if __name__ == "__main__":
    names = run("`jax.pmap`")
    x, y = names["x"], names["y"]
    params = {"w": jnp.ones((4, 1)), "v": jnp.ones((4, 1))}
    losses = lambda p: names["losses_of"]((x @ p["w"], x @ p["v"]), y)  # noqa: E731
    tx = osgd_jax.osgd(0.1)
    updates, _ = tx.update(osgd_jax.task_grads(losses)(params), tx.init(params), params)
    expected = jax.tree.map(jnp.add, params, updates)
    assert names["params"]["w"].shape == (8, 4, 1)
    for device in range(8):
        found = jax.tree.map(lambda leaf, device=device: leaf[device], names["params"])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)
