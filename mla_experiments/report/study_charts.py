"""The figures of a study's report: quality against cost, the course of training, learning rates, the cache."""

from typing import Any

import numpy as np

from ..run_files import METRICS_FILE, check_files, read_metrics
from ..study.fields import BUDGET
from ..study.matching import CACHE_CONTEXTS
from ..study.record import DECODE_CONTEXTS
from ..study.statistics import estimate
from . import accuracy, scaling
from .charts import Chart, Series, banded
from .findings import Findings, Row
from .nuisance import SEVERAL, of_what, telling
from .styles import Style, style

Owned = tuple[Row, dict]  # a variant, and whose and how its series are drawn

Point = tuple[Row, dict, float, float]  # a variant and its style, where it stands, what counts as cost
ASIDE = 1.04  # times, from one point to the next of those that would lie on one another
FRONT = " The dotted line joins those that no other beats in both."
BARS = " Bars are 95 % intervals over seeds."


def charts(found: Findings) -> dict[str, list[Chart]]:
    """Return the charts of a report by section; a variant looks the same in all, and has its `drawn` name."""
    shown = drawn(found)
    rows = [(row, {"owner": number, "style": look}) for number, (row, look) in enumerate(shown.values())]
    training = [chart for key in ("tokens", "flops", "seconds") for chart in loss_curves(rows, key)]
    sections = {
        "lead": [cache_front(rows, found)],
        "speed": speed_front(rows, found),
        "cache": [cache_size(rows)],
        "training": training,
        "tuned": tuning_charts(found, rows),
        "recipes": recipes(found, rows),
        "scaling": laws(found),
        "recall": accuracy.charts(found, rows) if accuracy.is_of_a_task(found) else [],
    }
    for series in (series for section in sections.values() for chart in section for series in chart.series):
        if series.owner is not None and series.name.startswith(before := rows[series.owner][0].name):
            series.name = list(shown)[series.owner] + series.name.removeprefix(before)
    return sections


def drawn(found: Findings) -> dict[str, tuple[Row, Style]]:
    """Return the variants that figures show, and how, by their names there: one of those that budgets leave the same.

    Of a budget the name has the bytes, unless the same runs are at all of them.
    """
    alike: dict[tuple, list[Row]] = {}
    for row in found.rows:
        alike.setdefault((frozenset(row.runs.values()), row.cache_dtype), []).append(row)
    budgets = {changed.get(BUDGET) for changed in found.swept.values()}
    rows = [of_one[0] for of_one in alike.values()]
    names = [named_in_figures(found, of_one, len(budgets)) for of_one in alike.values()]
    return dict(zip(names, zip(rows, looks(rows), strict=True), strict=True))


def named_in_figures(found: Findings, rows: list[Row], num_budgets: int) -> str:
    """Return the name of variants with the same runs, such as `mla, 256 bytes`."""
    changed = found.swept[rows[0].setting]
    if BUDGET not in changed:
        return rows[0].name
    others = [f"{name}={value}" for name, value in changed.items() if name != BUDGET]
    at = " or ".join(f"{found.swept[row.setting][BUDGET]:,}" for row in rows)
    return " ".join([rows[0].mechanism, *others]) + (f", {at} bytes" if len(rows) < num_budgets else "")


def looks(rows: list[Row]) -> list[Style]:
    """Return the style of every variant; where settings are swept, colours are of mechanisms and marks of settings."""
    mechanisms, settings = (list(dict.fromkeys(getattr(row, of) for row in rows)) for of in ("mechanism", "setting"))
    numbers = [(mechanisms.index(row.mechanism), settings.index(row.setting)) for row in rows]
    if len(settings) == 1:  # every tenth variant has the same colour, and the next mark
        return [style(hue, hue + hue // 10) for hue, _ in numbers]
    return [style(hue, mark + len(settings) * (hue // 10)) for hue, mark in numbers]


def cache_front(rows: list[Owned], found: Findings) -> Chart:
    """Return quality against the cache, with the study's budget where it has one."""
    budget = found.content["stated"].get("cache_bytes_per_token")
    caches = [row.cache_bytes for row, _ in rows]
    chart = Chart(
        "front-cache", "Quality against cache", "Lower is better, and further left is cheaper.",
        "cache bytes per token", f"{found.measure.axis}, test", log_x=True, limit=budget, ends=found.measure.ends,
        x_ticks=spaced(sorted({row.cache_bytes for row, _ in rows})),
    )  # fmt: skip
    chart = with_front(chart, [(row, own, row.cache_bytes, row.cache_bytes) for row, own in rows])
    if len(set(caches)) < len(caches):
        chart.caption += " Of equal caches the points stand side by side."
    if budget:
        chart.caption += " The dashed line is the budget."
    for series, shift in zip(chart.series[1:], aside(caches), strict=True):
        series.x, series.named = [value * shift for value in series.x], series.x
    return chart


def aside(values: list[int]) -> list[float]:
    """Return factors by which equal values are set a little apart on a logarithmic axis, around where they are."""
    places = [values[:number].count(value) for number, value in enumerate(values)]
    return [ASIDE ** (place - (values.count(value) - 1) / 2) for place, value in zip(places, values, strict=True)]


def speed_front(rows: list[Owned], found: Findings) -> list[Chart]:
    """Return quality against the speed of decoding a long context; none where it was not measured."""
    context = DECODE_CONTEXTS[-1]
    chart = Chart(
        "front-decode", "Quality against decoding speed", "Lower is better, and further right is faster.",
        f"decode tokens/s at {context:,}", f"{found.measure.axis}, test", ends=found.measure.ends,
    )  # fmt: skip
    timed = [(row, own, row.decode[context].median) for row, own in rows if context in row.decode]
    return [with_front(chart, [(row, own, speed, -speed) for row, own, speed in timed])] if timed else []


def with_front(chart: Chart, points: list[Point]) -> Chart:
    """Add variants as points (where they stand, what counts as cost), and the front of those unbeaten in both."""
    ranked = [(cost, row.bits.mean, where) for row, _, where, cost in points]
    best = [p for p in sorted(ranked) if not any(q[:2] != p[:2] and q[0] <= p[0] and q[1] <= p[1] for q in ranked)]
    chart.series.append(Series("Pareto front", [p[2] for p in best], [p[1] for p in best]))
    chart.caption += (FRONT if len(best) > 1 else "") + BARS  # a line takes two
    for row, own, where, _ in points:
        spread = None if row.bits.half_width is None else [row.bits.half_width]
        chart.series.append(Series(row.name, [where], [row.bits.mean], spread, **own, look="points"))
    return chart


def cache_size(rows: list[Owned]) -> Chart:
    """Return the cache of one sequence against its length."""
    chart = Chart(
        "cache", "Cache against context", "What one sequence takes in memory, in single precision; half of it in bf16.",
        "context, tokens", "MiB", log_x=True, log_y=True, x_ticks=list(map(float, CACHE_CONTEXTS)),
    )  # fmt: skip
    for row, own in rows:
        lengths = [float(length) for length in row.cache_of]
        chart.series.append(Series(row.name, lengths, [taken / 2**20 for taken in row.cache_of.values()], **own))
    return chart


def loss_curves(rows: list[Owned], key: str) -> list[Chart]:
    """Return validation loss against tokens, FLOPs or seconds of training; none where nothing is known of it."""
    label = {"tokens": "training tokens", "flops": "training FLOPs", "seconds": "training seconds"}[key]
    caption = "Mean over seeds."
    if key == "seconds":
        caption += " Seconds are those of steps timed in turns, since runs may have shared the machine."
    chart = Chart(f"loss-{key}", f"Validation loss against {label}", caption, label, "nats per token")
    for row, own in rows:
        speed = row.training_speed.median if row.training_speed else np.inf
        scale = {"tokens": 1.0, "flops": row.training_flops, "seconds": 1 / speed}[key]
        if scale and (curve := loss_curve(row)):
            tokens, means, band = curve
            chart.series.append(Series(row.name, [at * scale for at in tokens], means, band, **own))
    return [banded(chart, " Bands are 95 % intervals.")] if chart.series else []


def loss_curve(row: Row) -> tuple[list[float], list[float], list[float] | None] | None:
    """Return tokens, mean loss over seeds and the half-width of its interval; None where no loss was logged."""
    curves = []
    for folder in row.runs.values():
        check_files(folder, METRICS_FILE)
        logged = ((point["tokens"], point.get("eval_loss", np.nan)) for point in read_metrics(folder))
        curves.append({tokens: loss for tokens, loss in logged if np.isfinite(loss)})
    tokens = sorted(set.intersection(*map(set, curves)))
    estimates = [estimate([curve[at] for curve in curves]) for at in tokens]
    band = [part.half_width or 0.0 for part in estimates] if len(curves) > 1 else None
    return (tokens, [part.mean for part in estimates], band) if tokens else None


def tuning_charts(found: Findings, rows: list[Owned]) -> list[Chart]:
    """Return where every trial landed against its learning rate, and what more trials are worth."""
    return [chart for chart in (trials_chart(found, rows), worth_of_trials(found, rows)) if chart.series]


def trials_chart(found: Findings, rows: list[Owned]) -> Chart:
    """Return what every trial gave; of learning rates alone with the parabola through them and its lowest point."""
    caption = "One point a trial. Where learning rates alone were tried, a parabola, and a star at its lowest point."
    chart = Chart("rates", "Trials", caption, "learning rate", f"{found.measure.axis}, validation", log_x=True)
    chart.x_ticks = spaced(sorted({one["learning_rate"] for tuned in found.tuned.values() for one in tuned.settings}))
    for row, own in rows:
        if not (tuned := found.tuned.get(row.name)):
            continue
        fit, name = tuned.fit, row.name
        pairs = sorted(zip([one["learning_rate"] for one in tuned.settings], tuned.values, strict=True))
        look = "line" if fit and not fit.coefficients else "points"
        chart.series.append(Series(name, [rate for rate, _ in pairs], [bits for _, bits in pairs], **own, look=look))
        if fit and fit.coefficients:
            between = np.geomspace(fit.rates[0], fit.rates[-1], 40).tolist()
            chart.series.append(Series(name, between, [fit.at(rate) for rate in between], **own, look="curve"))
        if fit and fit.optimum:
            chart.series.append(Series(f"{name}, fitted", [fit.optimum], [fit.at(fit.optimum)], **own, look="star"))
    return chart


def worth_of_trials(found: Findings, rows: list[Owned]) -> Chart:
    """Return the expected best of so many trials."""
    caption = "The lowest of so many trials drawn from those that were made."
    chart = Chart("trials", "What tuning is worth", caption, "trials", f"{found.measure.axis}, validation, of the best")
    halved = {trial.variant for trial in found.partial}  # what all would have come to is not known
    for row, own in rows:
        if (tuned := found.tuned.get(row.name)) and row.name not in halved:
            means, deviations = map(list, zip(*tuned.expected_best, strict=True))
            chart.series.append(Series(row.name, list(range(1, len(means) + 1)), means, deviations, **own))
    return banded(chart, " Bands are standard deviations.")


def recipes(found: Findings, rows: list[Owned]) -> list[Chart]:
    """Return the differences of each pair of mechanisms by recipe, in their order; none of too many pairs."""
    caption = "Below the line the one named first is ahead. Bars are intervals that hold together."
    what = of_what(found)
    chart = Chart(
        "recipes", f"The same pair at each {what}", caption, f"{what}, in the order of the table", found.measure.name,
        ends=(-found.measure.most_apart, found.measure.most_apart),
    )  # fmt: skip
    settings, owned = list(found.settings), {row.mechanism: own for row, own in reversed(rows)}
    pairs = telling(found)
    if len(pairs) > SEVERAL:
        return []
    for place, ((a, b), of_pair) in enumerate(pairs.items()):
        aside = 0.4 * ((place + 0.5) / len(pairs) - 0.5)  # so that bars do not lie on one another
        at = [1 + settings.index(setting) + aside for setting in of_pair]
        reach = [max(abs(end - c.difference) for end in c.interval or (c.difference,)) for c in of_pair.values()]
        differences = [c.difference for c in of_pair.values()]
        chart.series.append(Series(f"{b} less {a}", at, differences, reach, **owned[b], look="points"))
    if chart.series:
        chart.series.append(Series("no difference", [0.5, len(settings) + 0.5], [0.0, 0.0], look="curve"))
    return [chart] if chart.series else []


def laws(found: Findings) -> list[Chart]:
    """Return the laws of loss against compute with the points that they are fitted to, up to twice the largest."""
    chart = Chart(
        "scaling", "Quality against compute", "Means over seeds, and the power law fitted to them.",
        "training FLOPs", f"{found.measure.axis}, test", log_x=True,
    )  # fmt: skip
    for number, (name, curve) in enumerate(scaling.curves(found).items()):
        own: dict[str, Any] = {"owner": number, "style": style(number, number)}
        along = np.geomspace(curve.compute[0], scaling.BEYOND * curve.compute[-1], 40)
        chart.series.append(Series(name, curve.compute.tolist(), curve.bits.tolist(), **own, look="points"))
        chart.series.append(Series(name, along.tolist(), curve.at(along).tolist(), **own, look="curve"))
    return [chart] if chart.series else []


def spaced(values: list[float]) -> list[float]:
    """Return values to name on a log axis, leaving out those too near to the one before."""
    chosen = values[:1]
    for value in values[1:]:
        if value >= 1.25 * chosen[-1]:
            chosen.append(value)
    return chosen
