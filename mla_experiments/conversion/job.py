"""A conversion from folder to folder: text in, statistics, every step measured, and the model written whole.

The folder of a converted model is one of ours, with `conversion.json` beside the weights: what was asked for, the
hashes of the original and of both texts, what was chosen, and every document's scores after every step.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from ..errors import UserError
from ..evaluation.recall import probing
from ..evaluation.results import load_with_tokenizer, weights_hash
from ..manifest import library_versions, read_record, write_record
from ..modeling import DecoderConfig, DecoderForCausalLM, device
from ..modeling.conversion import import_checkpoint, output_folder, read_config, save_around_weights
from ..modeling.gguf_files import is_gguf
from ..modeling.loading import load_model
from ..training.identity import SOURCES, hash_of, own_sources
from .calibration import Texts, beginnings, read_texts, rows_of, windows_of
from .choosing import Studied, converted
from .comparing import Distance, HeldOut
from .converting import (
    Converted,
    OneByOne,
    Size,
    cached_numbers,
    check_convertible,
    check_numbers,
    check_parts,
    check_query_rank,
    full_size,
    model_of,
    size_for,
    size_of,
    steps,
    studied,
)
from .healing import Healing, train_on

RECORD, HEALED = "conversion.json", "healing.json"
CURVE = (3 / 4, 1 / 2, 5 / 12, 1 / 3, 1 / 4, 1 / 6)  # of the original's cache
NORMS = ("constant", "none")
RANKS = ("uniform", "by-layer")


@dataclass(frozen=True)
class Request:
    """What to convert to, and by which text.

    Attributes:
        cache_bytes: of a token over all layers, in the dtype of the weights; or, in its place, the two that follow.
        kv_lora_rank: d_c, the constant channel included.
        qk_rope_head_dim: d_R.
        q_lora_rank: of the queries' latents, the constant channel included; None for full queries.
        ranks: "uniform", or "by-layer" for latents of other widths in other layers, in a model of ours alone.
        latent_norm: "constant" for a channel that makes the norm of stock DeepSeek-V3 without effect; "none" for no
            norm, in a model of ours alone.
        fit: whether layers are fitted along the converted model.
        corpus: to calibrate on.
        held_out: to measure on; None for a part of `corpus`.
        text_column: of tables.
        calibration_tokens: how many.
        held_out_tokens: how many, from the beginnings of documents.
        sequence_length: of windows of both.
        curve: whether six other sizes are measured, from the same statistics.
        probes: names of the synthetic tasks that the model is asked after each step.
    """

    cache_bytes: int | None
    kv_lora_rank: int | None
    qk_rope_head_dim: int | None
    q_lora_rank: int | None
    ranks: str
    latent_norm: str
    fit: bool
    corpus: str
    held_out: str | None
    text_column: str
    calibration_tokens: int
    held_out_tokens: int
    sequence_length: int
    curve: bool
    probes: list[str]

    @property
    def constant(self) -> bool:
        """Whether there is a constant channel."""
        return self.latent_norm == "constant"

    @property
    def query_rank(self) -> int | None:
        """Of the queries' latents, without the constant channel."""
        return None if self.q_lora_rank is None else self.q_lora_rank - self.constant

    @property
    def size(self) -> int | tuple[int, int]:
        """The bytes of a token over all layers, or d_c and d_R of a layer."""
        if self.cache_bytes is not None:
            return self.cache_bytes
        if self.kv_lora_rank is None or self.qk_rope_head_dim is None:
            raise UserError("state one size: --cache_bytes, or both --kv_lora_rank and --qk_rope_head_dim")
        return self.kv_lora_rank, self.qk_rope_head_dim

    def check(self) -> None:
        """Refuse what cannot be asked for.

        Raises:
            UserError: both ways to state a size or neither, or a norm that nobody knows.
        """
        by_parts = (self.kv_lora_rank is not None, self.qk_rope_head_dim is not None)
        if (self.cache_bytes is not None) == any(by_parts) or any(by_parts) != all(by_parts):
            raise UserError("state one size: --cache_bytes, or both --kv_lora_rank and --qk_rope_head_dim")
        if self.latent_norm not in NORMS:
            raise UserError(f"latent_norm={self.latent_norm} is unknown; choose {' or '.join(NORMS)}")
        if self.ranks not in RANKS:
            raise UserError(f"ranks={self.ranks} is unknown; choose {' or '.join(RANKS)}")
        for name in self.probes:
            probing(name, "probes")


@dataclass(frozen=True)
class Measured:
    """A row of what was found: a step or a size, how many numbers a token and layer caches (mean), how good it is."""

    step: str
    numbers: int
    rotary: int
    distance: Distance
    recall: dict[str, float] = field(default_factory=dict)  # share of right answers, by task


def convert(
    source: Path,
    target: Path,
    request: Request,
    overwrite: bool,
    show: Callable[[Measured], None],
    describe: Callable[[Path, list[Measured], list[Measured], dict], None],
) -> DecoderConfig:
    """Convert the model in a folder and write it to another.

    Args:
        source: a folder of ours or of a checkpoint that can be imported, or a GGUF file.
        target: folder to write, whole or not at all.
        request: what to.
        overwrite: whether to replace a folder that is not empty.
        show: called with every step as it has been measured.
        describe: adds files to the new folder: given it, the steps, the curve, and the record.

    Returns:
        The new configuration.

    Raises:
        UserError: a model, size or text that cannot be used.
    """
    request.check()
    with ours(source) as folder, output_folder(Path(target), Path(source), overwrite) as scratch:
        ready = prepared(folder, request)
        model, length = ready.model, ready.length
        windows = windows_of(ready.calibration, ready.tokenizer, request.calibration_tokens, length, ready.width)
        measuring = HeldOut(model, ready.tokenizer, ready.texts(request), length, request.probes)
        found = [original_of(model, measuring)]
        show(found[0])
        layers = studied(model, windows, request.query_rank is not None)
        size = chosen_size(request, model, layers, ready.numbers)
        for last in steps(model, layers, size, windows, request.constant, request.fit, request.query_rank):
            found.append(measured(last.step, model_of(model, last), measuring))
            show(found[-1])
        curve = list(curve_of(model, layers, measuring, show)) if request.curve else []
        made = model_of(model, last).to(ready.dtype)
        made.save_pretrained(scratch)
        save_around_weights(folder, scratch, made.config)
        record = {
            "request": asdict(request),
            "original": {"name": str(source), "sha256": weights_hash(folder)},
            "calibration": {**about(ready.calibration), "tokens": windows.numel()},
            "held_out": {**about(ready.held_out), "documents": len(measuring.tokens)},
            "components_that_turn": list(size.kept),
            "steps": [as_record(one) for one in found],
            "curve": [as_record(one) for one in curve],
            **by_what(),
            "weights": weights_hash(scratch),
        }
        write_record(scratch / RECORD, record)
        describe(scratch, found, curve, record)
    return made.config


def stands(source: Path, target: Path, request: Request) -> bool:
    """Return whether a folder holds, whole, what this very request makes of the weights of the source, by this code."""
    try:
        record = read_record(Path(target) / RECORD)
    except (OSError, ValueError):
        return False
    with ours(source) as folder:
        of_source = record["request"] == asdict(request) and record["original"]["sha256"] == weights_hash(folder)
    made = {**by_what(), "weights": weights_hash(Path(target))}
    return of_source and made == {name: record.get(name) for name in made}


def by_what() -> dict:
    """Return by what code models are converted and healed."""
    return {"sources": hash_of(own_sources((*SOURCES, "conversion"))), "versions": library_versions()}


def heal(
    source: Path, target: Path, request: Request, healing: Healing, show: Callable[[Measured], None]
) -> tuple[Path, Path]:
    """Heal a converted model, train the control, and measure both on the held-out text.

    Both go to folders beside that of the converted model, with `-healed` and `-control` behind its name.

    Args:
        source: of the original, as in `convert`.
        target: folder of the converted model.
        request: what it was converted by.
        healing: how long, and how.
        show: called with each as it has been measured.

    Returns:
        The folders of the healed model and of the control.

    Raises:
        UserError: something else stands there, or the texts are not those of the conversion any more.
        Stopped: the user asked to stop; the same command goes on.
    """
    target = Path(target)
    with ours(source) as folder:
        ready = prepared(folder, request)
        check_texts(target, ready)
        model, tokenizer, length = ready.model, ready.tokenizer, ready.length
        windows = rows_of(ready.calibration, tokenizer, length + 1)
        texts = about(ready.calibration)
        identity = {"original": weights_hash(folder), "converted": weights_hash(target), **texts, **by_what()}
        runs = {
            "healed": train_on(target, beside(target, "healed"), windows, healing, model, tokenizer, identity),
            "control": train_on(folder, beside(target, "control"), windows, healing, None, tokenizer, identity),
        }
        measuring = HeldOut(model.to(device()), tokenizer, ready.texts(request), length, request.probes)
        found = [original_of(model, measuring)]
        for name, run in {"converted": target, **runs}.items():
            found.append(measured(name, load_model(run).to(device(), torch.float32), measuring))
        for one in found:
            show(one)
        write_record(runs["healed"] / HEALED, {"healing": asdict(healing), "rows": [as_record(one) for one in found]})
    return runs["healed"], runs["control"]


def beside(target: Path, what: str) -> Path:
    """Return the folder beside that of a converted model."""
    return target.with_name(f"{target.name}-{what}")


@dataclass(frozen=True)
class Prepared:
    """The original in single precision, and the texts.

    Attributes:
        model: the original, on the CPU.
        tokenizer: its own.
        dtype: of its weights as they are stored.
        numbers: that a token and layer may cache.
        calibration: text to calibrate and to heal on.
        held_out: text to measure on.
        length: of windows, in tokens.
    """

    model: DecoderForCausalLM
    tokenizer: PreTrainedTokenizerFast
    dtype: torch.dtype
    numbers: int
    calibration: Texts
    held_out: Texts
    length: int

    @property
    def width(self) -> int:
        """Of the model."""
        return self.model.config.hidden_size

    def texts(self, request: Request) -> list[str]:
        """Return the documents to measure on."""
        return beginnings(self.held_out, self.tokenizer, request.held_out_tokens, self.length)


def prepared(folder: Path, request: Request) -> Prepared:
    """Return what a request needs of a model and its texts, after the checks that cost nothing.

    Raises:
        UserError: it cannot be converted, to that size, or by these texts.
    """
    model, tokenizer = load_with_tokenizer(folder)
    dtype, model = model.dtype, model.to(device="cpu", dtype=torch.float32)
    check_convertible(model.config)
    check_finite(model)
    if request.constant and dtype is torch.float16:
        raise UserError(
            "latent_norm=constant holds a number beyond float16, the dtype of these weights; save them in bfloat16, or "
            "choose none"
        )
    numbers = numbers_asked(request, model.config, dtype)
    if request.q_lora_rank is not None:
        check_query_rank(model.config, request.q_lora_rank, request.constant)
    calibration, held_out = read_texts(request.corpus, request.held_out, request.text_column)
    length = min(request.sequence_length, model.config.max_position_embeddings)
    return Prepared(model, tokenizer, dtype, numbers, calibration, held_out, length)


def check_finite(model: DecoderForCausalLM) -> None:
    """Refuse weights that hold NaN or infinity, by their name; those of the last layers no statistics would show.

    Raises:
        UserError: one does.
    """
    for name, weight in model.named_parameters():
        if not bool(weight.isfinite().all()):
            raise UserError(f"{name} holds NaN or infinity; mend the model")


def check_texts(target: Path, ready: Prepared) -> None:
    """Refuse texts that have changed since a model was converted by them: what is held out now may have calibrated it.

    Raises:
        UserError: they have.
    """
    record = read_record(target / RECORD)
    for role, texts in (("calibration", ready.calibration), ("held_out", ready.held_out)):
        if record[role]["sha256"] != texts.sha256:
            raise UserError(
                f"corpus={texts.name} has changed since {target} was converted by it, and what is held out now may "
                "have calibrated it; bring it back, or convert again with --overwrite"
            )


def about(texts: Texts) -> dict[str, str]:
    """Return what a record says of texts."""
    return {"corpus": texts.name, "sha256": texts.sha256}


@contextmanager
def ours(source: Path) -> Iterator[Path]:
    """Yield the folder of a model of ours: the source, or what it is imported to for the time being.

    Raises:
        UserError: it cannot be imported, or has no tokenizer, which is said of the source.
    """
    source = Path(source)
    if not is_gguf(source) and isinstance(read_config(source), DecoderConfig):
        yield source
        return
    with tempfile.TemporaryDirectory() as folder:
        imported = Path(folder) / "imported"
        import_checkpoint(source, imported)
        if not (imported / "tokenizer.json").is_file():
            raise UserError(f"model={source} holds no tokenizer that can be read; copy the one that belongs to it")
        yield imported


def numbers_asked(request: Request, config: DecoderConfig, dtype: torch.dtype) -> int:
    """Return how many numbers a token and layer may cache.

    Raises:
        UserError: too few or too many, or parts that cannot be.
    """
    size = request.size
    if isinstance(size, tuple):
        numbers, asked = sum(size), f"kv_lora_rank={size[0]} with qk_rope_head_dim={size[1]}"
        check_parts(config, *size, request.constant)
    else:
        numbers = size // (config.num_hidden_layers * dtype.itemsize)
        asked = f"cache_bytes={size}, for {config.num_hidden_layers} layers at {dtype.itemsize} bytes,"
    check_numbers(config, numbers, request.constant, asked)
    return numbers


def chosen_size(request: Request, model: DecoderForCausalLM, layers: list[Studied], numbers: int) -> Size:
    """Return the size that was asked for, split between latent and rotary key as was said, or as is best."""
    if isinstance(request.size, tuple):
        size = size_of(layers, *request.size, request.constant)
    else:
        size = size_for(model, layers, numbers, request.constant)
    by_layer = request.ranks == "by-layer" and size != full_size(model.config)
    return replace(size, by_layer=by_layer)


def measured(name: str, model: DecoderForCausalLM, measuring: HeldOut) -> Measured:
    """Return how far a model is from the original, and what it caches."""
    parts = [layer.self_attn.cache_parts() for layer in model.model.layers]
    each = sum(sum(part.values()) for part in parts) // len(parts)
    rotary, distance = parts[0].get("rotary key", 0), measuring.distance(model)
    return Measured(name, each, rotary, distance, measuring.recall(model))


def original_of(model: DecoderForCausalLM, measuring: HeldOut) -> Measured:
    """Return the row of the original."""
    return Measured("original", cached_numbers(model.config), 0, measuring.original, measuring.recall_of_original)


def curve_of(
    model: DecoderForCausalLM, layers: list[Studied], measuring: HeldOut, show: Callable[[Measured], None]
) -> Iterator[Measured]:
    """Yield what closed forms lose at each of six sizes, from the statistics at hand."""
    whole = cached_numbers(model.config)
    for share in CURVE:
        numbers = max(3, round(share * whole))
        size = size_for(model, layers, numbers, constant=False)
        maps = OneByOne(converted, [(layer, list(size.kept), size.rank) for layer in layers])
        made = model_of(model, Converted("", maps, size.kept))
        found = measured(f"{numbers / whole:.0%} of the cache", made, measuring)
        show(found)
        yield found


def as_record(one: Measured) -> dict:
    """Return a row for a JSON record."""
    scores = {name: values.tolist() for name, values in vars(one.distance).items()}
    return {"step": one.step, "numbers": one.numbers, "rotary": one.rotary, "recall": one.recall, **scores}
