"""What moves the weights: parameter groups, learning rates, their moving average, the precision."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Literal

import torch
from timm.optim import param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from pipeline.config_training import Recipe
from pipeline.learner import Learner
from pipeline.models import VideoModel
from pipeline.objective import TrainingError
from pipeline.totals import Totals

_CONTAINERS = ("blocks", "features", "layers")  # where the libraries keep a network's blocks


@dataclass
class Training:
    """A training between two steps: all that the next one depends on, but for the batches.

    Attributes:
        learner: the network, and the parts beside it.
        optimiser: AdamW.
        schedule: of the learning rate, one step each.
        average: the exponential moving average of the network, or None.
        epochs_done: the next epoch's number.
        steps_done: the number of its next batch.
        totals: what that epoch did so far.
    """

    learner: Learner
    optimiser: torch.optim.Optimizer
    schedule: LRScheduler
    average: ModelEmaV3 | None
    totals: Totals
    epochs_done: int = 0
    steps_done: int = 0

    @property
    def result(self) -> VideoModel:
        """The network to be scored and saved: the average where there is one."""
        return self.learner.model if self.average is None else self.average.module

    def begin_epoch(self, epoch: int) -> None:
        """Stand before an epoch."""
        self.epochs_done, self.steps_done = epoch, 0
        self.totals = Totals(self.totals.classes)


def start_training(
    learner: Learner,
    recipe: Recipe,
    steps_per_epoch: int,
    *,
    layer_decay: float = 1.0,
    decay_positions: bool = True,
) -> Training:
    """A training before its first step.

    Args:
        learner: on its device.
        recipe: epochs, learning rate, … With `ema_decay`, after each step average ← ema_decay ·
            average + (1 - ema_decay) · weights, of the running statistics of the norms too
            (timm's `ModelEmaV3`).
        steps_per_epoch: for the schedule.
        layer_decay: see `make_optimiser`.
        decay_positions: see `make_optimiser`.

    Raises:
        TrainingError: a layer decay for a network without a list of blocks.
    """
    model = learner.model.to(memory_format=torch.channels_last_3d)
    optimiser = make_optimiser(
        learner, recipe, layer_decay=layer_decay, decay_positions=decay_positions
    )
    average = None if recipe.ema_decay is None else ModelEmaV3(model, decay=recipe.ema_decay)
    schedule = make_schedule(optimiser, recipe, steps_per_epoch)
    classes = next(iter(model.heads.values()))
    return Training(learner, optimiser, schedule, average, Totals(classes))


def make_optimiser(
    learner: Learner,
    recipe: Recipe,
    *,
    layer_decay: float = 1.0,
    decay_positions: bool = True,
) -> torch.optim.Optimizer:
    """AdamW without weight decay on biases and norms (timm's grouping).

    Args:
        learner: its parts learn at the full rate.
        recipe: learning rate and weight decay.
        layer_decay: a parameter d blocks below the head learns at layer_decay^d of the rate, as in
            BEiT (arXiv 2106.08254); see `layer_depths`.
        decay_positions: whether positional parameters and class tokens get weight decay where
            they have two dimensions or more; those of one never do.

    Raises:
        TrainingError: a layer decay for a network without a list of blocks.
    """
    model = learner.model
    if layer_decay == 1.0 and decay_positions:
        groups = param_groups_weight_decay(learner, recipe.weight_decay)
        return torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True)
    depths = layer_depths(model) if layer_decay != 1.0 else {}
    top = max(depths.values(), default=0)
    members: dict[tuple[int, bool], list[nn.Parameter]] = defaultdict(list)
    for module in (model, learner.parts):
        for name, parameter in module.named_parameters():
            exempt = parameter.ndim <= 1 or name.endswith(".bias")
            exempt |= not decay_positions and is_positional(name)
            depth = depths[name] if depths and module is model else top
            if parameter.requires_grad:
                members[depth, exempt].append(parameter)
    groups = [
        {
            "params": parameters,
            "weight_decay": 0.0 if exempt else recipe.weight_decay,
            "lr": recipe.learning_rate * layer_decay ** (top - depth),
        }
        for (depth, exempt), parameters in sorted(members.items(), key=lambda item: item[0])
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True)


def layer_depths(model: VideoModel) -> dict[str, int]:
    """The depth of every parameter, by its name.

    With n blocks: the embedding 0, block i (from 0) i + 1, and what follows the blocks n + 1: the
    last norm and the head. timm's own grouping needs a `group_matcher`, which these lack.

    Raises:
        TrainingError: the network has no list of blocks.
    """
    prefix, net = "net.", model.net
    while True:
        children = [name for name, _ in net.named_children()]
        container = next((name for name in _CONTAINERS if name in children), None)
        if container is not None or len(children) != 1:
            break
        prefix, net = f"{prefix}{children[0]}.", getattr(net, children[0])  # a wrapper
    if container is None:
        raise TrainingError(
            f"{model.name} has no list of blocks to count layers by ({', '.join(children)}); "
            "set layer_decay to 1.0"
        )
    after = len(getattr(net, container)) + 1
    depths = {}
    for name, _ in model.named_parameters():
        child, _, rest = name.removeprefix(prefix).partition(".")
        if child == container:
            depths[name] = int(rest.partition(".")[0]) + 1
        elif child in children:
            depths[name] = 0 if children.index(child) < children.index(container) else after
        else:  # the network's own, as a position embedding is
            depths[name] = 0
    return depths


def is_positional(name: str) -> bool:
    """Whether a parameter tells tokens apart by their place, or is a class token, by its name."""
    last = name.rpartition(".")[2]
    return re.search(r"(^|_)(pos|position|token)(_|$)", last) is not None


def make_schedule(
    optimiser: torch.optim.Optimizer, recipe: Recipe, steps_per_epoch: int
) -> LRScheduler:
    """Warm-up from a 25th of the rate over `warmup_share` of the steps, then decay to 0.

    Both follow half a cosine, as torch's `OneCycleLR` does; that one divides by 0 where the
    warm-up is exactly one step.
    """
    steps = recipe.epochs * steps_per_epoch
    peak = recipe.warmup_share * (steps + 1) - 1  # the step of the greatest rate, from 0

    def share(step: int) -> float:
        if step > steps:
            raise TrainingError(f"an epoch holds more than the {steps_per_epoch} batches announced")
        if step < peak:
            return 1 - (1 - 1 / 25) * _half_cosine(step / peak)
        return _half_cosine((step - peak) / (steps - peak))

    return LambdaLR(optimiser, share)


def _half_cosine(way: float) -> float:
    """From 1 at 0 to 0 at 1."""
    return (1 + math.cos(math.pi * way)) / 2


def uses_bf16(precision: Literal["fp32", "bf16", "auto"], device: torch.device) -> bool:
    """Whether the forward pass runs under bfloat16 autocast; the weights are float32 in any case.

    `auto` means bf16 on a GPU that computes in it, fp32 elsewhere: CPUs mostly emulate it.

    Raises:
        TrainingError: bf16 on a GPU that cannot.
    """
    if precision == "fp32":
        return False
    cuda: Any = torch.cuda
    able = device.type == "cuda" and cuda.is_bf16_supported(including_emulation=False)
    if precision == "bf16" and device.type == "cuda" and not able:
        raise TrainingError(f"precision bf16: {device} does not compute in it; use fp32")
    return able or precision == "bf16"
