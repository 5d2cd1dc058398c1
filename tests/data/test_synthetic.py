"""Synthetic tasks against a plain search for the answers, and their statistics against formulas."""

import math
from collections import Counter
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mla_experiments.data.synthetic import END, TASKS, task_named, task_of
from mla_experiments.errors import UserError


def rows_of(task, length, count=40, seed=0):
    drawn = task.draw(np.random.default_rng(seed), count, length)
    assert drawn.symbols.shape == drawn.answers.shape == (count, length + 1)
    assert (drawn.symbols[:, 0] == END).all() and not drawn.answers[:, 0].any()
    assert drawn.symbols.min() >= 0 and drawn.symbols.max() < task.num_symbols
    return [
        (row.tolist(), np.flatnonzero(asked).tolist()) for row, asked in zip(drawn.symbols, drawn.answers, strict=True)
    ]


def mqar(task, row, asked):
    assert len(asked) == task.pairs
    for place in asked:
        key = row[place - 1]
        assert row[: place - 1].count(key) == 1, "the key stands once before"
        assert row[row.index(key) + 1] == row[place]


def copy(task, row, asked):
    found, text = [], row[1:]
    while text:
        size = text.index(1) if 1 in text else len(text)
        begin = len(row) - len(text) + size + 1
        string, said = text[:size], text[size + 1 : 2 * size + 1]
        assert said == string[: len(said)] and (size < len(text) or not said)
        assert size <= task.longest and (task.shortest <= size or 1 not in text)
        found += range(begin, begin + len(said))
        assert len(said) < size or text[2 * size + 1 : 2 * size + 2] in ([END], [])
        text = text[2 * size + 2 :]
    assert found == asked


def copy_ngram(task, row, asked):
    for begin in range(1, len(row), task.size):
        example = row[begin : begin + task.size]
        string, rest = example[: task.string], example[task.string + 1 :]
        gram, said = rest[: task.gram], rest[task.gram : task.gram + task.answer]
        if len(gram) == task.gram:
            places = [at for at in range(task.string) if string[at : at + task.gram] == gram]
            assert len(places) == 1, "what is asked stands once"
            assert string[places[0] + task.gram :][: len(said)] == said
        first = begin + task.string + 1 + task.gram
        assert [place for place in asked if begin <= place < begin + task.size] == list(range(first, first + len(said)))


def induction(task, row, asked):
    assert len(asked) == task.signs
    for place in asked:
        sign = row[place - 1]
        assert sign <= task.kinds and row[: place - 1].count(sign) == 1 and row.count(sign) == 2
        assert row[row.index(sign) + 1] == row[place]


def needle(task, row, asked):
    question = len(row) - task.size
    assert row[question] == 2 and asked == list(range(question + 2, len(row)))
    found = [at for at in range(question) if row[at] == 1]
    assert len(found) == task.needles
    (place,) = [at for at in found if row[at + 1] == row[question + 1]]
    assert row[place + 2 : place + task.size] == row[question + 2 :]
    if task.depth == 0:
        assert place == 1
    if task.depth == 1:
        assert question - 2 * task.size < place <= question - task.size


def hops(task, row, asked):
    edges = dict(zip(row[1 : 1 + 2 * task.nodes : 2], row[2 : 2 + 2 * task.nodes : 2], strict=True))
    assert len(edges) == task.nodes
    for place in asked:
        steps, name = row[place - 2], row[place - 1]
        assert 1 <= steps <= task.hops and (not task.exactly or steps == task.exactly)
        for _ in range(steps):
            name = edges[name]
        assert name == row[place]
    assert asked == list(range(1 + 2 * task.nodes + 2, len(row), 3))


def sums(task, row, asked):
    for place in asked:
        assert row[place - 1] == 1
        terms = row[place - 1 - task.terms : place - 1]
        assert (sum(terms) - 2 * task.terms) % task.modulus == row[place] - 2
    assert asked == list(range(task.size, len(row), task.size))


def grammar(task, row, asked):
    text, begin = row[1:], 1
    found = []
    while END in text:
        size = text.index(END)
        assert derivations(task, tuple(symbol - 1 for symbol in text[:size]))[0] == 1, "one derivation"
        found += range(begin, begin + size + 1)
        begin, text = begin + size + 1, text[size + 1 :]
    assert found == asked


def derivations(task, sentence):
    """Return how many derivations a sentence has, and its probability, by the inside algorithm in plain loops."""
    gives, sizes = task.productions

    @cache
    def inside(level, kind, begin, end):
        if level == task.levels:
            return (1, 1.0) if end == begin + 1 and sentence[begin] == kind else (0, 0.0)
        count, total = 0, 0.0
        for rule in range(task.rules):
            given = gives[level, kind, rule, : sizes[kind, rule]].tolist()
            ways = {begin: (1, 1 / task.rules)}
            for symbol in given:
                after = {}
                for at, (number, share) in ways.items():
                    for to in range(at + 1, end + 1):
                        more, probability = inside(level + 1, symbol, at, to)
                        if more:
                            before = after.get(to, (0, 0.0))
                            after[to] = (before[0] + number * more, before[1] + share * probability)
                ways = after
            found = ways.get(end, (0, 0.0))
            count, total = count + found[0], total + found[1]
        return count, total

    parts = [inside(0, kind, 0, len(sentence)) for kind in range(task.kinds)]
    return sum(part[0] for part in parts), sum(part[1] for part in parts) / task.kinds


CHECKS = {
    "mqar": mqar, "copy": copy, "copy-ngram": copy_ngram, "induction": induction, "needle": needle, "hops": hops,
    "sums": sums, "grammar": grammar,
}  # fmt: skip
FIELDS = {
    "mqar": {"pairs": st.integers(1, 12), "keys": st.integers(12, 30), "power": st.floats(0.01, 1.0)},
    "copy": {"longest": st.integers(4, 20), "shortest": st.integers(1, 4), "characters": st.integers(2, 26)},
    "copy-ngram": {"string": st.integers(8, 30), "gram": st.integers(2, 3), "answer": st.integers(1, 3)},
    "induction": {"signs": st.integers(1, 9), "kinds": st.integers(9, 20), "noise": st.integers(1, 9)},
    "needle": {"needles": st.integers(1, 5), "value": st.integers(1, 4), "depth": st.sampled_from([-1.0, 0, 0.5, 1])},
    "hops": {"hops": st.integers(1, 4), "nodes": st.integers(5, 9), "exactly": st.integers(0, 1)},
    "sums": {"modulus": st.integers(2, 40), "terms": st.integers(1, 4)},
    "grammar": {"levels": st.integers(1, 2), "kinds": st.integers(2, 4), "language": st.integers(0, 99)},
}  # fmt: skip


@pytest.mark.parametrize("name", TASKS)
@settings(max_examples=15)
@given(data=st.data())
def test_every_answer_is_what_a_plain_search_finds(name, data):
    task = task_named(name, {field: data.draw(values) for field, values in FIELDS[name].items()})
    length = task.least_length + data.draw(st.integers(0, 40))
    answers = 0
    for row, asked in rows_of(task, length, 6, data.draw(st.integers(0, 999))):
        CHECKS[name](task, row, asked)
        answers += len(asked)
    assert answers > 0


@pytest.mark.parametrize("name", TASKS)
def test_the_usual_task_and_all_its_conditions_draw_right_answers(name):
    task = task_named(name, {})
    length = max(128, task.least_length)
    for one, size in [(task, length), *task.conditions(length).values()]:
        for row, asked in rows_of(one, size, 4):
            CHECKS[name](one, row, asked)


@pytest.mark.parametrize("name", TASKS)
def test_blocks_are_a_function_of_split_seed_and_number_and_never_shared(name):
    task = task_named(name, {})
    length = max(64, task.least_length)

    def rows(split, seed, number):
        return {row.tobytes() for row in task.block(length, split, seed, number).symbols}

    first = rows("train", 0, 0)
    assert first == rows("train", 0, 0) and len(first) == 256
    for other in (("train", 1, 0), ("train", 0, 1), ("validation", 0, 0), ("test", 0, 0)):
        assert not first & rows(*other)


def test_gaps_of_recall_follow_the_power_law():
    task, length = task_named("mqar", {"pairs": 1, "keys": 4, "power": 0.3}), 42
    gaps = Counter((asked[0] - 4) // 2 for _, asked in rows_of(task, length, 40_000))
    slots = np.arange(1, 21)
    expected = slots**-0.7 / (slots**-0.7).sum()
    shares = np.array([gaps[slot - 1] / 40_000 for slot in slots])
    assert np.abs(shares - expected).max() < 5 * np.sqrt(expected.max() / 40_000)


def test_needles_and_signs_stand_anywhere_alike():
    task = task_named("needle", {"needles": 1, "value": 1, "keys": 4})
    places = Counter(row.index(1) for row, _ in rows_of(task, 33, 20_000))
    assert len(places) == 10 and max(places.values()) < 1.2 * min(places.values())


@pytest.mark.parametrize("levels", [1, 2])
def test_the_entropy_of_a_grammar_is_minus_the_logarithm_that_the_inside_algorithm_gives(levels):
    task = task_named("grammar", {"levels": levels, "kinds": 3, "language": 5})
    symbols, sizes, nats = task.sentences(np.random.default_rng(0), 300)
    total, at = {}, 0
    for size, nat in zip(sizes, nats, strict=True):
        sentence = tuple(symbols[at : at + size].tolist())
        total[sentence] = derivations(task, sentence)[1]
        assert total[sentence] == pytest.approx(math.exp(-nat))
        at += size
    if levels == 1:
        assert len(total) == 6 and sum(total.values()) == pytest.approx(1), "all sentences"
    drawn = task.draw(np.random.default_rng(1), 4, 60)
    for row, asked, entropy in zip(drawn.symbols.tolist(), drawn.answers, drawn.entropy, strict=True):
        whole = [symbol for symbol, known in zip(row, asked, strict=True) if known]
        sentences = " ".join(map(str, whole)).split(f" {END}")[:-1]
        parts = [derivations(task, tuple(int(s) - 1 for s in sentence.split()))[1] for sentence in sentences]
        assert entropy == pytest.approx(-sum(map(math.log, parts)))


def test_an_answer_cannot_be_read_off_what_is_not_its_question():
    """Values of recall are independent of their keys, and of all symbols but those that repeat them."""
    rows = rows_of(task_named("mqar", {"pairs": 4, "keys": 8}), 32, 4000)
    right = sum(row[place] - 8 == row[place - 1] for row, asked in rows for place in asked)
    assert abs(right / 16_000 - 1 / 8) < 0.015, "the key says nothing of the value"
    first = [row[asked[0]] == row[2] for row, asked in rows]
    assert abs(np.mean(first) - (1 / 4 + 3 / 4 / 8)) < 0.04, "nor does the first value of the row, but where it is it"


@pytest.mark.parametrize(
    ("corpus", "said"),
    [
        ("synthetic:mqr", "did you mean mqar"),
        ("synthetic:mqar:pair=3", "did you mean pairs"),
        ("synthetic:mqar:pairs=3,pairs=4", "gives pairs twice"),
        ("synthetic:mqar:pairs=many", "pairs=many must be a number"),
        ("synthetic:mqar:pairs=3.5", "pairs=3.5 must be a whole number"),
        ("synthetic:mqar:pairs=65", "more than the 64 keys"),
        ("synthetic:hops:hops=0", "hops=0 must be from 1"),
        ("synthetic:hops:hops=9", "more than the 7 steps"),
        ("synthetic:needle:needles=33", "more than the 32 keys"),
        ("synthetic:copy:longest=4,shortest=5", "more than the 4 longest"),
        ("synthetic:copy-ngram:string=3", "gram + answer is more than the string=3"),
        ("synthetic:grammar:rules=4", "more than the 3 kinds"),
        ("synthetic:sums:modulus=1", "modulus=1 must be from 2"),
    ],
)
def test_what_cannot_be_is_named(corpus, said):
    with pytest.raises(UserError) as error:
        task_of(corpus)
    assert said in str(error.value)


def test_rows_too_short_are_refused_with_what_would_do():
    with pytest.raises(UserError, match="sequence_length=31 is too short for synthetic:mqar, which takes 32 symbols"):
        task_named("mqar", {}).check_length(31)


def test_the_name_of_a_corpus_says_its_fields_and_gives_the_task_back():
    task = task_named("needle", {"needles": 3, "depth": 0.5})
    assert task.corpus == "synthetic:needle:needles=3,depth=0.5" and task_of(task.corpus) == task
    assert task_of("synthetic:needle").corpus == "synthetic:needle"
