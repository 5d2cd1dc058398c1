"""A cache layer that grows by doubling, shared by every mechanism.

transformers' `DynamicLayer` concatenates: each new token copies all that is cached. This one writes new tokens into a
buffer with room to spare, so that a token costs its own bytes. A full buffer doubles, up to `LARGEST_ROOM`.
"""

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from ..allocator import prefer_large_pages

PAGE = 64  # tokens: capacities are multiples of it, so that kernels which read pages (`kernels/paged.py`) read in place
LARGEST_ROOM = 2 << 20  # bytes a buffer: beyond it, memory that stands empty would cost more than copying saves


class GrowingLayer(DynamicLayer):
    """Keys `[B, G, S, D]` and values `[B, G, S, Dv]` of one layer: the filled parts of buffers of capacity C >= S."""

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Start empty, in the shape, dtype and device of the first tokens."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = key_states[..., :0, :], value_states[..., :0, :]
        self.key_buffer, self.value_buffer = self.keys, self.values
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """Append T new tokens and return all S + T as `[B, G, S + T, ...]`."""
        recorded = torch.is_grad_enabled() and (key_states.requires_grad or value_states.requires_grad)
        if recorded or torch.compiler.is_compiling():
            return super().update(key_states, value_states)  # autograd keeps what it saw: nothing may be written into
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys, self.key_buffer = append(self.keys, self.key_buffer, key_states)
        self.values, self.value_buffer = append(self.values, self.value_buffer, value_states)
        return self.keys, self.values


def append(filled: torch.Tensor, buffer: torch.Tensor, new: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Write `new` `[B, G, T, D]` after `filled` `[B, G, S, D]` and return the whole, and the buffer that it lies in.

    Cropping leaves `filled` at the start of the buffer, where the next token goes over what was cropped. Selecting or
    reordering the batch (beam search) leaves it elsewhere; it is then moved to a new buffer, as when this one is full.
    """
    past, total = filled.shape[-2], filled.shape[-2] + new.shape[-2]
    in_place = filled.data_ptr() == buffer.data_ptr() and filled.shape[:2] == buffer.shape[:2]
    if not in_place or total > buffer.shape[-2]:
        token_bytes = max(1, filled[..., :1, :].numel() if past else new[..., :1, :].numel()) * new.element_size()
        capacity = total + max(1, min(past, LARGEST_ROOM // token_bytes))
        buffer = filled.new_empty((*filled.shape[:2], -(-capacity // PAGE) * PAGE, filled.shape[-1]))
        prefer_large_pages(buffer)
        buffer[..., :past, :] = filled
    buffer[..., past:total, :] = new
    return buffer[..., :total, :], buffer


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
