"""By each rule every example leaves where an independent computation says."""

import math

import numpy as np
import pytest

from osgd_jax import AnytimePredictor
from tests.helpers.anytime_nets import Given, Steps, inputs

K, BATCH = 3, 40
NAMES = ("confidence", "entropy", "margin", "agreement")


def logits(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 2, (BATCH, K, *shape)).astype(np.float32)


def score(rule, outputs, k):
    """The score of one example at output k by the words of the docstring, number by number."""
    *places, classes = outputs[k].shape
    scores = []
    for place in np.ndindex(*places):
        rows = [[float(z) for z in output[place]] for output in outputs]
        if classes == 1:  # one logit: the probabilities of both sides
            rows = [[0.0, z] for (z,) in rows]
        powers = [math.exp(z) for z in rows[k]]
        p = sorted((power / sum(powers) for power in powers), reverse=True)
        scores.append(
            {
                "confidence": p[0],
                "entropy": 1 + sum(q * math.log(q) for q in p) / math.log(len(p)),
                "margin": p[0] - p[1],
                "agreement": float(k > 0 and np.argmax(rows[k]) == np.argmax(rows[k - 1])),
            }[rule]
        )
    return sum(scores) / len(scores)


def exits_by_hand(rule, x, thresholds):
    return [
        next((k for k in range(K - 1) if score(rule, example, k) >= thresholds[k]), K - 1)
        for example in x
    ]


@pytest.mark.parametrize("rule", NAMES)
@pytest.mark.parametrize("shape", [(4,), (1,), (2, 3, 4), (2, 2, 1)], ids=str)
def test_each_rule_is_what_its_words_say(rule, shape):
    x = logits(*shape)
    predictor, taken = AnytimePredictor(Given()), set()
    for thresholds in ([0.43] * K, [0.71] * K, [0.83, 0.37, 0.9], [0.57, None, None]):
        limits = [math.inf if each is None else each for each in thresholds]
        expected = exits_by_hand(rule, x, limits)
        one = len(set(thresholds)) == 1
        answer = predictor.predict(x, confidence=thresholds[0] if one else thresholds, rule=rule)
        assert answer.exits.tolist() == expected
        np.testing.assert_array_equal(answer.logits, x[np.arange(BATCH), expected])
        taken.update(expected)
    assert len(taken) == 3 or (rule == "agreement" and taken == {1, 2})


def test_one_logit_is_sure_on_either_side():
    x = np.zeros((3, K, 1), np.float32)
    x[:, :, 0] = [[0.1, 3, 9], [-0.1, -3, 9], [0.1, 0.2, 0.3]]
    predictor = AnytimePredictor(Given())
    assert predictor.predict(x, confidence=0.9).exits.tolist() == [1, 1, 2]  # σ(3) = 0.953
    assert predictor.predict(x, confidence=0.96).exits.tolist() == [2, 2, 2]


@pytest.mark.parametrize("rule", NAMES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_a_number_is_never_sure(rule, bad):
    x = np.full((2, K, 4), bad, np.float32)
    x[1] = [9, 0, 0, 0]
    exits = AnytimePredictor(Given()).predict(x, confidence=1e-6, rule=rule).exits
    assert exits.tolist() == [2, int(rule == "agreement")]


def test_a_function_of_the_logits_is_a_rule():
    x = logits(4)
    predictor = AnytimePredictor(Given())
    seen = []

    def largest(values):
        seen.append(values.shape)
        return values.max(-1)

    answer = predictor.predict(x, confidence=[3.0, 2.0, 0.0], rule=largest)
    reached = x.max(-1) >= [3.0, 2.0, -np.inf]
    assert answer.exits.tolist() == reached.argmax(1).tolist()
    assert seen == [(BATCH, 4), (int((~reached[:, 0]).sum()), 4)]
    flagged = predictor.predict(x, confidence=1, rule=lambda values: values.max(-1) >= 3)
    assert flagged.exits.tolist() == np.where(x.max(-1) >= 3, 1, [0, 0, 1]).argmax(1).tolist()


def test_thresholds_may_be_those_of_an_array():
    x, predictor = logits(4), AnytimePredictor(Given())
    expected = predictor.predict(x, confidence=[0.6, None, None]).exits
    found = predictor.predict(x, confidence=np.array([0.6, np.inf, -np.inf])).exits
    np.testing.assert_array_equal(found, expected)


def test_a_stream_ends_when_every_example_has_been_sure():
    sure, unsure = [5.0, 0, 0], [1.0, 0.9, 0.8]
    x = np.array([[sure, unsure, unsure], [unsure, sure, unsure]], np.float32)
    predictor = AnytimePredictor(Given())
    length = lambda x, **kwargs: len(list(predictor.stream(x, **kwargs)))  # noqa: E731
    assert length(x) == 3
    assert length(x, confidence=0.9) == 2
    assert length(x[:1], confidence=0.9) == 1
    assert length(x, confidence=[0.9, None, 0.9]) == 3
    assert length(x[:1], confidence=1, rule="agreement") == 2


@pytest.mark.parametrize("rule", NAMES)
def test_rules_and_thresholds_work_after_load(rule, tmp_path):
    predictor, x = AnytimePredictor(Steps()), inputs(32)
    predictor.export(tmp_path / "net", input_shape=(3, 2))
    loaded = AnytimePredictor.load(tmp_path / "net")
    limits = {"confidence": [0.8, 0.6, None], "rule": rule}
    exits = predictor.predict(x, **limits).exits
    np.testing.assert_array_equal(loaded.predict(x, **limits).exits, exits)
    assert len(set(exits.tolist())) > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"confidence": "0.5"}, r"confidence='0.5' must be a number in \(0, 1\]"),
        ({"confidence": 2}, r"confidence=2 must be a number in \(0, 1\]"),
        ({"confidence": True}, r"confidence=True must be a number in \(0, 1\]"),
        ({"confidence": float("inf")}, r"confidence=inf must be a number in \(0, 1\]"),
        ({"confidence": [0.5, 0.5]}, r"confidence=\[0.5, 0.5\] must be one number or one for each"),
        ({"confidence": [0.5, "a", 1]}, r"confidence=\[0.5, 'a', 1\] must be a number in"),
        ({"confidence": [[0.5]] * 3}, r"confidence=.* must be a number in"),
        ({"confidence": 0.5, "rule": "sure"}, "rule='sure' must be one of 'confidence', 'entropy'"),
        ({"confidence": 0.5, "rule": None}, "rule=None must be one of"),
        ({"confidence": 0.5, "rule": ["margin"]}, r"rule=\['margin'\] must be one of"),
        ({"confidence": np.nan, "rule": np.ndarray.max}, "confidence=nan must be a number, or one"),
        (
            {"confidence": 1.0, "rule": lambda x: x},
            r"gave float32 of shape \(40, 4\) and must give",
        ),
        ({"confidence": 1.0, "rule": lambda x: ["a"] * len(x)}, "gave <U1 of shape .* must give"),
        ({"rule": "entropy"}, "rule='entropy' needs confidence="),
    ],
)
def test_wrong_rules_and_thresholds_are_named(arguments, message):
    predictor = AnytimePredictor(Given())
    for call in (predictor.predict, lambda x, **kwargs: list(predictor.stream(x, **kwargs))):
        with pytest.raises(ValueError, match=message):
            call(logits(4), **arguments)


def test_what_one_answer_cannot_hold_is_named():
    class Growing(Given):
        def advance(self, k, carry):
            return carry[:, : k + 1], carry

    x = np.zeros((2, 5, 4), np.float32)
    with pytest.raises(ValueError, match=r"outputs of different shapes, \(1, 4\) and \(2, 4\)"):
        AnytimePredictor(Growing()).predict(x, confidence=0.9)
    with pytest.raises(ValueError, match="combine='product' needs two classes or more"):
        AnytimePredictor(Given(), combine="product").predict(np.zeros((2, 3, 1), np.float32))
