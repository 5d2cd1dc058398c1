"""What training reads: every sequence once an epoch, in an order that only the seed decides."""

import pytest
import torch

from mla_experiments.data import load_tokens
from mla_experiments.errors import UserError
from mla_experiments.training.rows import PackedRows, TrainingStream


@pytest.fixture
def rows(prepared):
    return load_tokens(prepared / "tokens", prepared / "tokenizer")[0]["train"]


@pytest.mark.parametrize("length", [32, 16, 8])
def test_pieces_of_rows_join_to_the_rows(rows, length):
    pieces = PackedRows(rows, length)
    for name in ("input_ids", "labels"):
        joined = torch.cat([pieces[index][name] for index in range(len(pieces))])
        assert joined.tolist() == [token for row in rows[name] for token in row]
    assert torch.equal(pieces[3]["shift_labels"], pieces[3]["labels"])
    assert pieces[0]["input_ids"][1:].tolist() == pieces[0]["labels"][:-1].tolist()


def test_a_length_that_does_not_divide_the_row_is_refused(rows):
    with pytest.raises(UserError, match="sequence_length=20 does not divide the 32 tokens"):
        PackedRows(rows, 20)


def test_every_epoch_holds_every_sequence_once_in_its_own_order(rows):
    pieces = PackedRows(rows, 32)
    count = len(pieces)
    stream = TrainingStream(pieces, 2 * count + 1, seed=3)
    seen = [tuple(stream[index]["input_ids"].tolist()) for index in range(len(stream))]
    every = sorted(tuple(pieces[index]["input_ids"].tolist()) for index in range(count))
    assert sorted(seen[:count]) == every and sorted(seen[count : 2 * count]) == every
    assert seen[:count] != seen[count : 2 * count]


def test_a_sequence_depends_on_seed_and_place_alone(rows):
    pieces = PackedRows(rows, 32)
    forward, backward = TrainingStream(pieces, 50, seed=1), TrainingStream(pieces, 50, seed=1)
    there = [forward[index]["input_ids"].tolist() for index in range(50)]
    back = [backward[index]["input_ids"].tolist() for index in reversed(range(50))][::-1]
    assert there == back
    assert there != [TrainingStream(pieces, 50, seed=2)[index]["input_ids"].tolist() for index in range(50)]
