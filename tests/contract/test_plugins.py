"""Mechanisms from outside: by hand, from a file, from a package in an environment of its own; and broken ones."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, TINY, command, synthetic_articles
from transformers import DynamicCache

from mla_experiments import DecoderConfig, DecoderForCausalLM, register
from mla_experiments.cli import main
from mla_experiments.errors import UserError
from mla_experiments.manifest import file_hash
from mla_experiments.modeling.attention import ATTENTION, MHA, find, plugins
from mla_experiments.study import proposal, read_study
from mla_experiments.testing import check_attention
from mla_experiments.training.identity import sources_hash

EXAMPLE = REPOSITORY / "docs" / "examples" / "thin_keys"
SPEC = "thin_keys.py:ThinKeys"


@pytest.fixture(autouse=True)
def _registry_as_it_was(monkeypatch):
    monkeypatch.setattr(plugins, "_modules", {})
    monkeypatch.setenv(plugins.VARIABLE, "")
    known = dict(ATTENTION)
    yield
    ATTENTION.clear()
    ATTENTION.update(known)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(EXAMPLE / "thin_keys.py", tmp_path)
    return tmp_path


def thin_keys():
    """Return the example's own reference."""
    plugins._modules.clear()
    return plugins.class_from_file(EXAMPLE / "thin_keys.py", "thin_keys")


def edited(before: str, after: str) -> type:
    """Return the example's class with a line changed."""
    text = (EXAMPLE / "thin_keys.py").read_text(encoding="utf-8")
    assert text.count(before) >= 1
    path = Path("edited.py")
    path.write_text(text.replace(before, after, 1), encoding="utf-8")
    plugins._modules.clear()
    return plugins.class_from_file(path, "ThinKeys")


def refused(capsys, argv):
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    return said


@pytest.mark.parametrize(
    ("before", "after", "check"),
    [
        ("self.scale = (self.key_dim**-0.5) * self", "self.scale = 3 * (self.key_dim**-0.5) * self", "reference"),
        ("attention_mask, self.scale", "torch.zeros(1, 1, query.shape[2], key.shape[2]).double(), self.scale",
         "causality"),
        ('"keys": self.num_key_value_heads * self.key_dim', '"keys": 1 + self.key_dim', "cache_size"),
        ("key, value = self.remember(cache, key, value)", "pass", "decoding"),
        ("return self.output(attended,", "return self.output(attended[..., :-1],", "causality"),
        ("return 2 * num_tokens", "return num_tokens", "operations"),
        ("key = rotate(key,", "rotate(key,", "reference"),
        ('cache_option = "num_key_value_heads"', 'cache_option = "num_kv_heads"', "choices"),
        ('cache_option = "num_key_value_heads"', 'cache_option = "sharpness"', "choices"),
        ('takes = frozenset({"output_gate"})', 'takes = frozenset({"gate"})', "choices"),
    ],
    ids=["tripled", "acausal", "another cache", "forgetful", "wrong shape", "half the FLOPs", "unturned",
         "no such option", "another option", "no such move"],
)  # fmt: skip
def test_the_check_finds_what_is_broken(here, before, after, check):
    with pytest.raises(AssertionError, match=rf"^{check} of thinkeys-under-check"):
        check_attention(edited(before, after), reference=thin_keys(), positions=("rope",))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("nowhere.py:GTA", "attention=nowhere.py is no file"),
        ("thin_keys.py:Thick", "there is no Thick in that file"),
        ("broken.py:ThinKeys", "attention=broken.py does not import (SyntaxError: "),
        ("raises.py:ThinKeys", "attention=raises.py does not import (ZeroDivisionError: "),
        ("thin_keys.py:thin_keys", "is no class of mla_experiments.Attention"),
        ("abstract.py:Half", "the class Half lacks cache_parts, flops, forward, resolve, rotary_dim, description"),
        ("taken.py:MLA", "attention=mla is taken by mla_experiments.modeling.attention.mla.MLA"),
        ("gta2", "attention=gta2 is unknown"),
    ],
)
def test_what_cannot_be_a_mechanism_is_one_sentence(here, capsys, spec, said):
    Path("broken.py").write_text("class ThinKeys(\n")
    Path("raises.py").write_text("1 / 0\n")
    Path("abstract.py").write_text("from mla_experiments import Attention\nclass Half(Attention):\n    pass\n")
    Path("taken.py").write_text("from thin_keys import ThinKeys\nclass MLA(ThinKeys):\n    pass\n")
    sys.path.insert(0, str(here))
    try:
        assert said in refused(capsys, ["plan", "reference", "--attention", spec])
    finally:
        sys.path.remove(str(here))
        sys.modules.pop("thin_keys", None)


def test_a_file_is_named_on_the_command_line_and_a_checkpoint_says_what_it_needs(here, prepared, capsys):
    flags = {**TINY, "attention_options": json.dumps({"thinkeys": {"key_dim": 4, "sharpness": 1.5}})}
    assert main(command("train", "--attention", SPEC, **flags)) == 0
    written = json.loads(Path("weights/thinkeys/config.json").read_text())
    assert written["attention"] == "thinkeys" and written["attention_options"]["sharpness"] == 1.5
    assert written["attention_source"] == {
        "file": "thin_keys.py", "sha256": file_hash(here / "thin_keys.py"), "class": "ThinKeys",
    }  # fmt: skip
    capsys.readouterr()
    asked = ["generate", "thinkeys", "--prompt", "the river", "--max-new-tokens", "4"]
    assert main([*asked, "--attention", SPEC]) == 0
    text = capsys.readouterr().out
    ATTENTION.pop("thinkeys")
    os.environ[plugins.VARIABLE] = ""
    assert "add --attention path/to/thin_keys.py:ThinKeys" in refused(capsys, asked)
    os.environ[plugins.VARIABLE] = f"{here / 'thin_keys.py'}:ThinKeys"  # as in a process that another has started
    assert main(asked) == 0 and capsys.readouterr().out == text


def test_a_study_that_is_written_for_a_file_is_understood_by_who_has_not_named_it(here, monkeypatch, capsys):
    Path("own.txt").write_text("".join(synthetic_articles(400)))
    monkeypatch.setattr(proposal, "LEAST_TOKENS", 2000)
    monkeypatch.setattr(proposal, "tokens_within", lambda *_: (4096, [1e4] * 2))
    asked = "choose own.txt --cache-bytes-per-token 512 --params 150k --studies-dir thin --plan-only --attention gqa"
    assert main([*asked.split(), SPEC]) == 0
    assert "Next: mla-experiments study thin/choose-own.yaml --studies_dir thin\n" in capsys.readouterr().out
    del ATTENTION["thinkeys"]
    monkeypatch.setenv(plugins.VARIABLE, "")
    assert [variant.attention for variant in read_study(Path("thin/choose-own.yaml")).variants] == ["gqa", "thinkeys"]
    assert main([*asked.split(), SPEC]) == 0, "the same command goes on with it"


def test_other_code_of_a_file_is_another_run(here, prepared, capsys):
    assert main(command("train", "--attention", SPEC, **TINY)) == 0
    capsys.readouterr()
    path = here / "thin_keys.py"
    path.write_text(path.read_text().replace("self.scale = ", "self.scale = 3 * "))
    ATTENTION.pop("thinkeys")
    plugins._modules.clear()
    sources_hash.cache_clear()
    assert "sources" in refused(capsys, command("train", "--attention", SPEC, **TINY))


def test_other_code_of_what_a_file_imports_is_another_run(here, monkeypatch):
    monkeypatch.syspath_prepend(str(here))
    (here / "parts").mkdir()
    (here / "parts" / "__init__.py").write_text("")
    (here / "parts" / "scale.py").write_text("from .deeper import FACTOR\n")
    (here / "parts" / "deeper.py").write_text("FACTOR = 1\n")
    (here / "scaled.py").write_text(
        "import torch\nfrom thin_keys import ThinKeys\nfrom parts import scale\n"
        "class Scaled(ThinKeys):\n    def init_weights(self, std):\n        super().init_weights(scale.FACTOR * std)\n"
    )
    assert find("scaled.py:Scaled") == "scaled"
    hashed = sources_hash.__wrapped__
    hashes = [hashed("scaled"), hashed("scaled")]
    for name, before, after in (
        ("parts/deeper.py", "1", "3"),
        ("parts/scale.py", "FACTOR", "FACTOR\nMORE = 2"),
        ("thin_keys.py", "self.scale = ", "self.scale = 3 * "),
    ):
        (here / name).write_text((here / name).read_text().replace(before, after, 1))
        hashes.append(hashed("scaled"))
    assert hashes[0] == hashes[1] and len(set(hashes)) == 4


def test_a_mechanism_may_hand_on_whatever_it_is_given(here):
    class Doubled(MHA):
        def forward(self, *args, **kwargs):
            return 2 * super().forward(*args, **kwargs)

    hidden, cache = torch.ones(1, 3, 8), DynamicCache()
    for name in ("cache", "past_key_values"):
        assert Doubled(8, 2, rotary=False).eval()(hidden, None, **{name: cache}).shape == (1, 3, 8)
    assert cache.get_seq_length() == 6


def test_a_name_is_registered_by_hand(here):
    mechanism = plugins.class_from_file(Path("thin_keys.py"), "ThinKeys")
    assert register(mechanism, "thin") == "thin" == find("thin")
    model = DecoderForCausalLM(DecoderConfig(vocab_size=9, hidden_size=16, num_attention_heads=2, attention="thin"))
    assert model(torch.ones(1, 3, dtype=torch.long)).logits.shape == (1, 3, 9)
    with pytest.raises(UserError, match="key_dim=3 must be positive and even"):
        DecoderConfig(attention="thin", attention_options={"key_dim": 3})
    with pytest.raises(UserError, match="sharpness='high' must be a number"):
        DecoderConfig(attention="thin", attention_options={"sharpness": "high"})
    with pytest.raises(UserError, match="is no name"):
        register(mechanism, "Thin Keys")


STUDY = {
    "preset": "demo", "attention": ["mha", "thin"], "seeds": [0, 1], "hidden_size": 16, "num_attention_heads": 2,
    "num_hidden_layers": 1, "sequence_length": 32, "batch_size": 4, "per_device_train_batch_size": 4,
    "train_tokens": 512, "warmup_tokens": 0, "vocab_size": 300, "learning_rate": 0.01,
}  # fmt: skip
AROUND = """
import json, sys
from pathlib import Path
from mla_experiments.cli import main

def run(*argv, code=0):
    print("$", *argv, flush=True)
    assert main(list(argv)) == code, argv

run("train", "--attention", "thin", "mha", *TINY)
run("eval")
run("generate", "thin", "--prompt", "the river", "--max-new-tokens", "4")
run("plan", "reference", "--attention", "thin", "--key_dim", "8")
run("bench", "decode", "--attention", "thin", "--contexts", "16", "--batch-sizes", "1", "--rounds", "1")
run("bench", "prefill", "--attention", "thin", "--prompts", "16", "--rounds", "1")
for match in ("parameters", "cache"):
    study = STUDY | {"match": match} | ({"cache_bytes_per_token": 48} if match == "cache" else {})
    Path(f"{match}.yaml").write_text(json.dumps(study))
    run("study", f"{match}.yaml")
    run("report", f"studies/{match}")
run("compare", "studies/parameters", "weights/thin")
run("export", "weights/thin", "out", code=2)

import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("weights/thin")
source = model.config.attention_source
assert source == {"package": "thin-keys", "version": "0.3.0", "class": "ThinKeys"}, source
prompt = torch.tensor([[5, 6, 7]])
texts = {str(model.generate(prompt, max_new_tokens=5, min_new_tokens=5, do_sample=False, **way).tolist())
         for way in ({}, {"cache_implementation": "static"}, {"use_cache": False})}
assert len(texts) == 1, texts
model.generate(prompt, max_new_tokens=5, num_beams=2)
"""


@pytest.mark.slow
def test_a_package_from_outside_goes_through_everything(prepared, tmp_path):
    """In a fresh environment, where the libraries are those of this one and the package is installed."""
    python = tmp_path / "environment" / "bin" / "python"
    if os.name == "nt" or not shutil.which("sh"):
        pytest.skip("written for environments of POSIX systems")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "environment")], check=True)
    (site,) = (tmp_path / "environment" / "lib").glob("python*/site-packages")
    (site / "libraries.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n{REPOSITORY}\n")
    source = shutil.copytree(EXAMPLE, tmp_path / "source")
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", str(source)]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode and ("Connection" in done.stderr or "resolve" in done.stderr):
        pytest.skip("no package index is in reach, which building a package asks for")
    assert done.returncode == 0, done.stderr
    tiny = [word for name, value in TINY.items() for word in (f"--{name}", str(value))]
    code = f"TINY, STUDY = {tiny!r}, {STUDY | {'corpus': str(prepared / 'source.txt')}!r}\n{AROUND}"
    done = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "attention=thin exists in no stock model" in done.stderr and "thin, ours" in done.stdout
    card = (tmp_path / "weights/thin/README.md").read_text()
    assert "thin-key attention" in card and "the package thin-keys 0.3.0" in card
    for study in ("parameters", "cache"):
        assert (tmp_path / f"studies/{study}/report.md").is_file()
    asked = "from mla_experiments.cli import main; raise SystemExit(main(['generate', 'thin', '--prompt', 'the']))"
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    without = subprocess.run([sys.executable, "-c", asked], cwd=tmp_path, capture_output=True, text=True, env=env)
    assert without.returncode == 2
    assert "it came from the package thin-keys 0.3.0: install that" in without.stderr
