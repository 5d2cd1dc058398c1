"""What every registered mechanism promises, with both kinds of positions: to register is to be tested."""

import pytest
from references import REFERENCES

from mla_experiments.modeling.attention import ATTENTION
from mla_experiments.testing import CHECKS, Case, run_check

SLOW = {"compilation"}  # with one kind of positions


@pytest.mark.parametrize("positions", ["rope", "learned"])
@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("check", CHECKS)
def test_it_keeps_the_contract(attention, positions, check):
    if check in SLOW and positions != "rope":
        pytest.skip("the other kind of positions compiles alike")
    run_check(CHECKS[check], Case(attention, positions=positions, reference=REFERENCES[attention]))


def test_every_mechanism_of_ours_gives_a_reference():
    assert REFERENCES.keys() >= ATTENTION.keys()
