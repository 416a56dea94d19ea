"""STUDY.md and its figures, made from the stored runs alone."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from experiments.study import figures, plan, problems, tables, why
from experiments.study.candidates import (
    ADAPTIVE,
    ASKED_AGAIN,
    CANDIDATES,
    COMPARED,
    CONFIRMED,
    CORE,
    LEADING,
    SCOPES,
)
from experiments.study.problems import SCREEN
from experiments.study.runs import FIRST, FRESH, TEN, TWO, at_rates, best_rate, by_rate, to_tune
from experiments.study.statistics import interval, paired, result
from experiments.study.store import Store

COMMAND = "python -m experiments.study"

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
    store, conclusions = Store(folder / plan.RUNS), folder / "conclusions.md"
    parts = [
        "# The study of Orthogonalized SGD",
        f"Made by `{COMMAND}` from the runs in `{folder.name}/`, beside this file; every run is"
        " there, one line of JSON each. Do not edit: the text of the first section is in"
        f" `{folder.name}/conclusions.md`, the rest is generated.",
        conclusions.read_text().strip() if conclusions.exists() else "Conclusions: missing.",
        _how(),
        _problems_table(),
        *_families(store),
        _rates(store),
        _confirmed(store),
        _screen(store),
        *why.sections(store),
        _settings(store),
        *_images(store),
    ]
    path = folder.parent / "STUDY.md"
    path.write_text("\n\n".join(part for part in parts if part) + "\n")
    return path


def _how() -> str:
    tuning, ranking, tests = 2, len(TEN), len(FIRST)
    again = " and ".join(problem.name for problem in problems.ASKED_AGAIN)
    wide = " and ".join(problem.name for problem in problems.WIDE)
    return f"""## How it was done

Every method gets the same budget: five learning rates, a factor of two apart, two seeds each, and
five more beyond the end if the best rate is at the end of the grid. The rate is chosen by the mean
accuracy over outputs on validation data. All methods see the same initial parameters and batches
for a seed, the same number of epochs and the same schedule (half a cosine down to zero) with
Nesterov momentum of 0.9, unless the method is another optimizer. Nets are normalised by batch.

Two seeds turned out to choose badly where single seeds fail. So the methods that the conclusions
speak of were then tuned anew with {ranking} seeds, on the nets for sequences, in all
settings and on {problems.SHORT[0].name}, {again}, and tested at those
rates; comparisons below take both sides from there, or both from two seeds.

All candidates are tuned ({tuning} seeds) on {SCREEN.name}. The best {plan.RANKED}, and those that
answer a question, are ranked on validation data with {ranking} other seeds. The best
{plan.FINALISTS} of the ranking, and those that answer a question, go to the test data, with {tests}
seeds that were not used before, and to the other problems with sequences; to images, where nets
are trained one by one, go SGD, SGD clipped, two scopes and the best other method, and on
{wide} all of the best {plan.FINALISTS} and the best fixed weights, with
{len(plan.IMAGE_TEST_SEEDS)} seeds or as many as the tables say. Differences are paired by seed,
with 95 % intervals of Student's t. There are many comparisons here and no correction for that: of
twenty intervals one is expected to leave out zero by chance."""


def _problems_table() -> str:
    rows = []
    for problem in problems.ALL:
        rows.append(
            [
                *(problem.name, problem.net, problem.data, f"{problem.train_size:,}"),
                *("×".join(map(str, problem.input_shape)), problem.epochs, problem.batch_size),
                "×".join(map(str, problem.widths)),
            ]
        )
    header = ["problem", "net", "data", "training examples", "input", "epochs", "batch", "widths"]
    return tables.table(header, rows)


def _families(store: Store) -> Iterator[str]:
    yield "## Does it beat SGD, and at which outputs?"
    yield (
        "Test accuracy in percent. The last columns are paired differences of the mean over"
        " outputs. *Alone* is each output's subnetwork trained on its own loss, at its own best"
        " rate: the ceiling; what SGD lacks to it is the gap that balancing could close. A rate"
        " with an asterisk is at the end of what was tried. The first table of each net is the one"
        f" to read: each rate was chosen with {len(TEN)} seeds. In the second, of"
        " all that was tested, two chose; these rates were tested before the others were known."
    )
    for problem in problems.FAMILIES:
        names = plan.Study(store).shortlist(problem)
        yield f"### {problem.name}"
        yield tables.results(store, problem, CORE, TEN)
        yield tables.BY_TWO_SEEDS
        yield tables.results(store, problem, names)
    if picture := figures.accuracies(store, problems.FAMILIES, "families.png"):
        yield f"![Accuracy against multiply-adds]({store.path.parent.name}/{picture.name})"


def _rates(store: Store) -> str:
    rows, missing = [], []
    for problem in problems.FAMILIES:
        found = {name: store.of(problem.name, name) for name in CORE}
        complete = {
            name: (best_rate(runs, TEN), at_rates(runs, TEN))
            for name, runs in found.items()
            if not to_tune(runs, TEN, CANDIDATES[name].rates)
        }
        missing += [f"{problem.name} {name}" for name in CORE if name not in complete]
        best = {name: scores[rate] for name, (rate, scores) in complete.items()}
        for name, (rate, scores) in complete.items():
            near = [np.mean(list(scores.get(rate * by, {0: np.nan}).values())) for by in _NEAR]
            differences = ["", ""]
            if name != "osgd-shared" and "osgd-shared" in best:
                base = best["osgd-shared"]
                values = np.array([best[name][seed] - base[seed] for seed in sorted(base)])
                tests = tables.gain(store, problem, name, "osgd-shared")
                differences = [str(interval(values)), tests]
            shown = ["" if np.isnan(mean) else f"{mean:.1f}" for mean in near]
            rows.append([problem.name, name, f"{rate:g}", *shown, *differences])
    said = f"\n\nMissing: {', '.join(missing)}." if missing else ""
    header = ["problem", "method", "best rate", *(f"×{by:g}" for by in _NEAR)]
    header += ["best − osgd-shared's", "tests − osgd-shared's"]
    return (
        "## Which scope, and how much does the rate matter?\n\nValidation accuracy in percent, the"
        f" mean over outputs and {len(TEN)} seeds, at the best rate and at multiples"
        " of it. The last columns compare best with best, paired by seed: on this data, where both"
        " were chosen, so that they flatter alike, and on test data, with other seeds.\n\n"
        + tables.table(header, rows)
        + said
    )


def _confirmed(store: Store) -> str:
    pairs = (("osgd-all", "osgd-shared"), ("osgd-all", "sgd"), ("osgd-shared", "sgd"))
    pairs += (("sgd-clipped", "osgd-all"), ("osgd-all-clipped", "sgd-clipped"))
    rows, missing = [], []
    differences: dict[tuple[str, str], list[np.ndarray]] = {pair: [] for pair in pairs}
    for problem in problems.FAMILIES:
        found = {name: result(store, problem, name, TEN, FRESH) for name in CONFIRMED}
        seeds = FRESH
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
        f" {len(FRESH)} seeds that no rate was chosen by, at the"
        " rates of part `rates`. Test accuracy in percent, the mean over outputs; differences"
        " paired by seed. The last rows are means over the problems: on these very nets, and as far"
        " as they stand for others.\n\n" + tables.table(header, rows) + said
    )


def _screen(store: Store) -> str:
    tuned, ranking = plan.tuned(store), plan.ranking(store)
    rows = []
    for name, score in tuned.items():
        means = by_rate(store.of(SCREEN.name, name))
        stages = {run["stage"] for run in store.of(SCREEN.name, name)}
        elsewhere = any(store.of(p.name, name) for p in problems.FAMILIES[1:])
        steps = {"ranking": name in ranking, "tests": "test" in stages}
        steps["other problems"] = elsewhere
        went = ", ".join(step for step, gone in steps.items() if gone)
        ranked = f"{ranking[name]:.1f}" if name in ranking else ""
        rate = max(means, key=lambda rate: means[rate])
        rows.append([name, CANDIDATES[name].about, f"{rate:g}", f"{score:.1f}", ranked, went])
    missing = [name for name in CANDIDATES if name not in tuned]
    said = f"\n\nMissing: {', '.join(missing)}." if missing else ""
    header = ["name", "method", "rate", "tuned", "ranked", "went on to"]
    return (
        f"## What was screened, and on what evidence\n\nValidation accuracy in percent, mean over"
        f" outputs, on {SCREEN.name}: at the best rate in tuning (2 seeds) and in ranking"
        f" ({len(TEN)} seeds). What was tried to make OSGD better is named so.\n\n"
    ) + (tables.table(header, rows) + said)


def _settings(store: Store) -> str:
    rows = []
    for problem in (SCREEN, *problems.SETTINGS):
        seeds = FIRST if problem is SCREEN else TEN
        base = result(store, problem, "sgd", TWO, seeds)
        for name in SCOPES:
            found = result(store, problem, name, TWO, seeds)
            if base and found:
                means = (f"{each.means.mean():.1f}" for each in (base, found))
                difference = str(paired(found, base))
                rows.append([problem.name, name, *means, difference, len(found.tests)])
    header = ["setting", "method", "SGD", "OSGD", "OSGD − SGD", "seeds"]
    fresh = TEN, FRESH
    return "\n\n".join(
        (
            "## In other settings",
            "Mean test accuracy over outputs of SGD in percent, and what others differ by; all"
            f" tuned anew in each setting with {len(TEN)} seeds and tested with"
            " others.",
            tables.gains(store, (SCREEN, *problems.SETTINGS), LEADING, *fresh),
            "The same under AdamW:",
            tables.gains(store, (SCREEN,), ADAPTIVE, *fresh),
            tables.BY_TWO_SEEDS,
            tables.table(header, rows),
        )
    )


def _images(store: Store) -> Iterator[str]:
    study, again = plan.Study(store), problems.ASKED_AGAIN
    everywhere = study.shortlist(problems.IMAGES[-1])
    yield "## Images"
    yield (
        "Mean test accuracy over outputs of SGD in percent, and what others differ by; *alone* is"
        " each output's subnetwork trained on its own loss. Rates were chosen with two seeds; what"
        " ten make of two nets is shown below."
    )
    yield tables.gains(store, problems.IMAGES, (everywhere[0], "alone", *everywhere[1:]))
    yield "The same from SGD clipped:"
    yield tables.gains(store, problems.IMAGES, everywhere[1:])
    yield (
        "Asked again of fresh seeds, at rates chosen with"
        f" {len(TEN)} others; from SGD, and from SGD clipped:"
    )
    yield tables.gains(store, again, ASKED_AGAIN, TEN, FRESH)
    yield tables.gains(store, again, ASKED_AGAIN[1:], TEN, FRESH)
    if picture := figures.accuracies(store, problems.IMAGES, "images.png"):
        link = f"{store.path.parent.name}/{picture.name}"
        yield f"![Accuracy against multiply-adds on images]({link})"
    for problem in problems.IMAGES:
        yield f"### {problem.name}"
        yield tables.results(store, problem, study.shortlist(problem))
    for problem in problems.SHORT:
        yield f"### {problem.name}"
        if problem == problems.SHORT[0]:
            yield tables.results(store, problem, COMPARED, TEN)
            yield tables.BY_TWO_SEEDS
        yield tables.results(store, problem, COMPARED)
