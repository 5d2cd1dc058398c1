"""Muon for the matrices of the blocks and AdamW for all else, as one optimizer with one learning rate.

Muon (Jordan et al. 2024) makes the singular values of every step alike, which is meant for matrices that map hidden
states to hidden states; embeddings, the output projection, norms and biases keep AdamW. Steps of both are of one size
(Liu et al. 2025, Muon is Scalable for LLM Training, arXiv 2502.16982, §2.2, eq. 4), so that learning rate and schedule
are those of AdamW alone. Muon itself is PyTorch's.
"""

from collections.abc import Collection
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from ..errors import UserError, unknown

OPTIMIZERS = ("adamw", "muon")


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
    def step(self, closure: None = None) -> None:
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
    if not hasattr(torch.optim, "Muon"):
        raise UserError(f"optimizer=muon needs torch 2.9, and this is {torch.__version__}; pip install -U torch")
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
    return Together(
        torch.optim.Muon(
            [parameters[name] for name in parameters if name in matrices], lr=arguments.learning_rate,
            weight_decay=arguments.weight_decay, adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(
            [group for group in rest if group["params"]], lr=arguments.learning_rate,
            betas=(arguments.adam_beta1, arguments.adam_beta2), eps=arguments.adam_epsilon,
        ),
    )  # fmt: skip
