"""Evaluate the trained models: `mla-experiments eval`. See `python eval_model.py --help`."""

import sys

from mla_experiments.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]], may_install=True))
