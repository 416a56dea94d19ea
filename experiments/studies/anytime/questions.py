"""Questions of the study, and the runs that answer them."""

from experiments.lab.sweep import Question
from experiments.studies.anytime.candidates import ALONE, CANDIDATES
from experiments.studies.anytime.problems import FAMILIES, IMAGES, SCREEN, SETTINGS, NetProblem

# Seeds that choose a rate: two for all candidates, ten for the methods in the conclusions.
TWO, TEN = range(2), range(10, 20)

# Seeds of the tests: the first, and fresh ones, which nothing saw before their question.
FIRST, FRESH = range(100, 120), range(200, 240)


def kind(question: Question) -> range:
    """Return all test seeds of the question's kind; another question may have tested more."""
    return next(seeds for seeds in (FIRST, FRESH, TEN) if question.seeds[0] in seeds)


def _names(*problems: NetProblem) -> tuple[str, ...]:
    return tuple(problem.name for problem in problems)


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

_ON_IMAGES = ("sgd", *ALONE, "sgd-clipped", "osgd-shared", "osgd-all", "aligned_mtl")

QUESTIONS = {
    # On one net for sequences, then on the others.
    "screen": Question(
        "Which of all methods are the best on validation data?",
        _names(SCREEN),
        tuple(CANDIDATES),
        tuned=TWO,
        seeds=range(0),
    ),
    "rank": Question(
        "Which of the better ones stay so with other seeds?",
        _names(SCREEN),
        _RANKED,
        tuned=TWO,
        seeds=TEN,
        stage="rank",
    ),
    "test": Question(
        "Does the best of each kind beat SGD on test data?",
        _names(SCREEN),
        (*_ON_FIRST, *ALONE),
        tuned=TWO,
        seeds=FIRST,
    ),
    "families": Question(
        "And on other families?",
        ("mnist1d-depth", "mnist1d-branched"),
        (*_ON_SOME, *ALONE),
        tuned=TWO,
        seeds=FIRST,
    ),
    "larger": Question(
        "And on larger nets?",
        ("mnist1d-both", "mnist1d-width-large"),
        (*_ON_MOST, *ALONE),
        tuned=TWO,
        seeds=FIRST,
    ),
    "smaller": Question(
        "And on a smaller one?",
        ("mnist1d-branched-small",),
        (*_COMPARED, "osgd-reach", *ALONE),
        tuned=TWO,
        seeds=FIRST,
    ),
    "rates": Question(
        "Does it stay so where ten seeds choose the rates?",
        _names(*FAMILIES),
        _BY_TEN,
        tuned=TEN,
        seeds=FIRST,
    ),
    "confirm": Question(
        "Which scope is the better default, and does OSGD add to clipping?",
        _names(*FAMILIES),
        (*_COMPARED, "osgd-all-clipped"),
        tuned=TEN,
        seeds=FRESH,
    ),
    "mixed": Question(
        "Does it help to train the last output first?",
        ("mnist1d-width", "mnist1d-branched-small"),
        ("sgd", "sgd-clipped", "sgd-mixed"),
        tuned=TEN,
        seeds=FRESH[:20],
    ),
    # In other settings.
    "settings": Question(
        "Does it stay so in other settings?",
        _names(SCREEN, *SETTINGS),
        ("sgd", "sgd-clipped", "osgd-all"),
        tuned=TEN,
        seeds=FRESH[:20],
    ),
    "settings-by-two": Question(
        'And with scope "reach", by two seeds?',
        _names(*SETTINGS),
        ("sgd", "osgd-reach"),
        tuned=TWO,
        seeds=TEN,
    ),
    "adamw": Question(
        "Does OSGD help before AdamW?",
        _names(SCREEN),
        ("adamw", "osgd-adamw"),
        tuned=TEN,
        seeds=FRESH[:20],
    ),
    # On images.
    "images": Question(
        "Is it the same on images?",
        _names(*IMAGES),
        _ON_IMAGES,
        tuned=TWO,
        seeds=FIRST[:10],
    ),
    "images-best": Question(
        "Do the other best methods help on images?",
        ("fashion-width", "cifar-width"),
        (_BEST_FIXED, *_BEST),
        tuned=TWO,
        seeds=FIRST[:10],
    ),
    "images-again": Question(
        "Do OSGD and Aligned-MTL keep up with clipping on images by ten seeds' rates?",
        ("fashion-width", "fashion-branched"),
        ("sgd", "sgd-clipped", "osgd-all", "aligned_mtl"),
        tuned=TEN,
        seeds=FRESH[:20],
    ),
    "short-fashion": Question(
        "Is it the same where images are hardly trained?",
        ("fashion-width-short",),
        (*_COMPARED, "osgd-clipped", "aligned_mtl", "random", *ALONE),
        tuned=TWO,
        seeds=FIRST[:5],
    ),
    "short-cifar": Question(
        "And where they are harder?",
        ("cifar-width-short",),
        (*_COMPARED, "aligned_mtl"),
        tuned=TWO,
        seeds=FIRST[:5],
    ),
    "short-again": Question(
        "And by ten seeds' rates?",
        ("fashion-width-short",),
        _COMPARED,
        tuned=TEN,
        seeds=FIRST[:10],
    ),
    # Why.
    "conflict": Question(
        "Where do losses conflict?",
        _names(*FAMILIES),
        ("sgd",),
        tuned=TEN,
        seeds=TEN,
        stage="look",
    ),
    "conflict-images": Question(
        "And on images?",
        _names(*IMAGES),
        ("sgd",),
        tuned=TWO,
        seeds=TEN[:3],
        stage="look",
    ),
}
