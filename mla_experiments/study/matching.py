"""What is held equal between the variants of a study, and how nearly.

The width of the MLP is the one size that every variant has and that no mechanism's meaning depends on: it is solved
for, so that totals agree. The first variant of each size sets the mark.
"""

import bisect
import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..benchmark.costs import (
    BYTES,
    kept_of,
    num_parameters,
    numbers_by_layer,
    skeleton,
    training_flops_per_token,
)
from ..errors import UserError
from ..evaluation.results import cache_bytes_per_token
from ..modeling import DecoderConfig, set_cache_dtype
from ..modeling.attention import ATTENTION, mechanisms_of
from ..modeling.attention.hybrid import spread
from ..modeling.export import stock_config
from ..training import RunArguments
from ..training.arguments import trainer_arguments
from ..training.muon import check_optimizer
from ..training.run import check_loss
from .description import Study, Variant, with_settings
from .fields import BUDGET, CORPUS
from .tuning import Settings

TOLERANCE = 0.005
CACHE_CONTEXTS = (512, 2048, 8192, 32768, 131072)  # tokens
NEAR = 0.05  # of the budget of the cache; further off, a variant is named as not matched
SIZES = ("hidden_size", "num_hidden_layers", "intermediate_size")  # where these are swept, each size has its own mark


@dataclass(frozen=True)
class Matched:
    """A variant, complete, with what it costs and how far it is from the mark (a share of it).

    `cache_bytes` is of a whole sequence, by its length: with windows it stops to grow. `cache_residual` is how far a
    token's cache is from the budget (a share of it), where the study has one.
    """

    variant: Variant
    options: dict
    intermediate_size: int
    parameters: int
    training_flops_per_token: float
    cache_bytes_per_token: int
    cache_bytes: dict[int, int]
    residual: float
    cache_residual: float | None


def check_trials(study: Study, here: bool = True) -> None:
    """Refuse what a trial cannot be, model or training, as long as nothing is prepared yet.

    Args:
        study: what is stated.
        here: whether it is to run on this machine, and not to be planned for another.

    Raises:
        UserError: see there.
    """
    for variant in study.variants:
        for settings in study.designs[variant.attention]:
            trial = with_settings(variant, settings)
            run, flags = run_arguments(study, trial, trial.options), study.arguments(trial)[1]
            if here:
                trainer_arguments(run, flags, Path())
            else:
                check_optimizer(run.optimizer, flags)
            check_loss(run, study.corpus_of(variant), study.task_of(variant))
            config_of(study, trial, trial.options, study.planned_vocab_size)


def match(study: Study, vocab_size: int) -> list[Matched]:
    """Solve for what the study holds equal.

    Raises:
        UserError: a match that cannot be met, and how near it came.
    """
    solved: list[Matched] = []
    marks: list[tuple[dict, float]] = []
    for variant in study.variants:
        options = dict(variant.options)
        if cache_option(study, variant.attention):
            options |= nearest_cache(study, variant, vocab_size)
        size = size_of(variant)
        mark = next((total for of, total in marks if of == size), None)
        solved.append(complete(study, variant, options, vocab_size, mark))
        marks += [(size, measure_of(study, solved[-1]))] * (mark is None)
    check_budget(study, solved)
    return solved


def size_of(variant: Variant) -> dict:
    """Return what sets a mark of its own: sizes, and the corpus, whose vocabulary may be another."""
    return {name: one for name, one in variant.changed.items() if name in SIZES or name.startswith(CORPUS)}


def check_budget(study: Study, solved: list[Matched]) -> None:
    """Refuse a budget that all its variants miss, and say what is nearest to it.

    Raises:
        UserError: see there.
    """
    for budget in dict.fromkeys(study.budget_of(one.variant) for one in solved if study.match == "cache"):
        of_it = [one for one in solved if study.budget_of(one.variant) == budget]
        nearest = min(of_it, key=lambda one: abs(one.cache_residual or 0))
        if abs(nearest.cache_residual or 0) > NEAR:
            raise UserError(
                f"{BUDGET}={budget} is met by no variant to within {100 * NEAR:g} %; the nearest is "
                f"{nearest.variant.name} with {nearest.cache_bytes_per_token:,}"
            )


def same_models(study: Study, solved: list[Matched], vocab_size: int) -> dict[str, str]:
    """Return which variants are the very model of an earlier one, trained alike, such as gqa of one group and mqa.

    Args:
        study: whose variants they are.
        solved: what `match` gave.
        vocab_size: of the tokenizer.

    Returns:
        The name of the earlier variant by that of the later.
    """
    found: dict[str, str] = {}
    before: list[tuple[str, str, dict, dict | None, list]] = []
    for matched in solved:
        config = config_of(study, matched.variant, matched.options, vocab_size, matched.intermediate_size)
        mechanism, options, stock = config.attention, config.attention_options, None
        with contextlib.suppress(UserError):  # most variants are no stock model
            stock = stock_config(config).to_dict()
        trained = [
            matched.variant.cache_dtype,
            matched.variant.changed,
            study.designs[matched.variant.attention],
            matched.intermediate_size,
        ]
        name = matched.variant.name
        for earlier, of, with_options, as_stock, trained_so in before:
            same = with_options == options if of == mechanism else stock is not None and as_stock == stock
            if same and trained_so == trained:
                found[name] = earlier
                break
        else:
            before.append((name, mechanism, options, stock, trained))
    return found


def match_trial(study: Study, solved: list[Matched], number: int, settings: Settings, vocab_size: int) -> Matched:
    """Return a variant with the settings of a trial, matched to the same mark.

    Args:
        study: whose variant it is.
        solved: what `match` gave.
        number: of the variant.
        settings: of the trial.
        vocab_size: of the tokenizer.

    Raises:
        UserError: a match that cannot be met.
    """
    base = solved[number]
    first = next(one for one in solved if size_of(one.variant) == size_of(base.variant))
    variant = with_settings(base.variant, settings)
    return complete(study, variant, base.options | variant.options, vocab_size, measure_of(study, first))


def cache_option(study: Study, attention: str) -> str | None:
    """Return the option of a mechanism that is solved for, if the study holds the cache equal."""
    return ATTENTION[attention].cache_option if study.match == "cache" else None  # where there are no hybrids


def measure_of(study: Study, matched: Matched) -> float:
    """Return the total that is held equal."""
    return matched.training_flops_per_token if study.match == "flops" else matched.parameters


def complete(study: Study, variant: Variant, options: dict, vocab_size: int, mark: float | None) -> Matched:
    """Return a variant whose MLP is as wide as the mark asks for; as wide as stated where there is none."""
    config = config_of(study, variant, options, vocab_size)
    if mark is not None and study.match != "none":
        now, wider = (cost(study, config_of(study, variant, options, vocab_size, config.intermediate_size + more))
                      for more in (0, 1))  # fmt: skip
        width = round(config.intermediate_size + (mark - now) / (wider - now))
        if width < 1:
            least = cost(study, config_of(study, variant, options, vocab_size, 1))
            raise UserError(
                f"match={study.match} cannot be met by {variant.name}: with an MLP of width 1 it still has "
                f"{100 * (least / mark - 1):.1f} % more than the first variant; choose a smaller option or match: none"
            )
        config = config_of(study, variant, options, vocab_size, width)
    total = cost(study, config)
    residual = 0.0 if mark is None else total / mark - 1
    if study.match != "none" and abs(residual) > TOLERANCE:
        raise UserError(
            f"match={study.match} cannot be met by {variant.name}: the nearest is {100 * residual:+.2f} %, more than "
            f"{100 * TOLERANCE} %; choose a larger model or match: none"
        )
    cache_bytes, budget = bytes_by_length(config, variant.cache_dtype, (1, *CACHE_CONTEXTS)), study.budget_of(variant)
    cached = cache_bytes.pop(1)
    return Matched(
        variant=variant,
        options=options,
        intermediate_size=config.intermediate_size,
        parameters=num_parameters(config),
        training_flops_per_token=training_flops_per_token(config, config.max_position_embeddings),
        cache_bytes_per_token=cached,
        cache_bytes=cache_bytes,
        residual=residual,
        cache_residual=budget and cached / budget - 1,
    )


def cost(study: Study, config: DecoderConfig) -> float:
    """Return what is held equal of a config: training FLOPs per token, or parameters."""
    if study.match == "flops":
        return training_flops_per_token(config, config.max_position_embeddings)
    return num_parameters(config)


def bytes_by_length(config: DecoderConfig, cache_dtype: str | None, lengths: Sequence[int]) -> dict[int, int]:
    """Return the bytes that a sequence takes in the cache, by its length.

    Args:
        config: of the model.
        cache_dtype: in which its caches are kept; None for single precision.
        lengths: in tokens.

    Raises:
        UserError: a model that cannot keep its caches so.
    """
    if cache_dtype is None:
        numbers = numbers_by_layer(config)
        return {length: BYTES * kept_of(numbers, config, length) for length in lengths}
    model = skeleton(config)
    set_cache_dtype(model, cache_dtype)
    of_token = int(cache_bytes_per_token(model, num_tokens=1))  # without memory too a pass leaves what it would
    return {length: length * of_token for length in lengths}  # models with windows are refused


def nearest_cache(study: Study, variant: Variant, vocab_size: int) -> dict:
    """Return the option of a mechanism whose cache is nearest to the budget.

    The cache grows with the option, whatever it is: of the values that the mechanism can have, halving finds the one.
    """
    wanted, name = study.budget_of(variant), cache_option(study, variant.attention)
    if name is None or wanted is None:
        return {}
    values = possible_values(name, config_of(study, variant, variant.options, vocab_size), variant.options)

    def cached(value):
        return cache_of(study, variant, {name: value}, vocab_size)

    place = bisect.bisect_left(values, wanted, key=cached)
    return {name: min(values[max(0, place - 1) : place + 1], key=lambda value: abs(cached(value) - wanted))}


def possible_values(name: str, config: DecoderConfig, given: dict) -> list[int]:
    """Return the values of an option of a config's mechanism that it can have, up to what is useful.

    Args:
        name: of the option.
        config: of the model.
        given: the other options, as far as they are stated.
    """
    size = (config.hidden_size, config.num_attention_heads)
    values = []
    for value in range(1, 2 * config.hidden_size + 1):  # a larger rank would be larger than what it stands for
        with contextlib.suppress(UserError):
            ATTENTION[config.attention].resolve(*size, rotary=config.positions == "rope", **given | {name: value})
            values.append(value)
    return values


def cache_of(study: Study, variant: Variant, options: dict, vocab_size: int) -> int:
    """Return the bytes per token that a variant caches with other options."""
    config = config_of(study, variant, variant.options | options, vocab_size)
    return bytes_by_length(config, variant.cache_dtype, (1,))[1]


def config_of(
    study: Study, variant: Variant, options: dict, vocab_size: int, intermediate_size: int | None = None
) -> DecoderConfig:
    """Return the config of a variant; a synthetic corpus has a vocabulary of its own."""
    if task := study.task_of(variant):
        vocab_size = task.num_symbols
    return run_arguments(study, variant, options, intermediate_size).model_config(variant.attention, vocab_size, 0)


def run_arguments(
    study: Study, variant: Variant, options: dict, intermediate_size: int | None = None, **more
) -> RunArguments:
    """Return the arguments of the runs of a variant."""
    own, _ = study.arguments(variant)
    if intermediate_size is not None:
        own = own | {"intermediate_size": intermediate_size}
    by_mechanism = spread(options, mechanisms_of(variant.attention))
    own = own | {"attention": [variant.attention], "attention_options": json.dumps(by_mechanism)}
    return RunArguments(**(own | more))
