"""Decoder language models whose attention is chosen by name. Knows nothing of data, training or reports."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from .cache_dtype import set_cache_dtype
from .configuration import DecoderConfig
from .decoder import (
    DecoderForCausalLM,
    DecoderForQuestionAnswering,
    DecoderForSequenceClassification,
    DecoderForTokenClassification,
    DecoderModel,
)
from .devices import device, device_name
from .loading import load_model
from .weight_dtype import set_weight_dtype

AutoConfig.register(DecoderConfig.model_type, DecoderConfig)
AutoModel.register(DecoderConfig, DecoderModel)
AutoModelForCausalLM.register(DecoderConfig, DecoderForCausalLM)
AutoModelForSequenceClassification.register(DecoderConfig, DecoderForSequenceClassification)
AutoModelForTokenClassification.register(DecoderConfig, DecoderForTokenClassification)
AutoModelForQuestionAnswering.register(DecoderConfig, DecoderForQuestionAnswering)

__all__ = [
    "DecoderConfig",
    "DecoderForCausalLM",
    "DecoderModel",
    "device",
    "device_name",
    "load_model",
    "set_cache_dtype",
    "set_weight_dtype",
]
