"""Intervals and verdicts against scipy by hand, simulation, and cases whose answer is known."""

import numpy as np
import pytest
from scipy import stats

from mla_experiments.study.statistics import compare, estimate, fit_rates


def test_an_estimate_is_students_interval():
    values = [1.0, 2.0, 4.0, 4.5]
    found = estimate(values)
    expected = stats.t.ppf(0.975, 3) * np.std(values, ddof=1) / 2
    assert found.mean == pytest.approx(2.875) and found.half_width == pytest.approx(expected)


def test_one_seed_gives_no_interval_and_no_verdict():
    assert estimate([3.0]).half_width is None
    (found,) = compare({"a": np.ones((1, 30)), "b": np.full((1, 30), 2.0)}, np.full(30, 100))
    assert found.p == 1.0 and "one seed: no verdict" in found.sentence


def noisy(seeds, documents, shift, generator, seed_noise=0.02):
    """Nats of documents of 1,000 bytes, with hard and easy ones common to all."""
    hard = np.linspace(1000, 2000, documents)
    return (hard + shift * 1000 * np.log(2) + generator.normal(0, 20, (seeds, documents))
            + generator.normal(0, seed_noise * 1000 * np.log(2), (seeds, 1)))  # fmt: skip


def test_a_clear_difference_is_told_and_has_its_size():
    generator = np.random.default_rng(0)
    scores = {"a": noisy(5, 60, 0.0, generator, 0.001), "b": noisy(5, 60, 0.05, generator, 0.001)}
    (found,) = compare(scores, np.full(60, 1000))
    assert found.p < 0.05 and found.difference == pytest.approx(0.05, abs=0.01)
    assert found.over_documents[0] < found.difference < found.over_documents[1]
    assert found.sentence.startswith("b is worse than a")


def test_seeds_that_disagree_leave_no_verdict_though_documents_agree():
    generator = np.random.default_rng(1)
    scores = {"a": noisy(4, 60, 0.0, generator, 0.1), "b": noisy(4, 60, 0.02, generator, 0.1)}
    (found,) = compare(scores, np.full(60, 1000))
    assert "not told apart" in found.sentence


def test_equal_variants_are_rarely_told_apart():
    generator, told = np.random.default_rng(2), 0
    for _ in range(40):
        scores = {name: noisy(5, 30, 0.0, generator) for name in "abc"}
        told += any(comparison.p < 0.05 for comparison in compare(scores, np.full(30, 1000)))
    assert told <= 5, "at most 5 % of families may have a false verdict; 40 draws allow up to 5"


def test_more_pairs_ask_for_more_evidence():
    generator = np.random.default_rng(3)
    scores = {"a": noisy(4, 40, 0.0, generator, 0.01), "b": noisy(4, 40, 0.03, generator, 0.01)}
    (alone,) = compare(scores, np.full(40, 1000))
    others = {name: noisy(4, 40, 0.0, generator, 0.01) for name in "cdef"}
    among = compare(scores | others, np.full(40, 1000))
    assert next(c for c in among if (c.a, c.b) == ("a", "b")).p >= alone.p


def test_a_parabola_is_found_again_and_an_edge_is_flagged():
    rates = [1e-3, 2e-3, 4e-3, 8e-3]
    found = fit_rates({rate: 2 + 0.1 * (np.log(rate) - np.log(3e-3)) ** 2 for rate in rates})
    assert found.optimum == pytest.approx(3e-3) and found.best in (2e-3, 4e-3) and not found.at_edge
    falling = fit_rates({rate: -rate for rate in rates})
    assert falling.at_edge and falling.best == 8e-3
    assert fit_rates({1e-3: 2.0}).optimum is None and not fit_rates({1e-3: 2.0}).at_edge
