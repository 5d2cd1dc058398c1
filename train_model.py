"""Train the attention variants: `mla-experiments train`. See `python train_model.py --help`."""

import sys

from mla_experiments.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]], may_install=True))
