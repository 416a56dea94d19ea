"""Task gradients of random programs against `jax.jacrev`, in float64."""

import jax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.random_programs import largest_difference

TOLERANCE = 1e-9


def assert_as_jacrev(seeds, transform, num_operations):
    for number, seed in enumerate(seeds):
        difference = largest_difference(seed, transform, num_operations=num_operations)
        assert difference <= TOLERANCE, f"program {seed} (number {number}) differs by {difference}"
        if number % 20 == 19:
            jax.clear_caches()  # gigabytes of programs that run once


def test_a_hundred_programs(x64):
    assert_as_jacrev(range(3000, 3100), jax.jit, (4, 8))


def test_programs_without_jit(x64):
    assert_as_jacrev(range(3000, 3002), lambda fun: fun, (4, 6))


@settings(max_examples=5)
@given(seed=st.integers(0, 2**32 - 1))
def test_any_program(seed):
    with jax.enable_x64(True):
        assert_as_jacrev([seed], jax.jit, (3, 6))


@pytest.mark.slow
def test_a_thousand_programs(x64):
    assert_as_jacrev(range(1000), jax.jit, (10, 40))


@pytest.mark.slow
def test_many_programs_without_jit(x64):
    assert_as_jacrev(range(1000), lambda fun: fun, (10, 40))
