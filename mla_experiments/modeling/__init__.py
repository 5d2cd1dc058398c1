"""Decoder language models whose attention is chosen by name. Knows nothing of data, training or reports."""

from .configuration import DecoderConfig
from .decoder import DecoderForCausalLM, DecoderModel

__all__ = ["DecoderConfig", "DecoderForCausalLM", "DecoderModel"]
