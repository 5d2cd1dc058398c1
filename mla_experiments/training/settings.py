"""What a training run is told: its own arguments, the presets, and other defaults for transformers' Trainer."""

import json
from dataclasses import dataclass, field

import torch

from ..errors import UserError, repeated
from ..modeling import DecoderConfig
from ..modeling.attention import find
from ..modeling.attention.hybrid import names_in, options_for
from ..presets import PRESETS
from .flags import REFUSED


@dataclass
class RunArguments:
    """What to train. Arguments left out come from the preset; those of transformers' TrainingArguments serve too."""

    _argument_group_name = "run"

    attention: list[str] = field(
        default_factory=lambda: ["mha", "mqa", "mla"],
        metadata={"help": "what to train, one after another: mha gqa mqa mla, or over the layers mla+mha"},
    )
    preset: str = field(
        default="auto",
        metadata={"help": "sizes to start from: reference, demo, or auto (reference with an accelerator)"},
    )
    data_dir: str = field(default="data", metadata={"help": "where `data` left the tokens"})
    weights_dir: str = field(default="weights", metadata={"help": "where runs, checkpoints and weights go"})
    figures_dir: str = field(default="figures", metadata={"help": "where the loss curves go"})
    run: str = field(default="", metadata={"help": "keep this training apart, under weights/RUN and figures/RUN"})
    resume: bool = field(default=False, metadata={"help": "go on from the last whole checkpoint"})
    overwrite: bool = field(default=False, metadata={"help": "train anew where another run stands, replacing it"})
    accept_changes: bool = field(
        default=False, metadata={"help": "go on with a run, or take it as done, though the code has changed since"}
    )
    streaming: bool = field(
        default=False,
        metadata={"help": "read the text while training, from the hub or a folder: for data prepared with --streaming"},
    )

    train_tokens: int = field(default=0, metadata={"help": "tokens to train on, repeats counted"})
    warmup_tokens: int = field(default=0, metadata={"help": "tokens over which the learning rate rises"})
    batch_size: int = field(default=0, metadata={"help": "sequences per optimiser step, over all devices"})
    sequence_length: int = field(default=0, metadata={"help": "tokens per sequence; divides that of the packed rows"})
    validation_tokens: int = field(
        default=0, metadata={"help": "validate on so many tokens while training; the evaluation reads them all"}
    )
    loss_on: str = field(
        default="all", metadata={"help": "what a synthetic corpus trains to predict: all symbols, or answers alone"}
    )
    precision: str = field(
        default="auto", metadata={"help": "bf16, fp16 (with loss scaling), f32, or auto (what the device does well)"}
    )

    hidden_size: int = field(default=0, metadata={"help": "width of the residual stream"})
    num_hidden_layers: int = field(default=0, metadata={"help": "number of blocks"})
    num_attention_heads: int = field(default=0, metadata={"help": "query heads"})
    intermediate_size: int | None = field(
        default=None, metadata={"help": "width of the MLP; 8/3 of the width if not given"}
    )
    positions: str = field(default="rope", metadata={"help": "rope, learned absolute positions, or none"})
    tie_word_embeddings: bool = field(default=False, metadata={"help": "share input and output embeddings"})
    initialization: str = field(
        default="normal",
        metadata={
            "help": "start of the matrices that add to the residual stream: normal, scaled (GPT-2) or zero (muP)"
        },
    )
    optimizer: str = field(
        default="adamw",
        metadata={
            "help": "adamw (or what --optim says), or muon for the matrices of the blocks and AdamW for the rest"
        },
    )
    attention_options: str = field(
        default="{}", metadata={"help": 'hyper-parameters by mechanism, JSON: {"mla": {"kv_lora_rank": 64}}'}
    )

    output_gate: str | None = field(
        default=None, metadata={"help": "element or head: a gate on what every head reads; none if not given"}
    )
    qk_norm: bool = field(default=False, metadata={"help": "norm queries and keys, each head alone"})
    attention_bias: bool = field(default=False, metadata={"help": "biases of the projections to q, k and v"})

    sliding_window: int | None = field(default=None, metadata={"help": "tokens that layers with a window see"})
    layer_types: list[str] | None = field(
        default=None, metadata={"help": "full_attention or sliding_attention, for each layer; all slide if not given"}
    )

    def model_config(self, attention: str, vocab_size: int, end_of_document: int) -> DecoderConfig:
        """Return the configuration of one variant.

        Raises:
            UserError: a value that cannot work.
        """
        try:
            options = json.loads(self.attention_options, object_pairs_hook=each_once)
            assert all(isinstance(part, dict) for part in options.values())
        except UserError:
            raise
        except (ValueError, AttributeError, AssertionError):
            raise UserError(
                f"attention_options={self.attention_options} is not understood; "
                'give JSON such as {"mla": {"kv_lora_rank": 64}}'
            ) from None
        options = {find(name): part for name, part in options.items()}
        asked = {name for attention in map(find, self.attention) for name in names_in(attention)}
        for name in options:
            if name not in asked:
                raise UserError(
                    f"attention_options has {name}, but attention={' '.join(self.attention)} does not; leave it out"
                )
        return DecoderConfig(
            vocab_size=vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            max_position_embeddings=self.sequence_length,
            attention=attention,
            attention_options=options_for(attention, options),
            output_gate=self.output_gate,
            qk_norm=self.qk_norm,
            attention_bias=self.attention_bias,
            sliding_window=self.sliding_window,
            layer_types=self.layer_types,
            positions=self.positions,
            initialization=self.initialization,
            tie_word_embeddings=self.tie_word_embeddings,
            bos_token_id=end_of_document,
            eos_token_id=end_of_document,
            pad_token_id=end_of_document,
        )


def each_once(pairs: list[tuple[str, object]]) -> dict:
    """Return an object of JSON, or refuse one that names a thing twice."""
    names = [name for name, _ in pairs]
    if twice := repeated(names):
        raise UserError(f"attention_options names {twice[0]} twice, and one would be lost; keep one of them")
    return dict(pairs)


def preset_name(asked: str) -> str:
    """Return the preset to use: "auto" is `reference` where there is an accelerator and `demo` where there is none."""
    if asked == "auto":
        return "reference" if torch.accelerator.is_available() else "demo"
    if not isinstance(asked, str) or asked not in PRESETS:
        raise UserError(f"preset={asked} is unknown; choose auto or one of {', '.join(PRESETS)}")
    return asked


def trainer_defaults() -> dict:
    """Return the defaults of TrainingArguments that are ours: every flag on the command line goes before them.

    AdamW with (0.9, 0.95), weight decay 0.1, clipping at 1 and a cosine to a tenth of the peak are those of GPT-3
    (Brown et al. 2020, appendix B) and of most decoders since.
    """
    return {
        "adam_beta2": 0.95,
        "weight_decay": 0.1,
        "max_grad_norm": 1.0,
        "lr_scheduler_type": "cosine_with_min_lr",
        "logging_steps": 0.01,
        "eval_strategy": "steps",
        "eval_steps": 0.05,
        "save_steps": 0.2,
        "save_total_limit": 2,
        "seed": 0,
        "gradient_accumulation_steps": None,
        "ddp_find_unused_parameters": False,
        "report_to": "none",
        "dataloader_pin_memory": torch.cuda.is_available(),
        **dict.fromkeys(("warmup_steps", "lr_scheduler_kwargs"), None),  # by --warmup_tokens; see `flags.taken`
        **dict.fromkeys(REFUSED),  # so that those given can be told
    }


def mixed_precision(asked: str) -> dict[str, bool]:
    """Return Trainer's `bf16` and `fp16` flags for a precision.

    "auto" is bf16 on GPUs that compute it (not those that emulate it, such as Colab's T4), fp16 on other GPUs, and
    f32 elsewhere: on a CPU without bf16 units autocast is slower than f32.
    """
    if asked == "auto":
        if not torch.cuda.is_available():
            asked = "f32"
        else:
            asked = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if asked not in ("bf16", "fp16", "f32"):
        raise UserError(f"precision={asked} is unknown; choose auto, bf16, fp16 or f32")
    return {"bf16": asked == "bf16", "fp16": asked == "fp16"}
