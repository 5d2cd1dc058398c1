"""Hold GGUF files to the real llama.cpp: tokens, logits, perplexity and the bytes of its cache, beside ours.

    pip install gguf llama-cpp-python          # the second builds llama.cpp, in ten to twenty minutes
    python benchmarks/llama_cpp_reads.py       # random weights, every mechanism, rotation and type
    python benchmarks/llama_cpp_reads.py --weights_dir weights --text held-out.txt mha mla    # trained runs

Prints a Markdown table; fails where logits of f32 differ by more than 1e-3 or tokens are others. llama.cpp attends
without its flash attention here, and keeps its cache in f32.
"""

import argparse
import math
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from mla_experiments.benchmark.llama_cpp import opened  # noqa: E402 - of this clone
from mla_experiments.data import load_tokenizer  # noqa: E402
from mla_experiments.data.tokenizer import as_transformers_tokenizer, train_bpe  # noqa: E402
from mla_experiments.errors import UserError  # noqa: E402
from mla_experiments.markdown import table  # noqa: E402
from mla_experiments.modeling import DecoderConfig, DecoderForCausalLM, load_model  # noqa: E402
from mla_experiments.modeling.stock.gguf import TYPES, export_gguf  # noqa: E402

BOUND = 1e-3  # on logits of f32
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "original_max_position_embeddings": 64,
    "low_freq_factor": 1.0, "high_freq_factor": 4.0,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
LATENT = {"qk_nope_head_dim": 32, "v_head_dim": 32, "kv_lora_rank": 128, "qk_rope_head_dim": 16}
MODELS = {  # mechanism, its options, more of the config
    "MHA": ("mha", {}, {}),
    "MHA, linear": ("mha", {}, {"rope_parameters": LINEAR}),
    "MHA, YaRN": ("mha", {}, {"rope_parameters": YARN}),
    "GQA, Llama 3's rotation": ("gqa", {}, {"rope_parameters": LLAMA3}),
    "MQA, tied": ("mqa", {}, {"tie_word_embeddings": True}),
    "GQA with biases": ("gqa", {}, {"attention_bias": True}),
    "MHA with norms, YaRN": ("mha", {}, {"qk_norm": True, "rope_parameters": YARN}),
    "MLA": ("mla", LATENT, {}),
    "MLA, tied, low-rank queries": ("mla", {**LATENT, "q_lora_rank": 64}, {"tie_word_embeddings": True}),
    "MLA, linear": ("mla", LATENT, {"rope_parameters": LINEAR}),
    "MLA, YaRN": ("mla", LATENT, {"rope_parameters": YARN}),
    "MLA, YaRN of V3": ("mla", LATENT, {"rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}}),
    "MLA, YaRN, unequal": ("mla", LATENT, {"rope_parameters": {**YARN, "mscale": 1.2, "mscale_all_dim": 0.8}}),
}


def random_models(folder: Path, text: str) -> dict[str, Path]:
    """Save models of random weights, with a tokenizer of the text; return their folders by name."""
    tokenizer = as_transformers_tokenizer(train_bpe([text], 512))
    for name, (attention, options, more) in MODELS.items():
        torch.manual_seed(0)
        config = DecoderConfig(
            vocab_size=512, hidden_size=128, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=512,
            initializer_range=0.1, attention=attention, attention_options=options, bos_token_id=0, eos_token_id=0,
            pad_token_id=0, **more,
        )  # fmt: skip
        DecoderForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return {name: folder / name for name in MODELS}


def by_llama_cpp(path: Path, text: str, tokens: list[int]) -> dict:
    """Return llama.cpp's tokens of a text, its logits of tokens, and the bytes of its cache of a token."""
    read = opened(path, len(tokens), logits_of_all=True)
    model = read.model
    model.eval(tokens)
    found = {
        "tokens": model.tokenize(text.encode(), add_bos=False, special=False),
        "logits": torch.from_numpy(np.array(model.scores[: len(tokens)])),
        "cache": read.kept,
    }
    model.close()
    return found


def perplexity(logits: torch.Tensor, tokens: list[int]) -> float:
    """Return exp of the mean loss of each token after the first."""
    return math.exp(F.cross_entropy(logits[:-1].float(), torch.tensor(tokens[1:])).item())


@torch.inference_mode()
def compare(name: str, folder: Path, text: str, scratch: Path) -> list[dict]:
    """Return a row for each type of file."""
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    ours = tokenizer(text, add_special_tokens=False)["input_ids"]
    tokens = ours[: model.config.max_position_embeddings]
    logits = model(torch.tensor([tokens])).logits[0]
    per_token = 4 * sum(layer.self_attn.cache_elements_per_token() for layer in model.model.layers)
    rows = []
    for kind in TYPES:
        path = scratch / "model.gguf"
        try:
            architecture = export_gguf(folder, path, kind, overwrite=True)
        except UserError as error:  # a width that q8_0 does not allow
            print(f"{name}: {error}", file=sys.stderr)
            continue
        theirs = by_llama_cpp(path, text, tokens)
        rows.append(
            {
                "model": name,
                "type": kind,
                "llama.cpp": architecture,
                "file, KiB": path.stat().st_size // 1024,
                "tokens": "same" if theirs["tokens"] == ours else "others",
                "largest difference of logits": f"{(theirs['logits'] - logits).abs().max().item():.1e}",
                "same likeliest, %": 100 * (theirs["logits"].argmax(-1) == logits.argmax(-1)).float().mean().item(),
                "perplexity, ours": perplexity(logits, tokens),
                "theirs": perplexity(theirs["logits"], tokens),
                "cache bytes/token, ours": per_token,
                "theirs ": round(theirs["cache"]),
            }
        )
    return rows


def main() -> int:
    """Print the table, and return 1 where a file of f32 is not ours."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="trained runs; by default random weights")
    parser.add_argument("--weights_dir", type=Path, default=Path("weights"))
    parser.add_argument("--text", type=Path, default=REPOSITORY / "docs" / "interop.md")
    given = parser.parse_args()
    import llama_cpp

    text, rows = given.text.read_text(encoding="utf-8"), []
    with tempfile.TemporaryDirectory() as scratch:
        made = {} if given.models else random_models(Path(scratch) / "models", text)
        folders = made or {name: given.weights_dir / name for name in given.models}
        for name, folder in folders.items():
            rows += compare(name, folder, text, Path(scratch))
    print(f"llama-cpp-python {llama_cpp.__version__}, {given.text.name}\n\n{table(rows)}")
    plain = [row for row in rows if row["type"] == "f32"]
    bad = [
        row["model"]
        for row in plain
        if row["tokens"] != "same" or not float(row["largest difference of logits"]) <= BOUND
    ]
    print(f"\n{len(plain)} models, {f'FAILED: {bad}' if bad else f'all within {BOUND} in f32'}")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
