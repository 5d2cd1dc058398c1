"""A pre-norm decoder language model around any registered attention mechanism.

The block is Llama's (Touvron et al. 2023, LLaMA, §2.2): RMSNorm, attention, residual, RMSNorm, SwiGLU, residual,
no biases, no dropout. Weights bear the names of transformers' Llama and DeepSeek-V3, so with MHA, GQA or MQA the
model *is* a Llama and with MLA a dense DeepSeek-V3; the tests hold it to that.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from ..errors import UserError
from ..kernels import Linear
from .attention import ATTENTION
from .attention.base import require
from .attention.rope import RotaryEmbedding
from .cache import growing
from .configuration import DecoderConfig


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020, GLU Variants Improve Transformer, eq. 6): W_down (silu(W_gate x) ⊙ W_up x)."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, T, D]` to `[B, T, D]`."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderBlock(nn.Module):
    """RMSNorm, attention, residual; RMSNorm, SwiGLU, residual."""

    def __init__(self, config: DecoderConfig, layer_idx: int):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = ATTENTION[config.attention](
            config.hidden_size,
            config.num_attention_heads,
            layer_idx=layer_idx,
            rotary=config.positions == "rope",
            rope_interleave=config.rope_interleave,
            rope_parameters=config.rope_parameters,
            **config.attention_options,
        )
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x, position_embeddings, attention_mask, past_key_values):
        """`[B, T, D]` to `[B, T, D]`; arguments as in `Attention.forward`."""
        x = x + self.self_attn(self.input_layernorm(x), position_embeddings, attention_mask, past_key_values)
        return x + self.mlp(self.post_attention_layernorm(x))


class DecoderPreTrainedModel(PreTrainedModel):
    """What transformers needs to know to initialise, save, load and parallelise the decoder."""

    config: DecoderConfig
    base_model_prefix = "model"
    _no_split_modules = ("DecoderBlock",)
    _skip_keys_device_placement = ("past_key_values",)
    _supports_sdpa = True

    @torch.no_grad()
    def _init_weights(self, module):
        """Normal(0, initializer_range) for matrices and embeddings, ones for norms, as Llama and DeepSeek do."""
        super()._init_weights(module)
        if isinstance(module, RotaryEmbedding):  # a model made on the meta device has its buffers filled here
            module.inv_freq.copy_(module.frequencies()[0])


class DecoderModel(DecoderPreTrainedModel):
    """Token embeddings, the blocks and the last norm."""

    def __init__(self, config: DecoderConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.positions == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        else:
            rotary_dim = ATTENTION[config.attention].rotary_dim(config.attention_options)
            self.rotary_emb = RotaryEmbedding(rotary_dim, config.rope_parameters)
        self.layers = nn.ModuleList(DecoderBlock(config, i) for i in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_init()

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Return the last hidden states `[B, T, D]`, and the cache if one is used.

        Args:
            input_ids: `[B, T]` token ids; or `inputs_embeds` `[B, T, D]` in their place.
            attention_mask: `[B, S]`, 0 where a token is padding, over cached and new tokens.
            position_ids: `[B, T]`; by default counted from the first token that is not padding.
            past_key_values: the cache to read and extend.
            use_cache: whether to make a cache when none is given; by default not while training.

        Raises:
            UserError: no tokens, more than `max_position_embeddings`, or a cache that another model filled.
        """
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if past_key_values is None and use_cache:
            past_key_values = DynamicCache(config=self.config)
        past = 0
        if past_key_values is not None:
            past = growing(past_key_values).get_seq_length()
        if not torch.compiler.is_compiling():
            self._check_length(x.shape[1], past, attention_mask)
        if position_ids is None:
            position_ids = self._positions(x, attention_mask, past)
        mask = create_causal_mask(self.config, x, attention_mask, past_key_values, position_ids)
        if self.config.positions == "learned":
            x, position_embeddings = x + self.embed_positions(position_ids), None
        else:
            position_embeddings = self.rotary_emb(position_ids, x.dtype)
        for layer in self.layers:
            x = layer(x, position_embeddings, mask, past_key_values)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(x), past_key_values=past_key_values)

    def _check_length(self, length, past, attention_mask):
        require(length > 0, "input_ids holds no tokens; pass at least one new token.")
        limit = self.config.max_position_embeddings
        if past + length > limit and (attention_mask is None or attention_mask.sum(-1).max() > limit):
            raise UserError(
                f"{int(past + length)} tokens are more than max_position_embeddings={limit}, the longest sequence of "
                "this model; shorten the prompt or the continuation."
            )

    def _positions(self, x, attention_mask, past):
        """Count the tokens from the first that is not padding: `[B or 1, T]`."""
        length = x.shape[1]
        if attention_mask is not None and attention_mask.dim() == 2:
            return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
        return torch.arange(length, device=x.device).unsqueeze(0) + past


class DecoderForCausalLM(DecoderPreTrainedModel, GenerationMixin):
    """The decoder with its output projection: next-token logits, a loss, and transformers' `generate()`."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: DecoderConfig):
        super().__init__(config)
        self.model = DecoderModel(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Return logits `[B, T, vocabulary]`; with `labels` `[B, T]` also the mean cross-entropy in nats.

        Labels follow transformers' convention: they are the inputs themselves and are shifted here; -100 is left
        out. `logits_to_keep` computes the logits of the last so many positions only (0 for all). Other arguments
        are those of `DecoderModel.forward`.
        """
        outputs = self.model(input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache)
        decoding = outputs.past_key_values is not None and not torch.compiler.is_compiling()
        if decoding and outputs.last_hidden_state.device.type != "meta":
            require(
                bool(outputs.last_hidden_state.isfinite().all()),
                "past_key_values or the weights hold NaN or infinity: the output is not finite; use a new cache",
            )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=outputs.past_key_values)
