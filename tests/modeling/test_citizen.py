"""What transformers asks of a decoder, of every mechanism: names, outputs, heads, embeddings, eager attention."""

import warnings

import pytest
import torch
from conftest import needs_a_library_without
from transformers import (
    AttentionInterface,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    DynamicCache,
    StaticCache,
    Trainer,
    TrainingArguments,
)
from transformers.utils import logging

from mla_experiments.errors import UserError
from mla_experiments.modeling import DecoderConfig, DecoderForCausalLM
from mla_experiments.modeling.attention import ATTENTION, MLA

NAMES = ("cache", "past_key_values")


def configuration(attention, **changes):
    return DecoderConfig(**{
        "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 64, "attention": attention, "initializer_range": 0.2, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": None, **changes,
    })  # fmt: skip


@pytest.fixture(params=list(ATTENTION))
def model(request):
    torch.manual_seed(0)
    return DecoderForCausalLM(configuration(request.param)).eval()


@pytest.fixture
def tokens():
    return torch.randint(3, 40, (2, 9), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NAMES)
def test_the_cache_goes_in_and_comes_out_by_either_name(model, tokens, name):
    whole = model(tokens).logits
    for decoder in (model, model.model):
        cache = DynamicCache(config=model.config)
        decoder(tokens[:, :8], **{name: cache})
        output = decoder(tokens[:, 8:], **{name: cache})
        assert output.cache is output.past_key_values is output["cache"] is output["past_key_values"] is cache
        if decoder is model:
            torch.testing.assert_close(output.logits, whole[:, 8:], atol=1e-4, rtol=1e-4)
    hidden, tables = torch.randn(2, 3, 32), model.model.rotary_emb(torch.arange(3)[None], torch.float32)
    for layer in (model.model.layers[0], model.model.layers[0].self_attn):
        cache = DynamicCache(config=model.config)
        layer(hidden, tables, **{name: cache})
        assert cache.get_seq_length() == 3


def test_two_different_caches_are_refused_and_one_by_two_names_is_not(model, tokens):
    one, other = DynamicCache(config=model.config), DynamicCache(config=model.config)
    with pytest.raises(UserError, match="cache and past_key_values are two names of one argument but differ"):
        model(tokens, cache=one, past_key_values=other)
    assert model(tokens, cache=None, past_key_values=one).cache is one
    assert model(tokens[:, :1], cache=one, past_key_values=one).cache is one
    assert model(tokens[:, :1], None, None, one, past_key_values=None).cache is one


def test_no_argument_is_swallowed(model, tokens):
    for decoder in (model, model.model, model.model.layers[0]):
        with pytest.raises(TypeError, match="nonsense"):
            decoder(tokens, nonsense=1)
    with pytest.raises(
        UserError, match="hiden_size=3 is no field of a decoder's configuration; did you mean hidden_size"
    ):
        DecoderConfig(hiden_size=3)
    with pytest.raises(UserError, match="input_ids and inputs_embeds"):
        model(tokens, inputs_embeds=torch.zeros(2, 9, 32))


def test_a_configuration_of_a_later_library_is_read_and_one_of_this_library_not(caplog):
    DecoderConfig(invented_later=1, transformers_version="99.0.0")
    with pytest.raises(UserError, match="invented_later=1"):
        DecoderConfig(invented_later=1, transformers_version="5.0.0")


@pytest.mark.parametrize("fields", [
    {"temperature": 0.3}, {"to_dict": 1}, {"is_encoder_decoder": True}, {"per_layer_config": {"0": {"hidden_size": 8}}},
], ids=str)  # fmt: skip
def test_a_field_without_effect_here_is_refused(fields):
    with pytest.raises(UserError, match=next(iter(fields))):
        DecoderConfig(**fields)


def test_what_others_set_on_a_configuration_is_kept_in_its_file(tmp_path):
    """As quantisers, adapters and transformers' own tests do."""
    config = configuration("mla")
    config.batch_norm_eps, config.notes = 1.0, {"by": "somebody"}
    config.save_pretrained(tmp_path)
    config = DecoderConfig.from_pretrained(tmp_path)
    config.save_pretrained(tmp_path)
    read = DecoderConfig.from_pretrained(tmp_path)
    assert (read.batch_norm_eps, read.notes) == (1.0, {"by": "somebody"})
    assert DecoderConfig(**read.to_diff_dict()).notes == read.notes
    with pytest.raises(UserError, match="hiden_size=3"):
        DecoderConfig(**{**read.to_dict(), "hiden_size": 3})


@pytest.mark.parametrize("settings", [
    {}, {"use_cache": False}, {"num_beams": 3}, {"cache_implementation": "static"}, {"prompt_lookup_num_tokens": 2},
    {"do_sample": True, "top_k": 1}, {"assistant": True}, {"assistant_early_exit": 1},
], ids=str)  # fmt: skip
def test_generation_writes_what_repeated_whole_passes_write(model, tokens, settings):
    settings = dict(settings)
    if "prompt_lookup_num_tokens" in settings:
        needs_a_library_without("it looks nothing up for a model without eos_token_id")
    if settings.pop("assistant", False):
        settings["assistant_model"] = DecoderForCausalLM(model.config).eval()
    prompt = tokens[:1]
    if settings.get("num_beams"):
        expected = model.generate(prompt, max_new_tokens=6, do_sample=False, num_beams=3, use_cache=False)
    else:
        expected = prompt
        for _ in range(6):
            expected = torch.cat((expected, model(expected, use_cache=False).logits[:, -1:].argmax(-1)), dim=1)
    unwritten = next(token for token in range(40) if token not in expected)  # to end with, which old versions want
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        written = model.generate(
            prompt, max_new_tokens=6, **{"do_sample": False, "eos_token_id": unwritten, **settings}
        )
    assert written.tolist() == expected.tolist()


def test_no_call_of_ours_is_deprecated(model, tokens, caplog):
    logging.enable_propagation()
    type(logging.get_logger()).warning_once.cache_clear()  # what was said in another test is to be said again
    logging.set_verbosity_warning()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.generate(tokens, max_new_tokens=3, do_sample=False)
            model(tokens, labels=tokens).loss.backward()
    finally:
        logging.disable_propagation()
    assert not [record for record in caplog.records if "deprecated" in record.getMessage()]


def test_hidden_states_and_attentions_are_those_that_were_computed(model, tokens):
    whole = model(tokens)
    assert whole.hidden_states is None and whole.attentions is None
    output = model(tokens, output_hidden_states=True, output_attentions=True)
    torch.testing.assert_close(output.logits, whole.logits, atol=1e-4, rtol=1e-4)
    assert len(output.hidden_states) == 3 and len(output.attentions) == 2
    torch.testing.assert_close(output.hidden_states[0], model.get_input_embeddings()(tokens))
    torch.testing.assert_close(model.lm_head(output.hidden_states[-1]), output.logits)
    softmaxes = 4 * model.model.layers[0].self_attn.softmaxes_per_head
    for probabilities in output.attentions:
        assert probabilities.shape == (2, softmaxes, 9, 9)
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(2, softmaxes, 9))
        assert probabilities.triu(1).abs().max() == 0
    step = model(tokens[:, :1], cache=model(tokens[:, 1:], use_cache=True).cache, output_attentions=True)
    assert step.attentions[0].shape == (2, softmaxes, 1, 9)


@pytest.mark.parametrize("places", [0, -1, [0, -1], [1, 7], []], ids=str)
def test_hidden_states_come_from_the_places_that_are_named(model, tokens, places):
    every = model(tokens, output_hidden_states=True).hidden_states
    named = model(tokens, output_hidden_states=places).hidden_states
    wanted = {places % 3} if isinstance(places, int) else {place % 3 for place in places if place < 3}
    assert len(named) == 3
    for place, (one, other) in enumerate(zip(named, every, strict=True)):
        assert torch.equal(one, other) if place in wanted else one is None


def test_logits_are_those_of_the_positions_that_are_named(model, tokens):
    every = model(tokens).logits
    seen = torch.rand(2, 9) > 0.5
    rows = torch.tensor([[0, 3], [8, 1]])
    for positions, expected in (
        (0, every), (2, every[:, -2:]), (torch.tensor([1, 4]), every[:, [1, 4]]), (seen, every[seen]),
        (rows, torch.stack([every[0, [0, 3]], every[1, [8, 1]]])),
    ):  # fmt: skip
        torch.testing.assert_close(model(tokens, logits_to_keep=positions).logits, expected, atol=1e-5, rtol=1e-5)


def test_attention_that_is_not_computed_here_is_refused(model, tokens):
    for name in ("flash_attention_2", "flex_attention", "nonsense"):
        with pytest.raises((ValueError, ImportError)):
            model.set_attn_implementation(name)
    AttentionInterface.register("of-somebody", lambda *args, **kwargs: None)
    model.set_attn_implementation("of-somebody")
    with pytest.raises(UserError, match="attn_implementation='of-somebody' is not known here; choose eager or sdpa"):
        model(tokens)
    model.set_attn_implementation("sdpa")
    model.config.is_causal = False
    with pytest.raises(UserError, match="is_causal=False"):
        model(tokens)


def test_continuous_batching_is_refused_before_it_starts(model, tokens):
    with pytest.raises(UserError, match="continuous batching"):
        model.generate_batch(tokens.tolist())


def test_the_loss_is_divided_and_its_labels_shifted_as_told(model, tokens):
    expected = model(tokens, labels=tokens).loss
    shifted = torch.nn.functional.pad(tokens[:, 1:], (0, 1), value=-100)
    for labels in ({"shift_labels": shifted}, {"labels": tokens, "shift_labels": shifted}, {"labels": tokens}):
        torch.testing.assert_close(model(tokens, **labels).loss, expected)
        torch.testing.assert_close(model(tokens, **labels, num_items_in_batch=4).loss, expected * 16 / 4)


def test_retained_gradients_reach_hidden_states_and_attentions(model, tokens):
    output = model(tokens, output_hidden_states=True, output_attentions=True)
    kept = [*output.hidden_states, *output.attentions]
    for part in kept:
        part.retain_grad()
    output.logits.square().sum().backward()
    assert all(part.grad is not None and part.grad.abs().sum() > 0 for part in kept)


def test_generation_returns_what_is_asked_for(model, tokens):
    for settings in ({"do_sample": False}, {"do_sample": True}, {"num_beams": 2}):
        output = model.generate(
            tokens, max_new_tokens=3, return_dict_in_generate=True, output_hidden_states=True, output_scores=True,
            output_attentions=True, **settings,
        )  # fmt: skip
        assert len(output.hidden_states) == len(output.attentions) == len(output.scores) == 3
        assert all(len(step) == 2 for step in output.attentions)


def test_eager_attention_is_sdpa(model, tokens):
    padded = torch.ones_like(tokens)
    padded[0, :3] = 0
    expected = model(tokens, attention_mask=padded)
    model.set_attn_implementation("eager")
    output = model(tokens, attention_mask=padded)
    torch.testing.assert_close(output.logits[:, 3:], expected.logits[:, 3:], atol=1e-4, rtol=1e-4)
    static = StaticCache(config=model.config, max_cache_len=16)
    model(tokens[:, :5], past_key_values=static)
    step = model(tokens[:, 5:6], past_key_values=static).logits
    torch.testing.assert_close(step, model(tokens[:, :6]).logits[:, 5:], atol=1e-4, rtol=1e-4)


def test_a_tuple_comes_back_where_it_is_asked_for(model, tokens):
    loss, logits = model(tokens, labels=tokens, use_cache=False, return_dict=False)
    assert loss.dim() == 0 and logits.shape == (2, 9, 40)
    model.config.return_dict = False
    assert isinstance(model(tokens), tuple)
    model.config.return_dict = True


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_gradients_are_the_gradients(model, tokens, reentrant):
    model.train()
    model(tokens, labels=tokens).loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        model.zero_grad()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        model.enable_input_require_grads()
        model(tokens, labels=tokens).loss.backward()
        model.gradient_checkpointing_disable()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[name], atol=1e-5, rtol=1e-4)


def test_a_cache_is_refused_where_gradients_are_checkpointed_and_serves_without_them(model, tokens):
    model.train()
    model.gradient_checkpointing_enable()
    with pytest.raises(UserError, match="a cache cannot be filled while gradients are checkpointed"):
        model(tokens, cache=DynamicCache(config=model.config))
    expected = model.eval().generate(tokens, max_new_tokens=4, do_sample=False)
    assert torch.equal(model.train().generate(tokens, max_new_tokens=4, do_sample=False), expected)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("size", [33, 55])
def test_embeddings_are_resized_and_the_rest_is_kept(tokens, tied, size):
    model = DecoderForCausalLM(configuration("mla", tie_word_embeddings=tied)).eval()
    tokens, before = tokens.clamp(max=32), model.lm_head.weight.clone()
    expected = model(tokens).logits
    model.resize_token_embeddings(size)
    assert model.config.vocab_size == size and type(model.lm_head) is torch.nn.Linear
    output, common = model(tokens).logits, min(size, 40)
    assert output.shape[-1] == size
    torch.testing.assert_close(output[..., :common], expected[..., :common])
    torch.testing.assert_close(model.lm_head.weight[:common], before[:common])


def test_the_library_s_heads_and_auto_classes_know_it(model, tokens, tmp_path):
    model.save_pretrained(tmp_path)
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path)) is DecoderForCausalLM
    base = AutoModel.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(base(tokens).last_hidden_state, model.model(tokens).last_hidden_state)
    heads = {
        AutoModelForSequenceClassification: (2, 3),
        AutoModelForTokenClassification: (2, 9, 3),
    }
    for kind, shape in heads.items():
        headed = kind.from_pretrained(tmp_path, num_labels=3).eval()
        assert headed(tokens).logits.shape == shape
        torch.testing.assert_close(headed.model(tokens)[0], base(tokens)[0])
    assert AutoModelForQuestionAnswering.from_pretrained(tmp_path)(tokens).start_logits.shape == (2, 9)


@pytest.mark.parametrize("kind, labels", [
    (AutoModelForCausalLM, {"labels": [3, 4, 5]}),
    (AutoModelForSequenceClassification, {"labels": 1}),
    (AutoModelForTokenClassification, {"labels": [0, 1, 0]}),
    (AutoModelForQuestionAnswering, {"start_positions": 0, "end_positions": 2}),
])  # fmt: skip
def test_the_library_s_trainer_trains_every_head(kind, labels, tmp_path):
    model = kind.from_config(configuration("mla"))
    before = model.model.embed_tokens.weight.clone()
    settings = TrainingArguments(
        str(tmp_path), max_steps=1, gradient_accumulation_steps=2, report_to="none", save_strategy="no",
        disable_tqdm=True, use_cpu=True, gradient_checkpointing=True,
    )  # fmt: skip
    rows = [{"input_ids": [3, 4, 5], "attention_mask": [1, 1, 1], **labels}] * 16
    trainer = Trainer(model, settings, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    assert not torch.equal(model.model.embed_tokens.weight, before)
    assert trainer.evaluate()["eval_loss"] > 0


ROPES = (
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 16},
    {"rope_type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 3.0, 4.0, 5.0],
     "original_max_position_embeddings": 16, "factor": 4.0},
)  # fmt: skip


@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: rope["rope_type"])
@pytest.mark.parametrize("length", [12, 40], ids=["short", "long"])
def test_every_rope_that_a_llama_takes_is_the_llama_s(rope, length):
    """Set on the config after it was made, as transformers' own tests do."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {
        "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 32, "initializer_range": 0.2,
    }  # fmt: skip
    theirs, ours = LlamaConfig(**sizes), configuration("mha", **sizes)
    theirs.rope_parameters = {"rope_theta": 10_000.0, **rope}
    ours.rope_parameters = {"rope_theta": 10_000.0, **rope}
    llama, model = LlamaForCausalLM(theirs).eval(), DecoderForCausalLM(ours).eval()
    model.load_state_dict(llama.state_dict())
    tokens = torch.randint(0, 40, (2, length))
    torch.testing.assert_close(model(tokens).logits, llama(tokens).logits, atol=1e-4, rtol=1e-4)


def test_what_a_mechanism_starts_with_is_set_once_and_not_over_what_was_loaded(tmp_path, monkeypatch):
    def init_weights(self, std):
        with torch.no_grad():
            self.o_proj.weight.fill_(std)  # as somebody writes it who does not know of the library's marks

    monkeypatch.setattr(MLA, "init_weights", init_weights)
    model = DecoderForCausalLM(
        DecoderConfig(vocab_size=9, hidden_size=16, num_attention_heads=2, initializer_range=0.25)
    )
    assert all((layer.self_attn.o_proj.weight == 0.25).all() for layer in model.model.layers)
    torch.nn.init.normal_(model.model.layers[0].self_attn.o_proj.weight)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(DecoderForCausalLM.from_pretrained(tmp_path).state_dict(), model.state_dict())
