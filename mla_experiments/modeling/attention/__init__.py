"""The registry of attention mechanisms. To add one: write its file and name its class here."""

from .base import Attention, set_decode_mode
from .gqa import GQA
from .mha import MHA
from .mla import MLA
from .mqa import MQA

ATTENTION: dict[str, type[Attention]] = {"mha": MHA, "gqa": GQA, "mqa": MQA, "mla": MLA}

__all__ = ["ATTENTION", "GQA", "MHA", "MLA", "MQA", "Attention", "set_decode_mode"]
