"""Decoder language models whose attention is chosen by name. Knows nothing of data, training or reports."""

from transformers import AutoConfig, AutoModelForCausalLM

from .configuration import DecoderConfig
from .decoder import DecoderForCausalLM, DecoderModel
from .devices import device, device_name
from .loading import load_model

AutoConfig.register(DecoderConfig.model_type, DecoderConfig)
AutoModelForCausalLM.register(DecoderConfig, DecoderForCausalLM)

__all__ = ["DecoderConfig", "DecoderForCausalLM", "DecoderModel", "device", "device_name", "load_model"]
