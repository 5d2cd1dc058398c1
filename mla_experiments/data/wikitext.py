"""WikiText's format: a paragraph a line, a line ` = Title = ` before each article, ` = = Section = = ` inside it.

Merity et al. 2016, Pointer Sentinel Mixture Models, §4.3. The hub serves it a line per row; articles are put back
together here, byte for byte, so that splits and document boundaries fall between articles.
"""

import re
from collections.abc import Iterable, Iterator

# One "=" on each side and none next to it: a title, not a section heading.
TITLE = re.compile(r" ?= (?!=).*(?<!=) = ?")
SENTENCE_END = re.compile(r"[.!?][\"')\]]*(\s|$)")


def is_title(line: str) -> bool:
    """Return whether a line has the form of an article's title."""
    return TITLE.fullmatch(line.rstrip("\r\n")) is not None


def articles(lines: Iterable[str]) -> Iterator[str]:
    """Join lines into articles; their concatenation is the concatenation of the lines.

    WikiText's tables left lines such as ` = Goals ; A = ` behind, which look like titles. An article opens with
    prose, so a title counts where the next line that is not blank holds the end of a sentence. Blank lines before
    the first title belong to the first article.
    """
    article: list[str] = []
    pending: list[str] = []  # a possible title and the blank lines after it
    for line in lines:
        if pending and not line.strip():
            pending.append(line)
            continue
        if pending:
            if SENTENCE_END.search(line) and not is_title(line) and any(part.strip() for part in article):
                yield "".join(article)
                article = []
            article += pending
            pending = []
        (pending if is_title(line) else article).append(line)
    article += pending
    if article:
        yield "".join(article)
