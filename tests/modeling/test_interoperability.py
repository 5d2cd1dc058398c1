"""Our models and layers in other people's hands: Auto classes, the hub's layout, compilers, a model of their own."""

import re
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY
from transformers import AutoConfig, AutoModelForCausalLM, set_seed
from transformers.utils import hub

from mla_experiments import GQA, MHA, MLA, MQA, DecoderConfig, DecoderForCausalLM, RotaryEmbedding

LAYERS = {
    "mha": lambda: MHA(32, 4),
    "gqa": lambda: GQA(32, 4, num_key_value_heads=2),
    "mqa": lambda: MQA(32, 4),
    "mla": lambda: MLA(32, 4),
    "mla, low-rank queries": lambda: MLA(32, 4, q_lora_rank=12),
    "mla, without rope": lambda: MLA(32, 4, rotary=False),
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
    monkeypatch.setattr(hub, "hf_api", lambda: LocalHub(tmp_path))
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


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_compiles_without_graph_breaks_and_exports(name):
    torch.compiler.reset()
    layer = LAYERS[name]()
    tables = None
    if layer.rotary:
        width = layer.qk_rope_head_dim if isinstance(layer, MLA) else layer.head_dim
        tables = RotaryEmbedding(width)(torch.arange(9)[None], torch.float32)
    x = torch.randn(2, 9, 32)
    expected = layer(x, tables)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, tables), expected)
    compiled(x, tables).sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())
    exported = torch.export.export(layer.eval(), (x, tables)).module()
    torch.testing.assert_close(exported(x, tables), expected)


def test_the_whole_model_compiles_without_graph_breaks():
    model, tokens = small(), torch.randint(0, 64, (2, 9))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(tokens, use_cache=False).logits, model(tokens, use_cache=False).logits)


def test_the_example_of_a_layer_alone_in_the_readme_runs():
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (example,) = [block for block in blocks if "from mla_experiments import MLA" in block]
    names = {}
    exec(example, names)
    assert names["output"].shape == names["hidden"].shape
    assert len([line for line in example.splitlines() if line.strip() and not line.startswith(("import", "from"))]) <= 5
