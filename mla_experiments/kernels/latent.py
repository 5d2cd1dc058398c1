"""Attention over latents (absorbed MLA): one function, several backends, one file each.

A backend is a module with `attend_latents`, `why_not_here()` (what this machine lacks for it), `why_not(...)` (what in
these very tensors it cannot serve), both None where there is nothing in the way, and `pays(query)`, which says whether
to choose it unasked. It may import a library that is not installed: then that is what is missing.
"""

import importlib
from functools import cache
from types import ModuleType

import torch

from ..errors import UserError
from . import eager, latent_torch, sdpa, stored_c
from .stored import Stored

# the fastest first; the last one serves every device, dtype, shape and mask, and has gradients
BACKENDS = {
    "flashmla": ".latent_flashmla",
    "flashinfer": ".latent_flashinfer",
    "triton": ".latent_triton",
    "c": ".latent_c",
    "torch": ".latent_torch",
}
_forced: str | None = None


def attend_latents(
    query: torch.Tensor,
    latents: torch.Tensor | Stored,
    value_width: int,
    mask: torch.Tensor | None,
    scale: float,
    attentions: list[torch.Tensor] | None = None,
) -> torch.Tensor:
    """Return softmax(scale · query latentsᵀ + mask) latents[..., :value_width], by the fastest backend that serves it.

    Args:
        query: `[B, H, T, W]`, folded into the latent space.
        latents: `[B, S, W]`, W = d_c + d_R; or as a cache keeps them.
        value_width: d_c.
        mask: `[B or 1, 1, T, S]`, boolean (True attends) or additive; None means causal when T > 1, where T must
            equal S, and everything when T == 1.
        scale: factor on the scores before the softmax.
        attentions: where given, the probabilities `[B, H, T, S]` are appended to it, and no backend is asked.

    Returns:
        `[B, H, T, value_width]`.

    Raises:
        UserError: the backend that was forced cannot serve these tensors.
    """
    if isinstance(latents, Stored):
        if attentions is None and reads_stored(query, latents, mask):
            return stored_c.attend(query, latents.unsqueeze(1), None, value_width, mask, scale)
        latents = latents.plain()
    if attentions is not None:
        shared = latents.unsqueeze(1)  # [B, 1, S, W]
        output, probabilities = eager.attend(query, shared, shared[..., :value_width], mask, scale)
        attentions.append(probabilities)
        return output
    if _forced is not None:
        backend = load(_forced)
        reason = backend.why_not(query, latents, value_width, mask)
        if reason:
            raise UserError(f"backend={_forced} cannot serve this attention: {reason}; choose another or none.")
        return backend.attend_latents(query, latents, value_width, mask, scale)
    if torch.compiler.is_compiling():
        return latent_torch.attend_latents(query, latents, value_width, mask, scale)
    for backend in usable():
        if backend.pays(query) and backend.why_not(query, latents, value_width, mask) is None:
            return backend.attend_latents(query, latents, value_width, mask, scale)
    return latent_torch.attend_latents(query, latents, value_width, mask, scale)


def reads_stored(query: torch.Tensor, latents: Stored, mask: torch.Tensor | None) -> bool:
    """Return whether latents are read as a cache keeps them, and are not made plain before.

    Raises:
        UserError: the backend that was forced cannot read them.
    """
    if _forced not in (None, "c", "torch"):
        kind = str(latents.rows.dtype).removeprefix("torch.")
        raise UserError(f"backend={_forced} cannot read a cache that is kept in {kind}; choose c, torch or none.")
    few = query.shape[2] == 1 or (mask is not None and query.shape[2] <= sdpa.FEW_TOKENS)
    return _forced != "torch" and few and stored_c.why_not(query, latents, None, mask) is None


def load(name: str) -> ModuleType:
    """Return a backend's module; raises `ImportError` where a library that it needs is not installed."""
    return importlib.import_module(BACKENDS[name], __package__)


@cache
def usable() -> tuple[ModuleType, ...]:
    """Return the backends that can run on this machine, the fastest first."""
    return tuple(load(name) for name, reason in reasons().items() if reason is None)


def reasons() -> dict[str, str | None]:
    """Return for every backend why it cannot be used on this machine, or None where it can."""
    found: dict[str, str | None] = {}
    for name in BACKENDS:
        try:
            found[name] = load(name).why_not_here()
        except ImportError as error:
            found[name] = f"{error.name or error} is not installed"
    return found


def forced() -> str | None:
    """Return the backend that all attention over latents must use, if one is forced."""
    return _forced


def force_backend(name: str | None) -> None:
    """Use one backend for all attention over latents from now on; None chooses the fastest for each call again.

    Raises:
        UserError: unknown name, or a backend that cannot run on this machine.
    """
    global _forced
    if name is not None:
        if name not in BACKENDS:
            raise UserError(f"backend={name} is unknown; choose one of {', '.join(BACKENDS)}.")
        reason = reasons()[name]
        if reason:
            raise UserError(f"backend={name} cannot run here: {reason}; see `mla-experiments kernels`.")
    _forced = name
