"""Accuracies."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


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
