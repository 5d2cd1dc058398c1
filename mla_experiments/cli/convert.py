"""Convert a checkpoint of MHA or GQA to MLA and say what each step costs: `convert MODEL OUT --cache-bytes N`."""

from dataclasses import dataclass, field
from pathlib import Path

from ..allocator import keep_freed_memory
from ..errors import UserError
from .needs import STATISTICS, need
from .parsing import ConversionArguments, parse
from .saying import wrote

POSITIVE = {"minimum": 1}


@dataclass
class ConvertArguments(ConversionArguments):
    """What to convert to, and by which text."""

    cache_bytes: int | None = field(
        default=None,
        metadata={"help": "a token may cache over all layers, in the model's dtype; or the next two"} | POSITIVE,
    )
    kv_lora_rank: int | None = field(default=None, metadata={"help": "numbers of the latent"} | POSITIVE)
    qk_rope_head_dim: int | None = field(default=None, metadata={"help": "numbers of the rotary key"} | POSITIVE)
    q_lora_rank: int | None = field(
        default=None, metadata={"help": "numbers of the queries' latent; full queries if not given"} | POSITIVE
    )
    ranks: str = field(
        default="uniform",
        metadata={"help": "uniform; by-layer: each layer's latent of its own width, in a model of ours alone"},
    )
    latent_norm: str = field(
        default="constant",
        metadata={"help": "constant: a channel that undoes the norm of stock DeepSeek-V3; none: only a model of ours"},
    )
    fit: bool = field(default=True, metadata={"help": "fit each layer along the converted model; false leaves it out"})
    corpus: str = field(default="wiki-sample", metadata={"help": "text to calibrate on, as `data` takes it"})
    held_out: str | None = field(
        default=None, metadata={"help": "text to measure on; by default every fourth document of the corpus"}
    )
    text_column: str = field(default="text", metadata={"help": "column that holds the text of a table"})
    calibration_tokens: int = field(default=8192, metadata={"help": "to calibrate on"} | POSITIVE)
    held_out_tokens: int = field(
        default=8192, metadata={"help": "to measure on, of the beginnings of documents", "minimum": 2}
    )
    sequence_length: int = field(default=512, metadata={"help": "of windows of text, in tokens", "minimum": 2})
    curve: bool = field(default=False, metadata={"help": "measure six other sizes too, from the same statistics"})
    probes: list[str] = field(
        default_factory=list,
        metadata={"help": "tasks to ask the model after each step, such as needle copy (as eval --tasks does)"},
    )
    heal_tokens: int = field(
        default=0, metadata={"help": "to train the converted model on, beside a control; 0 leaves it out", "minimum": 0}
    )
    heal_learning_rate: float = field(default=1e-4, metadata={"help": "of healing, at its peak", "above": 0})
    heal_distillation: float = field(
        default=0.5, metadata={"help": "share of the loss that is the divergence from the original", "minimum": 0}
    )
    heal_batch: int = field(default=8, metadata={"help": "windows in a step of healing"} | POSITIVE)
    weights_dir: str = field(default="weights", metadata={"help": "holds the trained models"})


def run(argv: list[str]) -> None:
    """Run it."""
    places = {
        "MODEL": "a model, its name under WEIGHTS_DIR, smollm2-135m, or a checkpoint to import",
        "OUT": "folder to write",
    }
    given, where = parse([ConvertArguments], argv, "convert", __doc__, positional=places)
    need(*STATISTICS)
    from ..conversion.healing import Healing
    from ..conversion.job import Request, convert, heal, stands
    from ..evaluation.results import find_model
    from ..report.conversion_cost import write_conversion

    overwrite, weights_dir = given.pop("overwrite"), Path(given.pop("weights_dir"))
    source, target = find_model(where["MODEL"], weights_dir), Path(where["OUT"])
    how = {name: given.pop(f"heal_{name}") for name in ("tokens", "learning_rate", "distillation", "batch")}
    idle = [name for name in how if not how["tokens"] and how[name] != getattr(ConvertArguments, f"heal_{name}")]
    if idle:
        raise UserError(
            f"heal_{idle[0]}={how[idle[0]]} has no effect without heal_tokens; leave it out, or say on how many to heal"
        )
    healing = Healing(**how)
    healing.check()
    request = Request(**given)
    if healing.tokens and not overwrite and stands(source, target, request):
        print(f"{target} already holds this conversion.")
    else:
        config = convert(source, target, request, overwrite, Shown(), write_conversion)
        options = config.attention_options
        wrote(
            target,
            f"{config.attention}: latent {options['kv_lora_rank']}{' on average' if config.layer_options else ''}, "
            f"rotary key {options['qk_rope_head_dim']}",
            f"mla-experiments generate --model {target} --prompt TEXT",
            say_next=not healing.tokens,
        )
    if healing.tokens:
        keep_freed_memory()  # from here on steps ask for the same again; before, large models come and go
        healed, control = heal(source, target, request, healing, Shown())
        wrote(healed, f"beside {control}", f"mla-experiments generate --model {healed} --prompt TEXT")


class Shown:
    """Prints a row for every step as it has been measured, beside the original's, which comes first."""

    def __init__(self):
        self.original = None

    def __call__(self, one) -> None:
        """Print it."""
        from ..report.conversion_cost import row_of

        self.original = self.original or one
        row = row_of(one, self.original)
        print("; ".join(f"{name} {value}" for name, value in row.items() if value), flush=True)
