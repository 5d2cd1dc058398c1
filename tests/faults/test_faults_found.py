"""The tools that report on many faults, with a few of each, so that every change is tried."""

import os
import subprocess
import sys

import pytest
from conftest import REPOSITORY


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tool", "said"),
    [
        ("kills.py --kills 6 --writing 3 --stops 3 --seed 1", "differing: 0"),
        ("corruptions.py --count 8 --seed 1", "wrong: 0 of 8"),
        ("configurations.py --count 150 --seed 1", "neither working nor refused by name: 0"),
        ("memory.py --steps 500", "growth after the warm-up"),
    ],
)
def test_a_few_faults_do_no_harm(tool, said):
    script, *flags = tool.split()
    argv = [sys.executable, str(REPOSITORY / "tests" / "faults" / script), *flags]
    ended = subprocess.run(argv, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    assert said in ended.stdout, ended.stdout + ended.stderr
    assert ended.returncode == 0 or script == "memory.py", "so short a run is still warming up"
