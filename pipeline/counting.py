"""Parameters, FLOPs (by fvcore) and shapes of features of a network."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.model_interface import VideoModel
from pipeline.views import ClipSpec

_ATEN: Any = torch.ops.aten
_DRAWS = {_ATEN.normal_.default, _ATEN.uniform_.default}


class ShapesOnly(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within it convolutions and products of matrices answer zeros of the right shape, at once.

    Weights that would be drawn at random are 0. So a network of 300 GFLOPs is built in a second and
    its shapes are known in another; its outputs mean nothing. fvcore cannot count within it: the
    tracer does not see the convolutions.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Answer one operation."""
        if func in _DRAWS:  # not left as allocated: `trunc_normal_` draws until all are in range
            return args[0].zero_()
        shape = _shape_of_product(func, args)
        if shape is None:
            return func(*args, **(kwargs or {}))
        return args[0].new_zeros([int(size) for size in shape])


def _shape_of_product(func: Callable[..., Any], args: Sequence[Any]) -> list[int] | None:
    """The shape of what a costly operation answers; None for all others."""
    if func is _ATEN.mm.default or func is _ATEN.bmm.default:
        return [*args[0].shape[:-1], args[1].shape[-1]]
    if func is _ATEN.addmm.default:
        return [args[1].shape[0], args[2].shape[1]]
    if func is _ATEN.convolution.default and not args[6]:  # not transposed
        clips, weight, _, stride, padding, dilation = args[:6]
        axes = zip(clips.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
        sizes = [(int(n) + 2 * p - d * (int(k) - 1) - 1) // s + 1 for n, k, s, p, d in axes]
        return [clips.shape[0], weight.shape[0], *sizes]
    return None


def count_parameters(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_flops(model: VideoModel, clip: ClipSpec | None = None) -> int:
    """Multiply-adds of one clip, the field's "FLOPs", counted in evaluation mode.

    Args:
        model: the network.
        clip: its frames and size; by default the network's own clip.
    """
    clip = clip or model.clip
    device = next(model.parameters()).device
    example = torch.zeros(1, 3, clip.frames, clip.size, clip.size, device=device)
    return multiply_adds(model, example)


def multiply_adds(module: nn.Module, example: Tensor) -> int:
    """Multiply-adds of a module for an example, counted by fvcore in evaluation mode.

    fvcore traces a forward pass, so this takes as long as one.
    """
    from fvcore.nn import FlopCountAnalysis  # noqa: PLC0415 (slow to import, seldom needed)

    modes = {part: part.training for part in module.modules()}  # parts may be frozen
    module.eval()
    analysis = FlopCountAnalysis(module, example)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.set_op_handle("aten::scaled_dot_product_attention", _attention_flops)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # torch.jit.trace, which fvcore uses, warns
            return int(analysis.total())
    finally:
        for part, training in modes.items():
            part.training = training


def _attention_flops(inputs: list[Any], _outputs: list[Any]) -> int:
    """Queries (…, L, E) by keys (…, S, E), and what they weigh by values (…, S, V)."""
    query, key, value = (tensor.type().sizes() for tensor in inputs[:3])
    return int(math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1]))


def feature_shapes(model: VideoModel) -> tuple[int, tuple[int, ...]]:
    """C_pooled and (C_map, T, H, W) of one clip of the model's own size, without arithmetic."""
    clip = model.clip
    example: Tensor = torch.zeros(1, 3, clip.frames, clip.size, clip.size)
    with torch.no_grad(), ShapesOnly():
        answer = model.features(example)
    return int(answer.pooled.shape[1]), tuple(int(size) for size in answer.map.shape[1:])
