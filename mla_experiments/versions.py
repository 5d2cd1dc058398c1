"""Which versions of the libraries were tested, and what to say outside that range. Imports none of them.

`pyproject.toml` has the same bounds; a test holds it to them, and `make test-versions` runs both ends.
"""

from importlib import metadata

# library: the oldest and the newest release that tests have passed on, as far as they are written
TESTED = {
    "torch": ("2.8", "2.14"),
    "transformers": ("5.17", "5.24"),
    "accelerate": ("1.10", "1.15"),
    "datasets": ("4.2", "5.2"),
}


def installed(library: str) -> str | None:
    """Return the version of a library that is installed, or None."""
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def release(version: str, parts: int) -> tuple[int, ...]:
    """Return the first parts of a version as numbers: `release("2.13.0+cpu", 2)` is (2, 13)."""
    numbers = [int("".join(filter(str.isdigit, part)) or 0) for part in version.split("+")[0].split(".")]
    return tuple((numbers + [0] * parts)[:parts])


def is_below(library: str, version: str) -> bool:
    """Return whether a version is older than what was tested."""
    floor = TESTED[library][0]
    return release(version, 3) < release(floor, 3)


def is_beyond(library: str, version: str) -> bool:
    """Return whether a version is newer than what was tested; later patches of the newest tested release are not."""
    parts = TESTED[library][1].split(".")
    return release(version, len(parts)) > release(TESTED[library][1], len(parts))


def beyond() -> dict[str, str]:
    """Return the installed libraries that are newer than what was tested, with their versions."""
    found = {library: installed(library) for library in TESTED}
    return {library: version for library, version in found.items() if version and is_beyond(library, version)}


def remedy(libraries: list[str]) -> str:
    """Return the command that brings libraries into the tested range."""
    return "pip install -U " + " ".join(f'"{library}{bounds(library)}"' for library in libraries)


def bounds(library: str) -> str:
    """Return the tested range as a requirement has it: ">=5.17,<5.25"."""
    floor, ceiling = TESTED[library]
    *first, last = release(ceiling, len(ceiling.split(".")))
    return f">={floor},<{'.'.join(map(str, (*first, last + 1)))}"


def refuse_old(error: type[Exception]) -> None:
    """Raise an error of a kind where a library is older than what was tested.

    Args:
        error: what to raise: `ImportError` in a program of somebody else's, `UserError` in a command.
    """
    found = {library: installed(library) for library in TESTED}
    old = {library: version for library, version in found.items() if version and is_below(library, version)}
    if old:
        what = " and ".join(f"{library} {version}" for library, version in old.items())
        raise error(f"{what} is too old for mla-experiments; {remedy(list(old))}")


def warning() -> str | None:
    """Return a sentence on libraries that are newer than what was tested, if there are any."""
    if new := beyond():
        what = " and ".join(f"{name} {version} (tested up to {TESTED[name][1]})" for name, version in new.items())
        return f"{what}: newer than what was tested. Cached decoding checks itself; for the rest, {remedy(list(new))}"
    return None
