"""Two runs that differ in anything that decides weights are two runs: every field is tried, and so is the code."""

import hashlib
import json
import shutil
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType

import pytest
import torch
from conftest import TINY
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import TrainingArguments

from mla_experiments.data import load_tokenizer, load_tokens
from mla_experiments.errors import UserError
from mla_experiments.manifest import write_record
from mla_experiments.modeling import DecoderForCausalLM
from mla_experiments.modeling.attention import MHA, find
from mla_experiments.run_files import read_metrics, read_run
from mla_experiments.training import PRESETS, RunArguments, identity, imported, trainer_defaults
from mla_experiments.training.flags import REFUSED
from mla_experiments.training.run import Run

SMALL = TINY | {"train_tokens": 2 * 128, "warmup_tokens": 128, "validation_tokens": 64, "save_steps": 2}
OWN = [f.name for f in fields(RunArguments) if f.init]
ALL = [*OWN, *(f.name for f in fields(TrainingArguments) if f.init and f.name not in REFUSED)]
OTHER = {  # another value of a field, with what it needs
    "attention": ["gqa"], "preset": "reference", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 24, "positions": "learned", "attention_options": '{"mla": {"kv_lora_rank": 6}}',
    "precision": "bf16", "train_tokens": 3 * 128, "max_steps": 3, "warmup_tokens": 0, "warmup_steps": 2,
    "batch_size": 8, "sequence_length": 16, "validation_tokens": 128, "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
    "lr_scheduler_type": "linear", "lr_scheduler_kwargs": {"min_lr_rate": 0.5}, "optim": "adafactor",
    "optim_args": {"optim": "sgd", "optim_args": "momentum=0.5"}, "adam_beta1": 0.5, "tf32": False,
    "label_smoothing_factor": 0.3, "neftune_noise_alpha": 5.0, "torch_compile_backend": "eager",
    "torch_compile_mode": "lite", "torch_empty_cache_steps": 1, "logging_strategy": "epoch", "log_level": "error",
    "log_level_replica": "error", "report_to": "all", "eval_strategy": "epoch", "eval_steps": 1,
    "metric_for_best_model": "eval_loss", "save_strategy": "epoch", "save_total_limit": 1, "seed": 1,
    "include_num_input_tokens_seen": "all", "dataloader_num_workers": 1,
    "dataloader_persistent_workers": {"dataloader_persistent_workers": True, "dataloader_num_workers": 1},
    "dataloader_prefetch_factor": {"dataloader_prefetch_factor": 3, "dataloader_num_workers": 1},
    "dataloader_multiprocessing_context": {"dataloader_multiprocessing_context": "fork",
                                           "dataloader_num_workers": 1},
    "activation_checkpointing_kwargs": {"activation_checkpointing": True,
                                        "activation_checkpointing_kwargs": {"use_reentrant": False}},
    "gradient_checkpointing_kwargs": {"gradient_checkpointing": True,
                                      "gradient_checkpointing_kwargs": {"use_reentrant": False}},
    "activation_checkpointing": True, "gradient_checkpointing": True, "ddp_bucket_cap_mb": 1,
    "ddp_find_unused_parameters": True, "ddp_broadcast_buffers": True, "ddp_static_graph": True, "ddp_timeout": 60,
    "debug": "underflow_overflow", "adam_epsilon": 1e-3,
    "initialization": "zero", "optimizer": "muon", "output_gate": "head", "sliding_window": 8,
    "qk_norm": {"qk_norm": True, "attention": ["mha"]},
    "layer_types": {"layer_types": ["full_attention"], "sliding_window": 8},
}  # fmt: skip
ELSEWHERE = {  # not to be had on a CPU, without a package, or with text
    "fsdp": "GPUs", "fsdp_config": "GPUs", "ddp_backend": "several processes",
    "optim_target_modules": "a package of GaLore or APOLLO", "loss_on": "a synthetic corpus",
    **dict.fromkeys(("run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
                    "a package of --report_to"),
}  # fmt: skip
RECOMPUTING = [name for name in ALL if name.startswith(("activation_checkpointing", "gradient_checkpointing"))]
if not DecoderForCausalLM.supports_gradient_checkpointing:
    ELSEWHERE |= dict.fromkeys(RECOMPUTING, "a model that computes activations again")


def other_value(name):
    if name in OTHER:
        return OTHER[name] if isinstance(OTHER[name], dict) and name in OTHER[name] else {name: OTHER[name]}
    default = next(f.default for cls in (RunArguments, TrainingArguments) for f in fields(cls) if f.name == name)
    given = (trainer_defaults() | SMALL).get(name, default)
    if isinstance(given, bool):
        return {name: not given}
    return {name: given / 2 + 0.1 if isinstance(given, float) else given + 1 if isinstance(given, int) else "other"}


@pytest.fixture(scope="module")
def make(_prepared, tmp_path_factory):
    """Make runs of a tiny model over the same data."""
    tokens, manifest = load_tokens(_prepared / "tokens", _prepared / "tokenizer")
    tokenizer, root = load_tokenizer(_prepared / "tokenizer"), tmp_path_factory.mktemp("runs")

    def run(**changed):
        values = PRESETS["demo"] | SMALL | {"attention": ["mla"]} | changed
        own = {name: value for name, value in values.items() if name in OWN}
        flags = trainer_defaults() | {name: value for name, value in values.items() if name not in OWN}
        number = len(list(root.iterdir()))
        (root / str(number)).mkdir()
        return Run(root / str(number) / "run", own["attention"][0], RunArguments(**own), flags, manifest)

    def weights(made):
        made.train(tokens, tokenizer, lambda _: None)
        return load_file(made.folder / "model.safetensors")

    run.weights, run.tokens, run.tokenizer = weights, tokens, tokenizer
    return run


@pytest.fixture(scope="module")
def plain(make):
    """A run, and its weights."""
    run = make()
    return run, make.weights(run)


def test_fields_are_named_once():
    tables = [identity.IN_OTHER_WORDS, identity.HARMLESS, identity.SAID, REFUSED]
    named = [name for table in tables for name in table]
    assert len(named) == len(set(named))
    assert all(reason for table in tables for reason in table.values())


@pytest.mark.parametrize("name", sorted(set(ALL) - set(ELSEWHERE)))
def test_a_run_with_another_value_is_another_run_or_has_the_same_weights(make, plain, name):
    run = make(**other_value(name))
    first, weights = plain
    if (run.identity.determines, run.identity.said) != (first.identity.determines, first.identity.said):
        return
    assert name in identity.HARMLESS | identity.IN_OTHER_WORDS
    trained = make.weights(run)
    assert trained.keys() == weights.keys()
    assert all(torch.equal(trained[tensor], weights[tensor]) for tensor in weights)


def test_what_cannot_be_tried_here_counts_or_is_known_to_do_no_harm():
    for name in ELSEWHERE:
        if name in ALL:
            assert name in identity.HARMLESS | identity.SAID or name in identity.counting()


def test_a_field_that_nobody_knows_counts(monkeypatch):
    @dataclass
    class Later(TrainingArguments):
        of_tomorrow: float = 0.5

    monkeypatch.setattr(identity, "TrainingArguments", Later)
    assert "of_tomorrow" in identity.counting()


def test_what_steers_a_schedule_counts_and_parts_of_a_batch_count_where_noise_is_drawn_for_each(make):
    for kind, counts in (("linear", False), ("reduce_lr_on_plateau", True), ("greedy", True)):
        runs = [make(lr_scheduler_type=kind, eval_steps=steps).identity for steps in (1, 2)]
        assert (runs[0].determines != runs[1].determines) == counts
    for noise, counts in ((None, False), (5.0, True)):
        runs = [make(neftune_noise_alpha=noise, per_device_train_batch_size=size).identity for size in (2, 4)]
        assert (runs[0].determines != runs[1].determines) == counts


def test_validation_is_plain_cross_entropy_whatever_is_trained_on(make):
    losses, runs = {}, {}
    for smoothing in (0.0, 0.3):
        runs[smoothing] = make(label_smoothing_factor=smoothing, eval_on_start=True, logging_steps=1)
        make.weights(runs[smoothing])
        losses[smoothing] = read_metrics(runs[smoothing].folder)
    at_start = [next(entry["eval_loss"] for entry in losses[s] if "eval_loss" in entry) for s in losses]
    assert at_start[0] == at_start[1], "the same weights, the same loss"
    trainer = runs[0.3]._trainer(make.tokens, make.tokenizer, lambda _: None)[0]
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(4)])
    logits = trainer.model(batch["input_ids"]).logits
    expected = F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), label_smoothing=0.3)
    first = next(entry["loss"] for entry in losses[0.3] if "loss" in entry)
    assert first == pytest.approx(expected.item(), rel=1e-5), "no token further on"


OLD = identity.RECORDED_FIRST


def as_it_was_recorded_first(folder, **facts):
    """Take out of a record what runs did not say at first."""
    facts = read_run(folder) | facts
    facts = {name: value for name, value in facts.items() if name not in ("said", "sources", "before")}
    facts["identity"] = {name: value for name, value in facts["identity"].items() if name in OLD}
    facts["versions"] = {name: value for name, value in facts["versions"].items() if name != "mla-experiments"}
    write_record(folder / "run.json", facts)


def test_runs_of_old_count_and_go_on_and_what_is_not_known_of_them_is_said(train, capsys):
    train(save_steps=4)
    folder = Path("weights/mla")
    as_it_was_recorded_first(folder)
    capsys.readouterr()
    assert train(save_steps=4) == 0
    said = capsys.readouterr().out
    assert "already trained" in said and "did not record label_smoothing_factor" in said.replace("\n", " ")
    assert train(save_steps=4, label_smoothing_factor=0.3) == 2
    assert "differs in label_smoothing_factor (not recorded, now 0.3)" in capsys.readouterr().err
    as_it_was_recorded_first(folder, status="running")
    assert train(save_steps=4, resume=True, label_smoothing_factor=0.3) == 2
    assert "label_smoothing_factor" in capsys.readouterr().err
    assert train(save_steps=4, resume=True) == 0
    assert capsys.readouterr().out.count("was begun by a version that did not record") == 1
    assert read_run(folder)["before"] == [{"versions": read_run(folder)["before"][0]["versions"], "sources": None}]
    assert train(save_steps=4) == 0
    assert "did not record" not in capsys.readouterr().out


def test_runs_that_differ_in_one_field_are_told_apart(train, capsys):
    train()
    assert train(label_smoothing_factor=0.3) == 2
    assert "differs in label_smoothing_factor (0.0, now 0.3)" in capsys.readouterr().err
    assert train(per_device_train_batch_size=2) == 0
    assert "with per_device_train_batch_size (4, now 2: sums in another order)" in capsys.readouterr().out


def test_other_code_is_said_and_asked_to_be_accepted(train, capsys):
    train(save_steps=4)
    folder = Path("weights/mla")
    by_other = read_run(folder) | {"sources": "0" * 64}
    write_record(folder / "run.json", by_other)
    assert train(save_steps=4) == 2
    said = capsys.readouterr()
    assert "holds this run by other code: sources (000000000000, now " in said.err and "--accept_changes" in said.err
    assert "already trained" not in said.out
    assert train(save_steps=4, accept_changes=True) == 0
    assert "already trained with this configuration, by other code: sources (" in capsys.readouterr().out
    write_record(folder / "run.json", by_other | {"status": "running"})
    assert train(save_steps=4, resume=True) == 2
    assert "by other code" in capsys.readouterr().err
    assert train(save_steps=4, resume=True, accept_changes=True) == 0
    assert "was begun by other code, as accepted: sources (000000000000, now " in capsys.readouterr().out
    assert [one["sources"] for one in read_run(folder)["before"]] == ["0" * 64]
    versions = read_run(folder)["versions"] | {"mla-experiments": "0.0.1"}
    write_record(folder / "run.json", read_run(folder) | {"versions": versions})
    assert train(save_steps=4) == 2
    assert "by other code: version (0.0.1, now " in capsys.readouterr().err


def test_the_code_of_a_mechanism_counts_and_its_comments_do_not(tmp_path, monkeypatch):
    for name in ("kernels", "modeling", "training", "data"):
        shutil.copytree(identity.PACKAGE / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(identity, "PACKAGE", tmp_path)

    def hashed(attention: str) -> str:
        identity.own_sources.cache_clear()
        return identity.sources_hash.__wrapped__(attention)

    before, path = hashed("mla"), tmp_path / "modeling" / "attention" / "mla.py"
    path.write_text(path.read_text() + "\n# a thought\n")
    assert hashed("mla") == before
    path.write_text(path.read_text() + "\nSCALE = 3\n")
    assert hashed("mla") != before
    c = next((tmp_path / "kernels").glob("*.c"))
    now = hashed("mla")
    c.write_text(c.read_text().replace("+", "-", 1))
    assert hashed("mla") != now
    identity.own_sources.cache_clear()


def test_all_that_a_mechanism_imports_counts_but_what_is_installed_for_good(tmp_path, monkeypatch):
    """A package that is installed to be edited does, and so do the packages around a module."""
    place, installed = tmp_path / "own", tmp_path / "site-packages"
    for path, text in {
        place / "mine/__init__.py": "", place / "mine/parts/__init__.py": "", place / "mine/parts/helper.py": "",
        installed / "theirs/__init__.py": "", place / "mine-1.dist-info/METADATA": "Name: mine\nVersion: 1\n",
        place / "mine-1.dist-info/top_level.txt": "mine\n",
        tmp_path / "mechanism.py": "import json, theirs, torch\nimport mine.parts.helper\n",
    }.items():  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for folder in (place, installed):
        monkeypatch.syspath_prepend(folder)
    found = imported.imported_files(tmp_path / "mechanism.py", "mechanism")
    assert set(found) == {"mine", "mine.parts", "mine.parts.helper"}


def test_a_mechanism_s_file_that_is_edited_while_a_command_runs_is_refused(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("from mla_experiments import MHA\n\nclass Mine(MHA):\n    description = 'mine'\n")
    name = find(f"{path}:Mine")
    assert identity.sources_hash.__wrapped__(name)
    path.write_text(path.read_text() + "    scale = 2\n")
    with pytest.raises(UserError, match=r"mine\.py was edited while this command ran"):
        identity.sources_hash.__wrapped__(name)


def test_a_study_finds_the_folders_of_runs_that_recorded_less(make):
    run, preset = make(), PRESETS["demo"]
    first = {name: run.identity.determines[name] for name in OLD}
    stated = preset | {name: SMALL[name] for name in ("per_device_train_batch_size", "validation_tokens")}
    assert run.identity.digest(stated) == hashlib.sha256(json.dumps(first, sort_keys=True).encode()).hexdigest()[:12]
    digests = {make(**other).identity.digest(preset) for other in (
        {}, {"label_smoothing_factor": 0.3}, {"per_device_train_batch_size": 2}, {"torch_compile_backend": "eager"},
        {"lr_scheduler_type": "reduce_lr_on_plateau"},
        {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_steps": 1},
    )}  # fmt: skip
    assert len(digests) == 6


def test_a_mechanism_that_stands_in_no_file_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "notebook_cells", ModuleType("notebook_cells"))
    typed_in = type("TypedIn", (MHA,), {"__module__": "notebook_cells"})
    with pytest.raises(UserError, match="attention=typed stands in no file"):
        identity.file_of("typed", typed_in)
