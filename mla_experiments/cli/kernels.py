"""List the backends of MLA's decoding, the fastest first, and why each can or cannot be used here."""

from .parsing import parse


def run(argv: list[str]) -> None:
    """Run it."""
    parse([], argv, "kernels", __doc__)
    from ..kernels import compiling, latent

    for name, reason in latent.reasons().items():
        print(f"{name:<12}{'usable' if reason is None else 'not usable: ' + reason}")
    print()
    for origin, names in compiling.origins().items():
        print(f"C code of {', '.join(names)}: {origin}")
