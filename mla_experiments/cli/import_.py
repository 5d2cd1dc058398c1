"""Make a local Llama, Mistral, Qwen2, Qwen3 or dense DeepSeek-V2/V3 checkpoint a model of ours: `import PATH OUT`."""

from pathlib import Path

from .parsing import ConversionArguments, parse
from .saying import wrote


def run(argv: list[str]) -> None:
    """Run it."""
    places = {"PATH": "folder of a Llama, DeepSeek-V2 or DeepSeek-V3 (dense) checkpoint", "OUT": "folder to write"}
    given, where = parse([ConversionArguments], argv, "import", __doc__, positional=places)
    from ..modeling.conversion import import_checkpoint

    config = import_checkpoint(Path(where["PATH"]), Path(where["OUT"]), given["overwrite"])
    known = "" if (Path(where["OUT"]) / "tokenizer.json").is_file() else "; no tokenizer was there to bring along"
    wrote(where["OUT"], f"{config.attention}{known}", f"mla-experiments generate {where['OUT']} --prompt TEXT")
