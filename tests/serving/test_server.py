import threading

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from osgd_jax import AnytimePredictor, AnytimeServer, OverloadedError, nets
from tests.helpers.anytime_nets import Steps

SMALL = {"num_classes": 4, "in_channels": 1, "widths": (4, 8), "blocks": (1, 1)}
LONG = 60.0  # seconds; no test waits for it


def predictor_of(make, combine="latest"):
    if make is Steps:
        return AnytimePredictor(Steps(), combine=combine), (3, 2)
    net = make(**SMALL, num_outputs=3, spatial_dims=1, rngs=nnx.Rngs(0))
    return AnytimePredictor(net, combine=combine), (8, 1)


def examples(shape, count=11):
    return np.random.default_rng(0).normal(size=(count, *shape)).astype(np.float32)


@pytest.fixture(scope="module")
def server():
    predictor, shape = predictor_of(Steps)
    with AnytimeServer(predictor, input_shape=shape, max_batch=4, capacity=8) as server:
        yield server


@pytest.mark.parametrize("make", [Steps, nets.WidthNestedResNet, nets.DepthNestedResNet])
@pytest.mark.parametrize("combine", ["latest", "product"])
def test_answers_are_those_of_the_predictor_whichever_batches_they_ran_in(make, combine):
    predictor, shape = predictor_of(make, combine)
    xs = examples(shape)
    outputs = [np.asarray(output.logits) for output in predictor.stream(xs)]
    with AnytimeServer(predictor, input_shape=shape, max_batch=4, capacity=5) as server:
        sure = [None, 1e-6, [1.0, 1e-6, None]]  # the last, the first or the second output
        futures = [
            server.submit(x, deadline=LONG, confidence=sure[i % 3]) for i, x in enumerate(xs)
        ]
        answers = [future.result() for future in futures]
        # Two requests at a time come in other batches than all of them.
        pairs = [server.submit(x, deadline=LONG) for x in xs[:2]]
        answers += [future.result() for future in pairs]
    for i, answer in zip([*range(len(xs)), 0, 1], answers, strict=True):
        expected = outputs[answer.output][i]
        np.testing.assert_allclose(answer.logits, expected, rtol=1e-4, atol=1e-5)
        assert 0 < answer.stages <= answer.elapsed
        assert answer.lateness == 0
    firsts = {answer.output for answer in answers[1 : len(xs) : 3]}
    assert firsts == {0}
    assert {answer.output for answer in answers[-2:]} == {2}


def test_many_threads_get_an_answer_each(server):
    xs, answers = examples((3, 2), 64), {}

    def ask(i):
        answers[i] = server.submit(xs[i], deadline=LONG).result()

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers.keys() == set(range(64))
    assert len(server) == 0


def test_what_does_not_fit_is_refused(server):
    with pytest.raises(OverloadedError, match="output 0 does not fit before the deadline"):
        server.submit(examples((3, 2))[0], deadline=0.0).result()
    assert len(server) == 0


def test_agreement_compares_with_the_output_before(server):
    answer = server.submit(
        examples((3, 2))[0], deadline=LONG, confidence=1.0, rule="agreement"
    ).result()
    assert answer.output >= 1


@pytest.mark.parametrize(
    ("x", "limits", "message"),
    [
        (np.zeros((3, 2), np.float32), {"deadline": -1}, "deadline=-1 must be 0 seconds or more"),
        (np.zeros((3, 2), np.float32), {"deadline": np.inf}, "`deadline` must be finite.*got inf"),
        (np.ma.masked_equal(np.zeros((3, 2), np.float32), 0), {"deadline": 1}, "no masked entries"),
        (np.zeros((3, 2), np.float32), {"deadline": 1, "confidence": 2}, "confidence=2 must be"),
        (np.zeros((4, 2), np.float32), {"deadline": 1}, r"`x` must be float32 of shape \(3, 2\)"),
        (np.zeros((3, 2), np.int32), {"deadline": 1}, "must be floating"),
        (np.zeros(3, np.float32), {"deadline": 1}, "must have the shape"),
    ],
)
def test_wrong_requests(server, x, limits, message):
    with pytest.raises(ValueError, match=message):
        server.submit(x, **limits)
    assert server.submit(examples((3, 2))[0], deadline=LONG).result().output == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_batch": 3}, "`max_batch` must be a power of two, got 3"),
        ({"max_batch": 4, "capacity": 2}, "`capacity` must be at least max_batch=4, got 2"),
        ({"input_shape": None}, "input_shape must be given"),
    ],
)
def test_wrong_arguments(arguments, message):
    predictor, shape = predictor_of(Steps)
    with pytest.raises(ValueError, match=message):
        AnytimeServer(predictor, **{"input_shape": shape} | arguments)


def test_closing_answers_those_that_wait_and_refuses_others():
    predictor, shape = predictor_of(Steps)
    server = AnytimeServer(predictor, input_shape=shape, max_batch=2, capacity=2)
    futures = [server.submit(x, deadline=LONG) for x in examples(shape)]
    server.close()
    assert all(future.done() for future in futures)
    assert {future.result().output for future in futures} <= {0, 1, 2}
    with pytest.raises(RuntimeError, match="closed"):
        server.submit(examples(shape)[0], deadline=LONG)


def test_a_rule_that_fails_fails_its_own_request_alone(server):
    def broken(logits):
        raise ArithmeticError("no rule")

    xs = examples((3, 2))
    futures = [
        server.submit(x, deadline=LONG, **({"confidence": 1, "rule": broken} if i == 2 else {}))
        for i, x in enumerate(xs)
    ]
    with pytest.raises(ArithmeticError, match="no rule"):
        futures.pop(2).result()
    assert {future.result().output for future in futures} == {2}


def test_a_failing_stage_fails_its_requests_and_no_later_ones():
    predictor, shape = predictor_of(Steps)
    with AnytimeServer(predictor, input_shape=shape, max_batch=2, capacity=2) as server:
        advance, states = server._states.advance, server._states

        def fail(*_):
            states.advance = advance
            raise MemoryError("out of memory")

        compiled = len(states._programs.as_dict())
        states.advance = fail
        with pytest.raises(MemoryError, match="out of memory"):
            server.submit(jnp.ones(shape), deadline=LONG).result()
        assert server.submit(jnp.ones(shape), deadline=LONG).result().output == 2
        assert len(states._programs.as_dict()) == compiled  # nothing is compiled while serving
