"""Small steps compiled for TPU and GPU, where the compilers are installed."""

import functools

import pytest

from experiments.benchmark import accelerators

_SEVERAL = ("v5e-4", "v5e-8", "v5e-16", "h100-4")
_ONE = ("v5e-1", "h100-1")


def only_with_compiler(chips):
    if not accelerators.can_compile_for(chips):
        pytest.skip(f"no compiler for {chips}: make test-accelerators")


@functools.cache
def step(chips, net, way):
    program = accelerators.step_program(chips, net, "float32", 128, way)
    return accelerators.figures(accelerators.compiled_for(chips, program))


def sent(figures):
    return sum(figures["sent_bytes"].values())


@pytest.mark.parametrize("chips", _SEVERAL)
def test_axis_name_sends_and_holds_less_than_plain_jit(chips):
    only_with_compiler(chips)
    sgd, plain, split = (step(chips, "kernels", way) for way in ("sgd", "osgd", "osgd, axis_name"))
    # Three, two and one losses reach the kernels.
    assert sent(split) <= 1.01 * (2 + 1) / 2 * sent(sgd)
    assert sent(split) < sent(plain)
    assert split["temporary_bytes"] < plain["temporary_bytes"]
    assert split["scatters"] == split["callbacks"] == split["loops"] == 0


@pytest.mark.parametrize("chips", ["v5e-4", "h100-4"])
def test_axis_name_sends_no_more_where_most_arrays_are_small(chips):
    only_with_compiler(chips)
    plain, split = (step(chips, "branched", way) for way in ("osgd", "osgd, axis_name"))
    assert sent(split) < sent(plain)
    assert split["peak_bytes"] <= 1.01 * plain["peak_bytes"]


@pytest.mark.parametrize(("chips", "limit"), [("v5e-1", 1.15), ("h100-1", 1.01)])
def test_pullbacks_run_one_after_the_other(chips, limit):
    only_with_compiler(chips)
    sgd, osgd = (step(chips, "kernels", way) for way in ("sgd", "osgd"))
    assert osgd["peak_bytes"] <= limit * sgd["peak_bytes"]


@pytest.mark.parametrize("update", ["osgd", "cagrad", "upgrad", "nash_mtl"])
@pytest.mark.parametrize("chips", _ONE)
def test_nothing_that_makes_weights_is_rounded_scattered_or_sent_to_the_host(chips, update):
    only_with_compiler(chips)
    program = accelerators.update_program(chips, update)
    found = accelerators.figures(accelerators.compiled_for(chips, program))
    assert set(found["products"]) <= {"f32 highest"}
    assert found["products"]
    assert found["scatters"] == found["callbacks"] == 0
