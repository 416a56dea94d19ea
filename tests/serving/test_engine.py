"""Properties that predictor and generator share."""

import copy
import pickle

import jax
import numpy as np
import pytest
from flax import nnx

from osgd_jax import AnytimeGenerator, AnytimePredictor, cost, nets
from osgd_jax._serving import container, files
from osgd_jax._serving.limits import last_affordable
from tests.helpers.anytime_nets import Steps, inputs

LENGTH = 4


class Predicting:
    """A predictor and one call of it."""

    def __init__(self):
        self.engine = AnytimePredictor(Steps())
        self.costs = [each.multiply_adds for each in cost(Steps(), (3, 2))]

    def exits(self, engine, **limits):
        return engine.predict(inputs(2), **limits).exits

    def calibrate(self, engine, **settings):
        return engine.calibrate(inputs(2), **settings)

    def export(self, engine, path):
        engine.export(path, input_shape=(3, 2))


class Generating:
    """A generator and one call of it."""

    def __init__(self):
        net = nets.WidthNestedTransformer(
            vocab_size=5, width=16, depth=1, num_outputs=3, rngs=nnx.Rngs(0)
        )
        self.engine = AnytimeGenerator(net, max_length=LENGTH)
        self.costs = [each.multiply_adds / LENGTH for each in cost(net, (LENGTH,))]

    def exits(self, engine, **limits):
        return np.stack(engine.generate([[0], [1]], 1, **limits).exits)[:, 0]

    def calibrate(self, engine, **settings):
        return engine.calibrate(2, **settings)

    def export(self, engine, path):
        engine.export(path)


@pytest.fixture(scope="module", params=[Predicting, Generating])
def case(request):
    return request.param()


def test_limits_choose_outputs_before_and_after_load(case, tmp_path):
    case.export(case.engine, tmp_path / "net")
    for engine in (case.engine, type(case.engine).load(tmp_path / "net")):
        for k, budget in enumerate(case.costs):
            assert case.exits(engine, budget=budget).tolist() == [k, k]
        assert case.exits(engine, budget=case.costs[1] * 0.999).tolist() == [0, 0]
        for rule in ("confidence", "entropy", "margin"):
            found = case.exits(engine, confidence=[None, 1e-9, None], rule=rule)
            assert found.tolist() == [1, 1]
        assert min(case.exits(engine, confidence=0.5, rule="agreement")) >= 1
        assert case.exits(engine, confidence=1, rule=lambda z: np.ones(len(z))).tolist() == [0, 0]
        case.calibrate(engine, repeats=1)
        assert case.exits(engine, deadline=0.0).tolist() == [0, 0]
        assert case.exits(engine, deadline=60.0).tolist() == [2, 2]


def test_files_of_the_first_version_have_no_costs(tmp_path):
    Generating().engine.export(tmp_path / "net")
    content = container.read(tmp_path / "net", "AnytimeGenerator")
    del content.manifest["multiply_adds"]
    engine = AnytimeGenerator.load(tmp_path / "net")
    engine._set_up(files.FileStages(content), LENGTH)
    assert engine.generate([0], 1).exits[0].tolist() == [2]
    message = "`budget` must be None for this generator, whose file is of a version"
    with pytest.raises(ValueError, match=message):
        engine.generate([0], 1, budget=1e9)


def test_a_rule_gets_the_rows_that_are_left(case):
    seen = []

    def first_row(logits):
        seen.append(len(logits))
        return np.arange(len(logits)) == 0

    assert case.exits(case.engine, confidence=1, rule=first_row).tolist() == [0, 1]
    assert seen == [2, 1]


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"deadline": 1, "budget": 2}, "`budget`; got deadline=1 and budget=2"),
        ({"deadline": -1}, "deadline=-1 must be 0 seconds or more"),
        ({"deadline": "1"}, "deadline='1' must be 0 seconds or more"),
        ({"budget": 0.5}, "budget=0.5 must be at least .*, the multiply-adds of output 0"),
        ({"budget": "1e9"}, "budget='1e9' must be at least"),
        ({"confidence": 2}, r"confidence=2 must be a number in \(0, 1\]"),
        ({"confidence": [0.5]}, "must be one number or one for each of the 3 outputs"),
        ({"rule": "margin"}, "rule='margin' needs confidence="),
    ],
)
def test_wrong_limits_have_the_same_error(case, limits, message):
    with pytest.raises(ValueError, match=message):
        case.exits(case.engine, **limits)


def test_wrong_repeats_and_paths_have_the_same_error(case, tmp_path):
    with pytest.raises(ValueError, match="repeats=0 must be an integer of at least 1"):
        case.calibrate(case.engine, repeats=0)
    with pytest.raises(ValueError, match="must be in a folder that exists"):
        case.export(case.engine, tmp_path / "missing" / "net")
    (tmp_path / "other").write_bytes(b"other")
    name = type(case.engine).__name__
    with pytest.raises(ValueError, match=rf"was not written by {name}\.export"):
        type(case.engine).load(tmp_path / "other")


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_copies_have_latencies_and_costs(case, duplicate):
    expected = case.calibrate(case.engine, repeats=1)
    made = duplicate(case.engine)
    made = pickle.loads(made) if isinstance(made, bytes) else made
    assert made.latencies == case.engine.latencies
    assert expected in made.latencies.values()
    assert case.exits(made, budget=case.costs[1]).tolist() == [1, 1]
    before = case.engine.latencies
    case.calibrate(made, repeats=2)
    assert case.engine.latencies == before


def test_a_budget_is_compared_with_all_digits_of_the_least():
    least = 1234567890123456
    with pytest.raises(ValueError, match=f"must be at least {least}, the multiply-adds"):
        last_affordable(least - 1, [least, 2 * least])
    assert last_affordable(least, [least, 2 * least]) == 0


def test_the_repr_names_outputs_and_device(case):
    text = repr(case.engine)
    assert text.startswith(f"{type(case.engine).__name__}(num_outputs=3, ")
    assert text.endswith(f"device={jax.devices()[0]!r})")
