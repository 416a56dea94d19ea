"""STUDY.md and its figures, made from the stored runs alone."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.study import figures, plan, problems
from experiments.study.candidates import CANDIDATES, CONFIRMED, CONTROLS, CORE, SCOPES
from experiments.study.problems import SCREEN, Problem
from experiments.study.runs import at_rates, best_rate, by_rate, read, to_tune
from experiments.study.statistics import Result, best_tuned, ceilings, interval, paired, result

COMMAND = "python -m experiments.study"

_BY_TWO_SEEDS = "Rates chosen with two seeds:"

# Rates beside the best that are shown, as factors.
_NEAR = (0.25, 0.5, 1, 2, 4)


def write(folder: Path) -> Path:
    """Write STUDY.md beside the folder of runs, and its figures into it.

    What is missing is said to be missing. The conclusions, which a person wrote, come from
    `conclusions.md` in the folder.

    Args:
      folder: of the runs.

    Returns:
      The path of STUDY.md.
    """
    conclusions = folder / "conclusions.md"
    parts = [
        "# The study of Orthogonalized SGD",
        f"Made by `{COMMAND}` from the runs in `{folder.name}/`, beside this file; every run is"
        " there, one line of JSON each. Do not edit: the text of the first section is in"
        f" `{folder.name}/conclusions.md`, the rest is generated.",
        conclusions.read_text().strip() if conclusions.exists() else "Conclusions: missing.",
        _how(),
        _problems_table(),
        *_families(folder),
        _rates(folder),
        _confirmed(folder),
        _screen(folder),
        *_why(folder),
        _price(folder),
        _nested_or_branched(folder),
        _settings(folder),
        _images(folder),
    ]
    path = folder.parent / "STUDY.md"
    path.write_text("\n\n".join(part for part in parts if part) + "\n")
    return path


def _how() -> str:
    tuning, ranking, tests = 2, len(plan.RANKING_SEEDS), len(plan.TEST_SEEDS)
    return f"""## How it was done

Every method gets the same budget: five learning rates, a factor of two apart, two seeds each, and
five more beyond the end if the best rate is at the end of the grid. The rate is chosen by the mean
accuracy over outputs on validation data. All methods see the same initial parameters and batches
for a seed, the same number of epochs and the same schedule (half a cosine down to zero) with
Nesterov momentum of 0.9, unless the method is another optimizer. Nets are normalised by batch.

Two seeds turned out to choose badly where single seeds fail. So the methods that the conclusions
speak of (part `rates`) were then tuned anew with {ranking} seeds, on the nets for sequences and on
{problems.IMAGES[0].name}, and tested at those rates; comparisons below take both sides from there,
or both from two seeds.

All candidates are tuned ({tuning} seeds) on {SCREEN.name}. The best {plan.RANKED}, and those that
answer a question, are ranked on validation data with {ranking} other seeds. The best
{plan.FINALISTS} of the ranking, and those that answer a question, go to the test data, with {tests}
seeds that were not used before, and to the other problems with sequences; to images, where a net
trains for minutes, go SGD, SGD clipped, two scopes and the best other method, with
{len(plan.IMAGE_TEST_SEEDS)} seeds or as many as the tables say. Differences are paired by seed,
with 95 % intervals of Student's t. There are many comparisons here and no correction for that: of
twenty intervals one is expected to leave out zero by chance."""


def _problems_table() -> str:
    rows = []
    for problem in (*problems.FAMILIES, *problems.IMAGES):
        rows.append(
            [
                *(problem.name, problem.net, problem.data, f"{problem.train_size:,}"),
                *("×".join(map(str, problem.input_shape)), problem.epochs, problem.batch_size),
                "×".join(map(str, problem.widths)),
            ]
        )
    header = ["problem", "net", "data", "training examples", "input", "epochs", "batch", "widths"]
    return _table(header, rows)


def _families(folder: Path) -> Iterator[str]:
    yield "## Does it beat SGD, and at which outputs?"
    yield (
        "Test accuracy in percent. The last columns are paired differences of the mean over"
        " outputs. *Alone* is each output's subnetwork trained on its own loss, at its own best"
        " rate: the ceiling; what SGD lacks to it is the gap that balancing could close. A rate"
        " with an asterisk is at the end of what was tried. The first table of each net is the one"
        f" to read: each rate was chosen with {len(plan.RANKING_SEEDS)} seeds. In the second, of"
        " all that was tested, two chose; these rates were tested before the others were known."
    )
    for problem in problems.FAMILIES:
        names = plan.Study(folder).shortlist()
        yield f"### {problem.name}"
        yield _results_table(folder, problem, CORE, "rates")
        yield _BY_TWO_SEEDS
        yield _results_table(folder, problem, names)
    if picture := figures.families(folder):
        yield f"![Accuracy against multiply-adds]({folder.name}/{picture.name})"


def _results_table(
    folder: Path, problem: Problem, names: tuple[str, ...], stage: str = "tune"
) -> str:
    bases = {name: result(folder, problem, name, stage) for name in ("sgd", "sgd-clipped")}
    rows, missing = [], []
    for name in dict.fromkeys((*names, *CANDIDATES)):
        found = result(folder, problem, name, stage)
        if found is None:
            missing += [name] if name in names else []
            continue
        differences = [
            "" if base is None or name == other else str(paired(found, base))
            for other, base in bases.items()
        ]
        rows.append(
            [name, f"{found.rate:g}{'*' if found.is_edge else ''}"]
            + [f"{mean:.1f}" for mean in found.means]
            + [f"{found.means.mean():.2f}", *differences, len(found.tests)]
        )
    rows.sort(key=lambda row: -float(row[-4]))
    if (ceiling := ceilings(folder, problem)) is not None:
        means = [f"{mean:.1f}" for mean in ceiling]
        rows.append(["*alone*", "", *means, f"{np.mean(ceiling):.2f}", "", "", ""])
    else:
        missing.append("alone")
    outputs = [f"output {k + 1}" for k in range(problem.outputs)]
    header = ["method", "rate", *outputs, "mean", *(f"mean − {base}'s" for base in bases), "seeds"]
    said = f"\n\nMissing: {', '.join(missing)}." if missing else ""
    return _table(header, rows) + said


def _rates(folder: Path) -> str:
    rows, missing = [], []
    for problem in problems.FAMILIES:
        found = {name: read(folder / problem.name / f"{name}.jsonl") for name in CORE}
        complete = {
            name: (best_rate(runs, "rates"), at_rates(runs, "rates"))
            for name, runs in found.items()
            if not to_tune(runs, "rates", CANDIDATES[name].rates)
        }
        missing += [f"{problem.name} {name}" for name in CORE if name not in complete]
        best = {name: scores[rate] for name, (rate, scores) in complete.items()}
        for name, (rate, scores) in complete.items():
            near = [np.mean(list(scores.get(rate * by, {0: np.nan}).values())) for by in _NEAR]
            differences = ["", ""]
            if name != "osgd-shared" and "osgd-shared" in best:
                base = best["osgd-shared"]
                values = np.array([best[name][seed] - base[seed] for seed in sorted(base)])
                tests = _gain(folder, problem, name, "osgd-shared")
                differences = [str(interval(values)), tests]
            shown = ["" if np.isnan(mean) else f"{mean:.1f}" for mean in near]
            rows.append([problem.name, name, f"{rate:g}", *shown, *differences])
    said = f"\n\nMissing: {', '.join(missing)}." if missing else ""
    header = ["problem", "method", "best rate", *(f"×{by:g}" for by in _NEAR)]
    header += ["best − osgd-shared's", "tests − osgd-shared's"]
    return (
        "## Which scope, and how much does the rate matter?\n\nValidation accuracy in percent, the"
        f" mean over outputs and {len(plan.RANKING_SEEDS)} seeds, at the best rate and at multiples"
        " of it. The last columns compare best with best, paired by seed: on this data, where both"
        " were chosen, so that they flatter alike, and on test data, with other seeds.\n\n"
        + _table(header, rows)
        + said
    )


def _confirmed(folder: Path) -> str:
    pairs = (("osgd-all", "osgd-shared"), ("osgd-all", "sgd"), ("osgd-shared", "sgd"))
    pairs += (("sgd-clipped", "osgd-all"), ("osgd-all-clipped", "sgd-clipped"))
    rows, missing = [], []
    differences: dict[tuple[str, str], list[np.ndarray]] = {pair: [] for pair in pairs}
    for problem in problems.FAMILIES:
        found = {name: result(folder, problem, name, "rates", "confirm") for name in CONFIRMED}
        seeds = plan.FRESH_SEEDS
        complete = {n: each for n, each in found.items() if each and len(each.tests) == len(seeds)}
        missing += [f"{problem.name} {name}" for name in CONFIRMED if name not in complete]
        if not complete:
            continue
        scores = {
            n: np.array([each.tests[s].mean() for s in seeds]) for n, each in complete.items()
        }
        means = [f"{scores[name].mean():.2f}" if name in scores else "" for name in CONFIRMED]
        compared = [""] * len(pairs)
        for i, pair in enumerate(pairs):
            if scores.keys() >= set(pair):
                difference = scores[pair[0]] - scores[pair[1]]
                differences[pair].append(difference)
                compared[i] = str(interval(difference))
        rows.append([problem.name, *means, *compared])
    for over, axis in (("seeds", 0), ("problems", 1)):
        overall = [
            str(interval(np.mean(each, axis))) if each else "" for each in differences.values()
        ]
        rows.append([f"*mean, interval over {over}*", *[""] * len(CONFIRMED), *overall])
    said = f"\n\nMissing: {', '.join(missing)}." if missing else ""
    header = ["problem", *CONFIRMED, *(f"{a} − {b}" for a, b in pairs)]
    return (
        "## Confirmed with fresh seeds\n\nWhich scope should be the default, and whether OSGD adds"
        " to clipping, was asked of the tests above, and so needs others:"
        f" {len(plan.FRESH_SEEDS)} seeds that no rate was chosen by, at the"
        " rates of part `rates`. Test accuracy in percent, the mean over outputs; differences"
        " paired by seed. The last rows are means over the problems: on these very nets, and as far"
        " as they stand for others.\n\n" + _table(header, rows) + said
    )


def _screen(folder: Path) -> str:
    tuned, ranking, tested = plan.tuned(folder), plan.ranking(folder), plan.finalists(folder)
    rows = []
    for name, score in tuned.items():
        means = by_rate(read(folder / SCREEN.name / f"{name}.jsonl"))
        went = "tests, other problems" if name in tested else "ranking" if name in ranking else ""
        ranked = f"{ranking[name]:.1f}" if name in ranking else ""
        rate = max(means, key=lambda rate: means[rate])
        rows.append([name, CANDIDATES[name].about, f"{rate:g}", f"{score:.1f}", ranked, went])
    missing = [name for name in CANDIDATES if name not in tuned]
    said = f"\n\nMissing: {', '.join(missing)}." if missing else ""
    header = ["name", "method", "rate", "tuned", "ranked", "went on to"]
    return (
        f"## What was screened, and on what evidence\n\nValidation accuracy in percent, mean over"
        f" outputs, on {SCREEN.name}: at the best rate in tuning (2 seeds) and in ranking"
        f" ({len(plan.RANKING_SEEDS)} seeds). What was tried to make OSGD better is named so.\n\n"
    ) + (_table(header, rows) + said)


def _why(folder: Path) -> Iterator[str]:
    yield "## Why: direction, length, conflict"
    rows = []
    for problem in problems.FAMILIES:
        row: list[Any] = [problem.name]
        for name in ("osgd-all", *CONTROLS):
            row.append(_gain(folder, problem, name, "sgd"))
        rows.append([*row, _gain(folder, problem, "osgd-all", "sgd-osgd-length")])
    header = ["problem", "OSGD", "SGD's direction, OSGD's length", "OSGD's direction, SGD's length"]
    header.append("OSGD − SGD's direction, OSGD's length")
    yield (
        'Mean over outputs less SGD\'s, of OSGD with scope "all" and of two controls that take the'
        " direction of one and the length of the other at every step, each at its own best rate."
        " The last column is what is left to the direction:\n\n" + _table(header, rows)
    )
    rows = []
    for problem in (*problems.FAMILIES, *problems.IMAGES):
        for name in ("sgd", "sgd-clipped", *SCOPES[:3]):
            for found in best_tuned(folder, problem, name):
                rows.append([problem.name, name, *_optimization(found)])
    header = ["problem", "method", "training loss", "training accuracy", "test accuracy"]
    header += ["worst seed", "median", "best", "shared : private step, first", "last"]
    yield (
        "Does it optimise better or generalise better, and with every seed? Means over outputs, and"
        " over test seeds but where one is named; the last columns are the norm of the direction"
        " over shared parameters by that over private ones, at the first step and at the start of"
        " the last epoch:\n\n" + _table(header, rows)
    )
    if picture := figures.conflict(folder):
        yield f"![Cosines between the task gradients]({folder.name}/{picture.name})"


def _optimization(found: Result) -> list[str]:
    shared, private = found.series("shared_norm"), found.series("private_norm")
    loss = np.mean([run["train_loss"] for run in found.runs])
    train = 100 * np.mean([run["train_accuracy"] for run in found.runs])
    seeds = np.quantile([test.mean() for test in found.tests.values()], (0, 0.5, 1))
    ratios = [f"{shared[i] / private[i]:.2f}" for i in (0, -1)]
    shown = [f"{each:.1f}" for each in (train, found.means.mean(), *seeds)]
    return [f"{loss:.3f}", *shown, *ratios]


def _price(folder: Path) -> str:
    rows = []
    for problem in (*problems.FAMILIES, *problems.IMAGES):
        for name in (*SCOPES[:3], "sgd-clipped", "sgd-longer"):
            if found := best_tuned(folder, problem, name, "sgd"):
                work, than = (each.runs[0]["step_flops"] * each.runs[0]["steps"] for each in found)
                rows.append(
                    [problem.name, name, f"{work / than:.2f}", str(paired(found[0], found[1]))]
                )
    header = ["problem", "method", "work of training over SGD's", "mean − SGD's"]
    return (
        "## What it costs\n\nWork is counted before compilation, from the traced step. All train"
        " for equal epochs but `sgd-longer`, which has half as many again: about the work of OSGD,"
        " and more than its time, which is 1.1 to 1.4 times SGD's in the benchmark."
        " Wall-clock times are in the benchmark, not here: nets were trained many at a time on a"
        " machine with other work.\n\n" + _table(header, rows)
    )


def _nested_or_branched(folder: Path) -> str:
    rows = []
    for problem in problems.FAMILIES:
        for name in ("sgd", "sgd-clipped"):
            found = best_tuned(folder, problem, name)
            if problem.net == "branched" or not found:
                continue
            work = np.array([output.multiply_adds for output in problem.costs()])
            rivals = _branched_at(folder, name, work)
            for k, (mean, rival) in enumerate(zip(found[0].means, rivals, strict=True)):
                if np.isfinite(rival):
                    cost = f"{work[k] / 1e3:,.0f}"
                    rows.append([problem.name, name, k + 1, cost, f"{mean:.1f}", f"{rival:.1f}"])
    header = ["problem", "method", "output", "thousand multiply-adds", "nested", "branched"]
    return (
        "## Nested against branched\n\nTest accuracy in percent of each output of the nested nets,"
        " and of the better of the branched nets at as many multiply-adds, interpolated between its"
        " outputs on a logarithmic scale; outputs outside their range are left out.\n\n"
        + _table(header, rows)
    )


def _branched_at(folder: Path, name: str, work: np.ndarray) -> np.ndarray:
    """Test accuracy of the best branched net at these multiply-adds; −∞ where none has as many."""
    best = np.full(len(work), -np.inf)
    for problem in problems.FAMILIES:
        found = best_tuned(folder, problem, name)
        if problem.net == "branched" and found:
            costs = np.log([output.multiply_adds for output in problem.costs()])
            at = np.interp(np.log(work), costs, found[0].means, left=-np.inf, right=-np.inf)
            best = np.maximum(best, at)
    return best


def _settings(folder: Path) -> str:
    rows, missing = [], []
    for problem in (SCREEN, *problems.SETTINGS):
        base = result(folder, problem, "sgd")
        scopes = [found for n in SCOPES if (found := result(folder, problem, n))]
        if base is None or not scopes:
            missing.append(problem.name)
            continue
        for found in scopes:
            rows.append(
                [
                    *(problem.name, found.name),
                    *(f"{base.means.mean():.1f}", f"{found.means.mean():.1f}"),
                    *(str(paired(found, base)), len(found.tests)),
                ]
            )
    said = f"\n\nMissing: {', '.join(missing)}." if missing else ""
    header = ["setting", "method", "SGD", "OSGD", "OSGD − SGD", "seeds"]
    return (
        "## In other settings\n\nMean test accuracy over outputs, both tuned anew in each.\n\n"
        + _table(header, rows)
        + said
    )


def _images(folder: Path) -> str:
    parts = ["## Images"]
    for problem in problems.IMAGES:
        parts.append(f"### {problem.name}")
        if problem == problems.IMAGES[0]:
            parts += [_results_table(folder, problem, CONFIRMED, "rates"), _BY_TWO_SEEDS]
        names = plan.Study(folder).shortlist(images=True)
        parts.append(_results_table(folder, problem, names))
    return "\n\n".join(parts)


def _gain(folder: Path, problem: Problem, name: str, base: str) -> str:
    """How far a candidate is above another on test data, both tuned by the same stage."""
    found = best_tuned(folder, problem, name, base)
    return str(paired(found[0], found[1])) if found else "missing"


def _table(header: list[str], rows: Iterable[list[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
