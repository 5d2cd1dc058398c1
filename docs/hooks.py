"""What the site has beyond the pages that are written: the reference and the atlas, and links into the sources."""

import contextlib
import io
import re
import sys
from pathlib import Path, PurePosixPath

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "docs")]

import atlas  # noqa: E402 - once the paths are known
from mkdocs.structure.files import File, Files  # noqa: E402
from plotly.offline import get_plotlyjs  # noqa: E402

LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?://|#)([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config) -> Files:
    """Add the pages that are made of the code."""
    for name, content in {"reference/commands.md": commands(), "reference/study.md": study()}.items():
        files.append(File.generated(config, name, content=content))
    files.append(File.generated(config, "assets/plotly.min.js", content=get_plotlyjs()))  # no other server is asked
    sorting = REPOSITORY / "mla_experiments/report/sort.js"  # that of the reports
    files.append(File.generated(config, "assets/sort.js", abs_src_path=str(sorting)))
    for figure in (REPOSITORY / "benchmarks/results").glob("*.png"):
        files.append(File.generated(config, f"benchmarks/results/{figure.name}", abs_src_path=str(figure)))
    return files


def on_page_markdown(markdown: str, page, config, files: Files) -> str:
    """Name what lies outside the site, the sources, in place of a link that would lead nowhere."""
    here = PurePosixPath(page.file.src_uri).parent

    def kept(found: re.Match) -> str:
        target = (here / found[3]).as_posix()
        if files.get_file_from_path(normal(target)) or not found[3].startswith("../"):
            return found[0]
        place = normal(target).removeprefix("../")
        if files.get_file_from_path(place):  # a figure of the benchmarks, which the site has in another place
            up = "../" * (len(here.parts))
            return f"{found[1]}[{found[2]}]({up}{place})"
        return f"{found[2]} (`{place}`)"

    return LINK.sub(kept, markdown)


def on_page_content(html: str, page, config, files: Files) -> str:
    """Draw the atlas where its page says so."""
    if page.file.src_uri != "atlas.md":
        return html
    return html.replace("<!-- atlas: front -->", atlas.front()).replace("<!-- atlas: cards -->", atlas.cards())


def normal(path: str) -> str:
    """Return a path without what goes back and forth."""
    parts: list[str] = []
    for part in path.split("/"):
        if part == ".." and parts and parts[-1] != "..":
            parts.pop()
        elif part != ".":
            parts.append(part)
    return "/".join(parts)


def commands() -> str:
    """Return a page of every command with its flags, as `--help` shows them."""
    from mla_experiments.cli import COMMANDS, overview

    parts = ["# Commands", "", "```text", overview(), "```"]
    for name in COMMANDS:
        parts += ["", f"## {name}", "", "```text", help_of(name), "```"]
    return "\n".join(parts) + "\n"


def help_of(name: str) -> str:
    """Return what a command says of itself."""
    from mla_experiments.cli import command

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        command(name).run(["--help"])
    return said.getvalue().strip()


def study() -> str:
    """Return a page of the fields of a study's file."""
    from mla_experiments.study.schema import listed

    rows = [f"| `{name}` | {meaning} |".replace("{", "&#123;") for name, meaning in listed()]
    return "\n".join(["# The file of a study", "", "| field | |", "|---|---|", *rows]) + "\n"
