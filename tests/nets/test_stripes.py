import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from osgd_jax import nets
from tests.nets.small_nets import example, randomise


def test_fractions():
    assert nets.geometric_fractions(3) == (0.25, 0.5, 1.0)
    assert nets.geometric_fractions(1) == (1.0,)
    assert np.allclose(nets.geometric_fractions(3, 2**0.5), (0.5, 0.5**0.5, 1))


@pytest.mark.parametrize(
    ("width", "fractions", "sizes"),
    [
        (16, (0.25, 0.5, 1), (4, 4, 8)),
        (8, (0.125, 0.25, 0.5, 1), (1, 1, 2, 4)),
        (64, (0.5, 0.5**0.5, 1), (32, 16, 16)),
        (7, (0.5, 1), (4, 3)),
        (5, (1,), (5,)),
    ],
)
def test_stripe_sizes(width, fractions, sizes):
    assert nets.stripe_sizes(width, fractions) == sizes


def test_wrong_stripes_are_named():
    with pytest.raises(ValueError, match="widths has a level of 2 channels, too narrow for 3"):
        nets.stripe_sizes(2, (0.25, 0.5, 1))
    for fractions in [(0.5, 0.25, 1), (0.5, 1), (0.25, 0.5, 0.9), (0, 0.5, 1)]:
        with pytest.raises(ValueError, match=r"fractions=.* must be 3 cumulative fractions"):
            nets.WidthNestedResNet(num_classes=2, fractions=fractions, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("spatial_dims", [1, 2])
def test_stripes_equal_a_dense_convolution_with_a_block_triangular_mask(spatial_dims):
    sizes_in, sizes_out = (1, 2, 3), (2, 1, 4)
    with jax.enable_x64(True):
        layers = nets.Layers(nnx.Rngs(0), spatial_dims=spatial_dims)
        stripes = [
            nets.StripeConv(layers, sum(sizes_in[:k]), sizes_in[k], sizes_out[k], stride=2)
            for k in range(3)
        ]
        graphdef, params = nnx.split(nnx.List(stripes))
        rng = np.random.default_rng(0)
        x = jnp.asarray(rng.normal(size=(2, *(7, 6)[:spatial_dims], 6)))
        dense_graphdef, dense_params = nnx.split(layers.conv(6, 7, stride=2))
        weights = jnp.asarray(rng.normal(size=nnx.merge(dense_graphdef, dense_params)(x).shape))

        def striped(params, x):
            memory, outputs, start = None, [], 0
            for stripe, size in zip(nnx.merge(graphdef, params), sizes_in, strict=True):
                y, memory = stripe(x[..., start : start + size], memory)
                outputs.append(y)
                start += size
            return (jnp.concatenate(outputs, -1) * weights).sum()

        def masked(params, x):
            spatial = [(0, 0)] * spatial_dims
            columns = [
                jnp.pad(kernel, [*spatial, (0, 6 - kernel.shape[-2]), (0, 0)])
                for kernel in jax.tree.leaves(params)
            ]
            kernel = jnp.concatenate(columns, -1)
            dense = nnx.merge(dense_graphdef, jax.tree.map(lambda _: kernel, dense_params))
            return (dense(x) * weights).sum()

        actual = jax.value_and_grad(striped, argnums=(0, 1))(params, x)
        expected = jax.value_and_grad(masked, argnums=(0, 1))(params, x)
        for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_assembled_nets_have_the_logits_of_each_output(norm, block):
    with jax.enable_x64(True):
        sizes = {"widths": (16, 24), "blocks": (1, 2), "block": block, "norm": norm}
        net = nets.WidthNestedResNet(num_classes=3, in_channels=2, rngs=nnx.Rngs(0), **sizes)
        randomise(net)
        x = example(spatial_dims=2)
        evaluated = {"use_running_average": True, "raise_if_not_found": False}
        logits = nnx.view(net, **evaluated)(x)
        for k in range(3):
            assembled = net.subnetwork(k).assembled()
            (output,) = nnx.view(assembled, **evaluated)(x)
            np.testing.assert_allclose(output, logits[k], rtol=1e-12)


def test_assembled_nets_are_plain_residual_nets_of_copies():
    sizes = {"num_classes": 3, "widths": (8, 16), "blocks": (1, 1)}
    net = nets.WidthNestedResNet(**sizes, rngs=nnx.Rngs(0))
    assembled = net.assembled()
    plain = nets.WidthNestedResNet(**sizes, num_outputs=1, rngs=nnx.Rngs(0))
    shapes = (jax.tree.map(jnp.shape, nnx.to_pure_dict(nnx.state(n))) for n in (assembled, plain))
    assert next(shapes) == next(shapes)
    kernel = assembled.stages[0].blocks[0].block.convs[1].conv.conv.kernel
    np.testing.assert_array_equal(kernel[:, :, 4:, :4], 0)
    before = np.array(kernel)
    randomise(net)
    np.testing.assert_array_equal(kernel, before)


def test_stripes_of_the_whole_net_have_the_fractions():
    net = nets.WidthNestedResNet(num_classes=2, widths=(8, 16), blocks=(1, 1), rngs=nnx.Rngs(0))
    for k, share in enumerate((0.25, 0.5, 1)):
        first, second = net.stages[k].blocks[1].block.convs
        assert first.conv.conv.kernel.shape[-2] == 8 * share
        assert second.conv.conv.kernel.shape[-2] == 16 * share
        assert net.stages[k].head.linear.kernel.shape[0] == 16 * share
