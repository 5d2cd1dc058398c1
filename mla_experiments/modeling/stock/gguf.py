"""A model as one GGUF file, the form of llama.cpp and of what is built on it (Ollama, LM Studio).

Written, not converted: llama.cpp's converter knows a tokenizer by the hash of a text, so that none trained here can be
known to it. Names of tensors are those of the `gguf` package. What changes, beside what changes in any export (see
`export.py`), is what llama.cpp's graphs want (`src/models/{llama,qwen2,qwen3,deepseek2}.cpp`):

- a Llama turns neighbouring numbers, so rows of queries and keys are interleaved, head by head;
- a DeepSeek attends to latents: W^UK lies transposed, `[H, d_c, d_nope]`, apart from W^UV, and there is one key-value
  head of d_c + d_R numbers;
- factors on the rotary frequencies of Llama 3 are a tensor.
"""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from transformers import PreTrainedConfig

from ...errors import UserError, reason_of
from ...manifest import scratch_for
from ..attention.checks import require
from ..attention.compress import LATENT_NORM_EPS
from ..configuration import DecoderConfig
from ..conversion import config_to_export, shapes_of
from ..export import exported_config, has_rotary_rows, has_scale, interleaved, turns, with_scale
from ..shards import checked_shards
from .gguf_rope import rope_fields, rope_tensor
from .gguf_tokenizer import add_tokenizer

if TYPE_CHECKING:
    import gguf

TYPES = ("f32", "f16", "bf16", "q8_0")
ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "deepseek_v3": "deepseek2"}
WITHOUT_LOW_RANK_QUERIES = (26, 27)  # layers by which llama.cpp takes a DeepSeek for a "Lite", and reads no rank
ALIGNED = 32  # numbers of a block of q8_0, of one scale


def export_gguf(source: Path, target: Path, kind: str = "f16", overwrite: bool = False) -> str:
    """Write a model of ours, with its tokenizer, as one GGUF file, whole or not at all.

    Args:
        source: folder of the model.
        target: the file to write.
        kind: one of `TYPES`, of all matrices; norms and biases are f32.
        overwrite: whether to replace a file.

    Returns:
        llama.cpp's name of the architecture.

    Raises:
        UserError: no model of ours, something that GGUF or llama.cpp cannot hold, a width that the type does not
            allow, a damaged file, or a target that is not to be replaced.
    """
    import gguf

    source, target = Path(source), Path(target)
    require(kind in TYPES, f"type={kind} is unknown; choose one of {', '.join(TYPES)}")
    config = config_to_export(source, "llama.cpp converts it itself")
    stock = exported_config(config)
    check_held(stock)
    shards = checked_shards(source, shapes_of(config))
    quantisation = gguf.GGMLQuantizationType[kind.upper()]
    with output_file(target, source, overwrite) as scratch:
        writer = gguf.GGUFWriter(scratch, ARCHITECTURES[stock.model_type])
        add_fields(writer, stock, target.stem, kind)
        add_tokenizer(writer, source, config.vocab_size)
        shapes = {name: torch.empty(shape, device="meta") for name, shape in shapes_of(config).items()}
        for name, tensor in named(shapes.items(), config, stock):
            add_shape(writer, name, tensor, quantisation)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, tensor in named(in_order(shards, shapes), config, stock):
            numbers = tensor.float().contiguous().numpy()
            writer.write_tensor_data(gguf.quants.quantize(numbers, type_of(name, tensor, quantisation)))
        writer.close()
    return ARCHITECTURES[stock.model_type]


def check_held(stock: PreTrainedConfig) -> None:
    """Refuse by its field what llama.cpp would compute otherwise, or not load.

    Raises:
        UserError: the first of it.
    """
    family = stock.model_type
    require(
        family != "mistral",
        f"sliding_window={getattr(stock, 'sliding_window', None)}: llama.cpp computes no windows in a {family}; "
        "it cannot be written as GGUF",
    )
    require(family in ARCHITECTURES, f"model_type={family} is not written as GGUF here; export it with --to hf")
    if family == "deepseek_v3":
        require(
            stock.rms_norm_eps == LATENT_NORM_EPS,
            f"rms_norm_eps={stock.rms_norm_eps}: llama.cpp would norm latents with it too, and not with "
            f"{LATENT_NORM_EPS}; it cannot be written as GGUF",
        )
        lite = stock.num_hidden_layers in WITHOUT_LOW_RANK_QUERIES
        require(
            not (lite and stock.q_lora_rank),
            f"q_lora_rank={stock.q_lora_rank} with num_hidden_layers={stock.num_hidden_layers}: llama.cpp takes that "
            "many layers for a model without low-rank queries; it cannot be written as GGUF",
        )
    if family == "qwen2":
        width = stock.num_attention_heads * head_width(stock)
        require(
            width == stock.hidden_size,
            f"head_dim={head_width(stock)} makes heads of {width} numbers, but llama.cpp's qwen2 wants hidden_size="
            f"{stock.hidden_size}; it cannot be written as GGUF",
        )


def head_width(stock: PreTrainedConfig) -> int:
    """Return d_h of a stock model of keys and values."""
    return getattr(stock, "head_dim", None) or stock.hidden_size // stock.num_attention_heads


def add_fields(writer: "gguf.GGUFWriter", stock: PreTrainedConfig, name: str, kind: str) -> None:
    """Say all that is no tensor and no tokenizer: sizes, norms, heads, rotations."""
    import gguf

    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[{"f32": "ALL_F32"}.get(kind, f"MOSTLY_{kind.upper()}")])
    if kind == "q8_0":
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(stock.vocab_size)
    writer.add_context_length(stock.max_position_embeddings)
    writer.add_embedding_length(stock.hidden_size)
    writer.add_block_count(stock.num_hidden_layers)
    writer.add_feed_forward_length(stock.intermediate_size)
    writer.add_head_count(stock.num_attention_heads)
    writer.add_layer_norm_rms_eps(stock.rms_norm_eps)
    if stock.model_type == "deepseek_v3":
        add_latents(writer, stock)
    else:
        writer.add_head_count_kv(stock.num_key_value_heads)
        writer.add_key_length(head_width(stock))
        writer.add_value_length(head_width(stock))
        writer.add_rope_dimension_count(head_width(stock))
    for field, value in rope_fields(stock).items():
        getattr(writer, f"add_rope_{field}")(value)


def add_latents(writer: "gguf.GGUFWriter", stock: PreTrainedConfig) -> None:
    """Say the widths of a DeepSeek whose layers are all dense: one key-value head of latents, see the top."""
    width = stock.kv_lora_rank + stock.qk_rope_head_dim
    writer.add_head_count_kv(1)
    writer.add_q_lora_rank(stock.q_lora_rank or 0)  # 0: full queries; left out, it would not load
    writer.add_kv_lora_rank(stock.kv_lora_rank)
    writer.add_key_length(width)
    writer.add_value_length(stock.kv_lora_rank)
    writer.add_key_length_mla(stock.qk_nope_head_dim + stock.qk_rope_head_dim)
    writer.add_value_length_mla(stock.v_head_dim)
    writer.add_rope_dimension_count(stock.qk_rope_head_dim)
    writer.add_leading_dense_block_count(stock.num_hidden_layers)
    writer.add_expert_feed_forward_length(stock.intermediate_size)  # asked for, though there are none
    writer.add_expert_shared_count(0)


def named(
    weights: Iterable[tuple[str, torch.Tensor]], config: DecoderConfig, stock: PreTrainedConfig
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield name and numbers of every tensor of the file.

    Args:
        weights: pairs of our names and tensors, on "meta" where shapes are all that is wanted.
        config: ours.
        stock: of the stock model.
    """
    import gguf

    architecture = ARCHITECTURES[stock.model_type]
    (number,) = (key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture)
    names = gguf.get_tensor_name_map(number, stock.num_hidden_layers)
    if (factors := rope_tensor(config, stock)) is not None:
        yield "rope_freqs.weight", factors
    for name, weight in weights:
        if turns(config) and has_rotary_rows(name):
            weight = interleaved(name, weight, config)
        if has_scale(name, config):
            weight = with_scale(name, weight, config)
        for part, tensor in parts_of(name, weight, stock):
            found = names.get_name(part, try_suffixes=(".weight", ".bias"))
            if found is None:
                raise UserError(f"{part} has no name in llama.cpp's {architecture}; it cannot be written as GGUF")
            yield found, tensor


def parts_of(name: str, weight: torch.Tensor, stock: PreTrainedConfig) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield what becomes of one of our weights: usually itself."""
    if stock.model_type == "llama" and name.endswith(("self_attn.q_proj.weight", "self_attn.k_proj.weight")):
        rows = weight.unflatten(0, (-1, 2, head_width(stock) // 2))  # [heads, 2, d_h / 2, in]
        yield name, rows.transpose(1, 2).flatten(0, 2)
    elif name.endswith("kv_b_proj.weight"):
        heads = weight.unflatten(0, (stock.num_attention_heads, -1))  # [H, d_nope + d_v, d_c]
        w_uk, w_uv = heads.split((stock.qk_nope_head_dim, stock.v_head_dim), dim=1)
        yield name.replace("kv_b_proj", "k_b_proj"), w_uk.transpose(1, 2)  # [H, d_c, d_nope]
        yield name.replace("kv_b_proj", "v_b_proj"), w_uv
    else:
        yield name, weight


def type_of(name: str, tensor: torch.Tensor, quantisation: "gguf.GGMLQuantizationType") -> "gguf.GGMLQuantizationType":
    """Return the type of a tensor in the file: f32 for vectors.

    Raises:
        UserError: a row that is not whole blocks of q8_0.
    """
    import gguf

    if tensor.dim() < 2:
        return gguf.GGMLQuantizationType.F32
    width = tensor.shape[-1]
    require(
        quantisation != gguf.GGMLQuantizationType.Q8_0 or width % ALIGNED == 0,
        f"type=q8_0 scales {ALIGNED} numbers together, but a row of {name} has {width}; choose f16 or bf16",
    )
    return quantisation


def add_shape(
    writer: "gguf.GGUFWriter", name: str, tensor: torch.Tensor, quantisation: "gguf.GGMLQuantizationType"
) -> None:
    """Announce a tensor, whose numbers are written later."""
    import gguf
    import numpy as np

    kind, shape = type_of(name, tensor, quantisation), tuple(tensor.shape)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    num_bytes = tensor.numel() // block * size
    plain = {gguf.GGMLQuantizationType.F32: np.float32, gguf.GGMLQuantizationType.F16: np.float16}.get(kind)
    if plain is None:
        writer.add_tensor_info(name, gguf.quant_shape_to_byte_shape(shape, kind), np.dtype(np.uint8), num_bytes, kind)
    else:
        writer.add_tensor_info(name, shape, np.dtype(plain), num_bytes)


def in_order(shards: list[Path], names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield weights by their names, one in memory at a time.

    Args:
        shards: the weight files.
        names: of the weights, in the order that is wanted.
    """
    with contextlib.ExitStack() as opened:
        places: dict[str, Any] = {}  # the open file that holds a weight
        for shard in shards:
            file = opened.enter_context(safe_open(shard, "pt"))
            places |= dict.fromkeys(file.keys(), file)
        for name in names:
            yield name, places[name].get_tensor(name)


@contextlib.contextmanager
def output_file(target: Path, source: Path, overwrite: bool) -> Iterator[Path]:
    """Yield a scratch file that takes the place of `target` at the end; after an error all is as it was.

    Raises:
        UserError: something stands there that must be kept, or it cannot be written.
    """
    require(not target.is_dir(), f"output={target} is a folder and is kept; give the name of a file, such as out.gguf")
    require(
        not (target.exists() and target.resolve().parent == source.resolve() and target.suffix != ".gguf"),
        f"output={target} is a file of the model, which must be kept; choose another name",
    )
    require(
        overwrite or not target.exists(),
        f"output={target} is there already and is kept; choose another name, or --overwrite",
    )
    scratch = scratch_for(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield scratch
        scratch.replace(target)
    except OSError as error:
        raise UserError(f"output={target} cannot be written ({reason_of(error)}); choose another place") from None
    finally:
        scratch.unlink(missing_ok=True)
