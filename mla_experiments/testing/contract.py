"""The contract of attention mechanisms as checks, for ours and for anybody's.

    from mla_experiments.testing import check_attention

    def test_it_keeps_the_contract():
        check_attention(GTA, reference=gta_in_plain_loops)

Each check builds small decoders around the mechanism, in double precision where numbers are compared.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Cache, DynamicCache, StaticCache
from transformers.cache_utils import QuantizedLayer

from ..errors import UserError
from ..modeling import DecoderConfig, DecoderForCausalLM
from ..modeling.attention import ATTENTION, Attention, mechanisms_of, plugins
from ..modeling.attention.base import Option
from ..modeling.attention.checks import COMMON
from ..modeling.cache import growing
from ..modeling.cache_dtype import set_cache_dtype

VOCABULARY, BATCH, LENGTH = 41, 3, 13
POSITIONS = ("rope", "learned")

Reference = Callable[[dict[str, torch.Tensor], torch.Tensor, dict], torch.Tensor]


@dataclass(frozen=True)
class Case:
    """What a check is given: a mechanism with its options, one kind of positions, perhaps a plain reference.

    Attributes:
        attention: its name in the registry.
        options: its hyper-parameters, as far as they are not its defaults.
        common: those that are common to mechanisms (`output_gate`, `qk_norm`, `attention_bias`), likewise.
        positions: "rope" or "learned".
        reference: what it computes, see `check_attention`.
        hidden_size: width of the decoder.
        num_attention_heads: its query heads.
        device: where the decoders are.
    """

    attention: str
    options: dict[str, Option] = field(default_factory=dict)
    common: dict[str, Option] = field(default_factory=dict)
    positions: str = "rope"
    reference: Reference | None = None
    hidden_size: int = 32
    num_attention_heads: int = 4
    device: str = "cpu"

    def config(self, **changed: Any) -> DecoderConfig:
        """Return the configuration of a small decoder."""
        values = {
            "vocab_size": VOCABULARY, "hidden_size": self.hidden_size, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": self.num_attention_heads, "max_position_embeddings": 64,
            "attention": self.attention, "attention_options": dict(self.options), "positions": self.positions,
            "initializer_range": 0.2, "pad_token_id": 0, **self.common,
        }  # fmt: skip
        return DecoderConfig(**values | changed)

    def model(self, dtype: torch.dtype = torch.float64, **changed: Any) -> DecoderForCausalLM:
        """Return a small decoder, the same at each call, in evaluation mode."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return DecoderForCausalLM(self.config(**changed)).to(self.device, dtype).eval()

    def tokens(self, length: int = LENGTH) -> torch.Tensor:
        """Return token ids `[B, length]`, none of them padding."""
        drawn = torch.randint(1, VOCABULARY, (BATCH, length), generator=torch.Generator().manual_seed(1))
        return drawn.to(self.device)


def check_attention(
    mechanism: type[Attention],
    reference: Reference | None = None,
    options: dict[str, Option] | None = None,
    positions: tuple[str, ...] = POSITIONS,
    hidden_size: int = 32,
    num_attention_heads: int = 4,
    device: str = "cpu",
) -> None:
    """Hold a mechanism to all that this package takes for granted.

    Args:
        mechanism: the class; it need not be registered.
        reference: computes what the mechanism should: from its weights by name, in double precision, the hidden states
            `[B, T, D]` and its settings (`hidden_size`, `num_attention_heads`, `rotary`, `rope_theta`,
            `rope_interleave`, `rms_norm_eps`, `layer_idx` and its options, complete) the output `[B, T, D]`. Without
            it only what the mechanism says of itself is held against what it does.
        options: its hyper-parameters, as far as they are not its defaults.
        positions: the kinds of positions that it must work with.
        hidden_size: width of the decoders that are made.
        num_attention_heads: their query heads.
        device: where they are, such as `cuda`.

    Raises:
        AssertionError: a promise that is not kept, by the name of the check.
        UserError: it is no mechanism at all.
    """
    with registered(mechanism) as name:
        for kind in positions:
            for common in common_cases(mechanism):
                case = Case(name, options or {}, common, kind, reference, hidden_size, num_attention_heads, device)
                for check in CHECKS.values() if not common else (decoding, gradients, cache_size, operations):
                    run_check(check, case)


def common_cases(mechanism: type[Attention]) -> list[dict[str, Option]]:
    """Return the options that are common to mechanisms as far as one follows them: none, each alone, all together."""
    followed: list[dict[str, Option]] = [
        {name: value} for name in COMMON if name in mechanism.takes for value in COMMON[name] if value
    ]
    return [{}, *followed, {name: value for one in followed for name, value in one.items()}] if followed else [{}]


def run_check(check: Callable[[Case], None], case: Case) -> None:
    """Run one check; what fails says which it is, and of what."""
    try:
        check(case)
    except Exception as error:
        given = ", ".join(f"{name}={value}" for name, value in (case.options | case.common).items())
        where = f"{case.attention}{f' with {given}' if given else ''}, positions={case.positions}"
        raise AssertionError(f"{check.__name__} of {where}: {type(error).__name__}: {error}") from error


def said_of(what: str) -> Callable[[str], str]:
    """Return what puts before a message of `torch.testing` what it is about."""
    return lambda text: f"{what}: {text}"


@contextlib.contextmanager
def registered(mechanism: type[Attention]) -> Iterator[str]:
    """Have a mechanism in the registry, and out of it afterwards if it was not there."""
    found = [name for name, known in ATTENTION.items() if known is mechanism]
    if found:
        yield found[0]
        return
    name = f"{getattr(mechanism, '__name__', 'none').lower()}-under-check"
    plugins.check_mechanism(mechanism, name)
    ATTENTION[name] = mechanism
    try:
        yield name
    finally:
        del ATTENTION[name]


def causality(case: Case) -> None:
    """A later token changes no earlier logits, and those from its own on."""
    model, tokens = case.model(), case.tokens()
    changed = tokens.clone()
    changed[:, 8] = tokens[:, 8] % (VOCABULARY - 1) + 1
    before, after = model(tokens).logits, model(changed).logits
    torch.testing.assert_close(after[:, :8], before[:, :8], atol=1e-12, rtol=0)
    assert (after[:, 8:] - before[:, 8:]).abs().amax(dim=(0, 2)).min() > 1e-6, "later tokens do not see it"


def decoding(case: Case) -> None:
    """A sequence in any chunks, from a cache of any kind, gives what the whole pass gives."""
    model, tokens = case.model(), case.tokens()
    full = model(tokens).logits
    for chunks in ([1] * LENGTH, [5, 1, 4, 3], [12, 1], [1, 12]):
        for cache in caches(model):
            with torch.no_grad():
                logits = torch.cat([model(part, cache=cache).logits for part in tokens.split(chunks, dim=1)], dim=1)
            torch.testing.assert_close(logits, full, atol=1e-10, rtol=0, msg=said_of(f"chunks {chunks}, {cache}"))


def caches(model: DecoderForCausalLM) -> Iterator:
    """Yield empty caches of the library."""
    yield DynamicCache(config=model.config)
    yield DynamicCache()
    yield growing(DynamicCache())
    yield StaticCache(config=model.config, max_cache_len=LENGTH + 3)
    yield Cache(layers=[Unrounded(residual_length=3) for _ in model.model.layers])
    if model.device.type == "cuda":
        yield DynamicCache(config=model.config, offloading=True)


class Unrounded(QuantizedLayer):
    """A layer of the library's quantised caches, whose quantiser leaves numbers as they are and wants some."""

    def _quantize(self, tensor: torch.Tensor, axis: int | None = None) -> torch.Tensor:
        assert tensor.numel() > 0, "nothing is given to the quantiser"
        return tensor.clone()

    def _dequantize(self, q_tensor: torch.Tensor) -> torch.Tensor:
        return q_tensor


@torch.no_grad()
def fewer_bits(case: Case) -> None:
    """Kept in 16 and in 8 bits, a sequence token by token is what it is in one pass, and near what it is unrounded."""
    model, tokens = case.model(), case.tokens()
    exact = model(tokens).logits
    for kind, error in (("bf16", 0.1), ("int8", 0.3)):
        set_cache_dtype(model, kind)
        whole, cache = model(tokens, use_cache=True).logits, DynamicCache()
        parts = [model(part, cache=cache).logits for part in tokens.split([6, 3, 1, 1, 2], dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-10, rtol=0)
        found = ((whole - exact).abs().max() / exact.std()).item()
        assert found < error, f"in {kind} logits are off by {found:.2g} of their deviation"


@torch.no_grad()
def cache_changes(case: Case) -> None:
    """Beams may be reordered, and tokens taken back."""
    model, tokens = case.model(), case.tokens()
    order = torch.tensor([2, 0, 1], device=case.device)
    whole = model(tokens[order]).logits
    for cache in caches(model):
        model(tokens[:, :6], cache=cache)
        cache.reorder_cache(order)
        step = model(tokens[order, 6:7], cache=cache).logits
        torch.testing.assert_close(step, whole[:, 6:7], atol=1e-10, rtol=0)
        if isinstance(cache, DynamicCache):
            cache.crop(-3)
            steps = model(tokens[order, 4:9], cache=cache).logits
            torch.testing.assert_close(steps, whole[:, 4:9], atol=1e-10, rtol=0)


def padding(case: Case) -> None:
    """Padding on the left changes nothing, in a prompt and in a step after it."""
    model, tokens = case.model(), case.tokens()
    alone = model(tokens).logits
    nothing = tokens.new_zeros(BATCH, 4)
    padded, mask = torch.cat([nothing, tokens], dim=1), torch.cat([nothing, torch.ones_like(tokens)], dim=1)
    torch.testing.assert_close(model(padded, attention_mask=mask).logits[:, 4:], alone, atol=1e-10, rtol=0)
    cache = DynamicCache(config=model.config)
    model(padded[:, :9], attention_mask=mask[:, :9], cache=cache)
    step = model(padded[:, 9:10], attention_mask=mask[:, :10], cache=cache).logits
    torch.testing.assert_close(step[:, 0], alone[:, 5], atol=1e-10, rtol=0)


def generation(case: Case) -> None:
    """A batch of unequal prompts writes what each does alone, in all ways that the library has of writing."""
    model, tokens = case.model(), case.tokens()
    padded, mask = tokens.clone(), torch.ones_like(tokens)
    paddings = (0, 3, 7)
    for row, padded_by in enumerate(paddings):
        padded[row, :padded_by], mask[row, :padded_by] = 0, 0
    for way in ({}, {"num_beams": 3}, {"cache_implementation": "static"}, {"use_cache": False}):
        settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0, **way}
        together = model.generate(padded, attention_mask=mask, **settings)[:, LENGTH:]
        for row, padded_by in enumerate(paddings):
            prompt = padded[row : row + 1, padded_by:]
            alone = model.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)[0, -6:]
            assert together[row].tolist() == alone.tolist(), f"{way or 'greedy'}: {together[row]} and not {alone}"


def gradients(case: Case) -> None:
    """Every parameter learns, at once or, where it is multiplied by what starts at 0, after a step."""
    model, tokens = case.model(), case.tokens()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):  # gradients add up
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, f"{name} has no gradient"


def rounding(case: Case) -> None:
    """In bf16 it agrees with f32 within the rounding."""
    model, tokens = case.model(torch.float32, initializer_range=0.02), case.tokens()
    exact = torch.log_softmax(model(tokens).logits, dim=-1)
    rounded = torch.log_softmax(model.bfloat16()(tokens).logits.float(), dim=-1)
    torch.testing.assert_close(rounded, exact, atol=0.02, rtol=0)


def saving(case: Case) -> None:
    """Saved and loaded it is the same model, also where nothing is as it started."""
    model, tokens = case.model(), case.tokens()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded = DecoderForCausalLM.from_pretrained(folder, dtype=torch.float64)
    loaded = loaded.to(case.device).eval()
    assert loaded.config.to_diff_dict() == model.config.to_diff_dict()
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), atol=0, rtol=0)
    torch.testing.assert_close(loaded(tokens).logits, model(tokens).logits, atol=1e-12, rtol=0)


def cache_size(case: Case) -> None:
    """The cache holds as many numbers as are stated, and every mode but "full" the same."""
    model, tokens = case.model(), case.tokens()
    cache = model(tokens).cache
    for block, layer in zip(model.model.layers, cache.layers, strict=True):
        held, parts = layer.keys.numel() + layer.values.numel(), block.self_attn.cache_parts()
        stated = tokens.numel() * block.self_attn.cache_elements_per_token()
        assert held == stated, f"{held} numbers are cached, but {stated} stated: {parts} for a token"
        assert all(part >= 0 for part in parts.values())


def choices(case: Case) -> None:
    """There are the options that it names, and more of the one that a study solves for keeps more in the cache."""
    for mechanism in mechanisms_of(case.attention).values():
        known = mechanism.option_names()
        _choices_of(mechanism, case, {name: value for name, value in case.options.items() if name in known})


def _choices_of(mechanism: type[Attention], case: Case, options: dict[str, Any]) -> None:
    """The same of one mechanism, if the case is of several."""
    named = {"fixed_options": mechanism.option_names(), "takes": COMMON.keys()}
    for statement, known in named.items():
        absent = getattr(mechanism, statement) - known
        assert not absent, f"{statement} names {', '.join(sorted(absent))}; there are {', '.join(sorted(known))}"
    name, free = mechanism.cache_option, mechanism.free_options()
    if name is None:
        return
    assert name in free, f"cache_option={name} is none of its options that are free: {', '.join(sorted(free))}"
    size, kept = (case.hidden_size, case.num_attention_heads), list[int]()
    for value in range(1, 2 * case.hidden_size + 1):
        with torch.device("meta"), contextlib.suppress(UserError):
            layer = mechanism(*size, rotary=case.positions == "rope", **options | {name: value})
            kept.append(layer.cache_elements_per_token())
    assert kept and kept == sorted(kept) and kept[0] < kept[-1], f"with {name} from 1 on a token keeps {kept} numbers"


def operations(case: Case) -> None:
    """The formula counts what torch's FLOP counter counts; on the meta device nothing is fused or padded."""
    with torch.device("meta"):
        layer = DecoderForCausalLM(case.config()).model.layers[0].self_attn
        length = 16
        tables = tables_of(layer, length)
        with FlopCounterMode(display=False) as counter:
            layer(torch.empty(BATCH, length, case.hidden_size), tables)
    counted, stated = counter.get_total_flops(), BATCH * layer.flops(length, length)
    assert counted == stated, f"{counted:,} FLOPs are counted, but {stated:,} stated"
    assert layer.decoding_flops(64) > 0 and layer.flops(1, 0) <= layer.decoding_flops(64)


def tables_of(layer: Attention, length: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return cosines and sines `[1, length, rotary_dim / 2]` for a layer."""
    rotary_dim = layer.rotary_dim(layer.resolved())
    return (torch.empty(1, length, rotary_dim // 2),) * 2 if layer.rotary and rotary_dim else None


@torch.no_grad()
def modes(case: Case) -> None:
    """All ways to decode give one answer."""
    model, tokens = case.model(), case.tokens()
    whole = model(tokens).logits
    for mode in model.model.layers[0].self_attn.decode_modes:
        for block in model.model.layers:
            block.self_attn.decode_mode = mode
        cache = DynamicCache(config=model.config)
        logits = torch.cat([model(part, cache=cache).logits for part in tokens.split([6, 1, 1, 5], dim=1)], dim=1)
        torch.testing.assert_close(logits, whole, atol=1e-10, rtol=0, msg=said_of(f"mode {mode}"))


def probabilities(case: Case) -> None:
    """The very tensors that it attends with are shown, sum to one and look back alone; the answer stays the same."""
    model, tokens = case.model(), case.tokens()
    seen = model(tokens, output_attentions=True)
    torch.testing.assert_close(seen.logits, model(tokens).logits, atol=1e-10, rtol=0)
    for layer, shown in zip(model.model.layers, seen.attentions, strict=True):
        rows = case.num_attention_heads * layer.self_attn.softmaxes_per_head
        assert shown.shape == (BATCH, rows, LENGTH, LENGTH), f"attentions of shape {shown.shape}"
        torch.testing.assert_close(shown.sum(-1), torch.ones_like(shown.sum(-1)))
        assert shown.triu(1).abs().max() == 0, "attention to what comes later"
        shown.retain_grad()
    seen.logits.square().sum().backward()
    unused = [n for n, shown in enumerate(seen.attentions) if shown.grad is None or not shown.grad.any()]
    assert not unused, f"layers {unused} show probabilities that they do not attend with"


def compilation(case: Case) -> None:
    """A step from a static cache compiles into one graph, with the same answer."""
    model, tokens = case.model(), case.tokens()
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        whole = model(tokens).logits
        cache = StaticCache(config=model.config, max_cache_len=LENGTH)
        model(tokens[:, :5], cache=cache)
        for place in (5, 6, 7):
            step = compiled(
                tokens[:, place : place + 1], cache=cache, position_ids=tokens.new_full((BATCH, 1), place)
            ).logits
            torch.testing.assert_close(step[:, 0], whole[:, place], atol=1e-10, rtol=0)


@torch.no_grad()
def reference(case: Case) -> None:
    """Its first and its last layer compute what a plain reference computes, where one is given."""
    if case.reference is None:
        return
    model = case.model()
    for place in (0, -1):
        layer_reference(case, model, model.model.layers[place].self_attn)


def layer_reference(case: Case, model: DecoderForCausalLM, layer: Attention) -> None:
    """Hold a layer with weights of any size to the reference."""
    assert case.reference is not None
    torch.manual_seed(0)
    for parameter in layer.parameters():  # of norms and biases too, which start where they change nothing
        parameter.add_(0.1 * torch.randn(parameter.shape, dtype=torch.float64).to(case.device))
    hidden_states = torch.randn(2, 7, case.hidden_size, dtype=torch.float64, device=case.device)
    places = torch.arange(7, device=case.device)[None]
    tables = model.model.rotary_emb(places, torch.float64) if layer.rotary else None
    settings = {
        "hidden_size": case.hidden_size, "num_attention_heads": case.num_attention_heads, "rotary": layer.rotary,
        "rope_theta": model.config.rope_parameters["rope_theta"], "rope_interleave": layer.rope_interleave,
        "rms_norm_eps": layer.rms_norm_eps, "layer_idx": layer.layer_idx, **layer.resolved(),
    }  # fmt: skip
    weights = {name: parameter.cpu() for name, parameter in layer.named_parameters()}
    expected = case.reference(weights, hidden_states.cpu(), settings)
    torch.testing.assert_close(layer(hidden_states, tables).cpu(), expected, atol=1e-6, rtol=1e-6)


CHECKS = {
    check.__name__: check
    for check in (
        causality, decoding, fewer_bits, cache_changes, padding, generation, gradients, rounding, saving, cache_size,
        choices, operations, modes, probabilities, compilation, reference,
    )
}  # fmt: skip
