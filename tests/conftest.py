"""Settings shared by all tests."""

import hypothesis
import jax
import pytest

hypothesis.settings.register_profile(
    "osgd_jax",
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("osgd_jax")


@pytest.fixture
def x64():
    """Float64 within the test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def not_finite():
    """Allow numbers that are not finite, also where `make test-guards` looks for them."""
    with jax.debug_nans(False), jax.debug_infs(False):
        yield
