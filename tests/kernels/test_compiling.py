"""C code is compiled once, and what stands in its way is named."""

import sys

import pytest

from mla_experiments.kernels.compiling import CannotCompile, compiled, library


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [("/nowhere/cc", "/nowhere/cc does not run"), (sys.executable, f"{sys.executable} fails: ")],
)
def test_a_compiler_that_is_none_is_named(compiler, reason, monkeypatch, tmp_path):
    monkeypatch.setenv("CC", compiler)
    with pytest.raises(CannotCompile, match=reason):
        compiled("linear", folder=tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CannotCompile, match="cannot be written and loaded"):
        compiled("linear", folder=tmp_path / "file")


@pytest.mark.skipif(isinstance(library("linear"), CannotCompile), reason=str(library("linear")))
def test_it_is_compiled_once(tmp_path):
    compiled("linear", folder=tmp_path)
    (made,) = tmp_path.iterdir()
    before = made.stat()
    compiled("linear", folder=tmp_path)
    assert [made] == list(tmp_path.iterdir()) and made.stat() == before
