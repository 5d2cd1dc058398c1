"""`eval` and `generate` on trained models, and on folders that are no models."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from conftest import TINY, command, synthetic_articles, wikitext_file
from safetensors.torch import load_file, save_file

from mla_experiments.cli import main
from mla_experiments.evaluation.results import load_with_tokenizer
from mla_experiments.modeling import DecoderConfig, DecoderForCausalLM, load_model


def results(folder="."):
    return json.loads(Path(folder, "results.json").read_text())


def test_every_model_gets_a_row_a_split_with_the_original_s_counts(train, prepared, capsys):
    train("mha", "gqa", "mqa", "mla")
    capsys.readouterr()
    assert main(["eval"]) == 0
    said = capsys.readouterr().out
    rows = results()["results"]
    assert [(row["model"], row["split"]) for row in rows] == [
        (name, split) for name in ("gqa", "mha", "mla", "mqa") for split in ("validation", "test")
    ]
    splits = json.loads((prepared / "corpus/manifest.json").read_text())["splits"]
    for row in rows:
        assert row["words"] == splits[row["split"]]["words"] and row["bytes"] == splits[row["split"]]["bytes"]
        assert row["parameters"] == load_model(f"weights/{row['model']}").num_parameters()
        assert f"{row['bits_per_byte']:.4f}" in said
        assert row["train_tokens_per_second"] > 0
    assert Path("results.md").read_text().count("|") > 60 and "Wrote results.json, results.md" in said


def test_the_cache_is_measured_and_agrees_with_the_formula(train):
    train("mha", "gqa", "mqa", "mla")
    main(["eval"])
    for row in results()["results"]:
        layers = load_model(f"weights/{row['model']}").model.layers
        assert row["cache_bytes_per_token"] == sum(4 * layer.self_attn.cache_elements_per_token() for layer in layers)


@pytest.mark.parametrize(
    ("file", "more"),
    [
        ("results.json", []),
        ("results.md", []),
        ("probes.json", ["--tasks", "copy"]),
        ("cache.json", ["--cache_dtype", "int8"]),
        ("weights.json", ["--weight_dtype", "int8"]),
        ("harness.json", ["--tasks", "documents"]),
    ],
)
def test_what_stands_where_results_go_and_is_none_of_ours_is_kept(tmp_path, monkeypatch, capsys, file, more):
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    Path("mine", file).write_text('{"mine": 1}')
    assert main(["eval", "--output_dir", "mine", *more]) == 2
    assert f"error: mine/{file} is not what a command here wrote, and is kept; move it" in capsys.readouterr().err
    assert Path("mine", file).read_text() == '{"mine": 1}' and len(list(Path("mine").iterdir())) == 1


def test_what_is_known_is_not_measured_again_and_what_changed_is(train, monkeypatch):
    train("mha", "mla")
    main(["eval"])
    before = results()["results"]
    scored = []
    with monkeypatch.context() as patched:
        patched.setattr("mla_experiments.evaluation.results.score_documents", lambda *_, **__: scored.append(1))
        main(["eval"])
    assert results()["results"] == before and not scored
    train("mha", seed=1, overwrite=True)
    main(["eval"])
    after = results()["results"]
    assert after[2:] == before[2:] and after[0]["nats"] != before[0]["nats"]


@pytest.mark.parametrize(
    ("what", "other"),
    [("sources_hash", "by other code"), ("device_name", "on another device"), ("library_versions", {"torch": "1.0"})],
)
def test_what_is_known_by_other_code_or_elsewhere_is_measured_again(train, monkeypatch, what, other):
    train("mha")
    main(["eval"])
    with monkeypatch.context() as patched:
        patched.setattr(f"mla_experiments.evaluation.results.{what}", lambda *_: other)
        main(["eval"])
    assert [other in row["measured_by"].values() for row in results()["results"]] == [True, True]


def test_any_text_can_be_held_out_text(train, tmp_path, capsys):
    train()
    text = "the river sees the house .\n\nthe king keeps the garden .\r\n"
    (tmp_path / "other.txt").write_bytes(text.encode())
    assert main(["eval", "mla", "--corpus", "other.txt"]) == 0
    (row,) = results()["results"]
    assert (row["documents"], row["words"], row["bytes"]) == (1, len(text.split()), len(text.encode()))
    assert main(["eval", "weights/mla", "--corpus", "absent.txt"]) == 2
    assert "corpus=absent.txt is no file" in capsys.readouterr().err


def test_the_corpus_of_training_gives_its_held_out_splits_alone(train, prepared, tmp_path):
    train()
    corpus = json.loads((prepared / "corpus/manifest.json").read_text())["corpus"]
    assert Path(corpus).is_file()  # also where the whole text is there to be read
    main(["eval", "--corpus", corpus])
    assert [row["split"] for row in results()["results"]] == ["validation", "test"]


def test_the_corpus_of_training_is_known_by_its_files_not_by_how_they_are_called(train, tmp_path, monkeypatch, capsys):
    source = tmp_path / "text" / "source.txt"
    source.parent.mkdir()
    source.write_text("".join(synthetic_articles(40)))
    monkeypatch.chdir(source.parent)
    assert main(command("data", corpus="source.txt", vocab_size=300, sequence_length=32, data_dir="../data")) == 0
    monkeypatch.chdir(tmp_path)
    train()
    for corpus in ("text/source.txt", "text/../text/source.txt", str(source)):
        assert main(["eval", "--corpus", corpus]) == 0
        assert [row["split"] for row in results()["results"]] == ["validation", "test"]
    Path("source.txt").write_text("".join(synthetic_articles(3, seed=1)))
    assert main(["eval", "--corpus", "source.txt"]) == 2  # which was prepared by that name, from elsewhere
    assert f"corpus=source.txt is another than {source}, which data/corpus was" in capsys.readouterr().err
    assert main(["eval", "--corpus", "./source.txt"]) == 0
    assert [row["split"] for row in results()["results"]] == ["all"]
    source.write_text("".join(synthetic_articles(41)))
    assert main(["eval", "--corpus", "text/source.txt"]) == 2
    assert f"corpus=text/source.txt has {source}, which data/corpus was prepared from" in capsys.readouterr().err


def test_text_that_an_older_run_may_have_seen_is_not_held_out_of_it(train, tmp_path, capsys):
    """Paragraphs that are put in move the borders between what is trained on and what is held out."""
    Path("book.txt").write_text("".join(synthetic_articles(40, seed=1)))
    data = command("data", corpus="book.txt", vocab_size=300, sequence_length=32)
    assert main(data) == 0
    assert train("mha") == 0 and main(["eval"]) == 0
    Path("book.txt").write_text("".join(synthetic_articles(3, seed=9) + synthetic_articles(40, seed=1)))
    assert main(data) == 0
    assert train("mha", run="second") == 0
    capsys.readouterr()
    assert main(["eval"]) == 2
    assert "model=weights/mha was trained on corpus=book.txt before that was prepared again" in capsys.readouterr().err
    assert main(["eval", "second/mha"]) == 0
    Path("new.txt").write_text("".join(synthetic_articles(3, seed=11)))
    assert main(["eval", "mha", "--corpus", "new.txt"]) == 0


def test_real_wikitext_is_evaluated_by_article(train):
    path = wikitext_file("wikitext-2.valid.txt")
    train()
    main(["eval", "--corpus", str(path)])
    (row,) = results()["results"]
    assert row["documents"] == 60
    assert row["bytes"] == path.stat().st_size and row["words"] == len(path.read_text(encoding="utf-8").split())


def test_generate_continues_a_prompt(train, capsys):
    train()
    capsys.readouterr()
    assert main(["generate", "mla", "--prompt", "the river", "--max-new-tokens", "8", "--seed", "4"]) == 0
    first = capsys.readouterr().out
    assert first.startswith("the river") and len(first) > len("the river\n")
    main(["generate", "mla", "--prompt", "the river", "--max-new-tokens", "8", "--seed", "4"])
    assert capsys.readouterr().out == first
    for flag, value, said in (("--max-new-tokens", "500", "=500"), ("--temperature", "1e-320", "at least 1e-06")):
        assert main(["generate", "mla", "--prompt", "the river", flag, value]) == 2
        refusal = capsys.readouterr()
        assert said in refusal.err and refusal.out == ""  # not even the prompt
    assert main(["generate", "mla", "--max-new-tokens", "0"]) == 2
    assert "max_new_tokens=0 must be at least 1" in capsys.readouterr().err
    assert main(["generate", "mla", "--prompt", "the \udce9 river"]) == 2
    assert "error: prompt holds \\udce9, half of a surrogate pair, at character 5" in capsys.readouterr().err


def damage_truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def damage_shape(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 8}))


def damage_mechanism(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"attention": "mha", "attention_options": None}))


def damage_missing(folder):
    weights = load_file(folder / "model.safetensors")
    weights.pop("model.norm.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def damage_config(folder):
    (folder / "config.json").write_text("{")


def damage_other_model(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 16}))


def damage_pickle(folder):
    class Exploit:
        def __reduce__(self):
            return Path.touch, (Path("owned").absolute(),)

    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Exploit()))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damage_truncate, "cannot be loaded"),
        (damage_shape, "mismatched keys"),
        (damage_mechanism, "do not fit its config.json"),
        (damage_missing, "missing keys: model.norm.weight"),
        (damage_config, "cannot be loaded"),
        (damage_other_model, "is a llama"),
        (damage_pickle, "pytorch_model.bin, a pickle that could run code and is never opened"),
    ],
)
def test_a_folder_that_is_no_whole_model_is_refused(tmp_path, monkeypatch, capsys, damage, said):
    monkeypatch.chdir(tmp_path)
    config = DecoderConfig(vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    DecoderForCausalLM(config).save_pretrained("weights/mla")
    damage(Path("weights/mla"))
    assert main(["generate", "mla"]) == 2
    error = capsys.readouterr().err
    assert said in error and "weights/mla" in error and "Traceback" not in error
    assert not Path("owned").exists()


def test_no_models_at_all_says_how_to_train_some(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["eval"]) == 2
    assert "holds no trained model; train some with: mla-experiments train" in capsys.readouterr().err


def test_the_context_is_that_of_training(train):
    train(max_steps=1)
    model = load_model("weights/mla")
    assert model.config.max_position_embeddings == TINY["sequence_length"]
    assert next(model.parameters()).dtype == torch.float32


def test_a_build_of_torch_for_gpus_works_where_there_is_none(train, monkeypatch):
    """Such a build, which plain `pip install torch` brings, names its accelerator before it has looked for one."""
    train("mla")
    monkeypatch.setattr(torch._C, "_accelerator_getAccelerator", lambda: torch.device("cuda"))
    assert torch.accelerator.current_accelerator().type == "cuda" and not torch.accelerator.is_available()
    model, _ = load_with_tokenizer(Path("weights/mla"))
    assert model.device.type == "cpu"
