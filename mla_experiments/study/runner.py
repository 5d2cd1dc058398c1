"""Run what a study still lacks. Runs are found by the hash of what determines them, so that studies share them.

    ROOT/data/NAME/        corpus, tokenizer and tokens of a study's data settings
    ROOT/runs/NAME-HASH/   one training run each, with its scores document by document
    ROOT/STUDY/study.json  which runs belong to the study, and what was measured beside them

The first seed tries every learning rate; the others take the one that validates best.
"""

import hashlib
import json
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ..benchmark.decode import decode_step
from ..benchmark.measure import interleaved, machine, spread
from ..benchmark.training import training_step
from ..data import load_corpus, load_tokenizer, load_tokens, prepare_corpus, prepare_tokenizer, prepare_tokens
from ..errors import Stopped, UserError
from ..evaluation.generation import continuation
from ..evaluation.perplexity import score_documents
from ..evaluation.results import HELD_OUT
from ..evaluation.scores import read_scores, write_scores
from ..manifest import read_manifest, read_record, write_record
from ..modeling import DecoderForCausalLM, load_model
from ..training.run import Run
from .description import Study
from .matching import Matched, config_of, match, run_arguments

STUDY = "study.json"
DECODE_CONTEXTS = (1024, 8192)
PROMPT = "The history of"


@dataclass(frozen=True)
class Trial:
    """One run of a study: a variant with a seed and a learning rate."""

    matched: Matched
    seed: int
    rate: float
    run: Run

    @property
    def name(self) -> str:
        """What the progress says."""
        return f"{self.matched.variant.name}, learning rate {self.rate:g}, seed {self.seed}"

    @property
    def is_done(self) -> bool:
        """Whether it is trained and scored."""
        return self.run.is_finished and read_scores(self.run.folder) is not None


def run_study(study: Study, root: Path) -> tuple[Path, list[str]]:
    """Run what is missing and write `study.json`.

    Args:
        study: what to compare.
        root: folder of all studies.

    Returns:
        The study's folder, and a sentence for each run that failed.

    Raises:
        UserError: data or a match that cannot be had.
        Stopped: the user asked to stop; the same command goes on.
    """
    data = prepare_data(study, root / "data")
    tokens, manifest = load_tokens(data / "tokens", data / "tokenizer")
    variants = match(study, manifest["vocab_size"])
    texts = {split: list(load_corpus(data / "corpus")[split]["text"]) for split in HELD_OUT}
    folder, failures, spent = root / study.name, [], []
    folder.mkdir(parents=True, exist_ok=True)
    total = sum(len(study.rates[m.variant.attention]) + len(study.seeds) - 1 for m in variants)
    done = 0
    for trial in trials(study, variants, root, data, manifest):
        done += 1
        if trial.is_done:
            continue
        left = f", about {(total - done + 1) * sum(spent) / len(spent) / 60:.0f} min left" if spent else ""
        print(f"[{done}/{total}] {trial.name}{left}", flush=True)
        begun = time.monotonic()
        try:
            train_and_score(trial, tokens, data, texts)
            spent.append(time.monotonic() - begun)
        except Stopped as stopped:
            raise Stopped(f"{str(stopped).split(';')[0]}. The same command goes on.") from None
        except (UserError, RuntimeError, OSError, ValueError) as error:
            failures.append(f"{trial.name}: {str(error).splitlines()[0]}")
            print(f"failed: {failures[-1]}")
        record(study, variants, root, data, manifest, folder)
    record(study, variants, root, data, manifest, folder, beside=True)
    return folder, failures


def prepare_data(study: Study, folder: Path) -> Path:
    """Prepare a study's data, where no study has done so; return its folder."""
    given = study.data
    slug = re.sub(r"[^A-Za-z0-9]+", "-", Path(given["corpus"]).stem).strip("-")
    length = study.row_length
    data = folder / f"{slug}-{given['vocab_size']}-{length}-{given['shuffle_seed']}"
    prepare_corpus(data / "corpus", given["corpus"], given["text_column"])
    prepare_tokenizer(data / "tokenizer", data / "corpus", given["vocab_size"])
    prepare_tokens(data / "tokens", data / "corpus", data / "tokenizer", length, given["shuffle_seed"])
    return data


def trials(study: Study, variants: list[Matched], root: Path, data: Path, manifest: dict) -> Iterator[Trial]:
    """Yield the runs of a study: rates first, and then the other seeds at the rate that came out best."""
    first, *others = study.seeds
    for matched in variants:
        for rate in study.rates[matched.variant.attention]:
            yield trial_of(study, matched, first, rate, root, data, manifest)
    for matched in variants:
        rate = best_rate(study, matched, root, data, manifest)
        for seed in others if rate is not None else ():
            yield trial_of(study, matched, seed, rate, root, data, manifest)


def trial_of(study: Study, matched: Matched, seed: int, rate: float, root: Path, data: Path, manifest: dict) -> Trial:
    """Return a run in the folder that its settings determine."""
    _, flags = study.arguments(matched.variant)
    flags = flags | {"seed": seed, "learning_rate": rate}
    arguments = run_arguments(
        study, matched.variant, matched.options, matched.intermediate_size, data_dir=str(data), resume=True
    )
    attention = matched.variant.attention
    identity = Run(root, attention, arguments, flags, manifest).identity
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    folder = root / "runs" / f"{attention}-{digest}"
    return Trial(matched, seed, rate, Run(folder, attention, arguments, flags, manifest))


def best_rate(study: Study, matched: Matched, root: Path, data: Path, manifest: dict) -> float | None:
    """Return the learning rate that validates best with the first seed; None where no run has come to its end."""
    losses = {}
    for rate in study.rates[matched.variant.attention]:
        trial = trial_of(study, matched, study.seeds[0], rate, root, data, manifest)
        if trial.is_done:
            losses[rate] = read_scores(trial.run.folder)["validation"].nats.sum()
    return min(losses, key=losses.__getitem__, default=None)


def train_and_score(trial: Trial, tokens, data: Path, texts: dict[str, list[str]]) -> None:
    """Train a run if it is not, and score every held-out document alone."""
    tokenizer = load_tokenizer(data / "tokenizer")
    if not trial.run.is_finished:
        trial.run.train(tokens, tokenizer, lambda _: None)
    model = load_model(trial.run.folder)
    model.to(device())
    scored = {
        split: (documents, score_documents(model, tokenizer, documents, description=f"scoring {split}"))
        for split, documents in texts.items()
    }
    write_scores(trial.run.folder, scored)


def device() -> torch.device:
    """Return where runs are trained: the accelerator, if there is one."""
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


def record(
    study: Study, variants: list[Matched], root: Path, data: Path, manifest: dict, folder: Path, beside: bool = False
) -> None:
    """Write `study.json`: what is stated, matched and done, and at the end what is measured beside the runs."""
    all_trials = list(trials(study, variants, root, data, manifest))
    path = folder / STUDY
    try:
        old = read_record(path)
    except (OSError, ValueError):
        old = {}
    corpus = read_manifest(data / "corpus", "")
    names = [matched.variant.name for matched in variants]
    content = {
        "name": study.name,
        "stated": json.loads(json.dumps(asdict(study), default=str)),
        "corpus": corpus["corpus"],
        "corpus_hash": corpus["hash"],
        "tokenizer_hash": manifest["tokenizer_hash"],
        "machine": machine(),
        "variants": [asdict(matched) | {"name": matched.variant.name} for matched in variants],
        "runs": [
            {
                "variant": trial.matched.variant.name, "seed": trial.seed, "learning_rate": trial.rate,
                "folder": str(trial.run.folder.relative_to(root)), "done": trial.is_done,
            }
            for trial in all_trials
        ],
        "complete": all(trial.is_done for trial in all_trials)
        and len(all_trials) == sum(len(study.rates[m.variant.attention]) + len(study.seeds) - 1 for m in variants),
        "decode": old.get("decode", {}),
        "training": old.get("training", {}),
        "samples": old.get("samples", {}),
    }  # fmt: skip
    if beside:
        if set(content["decode"]) != set(names):
            content["decode"] = decode_speeds(study, variants, manifest["vocab_size"])
            content["training"] = training_speeds(study, variants, manifest["vocab_size"])
        for matched in variants:
            rate = best_rate(study, matched, root, data, manifest)
            if rate is not None:
                first = trial_of(study, matched, study.seeds[0], rate, root, data, manifest)
                model, tokenizer = load_model(first.run.folder), load_tokenizer(data / "tokenizer")
                content["samples"][matched.variant.name] = continuation(
                    model, tokenizer, PROMPT, min(48, model.config.max_position_embeddings // 2)
                )
    write_record(path, content)


def training_speeds(study: Study, variants: list[Matched], vocab_size: int) -> dict[str, float]:
    """Return tokens per second of a training step, by variant, taking turns: runs may have shared the machine."""
    steps, tokens = {}, {}
    for matched in variants:
        own, flags = study.arguments(matched.variant)
        shape = own["sequence_length"], min(own["batch_size"], flags["per_device_train_batch_size"])
        config = config_of(study, matched.variant, matched.options, vocab_size, matched.intermediate_size)
        steps[matched.variant.name] = training_step(DecoderForCausalLM(config).to(device()), *shape)
        tokens[matched.variant.name] = shape[0] * shape[1]
    seconds = interleaved(steps, rounds=9)
    return {name: 1e3 * tokens[name] / spread(times)["ms"] for name, times in seconds.items()}


def decode_speeds(study: Study, variants: list[Matched], vocab_size: int) -> dict[str, dict[str, float]]:
    """Return tokens per second of decoding at batch 1, by variant and context, taking turns; RoPE only.

    Weights are random: speed does not depend on them, and a trained context need not be so long.
    """
    speeds: dict[str, dict[str, float]] = {matched.variant.name: {} for matched in variants}
    for context in DECODE_CONTEXTS:
        steps = {}
        for matched in variants:
            config = config_of(study, matched.variant, matched.options, vocab_size, matched.intermediate_size)
            if config.positions == "rope":
                config.max_position_embeddings = context + 8
                steps[matched.variant.name] = decode_step(DecoderForCausalLM(config).to(device()), 1, context)[0]
        for name, seconds in interleaved(steps, rounds=9).items():
            speeds[name][str(context)] = 1e3 / spread(seconds)["ms"]
    return speeds
