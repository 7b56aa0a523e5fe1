"""Frames resized as the published models were evaluated: bilinear, no antialiasing, on uint8.

It is torch's `interpolate`, whose uint8 kernel works in whole numbers: the same here in numpy, to
the bit, for a process that has no other need of torch, whose import takes seconds.
"""

from __future__ import annotations

import sys

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
    count, height, width, channels = frames.shape
    if height != size:  # only the rows that are needed
        above, below, weights, bits = _taps(height, size)
        rows, places = np.unique(np.stack([above, below]), return_inverse=True)
        upper, lower = places.reshape(2, size)
        frames = frames[:, rows]
    if width != size:
        left, right, across, places_of = _taps(width, size)
        frames = _weighed(frames[:, :, left], frames[:, :, right], across[..., None], places_of)
    if height != size:
        flat = frames.reshape(count, len(rows), size * channels)
        flat = _weighed(flat[:, upper], flat[:, lower], weights[..., None], bits)
        frames = flat.reshape(count, size, size, channels)
    return frames


def _taps(length: int, size: int) -> tuple[NDArray[np.int64], ...]:
    """Of each place among `size`: its two neighbours among `length`, and their weights.

    Returns:
        (size,) each the neighbours, (2, size) int32 their weights, and the bits of their fraction.
    """
    at = np.maximum((np.arange(size) + 0.5) * (length / size) - 0.5, 0.0)
    first = np.minimum(at.astype(np.int64), length - 1)
    second = np.minimum(first + 1, length - 1)
    share = np.where(first == second, 0.0, np.clip(at - first, 0.0, 1.0))
    weights = np.stack([1 - share, share])
    bits = 0
    while bits < _MOST_BITS and 0.5 + weights.max() * (1 << (bits + 1)) < 1 << 15:
        bits += 1
    return first, second, (weights * (1 << bits) + 0.5).astype(np.int32), bits


def _weighed(
    one: NDArray[np.uint8], other: NDArray[np.uint8], weights: NDArray[np.int32], bits: int
) -> NDArray[np.uint8]:
    """The mean of neighbours by their weights, rounded."""
    total = one * weights[0]
    total += other * weights[1]
    total += 1 << (bits - 1)
    total >>= bits
    return total.astype(np.uint8)
