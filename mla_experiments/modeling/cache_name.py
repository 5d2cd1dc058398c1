"""The one place that knows that a cache has two names.

transformers calls it `past_key_values`, and from 5.24 on `cache`. A forward pass of ours takes either name on any
version, its outputs answer to both, and what we call of the library is given the name that this version knows.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from transformers.masking_utils import create_causal_mask
from transformers.utils import ModelOutput

from ..errors import UserError

NAMES = ("cache", "past_key_values")
LIBRARY_NAME = next(name for name in NAMES if name in inspect.signature(create_causal_mask).parameters)
Forward = TypeVar("Forward", bound=Callable)
OTHER_NAME = NAMES[NAMES[0] == LIBRARY_NAME]


def either_name(forward: Forward) -> Forward:
    """Let a function that takes a cache, by one of the names, take it by the other one too.

    One that names neither, since it hands on whatever it is given, stays as it is.

    Raises:
        UserError: two different caches are given.
    """
    parameters = list(inspect.signature(forward).parameters)
    own = next((name for name in NAMES if name in parameters), None)
    if own is None:
        return forward
    other, place = next(name for name in NAMES if name != own), parameters.index(own)

    @functools.wraps(forward)
    def renaming(*args: Any, **kwargs: Any) -> Any:
        if other not in kwargs:
            return forward(*args, **kwargs)
        named = kwargs.pop(other)
        given = args[place] if place < len(args) else kwargs.get(own)
        if given is None and named is not None:
            if place < len(args):
                args = (*args[:place], named, *args[place + 1 :])
            else:
                kwargs[own] = named
        elif named is not None and named is not given:
            raise UserError("cache and past_key_values are two names of one argument but differ here; give one of them")
        return forward(*args, **kwargs)

    return renaming  # type: ignore[return-value]  # it takes what `forward` does, and one name more


def by_name(cache: object) -> dict[str, Any]:
    """Return a cache as the keyword argument that this version of the library knows."""
    return {LIBRARY_NAME: cache}


def cache_of(output: ModelOutput) -> Any:
    """Return the cache of an output of the library or of ours."""
    return output.get(LIBRARY_NAME)


class EitherName(ModelOutput):
    """Mixed into an output of the library: it answers to the other name of its cache too, as attribute and as key."""

    def __getitem__(self, key: str | int | slice) -> Any:
        return super().__getitem__(LIBRARY_NAME if key == OTHER_NAME else key)


setattr(EitherName, OTHER_NAME, property(cache_of))
