"""Full disks, Ctrl-C and hostile files: one sentence each, and nothing that was whole is lost."""

import contextlib
import json
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import full_disk
from processes import (
    ENDLESS,
    PATIENCE,
    environment,
    in_background,
    started,
    training,
    wait_for,
    wait_for_text,
    wait_until_it_trains,
)
from safetensors.torch import load_file
from transformers import Trainer, TrainerControl

from mla_experiments.cli import main
from mla_experiments.manifest import write_record
from mla_experiments.modeling import DecoderForCausalLM
from mla_experiments.run_files import read_run
from mla_experiments.training import callbacks, checkpoints
from mla_experiments.training.callbacks import StopInGoodOrder


def test_a_stopped_run_is_resumable_and_says_how(prepared, tmp_path):
    with started(training(**ENDLESS), tmp_path) as process:
        wait_until_it_trains(process, tmp_path)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, said
    assert "Traceback" not in said and "--resume" in said
    (checkpoint,) = checkpoints.in_order(tmp_path / "weights/mla")
    assert checkpoints.is_whole(checkpoint)


def test_a_run_in_the_background_says_at_its_start_how_it_is_stopped_and_is_deaf_to_ctrl_c(prepared, tmp_path):
    """SIGTERM comes twice, as where it comes from the system and from a parent process."""
    with started(in_background(training(**ENDLESS)), tmp_path) as process:
        wait_for_text(process, f"Ctrl-C is ignored here, as in jobs in the background; `kill {process.pid}` saves")
        assert not (tmp_path / "weights/mla/metrics.jsonl").exists()
        wait_until_it_trains(process, tmp_path)
        process.send_signal(signal.SIGINT)
        steps = (tmp_path / "weights/mla/metrics.jsonl").read_text().count("\n")
        wait_for(lambda: (tmp_path / "weights/mla/metrics.jsonl").read_text().count("\n") > steps + 5, process)
        process.send_signal(signal.SIGTERM)
        wait_for_text(process, "Stopping")
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, said
    assert "Ctrl-C again" not in said and "Traceback" not in said and "--resume" in said
    (checkpoint,) = checkpoints.in_order(tmp_path / "weights/mla")
    assert checkpoints.is_whole(checkpoint)


def test_a_second_ctrl_c_ends_at_once(train, monkeypatch, capsys):
    """While a checkpoint is being saved."""
    saved, listening = [], [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    def slow(*_):
        signal.raise_signal(signal.SIGINT)
        assert "press Ctrl-C again" in capsys.readouterr().out
        signal.raise_signal(signal.SIGINT)
        saved.append("in spite of that")

    monkeypatch.setattr(Trainer, "_save_checkpoint", slow)
    assert train(save_steps=4) == 130
    assert not saved and "Stopped at once" in "".join(capsys.readouterr())
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == listening


def test_what_is_said_in_the_middle_of_a_print_is_said(tmp_path):
    """The buffer that a signal interrupts takes no second text: Python raises RuntimeError there."""
    code = (
        "import io, sys\n"
        "from mla_experiments.stopping import say\n"
        "class Interrupted(io.RawIOBase):\n"
        "    fileno = lambda self: 1\n"
        "    writable = lambda self: True\n"
        "    def write(self, text):\n"
        "        say('a checkpoint is being saved')\n"
        "        return len(text)\n"
        "sys.stdout = io.TextIOWrapper(io.BufferedWriter(Interrupted()))\n"
        "print('step 3', flush=True)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert result.stdout.startswith("a checkpoint is being saved\n") and result.stderr == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_does_not_wait_for_the_end_of_a_long_validation(train, monkeypatch, capsys, number):
    """Nor for its second batch."""
    forward, batches = DecoderForCausalLM.forward, []

    def stopped(model, *args, **kwargs):
        if not model.training:
            batches.append(1)
            signal.raise_signal(number)
        return forward(model, *args, **kwargs)

    monkeypatch.setattr(DecoderForCausalLM, "forward", stopped)
    assert train(validation_tokens=10_000, per_device_eval_batch_size=1) == 130
    assert batches == [1] and "checkpoint-5 is saved" in capsys.readouterr().out
    assert checkpoints.is_whole(Path("weights/mla/checkpoint-5"))


def test_a_full_disk_leaves_the_checkpoint_before(train, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        save = Trainer._save_checkpoint

        def full(trainer, *args):
            with full_disk(6000) if trainer.state.global_step > 4 else contextlib.nullcontext():
                save(trainer, *args)

        patch.setattr(Trainer, "_save_checkpoint", full)
        assert train() == 2
    said = capsys.readouterr().err
    assert "checkpoint-8 could not be written" in said and "--resume" in said and "Traceback" not in said
    assert [path.name for path in checkpoints.in_order(Path("weights/mla"))] == ["checkpoint-4"]
    assert checkpoints.is_whole(Path("weights/mla/checkpoint-4"))
    assert train(resume=True) == 0


def test_a_run_killed_while_it_wrote_its_first_record_begins_anew(train):
    folder = Path("weights/mla")
    folder.mkdir(parents=True)
    (folder / ".run.json.partial").write_text("{")
    assert train(resume=True) == 0


def test_a_damaged_record_of_a_run_is_named_and_the_run_kept(train, capsys):
    train()
    path = Path("weights/mla/run.json")
    path.write_text(path.read_text().replace('"status": "finished"', '"status": "running"'))
    assert train(resume=True) == 2
    assert "weights/mla holds a damaged run.json" in capsys.readouterr().err
    assert Path("weights/mla/model.safetensors").is_file()


def test_a_checkpoint_is_whole_only_with_every_byte(tmp_path):
    folder = tmp_path / "checkpoint-3"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "state.json").write_text("{}")
    assert not checkpoints.is_whole(folder)
    checkpoints.seal(folder)
    assert checkpoints.is_whole(folder)
    for damage in (b"weightt", b"weight", b""):
        (folder / "model.safetensors").write_bytes(damage)
        assert not checkpoints.is_whole(folder)
    (folder / "model.safetensors").unlink()
    assert not checkpoints.is_whole(folder)
    (folder / checkpoints.SEAL).write_text(json.dumps({}))
    assert not checkpoints.is_whole(folder)


class Exploit:
    """Unpickling this writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_checkpoint_with_a_malicious_pickle_does_not_run_it(train, capsys):
    train(save_steps=4)
    folder = Path("weights/mla/checkpoint-8")
    evil = pickle.dumps(Exploit(Path("owned").absolute()))
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        (folder / name).write_bytes(evil)
    checkpoints.seal(folder)  # even a sealed one
    write_record(Path("weights/mla/run.json"), read_run(Path("weights/mla")) | {"status": "running"})
    for later in checkpoints.in_order(Path("weights/mla")):
        if checkpoints.step_of(later) > 8:
            (later / checkpoints.SEAL).unlink()
    capsys.readouterr()
    assert train(save_steps=4, resume=True) == 2
    assert "checkpoint-8 holds a pickle that could run code" in capsys.readouterr().err
    assert not Path("owned").exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_its_batch(train, tmp_path, monkeypatch, capsys):
    forward = DecoderForCausalLM.forward

    def broken(model, *args, **kwargs):
        output = forward(model, *args, **kwargs)
        calls.append(model.training)
        if model.training and sum(calls) == 7:
            output.loss = output.loss * float("nan")
        return output

    calls: list[bool] = []
    monkeypatch.setattr(DecoderForCausalLM, "forward", broken)
    listening = signal.getsignal(signal.SIGTERM)
    assert train(save_steps=4) == 2
    assert signal.getsignal(signal.SIGTERM) == listening
    said = capsys.readouterr().err
    assert "error: loss is nan at step 7" in said and "the last good checkpoint is weights/mla/checkpoint-4" in said
    batch = load_file(tmp_path / "weights/mla/not-finite-at-step-7-process-0.safetensors")
    assert batch["input_ids"].shape == (4, 32)
    monkeypatch.setattr(DecoderForCausalLM, "forward", forward)
    assert train(save_steps=4, resume=True) == 0, "nothing that was whole is lost"


def test_a_gradient_that_is_not_finite_spoils_no_weights(train, monkeypatch, capsys):
    """At a step that is saved: a finite loss hides the damage until the next one."""
    forward, calls = DecoderForCausalLM.forward, []

    def broken(model, *args, **kwargs):
        output = forward(model, *args, **kwargs)
        calls.append(model.training)
        if model.training and sum(calls) == 8:
            output.loss = output.loss + (0 * model.lm_head.weight.sum()).sqrt()
            assert output.loss.isfinite()
        return output

    monkeypatch.setattr(DecoderForCausalLM, "forward", broken)
    assert train() == 2
    said = capsys.readouterr().err
    assert (
        "error: grad_norm is nan at step 8" in said and "the last good checkpoint is weights/mla/checkpoint-4" in said
    )
    assert [folder.name for folder in checkpoints.in_order(Path("weights/mla"))] == ["checkpoint-4"]
    monkeypatch.setattr(DecoderForCausalLM, "forward", forward)
    assert train(resume=True) == 0


def test_a_second_process_on_a_run_is_refused_and_a_dead_one_holds_nobody(prepared, tmp_path, train, capsys):
    holder = (
        "import sys, time\nfrom filelock import FileLock\n"
        f"lock = FileLock(sys.argv[1])\nlock.acquire()\nprint('held', flush=True)\ntime.sleep({PATIENCE})"
    )
    (tmp_path / "weights").mkdir()
    argv = [sys.executable, "-c", holder, str(tmp_path / "weights" / ".mla.lock")]
    with started(argv, tmp_path) as process:
        wait_for_text(process, "held")
        assert train() == 2
        assert "weights/mla is being trained by another process" in capsys.readouterr().err
        assert not (tmp_path / "weights" / "mla").exists()
    assert train() == 0


def stop_when(monkeypatch, moment, times):
    """Send the signal to stop at a moment of the run, a number of times: each once in a process's life."""
    asked, inner = [], getattr(StopInGoodOrder, moment)

    def stop(callback, args, state, control, **kwargs):
        if state.global_step in times and not callback.asked and len(asked) < times[state.global_step]:
            asked.append(True)
            callback.ask(signal.SIGTERM, None)
        return inner(callback, args, state, control, **kwargs)

    monkeypatch.setattr(StopInGoodOrder, moment, stop)


def equal_to_the_bit(*runs):
    for name in ("model.safetensors", "metrics.jsonl"):
        first, *others = (Path(f"weights/{run}/mla/{name}").read_bytes() for run in runs)
        assert all(other == first for other in others)


@pytest.mark.parametrize(("step", "times"), [(5, 1), (5, 2), (10, 1), (10, 2)])
def test_a_validation_that_was_stopped_is_made_up_for(train, monkeypatch, step, times):
    """In the middle of the run, at its end, and stopped once more while it is made up for."""
    train(run="whole", save_steps=4)
    stop_when(monkeypatch, "on_prediction_step", {step: times})
    for life in range(times):
        assert train(run="stopped", save_steps=4, resume=life > 0) == 130
        last = checkpoints.in_order(Path("weights/stopped/mla"))[-1]
        assert last.name == f"checkpoint-{step}", "saved although its validation was not finished"
    assert train(run="stopped", save_steps=4, resume=True) == 0
    equal_to_the_bit("whole", "stopped")


@pytest.mark.parametrize(
    ("moment", "step", "flags"),
    [
        ("on_prediction_step", 5, {"metric_for_best_model": "eval_loss"}),
        ("on_prediction_step", 0, {"eval_on_start": True}),
        ("on_step_end", 5, {"eval_strategy": "no"}),
        ("on_step_end", 5, {"eval_delay": 6}),
        ("on_substep_end", 5, {"logging_strategy": "epoch", "per_device_train_batch_size": 2}),
        (
            "on_prediction_step",
            4,
            {
                "lr_scheduler_type": "reduce_lr_on_plateau",
                "eval_steps": 2,
                "lr_scheduler_kwargs": '{"patience": 0, "threshold": 1.0}',
            },
        ),
    ],
)
def test_whatever_is_logged_and_when_a_stop_changes_nothing_of_it(train, monkeypatch, moment, step, flags):
    train(run="whole", **flags)
    stop_when(monkeypatch, moment, {step: 1})
    assert train(run="stopped", **flags) == 130
    assert train(run="stopped", resume=True, **flags) == 0
    equal_to_the_bit("whole", "stopped")


def test_a_stop_while_the_last_checkpoint_is_saved_begins_no_other_run(train, monkeypatch, capsys):
    stop_when(monkeypatch, "on_save", {10: 1})
    assert train("mha", "mla") == 130
    assert "Stopped; weights/mha is finished." in capsys.readouterr().out
    assert read_run(Path("weights/mha"))["status"] == "finished" and not Path("weights/mla/run.json").exists()
    assert train("mha", "mla", resume=True) == 0
    assert read_run(Path("weights/mla"))["status"] == "finished"


def test_a_stop_that_comes_while_processes_agree_is_not_forgotten(monkeypatch):
    stop, control = StopInGoodOrder(), TrainerControl()

    def gather(wishes):
        if not stop.asked:
            stop.ask(signal.SIGTERM, None)
        return wishes

    monkeypatch.setattr(callbacks, "gather_object", gather)
    stop.on_step_end(None, None, control)
    assert not control.should_training_stop, "the others have not heard of it"
    stop.on_step_end(None, None, control)
    assert control.should_training_stop and control.should_save


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_a_stop_saves_also_where_nobody_reads_what_is_said_any_more(prepared, tmp_path, unbuffered):
    """Nor does what could not be said change the exit code, as Python would have it."""
    with started(training(**ENDLESS), tmp_path, env=environment() | {"PYTHONUNBUFFERED": unbuffered}) as process:
        wait_until_it_trains(process, tmp_path)
        process.stdout.close()  # as when Ctrl-C ends tee before us
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 130
    (saved,) = checkpoints.in_order(tmp_path / "weights/mla")
    assert checkpoints.is_whole(saved)


@pytest.mark.parametrize("step", [0, 4, 7])
def test_a_step_that_was_left_between_micro_batches_is_begun_anew(train, monkeypatch, step):
    small = {"per_device_train_batch_size": 1, "save_steps": 4, "logging_steps": 3}
    train(run="whole", **small)
    stop_when(monkeypatch, "on_substep_end", {step: 1})
    assert train(run="stopped", **small) == 130
    assert checkpoints.in_order(Path("weights/stopped/mla"))[-1].name == f"checkpoint-{step}"
    assert train(run="stopped", **small, resume=True) == 0
    equal_to_the_bit("whole", "stopped")


def test_checkpoints_are_pruned_but_for_the_last_and_the_best(tmp_path):
    for step in (2, 4, 6, 8, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
    checkpoints.prune(tmp_path, None, {})
    assert len(checkpoints.in_order(tmp_path)) == 5
    checkpoints.prune(tmp_path, 2, {2: 3.0, 4: 1.0, 6: 2.0, 8: 1.5, 9: 0.5})
    assert [checkpoints.step_of(folder) for folder in checkpoints.in_order(tmp_path)] == [4, 8, 10]


def test_broken_checkpoints_are_named_and_set_aside_never_deleted(tmp_path, capsys):
    for step in (4, 8):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "model.safetensors").write_bytes(b"weights")
        checkpoints.seal(tmp_path / f"checkpoint-{step}")
    for _ in range(2):
        (tmp_path / "partial" / "checkpoint-12").mkdir(parents=True)
        (tmp_path / "checkpoint-8" / "model.safetensors").write_bytes(b"weightt")
        assert checkpoints.last_whole(tmp_path) == tmp_path / "checkpoint-4"
        said = capsys.readouterr().out
        assert "checkpoint-8 is incomplete or damaged" in said and "checkpoint-12 was never finished" in said
        (tmp_path / "checkpoint-8").mkdir()
    aside = sorted(path.name for path in (tmp_path / "set-aside").iterdir())
    assert aside == ["checkpoint-12", "checkpoint-12-2", "checkpoint-8", "checkpoint-8-2"]


def test_other_library_versions_are_named_and_the_run_goes_on(train, capsys):
    train(save_steps=4)
    facts = read_run(Path("weights/mla"))
    versions = facts["versions"] | {"torch": "1.0"}
    write_record(Path("weights/mla/run.json"), facts | {"status": "running", "versions": versions})
    assert train(save_steps=4, resume=True) == 0
    assert "was begun with other versions: torch (1.0, now " in capsys.readouterr().out


@pytest.mark.parametrize("stage", ["corpus", "tokenizer", "tokens"])
def test_damaged_data_are_found_before_training(train, prepared, stage, capsys):
    folder = prepared / stage
    victim = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    if stage == "corpus":
        assert main(["data", "tokenizer", "--vocab_size", "280"]) == 2
    else:
        assert train() == 2
    assert f"{victim.relative_to(prepared.parent)} is not what was written there" in capsys.readouterr().err


def test_a_damaged_model_is_not_evaluated_nor_taken_for_trained(train, capsys):
    train()
    path = Path("weights/mla/model.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    for read in (lambda: main(["eval"]), train):
        assert read() == 2
        assert "weights/mla/model.safetensors is not what training wrote there" in capsys.readouterr().err
