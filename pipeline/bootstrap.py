"""Intervals by bootstrap over videos: what would other test videos of the kind have given?

Efron's percentile interval. Whole videos are drawn, with all of their stretches, because stretches
of one video resemble each other: drawn one by one they would make intervals too narrow (the
cluster bootstrap; Davison & Hinkley 1997, "Bootstrap Methods and their Application", 3.8).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

SAMPLES = 2000
SEED = 0
LEVEL = 0.95
_AT_ONCE = 2**20  # numbers of a part of the resamples


def resamples(
    videos: Sequence[str], samples: int = SAMPLES, seed: int = SEED
) -> Iterator[NDArray[np.float64]]:
    """How often each row counts in each resample of the videos.

    A resample has as many videos as there are, each drawn with replacement. It depends on the
    videos' names and the seed, not on the order of the rows: what is computed from the same
    resamples is paired.

    Args:
        videos: of each row (N,).
        samples: how many resamples, S.
        seed: of numpy's default generator.

    Yields:
        (S', N), whole numbers; all parts together have S of them.
    """
    names, video_of_row = np.unique(np.asarray(videos), return_inverse=True)
    generator = np.random.default_rng(seed)
    part = max(1, _AT_ONCE // len(video_of_row))
    for start in range(0, samples, part):
        shape = (min(part, samples - start), len(names))
        drawn = generator.integers(len(names), size=shape)
        drawn += len(names) * np.arange(shape[0])[:, None]
        counts = np.bincount(drawn.ravel(), minlength=shape[0] * shape[1]).reshape(shape)
        yield counts[:, video_of_row].astype(np.float64)


def shares(counts: NDArray[np.float64], hits: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The share of hits in each resample (S, R).

    Args:
        counts: (S, N), see `resamples`.
        hits: (N, R)
    """
    found: NDArray[np.float64] = (counts @ hits) / counts.sum(axis=1, keepdims=True)
    return found


def interval(values: NDArray[np.float64], level: float = LEVEL) -> tuple[float, float]:
    """The quantiles that leave out as much below as above.

    Args:
        values: (S,), of each resample.
        level: the share that lies within.
    """
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
