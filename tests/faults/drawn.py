"""What the fuzzer draws: command lines over all sub-commands and flags, and contents of the files that they read."""

import argparse
import bz2
import gzip
import importlib
import json
import random
from dataclasses import dataclass, make_dataclass

import yaml
from transformers import TrainingArguments

from mla_experiments.benchmark import MEASUREMENTS
from mla_experiments.benchmark.architectures import ARCHITECTURES
from mla_experiments.cli import COMMANDS, bench, choose, compare, convert, data, evaluate, export, generate, plan, study
from mla_experiments.cli.parsing import ConversionArguments, parser_of
from mla_experiments.modeling.attention import ATTENTION
from mla_experiments.training import RunArguments

Chosen = random.Random


@dataclass(frozen=True)
class Case:
    """A command line, and the files that are changed before it runs: their new content, or None where they go."""

    argv: tuple[str, ...]
    files: dict[str, bytes | None]


OPTIONS = sorted({option for mechanism in ATTENTION.values() for option in mechanism.option_names()})
CLASSES = {
    "data": [data.DataArguments],
    "train": [RunArguments, TrainingArguments],
    "eval": [evaluate.EvaluationArguments],
    "generate": [generate.GenerationArguments],
    "export": [export.ExportArguments],
    "import": [ConversionArguments],
    "plan": [plan.PlanArguments, make_dataclass("WhatIf", [(option, int | None, None) for option in OPTIONS])],
    "study": [study.StudyArguments],
    "choose": [choose.ChooseArguments],
    "convert": [convert.ConvertArguments],
    "compare": [compare.CompareArguments],
    "bench": [bench.BenchmarkOutput],
}
TINY = [
    "--preset", "demo", "--hidden_size", "16", "--num_attention_heads", "2", "--num_hidden_layers", "1",
    "--sequence_length", "32", "--batch_size", "4", "--per_device_train_batch_size", "4", "--train_tokens", "256",
    "--warmup_tokens", "128", "--save_steps", "1", "--eval_steps", "1", "--logging_steps", "1",
]  # fmt: skip
CORPORA = (
    "text.txt", "notes.md", "rows.jsonl", "array.json", "table.csv", "table.tsv", "table.parquet", "table.arrow",
    "text.txt.gz", "rows.jsonl.bz2", "folder", "shards", "\udcff.txt", "synthetic:copy:longest=3", "synthetic:hops",
)  # fmt: skip
RUNS = [
    *[["--run", "new"]] * 3, *[["--run", "half", "--resume"]] * 2, ["--resume"], ["--run", "half", "--overwrite"],
    ["--streaming", "--data_dir", "streamed", "--run", "new"], ["--data_dir", "drawn", "--run", "new"],
    ["--data_dir", "drawn", "--run", "new", "--loss_on", "answers"],
]  # fmt: skip
READS = {  # command: beginnings of the names of the files that it reads
    "data": (*CORPORA, "data/"),
    "train": ("data/", "drawn/", "weights/half/", "weights/mla/"),
    "eval": ("weights/mla/", "data/corpus/", "text", "rows", "table", "results"),
    "generate": ("weights/mla/",),
    "export": ("weights/mla/",),
    "import": ("stock/", "llama/"),
    "plan": ("stock/config", "llama/config", "weights/mla/config", "tiny.yaml", "tuned.yaml"),
    "study": ("tiny.yaml", "tuned.yaml", "studies/"),
    "report": ("studies/",),
    "compare": ("studies/", "weights/"),
}
SHARES = {
    "data": 16, "train": 24, "eval": 12, "generate": 8, "export": 6, "import": 8, "plan": 14, "study": 6, "report": 4,
    "compare": 5, "bench": 4, "kernels": 1, "env": 1, "choose": 4, "convert": 4,
}  # fmt: skip
# what would only last, as it says, and is no fault: these are drawn small, or such as cannot be at all
LASTING = {
    "train_tokens", "max_steps", "num_hidden_layers", "max_new_tokens", "rounds", "dataloader_num_workers",
    "characters", "batch_size", "per_device_train_batch_size", "per_device_eval_batch_size",
    "gradient_accumulation_steps",
}  # fmt: skip
NEVER = {"address", "torch_compile", "torch_compile_backend", "torch_compile_mode"}  # a cluster elsewhere; minutes
WHOLE = ["1", "2", "3", "4", "8", "16", "32", "64", "0", "-1", "-8"]
HUGE = ["1000000", str(2**31), str(2**63), "9" * 30, "9" * 400, "1" + "0" * 5000]
REAL = ["0", "1", "0.5", "1e-3", "-1", "-0.0", "nan", "inf", "-inf", "1e308", "1e-320", "1e400", "0.1", "NaN"]
BOOLS = ["true", "false", "1", "no", "True", "maybe", ""]
JSONS = [
    "{}", "[]", "3", "null", "NaN", '"x"', "{", '{"mla": {"kv_lora_rank": 8}}', '{"mla": 3}', '{"mla": {"x": 1}}',
    '{"mha": null}', '{"mla": {"kv_lora_rank": "8"}}', '{"mla": {"kv_lora_rank": NaN}}', '{"a": {"a": [1]}}',
    '{"min_lr": 0}', '{"use_reentrant": false}', '{"min_lr_rate": "x"}', "[" * 3000, '{"a": 1e999}', '{"\\ud800": 1}',
    '{"mla": {"kv_lora_rank": 8, "kv_lora_rank": 4}}', '{"mla": {"kv_lora_rank": -8}}', '{"mla": {"rope_scaling": []}}',
]  # fmt: skip
ABSURD = [
    "", " ", "-", "--", "=", "a\nb", "a\r\nb\x1b[31m", "\udcff", "é", "日本", "💥", "\u202ex", "x" * 3000, "%s",
    "%(x)s", "{x}", "${HOME}", "~", "None", "null", "1,2", "1 2", "0x10", "1_000", "٣", "1e3", "1.0", "True", "'", '"',
    "\\", "*", "hub:", "hub:a/b", "hub:::", "file:///x", "https://x", "s3://x/y", "local:0", "local:x", "synthetic:",
    "synthetic:mqar:pairs=0", "synthetic:x:y=z", "1/0", "0/1",
    "2/1", "a/b", "auto", "all", "none", "mla", "mha gqa", "MLA", "..mla", "constructor", "this",
]  # fmt: skip
PLACES = [
    "absent", "absent/inner", "text.txt/inner", "text.txt", ".", "..", "./weights/../data", "data", "weights", "new",
    "new/inner", "", "empty", "empty.txt", "loop", "dangling", "a\nb.txt", "\udcff.txt", "weights/mla", "stock",
    "llama", "studies/tiny", "tiny.yaml", "weights/mla/config.json", "x" * 300, "data/corpus", "weights/half/mla",
    "shards",
]  # fmt: skip
ODD = [
    None, True, False, 0, -1, 1.5, float("nan"), float("inf"), 10**30, 10**400, "", "x", "a\0b", "a\nb", "\ud800", "8",
    [], [None], [[]], [1, "x"], {}, {"a": 1}, {"a": {"b": [1]}}, "mla", ["mla", "mla"], "é💥", [1, 1], -0.0, 1e-320,
]  # fmt: skip
TEXTS = [
    b"", b"\n", b"\0", b" ", b"\xef\xbb\xbf", b"\xff\xfe\0\0", b"\xff", "é\n".encode("latin-1"),
    "ab\n".encode("utf-16"), b"\r", b"a\rb\r\nc\n", b" = A = \n", b" = A = \n\n = B = \n", b"<s></s>\n",
    b'{"text": "\\ud800"}\n', b'{"text": null}\n', b'{"text": 3}\n', b'{"text": ["a"]}\n', b'{"tex": "a"}\n', b"[]",
    b"[1, 2]", b"{}", b"null", b"3", b'"x"', b"NaN", b"[" * 20000, b'{"a":' * 5000, b'[{"text": "a"}, 3]',
    b'{"text": "a"}\n{"text"', b'{"text": "a", "text": "b"}\n',
    b"text\n", b"text,text\na,b\n", b'text\n"a\n', b"a,b\n1\n", b"text\n" + b"x" * 200_000 + b"\n",
    gzip.compress(b""), gzip.compress(b"hello\n" * 300), gzip.compress(b"hello\n" * 300)[:-9], bz2.compress(b"hello\n"),
    b"PAR1PAR1", b"PAR1" + b"\0" * 40 + b"PAR1", b"ARROW1\0\0", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\0", b"\x80\x04K\x01.",
    b"a: b: c", b"- 1\n- 2\n", b"a: &a [*a]\n", b"!!python/object:os.system x\n", b"{a: 1, a: 2}\n", b"1: 2\n",
    b"? [1]\n: 2\n", b"\t- x\n", b"corpus: 2026-01-01\n", b"corpus: !!binary aGk=\n", b"a: !!set {x}\n", b"<<: 3\n",
    b"--- 1\n--- 2\n", b"attention: *x\n", b"null: 1\n", b'corpus: "\\0"\n', b'corpus: "\\uD800"\n', b"=: 1\n",
    b"%YAML 9.9\n---\na: 1\n",
]  # fmt: skip
BIAS = 0.65  # share of values that make sense


def flags_of(command: str, kind: str = "") -> list[argparse.Action]:
    """Return the flags of a sub-command, as its parser knows them."""
    classes = CLASSES.get(command, [])
    if kind in MEASUREMENTS:
        classes = [importlib.import_module(f"mla_experiments.benchmark.{MEASUREMENTS[kind]}").Arguments, *classes]
    return parser_of(classes, command, None)._actions if classes else parser_of([], command, None)._actions


FLAGS = {command: flags_of(command) for command in COMMANDS}


def case(chosen: Chosen, pristine: dict[str, bytes]) -> Case:
    """Return a command line and changed files.

    Args:
        chosen: where chance comes from.
        pristine: the files that stand there, by name.
    """
    command = chosen.choices(list(SHARES), list(SHARES.values()))[0]
    words, files = sane(chosen, command), {}
    flags = flags_of("bench", words[1]) if command == "bench" and len(words) > 1 else FLAGS[command]
    for _ in range(chosen.choice([0, 0, 1, 1, 1, 2, 3])):
        words += flag(chosen, flags)
    if chosen.random() < 0.12:
        files["flags.yaml"] = config(chosen, flags)
        words += ["--config", "flags.yaml"]
    for _ in range(chosen.choice([0, 0, 1, 1, 2]) if command in READS else 0):
        victims = sorted(name for name in pristine if name.startswith(READS[command]))
        victim = chosen.choice(victims)
        files[victim] = changed(chosen, victim, pristine, victims)
    if chosen.random() < 0.15:
        words = garbled(chosen, words)
    if words[:1] == ["bench"] and words[1:2] != ["packing"]:
        words += ["--rounds", "0"]  # what it measures takes minutes
    return Case(tuple(words), files)


def sane(chosen: Chosen, command: str) -> list[str]:
    """Return a command line that works, or one with other places in it."""
    pick = chosen.choice

    def place(*those: str) -> str:
        return pick(PLACES) if chosen.random() < 0.12 else pick(those)

    lines = {
        "data": lambda: [
            *pick([[], [], [], ["download"], ["tokenizer"], ["tokens"]]), "--corpus", place(*CORPORA),
            "--vocab-size", "270", "--sequence-length", "32", "--data-dir", place("new", "new", "data"),
        ],
        "train": lambda: ["--attention", pick(["mla", "mla", "mha", "gqa", "mla+mha", "gta+mla"]), *TINY, *pick(RUNS)],
        "eval": lambda: [
            place("mla", "weights/mla", "half/mla"),
            *pick([[], ["--corpus", place(*CORPORA)], ["--tasks", place("documents"), "--limit", "1"]]),
        ],
        "generate": lambda: [place("mla"), "--prompt", pick(["the", *ABSURD]), "--max-new-tokens", "3"],
        "export": lambda: [place("mla"), place("out", "out", "empty")],
        "import": lambda: [place("stock", "llama"), place("out", "out", "empty")],
        "plan": lambda: [place("weights/mla", "stock", "llama", "tiny.yaml", "tuned.yaml", *ARCHITECTURES)],
        "study": lambda: [place("tiny.yaml", "tuned.yaml"), "--studies-dir", place("studies", "new")],
        "report": lambda: [place("studies/tiny")],
        "choose": lambda: [
            place(*CORPORA), "--cache-bytes-per-token", pick(WHOLE), "--params", pick(["20k", "x"]), "--no-browser",
            "--plan-only",
        ],
        "convert": lambda: [place("llama", "mla"), place("out", "empty"), "--cache-bytes", pick(WHOLE), "--corpus",
                            place(*CORPORA), "--sequence-length", "16", "--calibration-tokens", "256"],
        "compare": lambda: [place("studies/tiny", "mla"), *[place("mla", "studies/tiny")] * chosen.randrange(2)],
        "bench": lambda: pick([["packing", "--characters", "2000"], ["core", "--help"], [pick([*MEASUREMENTS])], []]),
    }  # fmt: skip
    return [command, *lines.get(command, list)()]


def flag(chosen: Chosen, flags: list[argparse.Action]) -> list[str]:
    """Return a flag and its value, or several, or none."""
    action = chosen.choice([each for each in flags if each.dest not in NEVER])
    name = chosen.choice(action.option_strings)
    if chosen.random() < 0.03:
        name = chosen.choice([name[:-1], name.upper(), f"-{name}", f"{name}x", name.replace("_", "")])
    if action.nargs == 0 or chosen.random() < 0.05:
        return [name]
    values = [value(chosen, action) for _ in range(chosen.choice([1, 1, 2, 3]) if action.nargs == "+" else 1)]
    return [f"{name}={values[0]}"] if chosen.random() < 0.3 else [name, *values]


def value(chosen: Chosen, action: argparse.Action) -> str:
    """Return a value for a flag: one that makes sense, a borderline one, or an absurd one."""
    if chosen.random() > BIAS:
        pools = [ABSURD, PLACES, JSONS, WHOLE, REAL] + ([] if action.dest in LASTING else [HUGE])
        return chosen.choice(chosen.choice(pools))
    if action.choices:
        return str(chosen.choice([*action.choices]))
    if action.dest in ("attention", "models", "model"):
        return chosen.choice([*ATTENTION, "half/mla"])
    if action.dest.endswith("_dir") or action.dest in ("corpus",):
        return chosen.choice([*PLACES, *CORPORA])
    if action.type is int:
        return chosen.choice(WHOLE + ([] if action.dest in LASTING else HUGE))
    if action.type is float:
        return chosen.choice(REAL)
    if action.type is str:
        own = [str(action.default)] if action.default is not None else []
        return chosen.choice(own + JSONS if action.dest.endswith(("kwargs", "options", "config")) else own + ABSURD)
    return chosen.choice(BOOLS)


def config(chosen: Chosen, flags: list[argparse.Action]) -> bytes:
    """Return a YAML file of flags, or something else."""
    if chosen.random() < 0.25:
        return chosen.choice(TEXTS)
    content = {}
    for action in chosen.sample(flags, min(len(flags), chosen.randint(1, 4))):
        odd = action.dest not in LASTING and chosen.random() < 0.5
        content[action.dest] = chosen.choice(ODD) if odd else value(chosen, action)
    return yaml.safe_dump(content, allow_unicode=False).encode("utf-8", "surrogatepass")


def garbled(chosen: Chosen, words: list[str]) -> list[str]:
    """Return a command line with a word lost, doubled, moved or put in."""
    words, place = list(words), chosen.randrange(len(words))
    kind = chosen.choice(["drop", "double", "swap", "put"])
    if kind == "drop":
        del words[place]
    elif kind == "double":
        words[place:place] = words[place : place + 2]
    elif kind == "swap":
        other = chosen.randrange(len(words))
        words[place], words[other] = words[other], words[place]
    else:
        words.insert(place, chosen.choice([*ABSURD, *PLACES, "--config", "--help", "-h", "--no-install", "-x", "@x"]))
    return words


def changed(chosen: Chosen, name: str, pristine: dict[str, bytes], others: list[str]) -> bytes | None:
    """Return another content for a file."""
    content, kind = pristine[name], chosen.random()
    if kind < 0.4 and name.endswith((".json", ".jsonl", ".yaml", ".safetensors")):
        return respelt(chosen, name, content)
    if kind < 0.6:
        return chosen.choice(TEXTS)
    if kind < 0.65:
        return None
    if kind < 0.75:
        return pristine[chosen.choice(others)]
    if kind < 0.8:
        return chosen.randbytes(chosen.choice([1, 7, 100, 5000]))
    if kind < 0.9 or not content:
        return content[: chosen.randrange(len(content) + 1)]
    place = chosen.randrange(len(content))
    return content[:place] + chosen.choice([b"", b"\0", b"\xff", b"\n", b'"', b"\xed\xa0\x80"]) + content[place + 1 :]


def respelt(chosen: Chosen, name: str, content: bytes) -> bytes:
    """Return a structured file with another value, without one, or with one more, in a place that exists."""
    if name.endswith(".safetensors"):
        length = int.from_bytes(content[:8], "little")
        header = mutated(chosen, json.loads(content[8 : 8 + length]), ODD)
        written = json.dumps(header).encode()
        return len(written).to_bytes(8, "little") + written + content[8 + length :]
    if name.endswith(".yaml"):
        lasting = yaml.safe_load(content)
        field = chosen.choice([*lasting, *(action.dest for action in FLAGS["train"])])
        odd = WHOLE if field in LASTING else ODD
        return yaml.safe_dump(lasting | {field: chosen.choice(odd)}).encode("utf-8", "surrogatepass")
    lines = content.decode().splitlines() if name.endswith(".jsonl") else [content.decode()]
    place = chosen.randrange(len(lines))
    lines[place] = json.dumps(mutated(chosen, json.loads(lines[place]), ODD))
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def mutated(chosen: Chosen, tree, odd: list):
    """Return a tree of lists and dictionaries with one place changed."""
    keys = list(tree) if isinstance(tree, dict) else list(range(len(tree))) if isinstance(tree, list) else []
    if not keys or chosen.random() < 0.05:
        return chosen.choice(odd)
    key = chosen.choice(keys)
    copy = tree.copy()
    if chosen.random() < 0.15:
        del copy[key]
    else:
        deeper = isinstance(tree[key], dict | list) and chosen.random() < 0.8
        copy[key] = mutated(chosen, tree[key], odd) if deeper else chosen.choice([*odd, 10**9, -2, 3])
    return copy
