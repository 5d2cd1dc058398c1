"""What a conversion costs, with intervals that scipy gives too."""

import numpy as np
import pytest
from scipy import stats

from mla_experiments.conversion.comparing import Distance
from mla_experiments.conversion.job import Measured
from mla_experiments.report.conversion_cost import row_of


def test_costs_are_in_bits_and_their_intervals_are_those_of_a_mean_over_documents():
    generator = np.random.default_rng(0)
    tokens, size = np.full(20, 100), np.full(20, 400)  # alike, so that the ratio is a mean
    before = Distance(generator.uniform(200, 300, 20), np.zeros(20), tokens, size)
    now = Distance(before.nats + generator.uniform(5, 30, 20), generator.uniform(1, 9, 20), tokens, size)
    row = row_of(Measured("low rank", 4, 2, now), Measured("original", 8, 0, before))
    for name, each in (
        ("more bits/byte", (now.nats - before.nats) / 400 / np.log(2)),
        ("KL, nats a token", now.divergence / 100),
    ):
        mean, reach = map(float, row[name].split(" ± "))
        low, high = stats.t.interval(0.95, 19, each.mean(), stats.sem(each))
        assert mean == pytest.approx(each.mean(), abs=1e-4) and reach == pytest.approx((high - low) / 2, abs=1e-4)
    assert float(row["bits/byte"]) == pytest.approx(now.nats.sum() / 8000 / np.log(2), abs=1e-4)
    assert float(row["perplexity"]) == pytest.approx(np.exp(now.nats.sum() / 2000), abs=0.01)
