"""What calibration text says of a layer: second moments of its inputs and queries, and how far its heads look.

An error δ in the score of query t for token s, of probability p, moves what head i gives by p δ W_i^O (v_s - o_t) to
first order: the derivative of softmax. So (i, t, s) counts by w = p² |W_i^O (v_s - o_t)|², which is all that these
moments know of the output. They are sums over tokens, of the size of one layer, whatever the text's length. Where most
of an input is the same for all tokens, rounding to single precision would be more than the rest of it, and the sums no
longer positive: so they are taken in double.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ..errors import UserError
from ..modeling import DecoderForCausalLM
from ..modeling.attention.heads import split_heads
from ..modeling.attention.rope import rotate
from .grouped_maps import KeysAndValues, as_numbers, in_pairs

Tensor = torch.Tensor
LEAST_MOVED = 1e-30  # |W_i^O (v_s - o_t)|² of a head that was pruned by zeros: it counts for nothing, but not as 0 / 0
EVERY = 4  # queries between those of which the mixed inputs are taken: neighbours mix much the same


@dataclass
class Moments:
    """Moments of one layer in double precision; E is its width, and 1 for biases at the end.

    Attributes:
        read: C^K, `[E, E]`: inputs, weighted by w as they are read by keys, of mean weight 1.
        attended: C^V, `[E, E]`: inputs as attention mixes them.
        asked: C of queries, `[E, E]`: inputs, weighted by w of what is asked at them, of mean weight 1; None where it
            was not summed up, since queries of low rank alone need it.
        queries: `[H, d, d]`: Σ_t Σ_s w q qᵀ a query token; rotary pairs half-split, not turned, the scale in them.
        distances: `[H, T]`: Σ w by the distance t - s.
        tokens: how many query tokens were seen.
    """

    read: Tensor
    attended: Tensor
    asked: Tensor | None
    queries: Tensor
    distances: Tensor
    tokens: int

    @property
    def query_energy(self) -> Tensor:
        """E|q_if|², `[H, F]`, by w."""
        first, second = self.queries.diagonal(dim1=1, dim2=2).chunk(2, dim=1)
        return first + second

    def content_queries(self, stand_in: Tensor) -> Tensor:
        """Return `queries` after every pair has been multiplied by conj(c), c `[H, F]` complex."""
        real, imaginary = (torch.diag_embed(part) for part in (stand_in.real, stand_in.imag))
        turn = torch.cat((torch.cat((real, imaginary), dim=2), torch.cat((-imaginary, real), dim=2)), dim=1)
        return turn @ self.queries @ turn.transpose(1, 2)


def layer_inputs(
    model: DecoderForCausalLM, windows: Tensor
) -> Iterator[tuple[KeysAndValues, Tensor, tuple[Tensor, ...], Tensor]]:
    """Yield every layer's attention, its normed inputs, its rotations and the residual stream before it, in order.

    Inputs and stream are `[N, T, D]`.

    Args:
        model: the decoder.
        windows: `[N, T]` token ids.

    Raises:
        UserError: an input that is not finite, by its layer.
    """
    decoder = model.model
    x = torch.cat([decoder.embed_tokens(row.unsqueeze(0)) for row in windows])
    rotation = decoder.rotary_emb(torch.arange(windows.shape[1]).unsqueeze(0), x.dtype)
    for number, layer in enumerate(decoder.layers):
        if not bool(x.isfinite().all()):
            raise UserError(f"the input of layer {number} is not finite on the calibration text; mend the model")
        normed = torch.cat([layer.input_layernorm(row.unsqueeze(0)) for row in x])
        yield layer.self_attn, normed, rotation, x
        x = torch.cat([layer(row.unsqueeze(0), rotation) for row in x])


def moments_of(layer: KeysAndValues, inputs: Tensor, rotation: tuple[Tensor, ...], of_queries: bool) -> Moments:
    """Return the moments of a layer of keys and values over windows of text.

    Args:
        layer: as in Llama.
        inputs: `[N, T, D]`, what it gets.
        rotation: cosines and sines, `[1, T, F]`.
        of_queries: whether to sum up `asked`.
    """
    heads, width, length = layer.num_heads, layer.head_dim, inputs.shape[1]
    has_bias = layer.k_proj.bias is not None
    size = inputs.shape[2] + has_bias
    shapes = ((size, size), (size, size), (heads, width, width), (heads, length))
    read, attended, queries, distances = (torch.zeros(shape, dtype=torch.float64) for shape in shapes)
    asked = torch.zeros_like(read) if of_queries else None
    made = Moments(read, attended, asked, queries, distances, tokens=0)
    distance = (torch.arange(length).unsqueeze(1) - torch.arange(length)).clamp(min=0).flatten()
    for window in inputs:
        rows = (F.pad(window, (0, 1), value=1.0) if has_bias else window).double()  # [T, E]
        query, probabilities, weights = weights_of_scores(layer, window, rotation)
        made.read += (rows * weights.sum((0, 1)).unsqueeze(1)).T @ rows
        if made.asked is not None:
            made.asked += (rows * weights.sum((0, 2)).unsqueeze(1)).T @ rows
        mixed = (probabilities[:, ::EVERY].double() @ rows).flatten(0, 1)  # [H T / EVERY, E]
        made.attended += mixed.T @ mixed * (EVERY / heads)
        flat = as_numbers(in_pairs(query.transpose(1, 2), layer.rope_interleave), 1).transpose(1, 2)  # [H, T, d]
        made.queries += torch.einsum("ht,htd,hte->hde", weights.sum(2), flat, flat)
        made.distances.scatter_add_(1, distance.expand(heads, -1), weights.flatten(1).double())
        made.tokens += length
    made.read /= made.distances.sum()
    if made.asked is not None:
        made.asked /= made.distances.sum()
    made.attended /= made.tokens
    made.queries /= made.tokens * width
    return made


def weights_of_scores(
    layer: KeysAndValues, window: Tensor, rotation: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, not turned `[H, T, d]`, probabilities `[H, T, T]` and w `[H, T, T]` of a window `[T, D]`."""
    width, each = layer.head_dim, layer.num_heads // layer.num_key_value_heads
    rows = window.unsqueeze(0)
    query, key, value = (split_heads(part(rows), width) for part in (layer.q_proj, layer.k_proj, layer.v_proj))
    turned = [rotate(part, rotation, layer.rope_interleave)[0] for part in (query, key)]
    scores = turned[0] @ turned[1].repeat_interleave(each, dim=0).transpose(1, 2) * width**-0.5
    hidden = torch.ones_like(scores[0], dtype=torch.bool).triu(1)
    probabilities = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    value = value[0].repeat_interleave(each, dim=0)  # [H, T, d]
    output = layer.o_proj.weight.view(-1, layer.num_heads, width).transpose(0, 1)  # [H, D, d]
    metric = output.transpose(1, 2) @ output  # [H, d, d]: |W^O x|² = x metric x
    read = probabilities @ value
    there, here = (((x @ metric) * x).sum(-1) for x in (value, read))
    moved = there.unsqueeze(1) + here.unsqueeze(2) - 2 * (read @ metric) @ value.transpose(1, 2)
    return query[0], probabilities, probabilities.square() * moved.clamp(min=LEAST_MOVED)
