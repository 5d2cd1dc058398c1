"""The tree keeps its order: parts import only parts above them, and no weights are read but safetensors."""

import ast
import re

import pytest
from conftest import REPOSITORY

from mla_experiments.modeling.attention import ATTENTION

PACKAGE = REPOSITORY / "mla_experiments"
TOUR = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
ORDER = list(dict.fromkeys(re.findall(r"^\| `mla_experiments/(\w+)/", TOUR, re.MULTILINE)))
SHARED = {"", *(path.stem for path in PACKAGE.glob("*.py"))}  # what any part may use


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def imports(path):
    """Yield the parts of this package that a file imports, as their first names."""
    package = path.relative_to(PACKAGE.parent).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            full = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            inner = [name for name in full[1:] if name]
            yield inner[0] if inner else ""


def test_the_tour_leads_through_every_part():
    parts = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert parts == set(ORDER), f"the tour in CONTRIBUTING.md has not, or has alone: {sorted(parts ^ set(ORDER))}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_part_imports_only_parts_above_it(path):
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if part not in ORDER:
        return
    above = ORDER[: ORDER.index(part) + 1]
    for other in imports(path):
        assert other in SHARED or other in above, f"{part} imports {other}, which the tour does not have above it"


def test_a_mechanism_imports_only_its_neighbours_and_is_imported_by_the_registry_alone():
    folder = PACKAGE / "modeling" / "attention"
    names = {mechanism.__module__.split(".")[-1] for mechanism in ATTENTION.values()}
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[-1] in names:
                assert path.parent == folder, f"{path} imports the mechanism {node.module}"


NAMED_IN = {  # besides the mechanisms' own files
    "training/settings.py": "what is trained where nobody says what",
    "modeling/configuration.py": "what a decoder has where nobody says what",
    "benchmark/architectures.py": "shapes of well-known models",
    "benchmark/core.py": "the core of MLA's decoding",
    "benchmark/crossover.py": "where MLA should expand",
    "benchmark/conversion_memory.py": "a default",
    "benchmark/load.py": "a default",
    "benchmark/parallel.py": "a default",
    "conversion/converting.py": "what others are converted to",
    "__init__.py": "what can be imported from the package",
}


def test_what_is_to_be_known_of_a_mechanism_is_asked_of_it():
    """No other file names one: so a mechanism from outside can do what ours can."""
    names = {*ATTENTION, *(mechanism.__name__ for mechanism in ATTENTION.values())}
    for path in modules():
        where = path.relative_to(PACKAGE).as_posix()
        if where.startswith("modeling/attention/") or where in NAMED_IN:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = {node.value} if isinstance(node, ast.Constant) and isinstance(node.value, str) else set()
            named |= {alias.name for alias in node.names} if isinstance(node, ast.ImportFrom) else set()
            assert not named & names, f"{where} names {named & names}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "modeling/attention").glob("*.py")), ids=lambda path: path.name)
def test_attention_files_stay_readable(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 200


def test_the_name_of_a_file_says_which_it_is():
    names = [path.name for path in modules() if path.parent.name != "cli" and not path.name.startswith("__")]
    assert sorted(names) == sorted(set(names))


def test_nothing_unpickles():
    for path in modules():
        assert not re.search(
            r"import pickle|pickle\.load|torch\.load\(|allow_pickle", path.read_text(encoding="utf-8")
        ), path


def test_code_that_a_checkpoint_brings_is_never_trusted():
    for path in modules():
        assert "trust_remote_code=True" not in path.read_text(encoding="utf-8"), path


def test_the_documented_path_of_the_mechanisms_is_there():
    for name in ("mha", "mqa", "mla"):
        assert (REPOSITORY / "modeling" / "attention" / f"{name}.py").is_file()
