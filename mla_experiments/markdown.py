"""Text from elsewhere inside Markdown, which is shown as a page: names of corpora and models may hold anything."""

import re
from html import escape

MARKUP = re.compile(r"([\\`*_\[\]|~#])")


def escaped(text: str) -> str:
    """Return text in which nothing is markup, neither Markdown's nor HTML's."""
    return MARKUP.sub(r"\\\1", escape(" ".join(text.split()), quote=False))
