"""Studies whose variants keep their caches in fewer bits: one training, scored each way, and budgets in these bytes."""

import json

import numpy as np
import pytest
import torch
import yaml

from mla_experiments.benchmark.costs import skeleton
from mla_experiments.cli import main
from mla_experiments.data.synthetic import task_of
from mla_experiments.errors import UserError
from mla_experiments.evaluation.scores import scores_of
from mla_experiments.modeling import DecoderConfig, DecoderForCausalLM, set_cache_dtype
from mla_experiments.report.findings import read_findings
from mla_experiments.study.description import read_study
from mla_experiments.study.matching import match

STATED = {
    "corpus": "synthetic:needle:noise=8,keys=8", "attention": ["mha", "mla"], "cache_dtype": ["f32", "int8"],
    "preset": "demo", "sequence_length": 16, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "train_tokens": 640, "warmup_tokens": 128, "batch_size": 8, "per_device_train_batch_size": 8,
    "validation_tokens": 128, "learning_rate": [1.0e-3, 1.0e-2], "seeds": [0],
}  # fmt: skip


def stated(folder, **more):
    path = folder / "kept.yaml"
    path.write_text(yaml.safe_dump(STATED | more))
    return path


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["study", str(stated(folder))]) == 0
        assert main(["report", "studies/kept"]) == 0
    return folder / "studies" / "kept"


def test_a_model_is_trained_once_and_scored_with_every_cache(study):
    found = read_findings(study)
    assert [row.name for row in found.rows] == [
        f"{name} cache={dtype}" for name in ("mha", "mla") for dtype in ("f32", "int8")
    ]
    of_mha, of_mla = [row.runs for row in found.rows[:2]], [row.runs for row in found.rows[2:]]
    assert of_mha[0] == of_mha[1] != of_mla[0] == of_mla[1]
    assert len(list((study.parent / "runs").glob("m*"))) == 2 * 3  # two rates tried, one trained again
    # a row of 8 numbers of f32, and of 8 of int8 with a scale; MLA: a latent and a rotary key in one row
    assert [row.cache_bytes for row in found.rows[:2]] == [2 * 2 * 8 * 4, 2 * 2 * (8 + 4)]
    config = DecoderConfig.from_pretrained(next(iter(of_mla[0].values())))
    numbers = skeleton(config).model.layers[0].self_attn.cache_elements_per_token()
    assert [row.cache_bytes for row in found.rows[2:]] == [4 * numbers, numbers + 2 * 4]
    assert len(found.comparisons) == 6  # of four that one may choose from, as the report's answer does


def test_scores_are_those_of_decoding_from_such_a_cache(study):
    row = next(row for row in read_findings(study).rows if row.name == "mha cache=int8")
    (folder,) = row.runs.values()
    model = DecoderForCausalLM.from_pretrained(folder).eval()
    set_cache_dtype(model, "int8")
    task = task_of(STATED["corpus"])
    rows = task.block(16, "test", 0, 0)
    symbols, asked = torch.from_numpy(rows.symbols[:3].astype(np.int64)), rows.answers[:3]
    nats, cache = np.zeros(3), None
    with torch.inference_mode():
        for place in range(symbols.shape[1] - 1):
            out = model(symbols[:, place : place + 1], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            logs = out.logits[:, -1].double().log_softmax(-1)
            nats -= logs.gather(1, symbols[:, place + 1 :][:, :1])[:, 0].numpy() * asked[:, place + 1]
    kept, exact = (scores_of(folder, dtype)["test"].nats[:3] for dtype in ("int8", "f32"))
    assert kept == pytest.approx(nats, rel=1e-5)
    assert np.abs(kept - exact).max() > 1e-5  # or the test could not tell


def test_the_report_and_compare_name_the_cache(study, capsys):
    assert "mla cache=int8" in (study / "report.md").read_text()
    assert main(["compare", str(study)]) == 0
    assert "mha cache=f32" in capsys.readouterr().out
    runs = {run["variant"]: run["folder"] for run in json.loads((study / "study.json").read_text())["runs"]}
    assert runs["mha cache=f32"] == runs["mha cache=int8"]


def test_a_budget_is_of_the_bytes_that_are_kept(tmp_path):
    more = {"match": "cache", "cache_bytes_per_token": 64, "hidden_size": 64, "attention": ["mqa", "mla"]}
    ranks = {one.variant.name: one for one in match(read_study(stated(tmp_path, **more)), 60) if one.options}
    few, many = (ranks[f"mla cache={dtype}"] for dtype in ("f32", "int8"))
    assert abs(few.cache_bytes_per_token - 64) <= 4 and abs(many.cache_bytes_per_token - 64) <= 4
    assert many.options["kv_lora_rank"] > 3 * few.options["kv_lora_rank"]
    assert many.cache_bytes[512] == 512 * many.cache_bytes_per_token


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"cache_dtype": "int4"}, "cache_dtype=int4"),
        ({"cache_dtype": ["int8", "int8"]}, "names int8 twice"),
        ({"cache_dtype": []}, "leaves nothing to run"),
        ({"sliding_window": 4}, "is not kept by layers with sliding_window=4"),
    ],
)
def test_a_cache_that_cannot_be_is_refused_before_anything_is_run(tmp_path, more, said):
    with pytest.raises(UserError) as error:
        match(read_study(stated(tmp_path, **more)), 60)
    assert said in str(error.value)
