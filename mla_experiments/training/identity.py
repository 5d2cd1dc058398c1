"""What makes two runs the same: everything that is told to them, but for what is known to do no harm.

A field of an argument class that no table here names counts: so does one that a later transformers brings.
"""

import ast
import functools
import hashlib
import inspect
import json
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

from transformers import TrainingArguments

from ..errors import UserError
from ..manifest import library_versions
from ..modeling import DecoderConfig
from ..modeling.attention import Attention, mechanisms_of, plugins
from ..modeling.attention.checks import COMMON
from .flags import REFUSED, STEERED_BY_VALIDATION
from .imported import imported_files
from .settings import RunArguments, trainer_defaults

PACKAGE = Path(__file__).resolve().parents[1]
SOURCES = (
    "kernels",
    "modeling",
    "training",
    "data/packing.py",
    "data/streaming.py",
    "data/synthetic",
)  # which decide the arithmetic
VERSION = "mla-experiments"  # among the versions of a record

IN_OTHER_WORDS = {  # fields that count by what they come to
    "preset": "fills in others", "attention": "in the model", "hidden_size": "in the model",
    "num_hidden_layers": "in the model", "num_attention_heads": "in the model", "intermediate_size": "in the model",
    **dict.fromkeys((*COMMON, "sliding_window", "layer_types"), "in the model"),
    "positions": "in the model", "tie_word_embeddings": "in the model",
    "attention_options": "in the model", "initialization": "in the model",
    "train_tokens": "counted in steps", "max_steps": "counted in steps", "warmup_tokens": "counted in steps",
    "precision": "bf16 and fp16", "streaming": "the tokens' request says where they come from",
}  # fmt: skip
HARMLESS = {
    **dict.fromkeys(("data_dir", "weights_dir", "figures_dir", "run"), "a path"),
    **dict.fromkeys(("resume", "overwrite", "accept_changes"), "says what to do with a run that stands there"),
    **dict.fromkeys(
        ("logging_strategy", "logging_steps", "logging_first_step", "log_on_each_node", "log_level",
         "log_level_replica", "include_num_input_tokens_seen"),
        "what is written down of the steps, and how often",
    ),
    **dict.fromkeys(
        ("report_to", "run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
        "where it is reported too",
    ),
    **dict.fromkeys(
        ("eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "metric_for_best_model"),
        "when to validate, which draws no random number; it counts where a schedule follows the validation loss",
    ),
    "per_device_eval_batch_size": "validation in other batches; as above",
    **dict.fromkeys(("save_strategy", "save_steps", "save_total_limit"), "which checkpoints are kept, all resumable"),
    **dict.fromkeys(
        ("activation_checkpointing", "activation_checkpointing_kwargs", "gradient_checkpointing",
         "gradient_checkpointing_kwargs"),
        "the same arithmetic, done once more on the way back",
    ),
    "torch_empty_cache_steps": "gives memory back",
    **dict.fromkeys(
        ("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers",
         "dataloader_prefetch_factor", "dataloader_multiprocessing_context"),
        "who reads the sequences, whose order is a function of the seed",
    ),
    "gradient_accumulation_steps": "follows from the batch, its parts and the devices",
    "use_cpu": "the device is recorded",
    "debug": "watches, and stops at what is not finite",
    **dict.fromkeys(
        ("ddp_find_unused_parameters", "ddp_broadcast_buffers", "ddp_static_graph", "ddp_timeout"),
        "how processes wait for each other: all parameters are used, and no buffer changes",
    ),
}  # fmt: skip
SAID = {  # told where it changes, not refused
    **dict.fromkeys(
        ("per_device_train_batch_size", "devices", "average_tokens_across_devices", "ddp_bucket_cap_mb",
         "ddp_backend", "fsdp", "fsdp_config"),
        "sums in another order",
    ),
    **dict.fromkeys(("torch_compile", "torch_compile_backend", "torch_compile_mode"), "other kernels"),
    "full_determinism": "other kernels",
    "device": "other kernels",
    "validation_tokens": "validation losses before and after are over other text",
}  # fmt: skip
OF_THE_MACHINE = ("device", "devices")
VALIDATING = ("eval_strategy", "eval_steps", "eval_delay", "per_device_eval_batch_size", "validation_tokens")
SPLITTING = ("per_device_train_batch_size", "devices")
RECORDED_FIRST = {  # what runs recorded before they recorded everything
    "model", "tokens", "steps", "warmup_steps", "batch_size", "sequence_length", "learning_rate", "weight_decay",
    "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "optim", "lr_scheduler_type", "lr_scheduler_kwargs",
    "seed", "bf16", "fp16",
}  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """How a run differs from what is recorded in its folder, as parts of sentences.

    Attributes:
        differs: what makes it another run.
        changes: what decides arithmetic too, and has changed since: to be accepted by the user.
        unknown: what the record does not say.
        said: what changes last digits, or what is recorded, alone.
    """

    differs: list[str]
    changes: list[str]
    unknown: list[str]
    said: list[str]


@dataclass(frozen=True)
class Identity:
    """What determines the weights, what determines their last digits, and the sources that compute them."""

    determines: dict
    said: dict
    sources: str

    @property
    def record(self) -> dict:
        """What is kept of it in `run.json`."""
        return {"identity": self.determines, "said": self.said, "sources": self.sources}

    def digest(self, stated: dict) -> str:
        """Return what a folder is named after: 12 hexadecimal digits.

        A field that runs did not record at first counts where it is not what it usually is, so that they are found.

        Args:
            stated: what fields are usually, beside the defaults: the values of the preset.
        """
        usual = usual_values() | stated
        everything = self.determines | {name: value for name, value in self.said.items() if name not in OF_THE_MACHINE}
        kept = {
            name: value
            for name, value in everything.items()
            if name in RECORDED_FIRST or (name != "tokens_hash" and value != usual.get(name))
        }
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]

    def compare(self, recorded: dict) -> Comparison:
        """Hold it against what a folder's `run.json` says."""
        before, usual = recorded.get("identity", {}), usual_values()
        differs, changes, unknown = [], [], []
        for name in sorted(before.keys() | self.determines.keys()):
            now = self.determines.get(name)
            if name == "tokens_hash" and before.get(name) is None:
                unknown += [name] if now else []
            elif name in before and name in self.determines:
                differs += differences({name: before[name]}, {name: now})
            elif name in before:
                changes.append(f"{name} ({before[name]}, which this version of transformers does not know)")
            elif now == usual.get(name):
                unknown.append(name)
            else:
                differs.append(f"{name} (not recorded, now {now})")
        versions = recorded.get("versions", {})
        if "sources" not in recorded:
            unknown.append("the sources that train")
        else:
            old = {"version": versions.get(VERSION), "sources": recorded["sources"][:12]}
            changes += differences(old, {"version": library_versions()[VERSION], "sources": self.sources[:12]})
        said = [
            f"{name} ({recorded['said'][name]}, now {value}: {SAID[name]})"
            for name, value in self.said.items()
            if recorded.get("said", {}).get(name, value) != value
        ]
        return Comparison(differs, changes, unknown, said)


def identity_of(
    run: RunArguments, arguments: TrainingArguments, config: DecoderConfig, manifest: dict, attention: str
) -> Identity:
    """Return the identity of a run.

    Args:
        run: its own arguments.
        arguments: those of the Trainer, complete.
        config: of its model.
        manifest: of the tokens.
        attention: its mechanism.
    """
    values = vars(run) | arguments.to_dict() | {"devices": arguments.world_size, "device": arguments.device.type}
    aside = {"transformers_version", "_name_or_path", "dtype", "architectures", "attention_source"}  # among the sources
    # younger than runs that had none of them either
    aside |= {name for name in COMMON if not getattr(config, name)}
    usual = {"initialization": "normal", "norm_placement": "pre", "no_rope_layers": None, "layer_options": None}
    aside |= {name for name, value in usual.items() if getattr(config, name) == value}
    aside |= set() if config.sliding_window else {"sliding_window", "layer_types"}
    determines = {
        "model": {name: value for name, value in config.to_diff_dict().items() if name not in aside},
        "tokens": manifest["request"],
        "tokens_hash": manifest.get("hash"),
        "steps": arguments.max_steps,
    }
    also = VALIDATING if arguments.lr_scheduler_type in STEERED_BY_VALIDATION else ()
    also += SPLITTING if arguments.neftune_noise_alpha is not None else ()  # noise is drawn for each part of a batch
    determines |= {name: values[name] for name in (*counting(), *also)}
    said = {name: values[name] for name in SAID if name in values and name not in also}
    determines, said = json.loads(json.dumps([determines, said], default=str))
    return Identity(determines, said, sources_hash(attention))


def counting() -> list[str]:
    """Return the fields that count as they are: all that no table says otherwise of."""
    aside = HARMLESS.keys() | SAID.keys() | IN_OTHER_WORDS.keys() | (REFUSED.keys() - {"bf16", "fp16"})
    return [f.name for cls in (RunArguments, TrainingArguments) for f in fields(cls) if f.init and f.name not in aside]


@functools.cache
def _class_defaults() -> dict:
    return {
        f.name: f.default if f.default_factory is MISSING else f.default_factory()
        for f in fields(TrainingArguments)
        if f.init
    }


def usual_values() -> dict:
    """Return what the fields of TrainingArguments are where nobody says otherwise."""
    own = {f.name: f.default for f in fields(RunArguments) if f.name in counting()}
    return json.loads(json.dumps(_class_defaults() | trainer_defaults() | own | {"devices": 1}, default=str))


@functools.cache
def sources_hash(attention: str) -> str:
    """Return a hash of the sources that decide the arithmetic: comments and docstrings do not.

    The file of a mechanism from elsewhere does, and so do those that it imports.

    Args:
        attention: the mechanism, or several, which may come from elsewhere.
    """
    content = own_sources()
    for name, mechanism in mechanisms_of(attention).items():
        path = file_of(name, mechanism)
        if PACKAGE not in path.parents:
            plugins.check_unchanged(path, mechanism.__module__)
            imported = imported_files(path, mechanism.__module__)
            files = {f"mechanism {name}": path, **{f"mechanism {name}: {one}": imported[one] for one in imported}}
            content = content | {named: code_of(files[named]) for named in files}
    return hash_of(content)


def hash_of(content: dict[str, str]) -> str:
    """Return a hash of what sources say, by name."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@functools.cache
def own_sources(names: tuple[str, ...] = SOURCES) -> dict[str, str]:
    """Return what our own sources say that decide the arithmetic, by name: read once, since it takes a second.

    Args:
        names: of files and folders of this package.
    """
    found = [path for name in names for path in (PACKAGE / name, *(PACKAGE / name).rglob("*")) if path.is_file()]
    files = {path.relative_to(PACKAGE).as_posix(): path for path in found if path.suffix in (".py", ".c")}
    return {name: code_of(path) for name, path in files.items()}


def file_of(name: str, mechanism: type[Attention]) -> Path:
    """Return the file of a mechanism's source.

    Raises:
        UserError: there is none, as of what was typed into a notebook.
    """
    try:
        found = inspect.getsourcefile(mechanism)
    except (OSError, TypeError):
        found = None
    if found is None:
        raise UserError(f"attention={name} stands in no file, so that a run cannot say what it trains; put it into one")
    return Path(found).resolve()


def code_of(path: Path) -> str:
    """Return what a source file says to the machine."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return text
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list) or not body:
            continue
        if isinstance(body[0], ast.Expr) and isinstance(getattr(body[0].value, "value", None), str):
            body[0] = ast.Pass()
    return ast.unparse(tree)


def differences(old: dict, new: dict, prefix: str = "") -> list[str]:
    """Return what differs between two nested dictionaries, as "name (old, now new)"."""
    found = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after, f"{prefix}{name}.")
        elif before != after:
            found.append(f"{prefix}{name} ({before}, now {after})")
    return found
