"""Claims about each weighting: read by the tests, which check it, and by the documentation.

A new weighting needs an entry here; the common tests then run it.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from osgd_jax import weightings
from osgd_jax.weightings._base import Weighting

PROPERTIES = {
    "non-conflicting": "no loss increases, to first order: <g_i, d> >= 0 for all tasks",
    "order": "a permutation of the tasks permutes the weights",
    "row scale": "multiplying a gradient by a positive number does not turn the direction",
    "stops": "the direction is zero at Pareto-stationary points (some positive combination of the"
    " gradients is zero)",
    "Pareto": "the direction is zero at Pareto-stationary points only: no weight is negative",
}


class Entry(NamedTuple):
    """One weighting.

    Attributes:
      make: makes it, with default arguments, for a number of tasks.
      paper: authors, venue and year.
      losses: whether it needs the losses.
      key: whether it uses a PRNG key.
      others: whether it needs the gradients of a second batch.
      properties: names from `PROPERTIES`.
    """

    make: Callable[[int], Weighting]
    paper: str
    losses: bool = False
    key: Literal["no", "optional", "required"] = "no"
    others: bool = False
    properties: frozenset[str] = frozenset()


def extra_args(name: str, **kwargs: Any) -> dict[str, Any]:
    """Return of the extra arguments of `update` those for a method, which needs `others` or not."""
    if name not in CATALOGUE or not CATALOGUE[name].others:
        kwargs.pop("others")
    return kwargs


def _has(*properties: str) -> frozenset[str]:
    return frozenset(properties)


CATALOGUE: dict[str, Entry] = {
    "aligned_mtl": Entry(
        lambda _: weightings.aligned_mtl(), "Senushkin et al., CVPR 2023", properties=_has("order")
    ),
    "cagrad": Entry(
        lambda _: weightings.cagrad(),
        "Liu et al., NeurIPS 2021",
        properties=_has("order", "Pareto"),
    ),
    "config": Entry(
        lambda _: weightings.config(),
        "Liu et al., ICLR 2025",
        properties=_has("order", "row scale"),
    ),
    "constant": Entry(
        lambda k: weightings.constant(range(1, k + 1)), "—", properties=_has("Pareto")
    ),
    "dualproj": Entry(
        lambda _: weightings.dualproj(),
        "Lopez-Paz and Ranzato, NeurIPS 2017",
        properties=_has("non-conflicting", "order", "stops", "Pareto"),
    ),
    "dwa": Entry(
        weightings.dwa, "Liu et al., CVPR 2019", losses=True, properties=_has("order", "Pareto")
    ),
    "fairgrad": Entry(
        lambda _: weightings.fairgrad(),
        "Ban and Ji, ICML 2024",
        properties=_has("non-conflicting", "order", "Pareto"),
    ),
    "famo": Entry(
        weightings.famo,
        "Liu et al., NeurIPS 2023",
        losses=True,
        properties=_has("order", "Pareto"),
    ),
    "gls": Entry(
        lambda _: weightings.gls(),
        "Chennupati et al., CVPRW 2019",
        losses=True,
        properties=_has("order", "Pareto"),
    ),
    "gradient_equilibrium": Entry(
        lambda _: weightings.gradient_equilibrium(),
        "Li et al., ICCV 2019",
        properties=_has("order", "Pareto"),
    ),
    "gradnorm": Entry(
        weightings.gradnorm,
        "Chen et al., ICML 2018",
        losses=True,
        properties=_has("order", "Pareto"),
    ),
    "gradvac": Entry(
        weightings.gradvac, "Wang et al., ICLR 2021", key="optional", properties=_has("Pareto")
    ),
    "imtl_g": Entry(
        lambda _: weightings.imtl_g(), "Liu et al., ICLR 2021", properties=_has("order")
    ),
    "inverse_norms": Entry(
        weightings.inverse_norms,
        "Wang et al., SISC 2021",
        properties=_has("order", "Pareto"),
    ),
    "mean": Entry(lambda _: weightings.mean(), "—", properties=_has("order", "Pareto")),
    "mgda": Entry(
        lambda _: weightings.mgda(),
        "Désidéri, CRM 2012; Sener and Koltun, NeurIPS 2018",
        properties=_has("non-conflicting", "order", "stops", "Pareto"),
    ),
    "modo": Entry(
        weightings.modo,
        "Chen et al., NeurIPS 2023",
        others=True,
        properties=_has("order", "Pareto"),
    ),
    "nash_mtl": Entry(
        lambda _: weightings.nash_mtl(),
        "Navon et al., ICML 2022",
        properties=_has("non-conflicting", "order", "row scale", "Pareto"),
    ),
    "orthogonal": Entry(lambda _: weightings.orthogonal(), "Wan et al., ICML 2020"),
    "pcd": Entry(weightings.pcd, "Varam and AlHajri, TMLR 2026", properties=_has("Pareto")),
    "pcgrad": Entry(
        lambda _: weightings.pcgrad(),
        "Yu et al., NeurIPS 2020",
        key="optional",
        properties=_has("Pareto"),
    ),
    "random": Entry(
        lambda _: weightings.random(),
        "Lin et al., TMLR 2022",
        key="required",
        properties=_has("Pareto"),
    ),
    "relobralo": Entry(
        weightings.relobralo,
        "Bischof and Kraus, arXiv 2110.09813",
        losses=True,
        key="required",
        properties=_has("order", "Pareto"),
    ),
    # At the default rate its steps jump between vertices of the simplex, without a derivative.
    "sdmgrad": Entry(
        lambda k: weightings.sdmgrad(k, learning_rate=0.1),
        "Xiao et al., NeurIPS 2023",
        others=True,
        properties=_has("order", "Pareto"),
    ),
    # Its properties are those of the weighting.
    "smooth": Entry(
        lambda k: weightings.smooth(weightings.mgda(), k, 0.9),
        "Zhou et al., NeurIPS 2022",
        properties=_has("order", "Pareto"),
    ),
    "softadapt": Entry(
        weightings.softadapt,
        "Heydari et al., arXiv 1912.12355",
        losses=True,
        properties=_has("order", "Pareto"),
    ),
    "stch": Entry(
        lambda _: weightings.stch(),
        "Lin et al., ICML 2024",
        losses=True,
        properties=_has("order", "Pareto"),
    ),
    "sum": Entry(lambda _: weightings.sum(), "—", properties=_has("order", "Pareto")),
    "uncertainty": Entry(
        weightings.uncertainty,
        "Kendall et al., CVPR 2018",
        losses=True,
        properties=_has("order", "Pareto"),
    ),
    "upgrad": Entry(
        lambda _: weightings.upgrad(),
        "Quinton and Rey, arXiv 2406.16232",
        properties=_has("non-conflicting", "order", "stops", "Pareto"),
    ),
}
