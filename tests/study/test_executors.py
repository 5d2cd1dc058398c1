"""Runs of a study take place in any process on any machine, once each, and end as they do one after another."""

import contextlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml
from conftest import REPOSITORY, synthetic_articles
from filelock import FileLock
from processes import PATIENCE, in_background, started, wait_for
from safetensors.torch import load_file

from mla_experiments.cli import main
from mla_experiments.errors import Stopped
from mla_experiments.study import executors, local, read_study, record, shard_of, work
from mla_experiments.study.runner import prepare_data
from mla_experiments.study.trials import Task, Trials
from mla_experiments.study.tuning import SEED
from mla_experiments.training import checkpoints

SWEEP = {
    "corpus": "text.txt", "vocab_size": 300, "preset": "demo", "hidden_size": 16, "num_attention_heads": 2,
    "num_hidden_layers": 1, "sequence_length": 32, "batch_size": 4, "per_device_train_batch_size": 4,
    "train_tokens": 60 * 128, "warmup_tokens": 128, "save_steps": 10, "attention": ["mha", "mla"],
    "learning_rate": [1.0e-3, 1.0e-2], "seeds": [0, 1],
}  # fmt: skip
ENDLESS = SWEEP | {"train_tokens": 10**8, "warmup_tokens": 10**5, "save_steps": 10**6, "logging_steps": 5,
                   "learning_rate": 1.0e-3, "seeds": [0]}  # fmt: skip
RUNS = 2 * (2 + 2)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A folder with a study that was run one run after another, and its text."""
    folder = tmp_path_factory.mktemp("serial")
    (folder / "text.txt").write_text("".join(synthetic_articles(40)))
    (folder / "sweep.yaml").write_text(yaml.safe_dump(SWEEP))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        quick_measures(patch, folder)
        torch.set_num_threads(1)
        assert main(["study", "sweep.yaml"]) == 0
    return folder


@pytest.fixture
def folder(reference, tmp_path, monkeypatch):
    """A folder with the same study, its data prepared, none of its runs done; measuring says so and is quick."""
    for name in ("text.txt", "sweep.yaml"):
        shutil.copy2(reference / name, tmp_path)  # as old as it was: the data stay those of this text
    monkeypatch.chdir(tmp_path)
    quick_measures(monkeypatch, tmp_path)
    return tmp_path


def quick_measures(patch, folder):
    """Measure nothing, but note that it was done."""

    def speeds(trials):
        with open(folder / "measured.txt", "a") as file:
            file.write("once\n")
        return {matched.variant.name: {} for matched in trials.variants}

    patch.setattr(record, "decode_speeds", speeds)
    patch.setattr(record, "training_speeds", lambda _: {})
    patch.setattr(record, "continuation", lambda *_: "")


def content(folder):
    return json.loads((folder / "studies" / "sweep" / "study.json").read_text())


def check_same(folder, reference):
    """Complete, measured once, and every weight of every run as it was when they ran one after another."""
    here, there = content(folder), content(reference)
    assert here["complete"] and here["runs"] == there["runs"] and len(here["runs"]) == RUNS
    assert (folder / "measured.txt").read_text() == "once\n"
    for run in here["runs"]:
        one, two = (load_file(root / "studies" / run["folder"] / "model.safetensors") for root in (folder, reference))
        assert all(torch.equal(one[name], two[name]) for name in one)
        logged = [(root / "studies" / run["folder"] / "metrics.jsonl").read_bytes() for root in (folder, reference)]
        assert logged[0] == logged[1]


def attempts(folder):
    """Number of attempts by log, and the process of the last one."""
    found = {path.stem: re.findall(r"attempt (\d+) on \S+, process (\d+)", path.read_text())
             for path in (folder / "studies" / "sweep" / "logs").glob("*.txt")}  # fmt: skip
    return {name: (len(lines), int(lines[-1][1])) for name, lines in found.items() if lines}


def kill_one(folder, killed):
    """Kill the process of a run that has saved a checkpoint and is not done: held, so that it cannot end meanwhile."""
    while not killed:
        for path in list((folder / "studies" / "runs").glob("*/checkpoint-*")):
            process = attempts(folder)[path.parent.name][1]
            os.kill(process, signal.SIGSTOP)
            is_done = (path.parent / "scores.json").exists()
            os.kill(process, signal.SIGCONT if is_done else signal.SIGKILL)
            if not is_done:
                killed.append(path.parent.name)
                return
        time.sleep(0.005)


def forked(function, *arguments):
    """Start a function in a fork of this process, the leader of a group; its exit code is what it returns."""

    def lead():
        os.setsid()
        os._exit(function(*arguments))

    process = multiprocessing.get_context("fork").Process(target=lead)
    process.start()
    return process


def said_by(log, argv):
    """Run a command, what it says going to a file."""
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout = sys.stderr = open(1, "w", closefd=False)  # noqa: SIM115 - until the process ends
    code = main(argv)
    sys.stdout.flush()
    return code


def send_to_group(leader, number):
    """Send a signal (0 is none) to a group of processes; return whether there is any."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, number)
        return True
    return False


@pytest.mark.slow
def test_local_processes_give_the_same_and_a_killed_one_is_replaced(folder, reference, capsys):
    killed = []
    thread = threading.Thread(target=kill_one, args=(folder, killed), daemon=True)
    thread.start()
    assert main(["study", "sweep.yaml", "--executor", "local:2"]) == 0
    check_same(folder, reference)
    tried = {name: count for name, (count, _) in attempts(folder).items()}
    assert tried == {Path(run["folder"]).name: 1 for run in content(folder)["runs"]} | {killed[0]: 2}
    said = capsys.readouterr().out
    assert [int(n) for n in re.findall(rf"\[(\d)/{RUNS}\] .*: done", said)] == list(range(1, RUNS + 1))
    assert "min left" in said
    assert not multiprocessing.active_children()


def test_a_process_that_is_lost_every_time_fails_its_run_alone(folder, monkeypatch, capsys):
    begun, next_end = [], executors.Serial.next_end

    def lost_with_mha(executor):
        (task,) = executor.running
        begun.append(task)
        if task.variant == 0:
            return executor.running.popitem()[1], None
        return next_end(executor)

    monkeypatch.setattr(executors.Serial, "next_end", lost_with_mha)
    assert main(["study", "sweep.yaml"]) == 1
    assert sorted(begun.count(task) for task in set(begun)) == [1, 1, 1, 1, 3, 3]
    said = capsys.readouterr().err
    assert said.count("its process was lost 3 times; see studies/sweep/logs/mha-") == 2
    found = content(folder)
    assert len(found["failed"]) == 2 and not found["complete"]
    assert sum(run["done"] for run in found["runs"]) == RUNS / 2, "all of MLA's; MHA has no best rate"


def test_shards_share_the_runs_out_and_the_last_one_completes_the_study(folder, reference):
    """Both begin at once, without data; seeds that needed the other's trials are made up for in a second round."""
    names = []
    for turn in range(2):
        logs = [folder / f"{turn}-{number}.txt" for number in (1, 2)]
        shards = [forked(said_by, log, ["study", "sweep.yaml", "--shard", f"{log.stem[-1]}/2"]) for log in logs]
        for shard in shards:
            shard.join()
        said = [log.read_text() for log in logs]
        assert [shard.exitcode for shard in shards] == [0, 0], said
        names += [name for text in said for name in re.findall(r"^\[\d/4\] (m.., .*?, seed \d+)", text, re.MULTILINE)]
    assert len(names) == len(set(names)) == RUNS
    check_same(folder, reference)


def test_a_shard_alone_says_what_it_leaves(folder, capsys):
    assert main(["study", "sweep.yaml", "--shard", "1/2"]) == 0
    left = "2 whose settings are still being tried, 4 of other shards"
    assert f"Runs left to other processes: {left}. Then the same command goes on." in capsys.readouterr().out
    assert sum(run["done"] for run in content(folder)["runs"]) == 2 and not content(folder)["complete"]


@pytest.mark.slow
def test_ray_gives_the_same_and_what_is_lost_is_done_again(folder, reference, monkeypatch):
    """Two workers of one CPU each, as on two machines."""
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        for more in ({"include_dashboard": False}, {}):
            cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20, **more)
        killed = []
        threading.Thread(target=kill_one, args=(folder, killed), daemon=True).start()
        assert main(["study", "sweep.yaml", "--executor", "ray", "--address", cluster.address]) == 0
    finally:
        cluster.shutdown()
    check_same(folder, reference)
    tried = {name: count for name, (count, _) in attempts(folder).items()}
    assert tried == {Path(run["folder"]).name: 1 for run in content(folder)["runs"]} | {killed[0]: 2}


@pytest.mark.slow
@pytest.mark.parametrize(("executor", "place"), [
    ("local:2", "foreground"), pytest.param("ray", "background", marks=pytest.mark.exhaustive),
])  # fmt: skip
def test_a_stop_saves_the_runs_under_way_and_leaves_no_process(folder, executor, place):
    """In the foreground Ctrl-C reaches the whole group; in the background SIGTERM the first process alone, twice."""
    if executor == "ray":
        pytest.importorskip("ray")
    (folder / "sweep.yaml").write_text(yaml.safe_dump(ENDLESS))
    log, runs = folder / "said.txt", folder / "studies" / "runs"
    argv = [sys.executable, "-m", "mla_experiments.cli", "study", "sweep.yaml", "--executor", executor]
    argv = in_background(argv) if place == "background" else argv

    def logged_lines():
        return [path.read_text().count("\n") for path in runs.glob("*/metrics.jsonl")]

    with open(log, "w") as said, started(argv, folder, stdout=said, start_new_session=True) as study:
        try:
            wait_for(lambda: sum(lines > 1 for lines in logged_lines()) == 2, study)
            before = sum(logged_lines())
            os.killpg(study.pid, signal.SIGINT)
            if place == "background":
                wait_for(lambda: sum(logged_lines()) > before + 20, study)
                study.send_signal(signal.SIGTERM)
                wait_for(lambda: "Stopping" in log.read_text(), study)
                study.send_signal(signal.SIGTERM)
            assert study.wait(PATIENCE) == 130, log.read_text()
            wait_for(lambda: not send_to_group(study.pid, 0))
        finally:
            send_to_group(study.pid, signal.SIGKILL)
    assert (f"`kill {study.pid}` saves and stops" in log.read_text()) == (place == "background")
    assert "Stopped. The same command goes on." in log.read_text() and "Traceback" not in log.read_text()
    saved = [checkpoints.in_order(path) for path in runs.iterdir() if path.is_dir()]
    assert len(saved) == 2 and all(checkpoints.is_whole(folder) for (folder,) in saved)


def test_a_second_sigterm_leaves_the_runs_under_way_the_time_to_save():
    before = signal.getsignal(signal.SIGTERM)
    with executors.sigterm_as_interrupt():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_study_that_nobody_reads_any_more_is_stopped_as_any_other(monkeypatch):
    class Gone:
        def write(self, text):
            raise BrokenPipeError

    with pytest.raises(Stopped), executors.executor_of("serial", None, lambda *_: None, lambda *_: None) as pool:
        pool.running["a run"] = "a run"
        monkeypatch.setattr(sys, "stdout", Gone())
        raise KeyboardInterrupt


def test_a_process_is_deaf_to_ctrl_c_from_its_start_and_its_parent_hears_it_afterwards():
    with pytest.raises(KeyboardInterrupt), local.deaf_to_ctrl_c():
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert signal.SIGINT in pool.apply(signal.pthread_sigmask, (signal.SIG_BLOCK, []))
        signal.raise_signal(signal.SIGINT)


def test_a_run_that_another_process_trains_is_left_to_it(folder, reference, capsys):
    shutil.copytree(reference / "studies" / "runs", folder / "studies" / "runs")
    name = next(run["folder"] for run in content(reference)["runs"] if run["seed"] == 1)
    (folder / "studies" / name / "scores.json").unlink()
    place = (folder / "studies" / name).parent
    with FileLock(place / f".{Path(name).name}.lock"):
        assert main(["study", "sweep.yaml"]) == 0
    said = capsys.readouterr().out
    assert "left to another process, which trains it" in said
    assert "Runs left to other processes: 1 that they train. Then the same" in said
    assert not content(folder)["complete"] and not (folder / "measured.txt").exists()
    assert main(["study", "sweep.yaml"]) == 0
    check_same(folder, reference)


def test_a_run_that_was_done_meanwhile_is_not_trained_again(folder, reference, monkeypatch):
    shutil.copytree(reference / "studies", folder / "studies")
    trials = Trials(read_study(folder / "sweep.yaml"), folder / "studies")
    monkeypatch.setattr(work, "train_and_score", lambda *_: pytest.fail("trained again"))
    assert not work.do(trials, Task(0, SEED, 0), 1).failure


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--executor", "slurm"], "executor=slurm is unknown; choose serial, local:N"),
        (["--executor", "local:0"], "executor=local:0 is unknown"),
        (["--executor", "local"], "executor=local is unknown"),
        (["--executor", "ray:2"], "executor=ray:2 is unknown"),
        (["--shard", "5/4"], "shard=5/4 is none; give i/n with i from 1 to n"),
        (["--shard", "0/4"], "shard=0/4 is none"),
        (["--shard", "x"], "shard=x is none"),
        (["--address", "head:6379"], "address=head:6379 is that of a Ray cluster; add --executor ray"),
        (["--executor", "ray", "--address", "127.0.0.1:1"], "address=127.0.0.1:1 is no Ray cluster"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_done(folder, flags, said, capsys):
    if "ray" in flags:
        pytest.importorskip("ray")
    assert main(["study", "sweep.yaml", *flags]) == 2
    assert said in capsys.readouterr().err
    assert not (folder / "studies").exists()


def test_ray_that_is_not_installed_is_named(folder, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "mla_experiments.study.on_ray", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["study", "sweep.yaml", "--executor", "ray"]) == 2
    assert "ray is not installed; pip install ray" in capsys.readouterr().err


def test_processes_share_out_gpus_and_threads(monkeypatch):
    torch.set_num_threads(4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert local.environment_of(1, 2) == {"OMP_NUM_THREADS": "2"}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [local.environment_of(place, 3)["CUDA_VISIBLE_DEVICES"] for place in range(3)] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,7")
    assert [local.environment_of(place, 3)["CUDA_VISIBLE_DEVICES"] for place in range(3)] == ["6", "7", "6"]


def test_the_slurm_script_of_the_documentation_names_every_shard_once(tmp_path):
    script = re.search(r"```bash\n(#!/bin/bash\n.*?)```", (REPOSITORY / "docs/scale.md").read_text(), re.DOTALL)[1]
    first, last = map(int, re.search(r"--array=(\d+)-(\d+)", script).groups())
    for name, body in {"srun": 'shift; exec "$@"', "mla-experiments": 'echo "$@"'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    shards = []
    for number in range(first, last + 1):
        slurm = {"SLURM_ARRAY_TASK_ID": str(number), "SLURM_ARRAY_TASK_COUNT": str(last - first + 1)}
        env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_CPUS_PER_TASK": "8", **slurm}
        said = subprocess.run(["bash", "-eu"], input=script, env=env, capture_output=True, text=True, check=True)
        command, path, flag, shard = said.stdout.split()
        assert (command, flag) == ("study", "--shard") and (REPOSITORY / path).is_file()
        shards.append(shard_of(shard))
    assert shards == [(number, last) for number in range(1, last + 1)]


def test_data_prepared_beforehand_are_those_of_the_study(folder, capsys):
    flags = ["--corpus", "text.txt", "--vocab_size", "300", "--sequence_length", "32"]
    study = read_study(folder / "sweep.yaml")
    place = Trials(study, Path("studies")).data
    assert re.fullmatch(r"studies/data/text-[0-9a-f]{8}-300-32-0", str(place))
    assert main(["data", *flags, "--data_dir", str(place)]) == 0
    capsys.readouterr()
    prepare_data(study, *study.corpora, Trials(study, Path("studies")).data)
    assert capsys.readouterr().out.count("nothing to do") == 3
