"""`bench all` saves each part as it ends, goes on after one that fails, and stops where the time is over."""

import json

import pytest
import torch

from mla_experiments.benchmark import everything, training
from mla_experiments.benchmark.everything import Arguments, Sizes, measure
from mla_experiments.errors import UserError
from mla_experiments.kernels import latent

TINY = Sizes(torch.float32, ((1, 16), (2, 32)), (16,), (1, 16), ((2, 32),), 1)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(everything, "ceilings", lambda *_: {"GFLOP/s": 100.0, "GB/s": 10.0})
    shape = {"vocab_size": 100, "hidden_size": 128, "num_attention_heads": 4, "num_hidden_layers": 2}
    monkeypatch.setattr(training, "SHAPE", shape)
    monkeypatch.setattr(everything, "LATENT_SHAPES", {"small": (16, 32, 8)})


def rows_of(folder, part):
    return json.loads((folder / f"{part}.json").read_text())


def test_every_part_is_saved_with_the_machine(quick, tmp_path):
    out = tmp_path / "all"
    summary = measure(Arguments(out=str(out), attention=["mla"]), TINY)
    assert [row["part"] for row in summary] == list(everything.PARTS)
    assert all(row["ended early"] is None and row["rows"] > 0 for row in summary)
    for part in everything.PARTS:
        assert rows_of(out, part)["machine"]["versions"] and rows_of(out, part)["ceilings"]["GB/s"] == 10.0
    kernels = rows_of(out, "kernels")["rows"]
    assert {row["backend"] for row in kernels} >= {name for name in ("c", "torch") if not latent.reasons()[name]}
    assert all(float(row["error"]) < 1e-4 for row in kernels)
    decoding = rows_of(out, "decoding")["rows"]
    assert {row["model"] for row in decoding} == {"mla, ours", "mla, transformers"} and len(decoding) == 4
    by_cache = {row["cache"]: row["bytes/token"] for row in rows_of(out, "caches")["rows"]}
    assert by_cache == {"float32": 2 * 144 * 4, "bf16": 2 * 144 * 2, "int8": 2 * (144 + 8)}
    assert all(row["MFU, %"] > 0 for row in rows_of(out, "training")["rows"])
    text = (out / "summary.md").read_text()
    assert all(f"## {part}" in text for part in everything.PARTS)


def test_a_part_that_fails_keeps_what_it_had_and_the_others_go_on(quick, tmp_path, monkeypatch):
    def failing(*_):
        yield {"rows": 1}
        raise RuntimeError("CUDA error: an illegal instruction")

    monkeypatch.setattr(everything, "PARTS", {"first": failing, "second": lambda *_: iter([{"rows": 2}])})
    summary = measure(Arguments(out=str(tmp_path / "all"), attention=["mla"]), TINY)
    assert [row["rows"] for row in summary] == [1, 1]
    assert "illegal instruction" in rows_of(tmp_path / "all", "first")["why"]
    assert rows_of(tmp_path / "all", "second")["rows"] == [{"rows": 2}]


def test_no_part_begins_when_the_time_is_over(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(everything, "PARTS", {"late": lambda *_: iter([{"rows": 1}])})
    (row,) = measure(Arguments(out=str(tmp_path / "all"), attention=["mla"], minutes=0.0), TINY)
    assert row["rows"] == 0 and row["ended early"] == "0 minutes were over"


def test_a_folder_in_use_is_kept(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is there already and is kept"):
        measure(Arguments(out=str(tmp_path)), TINY)


def test_a_mechanism_that_is_unknown_is_said_before_anything_is_measured(tmp_path):
    with pytest.raises(UserError, match="attention=foo is unknown"):
        measure(Arguments(attention=["foo"], out=str(tmp_path / "out")), TINY)
    assert not (tmp_path / "out").exists()
