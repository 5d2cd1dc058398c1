"""Checks that anybody calls on a mechanism: what holds for ours holds for one from outside.

from mla_experiments.testing import WRAPPERS, check_attention, check_wrapper

def test_it_keeps_the_contract():
    check_attention(GTA, reference=gta_in_plain_loops)

@pytest.mark.parametrize("name", WRAPPERS)
def test_what_stands_around_it_is_not_read_past(name):
    check_wrapper(make_model, name)
"""

from .contract import CHECKS, Case, check_attention, run_check
from .wrappers import WRAPPERS, check_wrapper, is_available

__all__ = ["CHECKS", "WRAPPERS", "Case", "check_attention", "check_wrapper", "is_available", "run_check"]
