"""Inputs of a generator: prompts and stops of any kind, keys, copies; and what it refuses."""

import copy
import pickle
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from osgd_jax import AnytimeGenerator, nets
from osgd_jax._serving.decoder import Text
from tests.nets.small_nets import build, randomise

ROOM = 8


@pytest.fixture(scope="module")
def net():
    sizes = {"width": 16, "depth": 1, "num_outputs": 2}
    return randomise(nets.WidthNestedTransformer(vocab_size=256, **sizes, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def text(net):
    return AnytimeGenerator(net, max_length=ROOM)


def equal(found, expected):
    for name in ("tokens", "exits"):
        parts = getattr(found, name), getattr(expected, name)
        assert len(parts[0]) == len(parts[1])
        for a, b in zip(*parts, strict=True):
            np.testing.assert_array_equal(a, b)


def big_endian(tokens):
    return np.array(tokens, ">i4")


SINGLE = [
    bytes,
    bytearray,
    memoryview,
    iter,
    tuple,
    np.array,
    big_endian,
    lambda tokens: np.array(tokens, np.uint64),
    lambda tokens: np.array(tokens, ">u2")[::1],
    lambda tokens: np.repeat(tokens, 2)[::2],
    lambda tokens: np.ma.array(tokens),
    jnp.array,
    lambda tokens: [np.int8(token) for token in tokens],
    lambda tokens: [jnp.int32(token) for token in tokens],
]


@pytest.mark.parametrize("make", SINGLE)
def test_a_prompt_may_be_any_sequence_of_tokens(text, make):
    tokens = list(b"abc")
    given = make(bytes(tokens)) if make is memoryview else make(tokens)
    equal(text.generate(given, 2), text.generate([tokens], 2))


SEVERAL = [
    lambda texts: [bytes(each) for each in texts],
    lambda texts: (each for each in texts),
    lambda texts: (iter(each) for each in texts),
    lambda texts: map(big_endian, texts),
    lambda texts: dict(enumerate(texts)).values(),
    lambda texts: [bytes(texts[0]), *texts[1:]],
]


@pytest.mark.parametrize("make", SEVERAL)
def test_prompts_may_be_any_iterable(text, make):
    texts = [list(b"to"), list(b"or not")]
    equal(text.generate(make(texts), 2), text.generate(texts, 2))


def test_prompts_may_be_an_array(text):
    texts = [[1, 2, 3], [4, 5, 6]]
    for array in (np.array(texts), big_endian(texts), jnp.array(texts), np.array(texts).T.copy().T):
        equal(text.generate(array, 2), text.generate(texts, 2))


def test_stops_may_be_bytes_and_any_iterable(text):
    whole = text.generate(b"abc", 4).tokens[0]
    expected = text.generate(b"abc", 4, stop=int(whole[1]))
    stop = int(whole[1])
    forms = [bytes([stop]), [bytes([stop])], iter([stop]), {stop}, np.int64(stop)]
    forms += [np.array([stop]), big_endian([stop]), jnp.array(stop), dict.fromkeys([stop]).keys()]
    for form in forms:
        equal(text.generate(b"abc", 4, stop=form), expected)


def test_thresholds_may_be_an_iterator(text):
    equal(
        text.generate(b"abc", 3, confidence=iter([0.02, None])),
        text.generate(b"abc", 3, confidence=[0.02, None]),
    )


def test_a_seed_is_a_key(text):
    key = jax.random.key(7)
    expected = text.generate([b"abc", b"d"], 3, temperature=2.0, key=key)
    for form in (7, np.int64(7), jnp.int32(7), jax.random.PRNGKey(7), np.array(7)):
        equal(text.generate([b"abc", b"d"], 3, temperature=2.0, key=form), expected)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
@pytest.mark.parametrize("top_k", [None, 50])
def test_with_a_key_each_a_text_does_not_depend_on_the_others(text, impl, top_k):
    prompts = [b"abc", b"d", b"ef"]
    keys = jax.random.split(jax.random.key(0, impl=impl), 3)
    drawn = {"temperature": 2.0, "top_k": top_k}
    together = text.generate(prompts, 4, key=keys, **drawn)
    backwards = text.generate(prompts[::-1], 4, key=keys[::-1], **drawn)
    for i, prompt in enumerate(prompts):
        np.testing.assert_array_equal(backwards.tokens[2 - i], together.tokens[i])
        for key in (keys[i], keys[i : i + 1], [keys[i]]):
            alone = text.generate(prompt, 4, key=key, **drawn)
            np.testing.assert_array_equal(alone.tokens[0], together.tokens[i])
    assert len({tokens.tobytes() for tokens in together.tokens}) == 3
    pair = text.generate(prompts[:2], 4, key=list(keys[:2]), **drawn)
    for i in range(2):
        np.testing.assert_array_equal(pair.tokens[i], together.tokens[i])


def test_a_key_each_in_every_form(text):
    prompts, seeds = [b"abc", b"d"], (5, 6)
    keys = [jax.random.key(seed) for seed in seeds]
    expected = text.generate(prompts, 3, temperature=2.0, key=keys)
    forms = [seeds, (seed for seed in seeds), jnp.stack(keys), jax.random.key_data(jnp.stack(keys))]
    forms.append(np.asarray(jax.random.key_data(jnp.stack(keys))))
    for form in forms:
        equal(text.generate(prompts, 3, temperature=2.0, key=form), expected)


def test_texts_of_one_key_differ_and_do_not_depend_on_how_many_there_are(text):
    drawn = {"temperature": 5.0, "key": 3}
    three = text.generate([b"abc"] * 3, 4, **drawn).tokens
    assert len({tokens.tobytes() for tokens in three}) == 3
    for a, b in zip(text.generate([b"abc"] * 2, 4, **drawn).tokens, three, strict=False):
        np.testing.assert_array_equal(a, b)


WRONG = [
    ({"key": True}, "key=True must be a seed, such as 0, or a key"),
    ({"key": "0"}, "key='0' must be a seed"),
    ({"key": 0.5}, "key=0.5 must be a seed"),
    ({"key": 2**70}, "key=1180591620717411303424 must be a seed"),
    ({"key": np.array([1, 2])}, r"key=array\(\[1, 2\]\) must be a seed"),
    ({"key": np.zeros(3, np.uint32)}, r"key=array\(\[0, 0, 0\], dtype=uint32\) must be a seed"),
    ({"key": [0, 1, 2]}, r"got keys of shape \(3,\) for 1 texts"),
    ({"key": []}, r"got keys of shape \(0,\) for 1 texts"),
    ({"key": jax.random.split(jax.random.key(0), 2)}, r"got keys of shape \(2,\) for 1 texts"),
    ({"prompt": "abc"}, "prompt='abc' must be tokens: encode the text first"),
    ({"prompt": ["abc", "d"]}, "prompt='abc' must be tokens: encode the text first"),
    ({"prompt": {"input_ids": [1]}}, "prompt='input_ids' must be tokens"),
    ({"prompt": [[1], 2]}, "prompt=2 must be a sequence of tokens, or several"),
    ({"prompt": [1, [2]]}, "`prompt` must be an array: setting an array element"),
    ({"prompt": [b""]}, "prompt is empty"),
    ({"prompt": iter([])}, "prompt holds no text"),
    ({"prompt": np.zeros((1, 1, 2), int)}, r"prompt of shape \(1, 2\) and dtype int64 must be"),
    ({"prompt": [2**40]}, "prompt has tokens from 1099511627776 to 1099511627776"),
    ({"prompt": np.ma.array([1, 2], mask=[False, True])}, "`prompt` must have no masked entries"),
    ({"prompt": np.array([(1,)], [("id", "i4")])}, "must be integers"),
    ({"stop": b"\n\n"}, r"stop=b'\\n\\n' must be a token from 0 to 255.* each token is one"),
    ({"stop": "\n"}, "must be a token from 0 to 255"),
    ({"stop": [True]}, r"stop=\[True\] must be a token"),
    ({"deadline": np.nan}, "deadline=nan must be 0 seconds or more"),
    ({"output": -1}, "output=-1 must be one from 0 to 1"),
    ({"temperature": np.inf}, "temperature=inf must be a number of 0 or more"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG, ids=[words for _, words in WRONG])
def test_wrong_arguments_are_named(text, wrong, message):
    arguments = {"prompt": b"abc", "temperature": 1.0, "key": 0, **wrong}
    with pytest.raises(ValueError, match=message):
        text.stream(arguments.pop("prompt"), 2, **arguments)


def test_a_text_without_finite_logits_is_an_error(net):
    broken = nnx.clone(net)
    table = broken.stages[0].embedding.table
    table[...] = table[...].at[5].set(jnp.nan)
    text = AnytimeGenerator(broken, max_length=ROOM)
    assert len(text.generate(b"abc", 2).tokens[0]) == 2
    for limits in ({}, {"output": 0}, {"confidence": 0.5}, {"temperature": 1.0, "key": 0}):
        with pytest.raises(ValueError, match="net gives text 1 logits whose largest is no finite"):
            text.generate([b"abc", [5, 1]], 2, **limits)


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_one_logit_that_is_no_finite_number_is_an_error_too(net, value):
    broken = nnx.clone(net)
    kernel = broken.stages[1].head.product.kernel
    kernel[...] = kernel[...].at[0, 3].set(value)
    text = AnytimeGenerator(broken, max_length=ROOM)
    for drawn in ({}, {"temperature": 1.0, "key": 0}):
        steps = text.stream(b"abc", 2, **drawn)
        with pytest.raises(ValueError, match=r"text 0 logits .* after 0 new tokens"):
            next(steps)
    assert len(text.generate(b"abc", 2, output=0).tokens[0]) == 2


@pytest.mark.parametrize("loaded", [False, True])
def test_a_copy_does_what_the_generator_does(net, loaded, tmp_path):
    text = AnytimeGenerator(net, max_length=2)
    if loaded:
        text.export(tmp_path / "net")
        text = AnytimeGenerator.load(tmp_path / "net")
    text.calibrate(1, repeats=1)
    for again in (copy.deepcopy(text), pickle.loads(pickle.dumps(text))):
        equal(again.generate(b"a", 1), text.generate(b"a", 1))
        assert again.latencies == text.latencies
        assert again.max_length == 2
    again.export(tmp_path / "again")
    equal(AnytimeGenerator.load(tmp_path / "again").generate(b"a", 1), text.generate(b"a", 1))


def test_calibrations_do_not_measure_each_other(net, monkeypatch):
    texts = [AnytimeGenerator(net, max_length=2) for _ in range(2)]
    active, most = [], []
    advance = Text.advance

    def watched(text, *arguments):
        active.append(text)
        most.append(len({id(each._decoder) for each in active}))
        time.sleep(0.001)
        answer = advance(text, *arguments)
        active.remove(text)
        return answer

    for text in texts:
        text.calibrate(repeats=1)
    monkeypatch.setattr(Text, "advance", watched)
    calls = [lambda text=text: text.calibrate(repeats=5) for text in (*texts, *texts)]
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 4 * 2 * 8 * 2  # calibrations, sizes, runs, stages
    assert max(most) == 1


def test_several_threads_generate_while_one_calibrates(net):
    text = AnytimeGenerator(net, max_length=2)
    prompts = [[b"a"], [b"d", b"e"]]
    expected = [text.generate(prompt, 1, temperature=1.0, key=0) for prompt in prompts]
    failures = []

    def work(call):
        try:
            for _ in range(3):
                call()
        except BaseException as error:
            failures.append(error)

    def check(prompt, wanted):
        equal(text.generate(prompt, 1, temperature=1.0, key=0), wanted)
        text.generate(prompt, 1, deadline=0.001)

    calls = [lambda p=p, e=e: check(p, e) for p, e in zip(prompts, expected, strict=True)]
    calls += [lambda size=size: text.calibrate(size, repeats=1) for size in (1, 2)]
    threads = [threading.Thread(target=work, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_nets_without_values_are_named():
    abstract = nnx.eval_shape(lambda: build("branched-transformer", 1))
    with pytest.raises(ValueError, match="`net` must have arrays with values; got an abstract net"):
        AnytimeGenerator(abstract, max_length=4)
    deleted = build("branched-transformer", 1)
    jax.tree.leaves(nnx.state(deleted))[0].delete()
    with pytest.raises(ValueError, match="got one that is deleted, such as by a step that donates"):
        AnytimeGenerator(deleted, max_length=4)


def test_calls_under_transformations_are_named(net, text):
    calls = [
        lambda x: text.generate(x, 1).tokens,
        lambda x: text.generate([x[0]], 1).tokens,
        lambda x: text.generate([0], 1, key=jax.random.key(x[0]), temperature=1.0).tokens,
    ]
    for call in calls:
        with pytest.raises(ValueError, match="is traced: predictors and generators run programs"):
            jax.jit(call)(jnp.array([0]))
    with pytest.raises(ValueError, match="`net` must have arrays with values; got traced ones"):
        jax.jit(lambda: AnytimeGenerator(build("branched-transformer", 0), max_length=2))()
