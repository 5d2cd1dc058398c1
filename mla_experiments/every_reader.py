"""The small files of a checkpoint in words that every reader knows, of the transformers of today and of before.

transformers 5 writes names of its own time: servers and converters that stand on transformers 4 do not find a tokenizer
class by that name, and take the rotary base for 10,000 where it is not said by its old name.
"""

import json
from pathlib import Path

from .manifest import write_json

TOKENIZER_CONFIG, CONFIG, GENERATION_CONFIG = "tokenizer_config.json", "config.json", "generation_config.json"
OF_TRANSFORMERS_5, OF_BOTH = "TokenizersBackend", "PreTrainedTokenizerFast"  # two names of one class
OF_THE_LOADING = ("backend", "is_local", "local_files_only")  # how a tokenizer was loaded


def tokenizer_for_every_reader(folder: Path) -> None:
    """Say in a folder's `tokenizer_config.json`, if there is one, what both generations of transformers read."""
    path = Path(folder) / TOKENIZER_CONFIG
    if not path.is_file():
        return
    described = json.loads(path.read_text(encoding="utf-8"))
    described = {name: value for name, value in described.items() if name not in OF_THE_LOADING}
    if described.get("tokenizer_class") == OF_TRANSFORMERS_5:
        described["tokenizer_class"] = OF_BOTH
    if isinstance(described.get("extra_special_tokens"), list):  # which was a dictionary before
        described["additional_special_tokens"] = described.pop("extra_special_tokens")
    write_json(path, described)


def config_for_every_reader(folder: Path) -> None:
    """Say in a folder's `config.json` of a stock model what both generations of transformers read.

    `rope_parameters` and `dtype` stay, and `rope_theta`, `rope_scaling` and `torch_dtype` say the same. What of
    `generation_config.json` was taken from the config is taken from this one.
    """
    path = Path(folder) / CONFIG
    described = json.loads(path.read_text(encoding="utf-8"))
    rope = dict(described["rope_parameters"])
    described["rope_theta"] = rope.pop("rope_theta")
    described["rope_scaling"] = None if rope["rope_type"] == "default" else rope | {"type": rope["rope_type"]}
    if rope["rope_type"] == "longrope":  # whose lengths were compared from here
        described["original_max_position_embeddings"] = rope["original_max_position_embeddings"]
    if described.get("dtype") is not None:
        described["torch_dtype"] = described["dtype"]
    write_json(path, dict(sorted(described.items())))
    path = path.with_name(GENERATION_CONFIG)
    generation = json.loads(path.read_text(encoding="utf-8"))
    if generation.get("_from_model_config"):  # else somebody chose
        write_json(path, generation | {"use_cache": described["use_cache"]})
