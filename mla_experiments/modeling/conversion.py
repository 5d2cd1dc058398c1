"""Checkpoint folders to and from stock transformers: weight files are copied as they are, the config is translated.

Weights bear the same names on both sides. Three things of MLA change in the copy: rotary rows in the half-split layout
are interleaved, see `export.interleaved`, the scale of latents is put into their norms, see `export.with_scale`, and a
tied output projection is stored, since servers of DeepSeek checkpoints tie none.
"""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedConfig
from transformers.utils import GENERATION_CONFIG_NAME

from ..errors import UserError, reason_of
from ..every_reader import config_for_every_reader, tokenizer_for_every_reader
from ..manifest import whole_folder
from ..run_files import check_files, check_finished
from . import fused, granite
from .attention.checks import LARGEST, MOST_LAYERS, require
from .configuration import DecoderConfig
from .decoder import DecoderForCausalLM
from .export import (
    exported_config,
    has_rotary_rows,
    has_scale,
    has_stock_biases,
    interleaved,
    native_config,
    stock_biases,
    stock_of,
    turns,
    with_scale,
)
from .gguf_files import is_gguf, unpack_gguf
from .nested import HEAD, check_tied, names_inside, text_decoder
from .shards import checked_shards, copy_shards, exchange, prediction_layers, repeat, rewrite

ARCHITECTURES = {
    "llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM",
    "mistral": "MistralForCausalLM", "olmo2": "Olmo2ForCausalLM", "smollm3": "SmolLM3ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
}  # fmt: skip
# what a config.json may call a number that must be positive
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers")
SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads",
    "n_embd", "n_head", "d_model", "num_heads", "max_position_embeddings", *LAYER_COUNTS,
)  # fmt: skip
SIZES_BY_ENDING = ("_size", "_dim", "_heads", "_rank", "_experts", "_per_tok")  # these may be 0 where there is nothing
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")  # a tokenizer has one of these


def export_checkpoint(
    source: Path, target: Path, overwrite: bool = False, describe: Callable[[Path], object] | None = None
) -> PreTrainedConfig:
    """Write a model of ours as a checkpoint that stock transformers, and what follows it, loads.

    Args:
        source: folder of the model.
        target: folder to write, whole or not at all.
        overwrite: whether to replace a folder that is not empty.
        describe: adds files to the new folder before it takes its place.

    Returns:
        The stock config.

    Raises:
        UserError: no model of ours, no stock counterpart, a damaged file, or a target that is not to be replaced.
    """
    source, target = Path(source), Path(target)
    config = config_to_export(source, "nothing needs to be exported")
    stock = exported_config(config)
    stock.architectures, stock.use_cache = [ARCHITECTURES[stock.model_type]], True
    untie = stock_of(config.attention) == "deepseek_v3" and config.tie_word_embeddings
    shards = checked_shards(source, shapes_of(config))
    with output_folder(target, source, overwrite) as scratch:
        copies = copy_shards(shards, scratch, ("lm_head.weight",) if untie else ())
        if untie:
            stock.tie_word_embeddings = False
            repeat(copies, "model.embed_tokens.weight", "lm_head.weight")
        for copy in copies:
            if turns(config):
                rewrite(copy, has_rotary_rows, partial(interleaved, config=config))
            rewrite(copy, partial(has_scale, config=config), partial(with_scale, config=config))
        if has_stock_biases(config):
            exchange(copies, partial(stock_biases, config=config))
        save_around_weights(source, scratch, stock)
        config_for_every_reader(scratch)
        if describe:
            describe(scratch)
    return stock


def config_to_export(source: Path, otherwise: str) -> DecoderConfig:
    """Return the config of a finished model of ours whose files are whole.

    Args:
        source: its folder.
        otherwise: what is to be done with a stock model.

    Raises:
        UserError: it is none, not finished, or damaged.
    """
    check_finished(source)
    for pattern in ("config.json", "model*.safetensors*", "tokenizer*"):
        check_files(source, pattern)
    config = read_config(source)
    if not isinstance(config, DecoderConfig):
        raise UserError(f"model={source} is a {config.model_type}, not a model of ours; {otherwise}")
    return config


def import_checkpoint(source: Path, target: Path, overwrite: bool = False) -> DecoderConfig:
    """Write a stock checkpoint as a model of ours: Llama and its kin (`export.KEYS_AND_VALUES`), dense DeepSeek-V2, V3.

    The source is the folder of a checkpoint, or a GGUF file. Of a model of more than text its text decoder is taken.
    Layers that predict tokens further ahead (MTP) are left out: no logit of the decoder depends on them. Both are said.
    Arguments and errors are those of `export_checkpoint`; returns our config.
    """
    source, target = Path(source), Path(target)
    if is_gguf(source):
        with tempfile.TemporaryDirectory() as folder:
            unpack_gguf(source, Path(folder))
            return import_checkpoint(Path(folder), target, overwrite)
    stock = read_config(source)
    if isinstance(stock, DecoderConfig):
        raise UserError(f"model={source} is a model of ours already; nothing needs to be imported")
    around, stock = stock, text_decoder(stock)
    config = native_config(stock)
    config.architectures = [DecoderForCausalLM.__name__]
    more = getattr(stock, "num_mtp_layers", 0)
    require(type(more) is int and 0 <= more <= MOST_LAYERS, f"num_mtp_layers={more} of {source} is no number of layers")
    left_out = prediction_layers(source, stock.num_hidden_layers, more)
    expected, renamed = shapes_of(config), {}
    untied = [HEAD] if stock.tie_word_embeddings and not config.tie_word_embeddings else []  # of a Granite
    expected = {name: shape for name, shape in expected.items() if name not in untied}
    if is_fused := stock.model_type in fused.MODELS:
        expected = fused.fused_shapes(expected)
    if stock is not around:
        places, left_out = names_inside(source, list(expected))
        expected = {places[name]: shape for name, shape in expected.items()}
        renamed = {place: name for name, place in places.items()}
        print(f"Only the text decoder ({stock.model_type}) of {around.model_type} is imported.")
    shards = checked_shards(source, expected, left_out)
    if stock.tie_word_embeddings:
        check_tied(shards)
    with output_folder(target, source, overwrite) as scratch:
        copies = copy_shards(shards, scratch, (*left_out, *untied))
        if renamed:
            exchange(copies, lambda weights: {renamed[name]: weight for name, weight in weights.items()})
        if is_fused:
            exchange(copies, partial(fused.taken_apart, config=config))
        if stock.model_type == granite.MODEL:
            granite.take_in_factors(copies, stock)
        save_around_weights(source, scratch, config)
    if left_out and not renamed:
        print(
            f"left out: {', '.join(f'{layer}*' for layer in left_out)}; num_mtp_layers={more}, layers "
            "that predict tokens further ahead, which decoding here does not use"
        )
    return config


def read_config(folder: Path) -> PreTrainedConfig:
    """Return the config in a folder; code that a folder may bring is never run.

    Raises:
        UserError: no config.json, none that can be read, of a model that transformers does not know, or of sizes that
            no model has.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"model={folder} holds no config.json; give the folder of a checkpoint")
    check_description(path, read(path, lambda: json.loads(path.read_text(encoding="utf-8"))))
    return read(path, AutoConfig.from_pretrained, folder, trust_remote_code=False)


def check_description(path: Path, described: object) -> None:
    """Refuse by its field what transformers would say badly, or not at all, of a parsed config.json.

    Raises:
        UserError: no dictionary, an unknown model_type, a size that is not positive, far too many layers, heads that a
            Llama cannot have.
    """
    if not isinstance(described, dict):
        raise UserError(f"{path} holds no dictionary; copy it again")
    kind = described.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        own = "; auto_map names code of its own, which is never run here" if "auto_map" in described else ""
        raise UserError(f"{path}: model_type={kind} is none that transformers {transformers.__version__} knows{own}")
    for name in ("dtype", "torch_dtype"):
        value = described.get(name)
        if value is not None and not isinstance(getattr(torch, str(value).removeprefix("torch."), None), torch.dtype):
            raise UserError(f"{path}: {name}={value!r} is no dtype of torch, such as float32 or bfloat16; mend it")
    for name, value in sizes_in(described):
        least, most = int(name in SIZES), MOST_LAYERS if name in LAYER_COUNTS else LARGEST
        require(least <= value <= most, f"{path}: {name}={value} must lie between {least} and {most:,}")
    width, heads = described.get("hidden_size"), described.get("num_attention_heads")
    if kind == "llama" and isinstance(width, int) and isinstance(heads, int) and width % heads:
        raise UserError(
            f"{path}: hidden_size={width} is not a multiple of num_attention_heads={heads}; transformers makes no such "
            "Llama, whatever its head_dim"
        )


def sizes_in(described: dict) -> Iterator[tuple[str, float]]:
    """Yield name and value of every size in a parsed config.json and the configs nested in it."""
    for name, value in described.items():
        if isinstance(value, dict):
            yield from sizes_in(value)
        elif name != "chunk_size" and (name in SIZES or name.endswith(SIZES_BY_ENDING)):
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, int | float) and not isinstance(one, bool):
                    yield name, one


def shapes_of(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight of a model that a checkpoint must hold, by its name."""
    with torch.device("meta"):
        shapes = {name: tuple(weight.shape) for name, weight in DecoderForCausalLM(config).state_dict().items()}
    if config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    return shapes


@contextlib.contextmanager
def output_folder(target: Path, source: Path, overwrite: bool) -> Iterator[Path]:
    """Yield a scratch folder that takes the place of `target` at the end; after an error all is as it was.

    Raises:
        UserError: something stands there that must be kept, or it cannot be written.
    """
    place = target.resolve()
    for kept in (source.resolve(), Path.cwd()):
        if kept.is_relative_to(place):
            raise UserError(f"output={target} holds {kept}, which must be kept; choose another name")
    if place.exists() and not place.is_dir():
        raise UserError(f"output={target} is a file and is kept; choose another name")
    try:
        if place.is_dir() and any(place.iterdir()) and not overwrite:
            raise UserError(f"output={target} is there already and is kept; choose another name, or --overwrite")
        with whole_folder(place) as scratch:
            yield scratch
    except OSError as error:
        raise UserError(f"output={target} cannot be written ({reason_of(error)}); choose another place") from None


def save_around_weights(source: Path, target: Path, config: PreTrainedConfig) -> None:
    """Write config, generation config, and the tokenizer where the source has one.

    Raises:
        UserError: a generation config or a tokenizer that cannot be read, or a tokenizer with tokens that the model
            does not know.
    """
    config.save_pretrained(target)
    if (source / GENERATION_CONFIG_NAME).is_file():
        check_tokens_named(source / GENERATION_CONFIG_NAME)
        shutil.copyfile(source / GENERATION_CONFIG_NAME, target / GENERATION_CONFIG_NAME)
    else:
        GenerationConfig.from_model_config(config).save_pretrained(target)
    found = [source / name for name in VOCABULARIES if (source / name).is_file()]
    if not found:
        return
    tokenizer = read(found[0], AutoTokenizer.from_pretrained, source, trust_remote_code=False)
    if (highest := max(tokenizer.get_vocab().values(), default=-1)) >= config.vocab_size:
        raise UserError(
            f"the tokenizer in {source} has {len(tokenizer)} entries up to number {highest}, more than "
            f"vocab_size={config.vocab_size} of the model; copy the tokenizer that belongs to it"
        )
    tokenizer.save_pretrained(target)
    tokenizer_for_every_reader(target)


def check_tokens_named(path: Path) -> None:
    """Refuse a generation config that cannot be read, or whose tokens are no numbers of tokens.

    Raises:
        UserError: it is one.
    """
    described = read(path, GenerationConfig.from_pretrained, path.parent).to_dict()
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"):
        values = described.get(name)
        for value in values if isinstance(values, list) else [values]:
            if value is not None and (type(value) is not int or value < 0):
                raise UserError(f"{path}: {name}={value!r} is no number of a token; mend it or copy it again")


def read(path: Path, reader: Callable, *arguments: Any, **options: Any) -> Any:
    """Return what a reader of transformers gives; whatever else it may raise is said of the file at `path`."""
    try:
        return reader(*arguments, **options)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} cannot be read ({reason_of(error)}); mend it or copy it again") from None
