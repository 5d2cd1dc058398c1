"""What people put around a model: adapters, quantisers, hooks, offloading, parametrisations, compilers, modes.

Whatever stands around a module must be read through, not past: decoding token by token, with all its fast paths, gives
what the whole pass of the wrapped model gives, and the wrapper has the effect that it has on any other model.
"""

import importlib.util
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

Make = Callable[[], nn.Module]
Wrap = Callable[[nn.Module], nn.Module]
TOKENS, PROMPT = 13, 4


@dataclass(frozen=True)
class Wrapper:
    """One way to change a model from outside.

    Attributes:
        wrap: changes a model, in place or not, and returns it.
        package: what must be installed for it, if anything.
        has_effect: whether logits must differ from those before; where not, they must be the same.
        quantises_activations: whether it rounds what flows, so that decoding agrees with the whole pass only roughly.
    """

    wrap: Wrap
    package: str | None = None
    has_effect: bool = True
    quantises_activations: bool = False


def check_wrapper(make: Make, name: str) -> None:
    """Check that one wrapper, by its name in `WRAPPERS`, is read through by a model's decoding.

    Args:
        make: returns a small decoder in single precision, in evaluation mode, the same at each call; its vocabulary has
            at least 16 tokens.
        name: of the wrapper; `is_available` says whether what it needs is installed.

    Raises:
        AssertionError: a fast path has left it out, or it has done nothing.
    """
    wrapper = WRAPPERS[name]
    tokens = torch.randint(0, 16, (3, TOKENS), generator=torch.Generator().manual_seed(0))
    before = whole_pass(make(), tokens)
    model = wrapper.wrap(make())
    whole, decoded = whole_pass(model, tokens), token_by_token(model, tokens)
    changed = (whole - before).abs().max().item()
    assert (changed > 1e-3) == wrapper.has_effect, f"{name} changes logits by {changed:.2g}"
    if wrapper.quantises_activations:
        alike = torch.corrcoef(torch.stack((whole.flatten(), decoded.flatten())))[0, 1].item()
        assert alike > 0.99, f"{name}: decoding and the whole pass correlate by {alike:.3f} only"
    else:
        torch.testing.assert_close(decoded, whole, atol=2e-4, rtol=1e-4, msg=lambda text: f"{name}: {text}")


def is_available(name: str) -> bool:
    """Return whether the package that a wrapper needs is installed."""
    package = WRAPPERS[name].package
    return package is None or importlib.util.find_spec(package) is not None


@torch.no_grad()
def whole_pass(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Return the logits `[B, T, vocabulary]` of one forward pass without a cache."""
    return model(tokens, use_cache=False).logits


@torch.no_grad()
def token_by_token(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Return the logits `[B, T, vocabulary]` of a prompt and single tokens after it, from a cache."""
    output = model(tokens[:, :PROMPT], use_cache=True)
    logits = [output.logits]
    for place in range(PROMPT, tokens.shape[1]):
        output = model(tokens[:, place : place + 1], cache=output.cache, use_cache=True)
        logits.append(output.logits)
    return torch.cat(logits, dim=1)


def linears(model: Any) -> list[nn.Linear]:
    """Return the linear maps of the blocks."""
    return [module for block in model.model.layers for module in block.modules() if type(module) is nn.Linear]


def _each(change: Callable[[nn.Linear], object]) -> Wrap:
    def wrap(model: Any) -> nn.Module:
        for module in linears(model):
            change(module)
        return model

    return wrap


class _Larger(nn.Module):
    """A parametrisation."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 1.5 * weight


class _Twice(nn.Linear):
    """What stands in a linear map's place and computes something else."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(rows)


def _replace_forward(module: Any) -> None:
    forward = module.forward
    module.forward = lambda rows: 2 * forward(rows)


def _replace_class(module: nn.Linear) -> None:
    module.__class__ = _Twice


def _buffer_for_weight(module: nn.Linear) -> None:
    weight = module.weight.detach() * 2
    del module.weight
    module.register_buffer("weight", weight)


def _biased(module: nn.Linear) -> None:
    module.bias = nn.Parameter(torch.full((module.out_features,), 0.3))


def _peft(kind: str, **settings: Any) -> Wrap:
    def wrap(model: Any) -> nn.Module:
        import peft

        of_blocks = {id(module) for module in linears(model)}
        names = [name for name, module in model.named_modules() if id(module) in of_blocks]
        torch.manual_seed(1)
        return peft.get_peft_model(model, getattr(peft, kind)(target_modules=names, **settings)).eval()

    return wrap


def _torchao(kind: str) -> Wrap:
    def wrap(model: Any) -> nn.Module:
        from torchao import quantization

        quantization.quantize_(model, getattr(quantization, kind)())
        return model

    return wrap


def _quanto(model: nn.Module) -> nn.Module:
    from optimum import quanto

    quanto.quantize(model, weights=quanto.qint8)
    quanto.freeze(model)
    return model


def _bitsandbytes(model: Any) -> nn.Module:
    from transformers import BitsAndBytesConfig

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        settings = BitsAndBytesConfig(load_in_8bit=True)
        quantised = type(model).from_pretrained(folder, quantization_config=settings, device_map="cpu")
    kinds = {type(module).__name__ for block in quantised.model.layers for module in block.modules()}
    assert "Linear8bitLt" in kinds and "Linear" not in kinds, f"not quantised: {kinds}"
    return quantised.eval()


def _dynamically_quantised(model: nn.Module) -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear})


def _offloaded(model: nn.Module) -> nn.Module:
    from accelerate import cpu_offload

    cpu_offload(model, execution_device=torch.device("cpu"))
    return model


def _functional(model: nn.Module) -> nn.Module:
    """Other parameters than its own, for each call."""
    others = {name: 1.2 * value.detach() for name, value in model.named_parameters()}

    class Called(nn.Module):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return torch.func.functional_call(model, others, args, kwargs)

    return Called()


WRAPPERS: dict[str, Wrapper] = {
    "forward hooks": Wrapper(_each(lambda m: m.register_forward_hook(lambda *seen: 1.5 * seen[-1]))),
    "forward pre-hooks": Wrapper(_each(lambda m: m.register_forward_pre_hook(lambda _, rows: (1.5 * rows[0],)))),
    "a forward of its own": Wrapper(_each(_replace_forward)),
    "a class of its own": Wrapper(_each(_replace_class)),
    "a weight that is no parameter": Wrapper(_each(_buffer_for_weight)),
    "biases": Wrapper(_each(_biased)),
    "parametrisation": Wrapper(_each(lambda m: parametrize.register_parametrization(m, "weight", _Larger()))),
    "weight norm": Wrapper(_each(parametrizations.weight_norm), has_effect=False),
    "spectral norm": Wrapper(_each(parametrizations.spectral_norm)),
    "pruning": Wrapper(_each(partial(prune.l1_unstructured, name="weight", amount=0.5))),
    "compiled modules": Wrapper(_each(lambda m: m.compile(backend="eager")), has_effect=False),
    "torch.func.functional_call": Wrapper(_functional),
    "dynamic quantisation": Wrapper(_dynamically_quantised, quantises_activations=True),
    "accelerate, offloading": Wrapper(_offloaded, "accelerate", has_effect=False),
    "peft, LoRA": Wrapper(_peft("LoraConfig", init_lora_weights=False), "peft"),
    "peft, DoRA": Wrapper(_peft("LoraConfig", init_lora_weights=False, use_dora=True), "peft"),
    "peft, LoHa": Wrapper(_peft("LoHaConfig", init_weights=False), "peft"),
    "peft, LoKr": Wrapper(_peft("LoKrConfig", init_weights=False), "peft"),
    "peft, OFT": Wrapper(_peft("OFTConfig", init_weights=False, oft_block_size=4), "peft"),
    "peft, IA3": Wrapper(_peft("IA3Config", init_ia3_weights=False, feedforward_modules=[]), "peft"),
    "torchao, int8 weights": Wrapper(_torchao("Int8WeightOnlyConfig"), "torchao"),
    "torchao, int8": Wrapper(_torchao("Int8DynamicActivationInt8WeightConfig"), "torchao", quantises_activations=True),
    "quanto, int8 weights": Wrapper(_quanto, "optimum.quanto" if importlib.util.find_spec("optimum") else "optimum"),
    "bitsandbytes, int8": Wrapper(_bitsandbytes, "bitsandbytes", quantises_activations=True),
}
