"""Make a checkpoint of Llama, its kin (docs/interop.md) or dense DeepSeek, or a GGUF file, ours: `import PATH OUT`."""

from pathlib import Path

from .parsing import ConversionArguments, parse
from .saying import wrote


def run(argv: list[str]) -> None:
    """Run it."""
    places = {"PATH": "folder of a checkpoint, a GGUF file, or smollm2-135m", "OUT": "folder to write"}
    given, where = parse([ConversionArguments], argv, "import", __doc__, positional=places)
    from ..modeling.conversion import import_checkpoint
    from ..modeling.named import named_file

    config = import_checkpoint(named_file(where["PATH"]) or Path(where["PATH"]), Path(where["OUT"]), given["overwrite"])
    known = "" if (Path(where["OUT"]) / "tokenizer.json").is_file() else "; no tokenizer was there to bring along"
    wrote(where["OUT"], f"{config.attention}{known}", f"mla-experiments generate {where['OUT']} --prompt TEXT")
