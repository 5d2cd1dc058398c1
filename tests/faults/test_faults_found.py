"""The tools that report on many faults, with a few of each, so that every change is tried."""

import subprocess
import sys

import pytest
from conftest import REPOSITORY


@pytest.mark.parametrize(
    ("tool", "said"),
    [("kills.py --kills 6 --writing 3 --stops 3 --seed 1", "differing: 0")],
)
def test_a_few_faults_do_no_harm(tool, said):
    script, *flags = tool.split()
    argv = [sys.executable, str(REPOSITORY / "tests" / "faults" / script), *flags]
    ended = subprocess.run(argv, capture_output=True, text=True, env={"PYTHONPATH": str(REPOSITORY)})
    assert ended.returncode == 0 and said in ended.stdout, ended.stdout + ended.stderr
