"""A byte-level BPE tokenizer in a GGUF file: entries, merges, special tokens, and by name how text is split before.

llama.cpp knows ways of splitting text by name alone (`src/llama-vocab.cpp`, `LLAMA_VOCAB_PRE_TYPE`). One that it does
not know could be written under a wrong name, and would give other tokens; it is refused.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ...errors import UserError
from ..attention.checks import require

if TYPE_CHECKING:
    import gguf

BYTE_LEVEL, DIGITS = "ByteLevel", "Digits"
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITTING = {  # what tokenizer.json does, step by step: what llama.cpp calls it
    (BYTE_LEVEL,): "gpt-2",
    (DIGITS, BYTE_LEVEL): "smollm",
    (LLAMA_3,): "llama-bpe",
    (LLAMA_3.replace("{1,3}", ""),): "qwen2",
}
TAKES_WHOLE_WORDS = ("llama-bpe",)  # which are entries, whatever the merges say
SPECIAL = ("bos", "eos", "unk", "pad")


def add_tokenizer(writer: "gguf.GGUFWriter", folder: Path, vocab_size: int) -> None:
    """Write the tokenizer of a model.

    Args:
        writer: of the file.
        folder: of the model.
        vocab_size: of the model; entries beyond the tokenizer's are said to be unused.

    Raises:
        UserError: none there, or one that GGUF cannot hold.
    """
    import gguf

    path = folder / "tokenizer.json"
    require(path.is_file(), f"model={folder} holds no tokenizer.json, which a GGUF file needs; copy it there")
    described = json.loads(path.read_text(encoding="utf-8"))
    splitting = name_of_splitting(described, path)
    tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    words, kinds = [], []
    entries = {number: word for word, number in tokenizer.get_vocab().items()}
    added = {entry["id"]: entry for entry in described.get("added_tokens", [])}
    for number in range(vocab_size):
        words.append(entries.get(number, f"[PAD{number}]"))
        kind = "NORMAL" if number in entries else "UNUSED"
        if number in added:
            kind = "CONTROL" if added[number]["special"] else "USER_DEFINED"
        kinds.append(gguf.TokenType[kind])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitting)
    writer.add_token_list(words)
    writer.add_token_types(kinds)
    merges = described["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    add_special(writer, tokenizer)


def add_special(writer: "gguf.GGUFWriter", tokenizer: PreTrainedTokenizerBase) -> None:
    """Say which tokens begin, end and fill a text, and whether they stand around every one."""
    for name in SPECIAL:
        number = getattr(tokenizer, f"{name}_token_id", None)
        if number is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    text = "a"
    bare, whole = (tokenizer(text, add_special_tokens=around)["input_ids"] for around in (False, True))
    before = whole[:1] == [tokenizer.bos_token_id] and whole[:1] != bare[:1]
    after = whole[-1:] == [tokenizer.eos_token_id] and whole[-1:] != bare[-1:]
    expected = [tokenizer.bos_token_id] * before + bare + [tokenizer.eos_token_id] * after
    require(whole == expected, f"the tokenizer puts {whole} around {bare}, which GGUF cannot say; change its template")
    writer.add_add_bos_token(before)
    writer.add_add_eos_token(after)
    if isinstance(getattr(tokenizer, "chat_template", None), str):
        writer.add_chat_template(tokenizer.chat_template)


def name_of_splitting(described: dict, path: Path) -> str:
    """Return llama.cpp's name for how a tokenizer splits text.

    Args:
        described: the parsed tokenizer.json.
        path: of it.

    Raises:
        UserError: no byte-level BPE, or one that llama.cpp has no name for.
    """
    model, normalizer = described["model"], described.get("normalizer")
    require(
        model["type"] == "BPE" and not model.get("byte_fallback"),
        f"{path} is a {model['type']} tokenizer of another kind than byte-level BPE; it cannot be written as GGUF",
    )
    steps = steps_of(described.get("pre_tokenizer") or {})
    name = SPLITTING.get(steps)
    if name is None:
        raise UserError(f"{path} splits text in a way ({' '.join(steps)[:60]!r}) that llama.cpp has no name for")
    unchanged = normalizer is None or (normalizer["type"] == "NFC" and name == "qwen2")  # as llama.cpp takes Qwen's
    require(unchanged, f"{path} changes text before it splits it (normalizer), which llama.cpp does not")
    require(
        bool(model.get("ignore_merges")) == (name in TAKES_WHOLE_WORDS),
        f"{path}: ignore_merges={model.get('ignore_merges')} is not what llama.cpp does for {name}",
    )
    return name


def steps_of(pre_tokenizer: dict) -> tuple[str, ...]:
    """Return what a pre-tokenizer does, step by step, in words that `SPLITTING` has where llama.cpp knows it."""
    kind = pre_tokenizer.get("type")
    if kind == "Sequence":
        return tuple(step for one in pre_tokenizer["pretokenizers"] for step in steps_of(one))
    if kind == "ByteLevel" and not pre_tokenizer.get("add_prefix_space"):
        return (BYTE_LEVEL,) if pre_tokenizer.get("use_regex", True) else ()
    if kind == "Digits" and pre_tokenizer.get("individual_digits"):
        return (DIGITS,)
    if kind == "Split" and pre_tokenizer.get("behavior") == "Isolated" and not pre_tokenizer.get("invert"):
        return (pre_tokenizer["pattern"].get("Regex", ""),)
    return (json.dumps(pre_tokenizer),)
