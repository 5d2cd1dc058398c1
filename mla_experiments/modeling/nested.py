"""The text decoder inside a checkpoint of more: its config, and its weights, which bear a longer name there.

A model that sees or hears keeps its decoder's config as `text_config`, and its weights as `language_model.model.*`,
`model.language_model.*` or the like, which differs between models: where the embedding of tokens stands says which.
"""

from pathlib import Path

import torch
from transformers import PreTrainedConfig

from ..errors import UserError, reason_of
from .shards import ignorable, shapes_in, shard_paths, weight_named

EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"


def text_decoder(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the config of the text decoder in a stock config, or the config itself where there is no other.

    Tied embeddings, the dtype and how weights are quantised are as the config around it says.

    Raises:
        UserError: more decoders than one.
    """
    try:
        text = config.get_text_config(decoder=True)
    except ValueError as error:
        raise UserError(f"model_type={config.model_type} has no single text decoder ({reason_of(error)})") from None
    if text is not config:
        text.tie_word_embeddings = is_tied(config, text)
        for name in ("dtype", "quantization_config"):
            setattr(text, name, getattr(text, name, None) or getattr(config, name, None))
    return text


def is_tied(config: PreTrainedConfig, text: PreTrainedConfig) -> bool:
    """Whether a text decoder's output projection is its embedding: the config around it decides where it says so."""
    return bool(getattr(config, "tie_word_embeddings", getattr(text, "tie_word_embeddings", False)))


def check_tied(shards: list[Path]) -> None:
    """Refuse an output projection that is stored beside the embedding that it is said to be, and is another.

    transformers says so in a warning and takes the two for untied; here, what is tied is one weight.

    Args:
        shards: the files of a checkpoint whose config ties the two.

    Raises:
        UserError: it is.
    """
    stored = sorted(name for shard in shards for name in shapes_in(shard))
    embedding, head = (next((one for one in stored if one.endswith(end)), None) for end in (EMBEDDING, HEAD))
    if embedding is None or head is None:
        return
    first, second = (weight_named(shards, name) for name in (embedding, head))
    if first.dtype != second.dtype or not torch.equal(first, second):
        raise UserError(
            f"tie_word_embeddings=True, but {head} is stored and is not {embedding}; set the one to false in "
            "config.json, or leave the other out"
        )


def names_inside(folder: Path, names: list[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return by which name a checkpoint keeps each weight of a decoder, and the names of what else it holds beside it.

    What it holds in the decoder's own layers and is none of these weights is in neither: it is refused, as where the
    decoder stands alone.

    Args:
        folder: of the checkpoint.
        names: of the decoder's weights, as where it stands alone.

    Raises:
        UserError: it has no embedding of tokens, or several.
    """
    stored = {name for shard in shard_paths(folder) for name in shapes_in(shard)}
    found = sorted(name for name in stored if name.endswith(EMBEDDING))
    if len(found) != 1:
        raise UserError(f"model={folder} has {len(found)} weights named {EMBEDDING}, so no single text decoder")
    prefix = found[0].removesuffix(EMBEDDING)
    head = next((name for name in sorted(stored) if name.endswith(HEAD)), HEAD)
    places = {name: head if name == HEAD else prefix + name.removeprefix("model.") for name in names}
    others = stored - set(places.values())
    return places, tuple(sorted(one for one in others if ignorable(one) or not one.startswith(f"{prefix}layers.")))
