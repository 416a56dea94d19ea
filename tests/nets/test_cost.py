"""Costs of the families, without any work done twice."""

import jax
import numpy as np
import pytest
from flax import nnx

from osgd_jax import cost, nets
from osgd_jax.nets import presets
from tests.nets.small_nets import FAMILIES, TRANSFORMERS, build, example_for


def abstract(make, **kwargs):
    return nnx.eval_shape(lambda: make(num_classes=10, rngs=nnx.Rngs(0), **kwargs))


def blocks_of(net, kind):
    return sum(isinstance(node, kind) for _, node in nnx.iter_graph(net))


@pytest.mark.parametrize("family", FAMILIES)
def test_no_work_is_done_twice(family):
    """The compiler merges what is computed twice in one program, but not across programs."""
    net = build(family, 2, **({} if family in TRANSFORMERS else {"norm": "group"}))
    net.eval()
    x = example_for(family)
    graphdef, state = nnx.split(net)

    def flops(function, *args):
        return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]

    def whole(state, x):
        return nnx.merge(graphdef, state)(x)

    staged, carry = 0, net.start(x)
    for k in range(3):

        def stage(state, carry, k=k):
            return nnx.merge(graphdef, state).advance(k, carry)

        staged += flops(stage, state, carry)
        _, carry = jax.eval_shape(stage, state, carry)
    # Less is possible: in one program the compiler repeats cheap work to fuse it. So is a bit more:
    # a head and the next block normalise by the same means.
    assert staged <= 1.02 * flops(whole, state, x)


@pytest.mark.parametrize("family", FAMILIES)
def test_cost_of_an_output_is_that_of_its_subnetwork(family):
    net = build(family, 2)
    shape = example_for(family).shape[1:]
    costs = cost(net, shape)
    for k in range(3):
        assert cost(net.subnetwork(k), shape) == costs[: k + 1]
        sizes = [leaf.size for leaf in jax.tree.leaves(nnx.state(net.subnetwork(k), nnx.Param))]
        assert costs[k].parameters == sum(sizes)


def test_depth_doubles():
    net = abstract(nets.DepthNestedResNet, num_outputs=4, blocks=(1, 2, 1))
    depths = [blocks_of(net.subnetwork(k), nets.ResidualBlock) for k in range(4)]
    assert depths == [4, 8, 16, 32]
    work = [entry.multiply_adds for entry in cost(net, (32, 32, 3))]
    ratios = np.divide(work[1:], work[:-1])
    # A little under two since the first convolution is shared.
    assert np.all((ratios > 1.9) & (ratios < 2))


def test_width_grows_by_the_fractions():
    net = abstract(nets.WidthNestedResNet, widths=(64, 128), blocks=(4, 4))
    work = [entry.multiply_adds for entry in cost(net, (32, 32, 3))]
    # Block triangular: Σ w_k · s_k for cumulative widths w and stripes s, against w².
    expected = np.cumsum([1 * 1, 2 * 1, 4 * 2])
    np.testing.assert_allclose(np.divide(work, work[-1]), expected / expected[-1], rtol=0.05)


def test_nested_grows_about_fourfold():
    net = abstract(nets.NestedResNet, num_outputs=4, widths=(64, 128), blocks=(1, 1))
    work = [entry.multiply_adds for entry in cost(net, (32, 32, 3))]
    ratios = np.divide(work[1:], work[:-1])
    assert np.all((ratios > 3) & (ratios < 4.5))


def test_residual_nets_cost_what_is_published():
    # He et al. 2016 (arXiv 1512.03385): 0.27 million parameters, 41 million multiply-adds.
    net = nnx.eval_shape(lambda: presets.make("cifar-branched-20", num_outputs=1, rngs=nnx.Rngs(0)))
    (entry,) = cost(net, (32, 32, 3))
    assert entry.parameters == pytest.approx(0.27e6, rel=0.01)
    assert entry.multiply_adds == pytest.approx(41e6, rel=0.01)
    # With the stride in the 3×3 convolution, as torchvision has it: 25.6 million and 4.1 billion.
    net = nnx.eval_shape(
        lambda: presets.make("imagenet-branched-50", num_outputs=1, rngs=nnx.Rngs(0))
    )
    (entry,) = cost(net, (224, 224, 3))
    assert entry.parameters == pytest.approx(25.6e6, rel=0.01)
    assert entry.multiply_adds == pytest.approx(4.1e9, rel=0.01)


def test_msdnet_costs_what_is_published():
    # What the authors' PyTorch code prints for its ImageNet net of step 7, whose first classifier
    # stands after layer 7 (kalviny/MSDNet-PyTorch, issue 10): 3253.79 million operations at the
    # last output, one for each ReLU included. Its earlier outputs have no lazy evaluation.
    net = nnx.eval_shape(lambda: presets.make("imagenet-msdnet-35", rngs=nnx.Rngs(0)))
    costs = cost(net, (224, 224, 3))
    published = [8.76e6, 20.15e6, 31.73e6, 41.86e6, 62.31e6]
    np.testing.assert_allclose(costs[-1].parameters, published[-1], rtol=1e-3)
    np.testing.assert_allclose(costs[-1].multiply_adds, 3253.79e6, rtol=0.01)
    for entry, parameters in zip(costs, published, strict=True):
        assert 0.97 * parameters < entry.parameters < 1.001 * parameters
