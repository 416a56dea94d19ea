"""Task gradients of random programs against `jax.jacrev`, in float64."""

import jax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.random_programs import largest_difference

TOLERANCE = 1e-9


# One loss, several one after the other, and enough to be pulled back together.
FEW = (1, 2, 3, 8)


def assert_as_jacrev(seeds, is_compiled, num_operations, num_losses):
    for number, seed in enumerate(seeds):
        difference = largest_difference(
            seed, is_compiled, num_operations=num_operations, num_losses=num_losses
        )
        assert difference <= TOLERANCE, f"program {seed} (number {number}) differs by {difference}"
        if number % 20 == 19:
            jax.clear_caches()  # gigabytes of programs that run once


def test_a_hundred_programs(x64):
    assert_as_jacrev(range(3000, 3100), True, (3, 6), FEW)


def test_programs_without_jit(x64):
    assert_as_jacrev(range(3000, 3002), False, (3, 5), FEW)


@settings(max_examples=5)
@given(seed=st.integers(0, 2**32 - 1))
def test_any_program(seed):
    with jax.enable_x64(True):
        assert_as_jacrev([seed], True, (3, 6), FEW)


@pytest.mark.slow
def test_a_thousand_programs(x64):
    assert_as_jacrev(range(1000), True, (10, 40), range(1, 13))


@pytest.mark.slow
def test_many_programs_without_jit(x64):
    assert_as_jacrev(range(100), False, (4, 12), range(1, 13))
