"""The documentation builds without a link that leads nowhere, and the README stays one that is read to its end."""

import json
import os
import re
import subprocess
import sys

import pytest
from conftest import REPOSITORY

from mla_experiments.cli import COMMANDS
from mla_experiments.modeling.attention import ATTENTION

SUMMARIES = [path for path in (REPOSITORY / "docs/results").glob("*/*.json") if path.with_suffix(".md").exists()]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    place = tmp_path_factory.mktemp("site")
    argv = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(place)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return place


def test_the_site_builds_and_has_every_command(site):
    page = (site / "reference/commands/index.html").read_text(encoding="utf-8")
    assert all(f'id="{name}"' in page for name in COMMANDS)
    assert "cache_bytes_per_token" in (site / "reference/study/index.html").read_text(encoding="utf-8")


def test_the_atlas_has_every_mechanism_and_every_committed_study_and_asks_no_other_server(site):
    page = (site / "atlas/index.html").read_text(encoding="utf-8")
    assert all(f'id="{name}"' in page for name in ATTENTION)
    data = json.loads(page.split('id="atlas-data">')[1].split("</script>")[0])
    committed = [json.loads(path.read_text(encoding="utf-8")) for path in SUMMARIES]
    assert len(data["points"]) == sum(len(study["rows"]) for study in committed) > 0
    assert not re.search(r"""<(script|link rel="stylesheet")[^>]*(src|href)="?https?:""", page)
    assert (site / "assets/plotly.min.js").stat().st_size > 1e6


def test_the_atlas_shows_what_fits_a_budget_and_draws_what_is_asked_for(site, browser):
    browser.get((site / "atlas/index.html").as_uri())
    count = "return document.getElementById('atlas-front').data.filter(trace => trace.x[0] !== null).length"
    choose = "const it = document.getElementById('atlas-%s'); it.value = '%s'; it.dispatchEvent(new Event('input'))"
    rows = "return [...document.querySelector('.atlas-points').tBodies[0].rows].filter(row => !row.hidden).length"
    every, drawn = browser.execute_script(rows), browser.execute_script(count)
    assert every > drawn > 0, "recall has no bits per byte"
    browser.execute_script(choose % ("what", "recall"))
    assert browser.execute_script(count) == every - drawn
    browser.execute_script(choose % ("budget", "0"))
    assert 0 < browser.execute_script(rows) < every
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")


def test_the_keyboard_sorts_the_table_of_the_atlas_and_what_is_not_known_stands_at_its_end(site, browser):
    from selenium.webdriver.common.keys import Keys

    browser.get((site / "atlas/index.html").as_uri())
    column = "return [...document.querySelector('.atlas-points').tBodies[0].rows].map(row => row.cells[%d].textContent)"

    def known(place):
        cells = browser.execute_script(column % place)
        numbers = [float(cell.split()[0].replace(",", "")) for cell in cells if cell[0].isdigit()]
        assert set(cells[len(numbers) :]) <= {"\N{EN DASH}"}
        return numbers

    heads = browser.find_elements("css selector", ".atlas-points th button")
    assert len(heads) == 5
    for place, head in enumerate(heads[1:], start=1):
        for key, sign in ((Keys.ENTER, 1), (Keys.SPACE, -1)):
            head.send_keys(key)
            numbers = known(place)
            assert numbers == sorted(numbers, key=lambda number: sign * number) and len(numbers) > 1
    marked = "return [...document.querySelectorAll('.atlas-points [aria-sort]')].map(head => head.ariaSort)"
    assert browser.execute_script(marked) == ["descending"]
    heads[0].send_keys(Keys.ENTER)
    families = [name[:3] for name in browser.execute_script(column % 0)]
    assert families == sorted(families) and len(set(families)) > 3
    rows = "return [...document.querySelector('.atlas-points').tBodies[0].rows].filter(row => !row.hidden)"
    every = f"{rows}.map(row => Number(row.cells[1].textContent.replace(',', '')))"
    least = min(browser.execute_script(every))
    browser.execute_script("""const it = document.getElementById('atlas-budget');
        it.value = '0'; it.dispatchEvent(new Event('input'))""")
    assert set(browser.execute_script(every)) == {least}, "rows stay with their points"


def test_the_data_of_a_committed_study_are_what_its_report_says():
    for path in SUMMARIES:
        said, rows = path.with_suffix(".md").read_text(encoding="utf-8").replace("\\", ""), {}
        study = json.loads(path.read_text(encoding="utf-8"))
        for line in (line for line in said.splitlines() if line.startswith("|")):
            name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            rows.setdefault(name, set()).update(cells)  # of several tables
        assert study["headline"] in said
        for row in study["rows"]:
            cells = rows[row["name"]]
            mean, around = (row["quality"][part] for part in ("mean", "half_width"))
            low, high = max(0, mean - around), min(1, mean + around)  # of shares, which say their ends where ± is more
            quality = {f"{mean:.4f} ± {around:.4f}", f"{mean:.4f} ({low:.4f} to {high:.4f})"}
            assert quality & cells, path
            assert {f"{row['cache_bytes']:,}", f"{row['parameters']:,}", str(row["seeds"])} <= cells, path
            assert all(any(cell.startswith(f"{speed['median']:,.0f}") for cell in cells)
                       for speed in row["decode"].values())  # fmt: skip


def test_the_atlas_says_which_verdict_another_study_turns_and_in_what_the_two_differ(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "docs")
    import atlas

    def study(name, optimizer, difference, is_told):
        rows = [{"name": one, "attention": one} for one in ("mha", "mla")]
        pair = {"a": "mha", "b": "mla", "difference": difference, "is_told": is_told}
        settings = {"optimizer": optimizer, "train_tokens": 1000}
        return {"name": name, "measure": "m", "corpus": "c", "settings": settings, "rows": rows, "pairs": [pair]}

    first, second = study("first", "adamw", 0.1, True), study("second", "muon", 0.1, False)
    ((pair, names, said),) = atlas.turns([first, second])
    assert pair == {"mha", "mla"} and names == ("first", "second")
    assert said.startswith(
        "mha and mla: mha ahead in first, not told apart in second. The two differ in optimizer (adamw"
    )
    assert atlas.verdict(first, "mla") == "worse than mha" and atlas.verdict(first, "mha") == "better than mla"
    assert atlas.turns([first, study("third", "muon", 0.2, True)]) == []
    assert atlas.turns([first, second | {"corpus": "another"}]) == [], "other text answers another question"


def test_the_readme_is_short_and_names_every_mechanism():
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    absent = [name for name in ATTENTION if f"[`{name}`]" not in text]
    assert not absent, f"README.md has no row for {absent}"
    page = (REPOSITORY / "docs/mechanisms.md").read_text(encoding="utf-8")
    absent = [name for name in ATTENTION if f"/attention/{name}.py)" not in page]
    assert not absent, f"docs/mechanisms.md has no row for {absent}"


def test_the_tables_of_mechanisms_say_what_each_keeps(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "docs")
    from drawings import parts_of

    kept = {name: f"{sum(parts_of(name).values()):,}" for name in ATTENTION}
    for page in ("README.md", "docs/mechanisms.md"):
        for line in (REPOSITORY / page).read_text(encoding="utf-8").splitlines():
            if line.startswith("|") and (names := re.findall(r"/attention/(\w+)\.py\)", line)):
                numbers = ", ".join(dict.fromkeys(kept[name] for name in names))
                is_said = any(re.match(rf"{numbers}(?![\d,])", cell.strip()) for cell in line.split("|"))
                assert is_said, f"{page}: the row of {', '.join(names)} does not say {numbers}"


def test_the_readme_and_the_pages_link_to_what_is_there():
    for path in (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))):
        for target in re.findall(r"\]\((?!https?://|#)([^)\s#]+)", path.read_text(encoding="utf-8")):
            if "reference/" not in target:
                assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_tables_are_those_of_the_committed_results(capsys, monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "docs")
    import tables

    assert tables.main() == 0, capsys.readouterr().out
    speed = (REPOSITORY / "docs" / "speed.md").read_text(encoding="utf-8")
    assert tables.renewed(speed.replace("| 8.4 |", "| 8.3 |")) == speed, "a number that somebody changed is put right"
