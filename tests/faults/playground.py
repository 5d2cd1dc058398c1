"""A folder with one of everything that the commands read: corpora of all kinds, data, runs, checkpoints, a study."""

import bz2
import gzip
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from conftest import command, paragraphs, synthetic_articles, write_shards
from faults.drawn import TINY
from faults.forked import run

from mla_experiments.manifest import write_record
from mla_experiments.run_files import read_run

STUDY = {
    "preset": "demo", "corpus": "text.txt", "vocab_size": 270, "attention": ["mha", "mla"], "hidden_size": 16,
    "num_attention_heads": 2, "num_hidden_layers": 1, "sequence_length": 32, "batch_size": 4, "train_tokens": 256,
    "warmup_tokens": 128, "per_device_train_batch_size": 4,
}  # fmt: skip

TUNED = STUDY | {
    "corpus": "synthetic:mqar:pairs=2,keys=4", "corpus.pairs": [1, 2], "attention": ["mha", "gqa+mla"],
    "tuning": {"trials": 2, "learning_rate": [1.0e-3, 1.0e-2], "attention.kv_lora_rank": [4, 8]},
}  # fmt: skip
del TUNED["vocab_size"]


def build(folder: Path) -> dict[str, bytes]:
    """Build it; return the content of every file by its name."""
    folder.mkdir(parents=True)
    write_corpora(folder)
    train = ["train", "--attention", "mla", *TINY]
    tiny = {"vocab_size": 270, "sequence_length": 32}
    for argv in (
        command("data", corpus="text.txt", **tiny),
        command("data", corpus="shards", streaming=True, sample_characters=4000, data_dir="streamed", **tiny),
        command("data", corpus="synthetic:mqar:pairs=2,keys=4", data_dir="drawn"),
        train,
        [*train, "--run", "half", "--save_total_limit", "9"],
        ["eval"],
        ["export", "mla", "stock"],
        ["train", "--attention", "mha", *TINY, "--run", "other"],
        ["export", "other/mha", "llama"],
        ["study", "tiny.yaml"],
        ["report", "studies/tiny"],
    ):
        ended = run(argv, folder)
        assert ended.code == 0, f"{argv}: {ended.said}"
    shutil.rmtree(folder / "weights/other")
    make_half_done(folder / "weights/half/mla")
    (folder / "log.txt").unlink()
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def make_half_done(folder: Path) -> None:
    """Make a finished run one that was killed after its first checkpoint."""
    facts = read_run(folder)
    write_record(folder / "run.json", {name: facts[name] for name in facts if name != "files"} | {"status": "running"})
    for path in folder.iterdir():
        if path.is_file() and path.name not in ("run.json", "metrics.jsonl"):
            path.unlink()
        elif path.is_dir() and path.name != "checkpoint-1":
            shutil.rmtree(path)


def write_corpora(folder: Path) -> None:
    """Write the same documents in every form, and names that are odd."""
    texts = paragraphs(60)
    rows = [{"text": text, "id": number} for number, text in enumerate(texts)]
    table, lines = pa.table({"text": texts}), "".join(json.dumps(row) + "\n" for row in rows)
    article = "".join(synthetic_articles(20))
    for name, content in {
        "text.txt": article, "notes.md": "\n\n".join(texts), "rows.jsonl": lines, "array.json": json.dumps(rows),
        "table.csv": "\n".join(["text", *texts]) + "\n",
        "table.tsv": "\n".join(["text\tn", *(f"{text}\t1" for text in texts)]),
        "empty.txt": "", "a\nb.txt": article, "\udcff.txt": article, "tiny.yaml": json.dumps(STUDY),
        "tuned.yaml": json.dumps(TUNED),
    }.items():  # fmt: skip
        (folder / name).write_text(content, encoding="utf-8")
    (folder / "text.txt.gz").write_bytes(gzip.compress(article.encode()))
    (folder / "rows.jsonl.bz2").write_bytes(bz2.compress(lines.encode()))
    pq.write_table(table, folder / "table.parquet")
    with pa.ipc.new_file(folder / "table.arrow", table.schema) as file:
        file.write_table(table)
    write_shards(folder / "shards", texts)
    for name in ("empty", "folder"):
        (folder / name).mkdir()
    for name in ("rows.jsonl", "table.csv", "text.txt"):
        shutil.copy(folder / name, folder / "folder")
    (folder / "loop").symlink_to("loop")
    (folder / "dangling").symlink_to("absent")
