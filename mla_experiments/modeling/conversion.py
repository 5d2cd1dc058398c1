"""Checkpoint folders to and from stock transformers: weight files are copied as they are, the config is translated.

Weights bear the same names on both sides, so that no model is made and no tensor is held in memory. One thing changes:
the rotary rows of an MLA model in the half-split layout are interleaved in the copy, see `export.interleaved`.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedConfig

from ..errors import UserError
from ..manifest import is_inside, whole_folder
from .configuration import DecoderConfig
from .decoder import DecoderForCausalLM
from .export import has_rotary_rows, interleaved, native_config, stock_config

INDEX = "model.safetensors.index.json"
ARCHITECTURES = {"llama": "LlamaForCausalLM", "deepseek_v3": "DeepseekV3ForCausalLM"}


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
        UserError: no model of ours, no stock counterpart, a damaged file, or a target that is not empty.
    """
    source, target = Path(source), Path(target)
    config = read_config(source)
    if not isinstance(config, DecoderConfig):
        raise UserError(f"model={source} is a {config.model_type}, not a model of ours; nothing needs to be exported")
    turn = config.attention == "mla" and config.positions == "rope" and not config.rope_interleave
    stock = stock_config(DecoderConfig.from_dict({**config.to_dict(), "rope_interleave": True}) if turn else config)
    stock.architectures = [ARCHITECTURES[stock.model_type]]
    shards = checked_shards(source, config)
    refuse_occupied(target, overwrite)
    with whole_folder(target) as scratch:
        copy_weights(source, shards, scratch)
        if turn:
            for shard in shards:
                interleave_file(scratch / shard.name, config)
        save_around_weights(source, scratch, stock)
        if describe:
            describe(scratch)
    return stock


def import_checkpoint(source: Path, target: Path, overwrite: bool = False) -> DecoderConfig:
    """Write a stock Llama, DeepSeek-V2 or DeepSeek-V3 (dense) checkpoint as a model of ours.

    Arguments and errors are those of `export_checkpoint`; returns our config.
    """
    source, target = Path(source), Path(target)
    stock = read_config(source)
    if isinstance(stock, DecoderConfig):
        raise UserError(f"model={source} is a model of ours already; nothing needs to be imported")
    config = native_config(stock)
    config.architectures = [DecoderForCausalLM.__name__]
    shards = checked_shards(source, config)
    refuse_occupied(target, overwrite)
    with whole_folder(target) as scratch:
        copy_weights(source, shards, scratch)
        save_around_weights(source, scratch, config)
    return config


def read_config(folder: Path) -> PreTrainedConfig:
    """Return the config in a folder; code that a folder may bring is never run."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"model={folder} holds no config.json; give the folder of a checkpoint")
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except UserError:
        raise
    except Exception as error:  # whatever a damaged or foreign config makes the library say
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"config={path} cannot be read ({reason[:160]}); give a checkpoint of a known model") from None


def refuse_occupied(target: Path, overwrite: bool) -> None:
    """Refuse to write where something stands, unless told to."""
    if target.exists() and not (target.is_dir() and not any(target.iterdir())) and not overwrite:
        raise UserError(f"output={target} is there already and is kept; choose another name, or --overwrite")


def checked_shards(folder: Path, config: DecoderConfig) -> list[Path]:
    """Return the weight files of a folder, after a look at their headers.

    Raises:
        UserError: a file is missing or damaged, or weights have other names or shapes than the config asks for.
    """
    with torch.device("meta"):
        expected = {name: tuple(weight.shape) for name, weight in DecoderForCausalLM(config).state_dict().items()}
    if config.tie_word_embeddings:
        expected.pop("lm_head.weight")
    shards = [folder / name for name in shard_names(folder)]
    for shard in shards:
        for name, shape in shapes_in(shard).items():
            wanted = expected.pop(name, None)
            if wanted != shape and wanted is not None:
                raise UserError(f"{shard} holds {name} of shape {shape}, but config.json asks for {wanted}; mend one")
            if wanted is None and not ignorable(name):
                raise UserError(f"{shard} holds {name}, which config.json does not ask for; mend one of them")
    if expected:
        raise UserError(f"model={folder} lacks {next(iter(expected))} ({len(expected)} weights in all); copy it again")
    return shards


def ignorable(name: str) -> bool:
    """Whether a weight may be there without use: a tied output projection, the rotary tables of old Llamas."""
    return name == "lm_head.weight" or name.endswith("rotary_emb.inv_freq")


def shard_names(folder: Path) -> list[str]:
    """Return the names of a checkpoint's weight files."""
    if (folder / "model.safetensors").is_file():
        return ["model.safetensors"]
    if not (folder / INDEX).is_file():
        raise UserError(f"model={folder} holds no model.safetensors; save its weights as safetensors (not a pickle)")
    try:
        names = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        outside = [name for name in names if not is_inside(name)]
    except (ValueError, KeyError, AttributeError, TypeError):
        raise UserError(f"{folder / INDEX} is damaged; copy it again") from None
    if outside:
        raise UserError(f"{folder / INDEX} names {outside[0]}, which is not in its folder; copy the checkpoint again")
    return names


def shapes_in(shard: Path) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor in a file."""
    if not shard.is_file():
        raise UserError(f"{shard} is missing, though {INDEX} names it; copy it again")
    try:
        with safe_open(shard, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{shard} is damaged ({str(error).splitlines()[0][:120]}); copy it again") from None


def copy_weights(source: Path, shards: list[Path], target: Path) -> None:
    """Copy weight files, and their index where there is more than one."""
    for shard in shards:
        shutil.copyfile(shard, target / shard.name)
    if shards[0].name != "model.safetensors":
        shutil.copyfile(source / INDEX, target / INDEX)


def interleave_file(path: Path, config: DecoderConfig) -> None:
    """Put the rotary rows of an MLA model's file in the interleaved layout, in the file itself."""
    with open(path, "r+b") as file, safe_open(path, "pt") as weights:
        data = 8 + int.from_bytes(file.read(8), "little")  # safetensors: length of the header, header, data
        header = json.loads(file.read(data - 8))
        for name in filter(has_rotary_rows, weights.keys()):
            turned = interleaved(name, weights.get_tensor(name), config)
            file.seek(data + header[name]["data_offsets"][0])
            file.write(turned.contiguous().view(torch.uint8).numpy().tobytes())


def save_around_weights(source: Path, target: Path, config: PreTrainedConfig) -> None:
    """Write config, generation config, and the tokenizer where the source has one.

    Raises:
        UserError: a tokenizer that cannot be read, or that has more entries than the model.
    """
    config.save_pretrained(target)
    GenerationConfig.from_model_config(config).save_pretrained(target)
    if not any((source / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")):
        return
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # tokenizers raises bare exceptions
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"the tokenizer in {source} cannot be read ({reason[:160]}); mend it or take it away") from None
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"the tokenizer in {source} has {len(tokenizer)} entries, more than vocab_size={config.vocab_size} of the "
            "model; copy the tokenizer that belongs to it"
        )
    tokenizer.save_pretrained(target)
