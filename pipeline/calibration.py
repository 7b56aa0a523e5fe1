"""Calibration: is a network as often right as it says, and would a temperature make it so?

Guo et al. 2017, "On Calibration of Modern Neural Networks" (arXiv 1706.04599): the expected
calibration error over bins of confidence, and temperature scaling.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics import finite

BINS = 15
LOWEST, HIGHEST = 0.05, 20.0  # temperatures; a network that is always right would have 0
_CLOSE = 1e-6  # of a Newton step, relative: what is left after it is its square
_STEPS = 100

Logits = Mapping[str, NDArray[np.floating]]
Labels = Mapping[str, NDArray[np.int64]]


@dataclass(frozen=True)
class Reliability:
    """What a network says of itself, and what is true, by bins of confidence.

    Attributes:
        edges: (B + 1,), equally wide from 0 to 1; a bin holds its upper edge, not its lower one.
        videos: (B,), how many answers have such a confidence.
        confidence: (B,), their mean; NaN of an empty bin.
        accuracy: (B,), the share of them that is right; NaN of an empty bin.
    """

    edges: NDArray[np.float64]
    videos: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    @property
    def ece(self) -> float | None:
        """The mean distance of accuracy from confidence, by videos; None where there are none."""
        there = self.videos > 0
        if not there.any():
            return None
        gaps = np.abs(self.accuracy[there] - self.confidence[there])
        return float(np.average(gaps, weights=self.videos[there]))


@dataclass(frozen=True)
class Calibration:
    """A network before and after temperature scaling.

    Attributes:
        temperature: fitted on all videos: what to divide the logits by; None of fewer than two.
        before: of the logits as they are.
        after: each half of the videos scaled by what the other half gave; None of fewer than two.
    """

    temperature: float | None
    before: Reliability
    after: Reliability | None


def calibrate(
    logits: Logits, labels: Labels, right: NDArray[np.bool_], videos: Sequence[str]
) -> Calibration:
    """Calibration by two-fold cross-fitting: no answer is judged by a temperature that saw it.

    Broken answers, in which any logit is not finite, say no confidence and are left out.

    Args:
        logits: by head (N, K_head); of several views the logarithm of their mean probabilities.
        labels: by head (N,).
        right: (N,), whether all heads are.
        videos: of each row; stretches of one video are kept in one half.
    """
    kept = finite(logits)
    logits = {head: values[kept].astype(np.float64) for head, values in logits.items()}
    labels = {head: values[kept] for head, values in labels.items()}
    before = reliability(confidences(logits), right[kept])
    second = halves([video for video, there in zip(videos, kept, strict=True) if there])
    if second.all() or not second.any():
        return Calibration(None, before, None)
    temperature = fit_temperature(logits, labels)
    scaled = np.zeros(len(second))
    for half in (second, ~second):
        other = fit_temperature(
            {head: values[~half] for head, values in logits.items()},
            {head: values[~half] for head, values in labels.items()},
            start=temperature,
        )
        scaled[half] = confidences({head: values[half] for head, values in logits.items()}, other)
    return Calibration(temperature, before, reliability(scaled, right[kept]))


def halves(videos: Sequence[str]) -> NDArray[np.bool_]:
    """Which rows are of the second half of the videos.

    The videos are dealt out in turn in the order of the sha256 of their names: the same videos
    have the same halves, in whatever order, and neighbours of one class do not stay together.

    Args:
        videos: of each row.

    Returns:
        (N,)
    """
    ordered = sorted(set(videos), key=lambda video: hashlib.sha256(video.encode()).digest())
    second = set(ordered[1::2])
    return np.array([video in second for video in videos], np.bool_)


def confidences(logits: Logits, temperature: float = 1.0) -> NDArray[np.float64]:
    """The probability of the highest answer (N,), with several heads the product of theirs.

    Args:
        logits: by head (N, K_head), finite.
        temperature: divides them.
    """
    confidence = np.ones(len(next(iter(logits.values()))))
    for values in logits.values():
        shifted = values.astype(np.float64) - values.max(axis=1, keepdims=True)
        confidence /= np.exp(shifted / temperature).sum(axis=1)
    return confidence


def reliability(
    confidence: NDArray[np.float64], right: NDArray[np.bool_], bins: int = BINS
) -> Reliability:
    """Sort answers into bins of confidence.

    Args:
        confidence: (N,), in (0, 1].
        right: (N,)
        bins: how many.
    """
    edges = np.linspace(0.0, 1.0, bins + 1)
    places = np.digitize(confidence, edges[1:-1], right=True)
    videos, sums, hits = (
        np.bincount(places, weights, bins) for weights in (None, confidence, right)
    )
    means = [
        np.divide(total, videos, out=np.full(bins, np.nan), where=videos > 0)
        for total in (sums, hits)
    ]
    return Reliability(edges, videos.astype(np.int64), *means)


def fit_temperature(logits: Logits, labels: Labels, start: float = 1.0) -> float:
    """The temperature that makes the labels likeliest: Newton's method between two bounds.

    The mean of −log softmax(βz)[label] is convex in β = 1 / temperature. Its slope is the mean of
    E[z] − z[label], its curvature the mean of Var[z], both under softmax(βz); of several heads
    they add up. It has no minimum in between where every answer is right, or where they are
    no better than chance; then the temperature is a bound, `LOWEST` or `HIGHEST`.

    Args:
        logits: by head (N, K_head), finite, at least one row.
        labels: by head (N,).
        start: where to begin.
    """
    shifted = {head: values - values.max(axis=1, keepdims=True) for head, values in logits.items()}
    low, high, inverse = 1 / HIGHEST, 1 / LOWEST, 1 / start
    for _ in range(_STEPS):
        slope, curvature = _slope_and_curvature(shifted, labels, inverse)
        if slope == 0:  # also where nothing depends on it, as with a single class
            break
        low, high = (low, inverse) if slope > 0 else (inverse, high)
        tried = inverse - slope / curvature if curvature > 0 else math.inf
        before, inverse = inverse, tried if low < tried < high else math.sqrt(low * high)
        if abs(inverse - before) <= _CLOSE * before:
            break
    return 1 / inverse


def _slope_and_curvature(shifted: Logits, labels: Labels, inverse: float) -> tuple[float, float]:
    slope = curvature = 0.0
    for head, values in shifted.items():
        weights = np.exp(values * inverse)
        total = weights.sum(axis=1)
        weights *= values
        mean = weights.sum(axis=1) / total
        weights *= values
        square = weights.sum(axis=1) / total
        own = np.take_along_axis(values, labels[head][:, None], axis=1)[:, 0]
        slope += float(np.mean(mean - own))
        curvature += float(np.mean(square - mean**2))
    return slope, curvature
