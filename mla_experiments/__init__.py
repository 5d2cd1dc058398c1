"""Train, compare and decode attention mechanisms: MHA, GQA, MQA and MLA.

Importing it makes the models known to transformers' `AutoConfig`, `AutoModel` and the like: at once where transformers
is imported already, else as soon as it is. Nothing heavy is imported before it is asked for (PEP 562).
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - in a clone; before anything that an older Python cannot read
    sys.stderr.write("error: this Python is too old for mla-experiments; use 3.11 or newer\n")
    raise SystemExit(2)

import importlib

from . import registration

__version__ = "0.2.0"
_WHERE = {
    "DecoderConfig": ".modeling", "DecoderForCausalLM": ".modeling", "load_model": ".modeling",
    "GQA": ".modeling.attention", "MHA": ".modeling.attention", "MLA": ".modeling.attention",
    "MQA": ".modeling.attention", "TPA": ".modeling.attention", "MFA": ".modeling.attention",
    "set_decode_mode": ".modeling.attention", "Attention": ".modeling.attention", "register": ".modeling.attention",
    "RotaryEmbedding": ".modeling.attention.rope",
}  # fmt: skip
__all__ = list(_WHERE)

registration.register_with_transformers()


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import versions

    versions.refuse_old(ImportError)
    return getattr(importlib.import_module(_WHERE[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
