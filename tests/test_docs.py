"""The documentation builds without a link that leads nowhere, and the README stays one that is read to its end."""

import os
import re
import subprocess
import sys

from conftest import REPOSITORY

from mla_experiments.cli import COMMANDS
from mla_experiments.modeling.attention import ATTENTION


def test_the_site_builds_and_has_every_command(tmp_path):
    argv = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "reference/commands/index.html").read_text(encoding="utf-8")
    assert all(f'id="{name}"' in page for name in COMMANDS)
    assert "cache_bytes_per_token" in (tmp_path / "reference/study/index.html").read_text(encoding="utf-8")


def test_the_readme_is_short_and_names_every_mechanism():
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    assert all(f"[`{name}`]" in text for name in ATTENTION)


def test_the_readme_and_the_pages_link_to_what_is_there():
    for path in (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))):
        for target in re.findall(r"\]\((?!https?://|#)([^)\s#]+)", path.read_text(encoding="utf-8")):
            if "reference/" not in target:
                assert (path.parent / target).exists(), f"{path.name} links to {target}"
