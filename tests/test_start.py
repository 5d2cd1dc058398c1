"""How commands begin: what they import, which versions they accept, what they install, and any terminal."""

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from conftest import REPOSITORY, synthetic_articles

import mla_experiments
from mla_experiments import cli, threads, versions
from mla_experiments.cli import COMMANDS, installing, main
from mla_experiments.cli.saying import wrote
from mla_experiments.errors import Missing, UserError

HEAVY = ("torch", "transformers", "datasets", "numpy")


def python(*code: str, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *code], capture_output=True, timeout=300, cwd=REPOSITORY, env={**os.environ, **environment}
    )


@pytest.mark.parametrize("argv", [[], ["--help"], ["nope"], ["data", "--help"], ["report", "--help"]], ids=str)
def test_what_needs_no_model_imports_none(argv):
    code = (
        "import sys; from mla_experiments.cli import main\n"
        f"try: main({argv!r})\nexcept SystemExit: pass\n"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    assert python("-c", code).stderr.decode().splitlines()[-1] == "[]"


@pytest.mark.parametrize("code", [
    "import mla_experiments\nfrom transformers import AutoConfig",
    "from transformers import AutoConfig\nimport mla_experiments",
    "import mla_experiments\nfrom transformers.modeling_layers import GradientCheckpointingLayer\n"
    "from transformers import AutoConfig",
])  # fmt: skip
def test_the_models_are_known_to_transformers_in_any_order_of_imports(code):
    check = "\nprint(type(AutoConfig.for_model('mla_experiments')).__name__, mla_experiments.MLA.__name__)"
    done = python("-c", code + check)
    assert done.stdout.decode().split() == ["DecoderConfig", "MLA"], done.stderr.decode()


def test_one_table_of_versions_is_what_the_package_asks_for():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for library in versions.TESTED:
        assert f"{library}{versions.bounds(library)}" in project["dependencies"]


def test_one_version_is_stated_everywhere():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    newest = re.search(r"^## (\S+)", (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert project["version"] == mla_experiments.__version__ == citation["version"] == newest[1]


def pretend(monkeypatch, **found):
    real = importlib.metadata.version
    monkeypatch.setattr(versions.metadata, "version", lambda name: found.get(name) or real(name))


@pytest.mark.parametrize("found", [{"transformers": "4.57.6"}, {"torch": "2.0.1", "accelerate": "0.20.0"}], ids=str)
def test_versions_that_are_too_old_are_one_sentence_with_the_command_that_helps(monkeypatch, capsys, found):
    pretend(monkeypatch, **found)
    assert main(["data", "--corpus", "nowhere"]) == 2
    said = capsys.readouterr().err
    for library, version in found.items():
        assert f"{library} {version}" in said and f'"{library}>={versions.TESTED[library][0]}' in said
    assert "pip install -U" in said and len(said.splitlines()) == 1


def test_versions_beyond_the_tested_ones_are_said_and_used(monkeypatch, capsys, tmp_path):
    pretend(monkeypatch, transformers="99.1.0")
    assert main(["data", "--corpus", str(tmp_path / "nowhere.txt"), "--data_dir", str(tmp_path)]) == 2
    noted, error = capsys.readouterr().err.splitlines()
    assert noted.startswith("Note: transformers 99.1.0 (tested up to") and "nowhere" in error


def test_env_says_what_a_report_needs(monkeypatch, capsys):
    pretend(monkeypatch, transformers="4.57.6")
    assert main(["env"]) == 0
    said = capsys.readouterr().out
    for part in ("Python", "too old", "cores", "backend c", "C code of", "gensim", *versions.TESTED):
        assert part in said


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
@pytest.mark.parametrize("argv", [["--help"], ["compare", "--help"], ["generate", "--help"]], ids=" ".join)
def test_help_is_shown_on_any_terminal(encoding, argv):
    done = python("-m", "mla_experiments", *argv, PYTHONIOENCODING=encoding, LC_ALL="C")
    assert done.returncode == 0 and b"usage:" in done.stdout, done.stderr


def test_names_of_any_script_are_written_on_any_terminal(tmp_path):
    text, folder = tmp_path / "текст 文.txt", tmp_path / "данные"
    text.write_text("".join(synthetic_articles(40)), encoding="utf-8")
    argv = ["data", "download", "--corpus", str(text), "--data_dir", str(folder)]
    done = python("-m", "mla_experiments", *argv, PYTHONIOENCODING="ascii", LC_ALL="C", PYTHONUTF8="0")
    assert done.returncode == 0 and (folder / "corpus" / "manifest.json").is_file(), done.stderr


def test_what_nobody_foresaw_is_one_sentence_and_a_kept_traceback(monkeypatch, capsys):
    def broken(argv):
        raise ZeroDivisionError("by a mistake of ours")

    monkeypatch.setattr(cli.command("data"), "run", broken)
    assert main(["data"]) == 70
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and "ZeroDivisionError: by a mistake of ours" in said
    kept = said.split("kept in ")[1].split(":")[0]
    with open(kept, encoding="utf-8") as file:
        assert "Traceback" in file.read()
    os.unlink(kept)


@pytest.mark.parametrize(("argv", "said"), [
    (["generate", "x", "--top_k", "-1"], "top_k=-1 must be at least 1"),
    (["generate", "x", "--temperature", "nan"], "temperature=nan must be a finite number"),
    (["plan", "--memory_gib", "inf"], "memory_gib=inf must be a finite number"),
    (["plan", "--contexts", "0"], "contexts=0 must be positive"),
    (["data", "--vocab_size", "-5"], "vocab_size=-5 must be a whole number from 1"),
    (["eval", "--limit", "0"], "limit=0 must be at least 1"),
    (["data", "--streaming", "perhaps"], "perhaps is neither true nor false"),
    (["data", "--sequence_length", "many"], "invalid int value: 'many'"),
])  # fmt: skip
def test_a_number_out_of_its_range_is_named(argv, said, capsys):
    assert main(argv) == 2
    assert said in capsys.readouterr().err


def test_both_parsers_read_our_flags_alike(monkeypatch):
    """Our own flags are parsed without transformers; its parser reads the same fields to the same values."""
    import dataclasses

    from transformers import HfArgumentParser

    from mla_experiments.cli.parsing import parse

    for name in ("data", "evaluate", "generate", "plan", "study"):
        (cls,) = (
            value for value in vars(cli.importlib.import_module(f"mla_experiments.cli.{name}")).values()
            if dataclasses.is_dataclass(value) and value.__module__.endswith(f"cli.{name}")
        )  # fmt: skip
        argv = []
        for number, each in enumerate(dataclasses.fields(cls)):
            kind = str(each.type)
            value = ["true"] if "bool" in kind else ["3", "4"] if "list[int" in kind else ["3"]
            argv += [f"--{each.name.replace('_', '-') if number % 2 else each.name}", *value]
            monkeypatch.setattr(each, "metadata", {"help": each.metadata["help"]})  # the other parser knows no ranges
        (ours,), theirs = parse([cls], argv, name, ""), HfArgumentParser([cls]).parse_args(argv)
        assert ours == vars(theirs)


class TestInstalling:
    @pytest.fixture
    def called(self, monkeypatch):
        calls = []

        def run(command, **settings):
            calls.append(command)
            return subprocess.CompletedProcess(command, 0, "", "")

        monkeypatch.setattr(installing.subprocess, "run", run)
        monkeypatch.delenv(installing.FORBIDDEN_BY, raising=False)
        return calls

    @pytest.fixture
    def lacking(self, monkeypatch):
        """A command that lacks a package until it is installed."""
        tried = []

        def run(argv):
            tried.append(argv)
            if len(tried) == 1:
                raise Missing("gensim", "the sample comes in its wheel")

        monkeypatch.setattr(cli.command("data"), "run", run)
        return tried

    def test_a_script_installs_what_is_missing_after_a_sentence_and_goes_on(self, called, lacking, capsys):
        assert main(["data", "--x", "1"], may_install=True) == 0
        assert lacking == [["--x", "1"], ["--x", "1"]]
        assert "Installing gensim into" in (said := capsys.readouterr().out) and "the sample comes in its wheel" in said
        (command,) = called
        assert command[-1] == "gensim" and "--constraint" in command and command[0] in (sys.executable, *command[:1])

    def test_what_a_command_always_needs_is_installed_before_it_starts(self, called, monkeypatch):
        started = []
        monkeypatch.setattr(cli.command("train"), "run", lambda argv: started.append(list(called)) and None)
        monkeypatch.setattr(cli.command("train"), "NEEDS", {"surely_not_there": "a test"})
        assert main(["train"], may_install=True) == 0
        assert len(called) == len(started[0]) == 1

    @pytest.mark.parametrize(("how", "said"), [
        ("variable", "MLA_EXPERIMENTS_NO_INSTALL=1 forbids to install it; pip install gensim"),
        ("flag", "--no-install forbids to install it; pip install gensim"),
        ("managed", "this Python is managed by the system; pip install gensim"),
        ("read-only", "cannot be written; pip install gensim"),
        ("command", "gensim is not installed: the sample comes in its wheel; pip install gensim"),
        ("failing", "gensim could not be installed (no route to host); pip install gensim"),
    ])  # fmt: skip
    def test_where_it_may_not_or_cannot_it_says_what_to_type(
        self, called, lacking, monkeypatch, tmp_path, capsys, how, said
    ):
        argv = ["data"]
        if how == "variable":
            monkeypatch.setenv(installing.FORBIDDEN_BY, "1")
        elif how == "flag":
            argv.append("--no-install")
        elif how == "managed":
            (tmp_path / "EXTERNALLY-MANAGED").touch()
            monkeypatch.setattr(installing.sysconfig, "get_path", lambda name: str(tmp_path))
            monkeypatch.setattr(sys, "prefix", sys.base_prefix)
            monkeypatch.delenv("PIP_BREAK_SYSTEM_PACKAGES", raising=False)
        elif how == "read-only":
            monkeypatch.setattr(installing.os, "access", lambda *_: False)
        elif how == "failing":
            failed = subprocess.CompletedProcess([], 1, "", "first\nno route to host")
            monkeypatch.setattr(installing.subprocess, "run", lambda *_, **__: failed)
        assert main(argv, may_install=how != "command") == 2
        assert said in capsys.readouterr().err and not called

    def test_what_is_installed_keeps_the_others_as_they_are(self):
        assert f"torch=={importlib.metadata.version('torch')}" in installing.pins()

    def test_the_scripts_may_and_the_installed_command_may_not(self):
        scripts = [REPOSITORY / "train_model.py", REPOSITORY / "eval_model.py", *(REPOSITORY / "data").glob("*.py")]
        for script in scripts:
            assert "may_install=True" in script.read_text(encoding="utf-8")
        assert 'mla-experiments = "mla_experiments.cli:main"' in (REPOSITORY / "pyproject.toml").read_text()


@pytest.mark.parametrize(
    ("chosen", "spins"),
    [({}, "5000"), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0")],
    ids=str,
)
def test_threads_sleep_soon_unless_somebody_chose_how_they_wait(monkeypatch, chosen, spins):
    """As the OpenMP that torch brings has understood it."""
    for name in threads.WAITING:
        monkeypatch.delenv(name, raising=False)
    done = python("-c", "import mla_experiments.cli, torch", OMP_DISPLAY_ENV="VERBOSE", **chosen)
    assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr.decode()


def test_every_command_says_what_it_is_for(capsys):
    assert main([]) == 0
    said = capsys.readouterr().out
    for name in COMMANDS:
        assert f"  {name:<10}" in said and (cli.command(name).__doc__ or "").splitlines()[0] in said


def test_reports_say_at_once_what_they_lack(monkeypatch, capsys):
    from mla_experiments.cli import needs

    monkeypatch.setattr(needs.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"scipy is not installed, .* pip install scipy"):
        needs.need(*needs.STATISTICS)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the C library's own settings")
@pytest.mark.parametrize(("command", "keeps"), [("eval", True), ("convert", False)])
def test_commands_of_many_steps_keep_the_memory_that_they_free_and_those_of_large_models_do_not(command, keeps):
    code = (
        "import resource, torch; from mla_experiments.cli import main\n"
        f"try: main([{command!r}, '--help'])\nexcept SystemExit: pass\n"
        "torch.zeros(2**24).sum()\n"  # 64 MiB, which pages of 4 KiB, at most, take 16,384 faults to be there
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(10): torch.zeros(2**24).sum()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"
    )
    faults = int(python("-c", code).stdout.split()[-1])
    assert faults < 100 if keeps else faults >= 10 * 2**26 // (2 << 20)  # as few as large pages take


@pytest.mark.parametrize("installed", ["in an environment", "not"])
def test_what_to_run_next_can_be_typed_where_the_command_is_not_on_the_path(tmp_path, monkeypatch, capsys, installed):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv/bin/python3"))
    if installed != "not":
        (tmp_path / ".venv/bin").mkdir(parents=True)
        (tmp_path / ".venv/bin/mla-experiments").write_text("")
    wrote("results.json", "6 evaluations", "mla-experiments generate --model NAME")
    wrote("out.gguf", "f16", "llama-completion -m out.gguf")
    program = "python -m mla_experiments" if installed == "not" else ".venv/bin/mla-experiments"
    said = capsys.readouterr().out
    assert f"Next: {program} generate --model NAME\n" in said and "Next: llama-completion -m out.gguf\n" in said
    assert main(["compare"]) == 2
    assert f"give some: {program} compare A B" in capsys.readouterr().err
