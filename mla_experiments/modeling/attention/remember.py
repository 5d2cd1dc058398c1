"""What a layer says to a cache, whatever kind it is: append, and return all that is kept."""

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from ...kernels import Stored, plain
from ..cache import StoredLayer, quantised_in
from .checks import require
from .heads import merge_heads, split_heads

Kept = torch.Tensor | Stored  # what a cache gives back


def remember(
    cache: Cache | None,
    layer: int,
    key: torch.Tensor,
    value: torch.Tensor,
    parts: tuple[int, ...] = (),
    as_kept: bool = False,
) -> tuple[Kept, Kept]:
    """Append to a layer's cache, where there is one, and return all that is kept: `[B, G, S, ...]`.

    Caches of the library want as many heads of values as of keys. Where a mechanism has other numbers of them,
    heads lie side by side in one wide one.

    Args:
        cache: as given to `Attention.forward`.
        layer: its number.
        key: `[B, G, T, D]`.
        value: `[B, G', T, D']`.
        parts: widths of the parts of a key that differ in size, for caches of 8 bits; () for one.
        as_kept: whether the kernels that come next read what a cache keeps in fewer bits, see `kernels.stored`.

    Raises:
        UserError: the cache holds tensors of another shape or dtype.
    """
    if cache is None:
        return key, value
    if value.shape[-1] == 0 and (group := quantised_in(held_by(cache, layer))):
        last = min(group, key.shape[-1] // 2)  # quantisers want values too, both in whole groups
        both = remember(cache, layer, key[..., :-last], key[..., -last:])
        whole = torch.cat([plain(part) for part in both], dim=-1)
        return whole, whole[..., :0]
    if key.shape[1] == value.shape[1]:
        check_held(cache, layer, key, value)
        if isinstance(held_by(cache, layer), StoredLayer):
            return cache.update(key, value, layer, parts=parts, as_kept=as_kept)
        return cache.update(key, value, layer)
    widths, (key, value) = (key.shape[-1], value.shape[-1]), (merge_heads(x).unsqueeze(1) for x in (key, value))
    check_held(cache, layer, key, value)
    keys, values = cache.update(key, value, layer)
    return split_heads(keys.squeeze(1), widths[0]), split_heads(values.squeeze(1), widths[1])


def remember_state(
    cache: Cache | None,
    layer: int,
    state: torch.Tensor,
    mask: torch.Tensor | None,
    parts: tuple[int, ...] = (),
    as_kept: bool = False,
) -> Kept:
    """Append one state a token, from which keys and values both come, and return those that new tokens may see.

    The states fill the cache's keys, and its values are of width 0.

    Args:
        cache: as given to `Attention.forward`.
        layer: its number.
        state: `[B, G, T, D]`.
        mask: as given to `Attention.forward`; without one, several new tokens are a prompt.
        parts: of a state, see `remember`.
        as_kept: see there.

    Returns:
        `[B, G, S, D]`; of a prompt S = T, since the rest of a static cache is still empty.
    """
    kept, _ = remember(cache, layer, state, state[..., :0], parts, as_kept)
    num_new = state.shape[2]
    if mask is None and num_new > 1:
        return kept.first(num_new) if isinstance(kept, Stored) else kept[:, :, :num_new]
    return kept


def held_by(cache: Cache, layer: int) -> CacheLayerMixin | None:
    """Return what a cache holds of a layer, None where it has not come to that layer."""
    held = cache.layers[layer] if layer < len(cache.layers) else None
    return held if isinstance(held, CacheLayerMixin) else None


def check_held(cache: Cache, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
    """Refuse a cache that another model has filled."""
    held = held_by(cache, layer)
    compiling = torch.compiler.is_compiling()  # a static cache's length is a tensor: asking would break the graph
    if held is not None and held.is_initialized and not compiling and held.get_seq_length() > 0:
        olds = held.kept() if isinstance(held, StoredLayer) else (held.keys, held.values)
        for name, new, old in zip(("keys", "values"), (key, value), olds, strict=True):
            if old is None:
                continue
            fits = new.shape[:2] + new.shape[3:] == old.shape[:2] + old.shape[3:] and new.dtype == old.dtype
            require(
                fits or len(old.shape) < 4,  # of what is quantised, a cache shows no tensor
                f"the cache holds {name} of shape {tuple(old.shape)} and {old.dtype}, but this model makes "
                f"{tuple(new.shape)} and {new.dtype}; pass a cache that this model and batch have filled",
            )
