"""Hold tables of the documents to the committed results that they come from.

    python docs/tables.py            fail where a table differs from its result, and say how (`make docs-numbers`)
    python docs/tables.py --write    write the tables anew

A table stands between `<!-- numbers: NAME -->` and `<!-- end -->`; NAME is a function below, which makes it of the JSON
files in `benchmarks/results/` or of the reports of studies in `docs/results/`.
"""

import json
import re
import sys
from difflib import unified_diff
from pathlib import Path
from statistics import correlation

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
TABLE = re.compile(r"(?<=<!-- numbers: )(\w+)( -->\n\n)(.*?)(?=\n<!-- end -->)", re.DOTALL)
CPU, GPU = "2026-11-24-cpu-2-cores", "2026-11-26-nvidia-h200"
RECENT = "2026-11-26-cpu-2-cores"
LOADS = ("% beside 1 of nice 10", "% beside 1 of nice 0")
WAITS = ("passive", "1000", "3000", "5000", "10000", "100000", "system's")
SIDES, RANGE = ("ours", "transformers"), ("ours, tokens/s", "from", "to")
STOCK = {"mla": "DeepSeek-V3", "mha": "Llama MHA", "gqa": "Llama GQA", "mqa": "Llama MQA"}
MIB = "MiB of cache, by formula"


def rows_of(measured: str) -> list[dict]:
    """Return the rows of a committed result."""
    path = ROOT / "benchmarks" / "results" / f"{measured}.json"
    return json.loads(path.read_text(encoding="utf-8"))["rows"]


def brief(value: float) -> str:
    """Return a number as tables show it: three digits, or all of those before the point."""
    if value >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value < 9.995 else f"{value:.1f}"


def tenths(value: float) -> str:
    """Return milliseconds with one digit after the point, below a hundred."""
    return f"{value:.1f}" if value < 99.95 else f"{value:,.0f}"


def markdown(heading: list[str], rows: list[list[str]], left: int) -> str:
    """Return a table whose first `left` columns lie to the left, and all others to the right."""
    rule = "|".join(["---"] * left + ["--:"] * (len(heading) - left))
    lines = [f"| {' | '.join(line)} |" for line in (heading, *rows)]
    return "\n".join((lines[0], f"|{rule}|", *lines[1:])) + "\n"


def steps(measured: str, left_out: tuple[int, ...] = ()) -> str:
    """A decoding step of each mechanism beside transformers', by batch and context."""
    found: dict[tuple[int, int], dict[str, float]] = {}
    for row in rows_of(measured):
        name, _, mode = row["model"].partition(":")
        if mode in ("", " auto") and row["context"] not in left_out:
            found.setdefault((row["batch"], row["context"]), {})[name] = row["ms"]
    heading = ["batch", "context"]
    for name, stock in STOCK.items():
        heading += [name.upper(), stock if name in ("gqa", "mqa") else f"{stock}, transformers"]
    rows = [
        [f"{batch}", f"{context:,}", *(tenths(ms[f"{name}, {side}"]) for name in STOCK for side in SIDES)]
        for (batch, context), ms in sorted(found.items())
    ]
    return markdown(heading, rows, 0)


def cpu_decoding() -> str:
    """In `speed.md`."""
    return steps(f"{CPU}-decode", left_out=(512,))


def every_mechanism() -> str:
    """A decoding step of all mechanisms where the cache is large, in `speed.md`."""
    found: dict[str, dict[int, dict]] = {}
    for row in rows_of(f"{RECENT}-decode-all-mechanisms"):
        name, side = row["model"].split(":")[0].split(", ")
        if side == "ours":
            found.setdefault(name, {})[row["batch"]] = row
    rows = [
        [name, f"{by[8]['cache MiB'] * 2**20 / 8 / 8192:,.0f}", *(tenths(by[batch]["ms"]) for batch in (8, 1)),
         *(f"{by[batch]['ms'] / found['mha'][batch]['ms']:.2f}" for batch in (8, 1))]
        for name, by in found.items()
    ]  # fmt: skip
    heading = ["", "bytes a token", "batch 8, 8k: ms", "batch 1, 64k: ms", "of MHA's at 8", "of MHA's at 1"]
    return markdown(heading, rows, 1)


def every_training() -> str:
    """A training step of all mechanisms, and what it does of the FLOPs that MHA and MLA do on average."""
    from mla_experiments.benchmark.costs import training_flops_per_token
    from mla_experiments.benchmark.training import config_of

    found = [row for row in rows_of(f"{RECENT}-training-all-mechanisms") if row["setting"] == "same settings"]
    flops = {row["attention"]: training_flops_per_token(config_of(row["attention"], 512), 512) for row in found}
    rates = {row["attention"]: row["ours, tokens/s"] * flops[row["attention"]] for row in found}
    usual = (rates["mha"] + rates["mla"]) / 2
    rows = [
        [row["attention"], f"{flops[row['attention']] / 1e6:.0f}", *(f"{row[of]:,.0f}" for of in RANGE),
         f"{rates[row['attention']] / usual:.2f}"]
        for row in found
    ]  # fmt: skip
    return markdown(["", "MFLOP a token", "tokens/s", "from", "to", "of the usual rate"], rows, 1)


def cpu_load() -> str:
    """Speed of two threads alone and what they keep beside one busy process, by how they wait."""
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in rows_of(f"{RECENT}-load"):
        if row["threads"] == 2:
            kept = found.setdefault((row["task"], row["wait"]), {})
            for name in ("tokens/s alone", *LOADS):
                kept.setdefault(name, []).extend([row[name]] if name in row else [])
    order = sorted(found, key=lambda key: (key[0] != "training", WAITS.index(key[1])))
    rows = [
        [task, "300,000, the system's" if wait == WAITS[-1] else wait, of_runs(found[task, wait]["tokens/s alone"], ""),
         *(of_runs(found[task, wait][name], " %") for name in LOADS)]
        for task, wait in order
    ]  # fmt: skip
    heading = ["", "turns before they sleep", "tokens/s alone", "kept beside one of nice 10", "beside one of nice 0"]
    return markdown(heading, rows, 2)


def of_runs(values: list[float], unit: str) -> str:
    """Return what several runs gave, from the least to the most."""
    least, most = (f"{value:,.0f}" for value in (min(values), max(values)))
    return f"{least}{unit}" if least == most else f"{least} to {most}{unit}"


def gpu_decoding() -> str:
    """In `results/h200`."""
    return steps(f"{GPU}-decoding")


def gpu_kernels() -> str:
    """Attention over latents in Triton and in PyTorch."""
    chosen = {
        "reference": ((64, 8192), (8, 65_536), (64, 65_536)),
        "DeepSeek-V3": ((64, 8192), (1, 65_536), (64, 65_536)),
    }
    found = {(row["shape"], row["batch"], row["context"], row["backend"]): row for row in rows_of(f"{GPU}-kernels")}
    rows = []
    for shape, sizes in chosen.items():
        for batch, context in sizes:
            ours, theirs = (found[shape, batch, context, backend] for backend in ("triton", "torch"))
            shares = [f"{ours[share]:.0f} %" for share in ("% of bandwidth", "% of matmul")]
            rows.append([shape, f"{batch}", f"{context:,}", f"{ours['ms']:.3g}", *shares, f"{theirs['ms']:.3g}"])
    return markdown(["shape", "batch", "context", "Triton", "of bandwidth", "of products", "PyTorch"], rows, 1)


def gpu_training() -> str:
    """A training step as written and with its layers compiled."""
    found = {row["model"]: row for row in rows_of(f"{GPU}-training")}
    rows = []
    for name in ("mha", "mla"):
        for side in SIDES:
            both = [found[f"{name}, {side}{how}"] for how in ("", ", compiled")]
            numbers = [text for row in both for text in (f"{row['tokens/s']:,.0f}", f"{row['MFU, %']:.0f} %")]
            rows.append([f"{name.upper()}, {side}", *numbers])
    return markdown(["", "tokens/s", "of products (MFU)", "layers compiled: tokens/s", "MFU"], rows, 1)


def gpu_memory() -> str:
    """What the allocator holds with a filled cache."""
    rows = []
    for row in rows_of(f"{GPU}-caches"):
        if row["context"] > 10_000:
            whole = [f"{row[of]:,.0f}" for of in ("context", "cache MiB", "held MiB")]
            rows.append([row["model"].upper(), whole[0], row["cache"], *whole[1:], tenths(row["peak of a step, MiB"])])
    return markdown(["", "context", "cache", MIB, "held", "a step"], rows, 1)


def cpu_speed() -> str:
    """Training, prompts and generation beside transformers."""
    rows = []
    for setting, said in (("same settings", "same allocator settings"), ("as started", "as each is started")):
        found = {row["attention"]: row for row in rows_of(f"{CPU}-training") if row["setting"] == setting}
        rows += beside(f"training step, {said}", {
            name: [found[name][f"{side}, tokens/s"] for side in SIDES] for name in found
        })  # fmt: skip
    prompts = {row["model"]: row["tokens/s"] for row in rows_of(f"{CPU}-prefill") if row["prompt"] == 2048}
    rows += beside("prefill of 2,048 tokens", both_sides(prompts, ""))
    written = {
        row["model"]: row["new tokens/s"]
        for row in rows_of(f"{CPU}-generation") if row["study"].endswith("against prompt") and row["tokens"] == 1000
    }  # fmt: skip
    rows += beside("generating 100 tokens after a prompt of 1,000", both_sides(written, ", cache"))
    rows.append(["″, without a cache", "MLA", brief(written["mla, ours, none"]), "", ""])
    return markdown(["tokens/s", "attention", "ours", "transformers", "ratio"], rows, 2)


def rankings() -> str:
    """Mechanisms at a quarter of MHA's cache, or as near as they come, by perplexity and by recall, in `recall.md`."""
    studies = ("attention-cache", "recall-copy", "recall-needle", "recall-mqar")
    text, copies, needles, pairs = (reported(study) for study in studies)
    told = [name for name in text if name in copies]
    columns = {
        "bits/byte": {name: text[name]["quality"]["mean"] for name in told},
        "copying: wrong": {name: copies[name]["quality"]["mean"] for name in told},
        "at 24 characters": {name: 1 - copies[name]["recall"]["longest=24"]["mean"] for name in told},
        "needles: wrong": {name: needles[name]["quality"]["mean"] for name in told},
        "keys and values: wrong": {name: pairs[name]["quality"]["mean"] for name in told},
    }
    ranks = {column: ranked(values) for column, values in columns.items()}
    first, *others = ranks
    rows = [
        [f"`{name}`", *(f"{columns[one][name]:.3f} ({ranks[one][name]})" for one in columns)]
        for name in sorted(told, key=ranks[first].__getitem__)
    ]
    alike = [correlation(list(ranks[first].values()), list(ranks[one].values())) for one in others]
    rows.append(["rank correlation with the first", "", *(f"{one:.2f}" for one in alike)])
    return markdown(["", *columns], rows, 1)


def reported(study: str) -> dict[str, dict]:
    """Return rows of a study's report by mechanism, as they are by default, and at a quarter of MHA's cache."""
    report = json.loads((ROOT / "docs" / "results" / study / "report.json").read_text(encoding="utf-8"))
    plain = {row["name"].removesuffix(" cache_bytes_per_token=256"): row for row in report["rows"]}
    alone = {"gqa": "mqa"}  # of one group, where all that is left of a cache is that
    return {alone.get(name, name): row for name, row in plain.items() if row["attention"] == name}


def ranked(values: dict[str, float]) -> dict[str, int]:
    """Return the place of each, the lowest first."""
    return {name: 1 + sum(other < value for other in values.values()) for name, value in values.items()}


def both_sides(found: dict[str, float], how: str) -> dict[str, list[float]]:
    """Return ours and transformers' numbers by mechanism."""
    return {name: [found[f"{name}, {side}{how}"] for side in SIDES] for name in ("mha", "gqa", "mqa", "mla")}


def beside(what: str, numbers: dict[str, list[float]]) -> list[list[str]]:
    """Return a row for each mechanism, the first of which says what was measured."""
    return [
        ["″" if place else what, name.upper(), brief(ours), brief(theirs), f"{ours / theirs:.2f}"]
        for place, (name, (ours, theirs)) in enumerate(numbers.items())
    ]


def renewed(text: str) -> str:
    """Return a document with its tables made anew."""
    return TABLE.sub(lambda found: found[1] + found[2] + globals()[found[1]](), text)


def main() -> int:
    """Compare or write, and return the exit code."""
    code = 0
    for path in sorted((ROOT / "docs").rglob("*.md")):
        text = path.read_text(encoding="utf-8")
        made = renewed(text)
        if "--write" in sys.argv[1:]:
            path.write_text(made, encoding="utf-8")
        elif made != text:
            code = 1
            name = str(path.relative_to(ROOT))
            lines = text.splitlines(), made.splitlines()
            print(*unified_diff(*lines, name, "from its results", lineterm="", n=0), sep="\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
