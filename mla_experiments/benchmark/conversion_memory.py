"""Export and import of a checkpoint: seconds of a whole process, and its peak memory beside the size of the file."""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from ..modeling import DecoderConfig, DecoderForCausalLM
from ..modeling.conversion import export_checkpoint, import_checkpoint
from .measure import flag, in_fresh_process, memory_of

FIGURE = None


@dataclass
class Arguments:
    """Seconds and peak memory of export and import."""

    attention: list[str] = flag(["mha", "mla"], "mechanisms")
    hidden_size: int = flag(1024, "width; 16 heads, a vocabulary of 32,000")
    num_hidden_layers: int = flag(20, "20 layers, 1,024 wide, make 300 million parameters")


def measure(given: Arguments) -> list[dict]:
    """Return a row per mechanism."""
    return [measure_conversion(name, given.hidden_size, given.num_hidden_layers) for name in given.attention]


def measure_conversion(attention: str, hidden_size: int, num_hidden_layers: int) -> dict:
    """Convert a model of random weights there and back, each in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        ours, stock, back = (Path(scratch) / name for name in ("ours", "stock", "back"))
        parameters = make_model(ours, attention, hidden_size, num_hidden_layers)
        size = (ours / "model.safetensors").stat().st_size
        row = {"model": attention, "parameters": f"{parameters:,}", "checkpoint MiB": size / 2**20}
        for name, convert, source, target in (
            ("export", export_checkpoint, ours, stock),
            ("import", import_checkpoint, stock, back),
        ):
            begun = time.perf_counter()
            peak = in_fresh_process(peak_memory, convert, source, target)
            row[f"{name}, s"] = time.perf_counter() - begun
            row[f"{name}, peak MiB"] = peak / 2**20
            row[f"{name}, peak / checkpoint"] = peak / size
    return row


def make_model(folder: Path, attention: str, hidden_size: int, num_hidden_layers: int) -> int:
    """Save a model with random weights in single precision; return the number of its parameters."""
    config = DecoderConfig(
        vocab_size=32_000, hidden_size=hidden_size, num_hidden_layers=num_hidden_layers, attention=attention
    )
    model = DecoderForCausalLM(config)
    model.save_pretrained(folder)
    return model.num_parameters()


def peak_memory(task, *arguments) -> int:
    """Do something and return the most memory, in bytes, that this process has held, libraries included (Linux).

    What `getrusage` says would include the process that started this one.
    """
    task(*arguments)
    return memory_of("self", "VmHWM")
