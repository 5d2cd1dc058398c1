"""A GGUF file as a model of ours: what `gguf.py` writes, back, and any dense model of those architectures.

Numbers are made plain: bf16 stays bf16, all else becomes f32. The file becomes a stock checkpoint first, whose import
is that of every other.
"""

import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Regex as Pattern
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedTokenizerFast

from ...errors import UserError, reason_of
from ..attention.checks import require
from ..conversion import shapes_of
from ..export import native_config
from ..shards import WEIGHTS
from .gguf import ARCHITECTURES, head_width
from .gguf_tokenizer import BYTE_LEVEL, DIGITS, SPECIAL, SPLITTING, TAKES_WHOLE_WORDS

KINDS = {architecture: kind for kind, architecture in ARCHITECTURES.items()}
CLOSE = 1e-5  # of a factor that must be 1


class File:
    """A GGUF file: its fields by name, its tensors by name.

    Raises:
        UserError: it is truncated.
    """

    def __init__(self, path: Path):
        import gguf

        self.path = path
        try:
            reader = gguf.GGUFReader(path)
            self.fields = {name: field.contents() for name, field in reader.fields.items()}
            self.tensors = {tensor.name: tensor for tensor in reader.tensors}
            self.architecture = self.fields["general.architecture"]
        except Exception as error:  # of NumPy, of whatever kind, where the file ends too early
            raise UserError(
                f"model={path} cannot be read ({reason_of(error)}); fetch it again, or give another"
            ) from None

    @property
    def is_known(self) -> bool:
        """Whether its architecture is one that is read here."""
        return self.architecture in KINDS

    def __call__(self, name: str, default: Any = None) -> Any:
        """Return a field of the architecture."""
        return self.fields.get(f"{self.architecture}.{name}", default)

    def needed(self, name: str) -> Any:
        """Return a field that there must be."""
        value = self(name)
        require(value is not None, f"{self.path} lacks {self.architecture}.{name}; write it with a newer llama.cpp")
        return value

    def tensor(self, name: str) -> torch.Tensor:
        """Return the numbers of a tensor.

        Raises:
            UserError: it is not there, or of a type that cannot be made plain.
        """
        import gguf

        require(name in self.tensors, f"{self.path} lacks {name}; copy it again")
        found = self.tensors[name]
        try:
            numbers = torch.from_numpy(gguf.dequantize(found.data, found.tensor_type).copy())
        except NotImplementedError:
            raise UserError(
                f"{self.path}: {name} is of type {found.tensor_type.name}, which the gguf package does not make plain; "
                "take a file of another type, such as Q8_0"
            ) from None
        return numbers.bfloat16() if found.tensor_type.name == "BF16" else numbers.float()


def unpack(file: File, folder: Path) -> None:
    """Write what a GGUF file holds as a stock checkpoint: config and weights.

    Args:
        file: of an architecture that is known.
        folder: an empty folder to write into.

    Raises:
        UserError: tensors of another type, or what our decoder does not have.
    """
    stock = config_of(file)
    stock.save_pretrained(folder)
    save_file(weights_of(file, stock), Path(folder) / WEIGHTS, {"format": "pt"})


def config_of(file: File) -> PreTrainedConfig:
    """Return the stock config of a file.

    Raises:
        UserError: experts, windows, or a rotation that cannot be said as transformers says it.
    """
    for name in ("expert_count", "attention.sliding_window"):
        require(not file(name), f"{file.path}: {name}={file(name)}: there are neither experts nor such windows here")
    kind, layers = KINDS[file.architecture], file.needed("block_count")
    values: dict[str, Any] = {
        "vocab_size": file.tensors["token_embd.weight"].shape[1].item(),
        "max_position_embeddings": file.needed("context_length"),
        "hidden_size": file.needed("embedding_length"),
        "num_hidden_layers": layers,
        "intermediate_size": file.needed("feed_forward_length"),
        "num_attention_heads": file.needed("attention.head_count"),
        "rms_norm_eps": round(file.needed("attention.layer_norm_rms_epsilon"), 10),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        **{f"{name}_token_id": file.fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")},
        "pad_token_id": file.fields.get("tokenizer.ggml.padding_token_id"),
    }
    if kind == "deepseek_v3":
        rotary, width = file.needed("rope.dimension_count"), file.needed("attention.key_length_mla")
        values |= {
            "q_lora_rank": file("attention.q_lora_rank") or None,
            "kv_lora_rank": file.needed("attention.kv_lora_rank"),
            "qk_rope_head_dim": rotary,
            "qk_nope_head_dim": width - rotary,
            "v_head_dim": file.needed("attention.value_length_mla"),
            "num_key_value_heads": values["num_attention_heads"],
            "first_k_dense_replace": layers,
            "num_mtp_layers": 0,
        }
    else:
        width = file("attention.key_length", values["hidden_size"] // values["num_attention_heads"])
        values |= {"num_key_value_heads": file("attention.head_count_kv", values["num_attention_heads"])}
        values |= {} if kind == "qwen2" else {"head_dim": width}
    return CONFIG_MAPPING[kind](**values | {"rope_parameters": rotation_of(file)})


def rotation_of(file: File) -> dict:
    """Return transformers' `rope_parameters` of a file; what its factors mean, see `gguf_rope.py`."""
    require(
        "rope_freqs.weight" not in file.tensors,
        f"{file.path} holds rope_freqs, the factors of a rotation whose description it does not; import the checkpoint "
        "that it was made of",
    )
    base = {"rope_theta": float(file("rope.freq_base", 10_000.0))}
    kind, factor = file("rope.scaling.type", "none"), float(file("rope.scaling.factor", 1.0))
    if kind == "none" or factor == 1:
        return {"rope_type": "default", **base}
    require(kind in ("linear", "yarn"), f"{file.path}: rope.scaling.type={kind} is not known here; linear and yarn are")
    growth, scale = math.log(factor) / 10, file("rope.scaling.attn_factor", 1.0)
    log_mul = 10 * file("rope.scaling.yarn_log_multiplier", 0.0)
    on_tables = scale * (1 + growth) if kind == "yarn" and log_mul == 0 else scale
    on_scores = (on_tables if kind == "yarn" else scale * (1 + growth)) * (1 + growth * log_mul)
    if file.architecture != "deepseek2":
        on_scores = 1.0
    if kind == "linear":
        plain = abs(on_tables - 1) < CLOSE and abs(on_scores - 1) < CLOSE
        require(plain, f"{file.path}: rope.scaling.attn_factor={scale} with linear scaling is not known here")
        return {"rope_type": "linear", **base, "factor": factor}
    described = {
        "rope_type": "yarn", **base, "factor": factor, "attention_factor": on_tables,
        "original_max_position_embeddings": file.needed("rope.scaling.original_context_length"),
        "beta_fast": float(file("rope.scaling.yarn_beta_fast", 32.0)),
        "beta_slow": float(file("rope.scaling.yarn_beta_slow", 1.0)),
    }  # fmt: skip
    if abs(on_scores - 1) > CLOSE:
        described["mscale_all_dim"] = (on_scores - 1) / growth
    return described


def weights_of(file: File, stock: PreTrainedConfig) -> dict[str, torch.Tensor]:
    """Return the weights of the stock model by their names.

    Raises:
        UserError: a tensor that is missing, or that the architecture has no use for.
    """
    import gguf

    (number,) = (key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == file.architecture)
    names = gguf.get_tensor_name_map(number, stock.num_hidden_layers)
    unused, weights = set(file.tensors), {}

    def read(name: str) -> torch.Tensor:
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise UserError(f"{name} has no name in llama.cpp's {file.architecture}; {file.path} cannot be imported")
        unused.discard(found)
        return file.tensor(found)

    for name in shapes_of(native_config(stock)):
        if name.endswith("kv_b_proj.weight"):
            w_uk, w_uv = (read(name.replace("kv_b_proj", f"{part}_b_proj")) for part in "kv")
            weights[name] = torch.cat((w_uk.transpose(1, 2), w_uv), dim=1).flatten(0, 1)
        else:
            weights[name] = read(name)
        if stock.model_type == "llama" and name.endswith(("self_attn.q_proj.weight", "self_attn.k_proj.weight")):
            rows = weights[name].unflatten(0, (-1, head_width(stock) // 2, 2))  # neighbours
            weights[name] = rows.transpose(1, 2).flatten(0, 2)
    require(not unused, f"{file.path} holds {min(unused, default='')}, which is not known here; it cannot be imported")
    return {name: weight.contiguous() for name, weight in weights.items()}


def save_tokenizer(file: File, folder: Path) -> bool:
    """Write the tokenizer of a file as `tokenizer.json`, and return whether it is one that is read here.

    That is a byte-level BPE which says how it splits text; others are left to transformers.

    Raises:
        UserError: a way of splitting that is not among `SPLITTING`: another would give other tokens.
    """
    fields = {name.removeprefix("tokenizer.ggml."): value for name, value in file.fields.items()}
    if fields.get("model") != "gpt2" or fields.get("pre") in (None, "default"):
        return False
    steps = {name: steps for steps, name in SPLITTING.items()}.get(fields["pre"])
    if steps is None:
        raise UserError(
            f"model={file.path}: tokenizer gpt2, {fields['pre']} is not known here; gpt2 with "
            f"{', '.join(SPLITTING.values())} is"
        )
    words, kinds = fields["tokens"], fields["token_type"]
    used = {word: number for number, (word, kind) in enumerate(zip(words, kinds, strict=True)) if kind != 5}
    merges = [tuple(merge.split(" ")) for merge in fields["merges"]]
    tokenizer = Tokenizer(models.BPE(used, merges, ignore_merges=fields["pre"] in TAKES_WHOLE_WORDS))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([step_of(step) for step in steps] + bytes_after(steps))
    tokenizer.decoder = decoders.ByteLevel()
    special = [words[number] for number, kind in enumerate(kinds) if kind == 3]
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens([words[number] for number, kind in enumerate(kinds) if kind == 4])
    numbers = {
        name: fields.get(f"{'padding' if name == 'pad' else 'unknown' if name == 'unk' else name}_token_id")
        for name in SPECIAL
    }
    named = {f"{name}_token": words[number] for name, number in numbers.items() if number is not None}
    if fields.get("add_bos_token") or fields.get("add_eos_token"):
        tokenizer.post_processor = around(named, fields)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **named)
    wrapped.chat_template = fields.get("tokenizer.chat_template")
    wrapped.save_pretrained(folder)
    return True


def step_of(step: str) -> pre_tokenizers.PreTokenizer:
    """Return what does one step of splitting, as `SPLITTING` names it."""
    if step == BYTE_LEVEL:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if step == DIGITS:
        return pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Split(Pattern(step), "isolated")


def bytes_after(steps: tuple[str, ...]) -> list[pre_tokenizers.PreTokenizer]:
    """Return what writes the bytes of words that a pattern has split, where no step does it yet."""
    return [] if BYTE_LEVEL in steps else [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]


def around(named: dict[str, str], fields: dict) -> processors.TemplateProcessing:
    """Return what puts tokens before and after a text."""
    begin = f"{named['bos_token']} " if fields.get("add_bos_token") else ""
    end = f" {named['eos_token']}" if fields.get("add_eos_token") else ""
    special = {
        (named[f"{name}_token"], fields[f"{name}_token_id"]) for name in ("bos", "eos") if f"{name}_token" in named
    }
    return processors.TemplateProcessing(
        single=f"{begin}$A{end}", pair=f"{begin}$A{end} {begin}$B{end}", special_tokens=list(special)
    )
