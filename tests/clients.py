"""Load exports in the clients that people have, each in an environment of its own: `python tests/clients.py`.

Every model of `MODELS` that a client can hold is exported, loaded there, and asked for the log-probabilities of a
prompt and for a greedy continuation, which are held beside ours. Environments are made with uv and kept. Not a part of
`make test`: the first run downloads gigabytes. llama.cpp reads GGUF, see `benchmarks/llama_cpp_reads.py`.

    python tests/clients.py                         # all of them
    python tests/clients.py transformers-4.57       # one; exits with 1 where anything differs
"""

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from mla_experiments.data.tokenizer import as_transformers_tokenizer, train_bpe  # noqa: E402 - of this clone
from mla_experiments.markdown import table  # noqa: E402
from mla_experiments.modeling import DecoderConfig, DecoderForCausalLM  # noqa: E402
from mla_experiments.modeling.conversion import export_checkpoint  # noqa: E402

FOLDER = REPOSITORY / ".venv-clients"
NONE = "none"  # of the mechanism
BOUND, NEW = 1e-3, 12  # largest difference of log-probabilities; tokens to write
TEXT = "it's 2024: the river é 東京\n\n  sees <|endoftext|> again"
YARN = {"rope_type": "yarn", "rope_theta": 3e4, "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "original_max_position_embeddings": 64,
    "low_freq_factor": 1.0, "high_freq_factor": 4.0,
}  # fmt: skip
OTHER_BASE = {"rope_type": "default", "rope_theta": 3e5}
MODELS = {  # mechanism, more of the config
    "MHA": ("mha", {}),
    "MHA, another base": ("mha", {"rope_parameters": OTHER_BASE}),
    "MHA, YaRN": ("mha", {"rope_parameters": YARN}),
    "GQA, llama3": ("gqa", {"rope_parameters": LLAMA3}),
    "MQA, tied": ("mqa", {"tie_word_embeddings": True}),
    "GQA with biases": ("gqa", {"attention_bias": True}),
    "MHA with norms": ("mha", {"qk_norm": True}),
    "MLA": ("mla", {}),
    "MLA, tied": ("mla", {"tie_word_embeddings": True}),
    "MLA, low-rank queries": ("mla", {"attention_options": {"q_lora_rank": 24}}),
    "MLA, YaRN": ("mla", {"rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}}),
}
# each defines `answers(folder, ids) -> (log-probabilities [T, V], new ids)` and `ids_of(folder, text)`
TRANSFORMERS = """
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
def ids_of(folder, text):
    return AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
def answers(folder, ids):
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        text = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=NEW, eos_token_id=None)
    return logits.tolist(), text[0, len(ids):].tolist()
"""
CTRANSLATE2 = """
import tempfile
import ctranslate2, numpy
from transformers import AutoTokenizer
def ids_of(folder, text):
    return AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
def answers(folder, ids):
    with tempfile.TemporaryDirectory() as out:
        ctranslate2.converters.TransformersConverter(folder).convert(out, force=True)
        model = ctranslate2.Generator(out)
        logits = numpy.array(model.forward_batch([ids], return_log_probs=True))[0]
        words = AutoTokenizer.from_pretrained(folder).convert_ids_to_tokens(ids)
        how = {"beam_size": 1, "max_length": NEW, "include_prompt_in_result": False, "end_token": []}
        written = model.generate_batch([words], **how)
    return logits.tolist(), written[0].sequences_ids[0][:NEW]
"""
MLX = """
import mlx.core as mx
from mlx_lm import load
from mlx_lm.generate import generate_step
def ids_of(folder, text):
    return load(folder)[1].encode(text)
def answers(folder, ids):
    model, _ = load(folder)
    logits = model(mx.array([ids]))[0].astype(mx.float32)
    logits = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    written = [int(token) for token, _ in generate_step(mx.array(ids), model, max_tokens=NEW)]
    return logits.tolist(), written
"""
DRIVER = """
import json, sys
NEW, asked = int(sys.argv[1]), json.loads(sys.argv[2])
for name, folder, text in asked:
    try:
        ids = ids_of(folder, text)
        found = {"ids": ids, "answers": answers(folder, ids)}
    except Exception as error:
        found = {"refused": f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"}
    print("FOUND", json.dumps({"name": name, **found}))
"""


@dataclass(frozen=True)
class Client:
    """What to install, what to run there, and which architectures it has at all."""

    requirements: tuple[str, ...]
    code: str
    lacks: tuple[str, ...] = ()


CLIENTS = {
    "transformers-4.57": Client(("transformers==4.57.*", "torch==2.13.0"), TRANSFORMERS),
    "transformers-newest": Client(("transformers>=5", "torch==2.13.0"), TRANSFORMERS),
    "mlx-lm": Client(("mlx[cpu]", "mlx-lm"), MLX),
    "ctranslate2": Client(("ctranslate2", "transformers==4.57.*", "torch==2.13.0"), CTRANSLATE2, ("mla",)),
}


def environment(name: str) -> Path:
    """Return the Python of a client's environment, made anew where it holds something else."""
    folder, wanted = FOLDER / name, CLIENTS[name].requirements
    python, stated = folder / "bin" / "python", folder / "requirements.txt"
    if stated.is_file() and tuple(stated.read_text(encoding="utf-8").splitlines()) == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    links = {"UV_FIND_LINKS": os.environ["PIP_FIND_LINKS"]} if "PIP_FIND_LINKS" in os.environ else {}
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "--quiet", "--python", sys.executable, str(folder)], check=True)
    install = [*uv, "pip", "install", "--quiet", "--python", str(python), *wanted]
    subprocess.run(install, check=True, env={**os.environ, **links})
    stated.write_text("\n".join(wanted), encoding="utf-8")
    return python


def version_of(name: str, python: Path) -> str:
    """Return the version of a client."""
    package = name.split("-")[0] if name.startswith("transformers") else name
    code = f"from importlib.metadata import version; print(version({package!r}))"
    return subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def exported(folder: Path) -> dict[str, DecoderForCausalLM]:
    """Export every model into a folder, by its place in `MODELS`; return the models."""
    tokenizer = as_transformers_tokenizer(train_bpe([Path(__file__).read_text(encoding="utf-8")], 400))
    models = {}
    for number, (name, (attention, more)) in enumerate(MODELS.items()):
        torch.manual_seed(0)
        config = DecoderConfig(
            vocab_size=400, hidden_size=128, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=128,
            initializer_range=0.15, attention=attention, bos_token_id=0, eos_token_id=0, pad_token_id=0, **more,
        )  # fmt: skip
        models[name] = DecoderForCausalLM(config).eval()
        models[name].save_pretrained(folder / f"run-{number}")
        tokenizer.save_pretrained(folder / f"run-{number}")
        export_checkpoint(folder / f"run-{number}", folder / str(number))
    return models


@torch.inference_mode()
def verdict(model: DecoderForCausalLM, ids: list[int], found: dict) -> str:
    """Return what a client made of a model, in a word or a few; "right" where all is ours."""
    if "refused" in found:
        return f"refused ({found['refused']})"
    if found["ids"] != ids:
        return "other tokens"
    theirs, written = found["answers"]
    ours = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    error = (torch.tensor(theirs) - ours).abs().max().item()
    text = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=NEW, eos_token_id=None)[0, len(ids) :]
    same = text.tolist()[: len(written)] == written and len(written) >= NEW - 1
    return f"{'right' if same and error <= BOUND else 'WRONG'}, {error:.0e}{'' if same else ', other text'}"


def main() -> int:
    """Print a table of models and clients, and return 1 where one is not right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clients", nargs="*", help=", ".join(CLIENTS))
    given = parser.parse_args()
    cells: dict[str, dict[str, str]] = {name: {} for name in MODELS}
    with tempfile.TemporaryDirectory() as scratch:
        models = exported(Path(scratch))
        ids = as_transformers_tokenizer(train_bpe([Path(__file__).read_text(encoding="utf-8")], 400))(TEXT)["input_ids"]
        for client in given.clients or CLIENTS:
            python = environment(client)
            heading = f"{client.split('-')[0] if 'transformers' in client else client} {version_of(client, python)}"
            asked = [
                [name, str(Path(scratch) / str(number)), TEXT]
                for number, name in enumerate(MODELS)
                if MODELS[name][0] not in CLIENTS[client].lacks
            ]
            code = CLIENTS[client].code + DRIVER
            done = subprocess.run(
                [str(python), "-c", code, str(NEW), json.dumps(asked)], capture_output=True, text=True
            )
            lines = [line.split(" ", 1)[1] for line in done.stdout.splitlines() if line.startswith("FOUND ")]
            found = {one["name"]: one for one in map(json.loads, lines)}
            for name in MODELS:
                missing = {"refused": (done.stderr.strip().splitlines() or ["nothing was said"])[-1][:120]}
                lacks = MODELS[name][0] in CLIENTS[client].lacks
                cells[name][heading] = NONE if lacks else verdict(models[name], ids, found.get(name, missing))
    print(f"{datetime.date.today()}\n\n{table([{'model': name, **row} for name, row in cells.items()])}")
    return int(any(not cell.startswith(("right", NONE)) for row in cells.values() for cell in row.values()))


if __name__ == "__main__":
    sys.exit(main())
