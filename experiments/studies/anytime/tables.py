"""The tables of the study that compare methods: on one problem, and on many."""

import numpy as np

from experiments.lab.report import Table
from experiments.lab.statistics import Interval, interval
from experiments.lab.sweep import Question, Sweep
from experiments.studies.anytime import times
from experiments.studies.anytime.candidates import ALONE, CANDIDATES
from experiments.studies.anytime.problems import (
    ALL,
    FAMILIES,
    IMAGES,
    PROBLEMS,
    SCREEN,
    SETTINGS,
    NetProblem,
)
from experiments.studies.anytime.questions import FIRST, FRESH, QUESTIONS, TEN, TWO, kind
from experiments.studies.anytime.results import best_tuned, ceilings

# Rates beside the best that are shown, as factors.
_NEAR = (0.25, 0.5, 1, 2, 4)

_PAIRS = (
    ("osgd-all", "osgd-shared"),
    ("osgd-all", "sgd"),
    ("osgd-shared", "sgd"),
    ("sgd-clipped", "osgd-all"),
    ("osgd-all-clipped", "sgd-clipped"),
)


def questions(runs: Sweep) -> Table:
    """Return what is asked, of which runs, and how many there are."""
    header = ["name", "question", "nets", "methods", "rate chosen by seeds", "then", "runs"]
    table = Table("", header)
    for name, question in QUESTIONS.items():
        pairs = [(p, m) for p in question.problems for m in question.methods]
        count = sum(len(runs.answers(question, *pair)) for pair in pairs)
        complete = not any(runs.lacking(question, *pair) for pair in pairs)
        methods = ", ".join(_methods(question))
        if question.methods == tuple(CANDIDATES):
            methods = f"all {len(CANDIDATES)}"
        then = f"{question.stage}: {_shown(question.seeds)}" if question.seeds else ""
        said = f"{count:,}" if complete else f"{count:,}, incomplete"
        nets, chosen = ", ".join(question.problems), _shown(question.tuned)
        table.add(f"`{name}`", question.asked, nets, methods, chosen, then, said)
    return table


def _methods(question: Question) -> list[str]:
    """Names of the methods, with one for all outputs that are trained alone."""
    return list(dict.fromkeys("alone" if n in ALONE else n for n in question.methods))


def problems(_: Sweep) -> Table:
    """The nets and their training."""
    rows = []
    for problem in ALL:
        row = [problem.name, problem.net, problem.data, f"{problem.train_size:,}"]
        row += ["×".join(map(str, problem.input_shape)), problem.epochs, problem.batch_size]
        rows.append([*row, "×".join(map(str, problem.widths))])
    header = ["problem", "net", "data", "training examples", "input", "epochs", "batch", "widths"]
    return Table("", header, rows)


def tests(runs: Sweep, problem: str, seeds: str) -> Table:
    """All tests on one problem, best first, at rates that `"two"` or `"ten"` seeds chose."""
    on, tuned = PROBLEMS[problem], {"two": TWO, "ten": TEN}[seeds]
    bases = {name: runs.result(on.name, name, tuned, FIRST) for name in ("sgd", "sgd-clipped")}
    rows = []
    for name in CANDIDATES:
        if found := runs.result(on.name, name, tuned, FIRST):
            differences = [
                "" if base is None or name == other else str(found.over(base))
                for other, base in bases.items()
            ]
            means = [f"{mean:.1f}" for mean in found.means] + [f"{found.means.mean():.2f}"]
            rows.append([name, found.shown_rate, *means, *differences, len(found.tests)])
    rows.sort(key=lambda row: -float(row[-4]))
    if (ceiling := ceilings(runs, on)) is not None:
        means = [f"{mean:.1f}" for mean in ceiling] + [f"{np.mean(ceiling):.2f}"]
        rows.append(["*alone*", "", *means, "", "", ""])
    outputs = [f"output {k + 1}" for k in range(on.outputs)]
    compared = [f"mean − {base}'s" for base in bases]
    return Table("", ["method", "rate", *outputs, "mean", *compared, "seeds"], rows)


def gains(runs: Sweep, question: str, base: str) -> Table:
    """Return the lead of a question's later methods over one, by problem, and their means."""
    asked = QUESTIONS[question]
    others = _methods(asked)[_methods(asked).index(base) + 1 :]
    rows, means = [], {name: [] for name in others}
    for problem in asked.problems:
        on = runs.result(problem, base, asked.tuned, kind(asked))
        if on is None:
            continue
        row, seeds = [problem, f"{on.means.mean():.1f}"], {len(on.tests)}
        for name in others:
            shown = ""
            if name == "alone":
                if (ceiling := ceilings(runs, PROBLEMS[problem])) is not None:
                    means[name].append(float(np.mean(ceiling - on.means)))
                    shown = f"{means[name][-1]:+.2f}"
            elif found := runs.result(problem, name, asked.tuned, kind(asked)):
                means[name].append(found.over(on).mean)
                shown = str(found.over(on))
                seeds.add(len(found.tests.keys() & on.tests))
            row.append(shown)
        rows.append([*row, " to ".join(map(str, sorted(seeds)))])
    if len(rows) > 1:
        over = [str(interval(np.array(each))) if len(each) > 1 else "" for each in means.values()]
        rows.append(["*mean, interval over problems*", "", *over, ""])
    return Table("", ["problem", base, *(f"{name} − {base}" for name in others), "seeds"], rows)


def tested(runs: Sweep, name: str, base: str, problem: str) -> str:
    """Return the lead of a candidate over another in the first tests, at rates by as many seeds."""
    found = best_tuned(runs, PROBLEMS[problem], name, base)
    return str(found[0].over(found[1])) if found else "missing"


def difference(runs: Sweep, question: str, name: str, base: str, over: str) -> str:
    """Return the lead of a candidate over another on one problem, or on average."""
    found = _differences(runs, question, name, base)
    shown = interval(found[over]) if over in found else _average(found, over)
    return str(shown or "missing").replace("-", "−")


def summary(runs: Sweep) -> Table:
    """Return the gains of clipping and OSGD over SGD with fresh seeds, and the time of a step."""
    rows = []
    names = {"sgd-clipped": "SGD, gradient clipped to norm 1"}
    names |= {f"osgd-{scope}": f'OSGD, `scope="{scope}"`' for scope in ("all", "shared")}
    for name, about in names.items():
        found = _differences(runs, "confirm", name, "sgd")
        if not found:
            continue
        both = [average for over in ("seeds", "nets") if (average := _average(found, over))]
        gain = [f"{both[0].mean:+.2f}", *(f"± {each.half_width:.2f}" for each in both)]
        ahead = [interval(values) for values in found.values()]
        beyond = sum(each.mean > each.half_width for each in ahead)
        counts = [f"{sum(each.mean > 0 for each in ahead)} of {len(ahead)}", beyond]
        measured = (times.median(runs.store, problem, name) for problem in found)
        steps = [time for time in measured if time is not None]
        time = f"{min(steps):.2f} to {max(steps):.2f}" if steps else ""
        rows.append([about, *gain, *counts, time])
    header = ["method", "over SGD", "over seeds", "over nets", "ahead on", "beyond the interval"]
    return Table("", [*header, "time of a step over SGD's"], rows)


def rates(runs: Sweep) -> Table:
    """Validation accuracy at the best rate of ten seeds and at multiples of it."""
    rows = []
    for problem in FAMILIES:
        best = {}
        for name in QUESTIONS["rates"].methods:
            if not runs.to_tune(problem.name, name, TEN):
                scores = runs.tuning(problem.name, name, TEN)
                best[name] = runs.best_rate(problem.name, name, TEN), scores
        for name, (rate, scores) in best.items():
            near = [np.mean(list(scores.get(rate * by, {0: np.nan}).values())) for by in _NEAR]
            shown = ["" if np.isnan(mean) else f"{mean:.1f}" for mean in near]
            differences = ["", ""]
            if name != "osgd-shared" and "osgd-shared" in best:
                other, base = best["osgd-shared"]
                values = [scores[rate][seed] - base[other][seed] for seed in TEN]
                on_tests = tested(runs, name, "osgd-shared", problem.name)
                differences = [str(interval(np.array(values))), on_tests]
            rows.append([problem.name, name, f"{rate:g}", *shown, *differences])
    header = ["problem", "method", "best rate", *(f"×{by:g}" for by in _NEAR)]
    return Table("", [*header, "best − osgd-shared's", "tests − osgd-shared's"], rows)


def confirmed(runs: Sweep) -> Table:
    """Tests with fresh seeds, and paired differences of them, by problem and on average."""
    question, rows = QUESTIONS["confirm"], []
    scores = {name: _scores(runs, "confirm", name) for name in question.methods}
    pairs = [_differences(runs, "confirm", *pair) for pair in _PAIRS]
    for problem in question.problems:
        means = [
            f"{each[problem].mean():.2f}" if problem in each else "" for each in scores.values()
        ]
        compared = [str(interval(each[problem])) if problem in each else "" for each in pairs]
        rows.append([problem, *means, *compared])
    for over, said in (("seeds", "seeds"), ("nets", "problems")):
        overall = [str(_average(found, over) or "") for found in pairs]
        rows.append([f"*mean, interval over {said}*", *[""] * len(scores), *overall])
    return Table("", ["problem", *question.methods, *(f"{a} − {b}" for a, b in _PAIRS)], rows)


def scopes(runs: Sweep) -> Table:
    """Scope "all" less scope "shared" on every net of the study, and the mean over nets."""
    rows, means = [], []
    for problem, by, seeds, found in _scopes(runs, "all"):
        rows.append([problem.name, by, seeds, str(found)])
        means.append(found.mean)
    if len(means) > 1:
        over = str(interval(np.array(means)))
        rows.append([f"*mean over the {len(means)} nets, interval over nets*", "", "", over])
    header = ["problem", "seeds that chose the rate", "test seeds", "osgd-all − osgd-shared"]
    return Table("", header, rows)


def scope(runs: Sweep, among: str) -> str:
    """The mean over nets, `"all"` or `"images"`, of scope "all" less scope "shared"."""
    means = np.array([found.mean for *_, found in _scopes(runs, among)])
    return str(interval(means)) if len(means) else "missing"


def screened(runs: Sweep) -> Table:
    """Validation accuracy of all candidates in tuning and in ranking, best first."""
    found = []
    for name in CANDIDATES:
        if not (means := runs.mean_scores(SCREEN.name, name, TWO)):
            continue
        rate = runs.best_rate(SCREEN.name, name, TWO)
        ranked = runs.at(SCREEN.name, name, "rank", rate, TEN)
        ranks = [row["validation_accuracy"] for row in ranked]
        steps = {
            "ranking": ranks,
            "tests": any(row["stage"] == "test" for row in runs.store.of(SCREEN.name, name)),
        }
        steps["other problems"] = any(runs.store.of(p.name, name) for p in FAMILIES[1:])
        went = ", ".join(step for step, gone in steps.items() if gone)
        ranked = f"{100 * np.mean(ranks):.1f}" if ranks else ""
        shown = [CANDIDATES[name].about, f"{rate:g}", f"{means[rate]:.1f}", ranked, went]
        found.append((means[rate], [name, *shown]))
    found.sort(key=lambda each: -each[0])
    header = ["name", "method", "rate", "tuned", "ranked", "went on to"]
    return Table("", header, [row for _, row in found])


def settings_by_two(runs: Sweep) -> Table:
    """OSGD against SGD in other settings, at rates that two seeds chose."""
    rows = []
    for problem in (SCREEN, *SETTINGS):
        seeds = FIRST if problem is SCREEN else TEN
        base = runs.result(problem.name, "sgd", TWO, seeds)
        for name in ("osgd-shared", "osgd-all", "osgd-reach", "osgd-leaf"):
            if base and (found := runs.result(problem.name, name, TWO, seeds)):
                means = (f"{each.means.mean():.1f}" for each in (base, found))
                rows.append([problem.name, name, *means, found.over(base), len(found.tests)])
    return Table("", ["setting", "method", "SGD", "OSGD", "OSGD − SGD", "seeds"], rows)


def _shown(seeds: range) -> str:
    return f"{seeds[0]} to {seeds[-1]}"


def _scores(runs: Sweep, question: str, name: str) -> dict[str, np.ndarray]:
    """Mean over outputs of each test, `[seeds]`, by problem; of those with all seeds."""
    asked = QUESTIONS[question]
    found = {p: runs.result(p, name, asked.tuned, asked.seeds) for p in asked.problems}
    return {
        problem: np.array([each.tests[seed].mean() for seed in asked.seeds])
        for problem, each in found.items()
        if each and len(each.tests) == len(asked.seeds)
    }


def _differences(runs: Sweep, question: str, name: str, base: str) -> dict[str, np.ndarray]:
    first, second = (_scores(runs, question, each) for each in (name, base))
    return {problem: first[problem] - second[problem] for problem in first if problem in second}


def _average(found: dict[str, np.ndarray], over: str) -> Interval | None:
    """The mean over all problems and seeds; its interval over `"seeds"` or over `"nets"`."""
    axis = {"seeds": 0, "nets": 1}.get(over)
    return None if not found or axis is None else interval(np.mean(list(found.values()), axis))


def _scopes(runs: Sweep, among: str) -> list[tuple[NetProblem, str, str, Interval]]:
    found = []
    for problem in {"all": (*FAMILIES, *IMAGES), "images": IMAGES}[among]:
        for tuned, seeds in ((TEN, FRESH), (TEN, FIRST), (TWO, FIRST)):
            both = [runs.result(problem.name, f"osgd-{s}", tuned, seeds) for s in ("all", "shared")]
            if both[0] and both[1]:
                kind = f"{len(both[0].tests)}{' fresh' if seeds == FRESH else ''}"
                found.append((problem, str(len(tuned)), kind, both[0].over(both[1])))
                break
    return found
