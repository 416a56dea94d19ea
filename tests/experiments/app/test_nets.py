"""Nets with the sizes of a preset."""

import pytest
from flax import nnx

import osgd_jax
from experiments.app.data import Dataset
from experiments.app.nets import Sizes, make_net
from osgd_jax.nets import presets


@pytest.mark.parametrize(
    "sizes",
    [
        Sizes("msdnet", 4, preset="cifar-msdnet-budgeted-10"),
        Sizes("nested", 3, preset="cifar-nested-26"),
        Sizes("depth-nested-transformer", 2, preset="lm-depth-10m"),
    ],
    ids=lambda sizes: sizes.preset,
)
def test_a_preset_gives_its_sizes(sizes):
    preset = presets.PRESETS[sizes.preset]
    shape = preset.input_shape
    classes = preset.arguments.get("num_classes") or preset.arguments["vocab_size"]
    blank = Dataset("blank", classes, None, None, None, input_shape=shape)
    made = nnx.eval_shape(lambda: make_net(sizes, blank, nnx.Rngs(0)))
    expected = nnx.eval_shape(lambda: presets.make(sizes.preset, rngs=nnx.Rngs(0)))
    assert osgd_jax.cost(made, shape) == osgd_jax.cost(expected, shape)


def test_a_preset_of_another_net_is_refused_with_what_it_needs():
    with pytest.raises(ValueError, match="preset=resnet must be one of cifar-branched-20"):
        Sizes(preset="resnet")
    with pytest.raises(ValueError, match="give --net msdnet --outputs 5 --stem imagenet, too"):
        Sizes("msdnet", 5, preset="imagenet-msdnet-20")
    with pytest.raises(ValueError, match="give --net nested --outputs 3 --stem cifar, too"):
        Sizes("depth-nested", preset="cifar-nested-26")
