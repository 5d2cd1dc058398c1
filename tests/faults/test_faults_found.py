"""The tools that report on many faults, with a few of each, so that every change is tried."""

import shlex
import sys

import pytest
from faults import configurations, corruptions, kills
from faults.memory import memory_of_training


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tool", "flags", "said"),
    [
        (kills, "--kills 2 --writing 1 --stops 1 --seed 1", "differing: 0"),
        (corruptions, "--count 3 --seed 1", "wrong: 0 of 3"),
        (configurations, "--count 150 --seed 1", "neither working nor refused by name: 0"),
    ],
    ids=["kills", "corruptions", "configurations"],
)
def test_a_few_faults_do_no_harm(tool, flags, said, monkeypatch, capsys):
    """In forks of this process, which has imported everything; they draw no curves."""
    monkeypatch.setattr(sys, "argv", [tool.__file__, *shlex.split(flags)])
    code = tool.main()
    reported = capsys.readouterr().out
    assert said in reported and code == 0, reported


@pytest.mark.slow
def test_the_memory_of_a_run_is_read_over_its_life(tmp_path):
    """Whether it grows a short run does not tell; `tests/report/test_curves.py` holds what made it grow."""
    tenths = memory_of_training(tmp_path, 20, pause=0.2)
    assert len(tenths) == 10 and 50 < max(tenths) < 5_000  # MiB; a busy machine is read before all is imported
