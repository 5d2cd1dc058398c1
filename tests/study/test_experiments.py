"""The studies of the repository: all can be run, and cost what their comments say."""

import re

import pytest
from conftest import REPOSITORY

from mla_experiments.benchmark.hardware import HARDWARE
from mla_experiments.cli.parsing import with_config
from mla_experiments.study import read_study, study_plan
from mla_experiments.study.matching import match

STATED = sorted((REPOSITORY / "experiments").glob("*.yaml"))
ON_GPU = [path for path in STATED if "H100" in path.read_text(encoding="utf-8")]


def test_those_that_the_documentation_names_are_there():
    names = {path.stem for path in STATED}
    assert {"demo", "reference", "positions", "rank", "scale", "attention", "staircase", "billion"} <= names
    assert {path.stem for path in ON_GPU} == {"reference", "positions", "rank", "scale", "billion"}


@pytest.mark.parametrize("path", STATED, ids=lambda path: path.stem)
def test_each_can_be_matched_and_says_what_it_costs(path):
    assert match(read_study(path), 10_000)
    comment = re.sub(r"\n# ?", " ", path.read_text(encoding="utf-8").split("\ncorpus")[0])
    assert re.search(r"\d (hours|minutes) on (2 CPU cores|an H100)", comment)


@pytest.mark.parametrize("path", ON_GPU, ids=lambda path: path.stem)
def test_the_hours_in_its_comment_are_those_of_the_planner(path):
    said = re.search(r"(\d+) runs.*: ([\d.]+) hours on an H100 and ([\d.]+) on an A100 at 20 %", path.read_text())
    for hardware, hours in (("h100", said[2]), ("a100", said[3])):
        total = study_plan(read_study(path), HARDWARE[hardware], 0.2)[-1]
        assert total["runs"] == int(said[1])
        assert float(f"{total['hours at 20 %']:.2g}") == float(hours)


def test_each_step_of_the_staircase_keeps_as_many_numbers_as_its_comment_says():
    solved = match(read_study(REPOSITORY / "experiments/staircase.yaml"), 4096)
    kept = [one.cache_bytes_per_token // 4 // 4 for one in solved]  # of four bytes, in four layers
    assert kept == [256, 144, 144, 144, 80, 80, 80]
    assert max(abs(one.residual) for one in solved) < 0.005


@pytest.mark.parametrize("name", ["demo", "reference"])
def test_those_without_sweeps_are_flags_of_train_too(name):
    known = {"corpus", "preset", "attention"}
    flags = with_config(["--config", str(REPOSITORY / "experiments" / f"{name}.yaml")], known)
    assert flags[:4] == [
        "--corpus",
        read_study(REPOSITORY / f"experiments/{name}.yaml").data["corpus"],
        "--preset",
        name,
    ]


def test_ranks_and_groups_are_compared_at_equal_cache():
    caches = {}
    for matched in match(read_study(REPOSITORY / "experiments" / "rank.yaml"), 10_000):
        caches.setdefault(matched.variant.attention, set()).add(matched.cache_bytes_per_token)
    assert caches["mla"] == caches["gqa"] | caches["mqa"]
