"""Checks that anybody calls on a mechanism: what holds for ours holds for one from outside.

from mla_experiments.testing import WRAPPERS, check_wrapper

@pytest.mark.parametrize("name", WRAPPERS)
def test_what_stands_around_it_is_not_read_past(name):
    check_wrapper(make_model, name)
"""

from .wrappers import WRAPPERS, check_wrapper, is_available

__all__ = ["WRAPPERS", "check_wrapper", "is_available"]
