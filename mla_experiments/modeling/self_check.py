"""Beyond the tested versions: does decoding from a cache still give what the whole pass gives?

A library once renamed the cache's argument, and a model that swallowed the new name wrote nonsense without a word.
"""

from functools import cache

import torch

from .. import versions
from ..errors import UserError, reason_of
from .attention.hybrid import names_in

PROMPT, NEW = 5, 6  # tokens
_problems: dict[str, str | None] = {}  # by mechanism, as far as it was asked for


@cache
def untested() -> dict[str, str]:
    """Return which of torch and transformers are newer than what was tested, with their versions."""
    return {name: version for name, version in versions.beyond().items() if name in ("torch", "transformers")}


def check_decoding(attention: str) -> None:
    """Beyond the tested versions, compare cached with uncached tokens of a miniature, once in a process.

    Args:
        attention: name of a registered mechanism, or the pattern of a hybrid.

    Raises:
        UserError: they differ, or decoding fails.
    """
    if not untested() or torch.compiler.is_compiling():
        return
    if attention not in _problems:
        _problems[attention] = None  # the miniature decodes too
        _problems[attention] = _problem(attention)
    if _problems[attention]:
        found = " and ".join(f"{name} {version}" for name, version in untested().items())
        tested = ", ".join(f"{name} {versions.TESTED[name][1]}" for name in untested())
        raise UserError(
            f"{found} is newer than what was tested ({tested}), and a miniature of {attention} {_problems[attention]}; "
            f"install what was tested: {versions.remedy(list(untested()))}"
        )


def _problem(attention: str) -> str | None:
    try:
        return None if _agrees(attention) else "writes other tokens from its cache than without one"
    except Exception as error:
        return f"fails to decode ({reason_of(error)})"


@torch.no_grad()
def _agrees(attention: str) -> bool:
    from .configuration import DecoderConfig
    from .decoder import DecoderForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = DecoderConfig(
            vocab_size=64, hidden_size=32, intermediate_size=32, num_attention_heads=4,
            num_hidden_layers=2 * len(names_in(attention)),
            max_position_embeddings=2 * (PROMPT + NEW), attention=attention, initializer_range=0.3,
        )  # fmt: skip
        model = DecoderForCausalLM(config).eval()
        tokens = torch.randint(0, 64, (1, PROMPT))
    cached = model.generate(tokens, max_new_tokens=NEW, do_sample=False, eos_token_id=None)
    whole = tokens
    for _ in range(NEW):
        whole = torch.cat((whole, model(whole, use_cache=False).logits[:, -1:].argmax(-1)), dim=1)
    return torch.equal(cached, whole)
