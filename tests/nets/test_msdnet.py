import pytest
from flax import nnx

from osgd_jax.nets import MSDNet
from osgd_jax.nets.msdnet import classifier_layers


def test_positions_of_the_classifiers():
    assert classifier_layers(4, "even", 4, 2) == (4, 6, 8, 10)
    assert classifier_layers(5, "lin_grow", 1, 1) == (1, 3, 6, 10, 15)
    assert classifier_layers(1, "even", 3, 2) == (3,)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"positions": "odd"}, "positions='odd' must be 'even' or 'lin_grow'"),
        ({"base": 0}, "base=0 must be an integer of at least 1"),
        ({"growth_factors": (1, 2)}, "bottleneck_factors=.* must have one entry"),
        ({"growth_factors": (1, 0, 4)}, r"growth_factors\[1\]=0 must be an integer of at least 1"),
        ({"growth_rate": 3, "growth_factors": (1, 1, 1)}, "must be even"),
        ({"reduction": 0.0}, "reduction=0.0 must be a number above 0 and at most 1"),
        ({"stem": "mnist"}, "stem='mnist' must be 'cifar' or 'imagenet'"),
    ],
)
def test_wrong_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        MSDNet(num_classes=2, rngs=nnx.Rngs(0), **kwargs)
