"""The nets that the study of language models makes for itself."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.study.language import MatFormer
from tests.nets.small_nets import randomise


def test_outputs_of_matformer_are_nets_without_the_later_units():
    sizes = {"vocab_size": 5, "width": 8, "num_heads": 2, "depth": 1, "mlp_ratio": 2}
    net = randomise(MatFormer((0.25, 1.0), **sizes, rngs=nnx.Rngs(0)))
    x = jnp.asarray([[0, 3, 1, 4]])
    run = nnx.jit(lambda net, x: net(x))
    small, whole = run(net, x)
    (plain,) = nnx.jit(lambda net, x: net(x))(net.net, x)
    np.testing.assert_allclose(whole, plain, rtol=1e-5, atol=1e-5)
    assert not np.allclose(small, whole)
    for layer in net.net.stages[0].layers:
        layer.mlp.out.kernel[...] = layer.mlp.out.kernel[...].at[4:].set(0)
    np.testing.assert_allclose(run(net, x), [small, small], rtol=1e-5, atol=1e-5)
