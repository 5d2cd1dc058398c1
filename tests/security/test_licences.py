"""The licences in `constraints.txt` are those that the packages themselves state."""

import re
from importlib.metadata import PackageNotFoundError, files, metadata

import pytest
from conftest import REPOSITORY

PINNED = re.findall(r"^([\w-]+)==\S+(.*)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
FAMILIES = {
    "Apache": "Apache",
    r"\bMIT\b": "MIT",
    "BSD|Neither the name of the copyright holder": "BSD",
    "LGPL": "LGPL",
    r"\bMPL|Mozilla": "MPL",
    "PSF|Python Soft": "PSF",
}


def families(text):
    return {name for pattern, name in FAMILIES.items() if re.search(pattern, text)}


@pytest.mark.parametrize(("package", "comment"), PINNED, ids=[package for package, _ in PINNED])
def test_the_stated_licence_is_the_packages_own(package, comment):
    assert families(comment), f"constraints.txt states no licence of {package}"
    try:
        facts = metadata(package)
    except PackageNotFoundError:
        pytest.skip(f"{package} is not installed")
    classifiers = [line for line in facts.get_all("Classifier") or [] if line.startswith("License")]
    own = [facts.get("License-Expression") or "", (facts.get("License") or "").split("\n")[0], *classifiers]
    if not any(own):  # the text of the licence itself
        own = [file.read_text() for file in files(package) if file.name.startswith("LICENSE")]
    assert families(comment) == families(" ".join(own))


def test_everything_that_the_package_needs_is_pinned():
    project = (REPOSITORY / "pyproject.toml").read_text()
    needed = set(
        re.findall(
            r'"([a-z][\w-]+)(?:>=[\d.]+)?[";]', project.split("[project.scripts]")[0].split("dependencies = [", 1)[1]
        )
    )
    assert needed <= {package for package, _ in PINNED}
