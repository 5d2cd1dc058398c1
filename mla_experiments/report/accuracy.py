"""What a study over a synthetic task found beyond its comparison: accuracy by difficulty, by length, by depth.

Accuracy is the share of answers that are right, a mean over seeds with its interval.
"""

from collections.abc import Iterator
from functools import lru_cache

from ..data.synthetic import Task, is_synthetic, task_of
from ..evaluation.measures import EXCESS
from ..evaluation.recall import HELD
from ..run_files import read_metrics, read_run
from ..study.fields import CORPUS
from ..study.statistics import Estimate, estimate
from .charts import Chart, Grid, Series, banded
from .findings import Findings, Row
from .study_tables import MISSING, Table, shown

CEILING = 0.99  # all above it: too easy to tell apart
NEAR_CHANCE = 1.5  # times chance; all below it: too hard
Accuracies = dict[str, Estimate]  # by condition


def is_of_a_task(found: Findings) -> bool:
    """Return whether a study is over a synthetic task."""
    return is_synthetic(found.content["corpus"])


def task_of_row(row: Row) -> Task:
    """Return the task that a variant was trained on."""
    return task_of(read_run(next(iter(row.runs.values())))["corpus"])


@lru_cache(maxsize=1)  # for the words, the table and the figures of a report
def by_variant(found: Findings) -> dict[str, Accuracies]:
    """Return the accuracies of every variant, by its name."""
    return {row.name: accuracies(row) for row in found.rows}


def accuracies(row: Row) -> Accuracies:
    """Return the accuracy of a variant under every condition that all its runs were tried under."""
    scores = list(row.scores.values())
    return {
        name: estimate([1 - one[name].wrong_answers.sum() / one[name].tokens.sum() for one in scores])
        for name in scores[0]
        if all(name in one for one in scores) and name != "validation"
    }


def values_of(accuracy: Accuracies, name: str) -> dict[int, Estimate]:
    """Return the accuracies under the conditions `NAME=VALUE`, by the value, ascending."""
    found = {}
    for condition, one in accuracy.items():
        field, _, value = condition.partition("=")
        if field == name and value.isdigit():
            found[int(value)] = one
    return dict(sorted(found.items()))


def sentences(found: Findings) -> list[str]:
    """Say what chance gives, whether the task tells at all, how far each variant holds, and how soon it got there."""
    by_row = by_variant(found)
    task = task_of_row(found.rows[0])
    said = [f"{task.name}: {task.meaning} ({task.source})."]
    if found.measure is EXCESS:
        return [*said, "Nobody can have all symbols right: what counts is how far above the entropy a model stays."]
    chances = {of: task_of_row(rows[0]).chance for of, rows in by_difficulty(found).items()}
    if len(set(chances.values())) == 1:
        chances = {"": task.chance}
    each = ", ".join(f"{percent(chance)}{' at ' if of else ''}{of}" for of, chance in chances.items())
    said += [f"By chance {each} of the answers are right.", *told_by_the_task(found)]
    alike: dict[str, list[str]] = {}  # variants by what is said of them, which is often the same of many
    for row in found.rows:
        alike.setdefault(f"{held(by_row[row.name], task_of_row(row))}; {reached(row)}", []).append(row.name)
    if len(alike) == 1:
        return [*said, f"All variants: {next(iter(alike))}."]
    return said + [f"{', '.join(names)}: {what}." for what, names in alike.items()]


def by_difficulty(found: Findings) -> dict[str, list[Row]]:
    """Return rows by the fields of the corpus that are swept; all under an empty name where none is."""
    rows: dict[str, list[Row]] = {}
    for row in found.rows:
        swept = {name: one for name, one in found.swept[row.setting].items() if name.startswith(CORPUS)}
        rows.setdefault(" ".join(f"{name.removeprefix(CORPUS)}={one}" for name, one in swept.items()), []).append(row)
    return rows


def told_by_the_task(found: Findings) -> list[str]:
    """Say where it is too easy or too hard to tell variants apart, or learnt by none of them; nothing where it tells.

    One sentence, at the head of a report: what else it says is to be read by it.
    """
    if not is_of_a_task(found) or found.measure is EXCESS:
        return []
    parts = []
    for difficulty, rows in by_difficulty(found).items():
        if said := how_it_tells([by_variant(found)[row.name]["test"].mean for row in rows], task_of_row(rows[0])):
            parts.append(f"at {difficulty} {said}" if difficulty else said)
    whole = "; ".join(parts)
    return [f"{whole[0].upper()}{whole[1:]}."] if parts else []


def how_it_tells(right: list[float], task: Task) -> str:
    """Say whether shares of right answers are all too near to one end to tell; nothing where they are not."""
    if min(right) >= CEILING:
        return f"all have {percent(CEILING)} or more of the answers right: the task is too easy to tell them apart"
    if max(right) < NEAR_CHANCE * task.chance:
        return "none is much above chance: the task is too hard, or the training too short, to tell"
    if max(right) < HELD:
        return (
            f"none has {percent(HELD)} of the answers right (the best {percent(max(right))}, chance "
            f"{percent(task.chance)}): differences are of how far they have learnt, not of what they can hold"
        )
    return ""


def percent(share: float) -> str:
    """Return a share in per cent."""
    return f"{100 * share:.3g} %"


def held(accuracy: Accuracies, task: Task) -> str:
    """Say up to which difficulty nine answers in ten are right, all easier ones included."""
    steps = values_of(accuracy, task.difficulty)
    last = None
    for value, one in steps.items():
        if one.mean < HELD:
            break
        last = value
    if not steps:
        return f"{percent(accuracy['test'].mean)} right"
    if last is None:
        return f"{percent(HELD)} right at none of the {task.difficulty} that were tried"
    beyond = ", the most that was tried" if last == max(steps) else ""
    return f"{percent(HELD)} right up to {task.difficulty}={last}{beyond}"


def reached(row: Row) -> str:
    """Say after how many tokens of training nine validation answers in ten were right."""
    first = []
    for run in row.runs.values():
        logged = (point["tokens"] for point in read_metrics(run) if point.get("eval_accuracy", 0) >= HELD)
        first.append(next(logged, None))
    known = [tokens for tokens in first if tokens is not None]
    if count := len(first) - len(known):
        return f"{count} of {len(first)} seeds do not reach {percent(HELD)} of validation answers"
    low, high = min(known), max(known)
    between = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return f"{percent(HELD)} of validation answers are right after {between} tokens"


def table(found: Findings) -> Table:
    """Return a row per variant with its accuracy under every condition."""
    by_row = by_variant(found)
    names = list(dict.fromkeys(name for accuracy in by_row.values() for name in accuracy))
    return [
        {"variant": row} | {name: in_percent(accuracy.get(name)) for name in names} for row, accuracy in by_row.items()
    ]


def in_percent(accuracy: Estimate | None) -> str:
    """Return an accuracy in per cent."""
    if accuracy is None:
        return MISSING
    reach = None if accuracy.half_width is None else 100 * accuracy.half_width
    return shown(Estimate(100 * accuracy.mean, reach), 1, (0.0, 100.0))


def charts(found: Findings, rows: list[tuple[Row, dict]]) -> list[Chart]:
    """Return accuracy against difficulty and against length, and depth by length for needles."""
    task, tried = task_of_row(rows[0][0]), by_variant(found)
    lines = [*(lines_of(rows, tried, task, name) for name in (task.difficulty, "length")), curve(rows)]
    return [*(chart for chart in lines if len(chart.series) > 1), *grids(tried)]


def lines_of(rows: list[tuple[Row, dict]], tried: dict[str, Accuracies], task: Task, name: str) -> Chart:
    """Return accuracy against a field, or the length of rows."""
    chart = Chart(
        f"accuracy-{name}", f"Accuracy against {name}",
        "Means over seeds. Trained as the table of results says, tried as the axis says.",
        name, "share of answers right", log_x=True, ends=(0.0, 1.0),
    )  # fmt: skip
    seen: set[int] = set()
    for row, own in rows:
        accuracy = tried[row.name]
        found = values_of(accuracy, name)
        if name == "length" and found:
            length = read_run(next(iter(row.runs.values())))["identity"]["sequence_length"]
            found = {length: accuracy["test"]} | found
        if found:
            spread = [one.half_width or 0.0 for one in found.values()]
            chart.series.append(Series(row.name, list(found), [one.mean for one in found.values()], spread, **own))
            seen |= set(found)
    if seen:
        chart.x_ticks = sorted(seen)
        if name == task.difficulty:
            at_each = {float(value): task.with_field(value).chance for value in sorted(seen)}
            chart.series.append(Series("by chance", list(at_each), list(at_each.values())))
        else:
            chart.series += by_chance(rows, min(seen), max(seen))
    return banded(chart, " Bands are 95 % intervals.")


def by_chance(rows: list[tuple[Row, dict]], low: float, high: float) -> list[Series]:
    """Return what chance gives in the tasks of some rows, a line each."""
    chances = sorted({task_of_row(row).chance for row, _ in rows})
    return [Series("by chance", [low, high], [chance] * 2) for chance in chances]


def curve(rows: list[tuple[Row, dict]]) -> Chart:
    """Return the accuracy of validation answers in the course of training."""
    chart = Chart(
        "accuracy-tokens", "Accuracy in training", "Mean over seeds, of validation rows.", "training tokens",
        "share of answers right",
    )  # fmt: skip
    last = 0
    for row, own in rows:
        logged = [
            {point["tokens"]: point["eval_accuracy"] for point in read_metrics(run) if "eval_accuracy" in point}
            for run in row.runs.values()
        ]
        if tokens := sorted(set.intersection(*map(set, logged))):
            means = [sum(one[at] for one in logged) / len(logged) for at in tokens]
            chart.series.append(Series(row.name, tokens, means, **own))
            last = max(last, tokens[-1])
    if last:
        chart.series += by_chance(rows, 0, last)
    return chart


def grids(tried: dict[str, Accuracies]) -> Iterator[Grid]:
    """Yield accuracy by depth and length, a heat map for each variant that was tried so."""
    for number, (name, accuracy) in enumerate(tried.items()):
        cells: dict[str, dict[str, float]] = {}
        for condition, one in accuracy.items():
            depth, _, length = condition.partition(" ")
            if depth.startswith("depth=") and length.startswith("length="):
                cells.setdefault(length.removeprefix("length="), {})[depth.removeprefix("depth=")] = one.mean
        if cells:
            caption = "Share of answers right, a mean over seeds: darker is better."
            yield Grid(
                f"depth-{number}", f"{name}: where the needle stood", caption, "depth", "length of the row",
                columns=list(next(iter(cells.values()))), lines=list(cells),
                cells=[list(line.values()) for line in cells.values()],
            )  # fmt: skip
