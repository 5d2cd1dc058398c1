"""Make random configurations of a decoder, nonsense among them: each works, or is refused by the name of a field.

    python tests/faults/configurations.py --count 2000 --seed 0

One that works trains a step with a finite loss and finite gradients everywhere, and decodes token by token from its
cache what it computes from the whole sequence.
"""

import argparse
import random
import re
import sys
from collections import Counter

import hypothesis
import torch
from hypothesis import strategies

from mla_experiments.errors import UserError
from mla_experiments.modeling import DecoderConfig, DecoderForCausalLM
from mla_experiments.modeling.attention import ATTENTION

NONSENSE = [0, -1, -16, 1.5, float("nan"), float("inf"), "8", "", None, True, [], {}, [8], {"a": 1}]
SIZES = {
    "vocab_size": [1, 2, 17, 50],
    "hidden_size": [8, 8, 12, 16, 16, 24],
    "intermediate_size": [None, 1, 8, 24],
    "num_hidden_layers": [1, 2, 3],
    "num_attention_heads": [1, 2, 2, 4, 4, 3],
    "max_position_embeddings": [1, 2, 8, 16],
    "attention": [*ATTENTION] * 4 + ["MLA"],
}
SANE = {
    "positions": ["rope"] * 6 + ["learned"] * 2 + ["alibi"],
    "rope_interleave": [True, False],
    "rms_norm_eps": [1e-6, 1e-5, 1e-12, 0.1],
    "initializer_range": [0.02, 1e-4, 1.0],
    "tie_word_embeddings": [True, False],
    "use_cache": [True, False],
    "pad_token_id": [None, 0, 1],
    "bos_token_id": [None, 0, 1],
    "eos_token_id": [None, 0, 1],
}
OPTIONS = {
    option: [True, False] if kind is bool else [1, 2, 2, 4, 4, 6, 8, 8, 16]
    for mechanism in ATTENTION.values()
    for option, kind in sorted(mechanism.option_types().items())
}
ROPE = {
    "rope_type": ["default", "linear", "llama3", "yarn"] * 4 + ["dynamic", "longrope", "proportional", "Yarn"],
    "rope_theta": [10_000.0, 500_000, 100.0, 10, 1.0],
    "factor": [1.0, 2.0, 8, 40.0],
    "original_max_position_embeddings": [1, 4, 8, 64, 4096],
    "low_freq_factor": [1.0, 0.5],
    "high_freq_factor": [4.0, 2],
    "beta_fast": [32, 16.0],
    "beta_slow": [1, 2.0],
    "mscale": [1.0, 0.707],
    "mscale_all_dim": [1.0, 0.707],
    "attention_factor": [1.0, 1.2],
    "truncate": [True, False],
    "partial_rotary_factor": [1.0] * 6 + [0.5],
}


def configuration(chosen: random.Random) -> dict:
    """Any of the fields, with what makes sense, and now and then what does not."""

    def some(values: dict, share: float) -> dict:
        return {
            name: chosen.choice(NONSENSE if chosen.random() < 0.01 else sane)
            for name, sane in values.items()
            if chosen.random() < share
        }

    def now_and_then(instead_of):
        return chosen.choice(NONSENSE) if chosen.random() < 0.03 else instead_of

    values = some(SIZES, 1) | some(SANE, 0.5)
    mechanism = ATTENTION.get(str(values.get("attention")), ATTENTION["mla"])
    known = OPTIONS if chosen.random() < 0.1 else {name: OPTIONS[name] for name in sorted(mechanism.option_names())}
    if chosen.random() < 0.6:
        values["attention_options"] = now_and_then(some(known, 0.4))
    if chosen.random() < 0.5:
        values["rope_parameters"] = now_and_then(some(ROPE, 0.95 if chosen.random() < 0.7 else 0.3))
    return values


NAMES = {*SIZES, *SANE, *OPTIONS, *ROPE, "attention_options", "rope_parameters"}


def outcome(values: dict) -> str:
    """Return `works`, or the name of the field that was refused.

    Raises:
        AssertionError: neither.
    """
    try:
        config = DecoderConfig(**values)
    except UserError as error:
        named = [name for name in re.findall(r"\w+", str(error)) if name in NAMES]
        assert named and "\n" not in str(error), f"refused without a name: {error}"
        return f"refused {named[0]}"
    torch.manual_seed(0)
    model = DecoderForCausalLM(config)
    tokens = torch.randint(config.vocab_size, (2, min(7, config.max_position_embeddings)))
    train_a_step(model, tokens)
    decode(model, tokens, 1e-3)  # in single precision other kernels serve, and weights may be as large as any
    decode(model.double(), tokens, 1e-9)
    return "works"


def train_a_step(model: DecoderForCausalLM, tokens: torch.Tensor) -> None:
    """Hold a training step to finite numbers everywhere."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loss = model.train()(tokens, shift_labels=tokens, labels=tokens).loss
    loss.backward()
    assert loss.isfinite(), f"loss is {loss}"
    for name, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all(), f"gradient of {name}"
    optimizer.step()


@torch.inference_mode()
def decode(model: DecoderForCausalLM, tokens: torch.Tensor, tolerance: float) -> None:
    """Hold decoding from the cache, after a prompt of one token, to the full forward pass."""
    whole = model.eval()(tokens).logits
    cache, parts = None, []
    for position in range(tokens.shape[1]):
        output = model(tokens[:, position : position + 1], past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        parts.append(output.logits)
    error = (torch.cat(parts, dim=1) - whole).abs().max() / whole.abs().max().clamp(min=1e-30)
    assert error <= tolerance, f"decoding is {error:.1e} away from the whole, in {whole.dtype}"


def try_many(count: int, seed: int) -> tuple[Counter, list]:
    """Return how often each outcome was met, and those that were none: the values and what went wrong."""
    counts, wrong = Counter(), []

    @hypothesis.seed(seed)
    @hypothesis.settings(max_examples=count, database=None, deadline=None, phases=[hypothesis.Phase.generate])
    @hypothesis.given(strategies.randoms(use_true_random=True).map(configuration))
    def check(values):
        try:
            counts[outcome(values)] += 1
        except Exception as error:  # whatever it is, it is not a refusal by name
            wrong.append((values, error))

    check()
    return counts, wrong


def main() -> int:
    """Report what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    counts, wrong = try_many(given.count, given.seed)
    for said, number in counts.most_common():
        print(f"{said}: {number}")
    for values, error in wrong:
        print(f"{type(error).__name__} {' '.join(str(error).split())[:200]} from {values}")
    print(f"tried: {counts.total() + len(wrong)}, neither working nor refused by name: {len(wrong)}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
