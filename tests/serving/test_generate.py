"""Text token by token: exact whatever was skipped, within its limits, clear about what is wrong."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from osgd_jax import AnytimeGenerator, AnytimePredictor, nets
from osgd_jax._serving.decoder import Text, answer_of
from osgd_jax._serving.latencies import Latencies
from osgd_jax._serving.sampling import check_sampling, choose
from tests.nets.small_nets import TRANSFORMERS, build, randomise

VOCAB, ROOM = 3, 8
BATCHES = dict(zip(TRANSFORMERS, (1, 3, 5, 2), strict=True))
_MADE = {}


def generator(family):
    """The same net and generator for all tests, so that its programs are compiled once."""
    if family not in _MADE:
        net = randomise(build(family, 2))
        _MADE[family] = net, AnytimeGenerator(net, max_length=ROOM)
    return _MADE[family]


def random_prompts(count, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCAB, rng.integers(1, 4)) for _ in range(count)]


def all_logits(net, texts):
    """Return the logits of each output, for texts: `[outputs, batch, ROOM, VOCAB]`."""
    padded = np.zeros((len(texts), ROOM), np.int32)
    for row, text in zip(padded, texts, strict=True):
        row[: len(text)] = text
    graphdef, state = nnx.split(net)
    run = jax.jit(lambda state, x: nnx.merge(graphdef, state, copy=True)(x))
    compiled = run.lower(state, padded).compile({"xla_backend_optimization_level": 0})
    return np.stack(compiled(state, padded))


def check_logits(net, prompts, steps):
    """Each token's logits are those of the net on the text before it."""
    new = np.stack([step.tokens for step in steps], axis=1)
    expected = all_logits(net, [[*prompt, *row] for prompt, row in zip(prompts, new, strict=True)])
    for step in steps:
        for row, prompt in enumerate(prompts):
            right = expected[step.exits[row], row, len(prompt) - 1 + step.index]
            np.testing.assert_allclose(step.logits[row], right, rtol=1e-5, atol=1e-5)
            assert step.tokens[row] == right.argmax()


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_logits_are_those_of_the_net_whatever_was_skipped(family):
    net, text = generator(family)
    prompts = random_prompts(BATCHES[family])
    rng = np.random.default_rng(5)
    rule = lambda logits: rng.random(len(logits))  # noqa: E731
    steps = list(text.stream(prompts, 5, confidence=0.5, rule=rule))
    assert len({*np.concatenate([step.exits for step in steps])}) > 1
    check_logits(net, prompts, steps)


def test_a_batch_gives_what_each_prompt_gives_alone():
    _, text = generator("width-nested-transformer")
    prompts = random_prompts(3)
    together = text.generate(prompts, 5)
    for prompt, tokens in zip(prompts, together.tokens, strict=True):
        np.testing.assert_array_equal(text.generate(prompt, 5).tokens[0], tokens)


def test_each_output_can_be_asked_for():
    net, text = generator("width-nested-transformer")
    prompts = random_prompts(3)
    for k in range(3):
        steps = list(text.stream(prompts, 4, output=k))
        assert all(np.all(step.exits == k) for step in steps)
        check_logits(net, prompts, steps)
    sure = text.generate(prompts, 4, confidence=1.0)
    last = text.generate(prompts, 4)
    np.testing.assert_array_equal(sure.tokens, last.tokens)
    np.testing.assert_array_equal(sure.exits, np.full((3, 4), 2))


def test_the_output_is_the_first_that_is_sure():
    net, text = generator("width-nested-transformer")
    prompts = random_prompts(3)
    steps = list(text.stream(prompts, 5, confidence=0.45))
    check_logits(net, prompts, steps)
    new = np.stack([step.tokens for step in steps], axis=1)
    logits = all_logits(net, [[*p, *row] for p, row in zip(prompts, new, strict=True)])
    scores = np.asarray(jax.nn.softmax(logits, -1)).max(-1) >= 0.45
    scores[-1] = True
    for step in steps:
        at = [len(prompt) - 1 + step.index for prompt in prompts]
        np.testing.assert_array_equal(step.exits, scores[:, np.arange(3), at].argmax(0))


class Clock:
    """Stands still but for the seconds that each stage is said to take."""

    def __init__(self, seconds, monkeypatch):
        self.now = 0.0
        advance = Text.advance

        def timed(text, first, last):
            self.now += sum(seconds[first : last + 1])
            return advance(text, first, last)

        monkeypatch.setattr(Text, "advance", timed)

    def __call__(self):
        return self.now


@pytest.mark.parametrize(("deadline", "output"), [(0.0, 0), (2.9, 0), (3.1, 1), (6.9, 1), (7.1, 2)])
def test_no_stage_starts_that_would_end_late(monkeypatch, deadline, output):
    net, text = generator("width-nested-transformer")
    monkeypatch.setattr(text, "_clock", Clock((1.0, 2.0, 4.0), monkeypatch))
    monkeypatch.setattr(text, "_latencies", Latencies())
    text.calibrate(3, repeats=1)
    assert text.latencies[3] == dict.fromkeys((1, 2, 4, 8), (1.0, 2.0, 4.0))
    prompts = random_prompts(3)
    steps = list(text.stream(prompts, 3, deadline=deadline))
    assert [set(step.exits) for step in steps] == [{output}] * 3
    check_logits(net, prompts, steps)
    spent = sum((1.0, 2.0, 4.0)[: output + 1])
    np.testing.assert_allclose([step.elapsed for step in steps], spent * np.arange(1, 4))


def test_nothing_is_compiled_after_calibrate():
    _, text = generator("width-nested-transformer")
    text.calibrate(3, repeats=1)
    before = text._decoder.programs.as_dict()
    assert {call.size for call in before} == {1, 2, 4, 8}
    rng = np.random.default_rng(7)
    rule = lambda logits: rng.random(len(logits))  # noqa: E731
    for seed in range(5):
        text.generate(random_prompts(3, seed), 5, confidence=0.5, rule=rule)
        text.generate(random_prompts(3, seed), 3, deadline=rng.random() / 100)
    assert text._decoder.programs.as_dict() == before


def test_texts_stop_one_by_one():
    _, text = generator("width-nested-transformer")
    prompts = random_prompts(3)
    whole = text.generate(prompts, 5).tokens
    stop = whole[0][2]
    stopped = text.generate(prompts, 5, stop=[stop])
    for tokens, all_tokens, exits in zip(stopped.tokens, whole, stopped.exits, strict=True):
        ends = np.flatnonzero(all_tokens == stop)
        length = ends[0] + 1 if len(ends) else 5
        np.testing.assert_array_equal(tokens, all_tokens[:length])
        assert len(exits) == length


def test_draws_follow_the_softmax():
    np.testing.assert_allclose(shares(1.0), [0.5, 0.3, 0.2], atol=0.03)
    warm = np.sqrt([0.5, 0.3, 0.2])
    np.testing.assert_allclose(shares(2.0), warm / warm.sum(), atol=0.03)
    np.testing.assert_allclose(shares(1.0, 2), [0.625, 0.375, 0], atol=0.03)
    np.testing.assert_array_equal(shares(0.0), [1, 0, 0])


def shares(temperature, top_k=None, probabilities=(0.5, 0.3, 0.2)):
    """Count the draws of each token."""
    logits = jnp.tile(jnp.log(jnp.array(probabilities)), (4000, 1))
    sizes = {"vocab_size": 3, "num_texts": 4000, "device": jax.devices()[0]}
    sampling = check_sampling(temperature, top_k, 0, **sizes)
    drawn = choose(answer_of(logits), sampling, 3)
    return np.bincount(drawn, minlength=3) / 4000


def test_draws_at_the_extremes():
    for temperature in (1e-45, 1e-38, 1.2e-38, 1e-30):
        np.testing.assert_array_equal(shares(temperature), [1, 0, 0])
        np.testing.assert_array_equal(shares(temperature, 2, (0.2, 0.3, 0.5)), [0, 0, 1])
    for temperature in (1e30, 3.4e38, 1e300):
        np.testing.assert_allclose(shares(temperature), [1 / 3] * 3, atol=0.03)
        np.testing.assert_allclose(shares(temperature, 2), [1 / 2, 1 / 2, 0], atol=0.03)
        np.testing.assert_allclose(shares(temperature, 3, (0.5, 0, 0.5)), [0.5, 0, 0.5], atol=0.03)
    # Two tokens are as likely, and one may be drawn.
    assert sorted(shares(1.0, 1, (0.2, 0.4, 0.4))) == [0, 0, 1]


def test_a_key_determines_the_text():
    _, text = generator("width-nested-transformer")
    prompts = random_prompts(3)
    keys = [jax.random.key(seed) for seed in (0, 0, 1)]
    first, again, other = (text.generate(prompts, 5, temperature=2.0, key=key) for key in keys)
    np.testing.assert_array_equal(first.tokens, again.tokens)
    assert np.any(np.array(first.tokens) != other.tokens)


def test_bytes_are_tokens_and_weights_are_copied():
    sizes = {"width": 16, "depth": 1, "num_outputs": 2}
    net = nets.WidthNestedTransformer(vocab_size=256, **sizes, rngs=nnx.Rngs(0))
    text = AnytimeGenerator(net, max_length=8)
    before = text.generate(b"abc", 2)
    randomise(net)
    np.testing.assert_array_equal(text.generate(list(b"abc"), 2).tokens, before.tokens)


def test_a_loaded_generator_does_what_the_exported_one_does(tmp_path):
    net, text = generator("nested-transformer")
    prompts = random_prompts(BATCHES["nested-transformer"])
    text.export(tmp_path / "net")
    loaded = AnytimeGenerator.load(tmp_path / "net")
    assert (loaded.num_outputs, loaded.max_length) == (3, ROOM)

    def steps(text):
        rng = np.random.default_rng(5)
        rule = lambda logits: rng.random(len(logits))  # noqa: E731
        return list(text.stream(prompts, 5, confidence=0.5, rule=rule))

    again = steps(loaded)
    check_logits(net, prompts, again)
    for step, expected in zip(again, steps(text), strict=True):
        np.testing.assert_array_equal(step.tokens, expected.tokens)
        np.testing.assert_array_equal(step.exits, expected.exits)
    with pytest.raises(ValueError, match=r"was not written by AnytimePredictor\.export"):
        AnytimePredictor.load(tmp_path / "net")


def test_keys_and_values_are_of_the_dtype_of_the_computation():
    net = build("width-nested-transformer", 1, dtype=jnp.bfloat16)
    text = AnytimeGenerator(net, max_length=4)
    assert {each.dtype.name for each in jax.tree.leaves(text._decoder.buffers(1)[0])} == {
        "bfloat16"
    }
    assert len(text.generate([0], 2).tokens[0]) == 2


WRONG = [
    (([], 1), {}, "prompt holds no text"),
    (([[]], 1), {}, "prompt is empty; begin with one token at least"),
    (([0, 1.5], 1), {}, "prompt of shape (2,) and dtype float64 must be integers [length]."),
    (([0, 3], 1), {}, "prompt has tokens from 0 to 3; they must be from 0 to 2, as vocab_size=3."),
    (([-1], 1), {}, "prompt has tokens from -1 to -1"),
    (("text", 1), {}, "prompt='text' must be tokens: encode the text first."),
    ((3, 1), {}, "prompt=3 must be a sequence of tokens, or several."),
    (
        ([[0] * 7, [1]], 2),
        {},
        "a prompt of 7 tokens and max_new_tokens=2 are more than max_length",
    ),
    (([0], 0), {}, "max_new_tokens=0 must be an integer of at least 1."),
    (([0], 1), {"output": 3}, "output=3 must be one from 0 to 2."),
    (
        ([0], 1),
        {"output": 1, "deadline": 1.0},
        "one of `output`, `confidence`, `deadline` and `budget`; got output=1 and deadline=1.0.",
    ),
    (([0], 1), {"confidence": 2.0}, "confidence=2.0 must be a number in (0, 1]"),
    (([0], 1), {"confidence": 0.5, "rule": "luck"}, "rule='luck' must be one of"),
    (([0], 1), {"deadline": -1.0}, "deadline=-1.0 must be 0 seconds or more."),
    (([0], 1), {"temperature": -1}, "temperature=-1 must be a number of 0 or more."),
    (([0], 1), {"temperature": 1.0}, "temperature=1.0 needs key=, such as key=0."),
    (([0], 1), {"top_k": 0}, "top_k=0 must be an integer of at least 1."),
    (([0], 1), {"top_k": 9}, "top_k=9 must be at most vocab_size=3."),
    (([0], 1), {"stop": 3}, "stop=3 must be a token from 0 to 2, or several, or None."),
    (([0], 1), {"stop": "a"}, "stop='a' must be a token"),
]


@pytest.mark.parametrize(("args", "kwargs", "words"), WRONG, ids=[words for *_, words in WRONG])
def test_wrong_arguments_are_named_at_the_call(args, kwargs, words):
    _, text = generator("width-nested-transformer")
    with pytest.raises(ValueError, match=re.escape(words)):
        text.stream(*args, **kwargs)


def test_wrong_generators_are_named():
    net = build("branched", 1)
    with pytest.raises(ValueError, match="net is a BranchedResNet and must be a Transformer"):
        AnytimeGenerator(net, max_length=4)
    with pytest.raises(ValueError, match="max_length=0 must be an integer of at least 1"):
        AnytimeGenerator(build("branched-transformer", 1), max_length=0)
