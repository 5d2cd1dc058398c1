"""Write a trained model as a stock checkpoint: `export RUN --to hf OUT`. Llama and its kin, or DeepSeek-V3 for MLA."""

from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UserError
from .parsing import ConversionArguments, parse
from .saying import wrote


@dataclass
class ExportArguments(ConversionArguments):
    """Which form."""

    to: str = field(default="hf", metadata={"help": "hf, a stock checkpoint of transformers"})
    weights_dir: str = field(default="weights", metadata={"help": "holds the trained models"})


def run(argv: list[str]) -> None:
    """Run it."""
    places = {"RUN": "folder of a trained model, or its name under WEIGHTS_DIR", "OUT": "folder to write"}
    given, where = parse([ExportArguments], argv, "export", __doc__, positional=places)
    if given["to"] != "hf":
        raise UserError(f"to={given['to']} is unknown; hf, a stock checkpoint of transformers, is what there is")
    from ..evaluation import find_models
    from ..modeling.conversion import export_checkpoint
    from ..report import write_model_card

    (source,) = find_models([where["RUN"]], Path(given["weights_dir"]))
    stock = export_checkpoint(
        source, where["OUT"], given["overwrite"], lambda folder: write_model_card(folder, source, where["OUT"])
    )
    wrote(where["OUT"], f"{stock.architectures[0]}, with a model card", f"hf upload NAME {where['OUT']}")
