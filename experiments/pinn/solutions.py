"""Solutions that no closed form gives: one by an integral, one by a spectral method."""

import math

import jax
import jax.numpy as jnp
import numpy as np

# Nodes of the integral: beyond 13 the weight is below 1e-30 of its maximum, for Burgers' viscosity.
_NODES = np.linspace(-13, 13, 601)


def cole_hopf(points: jax.Array, viscosity: float) -> jax.Array:
    """Burgers' solution from -sin(pi x) at points (t, x), `[N, 2]` to `[N]`.

    The transformation of Hopf and Cole makes a heat equation of it, whose solution is a mean over
    x - 2 sqrt(nu t) z with the weights exp(-z^2 - cos(pi y) / (2 pi nu)). The integrand is entire
    and decays as a Gaussian, where equally spaced nodes are exact to rounding.
    """
    time, place = points[:, :1], points[:, 1:]
    shifted = place - 2 * jnp.sqrt(viscosity * time) * _NODES
    exponents = -(_NODES**2) - jnp.cos(jnp.pi * shifted) / (2 * jnp.pi * viscosity)
    weights = jax.nn.softmax(exponents, axis=1)
    return -jnp.sum(weights * jnp.sin(jnp.pi * shifted), axis=1)


def allen_cahn(
    times: np.ndarray, places: np.ndarray, modes: int = 1024, step: float = 1e-3
) -> np.ndarray:
    """Solve u_t = 1e-4 u_xx + 5 u - 5 u^3 from x^2 cos(pi x), periodic over [-1, 1].

    Fourier modes in space; in time the fourth-order exponential Runge-Kutta method ETDRK4 of Cox
    and Matthews, with the linear part exact and coefficients by contour integrals: Kassam and
    Trefethen, "Fourth-order time-stepping for stiff PDEs", SIAM J. Sci. Comput. 2005.

    Args:
      times: equally spaced from 0.
      places: where the solution is wanted.
      modes: nodes in space, an even number.
      step: longest step in time.

    Returns:
      Values `[times, places]`, float64.
    """
    nodes = -1 + 2 * np.arange(modes) / modes
    waves = np.pi * np.arange(modes // 2 + 1)
    substeps = math.ceil(round((times[1] - times[0]) / step, 6))
    advance = _etdrk4(5 - 1e-4 * waves**2, lambda u: -5 * u**3, (times[1] - times[0]) / substeps)
    found = [np.fft.rfft(nodes**2 * np.cos(np.pi * nodes))]
    for _ in times[1:]:
        current = found[-1]
        for _ in range(substeps):
            current = advance(current)
        found.append(current)
    # The interpolating trigonometric polynomial: all waves but the first and the last stand twice.
    twice = np.r_[1, np.full(modes // 2 - 1, 2), 1] / modes
    basis = np.exp(1j * np.outer(waves, places + 1))
    return np.real((np.array(found) * twice) @ basis)


def _etdrk4(linear: np.ndarray, nonlinear, step: float):
    """One step of u' = linear * u + nonlinear(u), from Fourier coefficients to such."""
    # Means over a circle around each argument, since the formulas cancel near zero.
    circle = np.exp(1j * np.pi * (np.arange(32) + 0.5) / 32)
    z = step * linear[:, None] + circle

    def mean(values: np.ndarray) -> np.ndarray:
        return step * np.real(values.mean(axis=1))

    whole, half = np.exp(step * linear), np.exp(step * linear / 2)
    middle = mean((np.exp(z / 2) - 1) / z)
    first = mean((-4 - z + np.exp(z) * (4 - 3 * z + z**2)) / z**3)
    inner = mean((2 + z + np.exp(z) * (z - 2)) / z**3)
    last = mean((-4 - 3 * z - z**2 + np.exp(z) * (4 - z)) / z**3)

    def rate(u: np.ndarray) -> np.ndarray:
        return np.fft.rfft(nonlinear(np.fft.irfft(u)))

    def advance(u: np.ndarray) -> np.ndarray:
        at_start = rate(u)
        a = half * u + middle * at_start
        at_a = rate(a)
        at_b = rate(half * u + middle * at_a)
        at_end = rate(half * a + middle * (2 * at_b - at_start))
        return whole * u + first * at_start + 2 * inner * (at_a + at_b) + last * at_end

    return advance
