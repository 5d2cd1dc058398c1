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
        ("kills.py --kills 6 --writing 3 --stops 3 --seed 1", "differing: 0"),
        ("corruptions.py --count 8 --seed 1", "wrong: 0 of 8"),
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
def test_memory_of_a_short_run_grows_by_little(tmp_path):
    """So short a run is still warming up."""
    tenths = memory_of_training(tmp_path, 500)
    assert len(tenths) == 10 and 100 < tenths[1] <= tenths[-1] * 1.05 < tenths[1] * 1.5
