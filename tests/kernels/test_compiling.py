"""C code is compiled once, what stands in its way is named, and what came compiled serves where nothing compiles."""

import platform
import shutil
import sys

import pytest
import torch
import torch.nn.functional as F

from mla_experiments.kernels import linear, prebuilt, shared_keys
from mla_experiments.kernels.compiling import CannotCompile, compiled, library, origins


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


LOADED = library.__wrapped__  # which remembers nothing
PROCESSORS = {  # a part of what /proc/cpuinfo says of each
    "Sapphire Rapids": (
        "fma movbe f16c abm bmi1 avx2 bmi2 avx512f avx512dq avx512cd avx512bw avx512vl avx512_vnni amx_tile",
        "x86-64-v4-vnni",
    ),
    "Skylake-SP": ("fma movbe f16c abm bmi1 avx2 bmi2 avx512f avx512dq avx512cd avx512bw avx512vl pku", "x86-64-v4"),
    "Knights Landing": ("fma movbe f16c abm bmi1 avx2 bmi2 avx512f avx512pf avx512er avx512cd", "x86-64-v3"),
    "Zen 2": ("fma movbe f16c abm sse4a bmi1 avx2 bmi2 sha_ni", "x86-64-v3"),
    "Ivy Bridge": ("sse4_1 sse4_2 popcnt aes avx f16c", None),
}


@pytest.fixture
def wheel(monkeypatch, tmp_path):
    """A folder for what comes in a wheel, where nothing compiles."""
    monkeypatch.setenv("CC", "/nowhere/cc")
    monkeypatch.setattr(prebuilt, "FOLDER", tmp_path / "prebuilt")
    prebuilt.FOLDER.mkdir()
    return prebuilt.FOLDER


@pytest.fixture
def on(monkeypatch, tmp_path):
    """Be on a machine with a processor of x86-64."""

    def be(flags):
        able = prebuilt.instructions
        (tmp_path / "cpuinfo").write_text(
            f"processor\t: 0\nvendor_id\t: Any\nflags\t\t: fpu {flags}\n\nprocessor\t: 1\n"
        )
        monkeypatch.setattr(platform, "system", lambda: "Linux")
        monkeypatch.setattr(platform, "machine", lambda: "x86_64")
        monkeypatch.setattr(prebuilt, "instructions", lambda: able(tmp_path / "cpuinfo"))

    return be


@pytest.mark.skipif(shutil.which("gcc") is None, reason="makes what a wheel has, with gcc")
@pytest.mark.parametrize("level", prebuilt.levels())
def test_every_level_of_a_wheel_gives_what_float64_gives(level, monkeypatch, wheel):
    if not prebuilt.levels()[level][1] <= prebuilt.instructions():
        pytest.skip(f"this processor has no {level}")
    made = {name: prebuilt.build(name, level, "gcc", wheel) for name in ("linear", "shared_keys")}
    assert not any(b"libgomp" in path.read_bytes() for path in made.values()), "torch's OpenMP is the one to use"
    libraries = {name: LOADED(name) for name in made}
    assert {library._name for library in libraries.values()} == {str(path) for path in made.values()}

    few_rows = libraries["linear"].few_rows
    few_rows.argtypes = [*linear.prototyped().argtypes]
    monkeypatch.setattr(linear, "prototyped", lambda: few_rows)
    x, weight = torch.randn(7, 37), torch.randn(19, 37)
    expected = F.linear(x.double(), weight.double())
    torch.testing.assert_close(linear.few_rows_linear(x, weight).double(), expected, atol=1e-5, rtol=1e-5)

    monkeypatch.setattr(shared_keys, "library", libraries.get)
    query, key, value = torch.randn(2, 16, 1, 24), torch.randn(2, 1, 301, 24), torch.randn(2, 1, 301, 13)
    expected = (query.double() @ key.double().mT * 0.3).softmax(-1) @ value.double()
    output = shared_keys.attend(query, key, value, None, 0.3)
    torch.testing.assert_close(output.double(), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_processor_gets_the_best_level_that_it_has(name, wheel, on):
    flags, level = PROCESSORS[name]
    on(flags)
    for each in prebuilt.levels():
        prebuilt.path_of("linear", each).touch()
    assert prebuilt.best("linear") == (level and prebuilt.path_of("linear", level))


def test_no_level_is_for_a_processor_of_another_kind(wheel, on, monkeypatch):
    on(PROCESSORS["Zen 2"][0])
    prebuilt.path_of("linear", "x86-64-v3").touch()
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert prebuilt.best("linear") is None


@pytest.mark.parametrize("changed", ["linear.c", "vectors.h"])
def test_sources_that_were_changed_do_not_meet_what_was_made_before(changed, wheel, on, monkeypatch, tmp_path):
    on(PROCESSORS["Zen 2"][0])
    prebuilt.path_of("linear", "x86-64-v3").touch()
    copy = shutil.copytree(prebuilt.SOURCES, tmp_path / "kernels")
    monkeypatch.setattr(prebuilt, "SOURCES", copy)
    assert prebuilt.best("linear")
    with open(copy / changed, "a", encoding="utf-8") as file:
        file.write("\n")
    assert prebuilt.best("linear") is None


def test_what_serves_nowhere_is_said_once_when_it_is_missed(wheel, monkeypatch, caplog):
    monkeypatch.setattr(linear, "library", LOADED)
    linear._is_there.cache_clear()
    layer, rows = torch.nn.Linear(8, 8, bias=False).requires_grad_(False), torch.randn(1, 8)
    for _ in range(2):
        linear.project(layer, rows)
    linear._is_there.cache_clear()
    (said,) = caplog.messages
    assert "up to twice as long (no C code: /nowhere/cc does not run" in said


def test_a_file_that_cannot_be_loaded_is_named(wheel, on):
    on(PROCESSORS["Zen 2"][0])
    path = prebuilt.path_of("linear", "x86-64-v3")
    path.write_bytes(b"no library")
    found = LOADED("linear")
    assert isinstance(found, CannotCompile) and f"{path} came with the package and cannot be loaded" in str(found)


def test_where_the_code_comes_from_is_said(wheel, monkeypatch):
    monkeypatch.setattr("mla_experiments.kernels.compiling.library", LOADED)
    assert list(origins().values()) == [prebuilt.names()] and next(iter(origins())).startswith("none (/nowhere/cc")
