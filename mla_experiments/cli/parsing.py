"""Flags: the fields of dataclasses, from the command line and from `--config FILE.yaml`; the command line goes before.

Those of transformers' TrainingArguments are parsed by its own HfArgumentParser, so that they keep their names. Our own
are plain argparse, by the same rules: that parser takes two seconds to import.
"""

import argparse
import difflib
import json
import math
import re
import shutil
import types
import typing
from collections.abc import Iterable
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import UserError, shortened
from ..yaml_files import read_yaml

FROM_A_FILE = re.compile(r"(.+\.py):(\w+)")  # a mechanism: path/to/file.py:Class
TRUTH = {**dict.fromkeys(("true", "yes", "t", "y", "1"), True), **dict.fromkeys(("false", "no", "f", "n", "0"), False)}
ALL = "--help-all"
LARGEST, LARGEST_SEED = 2**63 - 1, 2**32 - 1  # whole numbers that torch's and NumPy's are


@dataclass
class ConversionArguments:
    """How a checkpoint is written in another form."""

    overwrite: bool = field(default=False, metadata={"help": "replace what stands in OUT"})


def parse(
    classes: list[type],
    argv: list[str],
    command: str,
    description: str | None,
    defaults: dict | None = None,
    positional: dict[str, str] | None = None,
    positive: bool = False,
    examples: str = "",
):
    """Return the flags of each dataclass as a dictionary, and one more of the positional arguments if there are any.

    Args:
        classes: dataclasses whose fields are the flags. The metadata of a field say its `help`, and for a number what
            it must be at least (`minimum`), at most (`maximum`) or more than (`above`).
        argv: the command line after the sub-command; `--config FILE` in it is replaced by the file's flags.
        command: the sub-command, for the messages.
        description: what it does, for `--help`.
        defaults: in place of the fields' own.
        positional: arguments without a flag, all needed, and what they mean.
        positive: whether every number must be more than 0.
        examples: what `--help` ends with.

    Raises:
        UserError: unknown flag, a list that stands twice, a value of the wrong type, or a number that is not finite
            or out of its range.
    """
    if ALL in argv:
        argv = ["--help"]
    elif {"-h", "--help"} & set(argv) and not all(map(is_ours, classes)):
        classes, defaults = [cls for cls in classes if is_ours(cls)], None
        examples = (
            f"{examples}\n\n{ALL} lists all of transformers' TrainingArguments too, which serve as flags.".strip()
        )
    parser = parser_of(classes, command, description)
    parser.epilog = examples
    known = {action.dest for action in parser._actions}
    check_lists(argv, parser)
    for name, meaning in (positional or {}).items():
        parser.add_argument(name, help=meaning)
    parser.set_defaults(**{name: value for name, value in (defaults or {}).items() if name in known})
    values = vars(parser.parse_args(with_files_of_mechanisms(with_config(argv, known), known)))
    named = [{f.name: values[f.name] for f in fields(cls) if f.init} for cls in classes]
    for cls, given in zip(classes, named, strict=True):
        check_ranges(cls, given, 0 if positive else None)
    places = {name: values[name] for name in positional or ()}
    for name, value in places.items():
        check_filled(name, value)
    return [*named, places] if positional else named


def parser_of(classes: list[type], command: str, description: str | None) -> argparse.ArgumentParser:
    """Return a parser of the fields of dataclasses whose errors are `UserError`."""

    def complain(message):
        raise UserError(f"{message}; see mla-experiments {command} --help")

    settings: dict[str, Any] = {"prog": f"mla-experiments {command}", "description": description, "allow_abbrev": False}
    if all(is_ours(cls) for cls in classes):
        settings["formatter_class"] = Short
        parser = argparse.ArgumentParser(**settings)
        for cls in classes:
            add_fields(parser.add_argument_group((cls.__doc__ or "").splitlines()[0].rstrip(".")), cls)
    else:
        from transformers import HfArgumentParser

        parser = HfArgumentParser(classes, **settings)  # type: ignore[arg-type]  # dataclasses, as it wants
    parser.error = complain  # type: ignore[method-assign]  # it does not return either
    return parser


class Short(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help with one name a flag, on one line where that holds it; examples as they stand."""

    def __init__(self, prog):
        super().__init__(
            prog, max_help_position=30, width=min(120, max(100, shutil.get_terminal_size((120, 24)).columns - 2))
        )

    def _format_action_invocation(self, action):
        if not action.option_strings:
            return super()._format_action_invocation(action)
        name = action.option_strings[-1] if len(action.option_strings[0]) == 2 else action.option_strings[0]
        value = "" if action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
        return name + value + (" ..." if action.nargs == "+" else "")

    def _format_usage(self, usage, actions, groups, prefix):
        places = " ".join(action.dest for action in actions if not action.option_strings)
        return f"usage: {self._prog} {f'{places} ' if places else ''}[--flag VALUE ...]\n\n"

    def _get_help_string(self, action):
        shown = action.default not in (None, False, "", [], argparse.SUPPRESS) and not action.required
        return super()._get_help_string(action) if shown else action.help


def is_ours(cls: type) -> bool:
    """Return whether a dataclass is of this package, or made by it on the way."""
    return cls.__module__.split(".")[0] in (__package__.split(".")[0], "types")


def add_fields(group: argparse._ArgumentGroup, cls: type) -> None:
    """Add the fields of a dataclass as flags, with underscores or hyphens in their names."""
    kinds = typing.get_type_hints(cls)
    for each in fields(cls):
        kind = without_none(kinds[each.name])
        several = typing.get_origin(kind) is list
        settings = {"dest": each.name, "help": each.metadata.get("help"), **default_of(each)}
        if kind is bool:
            settings |= {"type": truth, "nargs": "?", "const": True, "metavar": "BOOL"}
        else:
            one = typing.get_args(kind)[0] if several else kind
            settings |= {"type": one, "metavar": one.__name__.upper()} | ({"nargs": "+"} if several else {})
        names = dict.fromkeys((f"--{each.name}", f"--{each.name.replace('_', '-')}"))
        group.add_argument(*names, **settings)


def default_of(each: Field) -> dict:
    """Return what argparse is to know of a field's default."""
    if each.default is not MISSING:
        return {"default": each.default}
    return {"required": True} if each.default_factory is MISSING else {"default": each.default_factory()}


def without_none(kind: type) -> type:
    """Return X of `X | None`, and other types as they are."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        (kind,) = (part for part in typing.get_args(kind) if part is not type(None))
    return kind


def truth(word: str) -> bool:
    """Return what a word says: true or false, yes or no, 1 or 0."""
    if word.lower() not in TRUTH:
        raise argparse.ArgumentTypeError(f"{word} is neither true nor false")
    return TRUTH[word.lower()]


def check_lists(argv: list[str], parser: argparse.ArgumentParser) -> None:
    """Refuse a flag of several values that stands twice: argparse would take the last, and lose the others."""
    for action in parser._actions:
        standing = [word for word in argv if word.partition("=")[0] in action.option_strings]
        if action.nargs == "+" and len(standing) > 1:
            raise UserError(f"{standing[0]} stands twice, and one would be lost; give all its values after one of them")


def check_ranges(cls: type, given: dict, above: float | None = None) -> None:
    """Refuse values of our own flags that are empty, and numbers not finite or out of the range that fields state.

    Args:
        cls: the dataclass.
        given: its values by name.
        above: what numbers must be more than where their field does not say.

    Raises:
        UserError: the first of them.
    """
    if not is_ours(cls):
        return  # transformers' own, which training checks
    for each in fields(cls):
        value = given.get(each.name)
        if value != each.default and not each.metadata.get("empty"):
            check_filled(each.name, value)
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int | float) and not isinstance(number, bool):
                check_range(each.name, number, {"above": above, **each.metadata})


def check_filled(name: str, value: object) -> None:
    """Refuse a text of nothing, as "$UNSET" gives in a shell: as a path it would be the current folder."""
    if isinstance(value, str) and not value.strip():
        raise UserError(f"{name}={value!r} is empty; give a value, or leave it out")


def check_range(name: str, number: float, stated: dict) -> None:
    """Refuse a number that is not finite, or not `above`, from `minimum` or up to `maximum` as is stated."""
    minimum, maximum, above = stated.get("minimum"), stated.get("maximum", LARGEST), stated.get("above")
    if isinstance(number, float) and not math.isfinite(number):
        raise UserError(f"{name}={number} must be a finite number")
    if minimum is not None and number < minimum:
        raise UserError(f"{name}={number} must be at least {minimum}")
    if number > maximum:
        raise UserError(f"{name}={number} must be at most {maximum}")
    if above is not None and not number > above:
        raise UserError(f"{name}={number} must be {'positive' if above == 0 else f'above {above}'}")


def with_files_of_mechanisms(argv: list[str], known: Iterable[str]) -> list[str]:
    """Register what `--attention path/to/file.py:Class` takes from files, and put the names in their places.

    A command without that flag takes it too, and leaves it out then: the model that it loads may need the file.
    """
    taken, inside = [], False
    for word in argv:
        prefix = "--attention=" if word.startswith("--attention=") else ""
        inside = bool(prefix) or word == "--attention" if word.startswith("--") else inside
        asked = word.removeprefix(prefix)
        if not (inside and FROM_A_FILE.search(asked)):
            taken.append(word)
            continue
        from ..modeling.attention import find

        name = find(asked)
        if "attention" in known:
            taken.append(prefix + name)
        elif taken[-1:] == ["--attention"]:
            taken.pop()
    return taken


def with_config(argv: list[str], known: Iterable[str]) -> list[str]:
    """Put the flags of `--config FILE` where it stands; keys that belong to other sub-commands are left out."""
    if "--config" not in argv:
        return argv
    place = argv.index("--config")
    if place + 1 == len(argv):
        raise UserError("--config needs a file; give one, such as experiments/demo.yaml")
    path = Path(argv[place + 1])
    flags = []
    for name, value in read_yaml(path, "config", "`flag: value`")[1].items():
        if name in known:
            flags += [f"--{name}", *as_strings(value, f"config={path} has {name}")]
        elif name not in (others := flags_of_all_commands()):
            near = difflib.get_close_matches(str(name), others | set(known), n=1)
            hint = f"; did you mean {near[0]}?" if near else "; see mla-experiments COMMAND --help"
            raise UserError(f"config={path} has the unknown flag {name}{hint}")
    return [*flags, *argv[:place], *argv[place + 2 :]]


def as_strings(value: object, where: str) -> list[str]:
    """Return a YAML value as it would stand on the command line.

    Raises:
        UserError: it is nothing, or more than JSON can hold; `where` it stands.
    """
    if None in (value if isinstance(value, list) else [value]):
        raise UserError(f"{where}={'' if value is None else value}, which has no value; give one, or leave it out")
    if isinstance(value, list):
        return [str(item) for item in value]
    try:
        return [json.dumps(value) if isinstance(value, dict) else str(value)]
    except (TypeError, ValueError):
        raise UserError(
            f"{where}={shortened(value)}, which is no JSON; give texts, numbers and lists of them"
        ) from None


def flags_of_all_commands() -> set[str]:
    """Return the names of the flags of every sub-command that a file of flags serves."""
    from transformers import TrainingArguments

    from ..training import RunArguments
    from .convert import ConvertArguments
    from .data import DataArguments
    from .evaluate import EvaluationArguments
    from .export import ExportArguments
    from .generate import GenerationArguments

    classes = (
        DataArguments, EvaluationArguments, GenerationArguments, ExportArguments, ConvertArguments, RunArguments,
        TrainingArguments,
    )  # fmt: skip
    return {f.name for cls in classes for f in fields(cls) if f.init}
