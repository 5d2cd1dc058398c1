"""What every mechanism promises, on a CUDA device: the contract there, and each precision against float64."""

import pytest
import torch
from contract.references import REFERENCES
from transformers import DynamicCache

from mla_experiments.modeling.attention import ATTENTION
from mla_experiments.testing import CHECKS, Case, run_check
from mla_experiments.testing.contract import common_cases

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

CASES = [(name, common) for name, mechanism in ATTENTION.items() for common in common_cases(mechanism)]


@pytest.mark.parametrize("positions", ["rope", "learned"])
@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("check", CHECKS)
def test_it_keeps_the_contract(attention, positions, check):
    run_check(CHECKS[check], Case(attention, positions=positions, reference=REFERENCES.get(attention), device="cuda"))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)], ids=str)
@pytest.mark.parametrize(
    ("attention", "common"), CASES, ids=[f"{name}-{','.join(common) or 'plain'}" for name, common in CASES]
)
@torch.no_grad()
def test_prompts_and_steps_are_those_of_float64_within_the_rounding(attention, common, dtype, tolerance):
    case = Case(attention, common=common, hidden_size=128, num_attention_heads=8)
    exact, tokens = case.model(initializer_range=0.05), case.tokens()
    expected = exact(tokens).logits.log_softmax(-1)
    model = case.model(initializer_range=0.05).to("cuda", dtype)
    for mode in model.model.layers[0].self_attn.decode_modes:
        for block in model.model.layers:
            block.self_attn.decode_mode = mode
        cache = DynamicCache(config=model.config)
        parts = [model(part.cuda(), cache=cache).logits for part in tokens.split([6, 1, 1, 5], dim=1)]
        found = torch.cat(parts, dim=1).double().log_softmax(-1).cpu()
        torch.testing.assert_close(found, expected, atol=tolerance, rtol=0, msg=lambda text, m=mode: f"{m}: {text}")
