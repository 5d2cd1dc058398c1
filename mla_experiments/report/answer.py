"""The answer of a study in plain words: what is best, by how much, how sure that is, and what it costs."""

from dataclasses import dataclass

from ..study.matching import NEAR
from ..study.record import DECODE_CONTEXTS
from ..study.statistics import Comparison
from ..study.tuning import OPTION
from .accuracy import told_by_the_task
from .findings import Findings, Row
from .nuisance import of_what, sentences, turned
from .study_tables import shown

Pairs = dict[str, Comparison]  # by what the one is called that the other is compared with


LEAD = 3  # sentences, which the eye takes in beside one figure


@dataclass(frozen=True)
class Answer:
    """The answer by what a reader asks: what to take, how sure that is, how fast it is; a sentence each."""

    lead: list[str]
    sure: list[str]
    speed: list[str]

    @property
    def headline(self) -> str:
        """The first sentence."""
        return self.lead[0]

    @property
    def sentences(self) -> list[str]:
        """All of them, in this order."""
        return [*self.lead, *self.sure, *self.speed]


def answer(found: Findings) -> Answer:
    """Say what came out, how sure it is and what it depends on, what it holds for, and what it costs."""
    settings = found.settings
    of_budgets = [said for rows in settings.values() if (said := at_the_budget(found, rows))]
    is_budget_met = bool(of_budgets)
    taken, more_on_them = [said[0] for said in of_budgets], [one for said in of_budgets for one in said[1:]]
    first, sure, speed = [*told_by_the_task(found), *taken, *more_on_them, *sentences(found)], [], []
    for setting, rows in settings.items():
        verdict, *more = verdicts(found, rows)
        sure += [f"With {setting}, {one[0].lower()}{one[1:]}" if setting else one for one in more]
        if not (is_budget_met and len(level_with_best(found, rows)) == len(rows)):  # which has been said
            first.append(f"With {setting}: {verdict}" if setting else verdict)
        if not setting:
            first += [] if is_budget_met else smallest_cache(found, rows)
            speed += fastest(found, rows)
    names = list(settings)
    for place, one in enumerate(names):
        for other in names[place + 1 :]:
            sure += between(found, one, other)
    sure = [*edges(found), *other_seeds(found), *first[LEAD:], *sure, scope(found)]
    return Answer(first[:LEAD], sure, speed)


def at_the_budget(found: Findings, rows: list[Row]) -> list[str]:
    """Say what to take at a budget of cache, where budgets are all that is swept, if anything; then what is above it.

    Args:
        found: of the study.
        rows: those of one setting.
    """
    budget = rows[0].budget
    if not budget or len({row.budget for row in found.rows}) < len(found.settings):
        return []
    within = [row for row in rows if row.cache_bytes <= budget * (1 + NEAR)]
    over = [row for row in rows if row not in within]
    if not within:
        return []
    best, *others = best_first(found, within)
    told, tied, untested = sorted_out({row.name: pair(found, best.name, row.name) for row in others})
    level, aside = as_good(found, [row for row in within if row.name not in told], best, told)
    taken, merit = cheapest(level)
    start = f"At {budget:,} bytes of cache a token, take {taken.mechanism}"
    if untested:
        why = f", which came out {'lowest' if taken is best else 'near the lowest'}: {only(untested)} cannot tell more"
    elif tied:
        names = joined([row.mechanism for row in level])
        over_best = above(found, taken, best)
        lead = f"; it came out {over_best:.4f} above the lowest" if over_best > 0 else ", and came out lowest"
        why = f": {names} are not told apart, and it {merit}{lead}" if len(level) > 1 else ", which came out lowest"
    else:
        why = ", which is better than the others there" if told else ", the only one that fits"
    said = [f"{start}{why}.", *aside]
    if over:
        kept = joined([f"{row.mechanism} ({row.cache_bytes:,} bytes)" for row in over])
        which = "the budget" if len(found.settings) == 1 else f"{budget:,} bytes"
        said.append(f"Above {which}, and here for comparison alone: {kept}.")
    return said


def as_good(found: Findings, level: list[Row], best: Row, told: Pairs) -> tuple[list[Row], list[str]]:
    """Set aside, of those that are not told apart from the best, those that nobody should take for as good.

    They are told to be behind another of them, or came out farther behind than one that is told to be, or so unevenly
    that not even the largest difference there can be would have been told: their intervals were too wide for a verdict.

    Returns:
        Those that are left, and a sentence on each kind of the others.
    """
    beaten = behind_another(found, level)
    least = min((abs(c.difference) for c in told.values()), default=float("inf"))
    left = [row for row in level if row.mechanism not in beaten]
    far = [row for row in left if above(found, row, best) > least or (row is not best and is_blind(found, row, best))]
    said = [f"Left aside: {'; '.join(beaten.values())}."] if beaten else []
    if far:
        amounts = joined([f"{row.mechanism} came out {above(found, row, best):.4f} above the lowest" for row in far])
        said.append(f"Left aside: {amounts}, far or unevenly, but with intervals too wide for a verdict.")
    return [row for row in left if row not in far], said


def is_blind(found: Findings, row: Row, best: Row) -> bool:
    """Return whether no true difference of two variants would be told four times in five, not even the largest."""
    compared = pair(found, best.name, row.name)
    return compared.detectable is not None and compared.detectable > compared.measure.most_apart


def behind_another(found: Findings, level: list[Row]) -> dict[str, str]:
    """Say of those mechanisms that are told to be behind another, though not behind the best, behind which.

    Seeds that move the best one alone leave wide intervals to it, and narrow ones between the others.
    """
    mechanism, turning = {row.name: row.mechanism for row in level}, turned(found)
    told: dict[str, list[str]] = {}
    for c in found.comparisons:
        if c.is_told and {c.a, c.b} <= mechanism.keys():
            ahead, behind = (mechanism[name] for name in ((c.a, c.b) if c.difference > 0 else (c.b, c.a)))
            if frozenset((ahead, behind)) not in turning:
                told.setdefault(behind, []).append(ahead)
    return {name: f"{name} is worse than {joined(others)}" for name, others in told.items()}


def cheapest(level: list[Row]) -> tuple[Row, str]:
    """Return which of some variants to take for its costs alone, and for which: caches nearly alike do not decide."""
    small = min(level, key=lambda row: row.cache_bytes)
    alike = [row for row in level if row.cache_bytes <= small.cache_bytes * (1 + NEAR)]
    if len(alike) == 1 or not all(row.decode for row in alike):
        return small, f"keeps the smallest cache of them ({small.cache_bytes:,} bytes)"
    speeds = {row.name: row.decode[DECODE_CONTEXTS[-1]] for row in alike}
    fast = max(alike, key=lambda row: speeds[row.name].median)
    low = speeds.pop(fast.name).low
    spread = " (within the spread of speeds)" if any(speed.high >= low for speed in speeds.values()) else ""
    if len(alike) == len(level):
        return fast, f"decodes fastest{spread}; their caches are alike"
    return (
        fast,
        f"decodes fastest{spread} of {joined([row.mechanism for row in alike])}, which keep the smallest caches",
    )


def edges(found: Findings) -> list[str]:
    """Say whose best settings lie at the edge of what was tried, so that more may be had."""
    mechanism = {row.name: row.mechanism for row in found.rows}
    at_edge: dict[str, list[str]] = {}  # mechanisms by field, once for each setting
    for name, tuned in found.tuned.items():
        for field in tuned.edges:
            at_edge.setdefault(field, []).append(mechanism.get(name, name))
    named = [
        f"{field.removeprefix(OPTION).replace('_', ' ')} of {whose(names, len(found.tuned))}"
        for field, names in at_edge.items()
    ]
    return (
        [f"Best settings at the edge of what was tried: {joined(named)}; beyond it may be better ones."]
        if named
        else []
    )


def whose(names: list[str], of: int) -> str:
    """Return names once, with how often they stand there, or that they are all of so many."""
    if len(names) == of > 2:
        return f"all {of} variants"
    counts = {name: names.count(name) for name in names}
    return joined([f"{name} ({count} times)" if count > 1 else name for name, count in counts.items()])


def verdicts(found: Findings, rows: list[Row]) -> list[str]:
    """Say which of the variants with one setting is best, and by how much."""
    best, *others = best_first(found, rows)
    if not others:
        return [f"{best.mechanism} reaches {shown(best.bits, 4, found.measure.ends)} {found.measure.name}."]
    turning = turned(found)
    others = [row for row in others if frozenset((best.mechanism, row.mechanism)) not in turning]
    if not others:
        return [f"{best.mechanism} came out lowest, which depends on the {of_what(found)}."]
    told, tied, untested = sorted_out({row.mechanism: pair(found, best.name, row.name) for row in others})
    if not told and not tied:
        return [f"{best.mechanism} came out lowest, but {only(untested)} cannot tell."]
    beaten = behind_another(found, [best, *(row for row in others if row.mechanism in tied)])
    level = joined([best.mechanism, *(name for name in tied if name not in beaten)])
    also = "".join(f"; {one}, and not told apart from {best.mechanism}" for one in beaten.values())
    if told:
        said = [f"{level} {'are not told apart' if tied else 'is best'}{also}; {behind(told, best.mechanism)}."]
    else:
        said = [f"No difference is told between {level}{also}."]
    if tied:
        said.append(room_between(tied, best))
        said.append(power(tied, best))
    if untested:
        said.append(f"There is no verdict on {joined(list(untested))}: {only(untested)} cannot tell.")
    return said


def sorted_out(pairs: Pairs) -> tuple[Pairs, Pairs, Pairs]:
    """Return those pairs whose difference is told, those whose is not, and those that could not be tested."""
    told = {name: c for name, c in pairs.items() if c.is_told}
    untested = {name: c for name, c in pairs.items() if c.p is None}
    return told, {name: c for name, c in pairs.items() if name not in told | untested}, untested


def room_between(tied: Pairs, best: Row) -> str:
    """Say how large a difference may be that was not told."""
    room = max(abs(end) for c in tied.values() for end in c.interval or ())
    amount = f"{room:.4f} {unit_of(tied)}{share_of(room, best)}" if room < most_apart(tied) else "any difference"
    return f"Between those not told apart, the intervals leave room for {amount}."


def power(tied: Pairs, best: Row) -> str:
    """Say what difference would have been told."""
    seen = max(c.detectable or 0.0 for c in tied.values())
    if seen > most_apart(tied):
        return (
            "Not even the largest true difference that there can be would be told four times in five by such a study."
        )
    return (
        f"A true difference of {seen:.4f} {unit_of(tied)}{share_of(seen, best)} would be told four times in five, if "
        "seeds and documents vary as they did here."
    )


def share_of(amount: float, best: Row) -> str:
    """Say what share of the best value an amount is; nothing of answers, all of which may be right."""
    return f" ({100 * amount / best.bits.mean:.1f} %)" if best.perplexity else ""


def behind(told: Pairs, best: str) -> str:
    """Say by how much some variants are behind the best, with intervals where they are few."""
    if len(told) > 3:
        amounts = [abs(c.difference) for c in told.values()]
        return f"{joined(list(told))} are behind {best} by {min(amounts):.4f} to {max(amounts):.4f} {unit_of(told)}"
    parts: list[str] = []
    for name, c in told.items():
        low, high = sorted(abs(end) for end in c.interval or ())
        said = "by" if parts else f"is behind {best} by"
        unit = "" if parts else f" {unit_of(told)}"
        parts.append(f"{name} {said} {abs(c.difference):.4f}{unit} (95 % interval {low:.4f} to {high:.4f})")
    return joined(parts)


def unit_of(pairs: Pairs) -> str:
    """Return what differences are in."""
    return next(iter(pairs.values())).unit


def most_apart(pairs: Pairs) -> float:
    """Return the largest difference that there can be."""
    return next(iter(pairs.values())).measure.most_apart


def only(pairs: Pairs) -> str:
    """Say of what there is too little for a verdict."""
    return joined(list(dict.fromkeys(c.lacks for c in pairs.values())))


def level_with_best(found: Findings, rows: list[Row]) -> list[Row]:
    """Return the best variant and those that are not told apart from it, nor behind another of these."""
    best, *_ = best_first(found, rows)
    level = [row for row in rows if row is best or not pair(found, best.name, row.name).is_told]
    beaten = behind_another(found, level)
    return [row for row in level if row.mechanism not in beaten]


def smallest_cache(found: Findings, rows: list[Row]) -> list[str]:
    """Say which of the variants that are level in quality keeps the smallest cache."""
    level = level_with_best(found, rows)
    small, large = min(level, key=lambda row: row.cache_bytes), max(rows, key=lambda row: row.cache_bytes)
    if len(level) > 1 and all(row.cache_bytes <= small.cache_bytes * (1 + NEAR) for row in level):
        return [f"Their caches are alike: {ranged([row.cache_bytes for row in level])} bytes a token."]
    start = f"Of these, {small.name} keeps the smallest cache:" if len(level) > 1 else f"{small.name} keeps a cache of"
    times = large.cache_bytes / small.cache_bytes
    than = f", {times:.1f} times less than {large.name}" if times > 1 else ""
    return [f"{start} {small.cache_bytes:,} bytes a token{than}."]


def fastest(found: Findings, rows: list[Row]) -> list[str]:
    """Say which of the variants that are level in quality decodes fastest, where that was measured."""
    context = DECODE_CONTEXTS[-1]
    timed = [row for row in level_with_best(found, rows) if context in row.decode]
    if not timed:
        return []
    fast = max(timed, key=lambda row: row.decode[context].median)
    speed = fast.decode[context]
    others = [row for row in timed if row is not fast]
    within = [row.name for row in others if row.decode[context].high >= speed.low]
    rank = ranked(others, within)
    return [f"{fast.name} decodes {speed.median:,.0f} tokens per second at {context:,} tokens{rank}."]


def ranked(others: list[Row], within: list[str]) -> str:
    """Say whether a speed is the highest, or which others lie within its spread."""
    if within:
        return f", and {joined(within)} within the spread of that"
    return ", the most of them" if others else ""


def between(found: Findings, first: str, second: str) -> list[str]:
    """Say how one setting compares with another, mechanism by mechanism, where they differ in one field."""
    row = {row.name: row for row in found.rows}
    of_both = [c for c in found.comparisons if (row[c.a].setting, row[c.b].setting) == (first, second)]
    told, tied, untested = sorted_out({row[c.a].mechanism: c for c in of_both})
    by = {name: f"{name} (by {abs(c.difference):.4f})" for name, c in told.items()}
    kinds = {
        "worse": [by[name] for name, c in told.items() if c.difference > 0],
        "better": [by[name] for name, c in told.items() if c.difference < 0],
        "not told apart": list(tied),
        "no verdict": list(untested),
    }
    said = "; ".join(f"{kind} with {joined(names)}" for kind, names in kinds.items() if names)
    return [f"{second} against {first}: {said}."] if said else []


def pair(found: Findings, a: str, b: str) -> Comparison:
    """Return the comparison of two variants."""
    return next(c for c in found.comparisons if {c.a, c.b} == {a, b})


def best_first(found: Findings, rows: list[Row]) -> list[Row]:
    """Return variants from the best on, by the seeds that they share: means over other seeds do not compare."""
    mark = max(rows, key=lambda row: row.num_seeds)
    return sorted(rows, key=lambda row: above(found, row, mark))


def above(found: Findings, row: Row, other: Row) -> float:
    """Return by how much a variant came out above another one, over the seeds that both have."""
    if row is other:
        return 0.0
    compared = pair(found, other.name, row.name)
    return compared.difference if compared.b == row.name else -compared.difference


def other_seeds(found: Findings) -> list[str]:
    """Say where variants have other seeds than others, that their means do not compare."""
    if len({frozenset(row.runs) for row in found.rows}) == 1:
        return []
    return [
        "Not all variants have the same seeds, so that means of the table do not compare; differences are over the "
        "seeds that both have."
    ]


def scope(found: Findings) -> str:
    """Say what the findings hold for."""
    stated = found.content["stated"]
    tokens = [(stated["settings"] | v["variant"]["changed"])["train_tokens"] for v in found.content["variants"]]
    sizes = [row.parameters for row in found.rows]
    return (
        f"This holds for {found.content['corpus']}, {ranged(tokens)} training tokens and models of {ranged(sizes)} "
        "parameters; larger ones may differ."
    )


def ranged(values: list[int]) -> str:
    """Return the least and the largest of some numbers, or the one that all are."""
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def joined(names: list[str]) -> str:
    """Return names as a phrase."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
