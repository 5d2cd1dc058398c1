"""Write a trained model for others: `export RUN OUT`, a stock checkpoint (Llama and its kin; DeepSeek-V3 for MLA).

`--to gguf` writes one file for llama.cpp in its place.
"""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UserError
from .needs import need
from .parsing import ConversionArguments, parse
from .saying import wrote


@dataclass
class ExportArguments(ConversionArguments):
    """Which form."""

    to: str = field(
        default="hf", metadata={"help": "hf, a stock checkpoint of transformers; gguf, a file of llama.cpp"}
    )
    type: str | None = field(
        default=None, metadata={"help": "of the matrices in a GGUF file: f32, f16 (where nothing is said), bf16, q8_0"}
    )
    widths: list[int] = field(
        default_factory=list,
        metadata={
            "help": "of MLA's latent and rotary key, wider and with the same logits: 512 64 for vLLM's MLA kernel"
        },
    )
    weights_dir: str = field(default="weights", metadata={"help": "holds the trained models"})


def run(argv: list[str]) -> None:
    """Run it."""
    places = {
        "RUN": "folder of a trained model, or its name under WEIGHTS_DIR",
        "OUT": "folder, or GGUF file, to write",
    }
    given, where = parse([ExportArguments], argv, "export", __doc__, positional=places)
    if given["to"] not in ("hf", "gguf"):
        raise UserError(
            f"to={given['to']} is unknown; hf, a stock checkpoint, and gguf, a file of llama.cpp, are there"
        )
    if given["to"] == "hf" and given["type"] is not None:
        raise UserError(f"type={given['type']} is for --to gguf; a checkpoint keeps the dtype of the model")
    if given["widths"] and (given["to"] == "gguf" or len(given["widths"]) != 2):
        raise UserError(f"widths={given['widths']} must be two, of latent and rotary key, and are for --to hf alone")
    from ..evaluation import find_models

    (source,) = find_models([where["RUN"]], Path(given["weights_dir"]))
    (to_gguf if given["to"] == "gguf" else to_checkpoint)(source, where["OUT"], given)


def to_checkpoint(source: Path, target: str, given: dict) -> None:
    """Write a stock checkpoint, with a model card."""
    from ..modeling.conversion import export_checkpoint
    from ..modeling.stock.clients import serving
    from ..modeling.stock.widths import widen
    from ..report import write_model_card
    from ..run_files import check_files, check_finished

    with tempfile.TemporaryDirectory() as scratch:
        model = source
        if given["widths"]:
            check_finished(source)
            check_files(source, "*")
            model = Path(scratch)
            widen(source, model, *given["widths"])
        stock = export_checkpoint(
            model, Path(target), given["overwrite"], lambda folder: write_model_card(folder, source, target)
        )
    wrote(target, f"{' '.join(stock.architectures or ())}, with a model card", f"hf upload NAME {target}")
    for client, how in serving(stock).items():
        print(f"{client} serves it {how}.")


def to_gguf(source: Path, target: str, given: dict) -> None:
    """Write one file for llama.cpp."""
    need("gguf")
    from ..modeling.stock.gguf import export_gguf

    kind = given["type"] or "f16"
    architecture = export_gguf(source, Path(target), kind, given["overwrite"])
    wrote(
        target, f"{architecture}, {kind}, with its tokenizer", f"llama-completion --no-conversation -m {target} -p TEXT"
    )
