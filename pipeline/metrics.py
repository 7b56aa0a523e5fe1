"""Accuracies, and what several views of a video answer together."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

_AT_ONCE = 128  # rows whose joint scores are held at a time: 97 × 300 each with EPIC's heads


def top_k(logits: NDArray[np.floating], labels: NDArray[np.int64], k: int) -> float:
    """Share of rows whose label is among the k highest logits.

    Ties count against the row, and NaN counts as a tie with everything, so a constant or a broken
    answer scores nothing.

    Args:
        logits: (N, K).
        labels: (N,).
        k: how many answers count; K or more of them always hold the label.

    Raises:
        ValueError: there are no rows.
    """
    if len(labels) == 0:
        raise ValueError("no rows to score")
    own = logits[np.arange(len(labels)), labels]
    ahead = (~(logits < own[:, None])).sum(axis=1) - 1  # all that are not behind, less the label
    return float(np.mean(ahead < k))


def mean_of_views(logits: NDArray[np.floating]) -> NDArray[np.float32]:
    """What several views of a video answer together: the logarithm of their mean probabilities.

    The published scores of several views are of the sum of softmax probabilities: SlowFast's
    networks end in a softmax at test time and `TestMeter` adds with `ensemble_method="sum"`
    (https://github.com/facebookresearch/SlowFast/blob/main/slowfast/utils/meters.py); torchvision's
    reference adds `torch.softmax(output)` by video
    (https://github.com/pytorch/vision/blob/main/references/video_classification/train.py).

    Args:
        logits: (V, K), of each view.

    Returns:
        (K,): its softmax is the mean of the views' softmax.

    Raises:
        ValueError: there are no views.
    """
    if len(logits) == 0:
        raise ValueError("no views to average")
    exact = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):  # what is not finite stays so, and scores nothing
        shifted = exact - exact.max(axis=1, keepdims=True)
        logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        mean: NDArray[np.float64] = np.logaddexp.reduce(logs, axis=0) - np.log(len(logits))
    return mean.astype(np.float32)


def joint_top_k(
    logits: Mapping[str, NDArray[np.floating]], labels: Mapping[str, NDArray[np.int64]], k: int
) -> float:
    """Top-k of all heads together: a tuple of classes has the product of the heads' probabilities.

    With the heads `verb` and `noun` it is the action accuracy of EPIC-KITCHENS-100 (arXiv
    2006.13256), over all pairs of a verb and a noun; with a single head it is `top_k`.

    Args:
        logits: by head (N, K_head).
        labels: by head (N,), in the same order of heads.
        k: how many answers count.

    Raises:
        ValueError: there are no rows.
    """
    rows = len(next(iter(labels.values())))
    if len(logits) == 1 or rows == 0:
        return top_k(next(iter(logits.values())), next(iter(labels.values())), k)
    hits = 0.0
    for start in range(0, rows, _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        scores = np.zeros((len(range(*part.indices(rows))), 1))
        label = np.zeros(len(scores), np.int64)
        for head, values in logits.items():
            # The logarithm of a product, less a constant of the row, which no rank depends on.
            sums = scores[:, :, None] + values[part].astype(np.float64)[:, None]
            scores = sums.reshape(len(sums), -1)
            label = label * values.shape[1] + labels[head][part]
        hits += top_k(scores, label, k) * len(label)
    return hits / rows
