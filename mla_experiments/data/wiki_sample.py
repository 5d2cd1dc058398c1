"""The offline sample corpus: 107 real English Wikipedia articles, carried by the gensim wheel as test data.

gensim's own filter takes most wiki markup away; what it leaves (tables, galleries, captions, lists of links, empty
headings) is dropped here so that the text reads as prose. Articles are written in WikiText's format.
"""

import bz2
import re
from collections.abc import Iterator
from pathlib import Path

from ..errors import Missing

ARCHIVE = "test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"

TABLE = re.compile(r"\{\|(?:(?!\{\|).)*?\|\}", re.DOTALL)  # an innermost table
GALLERY = re.compile(r"<(gallery|timeline|imagemap|source|score|math)\b.*?</\1\s*>", re.DOTALL | re.IGNORECASE)
REFERENCE = re.compile(r"<ref\b[^>]*/>|<ref\b.*?</ref\s*>", re.DOTALL | re.IGNORECASE)
FILE_LINK = re.compile(
    r"\[\[(?:File|Image|Category|[a-z]{2,3}(?:-[a-z]+)?):(?:[^\[\]]|\[\[[^\[\]]*\]\]|\[[^\[\]]*\])*\]\]", re.I
)
TAG = re.compile(r"<[^<>]{1,200}>")
EMPHASIS = re.compile(r"'{2,5}")
HEADING = re.compile(r"(={2,6})\s*(.*?)\s*\1$")
HOLLOW_BRACKETS = re.compile(r"\(\s*[,;:.\s]*\)|\[\s*\]")
LINKS_ONLY = {"see also", "references", "external links", "notes", "further reading", "bibliography", "footnotes",
              "sources", "citations", "notes and references", "gallery"}  # fmt: skip
SHORTEST_PARAGRAPH = 60  # characters; what is shorter is a caption, a table cell or a left-over


def wiki_sample() -> Iterator[str]:
    """Yield the articles, each as one text in WikiText's format.

    Raises:
        Missing: gensim is not installed.
    """
    try:
        import gensim
        from gensim.corpora.wikicorpus import extract_pages, filter_wiki
    except ImportError:
        raise Missing("gensim", "corpus=wiki-sample comes in its wheel") from None
    with bz2.open(Path(gensim.__file__).parent / ARCHIVE) as dump:
        for title, markup, _ in extract_pages(dump, filter_namespaces=("0",)):
            if not markup.lstrip().lower().startswith("#redirect"):
                yield as_wikitext(title, filter_wiki(without_blocks(markup)))


def without_blocks(markup: str) -> str:
    """Drop tables, galleries, references, and links to files and other languages, nested ones included."""
    markup = REFERENCE.sub("", GALLERY.sub("", markup))
    for pattern in (TABLE, FILE_LINK):
        while (shorter := pattern.sub("", markup)) != markup:
            markup = shorter
    return markup


def as_wikitext(title: str, filtered: str) -> str:
    """Return an article in WikiText's format: prose paragraphs under those headings that have any."""
    lines = [f" = {title} = "]
    headings: list[tuple[int, str]] = []  # level and title of headings whose prose is still to come
    skipped_level = None  # inside a section of links, its level
    for raw in filtered.splitlines():
        line = raw.strip()
        if match := HEADING.match(line):
            level, name = len(match[1]), EMPHASIS.sub("", match[2])
            if skipped_level is not None and level > skipped_level:
                continue
            skipped_level = level if name.lower() in LINKS_ONLY else None
            headings = [(other, text) for other, text in headings if other < level] + [(level, name)]
        elif skipped_level is None and (paragraph := prose(line)):
            lines += [f" {'= ' * level}{name} {'= ' * level}".rstrip() + " " for level, name in headings]
            headings = []
            lines.append(f" {paragraph} ")
    return "\n \n".join(lines) + "\n"


def prose(line: str) -> str | None:
    """Return the paragraph of a line without markup, or None where it is no prose."""
    if not line or line[0] in "|!{}<*#:;" or "||" in line:
        return None
    line = EMPHASIS.sub("", TAG.sub("", line)).replace("&nbsp;", " ")
    line = HOLLOW_BRACKETS.sub("", line)
    line = re.sub(r"([(,;])(?:\s*[,;])+", r"\1", line)  # what a dropped template leaves between commas
    line = re.sub(r"\s+([,.;:!?)])", r"\1", re.sub(r"\(\s+", "(", line))
    line = re.sub(r"\(\s*[,;:]\s*", "(", re.sub(r"\s+", " ", line)).strip()
    ends_a_sentence = line.endswith((".", "!", "?", '."', '?"', '!"', ".)", ":"))
    return line if len(line) >= SHORTEST_PARAGRAPH and ends_a_sentence else None
