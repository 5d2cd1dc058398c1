"""A decoder as transformers builds it: what it keeps, reads and multiplies, as counted from it (`counting.py`)."""

from dataclasses import dataclass

from .costs import BACKWARD


@dataclass(frozen=True)
class Layers:
    """Layers whose caches grow alike: what they keep of a token and what attending to it costs, all of them together.

    Args:
        count: how many they are.
        numbers: kept of a token.
        window: how many tokens they keep at most.
        flops: of a new token's attending to one of the context, where decoding absorbs latents.
        training_flops: the same where latents are expanded, as in training.
        expansion: FLOPs of expanding a token's latents.
    """

    count: int
    numbers: int
    window: int | None
    flops: int
    training_flops: int
    expansion: int

    def seen(self, context: int) -> int:
        """Return how many of `context` tokens they keep."""
        return context if self.window is None else min(context, self.window)


@dataclass(frozen=True)
class StockArchitecture:
    """A decoder as transformers builds it.

    Args:
        name: its model_type.
        parameters: all of them.
        active_parameters: those that a token uses; fewer where there are experts.
        tables: numbers of the embeddings, of which a token reads one row each.
        weights: numbers that a token's step multiplies by.
        layers: those whose cache grows, in groups.
        state: numbers that a sequence keeps however long it is.
        num_layers: of all kinds.
        longest: max_position_embeddings, where there is such a thing.
        notes: what a reader of the numbers must know, in sentences.
    """

    name: str
    parameters: int
    active_parameters: int
    tables: int
    weights: int
    layers: tuple[Layers, ...]
    state: int
    num_layers: int
    longest: int | None
    notes: tuple[str, ...] = ()

    def cached_numbers(self, context: int) -> int:
        """Return how many numbers a sequence of `context` tokens keeps."""
        return self.state + sum(layers.numbers * layers.seen(context) for layers in self.layers)

    def decoding_flops(self, context: int) -> int:
        """Return the FLOPs of decoding one token after `context` tokens; latents are absorbed."""
        return 2 * self.weights + sum(layers.flops * layers.seen(context) for layers in self.layers)

    def training_flops(self) -> float | None:
        """Return training FLOPs per token of the longest sequence; windows count as far as they reach."""
        if self.longest is None:
            return None
        attending = sum(layers.training_flops * layers.seen(self.longest) for layers in self.layers)
        return (1 + BACKWARD) * (2 * self.weights + attending)

    def weights_read(self, batch: int) -> int:
        """Return how many weights a step reads; with experts those of each token, up to all."""
        return min(self.parameters, batch * self.active_parameters) - self.tables

    def described(self) -> str:
        """Return what kind of decoder this is."""
        kinds = [
            f"{layers.count} keep " + (f"the last {layers.window:,} tokens" if layers.window else "all tokens")
            for layers in self.layers
        ]
        rest = self.num_layers - sum(layers.count for layers in self.layers)
        kinds += [f"{rest} none"] if rest else []
        return f"{self.name} as transformers builds it: of {self.num_layers} layers {', '.join(kinds)}"

    def cache_described(self, size: int) -> str:
        """Return what the cache takes, at `size` bytes a number."""
        parts = [
            f"{layers.numbers * size:,} bytes a token" + (f" of the last {layers.window:,}" if layers.window else "")
            for layers in self.layers
        ]
        parts += [f"{self.state * size:,} bytes a sequence of any length"] if self.state else []
        return " and ".join(parts)
