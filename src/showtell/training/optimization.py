"""AdamW, the learning-rate schedule and the moving average of the weights."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

Schedule = Literal["constant", "linear", "cosine"]
Tensors = tuple[Tensor, ...] | list[Tensor]


@dataclass(frozen=True, slots=True)
class Optimization:
    """The ``optim`` group of the configuration.

    Attributes:
        lr: peak learning rate of AdamW, reached after the warm-up.
        encoder_lr: the same for the encoder's upper stages; None leaves the encoder frozen.
        weight_decay: decoupled weight decay of the matrices (Loshchilov and Hutter 2019); biases,
            norms, word vectors and the encoder are not decayed.
        schedule: course of the rate from the warm-up to the last step of ``max_epochs``.
        warmup_epochs: epochs (or a part of one) over which the rate rises linearly from 0.
        final_lr_fraction: share of ``lr`` left at the last step of a linear or cosine schedule.
        gradient_clip: largest allowed norm of all gradients together, separately for the decoder
            and a trained encoder; None does not clip.
        averaging: decay of the exponential moving average (EMA) of the weights, which is validated
            and saved in place of the weights; 0 for no averaging.
    """

    lr: float
    encoder_lr: float | None
    weight_decay: float
    schedule: Schedule
    warmup_epochs: float
    final_lr_fraction: float
    gradient_clip: float | None
    averaging: float

    def __post_init__(self) -> None:
        rules = {
            "lr must be at least 0": self.lr >= 0,
            "encoder_lr must be at least 0, or null": (
                self.encoder_lr is None or self.encoder_lr >= 0
            ),
            "weight_decay must be at least 0": self.weight_decay >= 0,
            "warmup_epochs must be at least 0": self.warmup_epochs >= 0,
            "final_lr_fraction must lie in 0..1": 0 <= self.final_lr_fraction <= 1,
            "gradient_clip must be above 0, or null": (
                self.gradient_clip is None or self.gradient_clip > 0
            ),
            "averaging must be at least 0 and below 1": 0 <= self.averaging < 1,
        }
        for rule, holds in rules.items():
            if not holds:
                raise ValueError(rule)

    def optimizer(self, module: nn.Module, encoder: nn.Module | None = None) -> torch.optim.AdamW:
        """AdamW over all parameters of ``module``, even frozen ones, which may be unfrozen later.

        Of ``encoder`` only the parameters that require gradients, with rate ``encoder_lr``.
        """
        decayed, plain = _by_decay(module.named_parameters())
        groups: list[dict[str, Any]] = [
            {"params": decayed, "weight_decay": self.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        if encoder is not None:
            learning = [p for p in encoder.parameters() if p.requires_grad]
            groups.append({"params": learning, "weight_decay": 0.0, "lr": self.encoder_lr})
        # Fused: one pass over the weights instead of ten. On a GPU it would unscale the gradients
        # of 16-mixed itself, after clipping, and PyTorch's default is as fast there.
        on_cpu = all(parameter.device.type == "cpu" for parameter in decayed)
        if on_cpu:
            _ask_for_no_driver()
        return torch.optim.AdamW(
            groups, lr=self.lr, betas=(0.9, 0.999), eps=1e-8, fused=on_cpu or None
        )

    def averaged(self, module: nn.Module) -> AveragedModel | None:
        """The EMA of ``module``, advanced by ``update_parameters``; None without averaging."""
        if not self.averaging:
            return None
        copy = AveragedModel(module, multi_avg_fn=self._move)
        copy.requires_grad_(False)
        return copy

    @torch.no_grad()
    def _move(self, means: Tensors, weights: Tensors, steps: Tensor | int) -> None:
        """Advance the EMA by one step, with decay min(averaging, (1 + steps) / (10 + steps)).

        The bound, that of TensorFlow's ``ExponentialMovingAverage``, limits the average to about a
        tenth of the steps so far, so that the initial weights are soon forgotten.
        """
        kept = min(self.averaging, (1 + int(steps)) / (10 + int(steps)))
        torch._foreach_lerp_(means, weights, 1 - kept)

    def scheduler(
        self, optimizer: torch.optim.Optimizer, *, steps_per_epoch: int, epochs: int
    ) -> LambdaLR:
        """The learning-rate schedule of a training of ``epochs``, stepped every optimizer step."""
        warmup_steps = self.warmup_epochs * steps_per_epoch
        total_steps = steps_per_epoch * epochs

        def fraction(step: int) -> float:
            if step < warmup_steps:
                return (step + 1) / (warmup_steps + 1)
            progress = (step - warmup_steps) / max(1.0, total_steps - warmup_steps)
            return self._fraction_after_warmup(min(1.0, progress))

        return LambdaLR(optimizer, fraction)

    def _fraction_after_warmup(self, progress: float) -> float:
        """Share of ``lr`` after ``progress`` (0..1) of the steps that follow the warm-up."""
        if self.schedule == "constant":
            return 1.0
        left = (
            1.0 - progress if self.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
        )
        return self.final_lr_fraction + (1.0 - self.final_lr_fraction) * left


def _ask_for_no_driver() -> None:
    """Where there is no GPU, keep AdamW from looking for NVIDIA's library in every step.

    It asks whether there is a GPU, and Lightning makes PyTorch ask that library, process-wide: a
    search of 0.7 ms where it is missing.
    """
    if not torch.cuda.is_available():
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"


def clip_gradients(parameters: Iterable[nn.Parameter], largest: float) -> Tensor:
    """``clip_grad_norm_``, but on a CPU gradients within the norm are not multiplied by 1.

    Returns the norm of all gradients before clipping.
    """
    clipped = [parameter for parameter in parameters if parameter.grad is not None]
    norm = get_total_norm([p.grad for p in clipped if p.grad is not None])
    # On a GPU to compare would wait for the norm.
    if norm.device.type != "cpu" or not norm <= largest:
        clip_grads_with_norm_(clipped, largest, norm)
    return norm


def _by_decay(
    parameters: Iterable[tuple[str, nn.Parameter]],
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Split the parameters into matrices that multiply activations, and everything else."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in parameters:
        is_word = "embedding.vectors" in name or "embedding.extension" in name
        is_matrix = parameter.dim() >= 2 and not is_word
        (decayed if is_matrix else plain).append(parameter)
    return decayed, plain
