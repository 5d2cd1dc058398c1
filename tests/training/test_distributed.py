"""Several processes train what one trains: the same tokens, losses within rounding, the same validation to the bit."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, TINY, command
from processes import ENDLESS, PATIENCE, environment, started, wait_until_it_trains
from safetensors.torch import load_file

from mla_experiments.manifest import write_record
from mla_experiments.run_files import read_metrics, read_run
from mla_experiments.training import checkpoints

FLAGS = {**TINY, "per_device_train_batch_size": 2, "save_steps": 5, "logging_steps": 2, "eval_steps": 4}


def torchrun(**flags):
    """Return the command that trains on two processes, as a user would; `--` keeps torchrun from taking `--run`."""
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--"]
    return argv + command(str(REPOSITORY / "train_model.py"), attention="mla", **{**FLAGS, **flags})


def on_two_processes(folder, code=0, **flags):
    """Train with torchrun to the end."""
    environ = environment() | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(torchrun(**flags), cwd=folder, capture_output=True, text=True, timeout=PATIENCE, env=environ)
    assert (ended.returncode == 0) == (code == 0), ended.stderr[-3000:]
    return ended.stdout + ended.stderr


def values(metrics, name):
    return [entry[name] for entry in metrics if name in entry]


def back_to(run_folder, step):
    """Make a finished run one that was killed after a checkpoint."""
    for later in checkpoints.in_order(run_folder):
        if checkpoints.step_of(later) > step:
            shutil.rmtree(later)
    write_record(run_folder / "run.json", read_run(run_folder) | {"status": "running"})


@pytest.mark.slow
def test_two_processes_equal_one_and_each_resumes_what_the_other_began(train, tmp_path):
    train(run="one", **{name: FLAGS[name] for name in FLAGS if FLAGS[name] != TINY.get(name)})
    said = on_two_processes(tmp_path, run="two")
    assert said.count("Wrote weights/two/mla") == 1
    one, two = (read_metrics(tmp_path / "weights" / run / "mla") for run in ("one", "two"))
    assert [entry["step"] for entry in one] == [entry["step"] for entry in two]
    assert [entry["tokens"] for entry in one] == [entry["tokens"] for entry in two]
    assert values(two, "loss") == pytest.approx(values(one, "loss"), rel=1e-5)
    weights = [load_file(tmp_path / "weights" / run / "mla/model.safetensors") for run in ("one", "two")]
    assert all((weights[0][name] - weights[1][name]).abs().max() < 1e-5 for name in weights[0])
    shutil.copytree(tmp_path / "weights/one", tmp_path / "weights/from-one")
    shutil.copytree(tmp_path / "weights/two", tmp_path / "weights/from-two")
    for run in ("from-one", "from-two"):
        back_to(tmp_path / "weights" / run / "mla", 5)
    on_two_processes(tmp_path, run="from-one", resume=True)
    assert train(run="from-two", resume=True, per_device_train_batch_size=2, save_steps=5, logging_steps=2,
                 eval_steps=4) == 0  # fmt: skip
    for run in ("from-one", "from-two"):
        resumed = read_metrics(tmp_path / "weights" / run / "mla")
        assert values(resumed, "loss") == pytest.approx(values(one, "loss"), rel=1e-5)
        assert values(resumed, "eval_loss") == pytest.approx(values(one, "eval_loss"), rel=1e-5)


@pytest.mark.slow
def test_a_stop_of_two_processes_saves_a_checkpoint_of_both(prepared, tmp_path):
    settings = {"stdout": subprocess.DEVNULL, "env": environment() | {"OMP_NUM_THREADS": "1"}}
    with started(torchrun(**ENDLESS), tmp_path, **settings) as process:
        wait_until_it_trains(process, tmp_path)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) != 0
    (saved,) = checkpoints.in_order(tmp_path / "weights/mla")
    assert checkpoints.is_whole(saved) and len(list(saved.glob("loss-since-log-*.json"))) == 2


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 7])
def test_validation_is_the_same_to_the_bit_however_many_share_it(tmp_path, rows):
    """A model that no step changes (learning rate 0) is validated by one process and by two."""
    script = tmp_path / "validate.py"
    script.write_text(
        f"import sys; sys.path[:0] = [{str(REPOSITORY)!r}]\n"
        "import json, os, torch\n"
        "from transformers import TrainingArguments\n"
        "from mla_experiments.modeling import DecoderConfig, DecoderForCausalLM\n"
        "from mla_experiments.training.trainer import StreamTrainer\n"
        "torch.manual_seed(0)\n"
        "model = DecoderForCausalLM(DecoderConfig(vocab_size=50, hidden_size=16, num_attention_heads=2,\n"
        "    num_hidden_layers=1, attention='mla', max_position_embeddings=8))\n"
        f"rows = [{{'input_ids': t, 'labels': t, 'shift_labels': t}} for t in torch.randint(50, ({rows}, 8))]\n"
        "arguments = TrainingArguments(output_dir='out', use_cpu=True, per_device_eval_batch_size=2, report_to=[])\n"
        "trainer = StreamTrainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows)\n"
        "loss = trainer.evaluate()['eval_loss']\n"
        "if arguments.process_index == 0: print(json.dumps([arguments.world_size, loss]))\n"
    )
    losses = {}
    for launcher in ([], ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]):
        argv = [sys.executable, *launcher, str(script)]
        environ = environment() | {"OMP_NUM_THREADS": "1"}
        said = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, env=environ)
        (line,) = [line for line in said.stdout.splitlines() if line.startswith("[") and line.endswith("]")]
        world_size, loss = json.loads(line)
        losses[world_size] = loss
    assert set(losses) == {1, 2} and losses[1] == losses[2]


def test_fsdp_on_cpus_is_refused_not_ignored(train, capsys):
    assert train(fsdp="full_shard") == 2
    assert "fsdp needs GPUs" in capsys.readouterr().err
    assert train(fsdp="nonsense") == 2
    assert "fsdp=nonsense cannot be" in capsys.readouterr().err
    assert not Path("weights").exists()
