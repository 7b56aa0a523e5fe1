"""Frames resized as the published models were evaluated: bilinear, no antialiasing, on uint8.

It is torch's `interpolate`, whose uint8 kernel works in whole numbers: the same here in numpy, to
the bit, for a process that has no other need of torch, whose import takes seconds.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_MOST_BITS = 22  # of a weight's fraction; fewer, where a weight would not fit int16


def resize(frames: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize frames to a square; by torch where it is loaded, as it is many times faster.

    Args:
        frames: (T, H, W, 3) uint8.
        size: pixels, width and height.

    Returns:
        (T, size, size, 3) uint8; maybe not contiguous.
    """
    return by_torch(frames, size) if "torch" in sys.modules else by_numpy(frames, size)


def by_torch(frames: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """`resize` by `torch.nn.functional.interpolate`."""
    import torch  # noqa: PLC0415  # see above

    # Copied, as torch resizes a box within wider rows plane by plane: the same bytes, but slower.
    planes = torch.from_numpy(frames.copy()).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(
        planes, size=(size, size), mode="bilinear", align_corners=False
    )
    found: NDArray[np.uint8] = resized.permute(0, 2, 3, 1).numpy()
    return found


def by_numpy(frames: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """`resize` by numpy: columns first, rounded to uint8, then rows, as torch has it.

    `upsample_avx_bilinear_bicubic_uint8` and `_compute_index_ranges_int16_weights` in
    https://github.com/pytorch/pytorch/blob/main/aten/src/ATen/native/cpu/UpSampleKernel.cpp
    """
    height, width = frames.shape[1:3]
    down, across = _Taps.of(height, size), _Taps.of(width, size)
    if height != size:  # only the rows that are needed
        rows, places = np.unique(np.stack([down.first, down.second]), return_inverse=True)
        frames = frames[:, rows]
        first, second = places.reshape(2, size)
        down = down._replace(first=first, second=second)
    if width != size:
        frames = _weighed(frames[:, :, across.first], frames[:, :, across.second], across)
    if height != size:
        flat = frames.reshape(*frames.shape[:2], -1)
        flat = _weighed(flat[:, down.first], flat[:, down.second], down)
        frames = flat.reshape(len(frames), size, size, 3)
    return frames


class _Taps(NamedTuple):
    """Of each place of the result, along one axis: what it is made of.

    Attributes:
        first: (size,), one neighbour.
        second: (size,), the one behind it; at the edge the same.
        weights: (2, size, 1) int32.
        bits: of the weights' fraction.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    weights: NDArray[np.int32]
    bits: int

    @classmethod
    def of(cls, length: int, size: int) -> _Taps:
        """Those of a resize from `length` to `size`."""
        at = np.maximum((np.arange(size) + 0.5) * (length / size) - 0.5, 0.0)
        first = np.minimum(at.astype(np.int64), length - 1)
        second = np.minimum(first + 1, length - 1)
        share = np.where(first == second, 0.0, np.clip(at - first, 0.0, 1.0))
        weights = np.stack([1 - share, share])[..., None]
        bits = 0
        while bits < _MOST_BITS and 0.5 + weights.max() * (1 << (bits + 1)) < 1 << 15:
            bits += 1
        return cls(first, second, (weights * (1 << bits) + 0.5).astype(np.int32), bits)


def _weighed(one: NDArray[np.uint8], other: NDArray[np.uint8], taps: _Taps) -> NDArray[np.uint8]:
    """The mean of neighbours by their weights, rounded."""
    total: NDArray[np.int32] = one * taps.weights[0]
    total += other * taps.weights[1]
    total += 1 << (taps.bits - 1)
    total >>= taps.bits
    return total.astype(np.uint8)
