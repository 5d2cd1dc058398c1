"""Beyond the tested versions a miniature decodes first, and what has changed under us is refused in one sentence."""

import pytest
import torch
from transformers import GenerationMixin

from mla_experiments import versions
from mla_experiments.errors import UserError
from mla_experiments.modeling import DecoderConfig, DecoderForCausalLM, self_check
from mla_experiments.modeling.attention import ATTENTION


@pytest.fixture(autouse=True)
def _another_process():
    self_check.untested.cache_clear()
    self_check._problems.clear()
    yield
    self_check.untested.cache_clear()
    self_check._problems.clear()


@pytest.fixture
def beyond(monkeypatch):
    monkeypatch.setitem(versions.TESTED, "transformers", ("4.0", "4.99"))


@pytest.fixture(params=list(ATTENTION))
def model(request):
    config = DecoderConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, attention=request.param
    )
    return DecoderForCausalLM(config).eval()


def change_what_is_handed_on(monkeypatch, change):
    original = GenerationMixin.prepare_inputs_for_generation

    def changed(self, *args, **kwargs):
        return change(original(self, *args, **kwargs))

    monkeypatch.setattr(GenerationMixin, "prepare_inputs_for_generation", changed)


def renamed(inputs):
    names = {"cache": "memory", "past_key_values": "memory"}
    return {names.get(name, name): value for name, value in inputs.items()}


def lost(inputs):
    return {name: value for name, value in inputs.items() if name not in ("cache", "past_key_values")}


@pytest.mark.parametrize(("change", "said"), [
    (renamed, r"a miniature of \w+ fails to decode \(.*'memory'"),
    (lost, r"a miniature of \w+ writes other tokens from its cache than without one"),
])  # fmt: skip
def test_a_library_that_hands_the_cache_on_otherwise_is_refused(model, beyond, monkeypatch, change, said):
    change_what_is_handed_on(monkeypatch, change)
    with pytest.raises(UserError, match=rf"transformers [\d.]+ is newer than what was tested .*{said}.*pip install -U"):
        model.generate(torch.ones(1, 3, dtype=torch.long), max_new_tokens=2)
    cache = model(torch.ones(1, 3, dtype=torch.long), use_cache=True).cache
    with pytest.raises(UserError, match=said):
        model(torch.ones(1, 1, dtype=torch.long), cache=cache)


def test_a_library_that_does_as_before_is_used_and_random_numbers_stay(model, beyond):
    settings = {"max_new_tokens": 4, "do_sample": True, "pad_token_id": 0}
    torch.manual_seed(3)
    first = model.generate(torch.ones(1, 3, dtype=torch.long), **settings)
    torch.manual_seed(3)
    assert model.generate(torch.ones(1, 3, dtype=torch.long), **settings).tolist() == first.tolist()


def test_within_the_tested_range_nothing_is_checked(model, monkeypatch):
    monkeypatch.setattr(self_check, "_agrees", lambda attention: pytest.fail("checked"))
    monkeypatch.setattr(versions, "beyond", dict)
    model.generate(torch.ones(1, 3, dtype=torch.long), max_new_tokens=2, do_sample=False)


@pytest.mark.parametrize(("version", "is_old", "is_new"), [
    ("5.16.9", True, False), ("5.17.0", False, False), ("5.24.3", False, False), ("5.24.0.dev0", False, False),
    ("5.25.0", False, True), ("6.0.0rc1", False, True), ("4.57.6", True, False), ("5.23.0+cpu", False, False),
])  # fmt: skip
def test_versions_are_compared_as_numbers(monkeypatch, version, is_old, is_new):
    monkeypatch.setitem(versions.TESTED, "transformers", ("5.17", "5.24"))
    assert versions.is_below("transformers", version) == is_old
    assert versions.is_beyond("transformers", version) == is_new
