"""The baseline of nested Transformers is a plain one, and its work is counted."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import osgd_jax
from experiments.benchmark import generator, plain_transformer
from osgd_jax import nets
from tests.nets.small_nets import randomise

SIZES = plain_transformer.Sizes(5, heads=2, head_dim=4, units=16, depth=2)


def params_of(net):
    """Return the parameters of a branched Transformer in the form of the plain one."""
    (stage,) = net.stages
    layers = [
        {
            "norm_1": layer.attention.norm.scale[...],
            "qkv": layer.attention.project.kernel[...],
            "out": layer.attention.out.kernel[...],
            "norm_2": layer.mlp.norm.scale[...],
            "up": layer.mlp.project.kernel[...],
            "down": layer.mlp.out.kernel[...],
        }
        for layer in stage.layers
    ]
    ends = {"embedding": stage.embedding.table[...], "head": stage.head.product.kernel[...]}
    return {**ends, "layers": layers, "norm": stage.head.norm.scale[...]}


def test_the_plain_transformer_is_a_branched_one_with_one_output():
    sizes = {"width": 8, "num_heads": 2, "depth": 2, "mlp_ratio": 2}
    net = randomise(
        nets.BranchedTransformer(vocab_size=5, num_outputs=1, **sizes, rngs=nnx.Rngs(0))
    )
    decoder = plain_transformer.Decoder(SIZES, 8)
    decoder._params = params_of(net)
    prompt = np.array([1, 4, 2], np.int32)
    text = [*prompt, *decoder.stream(prompt, 5)]
    (logits,) = nnx.jit(lambda net, x: net(x))(net, jnp.asarray([text]))
    np.testing.assert_array_equal(logits[0, 2:-1].argmax(-1), text[3:])
    plain, _ = jax.jit(lambda params, x: plain_transformer.forward(SIZES, params, x))(
        params_of(net), jnp.asarray([text])
    )
    np.testing.assert_allclose(plain, logits, rtol=1e-5, atol=1e-5)
    (cost,) = osgd_jax.cost(net, (6,))
    assert cost.multiply_adds == 6 * SIZES.multiply_adds(6)


def test_sizes_are_of_about_the_work_that_is_asked_for():
    for work in (1e5, 1e6, 1e8):
        sizes = plain_transformer.sizes_for(work, vocab_size=256, head_dim=32, depth=4, length=64)
        assert abs(sizes.multiply_adds(64) / work - 1) < 0.02
        assert 1 < sizes.units / sizes.width < 6


def test_each_stage_runs_up_to_the_last_token_that_needs_it():
    config = generator.Config(prompt=4)
    positions = generator._positions(np.array([0, 2, 1, 0]), config)
    np.testing.assert_array_equal(positions, [7, 6, 5])
    np.testing.assert_array_equal(generator._positions(np.array([0, 0]), config), [5, 0, 0])
