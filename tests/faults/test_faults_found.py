"""The tools that report on many faults, with a few of each, so that every change is tried."""

import os
import subprocess
import sys

import pytest
from conftest import REPOSITORY
from faults.memory import memory_of_training


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tool", "said"),
    [
        ("kills.py --kills 2 --writing 1 --stops 1 --seed 1", "differing: 0"),
        ("corruptions.py --count 3 --seed 1", "wrong: 0 of 3"),
        ("configurations.py --count 150 --seed 1", "neither working nor refused by name: 0"),
    ],
)
def test_a_few_faults_do_no_harm(tool, said):
    script, *flags = tool.split()
    argv = [sys.executable, str(REPOSITORY / "tests" / "faults" / script), *flags]
    ended = subprocess.run(argv, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    assert said in ended.stdout, ended.stdout + ended.stderr
    assert ended.returncode == 0, ended.stdout


@pytest.mark.slow
def test_the_memory_of_a_run_is_read_over_its_life(tmp_path):
    """Whether it grows a short run does not tell; `tests/report/test_curves.py` holds what made it grow."""
    tenths = memory_of_training(tmp_path, 100)
    assert len(tenths) == 10 and 50 < tenths[1] <= max(tenths) < 5_000
