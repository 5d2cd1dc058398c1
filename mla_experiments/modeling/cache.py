"""Cache layers that grow by doubling, shared by every mechanism: one as it is computed, one in fewer bits.

transformers' `DynamicLayer` concatenates: each new token copies all that is cached. This one writes new tokens into a
buffer with room to spare, so that a token costs its own bytes. A full buffer doubles, up to `LARGEST_ROOM`.

What is kept in fewer bits (`kernels/stored.py`) is read as it is kept by every pass, prompts too: in one pass, in
chunks or token by token, a model computes the same.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import cache_utils
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer, QuantizedLayer

from ..allocator import prefer_large_pages
from ..errors import UserError
from ..kernels import stored_c
from ..kernels.plain import is_plain
from ..kernels.stored import MOST_PARTS, STORED, Stored, packed, packed_width

PAGE = 64  # tokens: capacities are multiples of it, so that kernels which read pages (`kernels/paged.py`) read in place
LARGEST_ROOM = 2 << 20  # bytes a buffer: beyond it, memory that stands empty would cost more than copying saves

QUANTISED = getattr(cache_utils, "BaseQuantizedLayer", QuantizedLayer)  # which older versions lack


@dataclass
class Buffer:
    """Memory `[B, G, C, D]` for C tokens, of which the first `used` have been written.

    Copies of a layer share it. Whoever holds all that is used may write on; whoever holds less (a copy that fell
    behind, an earlier state that was put back) would write over what another holds, and moves to a buffer of its own.
    """

    memory: torch.Tensor
    used: int = 0

    def holds(self, filled: torch.Tensor) -> bool:
        """Return whether `filled` `[B, G, S, D]` is all that was written here."""
        all_of_it = filled.shape[-2] == self.used and filled.shape[:2] == self.memory.shape[:2]
        return all_of_it and filled.data_ptr() == self.memory.data_ptr()

    def append(self, new: torch.Tensor, write: Callable = torch.Tensor.copy_) -> torch.Tensor:
        """Write `new` `[B, G, T, D]` after what is used, where there is room, and return all that is used then.

        Args:
            new: see above.
            write: puts it into a part of the memory.
        """
        past, self.used = self.used, self.used + new.shape[-2]
        write(self.memory[..., past : self.used, :], new)
        return self.memory[..., : self.used, :]


class GrowingLayer(DynamicLayer):
    """Keys `[B, G, S, D]` and values `[B, G, S, Dv]` of one layer: the filled parts of buffers of capacity C >= S."""

    keys: torch.Tensor  # from the first tokens on, as all that follows
    values: torch.Tensor
    key_buffer: Buffer
    value_buffer: Buffer

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Start empty, in the shape, dtype and device of the first tokens."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = key_states[..., :0, :], value_states[..., :0, :]
        self.key_buffer, self.value_buffer = Buffer(self.keys), Buffer(self.values)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append T new tokens and return all S + T as `[B, G, S + T, ...]`; other arguments are for other layers."""
        held = (self.keys, self.values) if self.is_initialized else ()
        if torch.is_grad_enabled() or not is_plain(key_states, value_states, *held):
            return super().update(key_states, value_states)  # autograd keeps what any query saw: nothing is reused
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys, self.key_buffer = append(self.keys, self.key_buffer, key_states)
        self.values, self.value_buffer = append(self.values, self.value_buffer, value_states)
        return self.keys, self.values

    def crop(self, *args: Any, **kwargs: Any) -> None:
        """Leave the last tokens out; the next ones are written over them."""
        if not self.is_initialized:
            return  # of a layer that an early exit has left out
        own = is_plain(self.keys, self.values)
        own = own and self.key_buffer.holds(self.keys) and self.value_buffer.holds(self.values)
        super().crop(*args, **kwargs)
        if own:
            self.key_buffer.used = self.value_buffer.used = self.keys.shape[-2]


def append(
    filled: torch.Tensor, buffer: Buffer, new: torch.Tensor, write: Callable = torch.Tensor.copy_
) -> tuple[torch.Tensor, Buffer]:
    """Write `new` `[B, G, T, D]` after `filled` `[B, G, S, D]` and return the whole, and the buffer that it lies in.

    Selecting or reordering the batch (beam search) leaves `filled` outside the buffer; it is then moved to a new one,
    as when this one is full. `write` is as in `Buffer.append`.
    """
    past, total = filled.shape[-2], filled.shape[-2] + new.shape[-2]
    frozen = buffer.memory.is_inference() and not torch.is_inference_mode_enabled()  # may not be written into any more
    if frozen or not buffer.holds(filled) or total > buffer.memory.shape[-2]:
        token_bytes = max(1, math.prod(filled.shape[:2]) * filled.shape[-1] * filled.element_size())
        capacity = total + max(1, min(past, LARGEST_ROOM // token_bytes))
        memory = filled.new_empty((*filled.shape[:2], -(-capacity // PAGE) * PAGE, filled.shape[-1]))
        prefer_large_pages(memory)
        buffer = Buffer(memory)
        buffer.append(filled)
    return buffer.append(new, write), buffer


class StoredLayer(GrowingLayer):
    """Keys and values of one layer in fewer bits, `kernels.stored.Stored` of what lies in the buffers.

    Args:
        dtype: one of `STORED`.
    """

    def __init__(self, dtype: str):
        super().__init__()
        self.kept_as = STORED[dtype]
        self.parts: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())  # of keys and of values

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Start empty, in the shape and device of the first tokens; whole rows have one scale."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.parts = (self._parts(key_states, self.parts[0]), self._parts(value_states, self.parts[1]))
        self.keys, self.values = (
            new.new_empty((*new.shape[:2], 0, packed_width(parts) if parts else new.shape[-1]), dtype=self.kept_as)
            for new, parts in zip((key_states, value_states), self.parts, strict=True)
        )
        self.key_buffer, self.value_buffer = Buffer(self.keys), Buffer(self.values)
        self.is_initialized = True

    def _parts(self, new: torch.Tensor, parts: tuple[int, ...]) -> tuple[int, ...]:
        whole = (new.shape[-1],) if new.shape[-1] else ()
        return (parts or whole) if self.kept_as is torch.int8 else ()

    def kept(self) -> tuple[Stored, Stored]:
        """Return all that is kept, as it lies."""
        return Stored(self.keys, self.parts[0], self.dtype), Stored(self.values, self.parts[1], self.dtype)

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        *args: Any,
        parts: tuple[int, ...] = (),
        as_kept: bool = False,
        **kwargs: Any,
    ) -> tuple[Any, Any]:
        """Append T new tokens and return all S + T, as they lie or as they are computed with.

        Args:
            key_states: `[B, G, T, D]`.
            value_states: `[B, G, T, Dv]`.
            args: for other layers.
            parts: of a row of keys, see `kernels.stored`; those of the first tokens are kept.
            as_kept: whether the caller reads `Stored`.
            kwargs: for other layers.

        Raises:
            UserError: gradients are asked for.
        """
        if torch.is_grad_enabled() and (key_states.requires_grad or value_states.requires_grad):
            raise UserError("a cache in fewer bits rounds, and has no gradients; compute under torch.no_grad()")
        if not self.is_initialized:
            self.parts = (parts, ())
            self.lazy_initialization(key_states, value_states)
        if is_plain(key_states, value_states, self.keys, self.values):
            writers = [partial(_write, parts=one) for one in self.parts]
            self.keys, self.key_buffer = append(self.keys, self.key_buffer, key_states, writers[0])
            self.values, self.value_buffer = append(self.values, self.value_buffer, value_states, writers[1])
        else:
            news = [
                packed(new, one) if one else new.to(self.kept_as)
                for new, one in zip((key_states, value_states), self.parts, strict=True)
            ]
            self.keys, self.values = (
                torch.cat(pair, dim=-2) for pair in zip((self.keys, self.values), news, strict=True)
            )
            as_kept = False
        keys, values = self.kept()
        return (keys, values) if as_kept else (keys.plain(), values.plain())


def _write(into: torch.Tensor, new: torch.Tensor, parts: tuple[int, ...]) -> None:
    """Put new numbers into a part of a buffer, in the form that its rows have."""
    if not parts:
        into.copy_(new)
    elif new.dtype is torch.float32 and new.is_cpu and stored_c.why_not_here() is None and len(parts) <= MOST_PARTS:
        stored_c.pack(new, parts, into)
    else:
        into.copy_(packed(new, parts))


def growing(cache: Cache, dtype: str | None = None, num_layers: int = 0) -> Cache:
    """Make a transformers cache that is still empty grow in place of copying, and return it.

    Its static, quantised, offloaded and already filled layers stay as they are.

    Args:
        cache: see above.
        dtype: in which it is to keep what it is given, one of `kernels.stored.STORED`; None for as it is given.
        num_layers: of the model; with a dtype all are made at once.

    Raises:
        UserError: a dtype with a cache that cannot be made to keep it.
    """
    if dtype is not None:
        return storing(cache, dtype, num_layers)
    if type(cache) is DynamicCache and not cache.offloading:
        if cache.layer_class_to_replicate is DynamicLayer:
            cache.layer_class_to_replicate = GrowingLayer
        fresh = (
            index
            for index, layer in enumerate(cache.layers)
            if type(layer) is DynamicLayer and not layer.is_initialized
        )
        for index in fresh:
            cache.layers[index] = GrowingLayer()
    return cache


def storing(cache: Cache, dtype: str, num_layers: int) -> Cache:
    """Make a cache that is still empty keep what it is given in fewer bits; see `growing`."""
    stored = [isinstance(layer, StoredLayer) and layer.kept_as is STORED[dtype] for layer in cache.layers]
    if all(stored) and len(stored) == num_layers:
        return cache
    plain = [layer for layer in cache.layers if isinstance(layer, DynamicLayer)]
    empty = all(type(layer) in (DynamicLayer, GrowingLayer) and not layer.is_initialized for layer in plain)
    if type(cache) is not DynamicCache or cache.offloading or not empty or len(plain) < len(cache.layers):
        raise UserError(
            f"cache_dtype={dtype} is for a DynamicCache that is still empty, or none, and not for this "
            f"{type(cache).__name__}; pass none, or set_cache_dtype(model, None)"
        )
    cache.layers = [StoredLayer(dtype) for _ in range(num_layers)]
    return cache


def quantised_in(layer: CacheLayerMixin | None) -> int | None:
    """Return how many numbers a quantising layer of a cache scales together (1 if it says none), None for others."""
    return getattr(layer, "q_group_size", 1) if isinstance(layer, QUANTISED) else None
