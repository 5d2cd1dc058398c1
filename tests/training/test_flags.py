"""Every field of TrainingArguments does what it says, or is refused in one sentence that names it."""

from dataclasses import fields
from pathlib import Path

import pytest
from conftest import TINY, command
from test_identity import ELSEWHERE, OWN, RECOMPUTING, make  # noqa: F401 - a fixture
from transformers import TrainingArguments
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from mla_experiments.cli.parsing import parse
from mla_experiments.errors import UserError
from mla_experiments.run_files import read_metrics
from mla_experiments.study import read_study
from mla_experiments.training import PRESETS, RunArguments, flags, trainer_defaults, tried
from mla_experiments.training.arguments import trainer_arguments

THEIRS = [f.name for f in fields(TrainingArguments) if f.init]
YES = ("true", "perhaps")
SHARE = ("0.5", "1.5")
TRIED = {  # a value that is taken, one that is refused
    **dict.fromkeys(
        ("average_tokens_across_devices", "torch_compile", "logging_first_step", "log_on_each_node", "eval_on_start",
         "full_determinism", "use_cpu", "dataloader_pin_memory", "include_num_input_tokens_seen",
         "ddp_find_unused_parameters", "ddp_broadcast_buffers", "ddp_static_graph", "activation_checkpointing",
         "gradient_checkpointing"),
        YES,
    ),
    "tf32": ("false", "perhaps"), "dataloader_persistent_workers": ("true", "perhaps", "--dataloader_num_workers", "1"),
    "per_device_train_batch_size": ("2", "0"), "per_device_eval_batch_size": ("3", "0"), "max_steps": ("3", "0"),
    "learning_rate": ("0.1", "nan"), "lr_scheduler_type": ("linear", "parabola"),
    "lr_scheduler_kwargs": ('{"min_lr": 0.001}', "3"), "warmup_steps": ("0.5", "nan"), "optim": ("sgd", "lion_32bit"),
    "optim_args": ("momentum=0.5", "foo", "--optim", "sgd"), "weight_decay": ("0", "-1"), "adam_beta1": ("0", "1"),
    "adam_beta2": ("0.999", "2.0"), "adam_epsilon": ("0.1", "-1"), "max_grad_norm": ("0", "inf"),
    "gradient_accumulation_steps": ("1", "0"), "label_smoothing_factor": ("0.1", "1"),
    "torch_compile_backend": ("eager", "gcc"), "torch_compile_mode": ("default", "fastest"),
    "activation_checkpointing_kwargs": ('{"use_reentrant": false}', '{"a": 1}', "--activation_checkpointing"),
    "gradient_checkpointing_kwargs": ('{"use_reentrant": false}', '{"a": 1}', "--gradient_checkpointing"),
    "neftune_noise_alpha": ("5", "-1"), "torch_empty_cache_steps": ("1", "0"), "logging_strategy": ("no", "never"),
    "logging_steps": ("2", "0"), "log_level": ("error", "loud"), "log_level_replica": ("error", "loud"),
    "report_to": ("none", "nonsense"), "eval_strategy": ("epoch", "never"), "eval_steps": SHARE,
    "eval_delay": ("2", "-1"), "save_strategy": ("no", "best"), "save_steps": ("0.25", "-2"),
    "save_total_limit": ("1", "0"), "metric_for_best_model": ("eval_loss", "x"), "seed": ("7", "-1"),
    "dataloader_num_workers": ("1", "-1"), "dataloader_prefetch_factor": ("2", "0", "--dataloader_num_workers", "1"),
    "dataloader_multiprocessing_context": ("spawn", "magic", "--dataloader_num_workers", "1"),
    "ddp_bucket_cap_mb": ("25", "0"), "ddp_timeout": ("60", "0"), "debug": ("underflow_overflow", "all"),
}  # fmt: skip
REFUSED_HERE = {  # which need what is named in `test_identity.ELSEWHERE`
    "fsdp": "full_shard", "fsdp_config": "missing.json", "ddp_backend": "gloo", "optim_target_modules": "all-linear",
    "run_name": "x", "project": "x", "trackio_space_id": "x", "trackio_bucket_id": "x", "trackio_static_space_id": "x",
}  # fmt: skip


def built(*argv):
    """Return the Trainer's arguments that a command line makes, or raise what it ends with."""
    defaults = trainer_defaults() | PRESETS["demo"]
    own, given = parse([RunArguments, TrainingArguments], [*command(**TINY), *argv], "train", "", defaults)
    return trainer_arguments(RunArguments(**own), given, Path("unused"))


def refused(name, *argv):
    with pytest.raises(UserError) as caught:
        built(*argv)
    said = str(caught.value)
    assert name in said.replace("-", "_") and "\n" not in said and len(said) < 2000
    return said


def test_every_field_is_tried_here():
    known = [*TRIED, *REFUSED_HERE, *flags.REFUSED]
    assert len(known) == len(set(known)) and set(THEIRS) <= set(known)


@pytest.mark.parametrize("name", [name for name in THEIRS if name in TRIED])
def test_a_field_is_taken_where_it_can_be_and_refused_by_name_where_not(name):
    good, bad, *more = TRIED[name]
    if name in RECOMPUTING and name in ELSEWHERE:
        refused(name.removesuffix("_kwargs"), f"--{name}", good, *more)
    else:
        taken, plain = built(f"--{name}", good, *more), built()
        if good not in ("1", "none"):
            assert getattr(taken, name) != getattr(plain, name) or good in ("true", "false")
    refused(name.removesuffix("_kwargs") if name in ELSEWHERE else name, f"--{name}", bad, *more)


@pytest.mark.parametrize("name", [name for name in THEIRS if name in REFUSED_HERE])
def test_a_field_that_needs_more_than_is_here_says_so(name):
    refused(name, f"--{name}", REFUSED_HERE[name])


@pytest.mark.parametrize("name", [name for name in THEIRS if name in flags.REFUSED])
def test_what_is_decided_here_is_refused_and_says_what_to_do_instead(name, tmp_path):
    """With its own default too; in a study as on the command line."""
    for value in (getattr(TrainingArguments, name, None), "1"):
        with pytest.raises(UserError, match=f"{name}.* is not taken: "):
            flags.taken(trainer_defaults() | {name: 1 if value is None else value})
    path = tmp_path / "study.yaml"
    path.write_text(f"preset: demo\n{name}: [1, 2]\n")
    with pytest.raises(UserError, match=f"the field {name}, which"):
        read_study(path)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"learning_rate": "inf"}, "learning_rate=inf must be a positive number"),
        ({"eval_steps": "inf"}, "eval_steps=inf must be a whole number of steps"),
        ({"max_steps": 10**30}, "is more than anything trains on"),
        ({"train_tokens": 10**30}, "must be at most"),
        ({"validation_tokens": 0}, "validation_tokens=0 must be at least 1"),
        ({"seed": 2**32}, "seed=4294967296 must be a whole number from 0 and below 2^32"),
        ({"seed": 10**400}, "must be a whole number from 0 and below 2^32"),
        ({"lr_scheduler_kwargs": "{bad"}, "lr_scheduler_kwargs={bad cannot be"),
        ({"lr_scheduler_kwargs": '{"nope": 1}'}, "unexpected keyword argument 'nope'"),
        ({"lr_scheduler_type": "constant", "lr_scheduler_kwargs": '{"a": 1}'}, "has no effect on constant"),
        ({"lr_scheduler_type": "constant", "warmup_steps": 2}, "warmup_steps=2.0 has no effect on constant"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "no"}, "requires an eval strategy"),
        ({"optim_args": "foo=1"}, "optim_args=foo=1 has foo, of which optim=adamw_torch_fused takes no notice"),
        ({"optim": "sgd", "optim_args": "momentum=0.5,lr=1"}, "has lr, of which optim=sgd takes no notice"),
        ({"optim": "sgd", "optim_args": "momentum=x"}, "could not convert string to float"),
        ({"optim_target_modules": "all-linear"}, "has no effect on optim=adamw_torch_fused"),
        ({"report_to": "wandb"}, "report_to=wandb needs its package"),
        (
            {"attention_options": '{"mlaa": {"kv_lora_rank": 4}}'},
            "attention=mlaa is unknown; did you mean mla",
        ),
        ({"attention_options": '{"gqa": {"num_key_value_heads": 1}}'}, "attention_options has gqa, but attention=mla"),
    ],
)
def test_values_that_would_end_in_a_traceback_or_have_no_effect_are_one_sentence(train, capsys, values, said):
    assert train(**values) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
    assert not Path("weights").exists()


KWARGS = {"warmup_stable_decay": {"num_decay_steps": 2}}


@pytest.mark.parametrize("kind", [kind.value for kind in SchedulerType])
def test_every_schedule_trains(make, kind):  # noqa: F811
    run = make(lr_scheduler_type=kind, lr_scheduler_kwargs=KWARGS.get(kind), train_tokens=4 * 128, logging_steps=1)
    make.weights(run)
    rates = [entry["learning_rate"] for entry in read_metrics(run.folder) if "learning_rate" in entry]
    assert len(rates) == 4 and all(0 <= rate <= 0.003 for rate in rates) and max(rates) > 0
    if "min_lr" in kind:
        assert run.trainer_arguments.lr_scheduler_kwargs == {"min_lr_rate": 0.1}
    else:
        assert run.trainer_arguments.lr_scheduler_kwargs == KWARGS.get(kind)


@pytest.mark.parametrize("kind", [kind.value for kind in OptimizerNames])
def test_every_optimizer_trains_or_says_what_it_lacks(make, kind):  # noqa: F811
    try:
        run = make(optim=kind)
    except UserError as error:
        assert str(error).startswith(f"optim={kind} cannot be: ")
    else:
        assert make.weights(run)


def test_an_optimizer_that_fails_at_the_model_is_named(make, monkeypatch):  # noqa: F811
    from transformers import Trainer

    run = make()

    def broken(*args, **kwargs):
        raise ValueError("no target modules found")

    monkeypatch.setattr(Trainer, "create_optimizer", broken)
    with pytest.raises(UserError, match="optim=adamw_torch_fused cannot be: no target modules found"):
        make.weights(run)


@pytest.mark.parametrize("name", tried.OF_THE_ENVIRONMENT)
def test_what_the_environment_would_have_changed_in_a_run_is_refused(monkeypatch, name):
    monkeypatch.setenv(name, "NO" if "DYNAMO" in name else "false")  # as accelerate launch does
    built()
    monkeypatch.setenv(name, "INDUCTOR" if "DYNAMO" in name else "true")
    refused(name)


def test_the_environment_does_not_overrule_the_precision(make, monkeypatch):  # noqa: F811
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(UserError, match="ACCELERATE_MIXED_PRECISION=bf16"):
        make(precision="f32")


def test_no_warm_up_is_what_was_asked_for(make):  # noqa: F811
    assert make(warmup_steps=0).trainer_arguments.warmup_steps == 0
    assert make().trainer_arguments.warmup_steps == 1
