"""What every registered mechanism promises, with both kinds of positions: to register is to be tested."""

import pytest
from contract.references import REFERENCES

from mla_experiments.modeling.attention import ATTENTION
from mla_experiments.testing import CHECKS, Case, run_check
from mla_experiments.testing.contract import common_cases

SLOW = {"compilation"}  # with one kind of positions


@pytest.mark.parametrize("positions", ["rope", "learned"])
@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("check", CHECKS)
def test_it_keeps_the_contract(attention, positions, check):
    if check in SLOW and positions != "rope":
        pytest.skip("the other kind of positions compiles alike")
    run_check(CHECKS[check], Case(attention, positions=positions, reference=REFERENCES.get(attention)))


WITH = [(name, common) for name, mechanism in ATTENTION.items() for common in common_cases(mechanism) if common]


@pytest.mark.parametrize(("attention", "common"), WITH, ids=[f"{name}-{','.join(common)}" for name, common in WITH])
@pytest.mark.parametrize("check", ["decoding", "gradients", "cache_size", "operations", "saving"])
def test_it_keeps_the_contract_with_what_is_common_to_mechanisms(attention, common, check):
    run_check(CHECKS[check], Case(attention, common=common))


def test_every_mechanism_of_ours_gives_a_reference():
    absent = ATTENTION.keys() - REFERENCES.keys()
    assert not absent, f"tests/contract/references.py has no equations of {sorted(absent)}"
