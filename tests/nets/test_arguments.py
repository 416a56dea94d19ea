"""Every argument of nets and layers with a wrong type or value: one sentence that names it."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import osgd_jax
from osgd_jax import nets
from osgd_jax.nets import presets

FAMILIES = {
    "branched": nets.BranchedResNet,
    "depth-nested": nets.DepthNestedResNet,
    "width-nested": nets.WidthNestedResNet,
    "nested": nets.NestedResNet,
    "msdnet": nets.MSDNet,
}
TRANSFORMERS = {
    "branched-transformer": nets.BranchedTransformer,
    "depth-nested-transformer": nets.DepthNestedTransformer,
    "width-nested-transformer": nets.WidthNestedTransformer,
    "nested-transformer": nets.NestedTransformer,
}
RESIDUAL = [name for name in FAMILIES if name != "msdnet"]
STRIPED = ["width-nested", "nested"]

OF_ALL = [
    ("rngs", 0, "rngs=0 must be an nnx.Rngs, such as nnx.Rngs(0)."),
    ("rngs", None, "rngs=None must be an nnx.Rngs"),
    ("rngs", nnx.Rngs(dropout=0), "rngs has the streams ['dropout'] and must have 'params'"),
    ("num_classes", "10", "num_classes='10' must be an integer of at least 1."),
    ("num_classes", 10.0, "num_classes=10.0 must be an integer"),
    ("num_outputs", True, "num_outputs=True must be an integer"),
    ("num_outputs", None, "num_outputs=None must be an integer"),
    ("in_channels", (3,), "in_channels=(3,) must be an integer"),
    ("in_channels", np.array([1, 2]), "in_channels=array([1, 2]) must be an integer"),
    ("spatial_dims", 1.0, "spatial_dims=1.0 must be 1 or 2."),
    ("spatial_dims", True, "spatial_dims=True must be 1 or 2."),
    ("spatial_dims", "2", "spatial_dims='2' must be 1 or 2."),
    ("norm", None, "norm=None must be 'batch' or 'group'."),
    ("norm", ["batch"], "norm=['batch'] must be 'batch' or 'group'."),
    ("stem", np.zeros(2), "must be 'cifar' or 'imagenet'."),
    ("dtype", "wide", "dtype='wide' must be a floating dtype"),
    ("dtype", jnp.int32, "must be a floating dtype, such as jnp.float32."),
    ("param_dtype", 32, "param_dtype=32 must be a floating dtype"),
    ("param_dtype", complex, "must be a floating dtype"),
    ("remat", "no", "remat='no' must be True or False."),
]
OF_RESIDUAL = [
    ("widths", 8, "widths=8 must be a sequence of integers, such as (2, 4)."),
    ("widths", (), "widths=() must be a sequence of integers"),
    ("widths", "ab", "widths[0]='a' must be an integer of at least 1."),
    ("widths", (8, 16.0, 32), "widths[1]=16.0 must be an integer"),
    ("widths", (8, 16), "widths=(8, 16) and blocks=(1, 1, 1) must have one entry for each level"),
    ("blocks", 1, "blocks=1 must be a sequence of integers"),
    ("blocks", (1, 0, 1), "blocks[1]=0 must be an integer of at least 1."),
    ("block", 3, "block=3 must be 'basic' or 'bottleneck'."),
]
OF_STRIPED = [
    ("fractions", "ab", "fractions='ab' must be 3 cumulative fractions of the width"),
    ("fractions", 0.5, "fractions=0.5 must be 3 cumulative fractions"),
    ("fractions", (0.5, None, 1), "fractions=(0.5, None, 1) must be 3"),
    ("fractions", (0.25, float("nan"), 1), "fractions=(0.25, nan, 1) must be 3"),
    ("widths", (2, 4, 8), "widths has a level of 2 channels, too narrow for 3 stripes"),
]
OF_MSDNET = [
    ("reduction", 0.01, "reduction=0.01 leaves none of the"),
    ("reduction", "0.5", "reduction='0.5' must be a number above 0 and at most 1."),
    ("reduction", float("nan"), "reduction=nan must be a number above 0"),
    ("channels", 1.5, "channels=1.5 must be an integer"),
    ("step", "2", "step='2' must be an integer"),
    ("growth_rate", None, "growth_rate=None must be an integer"),
    ("growth_factors", 2, "growth_factors=2 must be a sequence of integers"),
    ("bottleneck_factors", (1, 2), "must have one entry for each scale."),
    ("positions", 1, "positions=1 must be 'even' or 'lin_grow'."),
]
OF_TRANSFORMERS = [
    *[case for case in OF_ALL if case[0] in ("rngs", "num_outputs", "dtype", "remat")],
    ("vocab_size", 0, "vocab_size=0 must be an integer of at least 1."),
    ("width", 128.0, "width=128.0 must be an integer"),
    ("width", 126, "width=126 must be an even number of channels for each of the num_heads=4"),
    ("width", 12, "width=12 must be an even number of channels for each of the num_heads=4"),
    ("depth", (1, 2), "depth=(1, 2) must be an integer"),
    ("num_heads", None, "num_heads=None must be an integer"),
    ("mlp_ratio", 0, "mlp_ratio=0 must be a number above 0."),
    ("mlp_ratio", float("inf"), "mlp_ratio=inf must be a number above 0."),
]
OF_STRIPED_TRANSFORMERS = [
    *[case for case in OF_STRIPED if case[0] == "fractions"],
    ("num_heads", 2, "num_heads=2 must be at least num_outputs=3: each output needs at least one"),
]
CASES = [(family, *case) for family in FAMILIES for case in OF_ALL]
CASES += [(family, *case) for family in RESIDUAL for case in OF_RESIDUAL]
CASES += [(family, *case) for family in STRIPED for case in OF_STRIPED]
CASES += [("msdnet", *case) for case in OF_MSDNET]
CASES += [(family, *case) for family in TRANSFORMERS for case in OF_TRANSFORMERS]
CASES += [(f"{kind}-transformer", *case) for kind in STRIPED for case in OF_STRIPED_TRANSFORMERS]
CASES += [("branched-transformer", "depth", 2, "num_outputs=3 must be at most depth=2; add layers")]


@pytest.mark.parametrize(("family", "argument", "value", "words"), CASES)
def test_wrong_arguments_of_nets_are_named(family, argument, value, words):
    def make():
        what = {"vocab_size": 2} if family in TRANSFORMERS else {"num_classes": 2}
        chosen = (FAMILIES | TRANSFORMERS)[family]
        return chosen(**{**what, "rngs": nnx.Rngs(0), argument: value})

    with pytest.raises(ValueError, match=re.escape(words)):
        nnx.eval_shape(make)


@pytest.mark.parametrize("family", RESIDUAL)
def test_sizes_may_be_arrays_of_integers(family):
    def make(sizes):
        return nnx.eval_shape(
            lambda: FAMILIES[family](
                num_classes=2, widths=sizes, blocks=sizes // sizes, num_outputs=2, rngs=nnx.Rngs(0)
            )
        )

    made = nnx.graphdef(make(np.array([8, 16])))
    plain = nnx.eval_shape(
        lambda: FAMILIES[family](
            num_classes=2, num_outputs=2, widths=(8, 16), blocks=(1, 1), rngs=nnx.Rngs(0)
        )
    )
    assert made == nnx.graphdef(plain)


LAYERS = nets.Layers(nnx.Rngs(0))
RNGS = nnx.Rngs(0)
OF_LAYERS = [
    (lambda: nets.Layers(0), "rngs=0 must be an nnx.Rngs"),
    (lambda: nets.Layers(RNGS, norm="layer"), "norm='layer' must be 'batch' or 'group'."),
    (lambda: nets.Conv(0, 3, rngs=RNGS), "in_features=0 must be an integer of at least 1."),
    (lambda: nets.Conv(3, 3.0, rngs=RNGS), "out_features=3.0 must be an integer"),
    (lambda: nets.Conv(3, 3, size=0, rngs=RNGS), "size=0 must be an integer"),
    (lambda: nets.Conv(3, 3, stride=(2, 2), rngs=RNGS), "stride=(2, 2) must be an integer"),
    (lambda: nets.Conv(3, 3, spatial_dims=3, rngs=RNGS), "spatial_dims=3 must be 1 or 2."),
    (lambda: nets.Conv(3, 3, rngs=0), "rngs=0 must be an nnx.Rngs"),
    (lambda: nets.Linear(0, 3, rngs=RNGS), "in_features=0 must be an integer"),
    (lambda: nets.Linear(3, "3", rngs=RNGS), "out_features='3' must be an integer"),
    (lambda: nets.BatchNorm(0), "features=0 must be an integer"),
    (lambda: nets.GroupNorm(4.0), "features=4.0 must be an integer"),
    (lambda: nets.Stem(LAYERS, "mnist", 3, 4), "kind='mnist' must be 'cifar' or 'imagenet'."),
    (lambda: nets.ResidualBlock(LAYERS, "wide", 4, 4), "kind='wide' must be 'basic' or"),
    (lambda: nets.SkipBlock(LAYERS, "wide", 4, 4), "kind='wide' must be 'basic' or 'bottleneck'."),
    (lambda: nets.stripe_sizes(0, (1,)), "width=0 must be an integer of at least 1."),
    (lambda: nets.stripe_sizes(8, (0.5, 0.9)), "fractions=(0.5, 0.9) must be 2 cumulative"),
    (lambda: nets.geometric_fractions(2.0), "num_outputs=2.0 must be an integer"),
    (lambda: nets.geometric_fractions(3, 0.5), "ratio=0.5 must be a number above 1."),
    (lambda: presets.make(3, rngs=RNGS), "name=3 must be one of cifar-branched-20"),
    (lambda: presets.make(["a"], rngs=RNGS), "name=['a'] must be one of cifar-branched-20"),
]


@pytest.mark.parametrize(("make", "words"), OF_LAYERS, ids=[words for _, words in OF_LAYERS])
def test_wrong_arguments_of_layers_are_named(make, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        make()


def small():
    sizes = {"widths": (4,), "blocks": (2,), "num_outputs": 2, "in_channels": 1}
    return nets.BranchedResNet(num_classes=2, rngs=nnx.Rngs(0), **sizes)


OF_CALLS = [
    (lambda net: nets.Conv(3, 4, rngs=RNGS)(np.zeros((1, 8, 8, 2))), "must have 3 channels in its"),
    (lambda net: nets.Linear(3, 4, rngs=RNGS)(np.zeros((1, 2))), "x of shape (1, 2) must have 3"),
    (
        lambda net: nets.AnytimeNet([], num_classes=2, in_channels=1, spatial_dims=2),
        "stages=[] must",
    ),
    (lambda net: osgd_jax.cost(net, (8, 8, 1), dtype="foo"), "dtype='foo' must be a dtype"),
    (lambda net: net(None), "x=None must be an array of shape [batch, height, width, 1]"),
    (lambda net: net("image"), "x='image' must be an array of shape"),
    (lambda net: net(np.zeros((2, 8, 8))), "x of shape (2, 8, 8) must have the shape [batch, "),
    (lambda net: net.subnetwork(0.0), "k=0.0 must be an output from 0 to 1."),
    (lambda net: net.subnetwork("0"), "k='0' must be an output from 0 to 1."),
    (lambda net: net.advance(None, None), "k=None must be an output from 0 to 1."),
]


def test_inputs_that_are_no_tokens_are_named():
    net = nnx.eval_shape(lambda: nets.BranchedTransformer(vocab_size=5, rngs=nnx.Rngs(0)))
    for x, words in [
        ("text", "x='text' must be an array of tokens, integers [batch, length]."),
        (np.zeros((1, 4)), "x has the dtype float64 and must be tokens, integers"),
        (np.zeros((1, 4), bool), "x has the dtype bool and must be tokens"),
        (np.zeros(4, int), "x of shape (4,) must be tokens, integers [batch, length]."),
        (np.zeros((1, 0), int), "x of shape (1, 0) must be tokens, integers [batch, length]."),
    ]:
        with pytest.raises(ValueError, match=re.escape(words)):
            net.start(x)


@pytest.mark.parametrize("name", [*FAMILIES, *TRANSFORMERS])
def test_unknown_and_missing_keywords_are_named_without_a_private_class(name):
    family = (FAMILIES | TRANSFORMERS)[name]
    classes = "num_classes" if name in FAMILIES else "vocab_size"
    keywords = {classes: 3, "rngs": nnx.Rngs(0)}
    with pytest.raises(TypeError, match=r"^got an unexpected keyword argument 'wide'$"):
        family(**keywords, wide=2)
    for missing in keywords:
        given = {key: value for key, value in keywords.items() if key != missing}
        with pytest.raises(TypeError, match=rf"^missing a required.* argument: '{missing}'$"):
            family(**given)


@pytest.mark.parametrize(("call", "words"), OF_CALLS, ids=[words for _, words in OF_CALLS])
def test_wrong_arguments_of_calls_are_named(call, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        call(small())


@pytest.mark.parametrize(
    ("width", "num_outputs", "sizes"),
    [
        (64, 6, (2, 2, 4, 8, 16, 32)),
        (128, 6, (4, 4, 8, 16, 32, 64)),
        (256, 7, (4, 4, 8, 16, 32, 64, 128)),
        (256, 8, (2, 2, 4, 8, 16, 32, 64, 128)),
        (16, 6, (1, 1, 1, 1, 4, 8)),
    ],
)
def test_stripes_of_many_outputs(width, num_outputs, sizes):
    assert nets.stripe_sizes(width, nets.geometric_fractions(num_outputs)) == sizes


def test_any_number_of_stripes_up_to_the_width_fits():
    for width in range(1, 40):
        for count in range(1, width + 1):
            sizes = nets.stripe_sizes(width, nets.geometric_fractions(count))
            assert len(sizes) == count
            assert sum(sizes) == width
            assert min(sizes) >= 1
