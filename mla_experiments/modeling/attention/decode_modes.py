"""How the layers of a model are told in which of their ways to attend."""

from torch import nn

from .base import Attention
from .checks import require


def set_decode_mode(model: nn.Module, mode: str) -> None:
    """Force how every layer of a model attends whose mechanism knows several ways: one answer, at different costs.

    Args:
        model: any module with attention of ours in it.
        mode: for MLA "absorb" (attend over the latents), "expand" (make keys and values of all of them), "auto" (the
            cheaper of the two), or "full" (cache expanded keys and values, as others do; start with a new cache).

    Raises:
        UserError: a mode that no layer of the model knows.
    """
    layers = [module for module in model.modules() if isinstance(module, Attention)]
    known = {name: None for layer in layers for name in layer.decode_modes}
    require(mode in known, f"decode_mode={mode} is unknown; choose one of {', '.join(known)}")
    for layer in layers:
        if mode in layer.decode_modes:
            layer.decode_mode = mode
