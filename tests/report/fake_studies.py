"""Studies whose runs were never trained, with scores that have known differences."""

import json
from dataclasses import replace

import numpy as np

from mla_experiments.data.synthetic import task_of
from mla_experiments.evaluation.perplexity import DocumentScore, Score
from mla_experiments.evaluation.scores import SplitScores, write_answers, write_scores
from mla_experiments.manifest import read_record, write_record
from mla_experiments.study.description import Variant
from mla_experiments.study.tuning import SEED

HOSTILE = '</script><script>window.hacked = 1</script><img src=x onerror="window.hacked = 1"> **b** | ![i](x) $a$b$'
MECHANISMS = [(Variant("mha"), 0.0), (Variant("gqa"), 0.05), (Variant("mqa"), 0.1), (Variant("mla"), 0.0)]
COUNTS = [250] * 40, [200] * 40, [1000] * 40  # tokens, words, bytes of each document


def fake_study(root, seeds=5, rates=(1e-3, 3e-3, 9e-3), done=lambda _: True, variants=MECHANISMS, noise=3):
    """Write a study and return its folder.

    Args:
        root: folder of studies.
        seeds: how many.
        rates: of learning, for every mechanism, tried by a seed of their own; 3e-3 is the best.
        done: whether a run has come to its end.
        variants: and how much worse each is, in bits per byte.
        noise: of the nats of a document.
    """
    generator, runs, stated = np.random.default_rng(0), [], [variant for variant, _ in variants]
    hard = generator.normal(1500, 200, 40)
    for place, (variant, worse) in enumerate(variants):
        tries = len(rates) if len(rates) > 1 else 0
        for number in range(tries + seeds):
            seed, rate = (SEED, rates[number]) if number < tries else (number - tries, 3e-3)
            run = {"variant": variant.name, "seed": seed, "settings": {"learning_rate": rate}}
            run |= {"is_tuning": seed == SEED, "folder": f"runs/{place}-{number}"}
            runs.append(run | {"done": done(run)})
            write_run(root / run["folder"], hard, worse + 0.02 * abs(np.log(rate / 3e-3)), generator, noise)
    content = {
        "name": "tiny", "corpus": f"corpus {HOSTILE}", "corpus_hash": "c" * 64, "tokenizer_hash": "t" * 64,
        "stated": {
            "source": f"corpus: {HOSTILE}\n", "seeds": list(range(seeds)), "match": "parameters",
            "designs": {v.attention: [{"learning_rate": rate} for rate in rates] for v in stated}, "space": None,
            "data": {"vocab_size": 300},
            "settings": {"train_tokens": 2000},
        },
        "machine": {"cpu": "a CPU", "gpu": None, "cores": 2, "date": "2026-01-01", "versions": {"torch": "2"}},
        "variants": [recorded(variant, place) for place, variant in enumerate(stated)],
        "runs": runs, "failed": {}, "samples": {stated[0].name: HOSTILE},
        "decode": {v.name: {"1024": 100.0 - p, "8192": 50.0 + p} for p, v in enumerate(stated)},
        "training": {variant.name: 1000.0 + place for place, variant in enumerate(stated)},
    }  # fmt: skip
    (root / "tiny").mkdir()
    write_record(root / "tiny" / "study.json", content)
    return root / "tiny"


def fake_task(root, right, corpus="synthetic:mqar:pairs=8", excess=None, **more):
    """Write a study over a synthetic task, of 64 rows with 8 answers each, and return its folder.

    Args:
        root: folder of studies.
        right: given a variant and a seed, the share of answers that are right under every condition.
        corpus: the task; variants may sweep its fields.
        excess: nats a symbol above the entropy, where that is known.
        more: as of `fake_study`.
    """
    folder = fake_study(root, rates=(3e-3,), **more)
    content, generator = read_record(folder / "study.json"), np.random.default_rng(1)
    changed = {one["name"]: Variant(**one["variant"]) for one in content["variants"]}
    for run in content["runs"]:
        variant, where = changed[run["variant"]], root / run["folder"]
        fields = {
            name.removeprefix("corpus."): of for name, of in variant.changed.items() if name.startswith("corpus.")
        }
        task, share, tokens = replace(task_of(corpus), **fields), right(variant, run["seed"]), np.full(64, 8)
        over = None if excess is None else generator.normal(excess, 0.1, 64) * 8
        wrong = {name: generator.binomial(8, 1 - share, 64) for name in ("validation", "test", *task.conditions(128))}
        write_answers(
            where,
            {name: SplitScores("rows", part + 1.0, tokens, wrong=part, excess=over) for name, part in wrong.items()},
        )
        write_record(where / "run.json", {"corpus": task.corpus, "identity": {"sequence_length": 128}})
        (where / "metrics.jsonl").write_text(
            json.dumps({"tokens": 100, "eval_loss": 1.0, "eval_accuracy": share}) + "\n"
        )
    write_record(folder / "study.json", content | {"corpus": corpus})
    return folder


def recorded(variant, place):
    """A variant as `study.json` holds it."""
    return {
        "name": variant.name, "variant": vars(variant), "options": {}, "intermediate_size": 100,
        "parameters": 1_000_000 + place, "training_flops_per_token": 1e7, "cache_bytes_per_token": 4096 >> place % 4,
        "residual": place * 1e-6, "cache_residual": None,
    }  # fmt: skip


def write_run(folder, hard, worse, generator, noise):
    """Write what a run leaves, so much worse than the best."""
    folder.mkdir(parents=True)
    nats = hard + worse * 1000 * np.log(2) + generator.normal(0, noise, 40)
    score = Score([DocumentScore(*document) for document in zip(nats.tolist(), *COUNTS, strict=True)])
    write_scores(folder, {split: (["text"], score) for split in ("validation", "test")})
    lines = [{"tokens": 100 * t, "eval_loss": 6 - t / 10 + worse + generator.normal(0, 0.02)} for t in range(1, 21)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
