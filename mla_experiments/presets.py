"""The two sizes that a training run comes in, unless it says otherwise."""

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    # The mission's configuration: for a GPU (about 35 M parameters, 100 M tokens).
    "reference": {
        "hidden_size": 512, "num_attention_heads": 16, "num_hidden_layers": 8, "sequence_length": 1024,
        "train_tokens": 100_000_000, "warmup_tokens": 2_000_000, "batch_size": 48,
        "learning_rate": 1e-3, "validation_tokens": 500_000,
        "per_device_train_batch_size": 8, "per_device_eval_batch_size": 8,
    },
    # Small enough that four mechanisms train on 2 CPU cores in minutes.
    "demo": {
        "hidden_size": 128, "num_attention_heads": 4, "num_hidden_layers": 4, "sequence_length": 256,
        "train_tokens": 500_000, "warmup_tokens": 40_000, "batch_size": 4,
        "learning_rate": 3e-3, "validation_tokens": 20_000, "eval_steps": 0.1,
        "per_device_train_batch_size": 4, "per_device_eval_batch_size": 16,
    },
}  # fmt: skip
