"""A report of a study over a synthetic task: shares stay what shares can be, and what nobody learnt is said first."""

from fake_studies import fake_task

from mla_experiments.report.findings import read_findings
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
