"""Nothing that is read can run code: pickles in every form and place, and code that a folder brings along."""

import contextlib
import itertools
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import TINY, command, synthetic_articles
from transformers import LlamaConfig, LlamaForCausalLM

from mla_experiments.cli import main
from mla_experiments.manifest import MANIFEST, file_hashes, read_record, write_record
from mla_experiments.run_files import read_run
from mla_experiments.training import checkpoints

OWNED = Path("owned")
NAMES = (
    "pytorch_model.bin", "model.pt", "model.pkl", "consolidated.00.pth", "model.ckpt", "adapter_model.bin",
    "training_args.bin", "tokenizer.pkl", "vocab.pkl", "state.npy",
)  # fmt: skip
STATE = ("optimizer.pt", "scheduler.pt", "rng_state.pth")


class Exploit:
    """Unpickling this leaves a file behind."""

    def __reduce__(self):
        return Path.touch, (OWNED,)


def as_pickle(path):
    path.write_bytes(pickle.dumps(Exploit(), protocol=2))


def as_torch(path):
    torch.save(Exploit(), path)


def as_old_torch(path):
    torch.save({"state": Exploit()}, path, _use_new_zipfile_serialization=False)


def as_numpy(path):
    with open(path, "wb") as file:
        np.save(file, np.array([Exploit()], dtype=object), allow_pickle=True)


FORMS = [as_pickle, as_torch, as_old_torch, as_numpy]
every_form = pytest.mark.parametrize("form", FORMS)


DATA = command("data", corpus="source.txt", vocab_size=300, sequence_length=32)
TRAIN = command("train", attention="mla", **TINY)


@pytest.fixture(scope="module")
def _trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        Path("source.txt").write_text("".join(synthetic_articles(40)), encoding="utf-8")
        for argv in (DATA, TRAIN, ["eval"]):
            assert main(argv) == 0
    return root


@pytest.fixture(autouse=True)
def trained(_trained, tmp_path, monkeypatch):
    """Work beside data and a finished run; at the end nothing evil may have run."""
    monkeypatch.chdir(shutil.copytree(_trained, tmp_path, dirs_exist_ok=True))
    yield
    assert not OWNED.exists()


@pytest.fixture
def said(capsys):
    """Run a command, hold it to success or one sentence, and return exit code and sentence."""

    def run(*argv):
        capsys.readouterr()
        code = main(list(argv))
        error = capsys.readouterr().err.splitlines()
        assert code == 0 or (code == 2 and error[-1].startswith("error: ")), error
        return code, error[-1] if code else ""

    return run


@every_form
def test_the_exploits_work(form):
    form(Path("evil"))
    if form is as_numpy:
        np.load("evil", allow_pickle=True)
    else:
        with contextlib.suppress(RuntimeError):  # it is no checkpoint, but its code has run by then
            torch.load("evil", weights_only=False)
    assert OWNED.exists()
    OWNED.unlink()


def plant(folder, form):
    """Put evil files beside what is there, and code that the configs of model and tokenizer ask for."""
    for name in NAMES + STATE:
        form(folder / name)
    (folder / "evil.py").write_text(f"from pathlib import Path\nPath({str(OWNED)!r}).touch()\n")
    (folder / "custom_generate").mkdir()
    shutil.copy(folder / "evil.py", folder / "custom_generate" / "generate.py")
    autos = {"AutoConfig": "evil.E", "AutoModelForCausalLM": "evil.E", "AutoTokenizer": ["evil.E", "evil.E"]}
    for name in ("config.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            change(folder / name, auto_map=autos)


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@every_form
def test_beside_the_weights_of_a_model(said, form):
    folder = Path(shutil.copytree("weights/mla", "foreign"))
    (folder / "run.json").unlink()
    plant(folder, form)
    plant(Path("weights/mla"), form)
    for model in ("foreign", "weights/mla"):
        for argv in (["eval"], ["generate", "--max-new-tokens", "3"], ["plan"], ["export"], ["compare"]):
            said(argv[0], model, *argv[1:], *(["out", "--overwrite"] if argv[0] == "export" else []))
    change(folder / "tokenizer_config.json", tokenizer_class="Evil")
    for argv in (["eval", "foreign"], ["generate", "foreign"], ["export", "foreign", "out", "--overwrite"]):
        assert "cannot be read (" in said(*argv)[1]
    change(folder / "config.json", model_type="evil")
    for argv in (["eval", "foreign"], ["generate", "foreign"], ["plan", "foreign"], ["import", "foreign", "ours"]):
        assert said(*argv)[0] == 2


@every_form
def test_in_place_of_the_weights_of_a_model(said, form):
    folder = Path("weights/mla")
    for name in ("model.safetensors", "config.json", "tokenizer.json", "run.json", "results.json", "scores.json"):
        kept = (folder / name).read_bytes()
        form(folder / name)
        for argv in (["eval"], ["generate", "mla"], ["plan", "weights/mla"], ["export", "mla", "out", "--overwrite"]):
            said(*argv)
        (folder / name).write_bytes(kept)


@every_form
def test_in_a_stock_checkpoint(said, form):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=50, **sizes)).save_pretrained("stock")
    plant(Path("stock"), form)
    assert said("import", "stock", "ours") == (0, "")
    assert not [path.name for path in Path("ours").rglob("*") if path.name in NAMES or path.suffix == ".py"]
    (Path("stock") / "model.safetensors").unlink()
    assert "holds no model.safetensors" in said("import", "stock", "again")[1]
    for name in ("model.safetensors", "config.json"):
        form(Path("stock") / name)
        assert said("import", "stock", "again")[0] == 2


@every_form
def test_in_a_checkpoint(said, form):
    run = Path("weights/mla")
    for later in checkpoints.in_order(run)[1:]:
        shutil.rmtree(later)
    (checkpoint,) = checkpoints.in_order(run)
    write_record(run / "run.json", read_run(run) | {"status": "running"})
    half_done = shutil.copytree(run, "half-done")
    for name in STATE:
        form(checkpoint / name)
        checkpoints.seal(checkpoint)  # even a sealed one
        assert f"{checkpoint} holds a pickle that could run code, which is never opened" in said(*TRAIN, "--resume")[1]
        shutil.rmtree(run)
        shutil.copytree(half_done, run)
    form(checkpoint / STATE[0])
    assert said(*TRAIN, "--resume") == (0, "")
    assert (run / "set-aside" / checkpoint.name).is_dir()
    shutil.rmtree(run)
    shutil.copytree(half_done, run)
    (checkpoint / "model.safetensors").unlink()
    form(checkpoint / "pytorch_model.bin")
    checkpoints.seal(checkpoint)
    assert "holds a pickle" in said(*TRAIN, "--resume")[1]
    for name in NAMES:
        form(checkpoint / name)
    shutil.copy(Path(half_done) / checkpoint.name / "model.safetensors", checkpoint)
    checkpoints.seal(checkpoint)
    assert said(*TRAIN, "--resume") == (0, ""), "what is not asked for is not opened"


@every_form
def test_as_a_corpus(said, form):
    Path("folder").mkdir()
    for name in NAMES:
        form(Path("folder") / name)
    for name in ("evil.pkl", "evil.txt", "evil.jsonl", "evil.parquet", "evil.arrow", "folder"):
        if name != "folder":
            form(Path(name))
        assert "corpus=" in said("data", "--corpus", name)[1]
        assert "corpus=" in said("eval", "mla", "--corpus", name)[1]


def test_in_the_metadata_of_parquet(said):
    """Old versions of Arrow unpickled the description of a column's type."""
    evil = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": pickle.dumps(Exploit(), 0)}
    texts = pa.array([f"the king sees the river number {n} . " * 30 for n in range(40)])
    schema = pa.schema([pa.field("text", pa.string(), metadata=evil)])
    pq.write_table(pa.table([texts], schema=schema), "evil.parquet")
    assert said("data", "--corpus", "evil.parquet", "--vocab-size", "258", "--sequence-length", "32") == (0, "")
    assert said("eval", "mla", "--corpus", "evil.parquet") == (0, "")


@pytest.mark.parametrize(
    ("stage", "reader"),
    [
        ("corpus", ["data", "tokenizer", "--vocab-size", "280"]),
        ("tokenizer", ["data", "tokens", "--sequence-length", "16"]),
        ("tokens", [*TRAIN, "--overwrite"]),
    ],
)
def test_in_prepared_data(said, stage, reader):
    """Each file in turn is replaced, each time in another form, and the folder's manifest is made to agree."""
    data = shutil.copytree("data", "whole")
    folder = Path("data") / stage
    forms = itertools.cycle(FORMS)
    for name in NAMES:
        next(forms)(folder / name)
    assert said(*reader) == (0, ""), "what is not asked for is not opened"
    for victim in sorted(path.relative_to(data) for path in (Path(data) / stage).rglob("*") if path.is_file()):
        shutil.rmtree("data")
        shutil.copytree(data, "data")
        next(forms)("data" / victim)
        assert said(*reader)[0] == 2
        if victim.name != MANIFEST:
            manifest = read_record(folder / MANIFEST)
            (folder / MANIFEST).unlink()
            write_record(folder / MANIFEST, manifest | {"files": file_hashes(folder)})
            said(*reader)
