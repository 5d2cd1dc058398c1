"""Training on a corpus while it is read: sequences packed on the way, and positions for checkpoints."""

import json
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from ..data import DocumentStream
from ..data.corpora import MADE_BY
from ..data.packing import joined_tokens
from ..errors import UserError
from ..manifest import write_json

POSITION_FILE = "stream-position.json"  # in a checkpoint
BEGINNING = {"tokens": 0, "state": None}


class StreamedSequences(torch.utils.data.Dataset):
    """As many sequences as the budget holds, cut out of the tokens of a stream without end.

    The tokens are those of `data/packing.py`: the end-of-document token, then every document with one after it; after
    the last document comes the first again. Sequence i holds tokens [iL, iL + L), with labels one ahead: a function of
    the stream and i alone. The order is that of the stream, whatever the seed.

    Sequences are read in ascending order, and those between are dropped: of several processes each reads and tokenises
    the whole stream, and keeps its own. In memory are one group of documents and where groups began lately.

    Args:
        documents: the stream.
        tokenizer: for its documents.
        sequence_length: tokens in a sequence, L.
        num_sequences: how many there are.
        step_sequences: in a step of all processes. The Trainer reads less than two steps ahead of where it saves (it
            may leave a step in its middle), and so far back positions are the nearest; those further back are right,
            but may lie long before.
    """

    def __init__(
        self,
        documents: DocumentStream,
        tokenizer: PreTrainedTokenizerFast,
        sequence_length: int,
        num_sequences: int,
        step_sequences: int,
    ):
        self.documents, self.tokenizer, self.sequence_length = documents, tokenizer, sequence_length
        self.num_sequences, self.step_sequences = num_sequences, step_sequences
        self.go_to(BEGINNING)

    def __len__(self) -> int:
        return self.num_sequences

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        begin, length = index * self.sequence_length, self.sequence_length
        if begin < self.first:
            self.go_to(self.position(index))
        self._drop(begin)
        while self.first + len(self.left) <= begin + length:  # the last label is the token at begin + length
            self._read_group()
            self._drop(begin)
        tokens = torch.from_numpy(self.left[: length + 1].astype(np.int64))
        return {"input_ids": tokens[:-1], "labels": tokens[1:], "shift_labels": tokens[1:]}

    def position(self, index: int) -> dict:
        """Return from where to read on to get to a sequence: the tokens before that place, and the stream's state."""
        known = (BEGINNING, *self.positions)
        return [position for position in known if position["tokens"] <= index * self.sequence_length][-1]

    def go_to(self, position: dict) -> None:
        """Read on from a position."""
        self.positions = deque([position])
        self.left = np.empty(0, dtype=np.uint32)  # tokens read and still to come,
        self.first = position["tokens"]  # and the place of their first
        self.groups = self._endless(position["state"])

    def save(self, folder: Path, step: int) -> None:
        """Keep in a checkpoint from where to read on after so many steps."""
        write_json(folder / POSITION_FILE, self.position(step * self.step_sequences))

    def restore(self, folder: Path) -> None:
        """Read on from where a checkpoint was saved."""
        self.go_to(json.loads((folder / POSITION_FILE).read_text(encoding="utf-8")))

    def _endless(self, state: dict | None) -> Iterator[tuple[dict, list[str]]]:
        while True:
            yield from self.documents.groups(state)
            state = None  # from the start again

    def _read_group(self) -> None:
        state, texts = next(self.groups)
        end = self.first + len(self.left)
        before = np.array([] if end else [self.tokenizer.eos_token_id], dtype=np.uint32)
        self.left = np.concatenate([self.left, before, joined_tokens(texts, self.tokenizer)])
        self.positions.append({"tokens": end, "state": state})

    def _drop(self, begin: int) -> None:
        """Forget the tokens before a place, and positions that no checkpoint will need."""
        gone = min(max(0, begin - self.first), len(self.left))
        self.first, self.left = self.first + gone, self.left[gone:]
        oldest = begin - 2 * self.step_sequences * self.sequence_length
        while len(self.positions) > 1 and self.positions[1]["tokens"] <= oldest:
            self.positions.popleft()


def check_streaming(asked: bool, manifest: dict, flags: dict) -> None:
    """Refuse to stream what is stored, and to train on a streamed corpus unasked: that may read the network.

    Args:
        asked: whether `--streaming` is given.
        manifest: of the tokens.
        flags: keyword arguments of TrainingArguments.

    Raises:
        UserError: flag and data do not agree, or another flag does not go with it.
    """
    corpus, streamed = manifest["corpus"], "stream" in manifest
    if streamed and not asked:
        raise UserError(f"corpus={corpus} is not stored but read while training; say so with --streaming")
    if asked and not streamed:
        raise UserError(
            f"streaming=True needs data prepared with it, but corpus={corpus} is stored; leave --streaming out, or "
            f"prepare with: {MADE_BY.with_flags('--streaming')}"
        )
    if asked and flags.get("dataloader_num_workers"):
        raise UserError(
            f"dataloader_num_workers={flags['dataloader_num_workers']} does not go with --streaming, whose position "
            "the training process alone knows; leave it out"
        )
