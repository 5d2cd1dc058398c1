from thin_keys import ThinKeys, thin_keys

from mla_experiments.testing import check_attention


def test_it_keeps_the_contract():
    check_attention(ThinKeys, reference=thin_keys)
