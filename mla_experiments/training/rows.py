"""Packed rows as training reads them: an order that depends on the seed alone, and batches that are always full."""

import numpy as np
import torch
from datasets import Dataset

from ..errors import UserError


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

    def __init__(self, rows: PackedRows, num_sequences: int, seed: int):
        self.rows, self.num_sequences, self.seed = rows, num_sequences, seed
        self.epoch, self.order = -1, None

    def __len__(self) -> int:
        return self.num_sequences

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        epoch, place = divmod(index, len(self.rows))
        if epoch != self.epoch:
            self.epoch, self.order = epoch, np.random.default_rng((self.seed, epoch)).permutation(len(self.rows))
        return self.rows[int(self.order[place])]
