"""Whatever people put around a model is read through, not past, by every registered mechanism."""

import copy

import pytest
import torch
from conftest import needs_a_library_without
from torch._subclasses import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache

from mla_experiments.errors import UserError
from mla_experiments.modeling import DecoderConfig, DecoderForCausalLM
from mla_experiments.modeling.attention import ATTENTION, set_decode_mode
from mla_experiments.testing import WRAPPERS, check_wrapper, is_available
from mla_experiments.testing.wrappers import linears, token_by_token, whole_pass


def make(attention):
    torch.manual_seed(0)
    config = DecoderConfig(
        vocab_size=32, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=32, attention=attention, initializer_range=0.2,
    )  # fmt: skip
    return DecoderForCausalLM(config).eval()


@pytest.fixture(params=list(ATTENTION))
def attention(request):
    return request.param


@pytest.fixture
def tokens():
    return torch.randint(0, 32, (3, 9), generator=torch.Generator().manual_seed(1))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", WRAPPERS)
def test_what_stands_around_it_is_read_through(attention, name):
    if not is_available(name):
        pytest.skip(f"{WRAPPERS[name].package} is not installed")
    check_wrapper(lambda: make(attention), name)


@pytest.mark.parametrize("name", ["peft, LoRA", "forward hooks", "dynamic quantisation"])
def test_absorption_is_refused_where_the_matrix_is_not_known(name, tokens):
    if not is_available(name):
        pytest.skip(f"{WRAPPERS[name].package} is not installed")
    model = WRAPPERS[name].wrap(make("mla"))
    set_decode_mode(model, "absorb")
    with pytest.raises(UserError, match="decode_mode=absorb needs kv_b_proj as a plain matrix"):
        token_by_token(model, tokens)


@pytest.fixture
def mesh():
    """One process, as the first of many."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["sharded", "tensor parallel", "replicated"])
def test_parallel_models_decode_what_they_compute(attention, tokens, mesh, how):
    model = make(attention)
    expected = whole_pass(model, tokens)
    if how == "sharded":
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        model = fully_shard(model, mesh=mesh)
    elif how == "tensor parallel":
        up = "kv_b_proj" if attention == "mla" else "q_proj"
        for layer in model.model.layers:
            parallelize_module(layer.self_attn, mesh, {up: ColwiseParallel(), "o_proj": RowwiseParallel()})
    else:
        model = torch.nn.parallel.DistributedDataParallel(model)
    torch.testing.assert_close(whole_pass(model, tokens), expected)
    torch.testing.assert_close(token_by_token(model, tokens), expected, atol=1e-4, rtol=1e-4)


def test_a_step_is_mapped_over_models_and_prompts_as_a_loop_does(attention, tokens):
    """`torch.func.vmap` over the batch, and over stacked parameters of two models."""
    model = make(attention)
    mapped = torch.func.vmap(lambda row: model(row[None], use_cache=False).logits[0], randomness="error")(tokens)
    torch.testing.assert_close(mapped, whole_pass(model, tokens), atol=1e-4, rtol=1e-4)
    pair = [dict(model.named_parameters()), {name: 1.1 * p for name, p in model.named_parameters()}]
    stacked = {name: torch.stack([state[name].detach() for state in pair]) for name in pair[0]}

    def step(state):
        return torch.func.functional_call(model, state, (tokens[:1, :1],), {"use_cache": False}).logits

    expected = torch.stack([step(state) for state in pair])
    torch.testing.assert_close(torch.func.vmap(step)(stacked), expected, atol=1e-4, rtol=1e-4)


def test_directional_derivatives_of_a_step_are_those_of_finite_differences(attention, tokens):
    model = make(attention).double()
    model.set_attn_implementation("eager")  # fused attention knows no forward derivatives
    embedded = model.model.embed_tokens(tokens[:1, :1]).detach()
    direction = torch.randn_like(embedded)

    @torch.no_grad()
    def logits(x):
        return model(inputs_embeds=x, use_cache=False).logits

    _, slope = torch.func.jvp(logits, (embedded,), (direction,))
    measured = (logits(embedded + 1e-6 * direction) - logits(embedded - 1e-6 * direction)) / 2e-6
    torch.testing.assert_close(slope, measured, atol=1e-5, rtol=1e-4)


def test_gradients_through_a_cache_reach_every_trained_matrix(attention, tokens):
    """One matrix is trained at a time, as adapters do, and reached from a step that decodes from the cache."""
    for name in dict(linears_by_name(make(attention))):
        model = make(attention).double().requires_grad_(False)
        weight = model.get_submodule(name).weight.requires_grad_()
        cache = DynamicCache(config=model.config)
        model(tokens[:, :4], past_key_values=cache)
        model(tokens[:, 4:5], past_key_values=cache).logits.square().sum().backward()
        through_cache = weight.grad.clone()
        weight.grad = None
        model(tokens[:, :5], use_cache=False).logits[:, 4].square().sum().backward()
        torch.testing.assert_close(through_cache, weight.grad, atol=1e-9, rtol=1e-6, msg=name)


def linears_by_name(model):
    wanted = {id(module) for module in linears(model)}
    return [(name, module) for name, module in model.named_modules() if id(module) in wanted]


def test_fake_tensors_give_the_shapes_of_real_ones(attention, tokens):
    expected = token_by_token(make(attention), tokens).shape
    with FakeTensorMode():
        assert token_by_token(make(attention), torch.zeros(3, 9, dtype=torch.long)).shape == expected


def test_modes_see_every_linear_map_of_a_step(attention, tokens):
    model = make(attention)
    matrices = [module for module in model.modules() if type(module) is torch.nn.Linear]
    cache = DynamicCache(config=model.config)
    model(tokens[:1, :1], past_key_values=cache)  # without a past, nothing is absorbed

    class OfFunctions(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(function)
            return function(*args, **(kwargs or {}))

    class OfOperators(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(function)
            return function(*args, **(kwargs or {}))

    for mode, wanted in ((OfFunctions(), {torch.nn.functional.linear}), (OfOperators(), products())):
        seen = []
        with mode, torch.no_grad():
            model(tokens[:1, :1], use_cache=False)
        assert sum(function in wanted for function in seen) >= len(matrices)


def products():
    return {torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.linear.default}


def test_a_traced_step_is_the_step(attention, tokens):
    needs_a_library_without("it traces no model, its own neither")

    class Step(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = make(attention)

        def forward(self, ids):
            return self.model(ids, use_cache=False).logits

    step = Step()
    traced = torch.jit.trace(step, (tokens[:1, :1],), check_trace=False)
    with torch.no_grad():
        torch.testing.assert_close(traced(tokens[1:2, :1]), step(tokens[1:2, :1]), atol=1e-5, rtol=1e-5)


def test_negated_views_are_read_as_they_seem(attention):
    model = make(attention)
    rows = torch.view_as_complex(torch.randn(1, 1, 32, 2)).conj().imag  # negative by a bit, not in memory
    assert rows.is_neg()
    with torch.no_grad():
        output = model(inputs_embeds=rows, use_cache=False).logits
        torch.testing.assert_close(output, model(inputs_embeds=rows.resolve_neg().clone(), use_cache=False).logits)


@pytest.mark.parametrize("take", [copy.copy, copy.deepcopy], ids=["shallow", "deep"])
def test_copies_of_a_cache_go_their_own_ways(attention, tokens, take):
    model = make(attention).requires_grad_(False)
    cache = model(tokens[:, :5], use_cache=True).cache
    other = take(cache)
    other.layers = [take(layer) for layer in cache.layers]
    with torch.no_grad():
        first = model(tokens[:, 5:6], past_key_values=cache).logits
        model((tokens[:, 5:6] + 1) % 32, past_key_values=other)
        after = model(tokens[:, 6:7], past_key_values=cache).logits
        expected = model(tokens[:, :7], use_cache=False).logits
    torch.testing.assert_close(torch.cat((first, after), dim=1), expected[:, 5:], atol=1e-4, rtol=1e-4)


def test_an_earlier_state_of_a_cache_can_be_put_back(attention, tokens):
    model = make(attention)
    with torch.no_grad():
        cache = model(tokens[:, :5], use_cache=True).cache
        states = [(layer.keys, layer.values) for layer in cache.layers]
        model(tokens[:, 5:6], past_key_values=cache)
        held = [layer.keys.clone() for layer in cache.layers]
        later = [layer.keys for layer in cache.layers]
        for layer, (keys, values) in zip(cache.layers, states, strict=True):
            layer.keys, layer.values = keys, values
        model((tokens[:, 5:6] + 1) % 32, past_key_values=cache)
    for now, then in zip(later, held, strict=True):
        assert torch.equal(now, then)


def test_a_cache_begun_in_inference_mode_is_gone_on_with_outside(attention, tokens):
    model = make(attention)
    with torch.inference_mode():
        cache = model(tokens[:, :5], use_cache=True).cache
    with torch.no_grad():
        step = model(tokens[:, 5:6], past_key_values=cache).logits
        torch.testing.assert_close(step, model(tokens[:, :6], use_cache=False).logits[:, 5:], atol=1e-4, rtol=1e-4)
