"""What a study would cost, before it is run: `mla-experiments plan experiments/NAME.yaml`."""

from ..benchmark.hardware import Hardware
from ..benchmark.measure import interleaved, spread
from ..benchmark.training import training_step
from ..errors import UserError
from ..modeling import DecoderForCausalLM
from .description import Study
from .matching import Matched, check_trials, config_of, match, same_models

HOUR = 3600
MOST_TOKENS = 4096  # of a step that is measured


def study_plan(study: Study, hardware: Hardware, utilisation: float) -> list[dict]:
    """Return a row per variant and one of the total: size, cache, runs, and the hours of training them.

    A variant that is the very model of an earlier one has no runs of its own, and neither has one that is trained as an
    earlier one is and differs from it in its budget or in how its cache is kept.

    The hours at best are the FLOPs at the hardware's best rate, which no training reaches; beside them are those at a
    share of it. On the machine at hand what is expected is measured by steps of each variant.

    Args:
        study: what would be run.
        hardware: on which.
        utilisation: share of the best rate that training is taken to reach.

    Raises:
        UserError: a trial that cannot be, a match that cannot be met, or more than the best rate.
    """
    if utilisation > 1:
        raise UserError(f"utilisation={utilisation:g} is a share of the best rate, at most 1")
    check_trials(study, here=False)
    rows = []
    solved = match(study, study.planned_vocab_size)
    same = same_runs(study, solved)
    for matched in solved:
        own, _ = study.arguments(matched.variant)
        name, earlier = matched.variant.name, same.get(matched.variant.name)
        runs, trainings = study.runs_of(matched.variant), study.trainings_of(matched.variant)
        runs, trainings = (0, 0) if earlier else (runs, trainings)
        tokens = round(trainings * own["train_tokens"])
        at_best = tokens * matched.training_flops_per_token / hardware.tflop_per_second / 1e12 / HOUR
        row = {
            "variant": name + (f" ({earlier})" if earlier else ""),
            "parameters": f"{matched.parameters:,}",
            "cache bytes/token": f"{matched.cache_bytes_per_token:,}",
            **({} if matched.cache_residual is None else {"off the budget, %": 100 * matched.cache_residual}),
            "GFLOP/token": matched.training_flops_per_token / 1e9,
            "runs": runs,
            "tokens": f"{tokens:,}",
            "hours at best": at_best,
            f"hours at {100 * utilisation:g} %": at_best / utilisation,
        }
        if hardware.device:
            row["hours expected"] = tokens and tokens / tokens_per_second(study, matched, hardware.device) / HOUR
        rows.append(row)
    sums = {name: sum(row[name] for row in rows) for name in rows[0] if name == "runs" or name.startswith("hours")}
    return [*rows, {name: sums.get(name, "all" if name == "variant" else "") for name in rows[0]}]


def same_runs(study: Study, solved: list[Matched]) -> dict[str, str]:
    """Return of which variants the runs are those of an earlier one, and why: one model, or one trained alike."""
    same = same_models(study, solved, study.planned_vocab_size)
    found = {name: f"the same model as {of}" for name, of in same.items()}
    first: dict[str, str] = {}
    for matched in solved:
        variant = matched.variant
        model = [variant.attention, matched.options, matched.intermediate_size]
        trained = repr([*model, study.arguments(variant), study.corpus_of(variant)])
        if variant.name not in found and (earlier := first.setdefault(trained, variant.name)) != variant.name:
            found[variant.name] = f"the same runs as {earlier}"
    return found


def tokens_per_second(study: Study, matched: Matched, device: str) -> float:
    """Measure training steps on the batch that is trained, or as much of it as a moment takes.

    A single sequence would not do: what calls take is most of a small model's step, and less of a batch's.
    """
    config = config_of(study, matched.variant, matched.options, study.planned_vocab_size, matched.intermediate_size)
    own, flags = study.arguments(matched.variant)
    length = own["sequence_length"]
    sequences = max(1, min(own["batch_size"], flags["per_device_train_batch_size"], MOST_TOKENS // length))
    step = training_step(DecoderForCausalLM(config).to(device), length, sequences)
    seconds = interleaved({"step": step}, rounds=3, warmup=1)["step"]
    return 1e3 * sequences * length / spread(seconds)["ms"]
