"""A study's report: right numbers in plain words, all text escaped, and a page that works in a real browser."""

import json
import shutil
from html import escape

import numpy as np
import pytest

from mla_experiments.cli import main
from mla_experiments.evaluation.perplexity import DocumentScore, Score
from mla_experiments.evaluation.scores import read_scores, write_scores
from mla_experiments.manifest import write_record
from mla_experiments.report.study import read_findings, write_report

HOSTILE = '</script><script>window.hacked = 1</script><img src=x onerror="window.hacked = 1"> **bold** | cell'
MECHANISMS = {"mha": 0.0, "gqa": 0.05, "mqa": 0.1, "mla": 0.0}  # how much worse, in bits per byte


COUNTS = [250] * 40, [200] * 40, [1000] * 40  # tokens, words, bytes of each document


def fake_study(root, seeds=5, rates=(1e-3, 3e-3, 9e-3), done=lambda _: True):
    """Write a study whose runs were never trained, with scores that have known differences."""
    generator, runs = np.random.default_rng(0), []
    hard = generator.normal(1500, 200, 40)
    for name, worse in MECHANISMS.items():
        for number in range(len(rates) + seeds - 1):
            seed, rate = (0, rates[number]) if number < len(rates) else (number - len(rates) + 1, 3e-3)
            run = {"variant": name, "seed": seed, "learning_rate": rate, "folder": f"runs/{name}-{number}"}
            runs.append(run | {"done": done(run)})
            folder = root / run["folder"]
            folder.mkdir(parents=True)
            off = 0.02 * abs(np.log(rate / 3e-3))
            nats = hard + (worse + off) * 1000 * np.log(2) + generator.normal(0, 3, 40)
            score = Score([DocumentScore(*document) for document in zip(nats.tolist(), *COUNTS, strict=True)])
            write_scores(folder, {split: (["text"], score) for split in ("validation", "test")})
            lines = [{"tokens": 100 * t, "eval_loss": 6 - t / 10 + worse} for t in range(1, 21)]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    variants = [
        {
            "name": name, "parameters": 1_000_000 + place, "residual": place * 1e-6, "intermediate_size": 100,
            "training_flops_per_token": 1e7, "cache_bytes_per_token": 4096 >> place, "options": {},
        }
        for place, name in enumerate(MECHANISMS)
    ]  # fmt: skip
    content = {
        "name": "tiny", "corpus": f"corpus {HOSTILE}", "corpus_hash": "c" * 64, "tokenizer_hash": "t" * 64,
        "stated": {"seeds": list(range(seeds)), "match": "parameters", "settings": {"train_tokens": 2000}},
        "machine": {"cpu": "a CPU", "gpu": None, "cores": 2, "date": "2026-01-01", "versions": {"torch": "2"}},
        "variants": variants, "runs": runs, "samples": {"mha": HOSTILE},
        "decode": {name: {"1024": 100.0 - p, "8192": 50.0 + p} for p, name in enumerate(MECHANISMS)},
        "training": {name: 1000.0 + p for p, name in enumerate(MECHANISMS)},
    }  # fmt: skip
    (root / "tiny").mkdir()
    write_record(root / "tiny" / "study.json", content)
    return root / "tiny"


def test_the_answer_names_what_is_worse_and_what_is_not_told_apart(tmp_path):
    findings = read_findings(fake_study(tmp_path))
    said = {c.sentence.split(" (")[0] for c in findings.comparisons}
    assert any(sentence.startswith("gqa is worse than mha by 0.05") for sentence in said)
    (pair,) = (c for c in findings.comparisons if (c.a, c.b) == ("mha", "mla"))
    assert abs(pair.difference) < 0.005 and pair.over_seeds[0] < pair.difference < pair.over_seeds[1]
    best = min(findings.rows, key=lambda row: row["bits_per_byte"].mean)
    assert best["variant"] in ("mha", "mla")
    assert all(fit.best == 3e-3 and not fit.at_edge for fit in findings.fits.values())
    for row in findings.rows:
        nats = [
            read_scores(tmp_path / run["folder"])["test"].nats
            for run in findings.content["runs"]
            if run["variant"] == row["variant"] and run["learning_rate"] == 3e-3
        ]
        by_seed = [sum(one) / 40_000 / np.log(2) for one in nats]
        assert row["seeds"] == len(by_seed) == 5
        assert row["bits_per_byte"].mean == pytest.approx(np.mean(by_seed))


def test_an_optimum_at_the_edge_and_one_seed_are_said(tmp_path):
    folder = fake_study(tmp_path, seeds=1, rates=(3e-3, 9e-3))
    text = (folder / "report.md", write_report(folder))[0].read_text()
    assert "at the edge of the sweep" in text
    assert "one seed: no verdict" in text and "±  " not in text and " ± " not in text.split("± is")[0]


def test_an_unfinished_study_shows_what_is_there_marked(tmp_path):
    folder = fake_study(tmp_path, done=lambda run: run["variant"] != "mqa")
    write_report(folder)
    text = (folder / "report.md").read_text()
    assert "Unfinished: 7 of 28 runs" in text and "\n| mqa" not in text and "\n| mha" in text


def test_the_page_is_one_file_with_everything_escaped(tmp_path):
    folder = fake_study(tmp_path)
    assert main(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text()
    assert HOSTILE not in page and escape(HOSTILE) in page
    markdown = (folder / "report.md").read_text().splitlines()
    assert not any("<script>" in line for line in markdown if not line.startswith("    ")), "but in a code block"
    own = page.split("<script>")[0]
    assert "http://" not in own and "https://" not in own, "nothing is fetched"
    assert len(page) < 6_000_000
    assert {path.suffix for path in (folder / "figures").iterdir()} == {".png", ".svg"}


@pytest.mark.parametrize(("name", "said"), [("nothing", "holds no study.json"), ("tiny", "no finished run yet")])
def test_what_cannot_be_reported_is_one_sentence(tmp_path, capsys, name, said):
    fake_study(tmp_path, done=lambda _: False)
    assert main(["report", str(tmp_path / name)]) == 2
    assert said in capsys.readouterr().err


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium, or skip."""
    program, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not (program and driver):
        pytest.skip("chromium and chromedriver are not installed")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield started
    started.quit()


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)], ids=["desktop", "phone"])
def test_the_page_works_in_a_browser(tmp_path, browser, width, height):
    folder = fake_study(tmp_path)
    write_report(folder)
    browser.set_window_size(width, height)
    browser.get((folder / "report.html").as_uri())
    assert browser.execute_script("return document.querySelectorAll('.chart .main-svg').length") >= 7
    assert browser.execute_script("return window.hacked === undefined")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= browser.execute_script(
        "return window.innerWidth"
    ), "the page itself does not scroll sideways"

    heading = "document.querySelectorAll('th button')[6]"  # cache bytes per token
    cells = "return [...document.querySelectorAll('tbody tr')].map(row => row.cells[6].textContent)"
    browser.execute_script(f"{heading}.click()")
    assert browser.execute_script(cells) == ["512", "1,024", "2,048", "4,096"]
    browser.execute_script(f"{heading}.click()")
    assert browser.execute_script(cells) == ["4,096", "2,048", "1,024", "512"]

    place = "document.getElementById('chart-loss-tokens')"
    browser.execute_script("document.querySelector('[data-chart=\"loss-tokens\"][data-axis=xaxis]').click()")
    assert browser.execute_script(f"return {place}.layout.xaxis.type") == "log"
    browser.execute_script(f"return Plotly.restyle({place}, {{visible: 'legendonly'}}, [0])")
    assert browser.execute_script(f"return {place}.data[0].visible") == "legendonly"
    errors = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert errors == []
    browser.save_screenshot(str(tmp_path / "page.png"))
    assert (tmp_path / "page.png").stat().st_size > 10_000
