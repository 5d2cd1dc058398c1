"""Muon for the matrices of the blocks and AdamW for all else, as one optimizer with one learning rate.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) makes the singular values of every step alike,
which is meant for matrices that map hidden states to hidden states; embeddings, the output projection, norms and biases
keep AdamW. Steps of both are of one size (Liu et al. 2025, Muon is Scalable for LLM Training, arXiv 2502.16982, §2.2,
eq. 4), so that learning rate and schedule are those of AdamW alone.

PyTorch has a Muon, from 2.9 on, that orthogonalises in bfloat16 wherever it runs, which takes ten times as long as a
whole step on processors without such units; this one computes as torch's where there are GPUs, and in f32 elsewhere.
"""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from ..errors import UserError, unknown

OPTIMIZERS = ("adamw", "muon")
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic that drives singular values to about 1 (Jordan et al.)
STEPS = 5


def orthogonalised(matrix: torch.Tensor) -> torch.Tensor:
    """Return nearly U Vᵀ of a matrix U S Vᵀ, by Newton-Schulz iterations: its singular values become 0.7 to 1.2."""
    x = matrix.float() if matrix.device.type == "cpu" else matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp(min=1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum with Nesterov's look ahead, orthogonalised, at 0.2 root mean square per learning rate, as AdamW's."""

    def __init__(self, params: Sequence[torch.Tensor], lr: float, weight_decay: float, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):
        """Take a step."""
        for group in self.param_groups:
            rate, momentum = group["lr"], group["momentum"]
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(matrix.grad)
                mean = state["momentum_buffer"].lerp_(matrix.grad, 1 - momentum)
                ahead = matrix.grad.lerp(mean, momentum)
                matrix.mul_(1 - rate * group["weight_decay"])
                matrix.add_(orthogonalised(ahead), alpha=-rate * 0.2 * max(matrix.shape) ** 0.5)


class Together(torch.optim.Optimizer):
    """Optimizers of different parameters that step, save and load as one."""

    def __init__(self, *parts: torch.optim.Optimizer):
        super().__init__(
            [parameter for part in parts for group in part.param_groups for parameter in group["params"]], {}
        )
        self.parts = parts
        self._share_groups()

    def _share_groups(self):
        """A schedule sets the learning rate in groups, which are those of the parts."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure=None):
        """Step all parts."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the states of all parts, in their order."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()


def check_optimizer(name: str, flags: dict) -> None:
    """Refuse an optimizer that there is not, or flags that it would not follow.

    Args:
        name: `optimizer` of a run.
        flags: of TrainingArguments, as far as they were given.

    Raises:
        UserError: see there.
    """
    if name not in OPTIMIZERS:
        raise unknown("optimizer", name, OPTIMIZERS)
    if name != "muon":
        return
    for given in ("optim", "optim_args", "optim_target_modules", "fsdp"):
        if flags.get(given) and flags[given] != TrainingArguments.__dataclass_fields__[given].default:
            raise UserError(f"optimizer=muon does not go with {given}={flags[given]}; leave one of them out")


def muon(model: nn.Module, arguments: TrainingArguments, decaying: Collection[str]) -> Together:
    """Return the optimizer of a decoder.

    Args:
        model: a decoder, whose blocks are in `layers`.
        arguments: with learning rate, weight decay and AdamW's other values.
        decaying: names of the parameters that decay.
    """
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    matrices = {name for name, parameter in parameters.items() if ".layers." in name and parameter.dim() == 2}
    rest = [
        {
            "params": [
                value for name, value in parameters.items() if name not in matrices and (name in decaying) == decays
            ],
            "weight_decay": arguments.weight_decay if decays else 0.0,
        }
        for decays in (True, False)
    ]
    adamw = torch.optim.AdamW(
        [group for group in rest if group["params"]],
        lr=arguments.learning_rate,
        betas=(arguments.adam_beta1, arguments.adam_beta2),
        eps=arguments.adam_epsilon,
    )
    chosen = [parameter for name, parameter in parameters.items() if name in matrices]
    return Together(Muon(chosen, arguments.learning_rate, arguments.weight_decay), adamw)
