"""llama.cpp as a contestant of `bench decode`: our weights in a GGUF file, read by the package `llama-cpp-python`.

It decodes one sequence. Its cache is filled by its own prompt, which a long context makes long.
"""

import contextlib
import ctypes
import functools
import importlib.util
import multiprocessing
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..data.tokenizer import as_transformers_tokenizer, train_bpe
from ..errors import Missing, UserError
from ..modeling import DecoderForCausalLM
from ..modeling.stock.gguf import export_gguf

WEIGHTS = {"f32": "f32", "bf16": "bf16", "f16": "f16", "int8": "q8_0"}  # its types by ours
CACHES = {"f32": 0, "f16": 1, "int8": 8, "bf16": 30}  # ggml's numbers of types
NEEDS = (
    ("llama_cpp", "llama-cpp-python", "it is llama.cpp"), ("gguf", "gguf", "llama.cpp reads files that it writes")
)  # fmt: skip
KNOWN = 300  # entries of the tokenizer, which a file must have and no step uses; the vocabulary may be larger
SAID: list[str] = []  # by llama.cpp, of the model that was opened last


@dataclass(frozen=True)
class Opened:
    """A file that llama.cpp has opened.

    Attributes:
        model: of `llama_cpp`.
        kept: the bytes of a token in its cache.
    """

    model: Any
    kept: int


def check_installed() -> None:
    """Raise where the package is not there.

    Raises:
        Missing: see there.
    """
    for module, package, why in NEEDS:
        if importlib.util.find_spec(module) is None:
            raise Missing(package, why)


def opened(path: Path, context: int, cache: str = "f32", flash: bool = False, logits_of_all: bool = False) -> Opened:
    """Open a GGUF file with as many threads as torch has.

    Args:
        path: of the file.
        context: tokens that its cache has room for.
        cache: in which it keeps it: f32, bf16, f16 or int8.
        flash: whether it attends with its flash attention.
        logits_of_all: keep the logits of all tokens, not of the last alone.

    Raises:
        UserError: llama.cpp does not open it so.
    """
    import llama_cpp

    SAID.clear()
    llama_cpp.llama_log_set(_listener(), ctypes.c_void_p(0))
    threads, kept_as = torch.get_num_threads(), CACHES[cache]
    try:
        model = llama_cpp.Llama(
            str(path), n_ctx=context, n_batch=context if logits_of_all else min(context, 512), verbose=False,
            logits_all=logits_of_all, flash_attn=flash, type_k=kept_as, type_v=kept_as, n_threads=threads,
            n_threads_batch=threads,
        )  # fmt: skip
    except ValueError as error:
        last = next((line.strip() for line in reversed(SAID) if "error" in line or "failed" in line), error)
        raise UserError(f"llama.cpp does not open {path.name} with cache={cache}, flash={flash}: {last}") from None
    said = re.search(r"size =\s+([\d.]+) MiB \(\s*(\d+) cells", "".join(SAID))
    assert said, "llama.cpp says how large its cache is"
    return Opened(model, round(float(said[1]) * 2**20 / int(said[2])))


@functools.cache  # llama.cpp keeps no reference to it
def _listener() -> Any:
    """Return what llama.cpp calls with each line that it says."""
    import llama_cpp

    return llama_cpp.llama_log_callback(lambda _, line, __: SAID.append(line.decode(errors="replace")))


@contextlib.contextmanager
def steps(
    models: dict[str, DecoderForCausalLM], context: int, weights: Sequence[str], caches: Sequence[str]
) -> Iterator[dict[str, tuple[Callable, int]]]:
    """Give a step from a filled cache, and the bytes of that, of each model and type, with flash attention and without.

    What llama.cpp has no form of is left out, and it is said why.

    Args:
        models: ours, by the name of their mechanism.
        context: tokens in the cache.
        weights: in which weights are kept: f32, bf16, f16, int8.
        caches: and caches.
    """
    made: dict[str, tuple[Callable, int]] = {}
    ways = [(kind, cache, flash) for kind in weights for cache in caches for flash in (False, True)]
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as open_models:
        for name, model in models.items():
            for kind, cache, flash in ways:
                path = Path(scratch) / f"{name}-{kind}.gguf"
                try:
                    if not path.exists():
                        write(model, Path(scratch) / name, path, WEIGHTS[kind])
                    check_survives(path, context + 8, cache, flash)
                    read = opened(path, context + 8, cache, flash)
                except UserError as error:
                    print(f"left out of llama.cpp: {name}, weights {kind}: {error}")
                    continue
                open_models.callback(read.model.close)
                how = f"weights {kind}, cache {cache}" + (", flash" if flash else "")
                made[f"{name}, llama.cpp: {how}"] = (step_from(read, context), read.kept * context)
        yield made


def check_survives(path: Path, context: int, cache: str, flash: bool) -> None:
    """Refuse what llama.cpp has no code for on this processor: it ends the process that asks, so that another one does.

    Raises:
        UserError: see there.
    """
    os.environ["GGML_NO_BACKTRACE"] = "1"  # which starts a debugger
    process = multiprocessing.get_context("spawn").Process(target=_open, args=(path, context, cache, flash))
    process.start()
    process.join()
    if process.exitcode:
        raise UserError(f"llama.cpp dies of {path.name} with cache={cache}, flash={flash}; see what it said above")


def _open(*asked: Any) -> None:
    """Open a file and decode a token; what is refused in good order is not for this process to say."""
    with contextlib.suppress(UserError):
        step_from(opened(*asked), 1)()


def write(model: DecoderForCausalLM, folder: Path, path: Path, kind: str) -> None:
    """Write a model as GGUF, with a tokenizer that nobody uses.

    Raises:
        UserError: llama.cpp has no form of it.
    """
    model.save_pretrained(folder)
    as_transformers_tokenizer(train_bpe([__doc__ or ""], KNOWN)).save_pretrained(folder)
    export_gguf(folder, path, kind)


def step_from(read: Opened, context: int) -> Callable[[], None]:
    """Fill a cache by a prompt, and return a function that decodes one token from it and takes it back."""
    model = read.model
    model.eval([number % KNOWN for number in range(context)])

    def step() -> None:
        model.n_tokens = context  # `eval` drops what lies beyond
        model.eval([0])

    return step
