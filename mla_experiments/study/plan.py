"""What a study would cost, before it is run: `mla-experiments plan experiments/NAME.yaml`."""

from ..benchmark.hardware import Hardware
from ..benchmark.measure import interleaved, spread
from ..benchmark.training import training_step
from ..modeling import DecoderForCausalLM
from .description import Study
from .matching import Matched, config_of, match

HOUR = 3600


def study_plan(study: Study, hardware: Hardware) -> list[dict]:
    """Return a row per variant and one of the total: size, cache, runs, and the hours of training them.

    The hours at best are the FLOPs at the hardware's best rate, which no training reaches. On the machine at hand what
    is expected is measured by steps of one sequence in each variant.

    Raises:
        UserError: a match that cannot be met.
    """
    variants = match(study, study.data["vocab_size"])
    tokens = study.settings["train_tokens"]
    rows = []
    for matched in variants:
        runs = len(study.rates[matched.variant.attention]) + len(study.seeds) - 1
        flops = runs * tokens * matched.training_flops_per_token
        row = {
            "variant": matched.variant.name,
            "parameters": f"{matched.parameters:,}",
            "cache bytes/token": f"{matched.cache_bytes_per_token:,}",
            "GFLOP/token": matched.training_flops_per_token / 1e9,
            "runs": runs,
            "tokens": f"{runs * tokens:,}",
            "hours at best": flops / hardware.tflop_per_second / 1e12 / HOUR,
        }
        if hardware.at_hand:
            row["hours expected"] = runs * tokens / tokens_per_second(study, matched) / HOUR
        rows.append(row)
    sums = {name: sum(row[name] for row in rows) for name in rows[0] if name == "runs" or name.startswith("hours")}
    return [*rows, {name: sums.get(name, "all" if name == "variant" else "") for name in rows[0]}]


def tokens_per_second(study: Study, matched: Matched) -> float:
    """Measure training steps of one sequence."""
    config = config_of(study, matched.variant, matched.options, study.data["vocab_size"], matched.intermediate_size)
    step = training_step(DecoderForCausalLM(config), config.max_position_embeddings, 1)
    seconds = interleaved({"step": step}, rounds=3, warmup=1)["step"]
    return 1e3 * config.max_position_embeddings / spread(seconds)["ms"]
