"""Texts that commands write for people are kept where people have edited them."""

import json
from pathlib import Path

import pytest

from mla_experiments.cli import main
from mla_experiments.texts import is_as_written, read_text, write_text


@pytest.mark.parametrize("text", ["# A\n\nline\n", "no end", "", "<html></html>\n\n\n", "\udcff and Ü\n"])
def test_a_text_is_replaced_as_it_was_written_and_kept_as_it_was_edited(tmp_path, capsys, text):
    path = tmp_path / "report.md"
    assert write_text(path, text) == [path] and is_as_written(path)
    assert read_text(path).rstrip("\n") == text.rstrip("\n").encode(errors="backslashreplace").decode()
    write_text(path, "another")
    assert read_text(path) == "another\n" and not capsys.readouterr().out
    edited = path.read_text() + "a thought\n"
    path.write_text(edited)
    assert write_text(path, text) == []
    assert path.read_text() == edited and list(tmp_path.iterdir()) == [path]
    assert f"{path} is not as a command here wrote it, and is kept" in capsys.readouterr().out


def test_what_somebody_wrote_into_a_model_card_or_results_is_not_lost(train, capsys):
    assert train() == 0 and main(["eval"]) == 0
    written = [Path("weights/mla/README.md"), Path("results.md")]
    assert all(map(is_as_written, written))
    for path in written:
        path.write_text(path.read_text().replace("#", "# mine:", 1))
    before = [path.read_bytes() for path in written]
    capsys.readouterr()
    assert main(["eval"]) == 0 and train() == 0
    assert [path.read_bytes() for path in written] == before
    assert capsys.readouterr().out.count("is kept; move it away") == 3  # the card by both


def test_curves_replace_no_figure_of_somebody_else(train, drawn, capsys):
    Path("figures").mkdir()
    for name in ("mla.png", "all.png"):
        Path("figures", name).write_bytes(b"\x89PNG mine")
        assert train() == 2
        assert f"figures/{name} was not drawn by this command, and is kept" in capsys.readouterr().err
        assert Path("figures", name).read_bytes() == b"\x89PNG mine" and not Path("weights").exists()
        Path("figures", name).unlink()
    assert train() == 0 and train(overwrite=True) == 0, "its own it does replace"


@pytest.mark.parametrize(
    ("argv", "field"),
    [
        (["eval", "--output_dir", "file"], "output_dir"),
        (["eval", "--output_dir", "file/below"], "output_dir"),
        (["train", "--figures_dir", "file"], "figures_dir"),
    ],
)
def test_a_file_in_the_place_of_a_folder_is_named_before_any_work(prepared, tmp_path, monkeypatch, capsys, argv, field):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert f"{field}={argv[2]} cannot be a folder, since " in said and "is a file; choose another place" in said
    assert Path("file").read_text() == "mine" and not Path("weights").exists()


@pytest.mark.parametrize("run", ["/", "..", "../elsewhere", "/tmp/x"])
def test_a_run_stays_inside_of_its_folders(prepared, tmp_path, monkeypatch, capsys, run):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--run", run]) == 2
    assert f"run={run} must be a name" in capsys.readouterr().err


def test_comparing_refuses_runs_of_which_a_part_is_gone(train, capsys):
    assert train("mha", "mla") == 0 and main(["eval"]) == 0
    for name, content in {"config.json": None, "tokenizer.json": "{}", "run.json": "{"}.items():
        path = Path("weights/mha", name)
        before = path.read_bytes()
        path.unlink() if content is None else path.write_text(content)
        capsys.readouterr()
        assert main(["compare", "mla", "mha"]) == 2, name
        assert "weights/mha" in (said := capsys.readouterr().err) or "mha is neither" in said
        path.write_bytes(before)
    assert main(["compare", "mla", "mha"]) == 0


def test_a_second_measurement_of_a_day_keeps_the_first(tmp_path):
    from mla_experiments.benchmark.measure import save

    paths = [save("cache", {"rows": [number]}, tmp_path) for number in range(3)]
    assert len(set(paths)) == 3 and paths[1].stem == f"{paths[0].stem}-2" and paths[2].stem == f"{paths[0].stem}-3"
    assert [json.loads(path.read_text())["rows"] for path in paths] == [[0], [1], [2]]
