"""Fixtures and settings shared by all tests."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for the network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import shutil
import sys

if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton's kernels run on the CPU; to be said before the import

os.environ["PATH"] = (
    f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"  # as an activated environment has
)
os.environ.pop("PYTHONUNBUFFERED", None)  # commands that tests start buffer what they say, as a user's do

import contextlib
import gc
import random
import signal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, settings

from mla_experiments import report
from mla_experiments.cli import main
from mla_experiments.data import prepare_corpus, prepare_tokenizer, prepare_tokens
from mla_experiments.versions import installed, release

slow = [HealthCheck.too_slow]
settings.register_profile("any machine", deadline=None, suppress_health_check=slow)  # a busy one is no failure
settings.load_profile("any machine")

REPOSITORY = Path(__file__).resolve().parents[1]
WIKITEXT = REPOSITORY.parent / "shared" / "data"  # real WikiText-2 text, where somebody has put it


def command(*words: str, **flags) -> list[str]:
    """Return a command line; a flag of True stands alone."""
    argv = list(words)
    for name, value in flags.items():
        argv += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return argv


@pytest.fixture(autouse=True, scope="session")
def _own_signals():
    """Hear signals, and have what is started hear them, also where the tests themselves run in the background."""
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    blocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, handlers)
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True, scope="session")
def _what_is_imported_is_no_garbage():
    """Commands collect garbage before they measure or draw, and would look through all of the libraries each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


draw_curves = report.draw_curves


@pytest.fixture(autouse=True, scope="session")
def _undrawn():
    """Draw no curves in this process: two seconds of three that a tiny run takes. `drawn` has them drawn."""
    report.draw_curves = lambda runs, figures: []
    yield
    report.draw_curves = draw_curves


@pytest.fixture
def drawn(monkeypatch):
    """Have curves drawn, as for a user."""
    monkeypatch.setattr(report, "draw_curves", draw_curves)


@contextlib.contextmanager
def full_disk(room: int):
    """Have writing fail after so many bytes of a file, as on a full disk: by the limit on the size of files."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


FAULTS = {  # of the libraries themselves: the first version without
    "its DeepSeek-V2 leaves out YaRN's mscale_all_dim": ("transformers", "5.15"),
    "it looks nothing up for a model without eos_token_id": ("transformers", "5.13"),
    "it traces no model, its own neither": ("transformers", "5.10"),
}


def needs_a_library_without(fault: str) -> None:
    """Skip where a library, to which ours is held or which does the work, has a fault of its own."""
    library, version = FAULTS[fault]
    if release(installed(library), 2) < release(version, 2):
        pytest.skip(f"{library} before {version}: {fault}")


@pytest.fixture(autouse=True)
def _reproducible():
    torch.manual_seed(0)
    torch.set_num_threads(1)


def wikitext_file(name: str) -> Path:
    """A file of real WikiText-2, or skip."""
    path = WIKITEXT / name
    if not path.is_file():
        pytest.skip(f"{name} is not on this machine")
    return path


def synthetic_articles(count: int = 12, seed: int = 0) -> list[str]:
    """Articles in WikiText's format over a small vocabulary, with some grammar to learn."""
    chosen = random.Random(seed)
    nouns = ["river", "house", "tree", "bird", "song", "king", "stone", "ship", "garden", "letter"]
    verbs = ["sees", "finds", "keeps", "loves", "follows"]

    def sentence():
        return f"the {chosen.choice(nouns)} {chosen.choice(verbs)} the {chosen.choice(nouns)} ."

    def paragraph():
        return " " + " ".join(sentence() for _ in range(chosen.randint(5, 12))) + " \n"

    return [
        f" = Article {number} of {count} = \n \n" + " \n".join(paragraph() for _ in range(4)) for number in range(count)
    ]


@pytest.fixture
def articles() -> list[str]:
    return synthetic_articles()


@pytest.fixture(scope="session")
def _prepared(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    source = folder / "source.txt"
    source.write_text("".join(synthetic_articles(40)), encoding="utf-8")
    prepare_corpus(folder / "corpus", str(source))
    prepare_tokenizer(folder / "tokenizer", folder / "corpus", vocab_size=300)
    prepare_tokens(folder / "tokens", folder / "corpus", folder / "tokenizer", sequence_length=32)
    return folder


@pytest.fixture
def prepared(_prepared, tmp_path) -> Path:
    """A data folder with corpus, tokenizer (300 entries) and tokens (rows of 32), free to change."""
    return Path(shutil.copytree(_prepared, tmp_path / "data"))


def paragraphs(count: int = 24) -> list[str]:
    """Short documents, no two of them equal, none of which looks like WikiText's format."""
    parts = [
        part.strip()
        for article in synthetic_articles(count, seed=5)
        for part in article.split(" \n")[1:]
        if part.strip()
    ]
    return [f"document {number} : {part}" for number, part in enumerate(parts[:count])]


def write_shards(folder: Path, texts: list[str], shards: int = 3) -> Path:
    """Write documents as the hub serves them: parquet files with row groups, and a column beside the text."""
    folder.mkdir(parents=True)
    size = -(-len(texts) // shards)
    for number in range(shards):
        part = texts[number * size : (number + 1) * size]
        table = pa.table({"id": [f"{number}-{row}" for row in range(len(part))], "text": part})
        pq.write_table(table, folder / f"train-{number:05}-of-{shards:05}.parquet", row_group_size=3)
    return folder


@pytest.fixture
def streamed(tmp_path) -> Path:
    """A data folder of the streamed corpus `tmp_path/shards`, which holds `paragraphs()`; otherwise as `prepared`."""
    folder = tmp_path / "streamed"
    prepare_corpus(folder / "corpus", str(write_shards(tmp_path / "shards", paragraphs())), sample_characters=4000)
    prepare_tokenizer(folder / "tokenizer", folder / "corpus", vocab_size=300)
    prepare_tokens(folder / "tokens", folder / "corpus", folder / "tokenizer", sequence_length=32)
    return folder


TINY = {
    "preset": "demo", "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "sequence_length": 32,
    "batch_size": 4, "per_device_train_batch_size": 4, "train_tokens": 10 * 128, "warmup_tokens": 256,
    "save_steps": 4, "eval_steps": 5, "logging_steps": 1,
}  # fmt: skip


@pytest.fixture
def train(prepared, tmp_path, monkeypatch):
    """Run `train` in a temporary folder with a tiny model; flags as keywords; returns the exit code."""
    monkeypatch.chdir(tmp_path)

    def run(*attention: str, **flags) -> int:
        return main(command("train", "--attention", *(attention or ("mla",)), **{**TINY, **flags}))

    return run


@pytest.fixture(scope="session")
def started():
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
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()


@pytest.fixture
def browser(started):
    """The browser, in whose console no error may stand at the end."""
    yield started
    assert [entry for entry in started.get_log("browser") if entry["level"] == "SEVERE"] == []
