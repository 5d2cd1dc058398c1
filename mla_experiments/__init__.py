"""Train, compare and decode attention mechanisms: MHA, GQA, MQA and MLA.

Importing it makes the models known to transformers' `AutoConfig` and `AutoModelForCausalLM`.
"""

from .modeling import DecoderConfig, DecoderForCausalLM, load_model
from .modeling.attention import GQA, MHA, MLA, MQA, set_decode_mode
from .modeling.attention.rope import RotaryEmbedding

__version__ = "0.1.0"
__all__ = [
    "GQA", "MHA", "MLA", "MQA", "DecoderConfig", "DecoderForCausalLM", "RotaryEmbedding", "load_model",
    "set_decode_mode",
]  # fmt: skip
