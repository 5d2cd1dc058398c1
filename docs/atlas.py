"""The atlas: every mechanism as its contract states it, and every committed study as its `report.json` has it.

Nothing here is written by hand: a mechanism enters by being registered, a study by its folder in `docs/results`.
"""

import json
import re
from itertools import combinations
from pathlib import Path

from drawings import card as drawn
from drawings import parts_of
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from mla_experiments.benchmark.architectures import ARCHITECTURES, Architecture
from mla_experiments.benchmark.costs import layers_of
from mla_experiments.benchmark.plan import changed
from mla_experiments.modeling import DecoderConfig
from mla_experiments.modeling.attention import ATTENTION, Attention
from mla_experiments.report.styles import style
from mla_experiments.training.settings import RunArguments

HERE = Path(__file__).parent
MODELS = ("reference", "smollm2-135m", "llama-3.1-8b", "qwen3-8b", "deepseek-v3")
CONTEXT = 8192  # tokens before the one that is decoded
BYTES = 2  # of a number in the cache of a model that is served in bf16
LOW, HIGH = re.compile(r"_([A-Za-z]+(?:,[a-z]+)*)"), re.compile(r"\^(\([^)]*\)|[A-Za-z]+)")
Study = dict


def fill(name: str, **values) -> str:
    """Return a template beside this file, with values in it that are escaped."""
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined)
    return environment.get_template(name).render(values)


def cards() -> str:
    """Return a card for each mechanism, in the order of the registry."""
    widest = max(sum(parts_of(name).values()) for name in ATTENTION)
    return fill("atlas_cards.html", cards=[card(name, widest) for name in ATTENTION], context=CONTEXT)


def card(name: str, widest: int) -> dict:
    """Return what a mechanism states of itself, its drawing, and what it costs in models that people know."""
    mechanism = ATTENTION[name]
    return {
        "name": name,
        "description": mechanism.description,
        "equation": typeset(mechanism.equation),
        "source": f"{mechanism.__module__.replace('.', '/')}.py",
        "drawing": Markup(drawn(name, widest)),
        "models": [cost(name, model) for model in MODELS],
    }


def typeset(equation: str) -> Markup:
    """Return an equation with what stands behind _ and ^ set low and high."""
    lowered = LOW.sub(r"<sub>\1</sub>", str(escape(equation)))
    return Markup(HIGH.sub(r"<sup>\1</sup>", lowered))


def cost(name: str, model: str) -> dict:
    """Return what a model's attention costs with a mechanism: as published where it has it, else at the defaults."""
    known = ARCHITECTURES[model]
    is_own, count = known.config.attention == name, known.config.num_hidden_layers
    layer, mha = layer_of(known if is_own else changed(known, name, {})), layer_of(changed(known, "mha", {}))
    numbers = layer.cache_elements_per_token()
    return {
        "model": model,
        "is_own": is_own and model != "reference",
        "cache": BYTES * count * numbers,
        "of_mha": numbers / mha.cache_elements_per_token(),
        "parameters": count * sum(p.numel() for p in layer.parameters()),
        "flops": count * layer.decoding_flops(CONTEXT),
    }


def layer_of(model: Architecture) -> Attention:
    """Return the attention of one layer, which is that of all in models of a single mechanism."""
    (layer,) = layers_of(DecoderConfig.from_dict(model.config.to_dict() | {"num_hidden_layers": 1}))
    return layer


def summaries() -> list[Path]:
    """Return the data of all committed reports: JSON beside the Markdown of the same name."""
    return [path for path in sorted((HERE / "results").glob("*/*.json")) if path.with_suffix(".md").exists()]


def studies() -> list[Study]:
    """Return all committed studies, the newest first, each with its folder and the title of its reading."""
    found = []
    for path in summaries():
        title = (path.parent / "README.md").read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        name = path.parent.name if path.stem == "report" else path.stem
        found.append(json.loads(path.read_text(encoding="utf-8")) | {"name": name, "folder": path.parent.name,
                                                                     "title": title})  # fmt: skip
    return sorted(found, key=lambda study: study["date"], reverse=True)


def front() -> str:
    """Return the interactive front and its points, with the recipe and the budget of each, and what turns verdicts."""
    found = studies()
    turned = turns(found)
    names = list(ATTENTION)
    looks = {name: style(place, 0) for place, name in enumerate(names)}
    points = [point(study, row, turned) for study in found for row in study["rows"]]
    data = {
        "points": points,
        "context": CONTEXT,
        "marks": {study["name"]: style(0, place).mark[1] for place, study in enumerate(found)},
        "colors": {paper: {name: getattr(look, paper) for name, look in looks.items()} for paper in ("light", "dark")},
    }
    said = [sentence for _, _, sentence in turned]
    return fill("atlas_front.html", data=data, studies=found, points=points, context=CONTEXT, turned=said)


def point(study: Study, row: dict, turned: list[tuple]) -> dict:
    """Return a variant of a study as a point: where it stands, how it came there, and how sure that is."""
    is_text = study["measure"] == "bits per byte"
    against = sorted({(pair - {row["attention"]}).pop() for pair, names, _ in turned
                      if row["attention"] in pair and study["name"] in names})  # fmt: skip
    speed = row["decode"].get(str(CONTEXT))
    return {
        "name": row["name"],
        "attention": row["attention"],
        "study": study["name"],
        "folder": study["folder"],
        "cache": row["cache_bytes"],
        "quality": row["quality"] if is_text else None,
        "recall": row.get("recall", {}).get("test"),
        "speed": speed,
        "recipe": recipe(study, row),
        "budget": f"{row['parameters']:,} parameters, {row['train_tokens']:,} tokens, {row['seeds']} seeds",
        "verdict": verdict(study, row["name"]),
        "turned": f"its verdict against {' and '.join(against)}" if against else "",
    }


def recipe(study: Study, row: dict) -> str:
    """Return what a variant was trained with, and out of how many trials that was chosen."""
    trials = f"best of {row['trials']} trials" if row["trials"] > 1 else "one trial"
    return f"{optimizer(study)}, {row['recipe']} ({trials})"


def optimizer(study: Study) -> str:
    """Return a study's optimizer; one that states none took the default."""
    return study["settings"].get("optimizer", RunArguments.optimizer)


def verdict(study: Study, name: str) -> str:
    """Say what a study tells of a variant beside its others."""
    kinds: dict[str, list[str]] = {"better than": [], "worse than": [], "not told apart from": []}
    for pair in study["pairs"]:
        if name in (pair["a"], pair["b"]):
            other = pair["a"] if name == pair["b"] else pair["b"]
            is_worse = (pair["difference"] > 0) == (name == pair["b"])
            kinds[("worse than" if is_worse else "better than") if pair["is_told"] else "not told apart from"] += [
                other
            ]
    return "; ".join(f"{kind} {', '.join(others)}" for kind, others in kinds.items() if others)


def turns(found: list[Study]) -> list[tuple[set[str], tuple[str, str], str]]:
    """Return where two studies of one corpus say different things: the pair of mechanisms, the studies, a sentence."""
    said = []
    for first, second in combinations(found, 2):
        if (first["measure"], first["corpus"]) == (second["measure"], second["corpus"]):
            before, after = outcomes(first), outcomes(second)
            for pair in before.keys() & after.keys():
                if before[pair] != after[pair]:
                    said.append((set(pair), (first["name"], second["name"]), sentence(pair, first, second)))
    return sorted(said, key=lambda one: one[2])


def outcomes(study: Study) -> dict[tuple[str, str], set[str]]:
    """Return what a study says of each pair of mechanisms, over all their variants in it."""
    attention = {row["name"]: row["attention"] for row in study["rows"]}
    said: dict[tuple[str, str], set[str]] = {}
    for pair in study["pairs"]:
        a, b = attention[pair["a"]], attention[pair["b"]]
        if a != b:
            ahead = a if pair["difference"] > 0 else b
            outcome = f"{ahead} ahead" if pair["is_told"] else "not told apart"
            said.setdefault(tuple(sorted((a, b))), set()).add(outcome)
    return said


def sentence(pair: tuple[str, str], first: Study, second: Study) -> str:
    """Say what two studies tell of a pair, and in what they differ."""
    told = [f"{' or '.join(sorted(outcomes(study)[pair]))} in {study['name']}" for study in (first, second)]
    differing = [
        f"{name.replace('_', ' ')} ({shown(first, name)}, {shown(second, name)})"
        for name in ("optimizer", *sorted(first["settings"].keys() & second["settings"].keys() - {"optimizer"}))
        if shown(first, name) != shown(second, name)
    ]
    return f"{' and '.join(pair)}: {', '.join(told)}. The two differ in {', '.join(differing)}, and in what was tuned."


def shown(study: Study, name: str) -> str:
    """Return a setting of a study as text."""
    value = optimizer(study) if name == "optimizer" else study["settings"][name]
    return f"{value:,}" if isinstance(value, int) else str(value)
