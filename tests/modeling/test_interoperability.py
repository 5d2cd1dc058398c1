"""Our models and layers in other people's hands: Auto classes, the hub's layout, compilers, a model of their own."""

import inspect
import re
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, StaticCache, set_seed
from transformers.utils import hub

from mla_experiments import GQA, MFA, MHA, MLA, MQA, TPA, DecoderConfig, DecoderForCausalLM, RotaryEmbedding
from mla_experiments.modeling.attention.base import Attention
from mla_experiments.modeling.cache import growing

LAYERS = {
    "mha": lambda: MHA(32, 4),
    "gqa": lambda: GQA(32, 4, num_key_value_heads=2),
    "mqa": lambda: MQA(32, 4),
    "mla": lambda: MLA(32, 4),
    "mla, low-rank queries": lambda: MLA(32, 4, q_lora_rank=12),
    "mla, without rope": lambda: MLA(32, 4, rotary=False),
    "mla, scaled": lambda: MLA(32, 4, q_lora_rank=12, latent_scale=True),
    "mla, without norms": lambda: MLA(32, 4, q_lora_rank=12, latent_norm=False),
    "tpa": lambda: TPA(32, 4),
    "tpa, without rope": lambda: TPA(32, 4, rotary=False),
    "mfa": lambda: MFA(32, 4),
}


def small(attention="mla"):
    set_seed(0)
    return DecoderForCausalLM(
        DecoderConfig(
            vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, attention=attention,
            intermediate_size=48, max_position_embeddings=64, eos_token_id=0, pad_token_id=0,
        )
    ).eval()  # fmt: skip


def test_importing_the_package_is_enough_for_the_auto_classes(tmp_path):
    small().save_pretrained(tmp_path)
    code = (
        "import sys, mla_experiments; from transformers import AutoConfig, AutoModelForCausalLM;"
        "print(AutoConfig.from_pretrained(sys.argv[1]).attention,"
        "type(AutoModelForCausalLM.from_pretrained(sys.argv[1])).__name__)"
    )
    asked = [sys.executable, "-c", code, str(tmp_path)]
    said = subprocess.run(asked, check=True, capture_output=True, text=True, cwd=REPOSITORY).stdout
    assert said.split() == ["mla", "DecoderForCausalLM"]


class LocalHub:
    """Where the hub's client would upload, a folder in the layout of its cache."""

    def __init__(self, cache):
        self.cache = cache

    def create_repo(self, repo_id, **_):
        return type("Repo", (), {"repo_id": repo_id})

    def create_commit(self, repo_id, operations, **_):
        folder = self.cache / f"models--{repo_id.replace('/', '--')}"
        for operation in operations:
            path = folder / "snapshots" / "0" / operation.path_in_repo
            path.parent.mkdir(parents=True, exist_ok=True)
            with operation.as_file() as content:
                path.write_bytes(content.read())
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / "main").write_text("0")


def test_a_model_pushed_to_the_hub_comes_back_from_it(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "hf_api", lambda: LocalHub(tmp_path), raising=False)
    for name in ("create_repo", "create_commit"):  # what transformers before 5.10 calls
        monkeypatch.setattr(hub, name, getattr(LocalHub(tmp_path), name), raising=False)
    monkeypatch.setattr(hub, "create_and_tag_model_card", lambda *_, **__: hub.ModelCard("---\ntags: []\n---\n"))
    model = small()
    model.push_to_hub("somebody/mla-tiny")
    names = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert {"config.json", "model.safetensors", "README.md"} <= names
    assert not any(name.endswith((".py", ".bin")) for name in names), "no code and no pickle is published"
    back = AutoModelForCausalLM.from_pretrained("somebody/mla-tiny", cache_dir=tmp_path)
    tokens = torch.randint(0, 64, (1, 20))
    assert torch.equal(back(tokens).logits, model(tokens).logits)
    assert "auto_map" not in AutoConfig.from_pretrained("somebody/mla-tiny", cache_dir=tmp_path).to_dict()


def tables_of(layer, length, first=0):
    """Cosines and sines for a layer, or None where it knows no positions."""
    if not layer.rotary:
        return None
    width = layer.qk_rope_head_dim if isinstance(layer, MLA) else layer.head_dim
    return RotaryEmbedding(width)(torch.arange(first, first + length)[None], torch.float32)


def whole_graph(module, backend="eager", **more):
    """Compile a module, and fail where its graph would break; the backends that do not generate code are quick."""
    torch.compiler.reset()
    return torch.compile(module, fullgraph=True, backend=backend, **more)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_compiles_without_graph_breaks(name):
    layer, x = LAYERS[name](), torch.randn(2, 9, 32)
    tables, compiled = tables_of(layer, 9), whole_graph(layer, "aot_eager")
    torch.testing.assert_close(compiled(x, tables), layer(x, tables))
    compiled(x, tables).sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())
    mask = torch.ones(2, 1, 9, 9, dtype=torch.bool).tril()
    mask[0, :, 1:, 0] = False
    torch.testing.assert_close(compiled(x, tables, mask), layer(x, tables, mask))


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_compiles_once_for_any_length(name):
    layer = LAYERS[name]()
    compiled = whole_graph(layer, dynamic=True)
    compiled(torch.randn(3, 9, 32), tables_of(layer, 9))
    with torch.compiler.set_stance("fail_on_recompile"):
        for length in (5, 33):
            x, tables = torch.randn(3, length, 32), tables_of(layer, length)
            torch.testing.assert_close(compiled(x, tables), layer(x, tables))


@pytest.mark.parametrize("kind", ["dynamic", "growing", "static"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_step_from_a_cache_compiles_without_graph_breaks(name, kind):
    layer = LAYERS[name]().eval()
    config = DecoderConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=1, max_position_embeddings=16)
    make = {
        "dynamic": DynamicCache,
        "growing": lambda: growing(DynamicCache()),
        "static": lambda: StaticCache(config=config, max_cache_len=16),
    }[kind]
    theirs, ours, compiled = make(), make(), whole_graph(layer)
    with torch.inference_mode():
        prompt = torch.randn(2, 9, 32)
        for cache in (theirs, ours):
            layer(prompt, tables_of(layer, 9), None, cache)
        for position in (9, 10, 11):
            x, tables, mask = torch.randn(2, 1, 32), tables_of(layer, 1, position), None
            if kind == "static":
                mask = (torch.arange(16) <= position)[None, None, None]
            torch.testing.assert_close(compiled(x, tables, mask, ours), layer(x, tables, mask, theirs))


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_exports_for_any_batch_and_length(name):
    layer = LAYERS[name]().eval()
    batch, length = (torch.export.Dim(name, min=least, max=2**20) for name, least in (("batch", 1), ("length", 2)))
    free = ({0: batch, 1: length}, ({1: length}, {1: length}) if layer.rotary else None)
    exported = torch.export.export(layer, (torch.randn(2, 9, 32), tables_of(layer, 9)), dynamic_shapes=free).module()
    for shape in ((1, 5), (4, 30)):
        x, tables = torch.randn(*shape, 32), tables_of(layer, shape[1])
        torch.testing.assert_close(exported(x, tables), layer(x, tables))


@pytest.mark.parametrize("attention", ["mha", "gqa", "mqa", "mla", "tpa", "mfa"])
def test_the_whole_model_compiles_without_graph_breaks(attention):
    model, tokens = small(attention), torch.randint(0, 64, (2, 9))
    compiled, padding = whole_graph(model), torch.ones_like(tokens)
    padding[0, :3] = 0
    for options in ({"use_cache": False}, {"attention_mask": padding}):
        torch.testing.assert_close(compiled(tokens, **options).logits, model(tokens, **options).logits)
    with torch.inference_mode():
        theirs, ours = (StaticCache(config=model.config, max_cache_len=16) for _ in range(2))
        for cache in (theirs, ours):
            model(tokens, past_key_values=cache)
        step = tokens[:, :1]
        torch.testing.assert_close(
            compiled(step, past_key_values=ours).logits, model(step, past_key_values=theirs).logits
        )


@pytest.mark.parametrize("layer", [Attention, MHA, GQA, MQA, MLA, TPA, MFA, RotaryEmbedding])
def test_a_layer_is_type_annotated(layer):
    for name, member in inspect.getmembers(layer, callable):
        if not name.startswith("_") and getattr(member, "__module__", "").startswith("mla_experiments"):
            signature = inspect.signature(member)
            lacking = [p.name for p in signature.parameters.values() if p.name != "self" and p.annotation is p.empty]
            assert not lacking and signature.return_annotation is not signature.empty, f"{name}: {lacking}"


def test_the_example_of_a_layer_alone_in_the_docs_runs():
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs/use.md").read_text(encoding="utf-8"), re.DOTALL)
    (example,) = [block for block in blocks if "from mla_experiments import MLA" in block]
    names = {}
    exec(example, names)
    assert names["output"].shape == names["hidden"].shape
    assert len([line for line in example.splitlines() if line.strip() and not line.startswith(("import", "from"))]) <= 5
