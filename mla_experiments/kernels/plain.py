"""When code outside PyTorch may stand in for a module or read a tensor by its address: when nothing stands around it.

Adapters, quantisers, hooks, offloading, `torch.func`, tracers and counters work on the calls of modules and operators.
A fast path that goes past those calls would leave them out; it is taken where there are none.
"""

from collections.abc import Callable
from typing import TypeGuard, TypeVar

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.modules import module as every_module

NOT_PLAIN = "it reads plain tensors alone: none with gradients, none of a subclass, none that is traced or transformed"
Module = TypeVar("Module", bound=nn.Module)
_FORWARDS: dict[type[nn.Module], Callable] = {
    kind: kind.forward for kind in (nn.Linear, nn.RMSNorm)
}  # as they were before anybody changed them
_HOOKS_OF_ALL = tuple(
    getattr(every_module, f"_global_{kind}_hooks") for kind in ("forward", "forward_pre", "backward", "backward_pre")
)


def is_plain(*tensors: torch.Tensor | None) -> bool:
    """Return whether the numbers of all tensors lie in their memory as they seem to.

    False for subclasses of tensors (quantised, distributed, fake), while compiling, tracing or transforming, and for
    tensors whose gradients are asked for.
    """
    if (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
        or forward_ad._current_level >= 0
    ):
        return False
    graded = torch.is_grad_enabled()
    for tensor in tensors:
        if tensor is None:
            continue
        kind = type(tensor)
        if kind is not torch.Tensor and kind is not nn.Parameter:
            return False
        if (graded and tensor.requires_grad) or tensor.layout is not torch.strided or tensor.is_neg():
            return False
    return True


def is_followed() -> bool:
    """Return whether a mode follows every operator, to count or to record: it must be given operators."""
    return bool(torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack())


def weight_of(module: nn.Module) -> torch.Tensor | None:
    """Return the weight W `[out, in]` of a module whose call is `x @ W.T` for everybody who looks, and else None.

    None for adapters, quantised weights, modules with hooks and whatever else computes more than that or not that.
    """
    if type(module).forward is not _FORWARDS[nn.Linear] or not _only_forwards(module) or module.bias is not None:
        return None
    weight = module.weight  # of a parametrised module, what its parametrisation computes
    return weight if type(weight) in (torch.Tensor, nn.Parameter) else None


def is_untouched(module: nn.Module, kind: type[Module]) -> TypeGuard[Module]:
    """Return whether a module is of exactly a kind, `nn.Linear` or `nn.RMSNorm`, as PyTorch made it.

    Its weight is then a parameter of its own, and its call what its name says, with nothing around it.
    """
    return (
        type(module) is kind
        and kind.forward is _FORWARDS[kind]
        and type(module._parameters.get("weight")) is nn.Parameter
        and stands_alone(module)
    )


def stands_alone(module: nn.Module) -> bool:
    """Return whether nothing stands around a module: its call is its class's forward pass, and nobody looks on."""
    return _only_forwards(module) and not any(_HOOKS_OF_ALL)


def _only_forwards(module: nn.Module) -> bool:
    """Whether calling it is its class's forward pass and nothing else."""
    return (
        "forward" not in module.__dict__
        and module._compiled_call_impl is None
        and not (module._forward_hooks or module._forward_pre_hooks)
        and not (module._backward_hooks or module._backward_pre_hooks)
    )


def may_leave_operators(rows: torch.Tensor, weight: torch.Tensor) -> bool:
    """Return whether code outside PyTorch may map rows in single precision by a weight in any form, on a CPU.

    Args:
        rows: of another dtype they are refused.
        weight: contiguous, or refused.
    """
    return (
        rows.dtype is torch.float32
        and rows.is_cpu
        and weight.is_cpu
        and is_plain(rows, weight)
        and not is_followed()
        and not torch.is_autocast_enabled("cpu")
        and weight.is_contiguous()
    )
