"""Continue a prompt with a trained model."""

from dataclasses import dataclass, field

from .parsing import LARGEST_SEED, parse


@dataclass
class GenerationArguments:
    """Which model continues which text."""

    model: str = field(metadata={"help": "folder of a trained model, or its name under WEIGHTS_DIR"})
    prompt: str = field(default="", metadata={"help": "the text to continue", "empty": True})
    max_new_tokens: int = field(default=100, metadata={"help": "length of the continuation in tokens", "minimum": 1})
    temperature: float = field(default=0.8, metadata={"help": "0 always takes the likeliest token", "minimum": 0})
    top_k: int = field(default=50, metadata={"help": "sample among this many likeliest tokens", "minimum": 1})
    seed: int = field(default=0, metadata={"help": "of the sampling", "minimum": 0, "maximum": LARGEST_SEED})
    backend: str | None = field(
        default=None, metadata={"help": "of MLA's decoding (`mla-experiments kernels`); by default the fastest"}
    )
    cache_dtype: str | None = field(
        default=None, metadata={"help": "in which the cache is kept: f32, bf16, f16, int8; by default the model's own"}
    )
    weight_dtype: str | None = field(
        default=None, metadata={"help": "in which weights are kept: bf16, f16, int8; by default the model's own"}
    )
    weights_dir: str = field(default="weights", metadata={"help": "holds the trained models"})


def run(argv: list[str]) -> None:
    """Run it."""
    if argv and not argv[0].startswith("-"):
        argv = ["--model", *argv]
    (given,) = parse([GenerationArguments], argv, "generate", __doc__)
    from ..evaluation.generation import print_continuation

    print_continuation(**given)
