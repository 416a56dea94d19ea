"""Arrays of any type and layout, where users pass them in: the right values, or one sentence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from osgd_jax import AnytimePredictor
from tests.helpers.anytime_nets import Steps, Tokens, evaluated, inputs
from tests.nets.small_nets import build, example

X = inputs(4)
IDS = np.random.default_rng(0).integers(0, 11, (4, 6))


class ArrayLike:
    """An object that NumPy makes an array of, like tensors of other libraries."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.array, dtype)


class Subclass(np.ndarray):
    """An array with another class."""


def read_only(x):
    x = x.copy()
    x.setflags(write=False)
    return x


FLOATS = {
    ">f4": lambda x: x.astype(">f4"),
    ">f8": lambda x: x.astype(">f8"),
    "<f8": lambda x: x.astype("<f8"),
    "longdouble": lambda x: x.astype(np.longdouble),
    "Fortran order": np.asfortranarray,
    "big-endian, not contiguous": lambda x: np.repeat(x.astype(">f4"), 2, axis=0)[::2],
    "backwards": lambda x: x[::-1].copy()[::-1],
    "read-only": read_only,
    "subclass": lambda x: x.view(Subclass),
    "nothing masked": lambda x: np.ma.array(x, mask=False),
    "list": lambda x: x.tolist(),
    "list of arrays": list,
    "array-like": lambda x: ArrayLike(x.astype(">f4")),
    "array of JAX": jnp.asarray,
}


@pytest.fixture(scope="module")
def predictors(tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "net"
    predictor = AnytimePredictor(Steps())
    predictor.export(path, input_shape=X.shape[1:])
    return predictor, AnytimePredictor.load(path)


@pytest.fixture(scope="module")
def expected():
    return evaluated(Steps(), X)


@pytest.mark.parametrize("form", FLOATS)
def test_floats_of_any_form_are_read_right(predictors, expected, form):
    x = FLOATS[form](X)
    for predictor in predictors:
        np.testing.assert_allclose(predictor.predict(x).logits, expected[-1], rtol=1e-4, atol=1e-5)
    predictor = predictors[0]
    answer = predictor.predict(x, confidence=[0.5, None, None])
    wanted = np.stack(expected)[answer.exits, np.arange(4)]
    np.testing.assert_allclose(answer.logits, wanted, rtol=1e-4, atol=1e-5)
    assert list(predictor._runner.examples) == [((3, 2), "float32")]


def test_the_first_call_may_be_of_any_form(expected):
    predictor, x = AnytimePredictor(Steps()), X.astype(">f4")
    predictor.calibrate(x, repeats=1)
    for output, logits in zip(predictor.stream(x), expected, strict=True):
        np.testing.assert_allclose(output.logits, logits, rtol=1e-4, atol=1e-5)
    assert list(predictor.latencies) == [(X.shape, "float32")]


def test_half_precision_of_the_host(predictors, expected):
    half = X.astype(np.float16)
    for x in (half, half.astype(">f2"), jnp.asarray(half)):
        logits = predictors[0].predict(x).logits
        np.testing.assert_allclose(logits, expected[-1], rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dtype", [">i4", ">i8", ">u2", "u8", "i1", ">u4"])
def test_integers_of_any_form_are_read_right(dtype, tmp_path):
    logits = Tokens()(jnp.asarray(IDS))[-1]
    predictor = AnytimePredictor(Tokens())
    for x in (IDS, IDS.astype(dtype), IDS.astype(dtype)[::-1].copy()[::-1]):
        np.testing.assert_allclose(predictor.predict(x).logits, logits, rtol=1e-5, atol=1e-6)
    predictor.predict(IDS)
    predictor.export(tmp_path / "net", input_shape=(6,))
    loaded = AnytimePredictor.load(tmp_path / "net")
    np.testing.assert_allclose(
        loaded.predict(IDS.astype(dtype)).logits, logits, rtol=1e-5, atol=1e-6
    )
    too_large = IDS.astype(np.int64) + 2**32
    for each in (predictor, loaded):
        with pytest.raises(ValueError, match="`x` must have integers from -2147483648 to"):
            each.predict(too_large)


WRONG = [
    (np.ma.array(X, mask=X > 0), "`x` must have no masked entries"),
    (X.astype(object), "x has the dtype object and must be floating"),
    (np.zeros((4, 3), [("a", "f4"), ("b", ">f4")]), "must be floating"),
    (X.astype("M8[s]"), r"x has the dtype datetime64\[s\] and must be floating"),
    (jax.random.split(jax.random.key(0), (4, 3, 2)), r"x has the dtype key<fry> and must be"),
    (X[0], r"x of shape \(3, 2\) must have the shape"),
    ((row for row in X), "x has the dtype object and must be floating"),
    ([X[0], X[0, :1]], "`x` must be an array: "),
]


@pytest.mark.parametrize(("x", "message"), WRONG, ids=[words for _, words in WRONG])
def test_arrays_that_are_no_input_are_named(predictors, x, message):
    for predictor in predictors:
        for call in (predictor.predict, predictor.stream, predictor.calibrate):
            with pytest.raises(ValueError, match=message):
                call(x)


def test_nets_take_host_arrays_as_predictors_do():
    net, x = build("branched", 0), np.asarray(example(2), np.float32)
    expected = net(x)[0]
    for form in (">f4", ">f8", np.longdouble):
        np.testing.assert_array_equal(net(x.astype(form))[0], expected)
    with pytest.raises(ValueError, match="`x` must have no masked entries"):
        net(np.ma.array(x, mask=x > 0))
    with pytest.raises(ValueError, match="`x` must be an array of numbers, got the dtype object"):
        net(x.astype(object))


def test_language_models_take_host_arrays_as_predictors_do():
    net, ids = build("branched-transformer", 0), IDS % 3
    expected = net(jnp.asarray(ids))[0]
    for form in (">i4", ">i8", "u1", "<u8"):
        np.testing.assert_array_equal(net(ids.astype(form))[0], expected)
    with pytest.raises(ValueError, match="`x` must have integers from -2147483648 to 2147483647"):
        net(ids + 2**32)


def test_tokens_of_64_bits_outside_of_the_vocabulary_are_nan(x64):
    net = build("branched-transformer", 0)
    for token in (2**32 + 1, -1, 3):
        logits = net(jnp.array([[0, token], [0, 1]]))[0]
        assert np.isnan(logits[0, 1]).all()
        assert np.isfinite(logits[1]).all()


def test_weights_of_the_host_are_read_right():
    net = Steps()
    expected = AnytimePredictor(net).predict(X).logits
    state = nnx.state(net, nnx.Param)
    nnx.update(net, jax.tree.map(lambda leaf: np.asarray(leaf).astype(">f4"), state))
    np.testing.assert_array_equal(AnytimePredictor(net).predict(X).logits, expected)


def test_token_arrays_of_another_rank_are_named_by_their_shape():
    predictor = AnytimePredictor(build("branched-transformer", 0))
    for x in (np.zeros(3, int), np.zeros((1, 2, 3), int), np.zeros((0, 3), int)):
        with pytest.raises(
            ValueError, match=r"x of shape \(.* must have the shape \[batch, length"
        ):
            predictor.predict(x)
    with pytest.raises(ValueError, match="x has the dtype float32 and must be tokens, integers"):
        predictor.predict(np.zeros((2, 3), np.float32))
