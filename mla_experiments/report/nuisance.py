"""Whether a verdict depends on what nobody asked about: a pair of mechanisms in each recipe that a study sweeps."""

from dataclasses import replace

from ..study.fields import BUDGET, CORPUS
from ..study.statistics import Comparison
from .findings import Findings
from .scaling import ALONG

SEVERAL = 10  # pairs; of more those alone are shown of which something is told
Pair = tuple[str, str]
ByRecipe = dict[str, Comparison]


def by_recipe(found: Findings) -> dict[Pair, ByRecipe]:
    """Return the comparisons of each pair of mechanisms, by recipe; none where there is a single recipe."""
    rows = {row.name: row for row in found.rows}
    pairs: dict[Pair, ByRecipe] = {}
    for c in found.comparisons:
        a, b = rows[c.a], rows[c.b]
        if a.setting == b.setting and len(found.settings) > 1:
            pairs.setdefault((a.mechanism, b.mechanism), {})[a.setting] = replace(c, a=a.mechanism, b=b.mechanism)
    return {pair: recipes for pair, recipes in pairs.items() if len(recipes) > 1}


def telling(found: Findings) -> dict[Pair, ByRecipe]:
    """Return the comparisons of each pair by recipe, of many pairs those alone that some recipe tells apart."""
    pairs = by_recipe(found)
    told = {pair: recipes for pair, recipes in pairs.items() if any(c.is_told for c in recipes.values())}
    return pairs if len(pairs) <= SEVERAL else told


def of_what(found: Findings) -> str:
    """Return what a setting is called, after the fields that differ: a recipe, or a budget, difficulty or scale."""
    kinds = {kind_of(field) for changed in found.swept.values() for field in changed} or {"recipe"}
    return kinds.pop() if len(kinds) == 1 else "setting"


def kind_of(field: str) -> str:
    """Return what a choice of a swept field is called."""
    if field == BUDGET:
        return "budget"
    if field.startswith(CORPUS):
        return "difficulty"
    return "scale" if field in ALONG else "recipe"


def flips(recipes: ByRecipe) -> bool:
    """Return whether a difference is told in both directions."""
    told = {c.difference > 0 for c in recipes.values() if c.is_told}
    return len(told) == 2


def turned(found: Findings) -> set[frozenset[str]]:
    """Return the pairs of mechanisms of which the recipe decides which is ahead."""
    return {frozenset(pair) for pair, recipes in by_recipe(found).items() if flips(recipes)}


def depends_on(recipes: ByRecipe, swept: dict[str, dict]) -> str:
    """Return the fields whose values go with the direction of a difference that flips, or all that are swept.

    Args:
        recipes: the comparisons of a pair.
        swept: what each recipe says of the fields that are swept.
    """
    told = {setting: c.difference > 0 for setting, c in recipes.items() if c.is_told}
    deciding = []
    names = list(swept[next(iter(told))])
    for name in names:
        directions: dict[str, set[bool]] = {}
        for setting, direction in told.items():
            directions.setdefault(str(swept[setting][name]), set()).add(direction)
        if len(directions) > 1 and all(len(found) == 1 for found in directions.values()):
            deciding.append(name)
    return " and ".join(f"the {name.replace('_', ' ')}" for name in deciding or names)


def sentences(found: Findings) -> list[str]:
    """Say of each pair of mechanisms in how many recipes which is ahead; first of those that flip, on what it depends.

    Where no budget makes a difference to either of a pair, it is one comparison, and counts once.
    """
    runs = {(row.mechanism, row.setting): frozenset(row.runs.values()) for row in found.rows}
    turning, steady, shown = [], [], telling(found)
    for (a, b), recipes in shown.items():
        once = {(runs[a, setting], runs[b, setting]): c for setting, c in recipes.items()}
        if flips(recipes):
            turning.append(what_turns(a, b, recipes, found.swept))
        elif len(once) > 1:
            steady.append(how_often(a, b, list(once.values()), of_what(found)))
    others = len(by_recipe(found)) - len(shown)
    rest = [f"Of {others} other pairs no {of_what(found)} tells a difference."] if others else []
    return [*turning, *steady, *rest]


def what_turns(a: str, b: str, recipes: ByRecipe, swept: dict[str, dict]) -> str:
    """Say on what it depends which of two mechanisms is ahead."""
    ahead = [setting for setting, c in recipes.items() if c.is_told and c.difference < 0]
    behind = [setting for setting, c in recipes.items() if c.is_told and c.difference > 0]
    return (
        f"Which of {a} and {b} is ahead depends on {depends_on(recipes, swept)}: {b} with {'; '.join(ahead)}, {a} "
        f"with {'; '.join(behind)}."
    )


def how_often(a: str, b: str, compared: list[Comparison], what: str) -> str:
    """Say in how many recipes one of two mechanisms came out ahead, and in how many that is told."""
    times = {a: sum(c.difference > 0 for c in compared), b: sum(c.difference < 0 for c in compared)}
    of = f"{len(compared)} {'difficulties' if what == 'difficulty' else what + 's'}"
    first, second = sorted(times, key=lambda name: -times[name])
    if times[first] == times[second]:
        said = f"{a} and {b} came out ahead in {times[a]} of {of} each"
    else:
        said = f"{first} came out ahead of {second} in {times[first]} of {of}"
    told = [a if c.difference > 0 else b for c in compared if c.is_told]
    is_said = times[first] > times[second] and set(told) <= {first}
    where = "" if is_said or not told else f", where {told[0]} is ahead"  # one of them: the others flip
    return f"{said}; the difference is told in {len(told)}{where}."
