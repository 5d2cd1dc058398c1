"""A study's report: right numbers in plain words, all text escaped, the whole of it small and quick."""

import itertools
import json
import re
import shlex
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from fake_studies import HOSTILE, MECHANISMS, fake_study
from markupsafe import escape
from transformers import TrainingArguments

from mla_experiments.cli import main
from mla_experiments.cli.parsing import parse
from mla_experiments.errors import UserError
from mla_experiments.evaluation.scores import read_scores
from mla_experiments.manifest import read_record, write_record
from mla_experiments.report import nuisance, scaling
from mla_experiments.report.charts import Chart, Series, to_plotly
from mla_experiments.report.findings import read_findings
from mla_experiments.report.power import seeds_needed
from mla_experiments.report.study import to_markdown, write_report
from mla_experiments.report.study_charts import charts, drawn, looks
from mla_experiments.report.styles import style
from mla_experiments.report.text import matched, text_of
from mla_experiments.study.description import Variant
from mla_experiments.texts import read_text
from mla_experiments.training import RunArguments


def by_position(rows):
    """Every mechanism with both kinds of positions; learned ones are worse."""
    settings = ({"positions": "rope"}, {"positions": "learned"})
    return [(Variant(name, {}, changed), worse + 0.2 * place)
            for name, worse in rows for place, changed in enumerate(settings)]  # fmt: skip


def change(folder, **facts):
    """Change facts in a study's record."""
    content = read_record(folder / "study.json")
    content["stated"] |= facts.pop("stated", {})
    write_record(folder / "study.json", content | facts)


def markdown_of(folder):
    """What `report.md` would say, without drawing."""
    found = read_findings(folder)
    return to_markdown(text_of(found), charts(found))


def test_the_answer_names_what_is_worse_by_how_much_and_what_is_not_told_apart(tmp_path):
    found = read_findings(fake_study(tmp_path))
    said = text_of(found).answer
    (headline, cache), (room, power, scope), (speed,) = said.lead, said.sure, said.speed
    assert re.match(
        r"(mha and mla|mla and mha) are not told apart; gqa is behind (mha|mla) by 0\.0[45]\d\d bits", headline
    )
    assert re.search(r"\(95 % interval 0\.04\d\d to 0\.05\d\d\) and mqa by 0\.(09|10)", headline)
    (pair,) = (c for c in found.comparisons if (c.a, c.b) == ("mha", "mla"))
    assert abs(pair.difference) < 0.005 and pair.interval[0] < pair.difference < pair.interval[1]
    assert f"room for {max(map(abs, pair.interval)):.4f} bits per byte" in room
    assert power.startswith(f"A true difference of {pair.detectable:.4f} bits per byte (")
    assert cache == "Of these, mla keeps the smallest cache: 512 bytes a token, 8.0 times less than mha."
    assert speed == "mla decodes 53 tokens per second at 8,192 tokens, the most of them."
    assert "2,000 training tokens and models of 1,000,000 to 1,000,003 parameters" in scope


def test_where_nothing_is_told_apart_that_is_the_answer_with_what_remains_possible(tmp_path):
    equal = [(Variant("mha"), 0.0), (Variant("mla"), 0.0)]
    found = read_findings(fake_study(tmp_path, variants=equal))
    headline, _, room, *_ = text_of(found).answer.sentences
    assert re.fullmatch(r"No difference is told between (mha and mla|mla and mha)\.", headline)
    (only,) = found.comparisons
    assert f"room for {max(map(abs, only.interval)):.4f} bits per byte" in room


def test_a_clear_best_is_named(tmp_path):
    found = read_findings(fake_study(tmp_path, variants=[(Variant("mha"), 0.05), (Variant("mla"), 0.0)]))
    headline, cache = text_of(found).answer.lead
    assert headline.startswith("mla is best; mha is behind mla by 0.0") and "95 % interval" in headline
    assert cache == "mla keeps a cache of 2,048 bytes a token, 2.0 times less than mha."


def test_estimates_are_those_of_the_scores_at_the_best_rate(tmp_path):
    found = read_findings(fake_study(tmp_path))
    assert all(tuned.best == {"learning_rate": 3e-3} and not tuned.edges for tuned in found.tuned.values())
    for row in found.rows:
        runs = [r for r in found.content["runs"] if r["variant"] == row.name and not r["is_tuning"]]
        by_seed = [sum(read_scores(tmp_path / run["folder"])["test"].nats) / 40_000 / np.log(2) for run in runs]
        assert row.num_seeds == len(by_seed) == 5
        assert row.bits.mean == pytest.approx(np.mean(by_seed))


def test_one_seed_gives_no_interval_and_no_verdict_and_an_edge_is_said(tmp_path):
    folder = fake_study(tmp_path, seeds=1, rates=(3e-3, 9e-3))
    said, text = text_of(read_findings(folder)), markdown_of(folder)
    assert "came out lowest, but one seed cannot tell" in text and "gqa against mha: one seed cannot tell" in text
    assert not any("±" in cell for row in said.results for cell in row.values())
    assert [row["at the edge"] for row in said.tuned] == ["learning_rate"] * 4


def test_settings_are_answered_one_by_one_and_then_against_each_other(tmp_path):
    folder = fake_study(tmp_path, variants=by_position([("mha", 0.0), ("mla", 0.05)]))
    found = read_findings(folder)
    ahead, first, second, against, _ = text_of(found).answer.sentences
    assert ahead == "mha came out ahead of mla in 2 of 2 recipes; the difference is told in 2."
    assert first.startswith("With positions=rope: mha is best; mla is behind mha by 0.0")
    assert second.startswith("With positions=learned: mha is best; mla is behind mha by 0.0")
    assert re.match(r"positions=learned against positions=rope: worse with mha \(by 0.*\) and mla \(by 0", against)
    assert len(found.comparisons) == 4, "a pair that differs in mechanism and positions says nothing"


def test_a_verdict_that_the_recipe_turns_is_never_given_as_one(tmp_path):
    recipes = [{"initialization": how, "seed_of_data": number} for how in ("normal", "zero") for number in (1, 2)]
    turning = [(Variant("mha", {}, recipe), 0.0) for recipe in recipes]
    turning += [
        (Variant("mla", {}, recipe), 0.05 if recipe["initialization"] == "normal" else -0.05) for recipe in recipes
    ]
    text = text_of(read_findings(fake_study(tmp_path, variants=turning)))
    assert text.answer.headline == (
        "Which of mha and mla is ahead depends on the initialization: mla with initialization=zero seed_of_data=1; "
        "initialization=zero seed_of_data=2, mha with initialization=normal seed_of_data=1; initialization=normal "
        "seed_of_data=2."
    )
    assert [row["recipe"] for row in text.recipes] == [" ".join(f"{k}={v}" for k, v in one.items()) for one in recipes]
    differences = [row["mla less mha"] for row in text.recipes]
    assert [said[0] for said in differences] == ["+", "+", "-", "-"]
    for row in text.differences:
        same = row["pair"].count("initialization=normal") != 1
        if "mha" in row["pair"] and "mla" in row["pair"] and same:
            assert "depends on the recipe" in row["pair"]
    for sentence in text.answer.sentences[1:5]:
        assert "is behind" not in sentence and "is best" not in sentence
    (chart,) = charts(read_findings(tmp_path / "tiny"))["recipes"]
    assert [round(value, 2) for value in chart.series[0].y] == pytest.approx([0.05, 0.05, -0.05, -0.05], abs=0.011)


def test_an_unfinished_study_shows_what_is_there_marked(tmp_path):
    folder = fake_study(tmp_path, done=lambda run: run["variant"] != "mqa" and run["seed"] != 3)
    write_report(folder)
    text = read_text(folder / "report.md")
    assert text == markdown_of(folder).rstrip("\n") + "\n" and "\n| mqa" not in text and "\n| mha" in text
    for written in (text, (folder / "report.html").read_text()):
        assert "Unfinished: 11 of 32 runs are still to do" in written


def test_runs_that_failed_are_named_with_the_reason_and_are_not_to_do(tmp_path):
    folder = fake_study(tmp_path, done=lambda run: run["settings"]["learning_rate"] != 9e-3)
    change(folder, failed={"0-2": f"loss is nan {HOSTILE}"})
    text = markdown_of(folder)
    assert "Unfinished: 3 of 32 runs are still to do. 1 of 32 runs failed:" in text
    assert "- mha, learning rate 0.009, seed 1000: loss is nan &lt;/script&gt;" in text


def test_runs_for_which_no_settings_worked_are_not_to_do(tmp_path):
    """All rates of one variant diverged, so that its seeds have none to train with, and nothing is left to do."""
    folder = fake_study(tmp_path, variants=MECHANISMS[:2], done=lambda run: run["variant"] == "mha")
    runs = [run for run in read_record(folder / "study.json")["runs"] if run["done"] or run["is_tuning"]]
    change(folder, runs=runs, failed={f"1-{number}": "loss is nan" for number in range(3)})
    said = text_of(read_findings(folder))
    assert said.notice == ("5 of 16 runs are not done, since no settings of their variant worked. 3 of 16 runs failed:")
    change(folder, failed={"1-0": "loss is nan", "1-1": "loss is nan"})
    assert text_of(read_findings(folder)).notice.startswith("Unfinished: 6 of 16 runs are still to do. 2 of 16")


def test_runs_that_were_not_even_listed_count_as_to_do(tmp_path):
    folder = fake_study(tmp_path)
    change(folder, runs=[run for run in read_record(folder / "study.json")["runs"] if run["seed"] in (0, 1000)])
    assert read_findings(folder).unfinished == 4 * 4


def test_what_was_matched_is_said_with_its_residuals(tmp_path):
    folder = fake_study(tmp_path)
    assert (
        text_of(read_findings(folder)).words["Matched"].endswith("matched by the width of the MLP, to within 0.000 %.")
    )
    variants = read_record(folder / "study.json")["variants"]
    for variant, cached in zip(variants, (1.0, -0.25, -0.5, 0.004), strict=True):
        variant |= {"cache_residual": cached, "residual": 0.002}
    variants[-1]["options"] = {"kv_lora_rank": 61}
    change(folder, variants=variants, stated={"match": "cache", "cache_bytes_per_token": 2048})
    assert text_of(read_findings(folder)).words["Matched"] == (
        "The cache was to be 2,048 bytes a token, and is as near as groups and latent ranks allow: mha +100.0 %, "
        "gqa -25.0 %, mqa -50.0 %, mla kv_lora_rank=61 +0.4 %. Not at the budget: mha, gqa and mqa. Parameters were "
        "matched by the width of the MLP, to within 0.200 %."
    )


def test_sizes_are_said_to_be_matched_one_by_one(tmp_path):
    sizes = [(Variant("mha", {}, {"hidden_size": width}), 0.0) for width in (32, 64)]
    said = text_of(read_findings(fake_study(tmp_path, variants=sizes))).words["Matched"]
    assert said == "Parameters were matched within each size by the width of the MLP, to within 0.000 %."


def test_where_decoding_was_measured_for_some_their_front_is_drawn(tmp_path):
    folder = fake_study(tmp_path)
    change(folder, decode={"mha": {"1024": 2.0, "8192": 1.0}})
    (front,) = charts(read_findings(folder))["speed"]
    assert front.key == "front-decode" and [series.name for series in front.series] == ["Pareto front", "mha"]


def test_the_front_holds_those_that_no_other_beats_in_both(tmp_path):
    chart = charts(read_findings(fake_study(tmp_path, noise=0)))["lead"][0]
    front = chart.series[0]
    assert front.x == [512] and front.y == chart.series[-1].y  # mla: the smallest cache, and level with the best


def test_a_sweep_is_drawn_with_its_fit_and_its_optimum(tmp_path):
    found = read_findings(fake_study(tmp_path, noise=0))
    chart, worth = charts(found)["tuned"]
    points, curve, star = chart.series[:3]
    fit = found.tuned["mha"].fit
    assert worth.series[0].y == [mean for mean, _ in found.tuned["mha"].expected_best]
    assert (points.x, points.y) == ([1e-3, 3e-3, 9e-3], list(fit.values))
    assert min(curve.y) == pytest.approx(star.y[0], abs=1e-4) and star.x == [pytest.approx(3e-3, rel=1e-3)]
    assert star.look == "star" and points.style is curve.style is star.style


def test_a_hundred_variants_can_be_told_apart_without_colour():
    many = looks([SimpleNamespace(mechanism=f"mla kv_lora_rank={rank}", setting="") for rank in range(100)])
    assert len({(look.light, look.dash, look.mark) for look in many}) == 100
    assert len({(look.dash, look.mark) for look in many[:10]}) == 10
    rope, learned, other_rope, other_learned = looks(
        [SimpleNamespace(mechanism=name, setting=kind) for name in ("mha", "mla") for kind in ("rope", "learned")]
    )
    assert rope.dash == learned.dash != other_rope.dash == other_learned.dash, "dashes are of mechanisms"
    assert rope.mark == other_rope.mark != learned.mark == other_learned.mark, "marks are of settings"


def test_everything_is_escaped(tmp_path):
    folder = fake_study(tmp_path, variants=[(Variant("mha", {"x": HOSTILE}), 0.0), (Variant("mla"), 0.1)])
    assert main(["report", str(folder)]) == 0
    page, markdown = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    assert HOSTILE not in page and escape(HOSTILE) in page
    own = page.split("<script>")[0]
    assert "http://" not in own and "https://" not in own, "nothing is fetched"
    assert own.count("</script>") == 1, "data cannot end their element"
    json.loads(own.split('id="data">')[1].split("</script>")[0])
    prose = [line for line in markdown.splitlines() if not line.startswith("    ")]  # code blocks hold text as it is
    for markup in ("<script>", "<img", "![i](x)", "**b**"):
        assert not any(markup in line for line in prose), markup
    tables = [[*lines] for is_table, lines in itertools.groupby(prose, lambda line: line.startswith("|")) if is_table]
    cells = [{len(re.split(r"(?<!\\)\|", line)) for line in lines} for lines in tables]
    assert tables and all(len(counts) == 1 for counts in cells), "a cell breaks out of its table"


def test_sixty_runs_are_reported_in_seconds_and_a_few_megabytes(tmp_path):
    folder = fake_study(tmp_path, seeds=11, rates=(1e-3, 2e-3, 3e-3, 5e-3, 9e-3))
    assert len(read_record(folder / "study.json")["runs"]) == 64
    begun = time.process_time()
    written = write_report(folder)
    assert time.process_time() - begun < 20
    assert (folder / "report.html").stat().st_size < 6_000_000
    assert sum(path.suffix == ".png" for path in written) == sum(path.suffix == ".svg" for path in written) == 8


@pytest.mark.parametrize(("name", "said"), [("nothing", "holds no study.json"), ("tiny", "no finished run yet")])
def test_what_cannot_be_reported_is_one_sentence(tmp_path, capsys, name, said):
    fake_study(tmp_path, done=lambda _: False)
    assert main(["report", str(tmp_path / name)]) == 2
    assert said in capsys.readouterr().err


def test_no_speed_wins_within_its_spread(tmp_path):
    folder = fake_study(tmp_path)
    around = {"mha": (50, 45, 55), "gqa": (60, 59, 61), "mqa": (61, 60, 62), "mla": (53, 52, 54)}
    speeds = {name: dict(zip(("median", "low", "high"), turns, strict=True)) for name, turns in around.items()}
    change(folder, decode={name: {"1024": speed, "8192": speed} for name, speed in speeds.items()})
    text = text_of(read_findings(folder))
    assert "mla decodes 53 tokens per second at 8,192 tokens, and mha within the spread of that." in text.answer.speed
    assert text.speeds[0]["decode tokens/s at 8,192"] == "50 (45 to 55)"


def test_what_a_difference_does_as_compute_grows_is_said_with_its_interval(tmp_path):
    tokens = (1000, 2000, 4000, 8000)
    laws = {"mha": lambda c: 1.0 + 0.5 * (c / tokens[0]) ** -0.3, "mla": lambda c: 0.9 + 0.7 * (c / tokens[0]) ** -0.3}
    planted = [(Variant(name, {}, {"train_tokens": c}), law(c)) for name, law in laws.items() for c in tokens]
    found = read_findings(fake_study(tmp_path, variants=planted, noise=1))
    curves = scaling.curves(found)
    assert list(curves) == ["mha", "mla"]
    easy = curves["mha"].bits[-1] - laws["mha"](tokens[-1])  # what the documents add to all
    for name, law in laws.items():
        assert curves[name].compute.tolist() == [1e7 * c for c in tokens]
        assert curves[name].at(1e7 * 16_000) == pytest.approx(law(16_000) + easy, abs=0.01)
    difference, (low, high) = scaling.difference_at(*curves.values(), 1.6e11)
    assert low < laws["mla"](16_000) - laws["mha"](16_000) < high and high - low < 0.05
    assert difference == pytest.approx((low + high) / 2, abs=0.02)
    said = text_of(found).scaling
    assert re.search(r"R² (0\.99|1\.00)", said[0])
    assert said[2].startswith("mla less mha: +0.1") and "at 1.6e+11 FLOPs" in said[2]
    (chart,) = charts(found)["scaling"]
    assert max(chart.series[1].x) == pytest.approx(1.6e11)
    two = [(variant, worse) for variant, worse in planted if variant.changed["train_tokens"] < 4000]
    (tmp_path / "two").mkdir()
    assert not scaling.curves(read_findings(fake_study(tmp_path / "two", variants=two))), "two points are no law"


def test_a_study_that_tunes_nothing_has_no_section_on_it(tmp_path):
    folder = fake_study(tmp_path, rates=(3e-3,))
    write_report(folder)
    assert (
        "Tuning" not in (folder / "report.md").read_text() + (folder / "report.html").read_text().split("<script>")[0]
    )


def test_the_numbers_are_written_as_data_beside_the_report(tmp_path):
    folder = fake_study(tmp_path)
    change(folder, stated={"cache_bytes_per_token": 2048})
    write_report(folder)
    found, data = read_findings(folder), json.loads((folder / "report.json").read_text())
    assert [row["quality"]["mean"] for row in data["rows"]] == [row.bits.mean for row in found.rows]
    assert [row["decode"]["8192"]["median"] for row in data["rows"]] == [50, 51, 52, 53]
    assert {(row["seeds"], row["trials"], row["recipe"]) for row in data["rows"]} == {(5, 3, "learning rate 0.003")}
    assert [(pair["a"], pair["b"], pair["is_told"]) for pair in data["pairs"]] == [
        (c.a, c.b, c.is_told) for c in found.comparisons
    ]
    assert data["headline"] == text_of(found).answer.headline and data["settings"]["train_tokens"] == 2000


def test_the_budget_is_a_line_in_the_first_figure_where_there_is_one(tmp_path):
    folder = fake_study(tmp_path)
    assert charts(read_findings(folder))["lead"][0].limit is None
    change(folder, stated={"cache_bytes_per_token": 1000})
    (front,) = charts(found := read_findings(folder))["lead"]
    assert to_plotly(front)["layout"]["shapes"][0]["x0"] == 1000 and "budget" in front.caption
    assert ("dotted line" in front.caption) == (len(front.series[0].x) > 1), "one point has no line"
    assert front.widened() is None, "caches of 512 to 4,096 span the axis"
    assert len(text_of(found).answer.lead) <= 3 and "At 1,000 bytes" in text_of(found).answer.headline


def test_the_cache_of_a_sequence_is_drawn_as_recorded_or_by_an_older_record_where_no_window_bounds_it(tmp_path):
    folder = fake_study(tmp_path)
    (chart,) = charts(read_findings(folder))["cache"]
    assert chart.series[0].y[2] == 8192 * 4096 / 2**20
    variants = read_record(folder / "study.json")["variants"]
    change(folder, variants=[variants[0] | {"cache_bytes": {"512": 1024, "8192": 4096}}])
    (chart,) = charts(read_findings(folder))["cache"]
    assert (chart.series[0].x, chart.series[0].y) == ([512, 8192], [1024 / 2**20, 4096 / 2**20])
    settings = read_record(folder / "study.json")["stated"]["settings"]
    change(folder, variants=variants, stated={"settings": settings | {"sliding_window": 64}})
    (chart,) = charts(read_findings(folder))["cache"]
    assert not chart.series[0].x


def test_what_was_compared_can_be_trained_by_a_command_that_train_takes(tmp_path):
    """Its mechanism as it was matched, the rate that came out best, and what is swept; sizes are the user's."""
    folder = fake_study(tmp_path, variants=[(Variant("mla", {}, {"positions": "learned"}), 0.0)])
    (variant,) = read_record(folder / "study.json")["variants"]
    settings = {"train_tokens": 2000, "optimizer": "muon"}
    change(folder, variants=[variant | {"options": {"kv_lora_rank": 12}}], stated={"settings": settings})
    (line,) = text_of(read_findings(folder)).train
    assert line in (markdown_of(folder))
    _, command, *flags = shlex.split(line)
    own, trainers = parse([RunArguments, TrainingArguments], flags, command, "")
    assert (own["attention"], own["positions"], own["optimizer"]) == (["mla"], "learned", "muon")
    assert trainers["learning_rate"] == 0.003
    assert json.loads(own["attention_options"]) == {"mla": {"kv_lora_rank": 12}}


def test_the_word_above_the_budget_stands_inside_the_figure(tmp_path):
    """On a phone it would be cut off at the right edge."""
    folder = fake_study(tmp_path)
    for budget, side in ((4096, "right"), (512, "left")):
        change(folder, stated={"cache_bytes_per_token": budget})
        (front,) = charts(read_findings(folder))["lead"]
        assert to_plotly(front)["layout"]["shapes"][0]["label"]["xanchor"] == side


def test_each_of_several_budgets_has_its_answer_and_one_model_is_not_compared_with_itself(tmp_path):
    budgets = {"cache_bytes_per_token": 512}, {"cache_bytes_per_token": 1024}
    variants = [
        (Variant(name, {}, of), worse) for of in budgets for name, worse in (("mha", 0.0), ("mla", 0.05), ("gqa", 0))
    ]
    folder = fake_study(tmp_path, variants=variants)
    record = read_record(folder / "study.json")
    for variant, kept in zip(record["variants"], (4096, 512, 480, 4096, 1024, 1000), strict=True):
        variant["cache_bytes_per_token"], variant["cache_residual"] = kept, 0.0
    first, second = (f"mha cache_bytes_per_token={budget}" for budget in (512, 1024))
    trained = {run["seed"]: run["folder"] for run in record["runs"] if run["variant"] == first and not run["is_tuning"]}
    for run in record["runs"]:  # no budget makes a difference to it
        if run["variant"] == second and not run["is_tuning"]:
            run["folder"] = trained[run["seed"]]
    stated = {"match": "cache", "cache_bytes_per_token": None}
    change(folder, variants=record["variants"], runs=record["runs"], stated=stated)
    found = read_findings(folder)
    answer, pairs = text_of(found).answer, {frozenset((c.a, c.b)) for c in found.comparisons}
    assert answer.lead[0].startswith("At 512 bytes of cache a token, take gqa, which is better")
    assert answer.lead[1].startswith("At 1,024 bytes of cache a token, take gqa, which is better")
    assert answer.lead[2].startswith("Above 512 bytes, and here for comparison alone: mha (4,096 bytes).")
    assert frozenset((first, second)) not in pairs
    assert {
        frozenset((f"mla {key}={a}", f"mla {key}={b}")) for key, a, b in [("cache_bytes_per_token", 512, 1024)]
    } < pairs
    assert "to be 512 or 1,024 bytes a token" in matched(found)


@pytest.mark.parametrize(
    ("caches", "taken", "merit"),
    [
        ((1000, 1004), "mla", "decodes fastest; their caches are alike"),
        ((1000, 500), "mla", "keeps the smallest cache of them (500 bytes)"),
        ((500, 1000), "mha", "keeps the smallest cache of them (500 bytes)"),
    ],
)
def test_of_those_level_at_the_budget_the_cheapest_is_taken_and_nearly_equal_caches_do_not_decide(
    tmp_path, caches, taken, merit
):
    found = read_findings(at_budget(tmp_path, [0.0, 0.0], caches))
    (said,) = text_of(found).answer.lead  # the same is not said twice
    means = {row.name: row.bits.mean for row in found.rows}
    above = means[taken] - min(means.values())
    how = f"; it came out {above:.4f} above the lowest" if above else ", and came out lowest"
    assert said == (
        f"At 1,024 bytes of cache a token, take {taken}: mha and mla are not told apart, and it {merit}{how}."
    )


def test_what_came_out_farther_behind_than_what_is_told_is_not_taken_for_its_cache(tmp_path):
    """Its seeds disagree too much for a verdict, and nobody should take it for that."""
    folder = at_budget(tmp_path, [0.0, 0.05, 0.2], (1000, 1000, 100))
    for run in (run for run in read_record(folder / "study.json")["runs"] if run["variant"] == "gqa"):
        path = folder.parent / run["folder"] / "scores.json"
        scores = read_record(path)
        for part in scores["splits"].values():
            part["nats"] = [nats + 150 * (run["seed"] - 2) for nats in part["nats"]]
        write_record(path, scores)
    headline, aside, *_ = text_of(read_findings(folder)).answer.sentences
    assert headline.startswith("At 1,024 bytes of cache a token, take mha, which came out lowest.")
    assert aside.startswith("Left aside: gqa came out 0.2")


def at_budget(tmp_path, worse, caches):
    """A study at 1,024 bytes of mha, mla and gqa: how much worse they are, and what they keep."""
    names = ("mha", "mla", "gqa")[: len(worse)]
    folder = fake_study(tmp_path, variants=[(Variant(n), w) for n, w in zip(names, worse, strict=True)])
    variants = read_record(folder / "study.json")["variants"]
    for variant, cache in zip(variants, caches, strict=True):
        variant["cache_bytes_per_token"] = cache
    change(folder, variants=variants, stated={"cache_bytes_per_token": 1024})
    return folder


def test_caches_that_are_all_alike_are_drawn_in_the_middle_of_an_axis(tmp_path):
    folder = fake_study(tmp_path, variants=[(Variant("mha"), 0.0)])
    (front,) = charts(read_findings(folder))["lead"]
    assert front.series[1].x == [4096]
    low, high = to_plotly(front)["layout"]["xaxis"]["range"]
    assert low < np.log10(4096) - 0.1 and high > np.log10(4096) + 0.1


def test_points_of_equal_caches_stand_side_by_side_and_are_named_by_what_they_keep(tmp_path):
    folder = fake_study(tmp_path, variants=[(Variant("mha"), 0.0), (Variant("mla"), 0.1)])
    variants = read_record(folder / "study.json")["variants"]
    change(folder, variants=[variant | {"cache_bytes_per_token": 1000} for variant in variants])
    (front,) = charts(read_findings(folder))["lead"]
    _, mha, mla = front.series
    assert 900 < mha.x[0] < 1000 < mla.x[0] < 1100 and "side by side" in front.caption
    assert [trace["text"] for trace in to_plotly(front)["data"][1:]] == [["1,000"], ["1,000"]]


def changed_scores(folder, more):
    """Add to the nats of every document of a run what `more` says of it."""
    for run in read_record(folder / "study.json")["runs"]:
        path = folder.parent / run["folder"] / "scores.json"
        scores = read_record(path)
        for part in scores["splits"].values():
            part["nats"] = [nats + more(run) for nats in part["nats"]]
        write_record(path, scores)


def test_who_is_ahead_is_told_by_the_seeds_that_both_have(tmp_path):
    """Two seeds are hard for everybody, and one variant has not had them yet: its mean is lower, and it is worse."""
    folder = fake_study(
        tmp_path,
        variants=[(Variant("mha"), 0.0), (Variant("mla"), 0.05)],
        done=lambda run: run["variant"] == "mha" or run["seed"] not in (3, 4),
    )
    changed_scores(folder, lambda run: 300 * (run["seed"] in (3, 4)))
    found = read_findings(folder)
    mha, mla = found.rows
    assert mla.bits.mean < mha.bits.mean
    said = text_of(found).answer
    assert said.headline.startswith("mha is best; mla is behind mha by 0.0")
    assert any("means of the table do not compare" in sentence for sentence in said.sure)
    (tmp_path / "all").mkdir()
    assert "do not compare" not in markdown_of(fake_study(tmp_path / "all"))


def test_of_those_level_with_the_best_one_that_is_told_to_be_behind_another_is_not_called_level(tmp_path):
    """The seeds of the best disagree, so that nothing is told apart from it; the others are told apart."""
    planted = [(Variant("mha"), 0.0), (Variant("gqa"), 0.02), (Variant("mla"), 0.06)]
    folder = fake_study(tmp_path, variants=planted)
    changed_scores(folder, lambda run: 80 * (run["seed"] - 2) * (run["variant"] == "mha"))
    said = text_of(read_findings(folder)).answer
    assert said.headline == (
        "No difference is told between mha and gqa; mla is worse than gqa, and not told apart from mha."
    )
    assert said.lead[1].startswith("Of these, gqa keeps the smallest cache")
    change(folder, stated={"cache_bytes_per_token": 4096})
    headline, aside, *_ = text_of(read_findings(folder)).answer.lead
    assert headline.startswith("At 4,096 bytes of cache a token, take gqa: mha and gqa are not told apart")
    assert aside == "Left aside: mla is worse than gqa."


def test_what_another_budget_does_to_the_best_sets_nobody_aside(tmp_path):
    """The best itself is told to be a little better with more cache; at its own budget nothing is told."""
    small, large = ({"cache_bytes_per_token": budget} for budget in (4096, 8192))
    planted = [(Variant("mha", {}, small), 0.0), (Variant("gqa", {}, small), 0.02), (Variant("mha", {}, large), -0.005)]
    folder = fake_study(tmp_path, variants=planted)
    changed_scores(folder, lambda run: 80 * (run["seed"] - 2) * run["variant"].startswith("gqa"))
    found = read_findings(folder)
    assert [(c.a, c.b) for c in found.comparisons if c.is_told] == [
        (f"mha cache_bytes_per_token={a}", f"mha cache_bytes_per_token={b}") for a, b in [(4096, 8192)]
    ]
    assert not any("Left aside" in sentence for sentence in text_of(found).answer.sentences)


def in_recipes(tmp_path, recipes, **worse):
    """What a report says of mechanisms that are so much worse in each recipe."""
    planted = [(Variant(name, {}, of), by) for name, all_of in worse.items()
               for of, by in zip(recipes, all_of, strict=True)]  # fmt: skip
    return text_of(read_findings(fake_study(tmp_path, variants=planted, noise=0)))


def test_who_is_ahead_in_how_many_recipes_counts_neither_where_they_are_alike(tmp_path):
    recipes = [{"initialization": how} for how in ("normal", "scaled", "zero")]
    alike, divided, turned_once = (tmp_path / name for name in ("alike", "divided", "once"))
    for folder in (alike, divided, turned_once):
        folder.mkdir()
    said = in_recipes(alike, recipes, mha=(0, 0, 0), mla=(0, 0, 0)).answer
    assert said.headline == "mha and mla came out ahead in 0 of 3 recipes each; the difference is told in 0."
    said = in_recipes(divided, recipes, mha=(0, 0, 0), mla=(0, 0.1, 0.1)).answer
    assert said.headline == "mha came out ahead of mla in 2 of 3 recipes; the difference is told in 2."
    found = read_findings(divided / "tiny")
    last, *others = [
        replace(c, difference=-0.01, both=None) for c in found.comparisons if "mla" in c.b and "mha" in c.a
    ]
    told = replace(others[0], difference=0.1, both=found.comparisons[0].both)
    assert nuisance.how_often("mha", "mla", [last, last, told], "recipe") == (
        "mla came out ahead of mha in 2 of 3 recipes; the difference is told in 1, where mha is ahead."
    )


def test_pairs_that_turn_are_said_first_and_values_may_be_anything(tmp_path):
    recipes = [{"lr_scheduler_kwargs": {"min_lr_rate": rate, "num_cycles": 0.5}} for rate in (0.1, 0.0)]
    said = in_recipes(tmp_path, recipes, mha=(0, 0), gqa=(0.2, 0.2), mla=(0.1, -0.1)).answer
    assert said.headline == (
        "Which of mha and mla is ahead depends on the lr scheduler kwargs: mla with lr_scheduler_kwargs={'min_lr_rate'"
        ": 0.0, 'num_cycles': 0.5}, mha with lr_scheduler_kwargs={'min_lr_rate': 0.1, 'num_cycles': 0.5}."
    )


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        (("train_tokens",), "scale"), (("hidden_size", "train_tokens"), "scale"), (("optimizer",), "recipe"),
        (("cache_bytes_per_token",), "budget"), (("corpus.pairs",), "difficulty"),
        (("optimizer", "hidden_size"), "setting"),
    ],
)  # fmt: skip
def test_a_setting_is_called_after_what_is_swept(tmp_path, fields, kind):
    said = in_recipes(tmp_path, [dict.fromkeys(fields, value) for value in (64, 128)], mha=(0, 0), mla=(0.1, 0.1))
    assert said.setting == kind and f"of 2 {kind[:-1]}" in " ".join(said.answer.sentences)


def test_a_pair_to_which_no_budget_makes_a_difference_is_not_counted_at_each(tmp_path):
    """Both are the same runs at both budgets: one comparison, which is not twice as much evidence."""
    budgets = [{"cache_bytes_per_token": budget} for budget in (512, 1024)]
    in_recipes(tmp_path, budgets, mha=(0, 0), gqa=(0.1, 0.1), mla=(0.1, 0.2))
    runs, trained = read_record(tmp_path / "tiny" / "study.json")["runs"], {}
    for run in runs:
        name, _ = run["variant"].split()
        if name != "mla":
            run["folder"] = trained.setdefault((name, run["seed"], run["settings"]["learning_rate"]), run["folder"])
    change(tmp_path / "tiny", runs=runs)
    said = text_of(read_findings(tmp_path / "tiny")).answer.sentences
    assert not any("mha came out ahead of gqa" in sentence for sentence in said)
    assert "mha came out ahead of mla in 2 of 2 budgets; the difference is told in 2." in said


def scaled(folder, seeds=5, noise=1, done=lambda _: True, tokens=(1000, 2000, 4000)):
    """Findings of two mechanisms over some budgets of tokens, of which the second starts 0.2 behind, and gains more."""
    folder.mkdir()
    laws = {"mha": (1.0, 0.5), "mla": (0.9, 0.7)}
    planted = [(Variant(name, {}, {"train_tokens": count}), limit + gain * (count / 1000) ** -0.3)
               for name, (limit, gain) in laws.items() for count in tokens]  # fmt: skip
    return read_findings(fake_study(folder, seeds=seeds, rates=(3e-3,), variants=planted, noise=noise, done=done))


def test_a_law_through_three_points_or_of_few_seeds_is_not_said_to_be_sure(tmp_path):
    three = text_of(scaled(tmp_path / "three")).scaling
    assert "R²" not in three[0] and "through 3 points, which says nothing of how well it fits" in three[0]
    assert re.search(r"at 8e\+10 FLOPs, twice the largest budget; 95 % over seeds\.", three[2])
    for seeds in (1, 2):
        *_, said = text_of(scaled(tmp_path / str(seeds), seeds)).scaling
        assert " to " not in said and said.endswith("; without an interval, for want of 3 seeds that both have.")


def test_a_law_waits_until_its_points_have_a_seed_in_common(tmp_path):
    found = scaled(tmp_path / "few", 2, done=lambda run: (run["seed"] == 0) == ("=1000" in run["variant"]))
    assert len(found.rows) == 6 and not scaling.curves(found) and not text_of(found).scaling


def test_the_interval_of_a_difference_by_laws_holds_the_truth_at_three_seeds(tmp_path):
    """The quantiles of the draws themselves hold it 17 times in 24, which is not 95 %."""
    generator, compute, held = np.random.default_rng(3), 1e10 * np.array([1, 2, 4]), 0
    draws = np.random.default_rng(0).integers(0, 3, (50, 3))
    laws, at = ((1.0, 0.5, 0.3), (0.9, 0.7, 0.3)), 8e10
    for _ in range(24):
        curves = []
        for limit, gain, power in laws:
            bits = (limit + gain * (compute / 1e10) ** -power)[:, None] + generator.normal(0, 0.002, (3, 3))
            law = scaling.fit(compute, bits.mean(1))
            drawn = [scaling.fit(compute, bits[:, of].mean(1), law) for of in draws]
            curves.append(scaling.Curve(compute, bits.mean(1), law, [0, 1, 2], drawn))
        _, (low, high) = scaling.difference_at(*curves, at)
        held += low < float(curves[0].at(at, laws[1]) - curves[0].at(at, laws[0])) < high
    assert held >= 21


def test_what_no_number_of_seeds_would_tell_is_laid_to_what_varies(tmp_path):
    """Seeds alone move one variant of the first study, documents alone one of the second; the third has too few."""
    study, rows = SimpleNamespace(name="tiny", seeds=(0, 1, 2)), [{"runs": 6, "hours": 1.0}]
    pair = [(Variant("mha"), 0.0), (Variant("mla"), 0.0)]
    for name in ("seeds", "documents", "few"):
        (tmp_path / name).mkdir()
    folder = fake_study(tmp_path / "seeds", 3, (3e-3,), variants=pair, noise=0)
    changed_scores(folder, lambda run: 90 * (run["seed"] - 1) * (run["variant"] == "mla"))
    said = seeds_needed(study, rows, tmp_path / "seeds", 1e-4)
    assert said == (
        "A difference of 0.0001 bits per byte between mha and mla cannot be told by 200 seeds: its seeds vary too much."
    )
    folder = fake_study(tmp_path / "documents", 3, (3e-3,), variants=pair, noise=0)
    for run in read_record(folder / "study.json")["runs"]:
        if run["variant"] == "mla":
            path = folder.parent / run["folder"] / "scores.json"
            scores = read_record(path)
            for part in scores["splits"].values():
                part["nats"] = [nats + (-90) ** (place % 2) for place, nats in enumerate(part["nats"])]
            write_record(path, scores)
    said = seeds_needed(study, rows, tmp_path / "documents", 1e-4)
    assert "its documents vary too much, however many seeds there are; more text" in said
    fake_study(tmp_path / "few", 1, (3e-3,), variants=pair)
    with pytest.raises(UserError, match="; one seed cannot tell that: run the study with seeds"):
        seeds_needed(study, rows, tmp_path / "few", 1e-4)


def test_whose_settings_lie_at_the_edge_is_said_first_and_once(tmp_path):
    """The best of two rates is always at an edge: fifteen names of variants said less than how many they are."""
    budgets = [{"cache_bytes_per_token": budget} for budget in (512, 1024, 2048)]
    planted = [(Variant(name, {}, of), 0.0) for name in ("mha", "gqa") for of in budgets]
    folder = fake_study(tmp_path, rates=(3e-3, 9e-3), variants=planted)
    edge, *_ = text_of(read_findings(folder)).answer.sure
    assert edge == (
        "Best settings at the edge of what was tried: learning rate of all 6 variants; beyond it may be better ones."
    )
    record = read_record(folder / "study.json")
    for run in record["runs"]:
        if run["variant"].startswith("gqa") and run["settings"]["learning_rate"] == 9e-3:
            run["settings"] = {"learning_rate": 1e-3 if "=512" in run["variant"] else 3e-3}
    change(folder, runs=record["runs"])
    edge, *_ = text_of(read_findings(folder)).answer.sure
    assert "learning rate of mha (3 times) and gqa;" in edge


def test_how_near_caches_are_is_said_of_each_budget_apart(tmp_path):
    budgets = [{"cache_bytes_per_token": budget} for budget in (512, 1024)]
    folder = fake_study(tmp_path, variants=[(Variant(name, {}, of), 0.0) for of in budgets for name in ("mha", "mla")])
    variants = read_record(folder / "study.json")["variants"]
    for variant, off in zip(variants, (7.0, 0.0, 3.0, 0.01), strict=True):
        variant["cache_residual"] = off
    change(folder, variants=variants, stated={"match": "cache", "cache_bytes_per_token": None})
    assert "allow. At 512: mha +700.0 %, mla +0.0 %. Not at the budget: mha. At 1,024: mha +300.0 %, mla" in matched(
        read_findings(folder)
    )


def test_caches_that_are_alike_have_no_smallest_one(tmp_path):
    folder = fake_study(tmp_path, variants=[(Variant("mha"), 0.0), (Variant("mha", {"qk_norm": True}), 0.0)])
    variants = read_record(folder / "study.json")["variants"]
    change(folder, variants=[variant | {"cache_bytes_per_token": 4096} for variant in variants])
    assert text_of(read_findings(folder)).answer.lead[1] == "Their caches are alike: 4,096 bytes a token."


def test_figures_show_runs_that_budgets_share_once_and_of_many_lines_no_bands(tmp_path):
    budgets = [{"cache_bytes_per_token": budget} for budget in (512, 1024)]
    names = ["mha", "gqa", *(f"mechanism-{number}" for number in range(8))]
    folder = fake_study(tmp_path, variants=[(Variant(name, {}, of), 0.0) for name in names for of in budgets], seeds=3)
    content = read_record(folder / "study.json")
    folders = {run["variant"]: [] for run in content["runs"]}
    for run in content["runs"]:
        folders[run["variant"]].append(run["folder"])
    for run in content["runs"]:  # no budget makes a difference to the first
        if run["variant"] == "mha cache_bytes_per_token=1024":
            run["folder"] = folders["mha cache_bytes_per_token=512"][folders[run["variant"]].index(run["folder"])]
    change(folder, runs=content["runs"])
    found = read_findings(folder)
    assert list(drawn(found))[:3] == ["mha", "gqa, 512 bytes", "gqa, 1,024 bytes"] and len(drawn(found)) == 19
    sections = charts(found)
    (front,) = sections["lead"]
    assert [series.name for series in front.series[1:4]] == list(drawn(found))[:3]
    assert all(series.spread is None for chart in sections["tuned"] for series in chart.series if series.look == "line")


def test_bars_and_bands_end_where_there_can_be_no_more():
    points = Series("a", [1.0], [0.9], [0.3], style=style(0, 0), look="points")
    chart = Chart("c", "t", "", "x", "y", [points], ends=(0.0, 1.0))
    assert chart.reach(points) == ([pytest.approx(0.3)], [pytest.approx(0.1)])
    (trace,) = to_plotly(chart)["data"]
    assert trace["error_y"]["array"] == [pytest.approx(0.1)] and trace["error_y"]["arrayminus"] == [pytest.approx(0.3)]
    line = Series("a", [1.0, 2.0], [0.1, 0.9], [0.3, 0.3], style=style(0, 0))
    around, _ = to_plotly(Chart("c", "t", "", "x", "y", [line], ends=(0.0, 1.0)))["data"]
    assert around["y"] == [pytest.approx(value) for value in (0.4, 1.0, 0.6, 0.0)]
