"""How large a vocabulary is asked for: a number, or what the text is enough for."""

from .errors import UserError

AUTO, USUAL = "auto", 10_000
LARGEST = 2**32 - 1


def vocabulary_of(stated: str | int) -> int | str:
    """Return a number of entries as it is asked for: a whole number, or "auto".

    Raises:
        UserError: it is neither.
    """
    if stated == AUTO:
        return AUTO
    try:
        entries = int(str(stated))
    except ValueError:  # no number, or one of more digits than Python reads
        entries = 0
    if entries > LARGEST:
        raise UserError(f"vocab_size={stated} must be at most {LARGEST:,}")
    if entries < 1:
        raise UserError(f"vocab_size={stated} must be a whole number from 1, or auto")
    return entries
