"""Make a local Llama, Mistral, Qwen2, Qwen3 or dense DeepSeek-V2/V3 a model of ours: `import PATH OUT`.

PATH is the folder of a checkpoint, or a GGUF file.
"""

from pathlib import Path

from .needs import need
from .parsing import ConversionArguments, parse
from .saying import wrote


def run(argv: list[str]) -> None:
    """Run it."""
    places = {
        "PATH": "folder of a Llama, DeepSeek-V2 or DeepSeek-V3 (dense) checkpoint, or a GGUF file",
        "OUT": "folder to write",
    }
    given, where = parse([ConversionArguments], argv, "import", __doc__, positional=places)
    source, target = Path(where["PATH"]), Path(where["OUT"])
    if source.suffix == ".gguf" and source.is_file():
        need("gguf")
        from ..modeling.stock.gguf_read import import_gguf as read
    else:
        from ..modeling.conversion import import_checkpoint as read
    config = read(source, target, given["overwrite"])
    known = "" if (Path(where["OUT"]) / "tokenizer.json").is_file() else "; no tokenizer was there to bring along"
    wrote(where["OUT"], f"{config.attention}{known}", f"mla-experiments generate {where['OUT']} --prompt TEXT")
