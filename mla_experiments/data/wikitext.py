"""WikiText's format: a paragraph a line, a line ` = Title = ` before each article, ` = = Section = = ` inside it.

Merity et al. 2016, Pointer Sentinel Mixture Models, §4.3. The hub serves it a line per row; articles are put back
together here, byte for byte, so that splits and document boundaries fall between articles.

Other texts have lines such as `= Contents =` too, so that one of them tells nothing. WikiText is known by all its
lines: each begins and ends with a space, and an article opens with a title, a blank line, and prose.
"""

import re
from collections.abc import Iterable, Iterator

# One "=" on each side and none next to it: a title, not a section heading.
TITLE = re.compile(r" ?= (?!=).*(?<!=) = ?")
SENTENCE_END = re.compile(r"[.!?][\"')\]]*(\s|$)")
HEAD = 300  # lines that tell of most texts that they are not WikiText
SHARE = 0.99  # of the lines keep the layout: some hold stray line ends


def is_title(line: str) -> bool:
    """Return whether a line has the form of an article's title."""
    return TITLE.fullmatch(line.rstrip("\r\n")) is not None


def keeps_layout(line: str) -> bool:
    """Return whether a line that is not blank begins and ends with a space, as WikiText's do."""
    text = line.rstrip("\r\n")
    return text[:1] == " " == text[-1:]


def could_be_wikitext(lines: Iterable[str]) -> bool:
    """Return whether lines, blank ones aside, keep WikiText's layout, so that they may be a part of it."""
    return _layout(lines)[0]


def is_wikitext(lines: Iterable[str]) -> bool:
    """Return whether lines are WikiText: they keep its layout all through, and an article opens among them."""
    return all(_layout(lines))


def _layout(lines: Iterable[str]) -> tuple[bool, bool]:
    """Return whether lines keep the layout, and whether a title, blank lines and prose follow each other in them."""
    kept = others = 0
    opens = after_title = after_blank = False
    for line in lines:
        text = line.rstrip("\r\n")
        if "\n" in text:  # a document of several lines
            return False, False
        if not text.strip():
            after_blank = after_title
            continue
        opens |= after_blank and not is_title(text) and SENTENCE_END.search(text) is not None
        after_title, after_blank = is_title(text), False
        kept, others = (kept + 1, others) if keeps_layout(text) else (kept, others + 1)
    return kept > 0 and kept >= SHARE * (kept + others), opens


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
