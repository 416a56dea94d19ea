"""What the study asks, and which runs answer it."""

from typing import Literal, NamedTuple

from experiments.study.candidates import CANDIDATES
from experiments.study.problems import FAMILIES, IMAGES, PROBLEMS, SCREEN, SETTINGS, Problem

# Seeds that choose a rate: two for all candidates, ten for those that the conclusions speak of.
TWO, TEN = range(2), range(10, 20)

# Seeds of the tests: the first, and those that nothing saw before the question that they answer.
FIRST, FRESH = range(100, 120), range(200, 240)


class Question(NamedTuple):
    """What is asked, and of which runs.

    Each method's rate is chosen on validation data; at this rate it trains from other seeds.

    Attributes:
      asked: the question in words.
      problems: what is trained.
      methods: names of candidates; `"alone"` for each output trained on its own loss.
      tuned: seeds that choose the rate.
      seeds: those that train at this rate.
      stage: what these are for: `"rank"` on validation data, `"test"` on test data, or `"look"` at
        the gradients of each stage.
    """

    asked: str
    problems: tuple[Problem, ...]
    methods: tuple[str, ...]
    tuned: range
    seeds: range
    stage: Literal["rank", "test", "look"] = "test"

    @property
    def tested(self) -> range:
        """All seeds of this kind: another question may have had more of them tested."""
        return next(kind for kind in (FIRST, FRESH, TEN) if self.seeds[0] in kind)


def _on(*names: str) -> tuple[Problem, ...]:
    return tuple(PROBLEMS[name] for name in names)


_COMPARED = ("sgd", "sgd-clipped", "osgd-shared", "osgd-all")
_CONTROLS = ("sgd-osgd-length", "osgd-sgd-length")

# Of the published methods, the best five in the ranking; of fixed weights, the best.
_BEST = ("aligned_mtl", "random", "dualproj", "gradient_equilibrium", "stch")
_BEST_FIXED = "sgd-early"

# At rates by two seeds: what is tested on most nets, on some, on the first, and ranked there.
_ON_MOST = (*_COMPARED, "osgd-reach", "osgd-clipped", _BEST_FIXED, "adamw", *_CONTROLS, *_BEST)
_ON_SOME = (*_ON_MOST, "sgd-longer", "sgd-warmup", "osgd-warmup")
_ON_FIRST = (*_ON_SOME, "osgd-leaf", "sgd-late", "sgd-late-mild", "lars")
_RANKED = (*_ON_FIRST, "osgd-reversed", "osgd-random", "osgd-normalized", "osgd-half")
_RANKED += ("osgd-conflicts", "upgrad", "uncertainty")

_BY_TEN = ("sgd", "sgd-clipped", "sgd-longer", "osgd-shared", "osgd-all", "osgd-reach")
_BY_TEN += ("osgd-clipped", "osgd-all-clipped", "aligned_mtl", *_CONTROLS)

_ON_IMAGES = ("sgd", "alone", "sgd-clipped", "osgd-shared", "osgd-all", "aligned_mtl")

QUESTIONS = {
    # On one net for sequences, then on the others.
    "screen": Question(
        "Which of all methods are the best on validation data?",
        (SCREEN,),
        tuple(CANDIDATES),
        tuned=TWO,
        seeds=range(0),
    ),
    "rank": Question(
        "Which of the better ones stay so with other seeds?",
        (SCREEN,),
        _RANKED,
        tuned=TWO,
        seeds=TEN,
        stage="rank",
    ),
    "test": Question(
        "Does the best of each kind beat SGD on test data?",
        (SCREEN,),
        (*_ON_FIRST, "alone"),
        tuned=TWO,
        seeds=FIRST,
    ),
    "families": Question(
        "And on other families?",
        _on("mnist1d-depth", "mnist1d-branched"),
        (*_ON_SOME, "alone"),
        tuned=TWO,
        seeds=FIRST,
    ),
    "larger": Question(
        "And on larger nets?",
        _on("mnist1d-both", "mnist1d-width-large"),
        (*_ON_MOST, "alone"),
        tuned=TWO,
        seeds=FIRST,
    ),
    "smaller": Question(
        "And on a smaller one?",
        _on("mnist1d-branched-small"),
        (*_COMPARED, "osgd-reach", "alone"),
        tuned=TWO,
        seeds=FIRST,
    ),
    "rates": Question(
        "Does it stay so where ten seeds choose the rates?",
        FAMILIES,
        _BY_TEN,
        tuned=TEN,
        seeds=FIRST,
    ),
    "confirm": Question(
        "Which scope is the better default, and does OSGD add to clipping?",
        FAMILIES,
        (*_COMPARED, "osgd-all-clipped"),
        tuned=TEN,
        seeds=FRESH,
    ),
    "mixed": Question(
        "Does it help to train the last output first?",
        _on("mnist1d-width", "mnist1d-branched-small"),
        ("sgd", "sgd-clipped", "sgd-mixed"),
        tuned=TEN,
        seeds=FRESH[:20],
    ),
    # In other settings.
    "settings": Question(
        "Does it stay so in other settings?",
        (SCREEN, *SETTINGS),
        ("sgd", "sgd-clipped", "osgd-all"),
        tuned=TEN,
        seeds=FRESH[:20],
    ),
    "settings-by-two": Question(
        'And with scope "reach", by two seeds?',
        SETTINGS,
        ("sgd", "osgd-reach"),
        tuned=TWO,
        seeds=TEN,
    ),
    "adamw": Question(
        "Does OSGD help before AdamW?",
        (SCREEN,),
        ("adamw", "osgd-adamw"),
        tuned=TEN,
        seeds=FRESH[:20],
    ),
    # On images.
    "images": Question(
        "Is it the same on images?",
        IMAGES,
        _ON_IMAGES,
        tuned=TWO,
        seeds=FIRST[:10],
    ),
    "images-best": Question(
        "Do the other best methods help on images?",
        _on("fashion-width", "cifar-width"),
        (_BEST_FIXED, *_BEST),
        tuned=TWO,
        seeds=FIRST[:10],
    ),
    "images-again": Question(
        "Do OSGD and Aligned-MTL keep up with clipping on images by ten seeds' rates?",
        _on("fashion-width", "fashion-branched"),
        ("sgd", "sgd-clipped", "osgd-all", "aligned_mtl"),
        tuned=TEN,
        seeds=FRESH[:20],
    ),
    "short-fashion": Question(
        "Is it the same where images are hardly trained?",
        _on("fashion-width-short"),
        (*_COMPARED, "osgd-clipped", "aligned_mtl", "random", "alone"),
        tuned=TWO,
        seeds=FIRST[:5],
    ),
    "short-cifar": Question(
        "And where they are harder?",
        _on("cifar-width-short"),
        (*_COMPARED, "aligned_mtl"),
        tuned=TWO,
        seeds=FIRST[:5],
    ),
    "short-again": Question(
        "And by ten seeds' rates?",
        _on("fashion-width-short"),
        _COMPARED,
        tuned=TEN,
        seeds=FIRST[:10],
    ),
    # Why.
    "conflict": Question(
        "Where do losses conflict?",
        FAMILIES,
        ("sgd",),
        tuned=TEN,
        seeds=TEN,
        stage="look",
    ),
    "conflict-images": Question(
        "And on images?",
        IMAGES,
        ("sgd",),
        tuned=TWO,
        seeds=TEN[:3],
        stage="look",
    ),
}
