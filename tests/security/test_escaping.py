"""Names of corpora and models may hold anything: nothing of it becomes markup, and nothing breaks."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from conftest import synthetic_articles
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from mla_experiments.cli import main
from mla_experiments.markdown import escaped

HOSTILE = [
    "<script>alert(1)</script>.txt",
    "![x](http:\\evil) [y](z) `code` | cell.txt",
    "$\\frac{$ # **loud** _x_ ~~gone~~ &amp;.txt",
    "--- name: evil\n# heading\n\n<img src=x onerror=alert(1)>.txt",
    'javascript:\'"quoted".txt',
]


class Tags(HTMLParser):
    """Collects the elements of a page and the text in it."""

    def __init__(self, page):
        super().__init__()
        self.found, self.text = set(), ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.add(tag)

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("name", HOSTILE)
def test_escaped_text_is_shown_as_it_is(name):
    for text in (f"Corpus {escaped(name)}.", f"| a |\n|---|\n| {escaped(name)} |"):
        page = Tags(MarkdownIt("gfm-like", {"linkify": False}).render(text))
        assert page.found <= {"p", "table", "thead", "tbody", "tr", "th", "td"}
        assert " ".join(name.split()) in page.text


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_harms_no_run_no_card_and_no_results(train, drawn, name):
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text("".join(synthetic_articles(40)), encoding="utf-8")
    assert main(["data", "--corpus", name, "--vocab-size", "300", "--sequence-length", "32"]) == 0
    assert train(eval_steps=10) == 0 and main(["eval"]) == 0
    assert main(["export", "mla", "out'\"`"]) == 0
    for path in ("weights/mla/README.md", "results.md", "out'\"`/README.md"):
        text = Path(path).read_text(encoding="utf-8")
        body = ModelCard(text).text if text.startswith("---\n") else text
        page = Tags(MarkdownIt("gfm-like", {"linkify": False}).render(body))
        assert not page.found & {"script", "img", "a", "em", "strong", "s"}, path
        assert " ".join(name.split()) in page.text
    assert ModelCard.load("weights/mla/README.md").data.eval_results[0].dataset_name == name
    code = re.findall(r"```python\n(.*?)```", Path("out'\"`/README.md").read_text(), re.DOTALL)
    compile(code[0], "the card's example", "exec")
