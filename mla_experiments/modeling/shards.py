"""The weight files of a checkpoint folder: found, checked by their headers, copied.

No model is made and no tensor is read but the few that change.
"""

import json
import shutil
from collections.abc import Callable, Container
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import UserError, reason_of
from ..manifest import is_inside, scratch_for, write_json

NUMBERS = ("F64", "F32", "F16", "BF16")  # as safetensors calls them
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def checked_shards(folder: Path, expected: dict[str, tuple[int, ...]], left_out: tuple[str, ...] = ()) -> list[Path]:
    """Return the weight files of a folder, after a look at their headers.

    Args:
        folder: of the checkpoint.
        expected: shape of every weight that there must be, by its name.
        left_out: how the names of weights begin that may be there without use.

    Raises:
        UserError: a file is missing or damaged, or weights have other names or shapes than expected.
    """
    lacking = dict(expected)
    shards = shard_paths(folder)
    for shard in shards:
        shapes = shapes_in(shard)
        check_numbers(shard, expected)
        for name, shape in shapes.items():
            wanted = lacking.pop(name, None)
            if wanted != shape and wanted is not None:
                raise UserError(f"{shard} holds {name} of shape {shape}, but config.json asks for {wanted}; mend one")
            if wanted is None and not ignorable(name) and not name.startswith(left_out):
                raise UserError(f"{shard} holds {name}, which config.json does not ask for; mend one of them")
    if lacking:
        raise UserError(f"model={folder} lacks {next(iter(lacking))} ({len(lacking)} weights in all); copy it again")
    return shards


def check_numbers(shard: Path, names: Container[str]) -> None:
    """Refuse weights of these names that are no floating-point numbers, or of 8 bits, which need scales.

    Raises:
        UserError: there are some.
    """
    with safe_open(shard, "pt") as file:
        for name in file.keys():  # noqa: SIM118
            if name in names and (dtype := file.get_slice(name).get_dtype()) not in NUMBERS:
                raise UserError(
                    f"{shard} holds {name} in {dtype}, and weights are read in {', '.join(NUMBERS)}; save them so"
                )


def ignorable(name: str) -> bool:
    """Whether a weight may be there without use: a tied output projection, the rotary tables of old Llamas."""
    return name == "lm_head.weight" or name.endswith("rotary_emb.inv_freq")


def shard_paths(folder: Path) -> list[Path]:
    """Return the weight files of a folder, by its index where there is more than one."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise UserError(f"model={folder} holds no {WEIGHTS}; save its weights as safetensors (not a pickle)")
    try:
        names = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        outside = [name for name in names if not is_inside(name)]
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise UserError(f"{folder / INDEX} is damaged; copy it again") from None
    if outside:
        raise UserError(f"{folder / INDEX} names {outside[0]}, which is not in its folder; copy the checkpoint again")
    return [folder / name for name in names]


def shapes_in(shard: Path) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor in a file."""
    if not shard.is_file():
        raise UserError(f"{shard} is missing, though {INDEX} names it; copy it again")
    try:
        with safe_open(shard, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{shard} is damaged ({reason_of(error)}); copy it again") from None


def weight_named(shards: list[Path], name: str) -> torch.Tensor:
    """Return the one weight of a name that there is in these files."""
    path = next(shard for shard in shards if name in shapes_in(shard))
    with safe_open(path, "pt") as file:
        return file.get_tensor(name)


def prediction_layers(folder: Path, num_layers: int, num_more: int) -> tuple[str, ...]:
    """Return how the names of weights begin that predict tokens further ahead (MTP, DeepSeek-V3 §2.2).

    Args:
        folder: of the checkpoint.
        num_layers: of the decoder proper.
        num_more: how many layers after them the config says are there to predict.
    """
    wanted = [f"model.layers.{number}." for number in range(num_layers, num_layers + num_more)]
    names = {name for shard in shard_paths(folder) for name in shapes_in(shard)} if wanted else set()
    return tuple(layer for layer in wanted if f"{layer}eh_proj.weight" in names)  # no layer of a decoder has one


def copy_shards(shards: list[Path], target: Path, left_out: tuple[str, ...] = ()) -> list[Path]:
    """Copy weight files under the names that every loader looks for, several with an index; return the copies.

    Args:
        shards: the files.
        target: the folder to copy to.
        left_out: how the names of weights begin that are not copied.
    """
    kept = {shard: [name for name in shapes_in(shard) if not name.startswith(left_out)] for shard in shards}
    shards = [shard for shard in shards if kept[shard]]
    count = len(shards)
    names = [WEIGHTS] if count == 1 else [f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
    copies = [target / name for name in names]
    for shard, copy in zip(shards, copies, strict=True):
        if len(kept[shard]) == len(shapes_in(shard)):
            shutil.copyfile(shard, copy)
        else:
            _copy_some(shard, copy, kept[shard])
    write_index(copies)
    return copies


def write_index(shards: list[Path]) -> None:
    """Write the index of weight files that stand in one folder, where there are several."""
    if len(shards) > 1:
        size = sum(shard.stat().st_size - _header(shard)[1] for shard in shards)
        places = {name: shard.name for shard in shards for name in shapes_in(shard)}
        write_json(shards[0].parent / INDEX, {"metadata": {"total_size": size}, "weight_map": places})


def exchange(shards: list[Path], changed: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    """Put other weights, perhaps of other names, in the place of those in each file.

    Args:
        shards: the files of a folder.
        changed: makes the new weights of a file, by name, of the old ones.
    """
    for shard in shards:
        with safe_open(shard, "pt") as file:
            weights, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
        _save(changed(weights), shard, metadata)
    write_index(shards)


def _copy_some(shard: Path, copy: Path, names: list[str]) -> None:
    """Copy weights of a file, by their names."""
    with safe_open(shard, "pt") as file:
        weights, metadata = {name: file.get_tensor(name) for name in names}, file.metadata()
    _save(weights, copy, metadata)


def _save(weights: dict[str, torch.Tensor], path: Path, metadata: dict | None) -> None:
    try:
        save_file(weights, path, metadata)
    except SafetensorError as error:  # how it says that the disk is full
        raise OSError(reason_of(error)) from None


def rewrite(path: Path, changes: Callable[[str], bool], changed: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    """Put other numbers, of the same shapes and dtypes, in the place of some weights of a file, in the file itself.

    Args:
        path: of the file.
        changes: says of the name of a weight whether it changes.
        changed: makes the new weight of a name and the old weight.
    """
    header, data = _header(path)
    with open(path, "r+b") as file, safe_open(path, "pt") as weights:
        for name in filter(changes, weights.keys()):
            new = changed(name, weights.get_tensor(name)).contiguous()
            file.seek(data + header[name]["data_offsets"][0])
            file.write(new.view(torch.uint8).numpy().tobytes())


def repeat(copies: list[Path], name: str, again: str) -> None:
    """Store a weight a second time, under another name, at the end of the one of these files that holds it.

    Args:
        copies: the weight files of a folder; their index, if there is one, is kept right.
        name: of the weight.
        again: its other name, which none of the files may hold.
    """
    path = next(copy for copy in copies if name in shapes_in(copy))
    header, data = _header(path)
    begin, end = header[name]["data_offsets"]
    size = path.stat().st_size - data
    header[again] = header[name] | {"data_offsets": [size, size + end - begin]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that numbers lie at whole addresses, as the library has it
    scratch = scratch_for(path)
    with open(path, "rb") as old, open(scratch, "wb") as new:
        new.write(len(text).to_bytes(8, "little") + text)
        old.seek(data)
        shutil.copyfileobj(old, new)
        old.seek(data + begin)
        new.write(old.read(end - begin))
    scratch.replace(path)
    index = path.with_name(INDEX)
    if index.is_file():
        places = json.loads(index.read_text(encoding="utf-8"))
        places["metadata"]["total_size"] += end - begin
        places["weight_map"][again] = path.name
        write_json(index, places)


def _header(path: Path) -> tuple[dict, int]:
    """Return the header of a safetensors file, and where its data begin: length of the header, header, data."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(length)), 8 + length
