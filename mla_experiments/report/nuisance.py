"""Whether a verdict depends on what nobody asked about: a pair of mechanisms in each recipe that a study sweeps."""

from dataclasses import replace

from ..study.fields import BUDGET, CORPUS
from ..study.statistics import Comparison
from .findings import Findings

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


def of_what(found: Findings) -> str:
    """Return what a setting is called: a recipe, or where budgets or fields of a corpus alone differ, after them."""
    fields = {part.split("=", 1)[0] for setting in found.settings for part in setting.split()}
    if fields == {BUDGET}:
        return "budget"
    return "difficulty" if fields and all(field.startswith(CORPUS) for field in fields) else "recipe"


def flips(recipes: ByRecipe) -> bool:
    """Return whether a difference is told in both directions."""
    told = {c.difference > 0 for c in recipes.values() if c.is_told}
    return len(told) == 2


def turned(found: Findings) -> set[frozenset[str]]:
    """Return the pairs of mechanisms of which the recipe decides which is ahead."""
    return {frozenset(pair) for pair, recipes in by_recipe(found).items() if flips(recipes)}


def depends_on(recipes: ByRecipe) -> str:
    """Return the fields whose values go with the direction of a difference that flips, or all that are swept."""
    told = {setting: c.difference > 0 for setting, c in recipes.items() if c.is_told}
    fields = [dict(part.split("=", 1) for part in setting.split()) for setting in told]
    deciding = []
    for name in fields[0]:
        directions: dict[str, set[bool]] = {}
        for values, direction in zip(fields, told.values(), strict=True):
            directions.setdefault(values[name], set()).add(direction)
        if len(directions) > 1 and all(len(found) == 1 for found in directions.values()):
            deciding.append(name)
    return " and ".join(f"the {name.replace('_', ' ')}" for name in deciding or fields[0])


def sentences(found: Findings) -> list[str]:
    """Say of each pair of mechanisms in how many recipes which is ahead, and on what that depends if it flips."""
    said = []
    for (a, b), recipes in by_recipe(found).items():
        count = len(recipes)
        if flips(recipes):
            ahead = [setting for setting, c in recipes.items() if c.is_told and c.difference < 0]
            behind = [setting for setting, c in recipes.items() if c.is_told and c.difference > 0]
            said.append(
                f"Which of {a} and {b} is ahead depends on {depends_on(recipes)}: {b} with {'; '.join(ahead)}, {a} "
                f"with {'; '.join(behind)}."
            )
            continue
        lower = sum(c.difference < 0 for c in recipes.values())
        first, times = (b, lower) if lower * 2 >= count else (a, count - lower)
        other = a if first == b else b
        told = sum(c.is_told for c in recipes.values())
        kinds = {"recipe": "recipes", "difficulty": "difficulties", "budget": "budgets"}[of_what(found)]
        said.append(f"{first} is ahead of {other} in {times} of {count} {kinds}; the difference is told in {told}.")
    return said
