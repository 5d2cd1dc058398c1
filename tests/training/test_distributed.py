"""Several processes train what one trains: the same tokens, losses within rounding, the same validation to the bit."""

import json
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, TINY, command
from processes import ENDLESS, PATIENCE, UNDRAWN, environment, started, wait_until_it_trains
from safetensors.torch import load_file

from mla_experiments.manifest import write_record
from mla_experiments.run_files import read_metrics, read_run
from mla_experiments.training import checkpoints

FLAGS = {**TINY, "per_device_train_batch_size": 2, "save_steps": 5, "logging_steps": 2, "eval_steps": 4}


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ONE_AFTER_ANOTHER = f"""
import atexit, json, sys, torch
def at_the_end():  # after what train has asked for; in one piece, since both say it at once
    sys.stdout.write(f"in a group at the end: {{torch.distributed.is_initialized()}}\\n")
atexit.register(at_the_end)
{UNDRAWN}
from mla_experiments.cli import main
sys.exit(max(main(argv) for argv in json.loads(sys.argv[1])))
"""


def on_two_processes(folder, *trainings):
    """Train with torchrun to the end: several runs, one after another in the same two processes."""
    script = folder / "train.py"
    script.write_text(ONE_AFTER_ANOTHER)
    argv = [*TORCHRUN, str(script), json.dumps([command("train", attention="mla", **flags) for flags in trainings])]
    environ = environment() | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(argv, cwd=folder, capture_output=True, text=True, timeout=PATIENCE, env=environ)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout.count("in a group at the end: False") == 2  # or its threads abort Python, now and then
    return ended.stdout + ended.stderr


def values(metrics, name):
    return [entry[name] for entry in metrics if name in entry]


def back_to(run_folder, step):
    """Make a finished run one that was killed after a checkpoint."""
    for later in checkpoints.in_order(run_folder):
        if checkpoints.step_of(later) > step:
            shutil.rmtree(later)
    write_record(run_folder / "run.json", read_run(run_folder) | {"status": "running"})


STREAMED = {**FLAGS, "streaming": True, "data_dir": "streamed", "train_tokens": 25 * 128}


@pytest.mark.slow
def test_two_processes_equal_one_and_each_resumes_what_the_other_began(train, streamed, tmp_path):
    """On stored text and on a stream."""
    kinds = {"stored": (FLAGS, 5, 1e-5), "streamed": (STREAMED, 20, 1e-6)}  # flags, last step before the stop, bound
    for kind, (flags, *_) in kinds.items():
        assert train(**flags, run=f"{kind}-one") == 0
    said = on_two_processes(tmp_path, *(flags | {"run": f"{kind}-two"} for kind, (flags, *_) in kinds.items()))
    assert [said.count(f"Wrote weights/{kind}-two/mla") for kind in kinds] == [1, 1]
    for kind, (_, step, bound) in kinds.items():
        runs = [tmp_path / "weights" / f"{kind}-{count}" for count in ("one", "two")]
        one, two = (read_metrics(run / "mla") for run in runs)
        assert [entry["step"] for entry in one] == [entry["step"] for entry in two]
        assert [entry["tokens"] for entry in one] == [entry["tokens"] for entry in two]
        assert values(two, "loss") == pytest.approx(values(one, "loss"), rel=bound)
        weights = [load_file(run / "mla/model.safetensors") for run in runs]
        assert all((weights[0][name] - weights[1][name]).abs().max() < 1e-5 for name in weights[0])
        for run, count in zip(runs, ("one", "two"), strict=True):
            shutil.copytree(run, tmp_path / "weights" / f"{kind}-from-{count}")
            back_to(tmp_path / "weights" / f"{kind}-from-{count}" / "mla", step)
    again = [flags | {"run": f"{kind}-from-one", "resume": True} for kind, (flags, *_) in kinds.items()]
    on_two_processes(tmp_path, *again)
    for kind, (flags, _, bound) in kinds.items():
        assert train(**flags, run=f"{kind}-from-two", resume=True) == 0
        one = read_metrics(tmp_path / "weights" / f"{kind}-one" / "mla")
        for count in ("one", "two"):
            resumed = read_metrics(tmp_path / "weights" / f"{kind}-from-{count}" / "mla")
            assert values(resumed, "loss") == pytest.approx(values(one, "loss"), rel=bound)
            assert values(resumed, "eval_loss") == pytest.approx(values(one, "eval_loss"), rel=1e-5)


@pytest.mark.slow
def test_a_stop_of_two_processes_saves_a_checkpoint_of_both(prepared, tmp_path):
    settings = {"stdout": subprocess.DEVNULL, "env": environment() | {"OMP_NUM_THREADS": "1"}}
    train = command(str(REPOSITORY / "train_model.py"), attention="mla", **FLAGS | ENDLESS)  # as a user would
    with started([*TORCHRUN, "--", *train], tmp_path, **settings) as process:
        wait_until_it_trains(process, tmp_path)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) != 0
    (saved,) = checkpoints.in_order(tmp_path / "weights/mla")
    assert checkpoints.is_whole(saved) and len(list(saved.glob("loss-since-log-*.json"))) == 2


@pytest.mark.slow
def test_validation_is_the_same_to_the_bit_however_many_share_it(tmp_path, monkeypatch, capsys):
    """A model that no step changes is validated by one process and by two, on one row and on seven."""
    script = tmp_path / "validate.py"
    script.write_text(
        "import json, os, torch\n"
        "from transformers import TrainingArguments\n"
        "from mla_experiments.modeling import DecoderConfig, DecoderForCausalLM\n"
        "from mla_experiments.training.trainer import StreamTrainer\n"
        "torch.manual_seed(0)\n"
        "model = DecoderForCausalLM(DecoderConfig(vocab_size=50, hidden_size=16, num_attention_heads=2,\n"
        "    num_hidden_layers=1, attention='mla', max_position_embeddings=8))\n"
        "every = [{'input_ids': t, 'labels': t, 'shift_labels': t} for t in torch.randint(50, (7, 8))]\n"
        "arguments = TrainingArguments(output_dir='out', use_cpu=True, per_device_eval_batch_size=2, report_to=[])\n"
        "losses = []\n"
        "for rows in (every[:1], every):\n"
        "    trainer = StreamTrainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows)\n"
        "    losses.append(trainer.evaluate()['eval_loss'])\n"
        "if arguments.process_index == 0: print(json.dumps([arguments.world_size, losses]))\n"
    )
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(script))
    environ = environment() | {"OMP_NUM_THREADS": "1"}
    settings = {"capture_output": True, "text": True, "timeout": PATIENCE, "env": environ}
    said = capsys.readouterr().out, subprocess.run([*TORCHRUN, str(script)], **settings).stdout
    lines = [line for text in said for line in text.splitlines() if line.startswith("[") and line.endswith("]]")]
    (one, alone), (two, shared) = map(json.loads, lines)
    assert (one, two) == (1, 2) and alone == shared and len(set(alone)) == 2


def test_fsdp_on_cpus_is_refused_not_ignored(train, capsys):
    assert train(fsdp="full_shard") == 2
    assert "fsdp needs GPUs" in capsys.readouterr().err
    assert train(fsdp="nonsense") == 2
    assert "fsdp=nonsense cannot be" in capsys.readouterr().err
    assert not Path("weights").exists()
