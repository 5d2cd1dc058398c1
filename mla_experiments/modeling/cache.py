"""A cache layer that grows by doubling, shared by every mechanism.

transformers' `DynamicLayer` concatenates: each new token copies all that is cached. This one writes new tokens into a
buffer with room to spare, so that a token costs its own bytes. A full buffer doubles, up to `LARGEST_ROOM`.
"""

from dataclasses import dataclass

import torch
from transformers import cache_utils
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer, QuantizedLayer

from ..allocator import prefer_large_pages
from ..kernels.plain import is_plain

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

    def append(self, new: torch.Tensor) -> torch.Tensor:
        """Write `new` `[B, G, T, D]` after what is used, where there is room, and return all that is used then."""
        past, self.used = self.used, self.used + new.shape[-2]
        self.memory[..., past : self.used, :] = new
        return self.memory[..., : self.used, :]


class GrowingLayer(DynamicLayer):
    """Keys `[B, G, S, D]` and values `[B, G, S, Dv]` of one layer: the filled parts of buffers of capacity C >= S."""

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Start empty, in the shape, dtype and device of the first tokens."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = key_states[..., :0, :], value_states[..., :0, :]
        self.key_buffer, self.value_buffer = Buffer(self.keys), Buffer(self.values)
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """Append T new tokens and return all S + T as `[B, G, S + T, ...]`; other arguments are for other layers."""
        held = (self.keys, self.values) if self.is_initialized else ()
        if torch.is_grad_enabled() or not is_plain(key_states, value_states, *held):
            return super().update(key_states, value_states)  # autograd keeps what any query saw: nothing is reused
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys, self.key_buffer = append(self.keys, self.key_buffer, key_states)
        self.values, self.value_buffer = append(self.values, self.value_buffer, value_states)
        return self.keys, self.values

    def crop(self, *args, **kwargs) -> None:
        """Leave the last tokens out; the next ones are written over them."""
        if not self.is_initialized:
            return  # of a layer that an early exit has left out
        own = is_plain(self.keys, self.values)
        own = own and self.key_buffer.holds(self.keys) and self.value_buffer.holds(self.values)
        super().crop(*args, **kwargs)
        if own:
            self.key_buffer.used = self.value_buffer.used = self.keys.shape[-2]


def append(filled: torch.Tensor, buffer: Buffer, new: torch.Tensor) -> tuple[torch.Tensor, Buffer]:
    """Write `new` `[B, G, T, D]` after `filled` `[B, G, S, D]` and return the whole, and the buffer that it lies in.

    Selecting or reordering the batch (beam search) leaves `filled` outside the buffer; it is then moved to a new one,
    as when this one is full.
    """
    past, total = filled.shape[-2], filled.shape[-2] + new.shape[-2]
    frozen = buffer.memory.is_inference() and not torch.is_inference_mode_enabled()  # may not be written into any more
    if frozen or not buffer.holds(filled) or total > buffer.memory.shape[-2]:
        token_bytes = max(1, filled[..., :1, :].numel() if past else new[..., :1, :].numel()) * new.element_size()
        capacity = total + max(1, min(past, LARGEST_ROOM // token_bytes))
        memory = filled.new_empty((*filled.shape[:2], -(-capacity // PAGE) * PAGE, filled.shape[-1]))
        prefer_large_pages(memory)
        buffer = Buffer(memory)
        buffer.append(filled)
    return buffer.append(new), buffer


def growing(cache: Cache) -> Cache:
    """Make a transformers cache that is still empty grow in place of copying, and return it.

    Its static, quantised, offloaded and already filled layers stay as they are.
    """
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


def quantised_in(layer: CacheLayerMixin | None) -> int | None:
    """Return how many numbers a quantising layer of a cache scales together (1 if it says none), None for others."""
    return getattr(layer, "q_group_size", 1) if isinstance(layer, QUANTISED) else None
