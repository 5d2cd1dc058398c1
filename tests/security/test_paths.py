"""What a folder names stays in that folder: weights of an index, files of a manifest, data sets, links in a corpus."""

import json
import shutil
from pathlib import Path

import pytest

from mla_experiments.cli import main
from mla_experiments.data import load_tokens
from mla_experiments.errors import UserError
from mla_experiments.manifest import MANIFEST, changed_files, file_hash, file_hashes, read_record, write_record
from mla_experiments.modeling import DecoderConfig, DecoderForCausalLM, load_model

OUTSIDE = ["../elsewhere/{name}", "/{root}/elsewhere/{name}", "inner/../../elsewhere/{name}"]


def outside(pattern, tmp_path, name):
    return pattern.format(root=str(tmp_path).strip("/"), name=name)


@pytest.mark.parametrize("pattern", OUTSIDE)
def test_an_index_of_weights_names_files_of_its_folder_alone(tmp_path, capsys, pattern):
    config = DecoderConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    DecoderForCausalLM(config).save_pretrained(tmp_path / "model", max_shard_size="20KB")
    path = tmp_path / "model" / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    name = sorted(set(index["weight_map"].values()))[0]
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "model" / name, tmp_path / "elsewhere" / name)
    there = outside(pattern, tmp_path, name)
    moved = {weight: there if file == name else file for weight, file in index["weight_map"].items()}
    path.write_text(json.dumps(index | {"weight_map": moved}))
    with pytest.raises(UserError, match="which is not in its folder"):
        load_model(tmp_path / "model")
    (tmp_path / "text.txt").write_text("held-out text")
    text = str(tmp_path / "text.txt")
    for argv in (["export", "model", "out"], ["generate", "model"], ["eval", "model", "--corpus", text]):
        argv[1] = str(tmp_path / argv[1])
        assert main([*argv[:2], *(str(tmp_path / word) if word == "out" else word for word in argv[2:])]) == 2
        assert "which is not in its folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("pattern", OUTSIDE)
def test_a_manifest_names_files_of_its_folder_alone(prepared, tmp_path, pattern):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/file").write_text("mine")
    name = outside(pattern, tmp_path, "file")
    hashes = {name: file_hash(tmp_path / "elsewhere/file")}
    assert changed_files(tmp_path / "data", hashes) == [name]
    manifest = read_record(prepared / "tokens" / MANIFEST)
    write_record(prepared / "tokens" / MANIFEST, manifest | {"files": manifest["files"] | hashes})
    with pytest.raises(UserError, match="is not what was written there"):
        load_tokens(prepared / "tokens", prepared / "tokenizer")


@pytest.mark.parametrize("pattern", OUTSIDE)
def test_a_data_set_names_files_of_its_folder_alone(prepared, tmp_path, pattern):
    tokens = prepared / "tokens"
    state = json.loads((tokens / "train/state.json").read_text())
    name = state["_data_files"][0]["filename"]
    (tokens / "elsewhere").mkdir()
    shutil.copy(tokens / "train" / name, tokens / "elsewhere")
    there = outside(pattern, tokens, name)
    (tokens / "train/state.json").write_text(json.dumps(state | {"_data_files": [{"filename": there}]}))
    manifest = read_record(tokens / MANIFEST)
    (tokens / MANIFEST).unlink()
    write_record(tokens / MANIFEST, manifest | {"files": file_hashes(tokens)})
    with pytest.raises(UserError, match="which is not in its folder"):
        load_tokens(tokens, prepared / "tokenizer")


def test_a_link_that_leads_out_of_a_corpus_is_refused_and_one_inside_is_not(tmp_path, monkeypatch, capsys, articles):
    monkeypatch.chdir(tmp_path)
    Path("secret.txt").write_text("nobody may read this", encoding="utf-8")
    Path("corpus").mkdir()
    for number, article in enumerate(articles):
        Path(f"corpus/{number}.txt").write_text(article, encoding="utf-8")
    Path("corpus/again.txt").symlink_to("0.txt")
    assert main(["data", "download", "--corpus", "corpus"]) == 0
    Path("corpus/link.txt").symlink_to("../secret.txt")
    config = DecoderConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    DecoderForCausalLM(config).save_pretrained("weights/mla")
    for argv in (["data", "download", "--corpus", "corpus", "--data-dir", "other"], ["eval", "--corpus", "./corpus"]):
        capsys.readouterr()
        assert main(argv) == 2
        assert "corpus holds link.txt, a link that leads out of it" in capsys.readouterr().err
    assert not Path("other/corpus").exists()
