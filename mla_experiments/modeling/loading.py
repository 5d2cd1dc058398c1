"""The one way to load a trained model: safetensors only, and every weight in its place."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import PreTrainedConfig
from transformers.utils import logging

from ..errors import UserError, reason_of
from ..next_step import Step
from ..run_files import check_files, check_finished
from .configuration import DecoderConfig
from .decoder import DecoderForCausalLM
from .shards import shard_paths


def load_model(folder: Path) -> DecoderForCausalLM:
    """Return the model saved in a folder, in evaluation mode.

    Raises:
        UserError: no model of ours, a pickle (never opened), a damaged file, or weights of other shapes or names.
    """
    folder = Path(folder)
    check_finished(folder)
    if not (folder / "config.json").is_file():
        inside = sorted(path.parent for path in folder.glob("*/config.json"))
        ways = (
            f"give {' or '.join(map(str, inside))}" if inside else f"train one with: {Step('train_model.py', 'train')}"
        )
        raise UserError(f"model={folder} holds no config.json; {ways}")
    if not any(folder.glob("model*.safetensors")):
        pickles = [path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt")]
        found = f"only {', '.join(pickles)}, a pickle that could run code and is never opened" if pickles else "none"
        raise UserError(f"model={folder} needs weights in model.safetensors but has {found}; save it as safetensors")
    shard_paths(folder)  # refuses an index that names files elsewhere
    check_files(folder, "config.json")
    check_files(folder, "model*.safetensors*")
    try:
        kind = PreTrainedConfig.get_config_dict(folder)[0].get("model_type")
        if kind != DecoderConfig.model_type:
            raise UserError(f"model={folder} is a {kind}, not a model trained here; give one under weights/")
        config = DecoderConfig.from_pretrained(folder)
        model, report = _load_quietly(folder, config)
    except UserError:
        raise
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"model={folder} cannot be loaded ({reason_of(error)}); train or copy it again") from None
    for kind in ("mismatched_keys", "missing_keys", "unexpected_keys"):
        if names := sorted(str(key[0] if isinstance(key, tuple) else key) for key in report[kind]):
            raise UserError(
                f"model={folder} has weights that do not fit its config.json ({kind.replace('_', ' ')}: "
                f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}); use the config that they were saved with"
            )
    return model.eval()


def _load_quietly(folder: Path, config: DecoderConfig) -> tuple[DecoderForCausalLM, dict[str, Any]]:
    """What does not fit is reported in one sentence above, not in a table of the library."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        pair: Any = DecoderForCausalLM.from_pretrained(  # with `output_loading_info`
            folder, config=config, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True
        )
        return pair
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
