import itertools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from osgd_jax import AnytimePredictor, cost, nets
from tests.helpers.anytime_nets import ScriptedClock, Steps, evaluated, inputs

SMALL = {"num_classes": 4, "in_channels": 1, "widths": (4, 8), "blocks": (2, 1)}


@pytest.fixture(scope="module")
def net():
    return trained(Steps())


@pytest.fixture(scope="module")
def predictor(net):
    return AnytimePredictor(net)


def trained(net):
    """Give every array another value, the running averages too."""
    rng = np.random.default_rng(0)
    state = nnx.state(net, (nnx.Param, nnx.BatchStat))
    nnx.update(net, jax.tree.map(lambda v: v + rng.uniform(0.05, 0.3, v.shape), state))
    return net


def compilations(call):
    """Count the programs that JAX compiles during `call()`."""
    events = []

    def listen(event, duration, **kwargs):
        events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        call()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return sum("backend_compile" in event for event in events)


@pytest.mark.parametrize(
    ("make", "norm", "spatial_dims"),
    [
        (nets.BranchedResNet, "batch", 1),
        (nets.WidthNestedResNet, "batch", 2),
        (nets.DepthNestedResNet, "group", 1),
    ],
)
def test_stream_gives_each_output_of_the_evaluated_net(make, norm, spatial_dims):
    net = trained(make(**SMALL, norm=norm, spatial_dims=spatial_dims, rngs=nnx.Rngs(0)))
    x = np.random.default_rng(1).normal(size=(3, *(8, 8)[:spatial_dims], 1)).astype(np.float32)
    outputs = list(AnytimePredictor(net).stream(x))
    assert [output.index for output in outputs] == [0, 1, 2]
    assert all(a.elapsed < b.elapsed for a, b in itertools.pairwise(outputs))
    for output, expected in zip(outputs, evaluated(net, x), strict=True):
        np.testing.assert_allclose(output.logits, expected, rtol=1e-4, atol=1e-5)


def test_without_a_limit_the_last_output_answers(net, predictor):
    x = inputs()
    answer = predictor.predict(x)
    np.testing.assert_allclose(answer.logits, evaluated(net, x)[-1], rtol=1e-5, atol=1e-6)
    assert answer.exits.tolist() == [2] * 8
    assert answer.elapsed > 0
    assert answer.lateness == 0


def test_a_stream_that_is_left_starts_no_further_stage(net):
    predictor = AnytimePredictor(net)
    assert next(iter(predictor.stream(inputs()))).index == 0
    assert len(predictor._runner.programs) == 1


def test_the_net_is_neither_changed_nor_needed_any_more():
    net = trained(Steps())
    before = jax.tree.map(jnp.copy, nnx.state(net, (nnx.Param, nnx.BatchStat)))
    modes = [norm.use_running_average for norm in net.norms]
    predictor, x = AnytimePredictor(net), inputs()
    expected = predictor.predict(x).logits
    jax.tree.map(np.testing.assert_array_equal, nnx.state(net, (nnx.Param, nnx.BatchStat)), before)
    assert [norm.use_running_average for norm in net.norms] == modes == [False] * 3
    assert not net.dropout.deterministic
    for leaf in jax.tree.leaves(nnx.state(net)):
        leaf.delete()  # as a training step that donates its buffers does
    np.testing.assert_array_equal(predictor.predict(x).logits, expected)
    np.testing.assert_allclose(predictor.predict(x[:5]).logits, expected[:5], rtol=1e-5, atol=1e-6)


def test_each_stage_is_compiled_once_for_a_shape(net):
    predictor = AnytimePredictor(net)
    assert compilations(lambda: list(predictor.stream(inputs()))) >= 3
    seen = inputs(seed=1)

    def again():
        list(predictor.stream(seen))
        predictor.predict(seen)
        predictor.calibrate(seen, repeats=1)
        predictor.predict(seen, deadline=10.0)
        predictor.predict(seen, budget=1e9)

    assert compilations(again) == 0
    assert len(predictor._runner.programs) == 3


def test_a_stage_reads_its_own_weights_and_hands_on_the_rest(predictor, net):
    predictor.predict(inputs())
    stages = predictor._runner.stages(((3, 2), "float32"))
    assert [len(stage.weights) for stage in stages] == [8, 8, 8]
    assert [len(stage.passes) for stage in stages] == [2, 2, 0]
    assert stages[0].passes == (None, None)
    assert stages[1].passes == (None, 1)  # new features, and the input that it got


@pytest.mark.parametrize("durations", [(0.2, 0.1, 0.3), (0.1, 0.4, 0.05), (0.1, 0.0, 0.0)])
def test_a_deadline_chooses_the_right_stage(net, durations):
    predictor, x = AnytimePredictor(net), inputs()
    predictor._clock = ScriptedClock([*durations, 0.0] * 13)
    assert predictor.calibrate(x, repeats=10) == pytest.approx(durations)
    rng = np.random.default_rng(0)
    for deadline in [0.0, 0.3, 0.6, *rng.uniform(0, 0.8, 60)]:
        # Stages that are slower or faster than they were when calibrated.
        actual = rng.choice([0.5, 1.0, 1.5]) * np.array(durations)
        predictor._clock = clock = ScriptedClock(actual)
        answer = predictor.predict(x, deadline=float(deadline))
        expected, now = 0, actual[0]
        while expected < 2 and now + predictor.latencies[x.shape, "float32"][expected + 1] <= (
            deadline
        ):
            expected += 1
            now += actual[expected]
        assert answer.exits.tolist() == [expected] * 8
        assert clock.readings == expected + 2  # the start, and each stage that was started
        assert answer.elapsed == pytest.approx(now)
        assert answer.lateness == pytest.approx(max(0, now - deadline))
        np.testing.assert_allclose(answer.logits, evaluated(net, x)[expected], rtol=1e-5, atol=1e-6)


def test_calibration_is_not_misled_by_single_hiccups(net):
    predictor, x = AnytimePredictor(net), inputs()
    runs = [[0.1, 0.2, 0.3, 0.0] for _ in range(103)]
    runs[0] = [9.0, 9.0, 9.0, 0.0]  # warming up
    for i in (10, 40, 70):
        runs[i][1] = 5.0
    predictor._clock = ScriptedClock([second for run in runs for second in run])
    assert predictor.calibrate(x, repeats=100) == pytest.approx((0.1, 0.2, 0.3))
    assert predictor.latencies == {((8, 3, 2), "float32"): pytest.approx((0.1, 0.2, 0.3))}


def test_a_deadline_without_calibration_calibrates_and_is_late(net):
    predictor, x = AnytimePredictor(net), inputs()
    answer = predictor.predict(x, deadline=1e-4)
    assert answer.exits.tolist() == [0] * 8
    assert answer.lateness > 0
    assert answer.elapsed == pytest.approx(answer.lateness + 1e-4)
    assert list(predictor.latencies) == [((8, 3, 2), "float32")]
    assert predictor.predict(x, deadline=60.0).exits.tolist() == [2] * 8


@pytest.mark.parametrize("combine", ["latest", "product"])
@pytest.mark.parametrize("batch", [1, 5, 8, 33])
def test_confidence_exits_equal_those_found_offline(net, combine, batch):
    predictor, x = AnytimePredictor(net, combine=combine), inputs(batch)
    everything = np.stack([output.logits for output in predictor.stream(x)])
    probabilities = np.asarray(jax.nn.softmax(jnp.asarray(everything), axis=-1)).max(-1)
    taken = set()
    for confidence in (0.3, 0.5, 0.7, 0.9, 0.97, 1.0):
        answer = predictor.predict(x, confidence=confidence)
        sure = probabilities >= confidence
        sure[-1] = True
        exits = sure.argmax(0)
        clear = (np.abs(probabilities - confidence) > 1e-5).all(0)
        np.testing.assert_array_equal(answer.exits[clear], exits[clear])
        expected = everything[answer.exits, np.arange(batch)]
        np.testing.assert_allclose(answer.logits, expected, rtol=1e-5, atol=1e-5)
        taken.update(answer.exits.tolist())
    assert batch < 33 or taken == {0, 1, 2}


def test_confidence_meets_few_shapes(net):
    predictor = AnytimePredictor(net)
    thresholds = np.linspace(0.2, 1.0, 41)
    for confidence in thresholds:
        predictor.predict(inputs(32), confidence=confidence)
    sizes = {batch for k, batch, _ in predictor._runner.programs if k > 0}
    assert sizes <= {1, 2, 4, 8, 16, 32}
    assert len(sizes) > 2

    def again():
        for confidence in thresholds:
            predictor.predict(inputs(32), confidence=confidence)

    assert compilations(again) == 0


def test_nan_is_never_sure(predictor):
    x = inputs()
    x[3] = np.nan
    answer = predictor.predict(x, confidence=1e-6)
    assert answer.exits.tolist() == [0, 0, 0, 2, 0, 0, 0, 0]
    assert np.isnan(answer.logits[3]).all()


def test_the_product_is_that_of_the_paper():
    net, x = trained(Steps()), inputs(64)
    for head in net.heads:
        head.bias[...] -= 1.0  # so that few classes have a positive logit, and some examples none
    logits = np.stack(evaluated(net, x))
    experts = np.maximum(logits, 0) ** (np.arange(1, 4) / 3)[:, None, None]
    products = np.cumprod(experts, axis=0)
    empty = products.sum(-1, keepdims=True) == 0
    softmax = np.asarray(jax.nn.softmax(jnp.asarray(logits), axis=-1))
    expected = np.where(
        empty, softmax, products / np.where(empty, 1, products.sum(-1, keepdims=True))
    )
    assert empty.any()
    assert (~empty).any()
    outputs = AnytimePredictor(net, combine="product").stream(x)
    probabilities = np.stack([jax.nn.softmax(output.logits, axis=-1) for output in outputs])
    np.testing.assert_allclose(probabilities, expected, rtol=1e-3, atol=1e-5)
    possible = np.where(empty, False, probabilities > 0)
    assert (possible[1:] <= possible[:-1]).all()


def test_a_budget_buys_the_last_output_it_can_pay():
    net = nets.WidthNestedResNet(**SMALL, rngs=nnx.Rngs(0))
    predictor, x = AnytimePredictor(net), np.zeros((2, 8, 8, 1), np.float32)
    costs = [each.multiply_adds for each in cost(net, (8, 8, 1))]
    for k in range(3):
        for budget in (costs[k], costs[k] + 0.5):
            assert predictor.predict(x, budget=budget).exits.tolist() == [k, k]
    assert predictor.predict(x, budget=costs[1] - 1).exits.tolist() == [0, 0]
    with pytest.raises(ValueError, match=f"budget={costs[0] - 1} must be at least {costs[0]}"):
        predictor.predict(x, budget=costs[0] - 1)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"deadline": -0.1}, "deadline=-0.1 must be 0 seconds or more"),
        ({"deadline": float("nan")}, "deadline=nan must be 0 seconds or more"),
        ({"confidence": 0.0}, r"confidence=0.0 must be a number in \(0, 1\]"),
        ({"confidence": 1.1}, r"confidence=1.1 must be a number in \(0, 1\]"),
        ({"budget": float("nan")}, "budget=nan must be at least"),
        (
            {"deadline": 1.0, "confidence": 0.5},
            "one of `deadline`, `confidence` and `budget`; got deadline=1.0 and confidence=0.5",
        ),
        ({"budget": 1.0, "confidence": 0.5}, "got confidence=0.5 and budget=1.0"),
    ],
)
def test_impossible_limits_are_refused(predictor, limits, message):
    with pytest.raises(ValueError, match=message):
        predictor.predict(inputs(), **limits)


@pytest.mark.parametrize(
    "x",
    [
        np.zeros((2, 3), np.float32),
        np.zeros((2, 3, 1), np.float32),
        np.zeros((0, 3, 2), np.float32),
        np.zeros((2, 0, 2), np.float32),
        np.float32(0),
    ],
)
def test_inputs_of_another_shape_are_refused(predictor, x):
    for call in (predictor.predict, predictor.stream, predictor.calibrate):
        with pytest.raises(
            ValueError, match=r"x of shape .* must have the shape \[batch, length, 2\]"
        ):
            call(x)


def test_other_mistakes_are_refused(predictor, net):
    with pytest.raises(
        ValueError, match="x has the dtype int32 and must be floating, scaled as in training"
    ):
        predictor.predict(np.zeros((1, 3, 2), np.int32))
    with pytest.raises(ValueError, match="repeats=0 must be an integer of at least 1"):
        predictor.calibrate(inputs(), repeats=0)
    with pytest.raises(ValueError, match="combine='mean' must be 'latest' or 'product'"):
        AnytimePredictor(net, combine="mean")
    with pytest.raises(ValueError, match="net is a Linear without num_outputs"):
        AnytimePredictor(nnx.Linear(1, 1, rngs=nnx.Rngs(0)))


def test_a_carry_without_a_batch_axis_is_refused():
    class Counting(Steps):
        def start(self, x):
            return {**super().start(x), "count": jnp.zeros(())}

        def advance(self, k, carry):
            logits, following = super().advance(k, carry)
            return logits, {**following, "count": carry["count"] + 1}

    with pytest.raises(ValueError, match=r"first axis is the batch; .* of shape \(\)"):
        AnytimePredictor(Counting()).predict(inputs())


def test_the_caller_may_overwrite_the_input(net, predictor):
    x = inputs()
    expected = evaluated(net, x)
    stream = predictor.stream(x)
    next(stream)
    x[:] = 0
    for output in stream:
        np.testing.assert_allclose(output.logits, expected[output.index], rtol=1e-5, atol=1e-6)


def test_half_precision_and_weak_types_are_taken(net, predictor):
    x = inputs()
    half = predictor.predict(jnp.asarray(x, jnp.bfloat16), confidence=0.9)
    np.testing.assert_allclose(
        half.logits, predictor.predict(x, confidence=0.9).logits, rtol=0.2, atol=0.2
    )
    weak = jnp.full((8, 3, 2), 1.0)
    strong = jnp.ones((8, 3, 2), jnp.float32)
    np.testing.assert_array_equal(predictor.predict(weak).logits, predictor.predict(strong).logits)


def test_double_precision(x64):
    net = Steps()
    x = inputs().astype(np.float64)
    predictor = AnytimePredictor(net)
    for output, expected in zip(predictor.stream(x), evaluated(net, x), strict=True):
        np.testing.assert_allclose(output.logits, expected, rtol=1e-12)


def test_several_threads_at_once(net):
    predictor, calls = AnytimePredictor(net), 6
    batches = [inputs(batch, seed=batch) for batch in (4, 8)]
    expected = [evaluated(net, x) for x in batches]
    made, failures, barrier = [], [], threading.Barrier(4 * len(batches))
    compile_program = predictor._runner._compile

    def counted(k, stage, arguments):
        made.append((k, arguments[1][0].shape))
        return compile_program(k, stage, arguments)

    predictor._runner._compile = counted

    def work(x, outputs, kind):
        try:
            barrier.wait()
            for _ in range(calls):
                if kind == "stream":
                    logits = [output.logits for output in predictor.stream(x)][-1]
                    exits = [2] * len(x)
                elif kind == "calibrate":
                    predictor.calibrate(x, repeats=3)
                    continue
                else:
                    answer = predictor.predict(
                        x, **{kind: {"deadline": 0.01, "confidence": 0.8}[kind]}
                    )
                    logits, exits = answer.logits, answer.exits
                wanted = [outputs[k][i] for i, k in enumerate(exits)]
                np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-4)
        except BaseException as error:
            failures.append(error)

    threads = [
        threading.Thread(target=work, args=(x, outputs, kind))
        for x, outputs in zip(batches, expected, strict=True)
        for kind in ("stream", "calibrate", "deadline", "confidence")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(made) == len(set(made)) == len(predictor._runner.programs)
