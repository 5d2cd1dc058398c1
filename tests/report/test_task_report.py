"""A report of a study over a synthetic task: shares stay what shares can be, and what nobody learnt is said first."""

import pytest
from fake_studies import fake_task

from mla_experiments.report.findings import read_findings
from mla_experiments.report.study_charts import charts
from mla_experiments.report.text import text_of
from mla_experiments.study.description import Variant

PAIR = [(Variant("mha"), 0.0), (Variant("mla"), 0.0)]


def test_no_share_and_no_difference_of_shares_leaves_what_can_be(tmp_path):
    """The three seeds of one variant have hardly anything in common."""
    found = read_findings(
        fake_task(tmp_path, lambda variant, seed: (0.1, 0.5, 0.95)[seed] if variant.attention == "mla" else 0.9,
                  variants=PAIR, seeds=3)
    )  # fmt: skip
    (pair,) = found.comparisons
    assert pair.interval[1] == 1 and -1 <= pair.interval[0] < 0 and pair.detectable > 1
    text = text_of(found)
    assert "Between those not told apart, the intervals leave room for any difference." in text.answer.sure
    assert (
        "Not even the largest true difference that there can be would be told four times in five by such a study."
        in text.answer.sure
    )
    mha, mla = text.results
    assert "±" in mha["wrong"] and mla["wrong"].endswith("(0.0000 to 1.0000)")
    assert text.conditions[1]["test"].endswith("(0.0 to 100.0)")


def learnt(tmp_path, right, **more):
    """What a report says of two mechanisms with such a share of right answers."""
    return text_of(read_findings(fake_task(tmp_path, lambda *of: right, variants=more.pop("variants", PAIR), **more)))


@pytest.mark.parametrize(
    ("right", "said"),
    [
        (1.0, "All have 99 % or more of the answers right: the task is too easy to tell them apart."),
        (0.125, "None is much above chance: the task is too hard, or the training too short, to tell."),
        (0.4, "None has 90 % of the answers right (the best "),
    ],
)
def test_that_a_task_does_not_tell_is_said_before_anything_else(tmp_path, right, said):
    text = learnt(tmp_path, right)
    assert text.answer.headline.startswith(said) and text.answer.headline in text.recall
    assert len(text.answer.lead) <= 3


def test_where_the_task_tells_the_answer_comes_first(tmp_path):
    assert learnt(tmp_path, 0.95).answer.headline.startswith("No difference is told between m")


def test_each_difficulty_has_its_own_chance_and_is_judged_by_it(tmp_path):
    """Of four values one is right by chance in four times, of sixteen in sixteen; eight were learnt."""
    variants = [(Variant(name, {}, {"corpus.pairs": pairs}), 0.0) for name in ("mha", "mla") for pairs in (4, 8, 16)]
    shares = {4: 1.0, 8: 0.95, 16: 1 / 16}
    folder = fake_task(tmp_path, lambda variant, _: shares[variant.changed["corpus.pairs"]], variants=variants)
    found = read_findings(folder)
    text = text_of(found)
    assert text.answer.headline == (
        "At pairs=4 all have 99 % or more of the answers right: the task is too easy to tell them apart; at pairs=16 "
        "none is much above chance: the task is too hard, or the training too short, to tell."
    )
    assert "By chance 25 % at pairs=4, 12.5 % at pairs=8, 6.25 % at pairs=16 of the answers are right." in text.recall
    pairs, length, tokens = charts(found)["recall"]
    chance = pairs.series[-1]
    assert chance.y == [1 / x for x in chance.x] and chance.x == pairs.x_ticks
    for chart in (length, tokens):
        assert [series.y[0] for series in chart.series if series.name == "by chance"] == [1 / 16, 1 / 8, 1 / 4]


def test_a_grammar_is_not_asked_for_answers_that_nobody_can_know(tmp_path):
    text = learnt(tmp_path, 0.5, corpus="synthetic:grammar", excess=0.2)
    assert text.recall[1:] == [
        "Nobody can have all symbols right: what counts is how far above the entropy a model stays."
    ]
    assert text.answer.headline == "No difference is told between mha and mla."
