"""MLA expanded, absorbed, or cached in full: one answer, in any mixture, and under transformers' generation."""

import math

import pytest
import torch
from conftest import needs_a_library_without
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, StaticCache, TextStreamer

from mla_experiments.errors import UserError
from mla_experiments.modeling import DecoderConfig, DecoderForCausalLM
from mla_experiments.modeling.attention import ATTENTION, MLA, set_decode_mode
from mla_experiments.modeling.attention.absorb import is_cheaper_absorbed

LATENT_MODES = ["expand", "absorb", "auto"]


def make(attention="mla", seed=0, positions="rope", **options):
    torch.manual_seed(seed)
    config = DecoderConfig(
        vocab_size=37, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, attention=attention, attention_options=options, initializer_range=0.2,
        positions=positions,
    )  # fmt: skip
    return DecoderForCausalLM(config).double().eval()


def dense_logits(model, tokens):
    """MLA from the equations alone (DeepSeek-V2, eq. 9-19), float64, one head and one token at a time."""
    state, config = model.state_dict(), model.config
    options, heads = config.attention_options, config.num_attention_heads
    nope, rope, rank, width = (
        options[k] for k in ("qk_nope_head_dim", "qk_rope_head_dim", "kv_lora_rank", "v_head_dim")
    )

    def norm(x, weight):
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight

    def rotated(x, position):
        angles = position * config.rope_parameters["rope_theta"] ** (
            -torch.arange(0, rope, 2) / rope
        )  # in f32, as every model has it
        a, b, cos, sin = x[: rope // 2], x[rope // 2 :], angles.cos().double(), angles.sin().double()
        return torch.cat([a * cos - b * sin, b * cos + a * sin])

    x = state["model.embed_tokens.weight"][tokens]
    for layer in range(config.num_hidden_layers):
        at = f"model.layers.{layer}."
        h = norm(x, state[at + "input_layernorm.weight"])
        q = (h @ state[at + "self_attn.q_proj.weight"].T).view(-1, heads, nope + rope)
        compressed = h @ state[at + "self_attn.kv_a_proj_with_mqa.weight"].T
        c = norm(compressed[:, :rank], state[at + "self_attn.kv_a_layernorm.weight"])
        kv = (c @ state[at + "self_attn.kv_b_proj.weight"].T).view(-1, heads, nope + width)
        out = torch.zeros(len(tokens), heads, width, dtype=torch.float64)
        for t in range(len(tokens)):
            for i in range(heads):
                query = torch.cat([q[t, i, :nope], rotated(q[t, i, nope:], t)])
                keys = [torch.cat([kv[s, i, :nope], rotated(compressed[s, rank:], s)]) for s in range(t + 1)]
                weights = torch.softmax(torch.stack(keys) @ query / (nope + rope) ** 0.5, dim=0)
                out[t, i] = weights @ kv[: t + 1, i, nope:]
        x = x + out.flatten(1) @ state[at + "self_attn.o_proj.weight"].T
        h = norm(x, state[at + "post_attention_layernorm.weight"])
        gate, up, down = (state[at + f"mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
        x = x + (torch.nn.functional.silu(h @ gate.T) * (h @ up.T)) @ down.T
    return norm(x, state["model.norm.weight"]) @ state["lm_head.weight"].T


@settings(max_examples=25)
@given(
    steps=st.lists(st.tuples(st.integers(1, 8), st.sampled_from(LATENT_MODES)), min_size=1, max_size=6),
    crops=st.lists(st.integers(0, 3), min_size=6, max_size=6),
    rank=st.sampled_from([3, 16]),
)
def test_every_mixture_of_modes_and_steps_equals_the_dense_formula(steps, crops, rank):
    model = make(kv_lora_rank=rank, qk_rope_head_dim=4)
    tokens = torch.randint(0, 37, (sum(size for size, _ in steps),))
    expected = dense_logits(model, tokens)
    cache, done = DynamicCache(), 0
    with torch.no_grad():
        for (size, mode), crop in zip(steps, crops, strict=False):
            set_decode_mode(model, mode)
            logits = model(tokens[None, done : done + size], past_key_values=cache).logits[0]
            torch.testing.assert_close(logits, expected[done : done + size], atol=1e-10, rtol=0)
            done += size
            back = min(crop, done - 1)  # as assisted decoding takes rejected tokens back
            if back:
                cache.crop(-back)
                done -= back


def test_full_is_the_same_answer_from_a_larger_cache():
    model, tokens = make(), torch.randint(0, 37, (2, 12))
    with torch.no_grad():
        expected = model(tokens).logits
        set_decode_mode(model, "full")
        cache = DynamicCache()
        parts = [model(part, past_key_values=cache).logits for part in tokens.split([5, 1, 3, 1, 2], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, atol=1e-10, rtol=0)
    options = model.config.attention_options
    per_head = options["qk_nope_head_dim"] + options["qk_rope_head_dim"] + options["v_head_dim"]
    assert sum(part.numel() for part in (cache.layers[0].keys, cache.layers[0].values)) == 2 * 12 * 4 * per_head


def test_an_unknown_mode_is_refused():
    with pytest.raises(UserError, match="decode_mode=fast is unknown; choose one of auto, expand, absorb, full"):
        set_decode_mode(make(), "fast")


def test_absorbing_follows_every_change_of_the_weights():
    model, tokens = make(), torch.randint(0, 37, (1, 9))
    for change in (
        lambda: model.load_state_dict(make(seed=5).state_dict()),
        lambda: [p.data.add_(0.05 * torch.randn_like(p)) for p in model.parameters()],
        lambda: model.float(),
    ):
        change()
        answers = []
        for mode in ("expand", "absorb"):
            set_decode_mode(model, mode)
            with torch.no_grad():
                cache = DynamicCache()
                model(tokens[:, :8], past_key_values=cache)
                answers.append(model(tokens[:, 8:], past_key_values=cache).logits)
        torch.testing.assert_close(*answers, atol=1e-4, rtol=0)
    assert not [name for name in model.state_dict() if "uk" in name or "uv" in name or "fold" in name]


@pytest.mark.parametrize("mode", LATENT_MODES)
@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": False},
        {"do_sample": True, "top_k": 5},
        {"num_beams": 3, "do_sample": False},
        {"do_sample": False, "cache_implementation": "static"},
        {"do_sample": False, "prompt_lookup_num_tokens": 3},
    ],
    ids=["greedy", "sampling", "beams", "static", "assisted"],
)
def test_generation_gives_what_generation_without_a_cache_gives(mode, settings):
    if "prompt_lookup_num_tokens" in settings:
        needs_a_library_without("it looks nothing up for a model without eos_token_id")
    model = make()
    prompt = torch.tensor([[3, 4, 5, 3, 4, 5, 3, 4]])
    length = {"max_new_tokens": 12, "pad_token_id": 0}
    plain = {
        name: value
        for name, value in settings.items()
        if name not in ("cache_implementation", "prompt_lookup_num_tokens")
    }
    torch.manual_seed(1)
    expected = model.generate(prompt, use_cache=False, **length, **plain)
    set_decode_mode(model, mode)
    torch.manual_seed(1)
    assert model.generate(prompt, **length, **settings).tolist() == expected.tolist()


@pytest.mark.parametrize("attention", list(ATTENTION))
def test_every_mechanism_decodes_from_a_static_cache(attention):
    model, tokens = make(attention), torch.randint(0, 37, (2, 11))
    cache = StaticCache(config=model.config, max_cache_len=16)
    with torch.no_grad():
        parts = [model(part, past_key_values=cache).logits for part in tokens.split([4, 1, 3, 1, 2], dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens).logits, atol=1e-10, rtol=0)


@pytest.mark.parametrize("mode", LATENT_MODES)
def test_prompts_of_unequal_lengths_decode_together_as_alone(mode):
    model = make()
    set_decode_mode(model, mode)
    tokens = torch.randint(1, 37, (3, 9))
    mask = torch.ones_like(tokens)
    for row, padding in enumerate((0, 4, 7)):
        tokens[row, :padding], mask[row, :padding] = 0, 0
    settings = {"max_new_tokens": 7, "do_sample": False, "pad_token_id": 0}
    together = model.generate(tokens, attention_mask=mask, **settings)[:, 9:]
    for row, padding in enumerate((0, 4, 7)):
        assert together[row].tolist() == model.generate(tokens[row : row + 1, padding:], **settings)[0, -7:].tolist()


def test_an_assistant_model_and_streaming_work():
    model, assistant = make(seed=1), make("mqa", seed=2)
    prompt = torch.randint(0, 37, (1, 6))
    settings = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(prompt, use_cache=False, **settings)
    assert model.generate(prompt, assistant_model=assistant, **settings).tolist() == expected.tolist()

    class Words:
        def decode(self, ids, **_):
            return "".join(f"{int(token)} " for token in ids)

    assert model.generate(prompt, streamer=TextStreamer(Words()), **settings).tolist() == expected.tolist()


def test_what_cannot_be_decoded_is_refused_in_one_sentence():
    model = make()
    tokens = torch.randint(0, 37, (2, 5))
    with pytest.raises(UserError, match="input_ids holds no tokens"):
        model(tokens[:, :0])
    learned = make(positions="learned")
    with pytest.raises(UserError, match="70 tokens are more than max_position_embeddings=64"):
        learned(torch.zeros(1, 70, dtype=torch.long))
    with pytest.raises(UserError, match="66 tokens are more than max_position_embeddings=64"):
        learned(torch.zeros(2, 61, dtype=torch.long), past_key_values=learned(tokens).past_key_values)
    cache = model(tokens).past_key_values
    for other in (make("mha"), make(kv_lora_rank=8), model.float()):
        with pytest.raises(UserError, match="the cache holds keys of shape"):
            other(tokens[:, :1], past_key_values=cache)
    with pytest.raises(UserError, match="the cache holds keys of shape"):
        make()(tokens[:1, :1], past_key_values=cache)
    cache.layers[1].keys[0, 0, 2, 3] = float("nan")
    with pytest.raises(UserError, match="hold NaN or infinity"):
        make()(tokens[:, :1], past_key_values=cache)


@pytest.mark.parametrize("context", [2, 64, 1024, 8192, 65_536])
@pytest.mark.parametrize("widths", [(128, 32, 16, 32), (512, 128, 64, 128)], ids=["A", "B"])
def test_the_choice_at_its_edges(widths, context):
    rank, content, rotary, value = widths
    dearer = 2 * rank - content - value  # multiply-adds a score that absorbing needs more
    edge = context * rank * (content + value) / (rank * (content + value) + context * dearer)
    last = math.ceil(edge) - 1  # of new tokens that are absorbed
    layer = MLA(hidden_size=16, num_attention_heads=1, **MLA.resolve(
        16, 1, kv_lora_rank=rank, qk_nope_head_dim=content, qk_rope_head_dim=rotary, v_head_dim=value
    ))  # fmt: skip
    assert 1 <= last < context - 1 or context == 2
    assert all(is_cheaper_absorbed(new, context, *widths) for new in range(1, last + 1))
    assert not any(is_cheaper_absorbed(new, context, *widths) for new in range(last + 1, min(context, 4096) + 1))
    assert layer.absorbs(last, context) and not layer.absorbs(last + 1, context)
    assert not layer.absorbs(context, context), "a prompt is expanded"
