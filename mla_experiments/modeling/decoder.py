"""A decoder language model around any registered attention mechanism, or several, one a layer.

The block is Llama's (Touvron et al. 2023, LLaMA, §2.2): RMSNorm, attention, residual, RMSNorm, SwiGLU, residual,
no biases, no dropout; or its norms stand behind attention and SwiGLU, as in OLMo 2. Weights bear the names of
transformers' Llama and DeepSeek-V3, so with MHA, GQA or MQA the model *is* a Llama and with MLA a dense DeepSeek-V3;
the tests hold it to that.
"""

import functools
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_layers import (
    GenericForQuestionAnswering,
    GenericForSequenceClassification,
    GenericForTokenClassification,
    GradientCheckpointingLayer,
)
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import ModelOutput, logging

from ..errors import UserError
from ..kernels import normalise, project
from ..kernels.plain import is_plain
from .attention.checks import require
from .attention.rope import RotaryEmbedding, Rotation
from .cache import growing
from .cache_name import NAMES, EitherName, by_name, either_name
from .configuration import FULL, SLIDING, DecoderConfig
from .self_check import check_decoding, untested

logger = logging.get_logger(__name__)

# What the Trainer and our rows tell the loss. In the signature, the Trainer would take whatever has "label" in its name
# for something that every row must have.
OF_THE_LOSS = {"shift_labels", "num_items_in_batch"}
Mask = torch.Tensor | dict[str, torch.Tensor] | None  # one for all layers, or by transformers' types of layers
Places = bool | int | list[int] | None  # whether to return hidden states, or which
IMPLEMENTATIONS = ("eager", "sdpa")  # fused is the second's name, whichever kernel serves it


class DecoderOutput(EitherName, BaseModelOutputWithPast):
    """transformers' own, with its cache under both names."""


class CausalLMOutput(EitherName, CausalLMOutputWithPast):
    """transformers' own, with its cache under both names."""


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020, GLU Variants Improve Transformer, eq. 6): W_down (silu(W_gate x) ⊙ W_up x)."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, T, D]` to `[B, T, D]`."""
        return project(self.down_proj, F.silu(project(self.gate_proj, x)) * project(self.up_proj, x))


class DecoderBlock(GradientCheckpointingLayer):
    """RMSNorm, attention, residual; RMSNorm, SwiGLU, residual; the norms behind what they stand before, if so told.

    `norm_placement` "post" is x + RMSNorm(attention(x)), x + RMSNorm(SwiGLU(x)) (OLMo team 2024, 2 OLMo 2 Furious,
    arXiv 2501.00656), whose weights bear the names of transformers' `Olmo2DecoderLayer`.
    """

    def __init__(self, config: DecoderConfig, layer_idx: int):
        super().__init__()
        self.norms_after = config.norm_placement == "post"
        if not self.norms_after:
            self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = config.mechanism(layer_idx)(
            config.hidden_size,
            config.num_attention_heads,
            layer_idx=layer_idx,
            rotary=config.is_rotary(layer_idx),
            rope_interleave=config.rope_interleave,
            rope_parameters=config.rope_parameters,
            rms_norm_eps=config.rms_norm_eps,
            output_gate=config.output_gate,
            qk_norm=config.qk_norm,
            attention_bias=config.attention_bias,
            **config.options_of(layer_idx),
        )
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = MLP(config)
        if self.norms_after:
            self.post_feedforward_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def start_outputs(self, config: DecoderConfig) -> None:
        """Set the matrices that add to the residual stream, in place, as `initialization` says."""
        if config.initialization == "normal":
            return
        of_output = getattr(getattr(self.self_attn, "o_proj", None), "weight", None)
        if not isinstance(of_output, torch.Tensor):
            raise UserError(
                f"initialization={config.initialization!r} needs an output projection by the name of o_proj, which "
                f"attention={config.attention} lacks; choose normal."
            )
        factor = 0 if config.initialization == "zero" else (2 * config.num_hidden_layers) ** -0.5
        for weight in (of_output, self.mlp.down_proj.weight):
            weight.mul_(factor)

    @either_name
    def forward(
        self,
        x: torch.Tensor,
        position_embeddings: Rotation,
        attention_mask: torch.Tensor | None = None,
        attentions: list[torch.Tensor] | None = None,
        cache: Cache | None = None,
    ) -> torch.Tensor:
        """`[B, T, D]` to `[B, T, D]`; arguments as in `Attention.forward`."""
        if self.norms_after:
            attended = self.self_attn(x, position_embeddings, attention_mask, cache, attentions)
            x = x + normalise(self.post_attention_layernorm, attended)
            return x + normalise(self.post_feedforward_layernorm, self.mlp(x))
        normed = normalise(self.input_layernorm, x)
        x = x + self.self_attn(normed, position_embeddings, attention_mask, cache, attentions)
        return x + self.mlp(normalise(self.post_attention_layernorm, x))


class DecoderPreTrainedModel(PreTrainedModel):
    """What transformers needs to know to initialise, save, load and parallelise the decoder."""

    config: DecoderConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _no_split_modules = ["DecoderBlock"]  # noqa: RUF012
    _skip_keys_device_placement = list(NAMES)  # noqa: RUF012
    _supports_sdpa = True

    if TYPE_CHECKING:  # the library wraps these in what type checkers take for no methods
        to: Any
        float: Any
        half: Any
        cuda: Any

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Normal(0, initializer_range) for matrices and embeddings, ones for norms, as Llama and DeepSeek do."""
        super()._init_weights(module)
        if isinstance(module, RotaryEmbedding):  # a model made on the meta device has its buffers filled here
            module.fill()


class DecoderModel(DecoderPreTrainedModel):
    """Token embeddings, the blocks and the last norm.

    Attributes:
        cache_dtype: in which caches keep what they are given, see `set_cache_dtype`.
    """

    cache_dtype: str | None = None

    def __init__(self, config: DecoderConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.positions == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        else:
            self.turning = turning_of(config)
            for name, dim in {name: dim for name, dim, _ in self.turning}.items():
                rotary = RotaryEmbedding(dim, config.rope_parameters, config.max_position_embeddings)
                self.add_module(name, rotary)
        blocks = [DecoderBlock(config, i) for i in range(config.num_hidden_layers)]
        self.layers = nn.ModuleList(blocks)
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()
        with torch.no_grad():
            for block in blocks:  # without memory where weights will be loaded, so that nothing loaded is set anew
                block.self_attn.init_weights(config.initializer_range)
                block.start_outputs(config)

    @either_name
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: Places = None,
        return_dict: bool | None = None,
    ) -> DecoderOutput | tuple:
        """Return the last hidden states `[B, T, D]`, the cache if one is used, and what else is asked for.

        Args:
            input_ids: `[B, T]` token ids; or `inputs_embeds` `[B, T, D]` in their place.
            attention_mask: `[B, S]`, 0 where a token is padding, over cached and new tokens; or `[B, 1, T, S]`, what
                each may see; or those by transformers' types of layers.
            position_ids: `[B, T]`; by default counted from the first token that is not padding.
            cache: the cache to read and extend; `past_key_values` is its other name.
            inputs_embeds: see `input_ids`.
            use_cache: whether to make a cache when none is given; by default not while training.
            output_attentions: whether to return every layer's probabilities `[B, H, T, S]`, which are then made.
            output_hidden_states: whether to return the embeddings and what each block gave, the last one normed; or
                the places of those to return, with None in the others.
            return_dict: False returns a tuple of what there is.

        Raises:
            UserError: no tokens, more than `max_position_embeddings`, a cache that another model filled or that could
                not be filled, or a configuration that was changed to what is not computed here.
        """
        self._check_changed()
        if (input_ids is None) == (inputs_embeds is None):
            raise UserError("input_ids and inputs_embeds are two forms of one argument; give exactly one of them")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if self._checkpoints():
            require(cache is None, "a cache cannot be filled while gradients are checkpointed; pass none.")
        elif cache is None and self._wants_cache(use_cache):
            cache = DynamicCache(config=self.config)
        if cache is not None:
            growing(cache, self.cache_dtype, self.config.num_hidden_layers)
        past = 0 if cache is None else cache.get_seq_length()
        if not torch.compiler.is_compiling():
            if untested() and past > 0:
                check_decoding(self.config.attention)
            self._check_length(x.shape[1], past, None if isinstance(attention_mask, dict) else attention_mask)
        if position_ids is None:
            position_ids = self._positions(x, attention_mask, past)
        masks = self._masks(x, attention_mask, position_ids, cache)
        if self.config.positions == "learned":
            x = x + self.embed_positions(position_ids)
        rotations = self._rotations(x, position_ids, past, cache)
        asked = self._asked(output_attentions, output_hidden_states)
        written_out = asked["attentions"] or self.config._attn_implementation == "eager"
        attentions: list[torch.Tensor] | None = [] if written_out else None
        hidden_states = []
        layers = islice(self.layers, self.config.num_hidden_layers)  # of which an early exit leaves some out
        for layer, window, rotation in zip(layers, self.config.windows(), rotations, strict=False):
            hidden_states.append(x)
            x = layer(x, rotation, masks[window], attentions, cache)  # by name, checkpointing would drop it
        x = normalise(self.norm, x)
        output = DecoderOutput(
            last_hidden_state=x,
            hidden_states=_selected((*hidden_states, x), asked["hidden_states"]),  # type: ignore[arg-type]  # None in some
            attentions=tuple(attentions) if attentions is not None and asked["attentions"] else None,
            **by_name(cache),
        )
        return self._returned(output, return_dict)

    def _rotations(
        self, x: torch.Tensor, position_ids: torch.Tensor, past: int | torch.Tensor, cache: Cache | None
    ) -> list[Rotation]:
        """The tables of each layer, see `Attention.forward`: made once for all that turn alike; without RoPE none."""
        if self.config.positions == "learned":
            return [None] * len(self.layers)
        made = {}
        for turning in dict.fromkeys(self.turning):
            rotary, reader = getattr(self, turning[0]), turning[2]
            made[turning] = rotary(position_ids, x.dtype)
            if reader is not None:
                made[turning] += rotary(positions_kept(position_ids, past, cache, reader), x.dtype)
        return [made[turning] for turning in self.turning]

    def _masks(
        self, x: torch.Tensor, attention_mask: Mask, position_ids: torch.Tensor, cache: Cache | None
    ) -> dict[int | None, torch.Tensor | None]:
        """A mask for layers that see all, and one for those that see a window, as far as there are such.

        `generate` hands them over ready-made, by the types of layers, where it compiles.
        """
        windows = dict.fromkeys(self.config.windows())
        if isinstance(attention_mask, dict):
            return {window: attention_mask[SLIDING if window else FULL] for window in windows}
        given = {"attention_mask": attention_mask, "position_ids": position_ids, **by_name(cache)}
        makers = {window: create_sliding_window_causal_mask if window else create_causal_mask for window in windows}
        return {window: make(self.config, x, **given) for window, make in makers.items()}

    def _check_changed(self) -> None:
        """What anybody may have set on the configuration since it was made."""
        chosen = self.config._attn_implementation
        require(
            chosen in IMPLEMENTATIONS,
            f"attn_implementation={chosen!r} is not known here; choose {' or '.join(IMPLEMENTATIONS)}.",
        )
        require(getattr(self.config, "is_causal", True) is not False, "is_causal=False: all attention here is causal.")

    def _checkpoints(self) -> bool:
        """Whether blocks are run a second time, which would write a second time to a cache."""
        return self.gradient_checkpointing and self.training and torch.is_grad_enabled()

    def _wants_cache(self, use_cache: bool | None) -> bool:
        return self.config.use_cache and not self.training if use_cache is None else use_cache

    def _asked(self, attentions: bool | None, hidden_states: Places) -> dict[str, Any]:
        """What is to be returned beside the last hidden state: as told, or as the configuration says."""
        given = {"attentions": attentions, "hidden_states": hidden_states}
        return {
            name: getattr(self.config, f"output_{name}") if value is None else value for name, value in given.items()
        }

    def _returned(self, output: ModelOutput, return_dict: bool | None) -> Any:
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def _check_length(self, length: int, past: int | torch.Tensor, attention_mask: torch.Tensor | None) -> None:
        require(length > 0, "input_ids holds no tokens; pass at least one new token.")
        limit = self.config.max_position_embeddings
        if past + length > limit and (attention_mask is None or attention_mask.sum(-1).max() > limit):
            said = f"{int(past + length)} tokens are more than max_position_embeddings={limit}"
            require(self.config.positions != "learned", f"{said}, the positions that were learned; shorten the text.")
            logger.warning_once(f"{said}, the longest sequence that this model was made for; it may write nonsense.")

    def _positions(self, x: torch.Tensor, attention_mask: Mask, past: int | torch.Tensor) -> torch.Tensor:
        """Count the tokens from the first that is not padding: `[B or 1, T]`."""
        length = x.shape[1]
        if isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 2:
            return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
        return torch.arange(length, device=x.device).unsqueeze(0) + past


def turning_of(config: DecoderConfig) -> list[tuple[str, int, int | None]]:
    """Return how the heads of each layer turn; layers of which it is the same share their tables.

    Returns:
        The name of the module that makes the tables, how many numbers of a head turn, and, if keys turn when they are
        read, the first layer of which that is so.
    """
    layers = [(config.mechanism(layer), config.options_of(layer)) for layer in range(config.num_hidden_layers)]
    dims = [mechanism.rotary_dim(options) for mechanism, options in layers]
    names = ["rotary_emb" if dim == dims[0] else f"rotary_emb_{dim}" for dim in dims]  # the first is named as Llama's
    turned = [mechanism.turns_when_read for mechanism, _ in layers]
    readers = [turned.index(True) if late else None for late in turned]
    return list(zip(names, dims, readers, strict=True))


def positions_kept(
    position_ids: torch.Tensor, past: int | torch.Tensor, cache: Cache | None, layer: int = 0
) -> torch.Tensor:
    """Return the positions `[B or 1, S]` of all that is kept, which follow one another up to the last new token's.

    Args:
        position_ids: `[B or 1, T]` of the new tokens, which are not in the cache yet.
        past: how many tokens are.
        cache: S is what it will return, for a static one all that it has room for.
        layer: whose cache it is; in other layers a window may be all that is kept.
    """
    num_new = position_ids.shape[1]
    kept = num_new if cache is None else cache.get_mask_sizes(num_new, layer)[0]
    if isinstance(kept, int) and kept == num_new:
        return position_ids
    first = position_ids[:, -1:] - (past + num_new - 1)
    return (first + torch.arange(kept, device=position_ids.device)).clamp(min=0)


def _selected(states: tuple[torch.Tensor, ...], places: Places) -> tuple[torch.Tensor | None, ...] | None:
    """All of `states`, none, or those at `places`, as `output_hidden_states` says."""
    if places is None or isinstance(places, bool):
        return states if places else None
    wanted = {places} if isinstance(places, int) else set(places)
    return tuple(state if {i, i - len(states)} & wanted else None for i, state in enumerate(states))


class DecoderForCausalLM(DecoderPreTrainedModel, GenerationMixin):
    """The decoder with its output projection: next-token logits, a loss, and transformers' `generate()`."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012
    accepts_loss_kwargs = True  # the Trainer then says by how many tokens to divide

    def __init__(self, config: DecoderConfig):
        super().__init__(config)
        self.model = DecoderModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @either_name
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        return_dict: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: Places = None,
        **of_the_loss: Any,
    ) -> CausalLMOutput | tuple:
        """Return logits `[B, T, vocabulary]`; with labels `[B, T]` also the mean cross-entropy in nats.

        Labels follow transformers' convention: `labels` are the inputs themselves and are shifted here, `shift_labels`
        (in `of_the_loss`) have been shifted; -100 is left out. The sum is divided by `num_items_in_batch` (there too).
        `logits_to_keep` is the number of last positions whose logits to compute (0 for all), or the positions: `[N]`,
        `[B, N]`, or `[B, T]` of booleans. All else as in `DecoderModel.forward`.
        """
        if unknown := sorted(name for name in of_the_loss if name not in OF_THE_LOSS):
            raise TypeError(f"forward() got an unexpected keyword argument {unknown[0]!r}")
        outputs = self.model(
            input_ids, attention_mask, position_ids, cache, inputs_embeds, use_cache, output_attentions,
            output_hidden_states, return_dict=True,
        )  # fmt: skip
        hidden_states = outputs.last_hidden_state
        if outputs.cache is not None and is_plain(hidden_states.detach()) and hidden_states.device.type != "meta":
            require(
                bool(hidden_states.isfinite().all()),
                "the cache or the weights hold NaN or infinity: the output is not finite; use a new cache",
            )
        logits = project(self.lm_head, _kept(hidden_states, logits_to_keep))
        loss = None
        if labels is not None or of_the_loss.get("shift_labels") is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **of_the_loss)
        output = CausalLMOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **by_name(outputs.cache),
        )
        return self.model._returned(output, return_dict)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Continue prompts: transformers' own; beyond the tested versions, only where a miniature decodes rightly."""
        check_decoding(self.config.attention)
        return super().generate(*args, **kwargs)

    @functools.wraps(GenerationMixin.prepare_inputs_for_generation, assigned=())  # whose parameters generate() looks up
    def prepare_inputs_for_generation(self, input_ids: torch.LongTensor, *args: Any, **kwargs: Any) -> dict:
        """transformers' own; where a text outgrows the short angles of "longrope", its cache is made anew, as of Phi-3.

        What is cached was turned by those, and would be read by the long ones.
        """
        caches = {name: kwargs[name] for name in NAMES if kwargs.get(name) is not None}
        if any(outgrows(self.config.rope_parameters, cache, input_ids.shape[1]) for cache in caches.values()):
            kwargs |= {**dict.fromkeys(caches), "next_sequence_length": None}
        return super().prepare_inputs_for_generation(input_ids, *args, **kwargs)

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse transformers' `generate_batch` and its kin: they want attention over a cache of pages.

        Raises:
            UserError: always.
        """
        raise UserError("continuous batching is not served here; generate() takes a batch of padded prompts")


def outgrows(rope_parameters: dict, cache: Cache, length: int) -> bool:
    """Return whether a text of so many tokens is the first that turns by other angles than what is cached of it."""
    if rope_parameters["rope_type"] != "longrope" or rope_parameters["short_factor"] == rope_parameters["long_factor"]:
        return False
    return 0 < cache.get_seq_length() <= rope_parameters["original_max_position_embeddings"] < length


def _kept(hidden_states: torch.Tensor, positions: int | torch.Tensor) -> torch.Tensor:
    """The hidden states whose logits are asked for, as `logits_to_keep` says."""
    if isinstance(positions, int):
        return hidden_states[:, -positions:] if positions else hidden_states
    if positions.dim() < 2:
        return hidden_states[:, positions]
    if positions.dtype == torch.bool:
        return hidden_states[positions]
    return hidden_states.take_along_dim(positions.unsqueeze(-1), dim=1)


class DecoderForSequenceClassification(GenericForSequenceClassification, DecoderPreTrainedModel):
    """The decoder with a class for each sequence, read off its last token: transformers' own head."""


class DecoderForTokenClassification(GenericForTokenClassification, DecoderPreTrainedModel):
    """The decoder with a class for each token: transformers' own head."""


class DecoderForQuestionAnswering(GenericForQuestionAnswering, DecoderPreTrainedModel):
    """The decoder with the begin and the end of an answer in the text: transformers' own head."""
