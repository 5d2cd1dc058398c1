"""Train a byte-level BPE tokenizer: `mla-experiments data tokenizer`. See `python hftokenizer.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package of this clone, installed or not

from mla_experiments.cli import main

if __name__ == "__main__":
    here = str(Path(__file__).resolve().parent)
    sys.exit(main(["data", "tokenizer", "--data-dir", here, *sys.argv[1:]], may_install=True))
