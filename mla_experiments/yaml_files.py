"""YAML files of `name: value` lines: flags of commands, and the fields of a study."""

from collections.abc import Iterator
from pathlib import Path

from .errors import UserError, reason_of, repeated


def read_yaml(path: Path, role: str, line: str) -> tuple[str, dict]:
    """Return the text of a file, and what it states; nothing where it is empty.

    Args:
        path: of the file.
        role: what the file is, for the messages.
        line: how a line of it looks, for the messages.

    Raises:
        UserError: it cannot be read, states no names or one of them twice, or holds a text that no file or folder can
            be named after.
    """
    import yaml

    try:
        source = path.read_text(encoding="utf-8-sig")
        content = yaml.safe_load(source)
    except Exception as error:  # the library raises a dozen kinds: of dates, numbers and depths that cannot be
        raise UserError(
            f"{role}={path} cannot be read ({reason_of(error)}); give a YAML file of {line} lines"
        ) from None
    if not isinstance(content, dict | None):
        raise UserError(f"{role}={path} is not a list of {line} lines; see experiments/")
    if name := stated_twice(source):
        raise UserError(f"{role}={path} states {name} twice, and one would be lost; keep one of them")
    for text in texts_in(content):
        if "\0" in text or (not text.isascii() and any("\ud800" <= sign <= "\udfff" for sign in text)):
            raise UserError(f"{role}={path} has the text {text!a}, which is no Unicode text; mend it there")
    return source, content or {}


def stated_twice(source: str) -> str | None:
    """Return a name that one mapping of a YAML text states more than once, of which PyYAML would take the last."""
    import yaml

    left, seen = [yaml.compose(source, Loader=yaml.SafeLoader)], set()
    while left:
        node = left.pop()
        if id(node) in seen or not isinstance(node, yaml.CollectionNode):
            continue
        seen.add(id(node))  # an alias is the very node of its anchor
        if isinstance(node, yaml.MappingNode):
            names = [str(name.value) for name, _ in node.value]
            if twice := repeated(names):
                return twice[0]
        left += [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
    return None


def texts_in(tree: object) -> Iterator[str]:
    """Yield every text in lists and dictionaries, which may hold one another."""
    left, seen = [tree], set()
    while left:
        part = left.pop()
        if isinstance(part, str):
            yield part
        elif isinstance(part, list | dict) and id(part) not in seen:
            seen.add(id(part))
            left += part if isinstance(part, list) else [*part.keys(), *part.values()]
