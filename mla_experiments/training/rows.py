"""Rows as training reads them, packed or drawn: in an order that the seed alone decides, in batches always full."""

from typing import Protocol

import numpy as np
import torch
from datasets import Dataset

from ..data.synthetic import BLOCK, Task
from ..data.synthetic.task import Rows
from ..errors import UserError

IGNORED = -100  # label of what is not to be predicted


class Sequences(Protocol):
    """So many sequences, by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]: ...


class PackedRows(torch.utils.data.Dataset):
    """Rows of packed tokens, each cut into pieces of `sequence_length`, labels already one token ahead.

    Args:
        rows: packed rows, as `load_tokens` gives them.
        sequence_length: tokens in a piece; divides the length of a row.

    Raises:
        UserError: it does not.
    """

    def __init__(self, rows: Dataset, sequence_length: int):
        self.rows = rows.with_format("numpy")
        packed_length = len(self.rows[0]["input_ids"])
        if sequence_length < 1 or packed_length % sequence_length:
            raise UserError(
                f"sequence_length={sequence_length} does not divide the {packed_length} tokens of a packed row; "
                f"choose a divisor, or pack again with --sequence-length {sequence_length}"
            )
        self.sequence_length, self.pieces = sequence_length, packed_length // sequence_length

    def __len__(self) -> int:
        return len(self.rows) * self.pieces

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row, piece = divmod(index, self.pieces)
        part = slice(piece * self.sequence_length, (piece + 1) * self.sequence_length)
        tokens = {name: torch.from_numpy(values[part].astype(np.int64)) for name, values in self.rows[row].items()}
        # transformers shifts `labels` itself unless it is told that they are shifted already
        return {**tokens, "shift_labels": tokens["labels"]}


class TrainingStream(torch.utils.data.Dataset):
    """As many sequences as the budget holds: the rows in a new random order every epoch, without a break between.

    Sequence i is a function of the seed and i alone, so that runs with other micro-batches, more devices, or after a
    resume see the same sequences in the same order.
    """

    def __init__(self, rows: Sequences, num_sequences: int, seed: int):
        self.rows, self.num_sequences, self.seed = rows, num_sequences, seed
        self.epoch, self.order = -1, np.arange(0)

    def __len__(self) -> int:
        return self.num_sequences

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        epoch, place = divmod(index, len(self.rows))
        if epoch != self.epoch:
            self.epoch, self.order = epoch, np.random.default_rng((self.seed, epoch)).permutation(len(self.rows))
        return self.rows[int(self.order[place])]


class DrawnRows(torch.utils.data.Dataset):
    """So many rows of a synthetic task, labels already one symbol ahead.

    Row i is a function of split, seed and i alone, so that runs with other micro-batches, more devices, or after a
    resume see the same rows in the same order.

    Args:
        task: which draws them.
        length: symbols that are read.
        count: how many rows there are.
        split: train, validation or test, which never share random numbers.
        seed: of the order of training; the held-out splits are those of seed 0.
        answers_alone: whether nothing but answers is to be predicted.
    """

    def __init__(self, task: Task, length: int, count: int, split: str, seed: int = 0, answers_alone: bool = True):
        task.check_length(length)
        self.task, self.length, self.count, self.answers_alone = task, length, count, answers_alone
        self.stream, self.number = (split, seed), -1
        self.drawn: Rows | None = None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        number, row = divmod(index, BLOCK)
        if self.drawn is None or number != self.number:
            self.number, self.drawn = number, self.task.block(self.length, *self.stream, number)
        symbols = torch.from_numpy(self.drawn.symbols[row].astype(np.int64))
        labels = symbols[1:]
        if self.answers_alone:
            is_answer = torch.from_numpy(np.ascontiguousarray(self.drawn.answers[row, 1:]))
            labels = labels.masked_fill(~is_answer, IGNORED)
        return {"input_ids": symbols[:-1], "labels": labels, "shift_labels": labels}
