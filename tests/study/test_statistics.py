"""Intervals and verdicts against scipy by hand, simulation, and cases whose answer is known."""

import tracemalloc

import numpy as np
import pytest
from scipy import stats

from mla_experiments.study import statistics
from mla_experiments.study.rates import fit_rates
from mla_experiments.study.statistics import bootstrap, compare, estimate


def test_an_estimate_is_students_interval():
    values = [1.0, 2.0, 4.0, 4.5]
    found = estimate(values)
    expected = stats.t.ppf(0.975, 3) * np.std(values, ddof=1) / 2
    assert found.mean == pytest.approx(2.875) and found.half_width == pytest.approx(expected)


def test_one_seed_gives_no_interval_and_no_verdict():
    assert estimate([3.0]).half_width is None
    (found,) = compare({"a": {0: np.ones(30)}, "b": {0: np.full(30, 2.0)}}, np.full(30, 100))
    assert found.p is None and found.interval is None and found.over_seeds is None and not found.is_told
    assert found.sentence == "b against a: one seed, no verdict (+0.0144 bits per byte)."


def noisy(seeds, documents, shift, generator, seed_noise=0.02):
    """Nats of documents of 1,000 bytes, with hard and easy ones common to all."""
    hard = np.linspace(1000, 2000, documents)
    nats = (hard + shift * 1000 * np.log(2) + generator.normal(0, 20, (seeds, documents))
            + generator.normal(0, seed_noise * 1000 * np.log(2), (seeds, 1)))  # fmt: skip
    return dict(enumerate(nats))


def test_a_clear_difference_is_told_and_has_its_size():
    generator = np.random.default_rng(0)
    scores = {"a": noisy(5, 60, 0.0, generator, 0.001), "b": noisy(5, 60, 0.05, generator, 0.001)}
    (found,) = compare(scores, np.full(60, 1000))
    assert found.p < 0.05 and found.difference == pytest.approx(0.05, abs=0.01)
    for low, high in (found.over_documents, found.over_seeds, found.interval):
        assert low < found.difference < high
    low, high = found.interval
    assert found.sentence.startswith(f"b is worse than a ({found.difference:+.4f} bits per byte; ")
    assert f"; 95 % interval {low:+.4f} to {high:+.4f}; p < 0.0001)." in found.sentence


def test_seeds_that_disagree_leave_no_verdict_though_documents_agree():
    generator = np.random.default_rng(1)
    scores = {"a": noisy(4, 60, 0.0, generator, 0.1), "b": noisy(4, 60, 0.02, generator, 0.1)}
    (found,) = compare(scores, np.full(60, 1000))
    assert "not told apart" in found.sentence


def test_equal_variants_are_rarely_told_apart(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 200)
    monkeypatch.setattr("gc.collect", lambda: 0)  # statsmodels calls it every time
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


def test_the_numbers_of_a_comparison_are_those_that_textbooks_give():
    generator, size = np.random.default_rng(4), np.arange(500, 560)
    scores = {name: noisy(6, 60, shift, generator, 0.02) for name, shift in (("a", 0), ("b", 0.04), ("c", 0.01))}
    found, raw = {(c.a, c.b): c for c in compare(scores, size)}, {}
    for (a, b), comparison in found.items():
        nats = np.array([scores[b][seed] - scores[a][seed] for seed in range(6)]) / np.log(2)
        paired = stats.ttest_rel(*(np.array([scores[name][seed].sum() for seed in range(6)]) for name in (b, a)))
        low, high = paired.confidence_interval(0.95)
        assert comparison.over_seeds == pytest.approx(np.array([low, high]) / size.sum() / np.log(2))
        mean = nats.sum(1).mean() / size.sum()
        assert comparison.difference == pytest.approx(mean)
        # a ratio's standard error by linearisation (Cochran 1977, 2.42), in place of the bootstrap
        of_documents = np.sqrt(((nats.mean(0) - mean * size) ** 2).sum()) / size.sum()
        assert np.ptp(comparison.over_documents) == pytest.approx(2 * 1.96 * of_documents, rel=0.1)
        of_seeds = mean / paired.statistic
        error = np.hypot(of_seeds, of_documents)
        freedom = error**4 / (of_seeds**4 / 5 + of_documents**4 / 59)  # Satterthwaite 1946
        assert np.ptp(comparison.interval) == pytest.approx(2 * stats.t.ppf(0.975, freedom) * error, rel=0.02)
        raw[a, b] = 2 * stats.t.sf(abs(mean) / error, freedom)
    holm, largest = {}, 0.0
    for place, pair in enumerate(sorted(raw, key=raw.__getitem__)):  # Holm 1979: the smallest p-value times 3, ...
        holm[pair] = largest = min(1.0, max(largest, (3 - place) * raw[pair]))
    assert {pair: c.p for pair, c in found.items()} == pytest.approx(holm, rel=0.1)


def test_verdicts_are_false_as_seldom_as_they_say_where_seeds_and_documents_matter_alike(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 200)
    generator, size, told = np.random.default_rng(11), np.full(40, 1000), 0
    for _ in range(200):
        of_seeds, of_documents = generator.normal(0, 10, 11), generator.normal(0, 10 * np.sqrt(40 / 11), 40)
        zero = dict.fromkeys(range(11), np.zeros(40))
        other = {seed: of_documents + of_seeds[seed] for seed in range(11)}
        told += statistics.compared("a", "b", zero, other, size).is_told
    assert told <= 17, "5 % of 200 are 10; two tests, of which the larger p-value counts, would be wrong 24 times"


def test_runs_are_paired_by_their_seed_where_one_is_missing():
    generator = np.random.default_rng(5)
    common = {seed: generator.normal(0, 200, 40) for seed in range(4)}  # what a seed does to both variants
    first = {seed: 1500 + common[seed] for seed in (0, 2, 3)}
    second = {seed: 1520 + common[seed] + generator.normal(0, 1, 40) for seed in range(4)}
    (found,) = compare({"a": first, "b": second}, np.full(40, 1000))
    low, high = found.over_seeds
    assert found.is_told and high - low < 0.01 and found.difference == pytest.approx(20 / 1000 / np.log(2), rel=0.05)
    (apart,) = compare({"a": {0: first[0]}, "b": {1: second[1]}}, np.full(40, 1000))
    assert apart.p is None and "one seed, no verdict" in apart.sentence


def test_the_same_weights_are_not_told_apart():
    runs = noisy(3, 30, 0.0, np.random.default_rng(6))
    (found,) = compare({"mqa": runs, "gqa num_key_value_heads=1": dict(runs)}, np.full(30, 1000))
    assert found.p == 1.0 and found.over_seeds == (0.0, 0.0) and "are not told apart" in found.sentence


def test_a_single_document_gives_no_verdict():
    generator = np.random.default_rng(7)
    (found,) = compare({"a": noisy(3, 1, 0.0, generator), "b": noisy(3, 1, 0.5, generator)}, np.full(1, 1000))
    assert found.p is None and found.over_documents is None and "one document, no verdict" in found.sentence


def test_pairs_without_a_test_ask_for_no_correction():
    generator = np.random.default_rng(8)
    scores = {"a": noisy(4, 40, 0.0, generator), "b": noisy(4, 40, 0.03, generator)}
    (alone,) = compare(scores, np.full(40, 1000))
    among = compare(scores | {name: noisy(1, 40, 0.0, generator) for name in "cde"}, np.full(40, 1000))
    assert next(c for c in among if (c.a, c.b) == ("a", "b")).p == alone.p
    only = compare(scores | {"c": noisy(4, 40, 0.0, generator)}, np.full(40, 1000), lambda a, b: (a, b) == ("a", "b"))
    assert [(c.a, c.b, c.p) for c in only] == [("a", "b", alone.p)]


def test_intervals_over_documents_hold_the_truth_as_often_as_they_say():
    generator, held = np.random.default_rng(9), 0
    for _ in range(60):
        size = generator.integers(500, 3000, 60)
        difference = 0.02 * np.log(2) * size + generator.normal(0, 0.1, 60) * size
        (low, high), _ = bootstrap(difference, size)
        held += low <= 0.02 <= high
    assert held >= 51, "95 % of 60 are 57; fewer than 51 come about once in 500 times"


def test_many_documents_do_not_fill_the_memory():
    generator = np.random.default_rng(10)
    difference, size = generator.normal(1, 1, 20_000), np.full(20_000, 1000)
    tracemalloc.start()
    (low, high), error = bootstrap(difference, size)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert low < 1e-3 / np.log(2) < high and error == pytest.approx(1e-3 / np.log(2) / np.sqrt(20_000), rel=0.05)
    assert peak < 500e6, "all resamples at once would be 1.6 GB, and as much again for every copy"


def test_a_parabola_is_found_again_and_an_edge_is_flagged():
    rates = [1e-3, 2e-3, 4e-3, 8e-3]
    found = fit_rates({rate: 2 + 0.1 * (np.log(rate) - np.log(3e-3)) ** 2 for rate in rates})
    assert found.optimum == pytest.approx(3e-3) and found.best in (2e-3, 4e-3) and not found.at_edge
    assert found.at(3e-3) == pytest.approx(2.0)
    falling = fit_rates({rate: -rate for rate in rates})
    assert falling.at_edge and falling.best == 8e-3
    assert fit_rates({1e-3: 2.0}).optimum is None and not fit_rates({1e-3: 2.0}).at_edge
