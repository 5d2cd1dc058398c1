"""WikiText's lines are put back into articles, and nothing else is changed."""

import pytest
from conftest import wikitext_file
from hypothesis import given
from hypothesis import strategies as st

from mla_experiments.data.wikitext import articles, is_title

LINES = st.sampled_from([" \n", "", " = A = \n", " = = S = = \n", " Prose . \n", " = Goals ; A = \n", " cell \n"])


@given(st.lists(LINES))
def test_nothing_is_lost_or_moved(lines):
    assert "".join(articles(lines)) == "".join(lines)


@pytest.mark.parametrize(
    ("line", "title"),
    [
        (" = Robert Boulter = \n", True),
        ("= Robert Boulter =", True),
        (" = = Career = = \n", False),
        (" = = = 2000 = = = \n", False),
        (" a = b \n", False),
        (" \n", False),
        (" = \n", False),
    ],
)
def test_titles_and_section_headings_differ(line, title):
    assert is_title(line) is title


def test_an_article_starts_at_each_title_that_prose_follows():
    lines = [" \n", " = One = \n", " \n", " First . \n", " = = S = = \n", " = Goals ; A = \n", " Assists ; Pts \n",
             " = Two = \n", " Second . \n"]  # fmt: skip
    assert [article.split("\n")[0] for article in articles(lines)] == [" ", " = Two = "]


@pytest.mark.parametrize(("name", "count"), [("wikitext-2.train-1m.txt", 52), ("wikitext-2.valid.txt", 60)])
def test_real_wikitext_gives_its_articles(name, count):
    lines = wikitext_file(name).read_text(encoding="utf-8").splitlines(keepends=True)
    found = list(articles(lines))
    assert len(found) == count
    assert all(is_title(article.lstrip().split("\n")[0]) for article in found)
