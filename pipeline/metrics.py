"""Accuracies, agreement, confusions, and what several views of a video answer together."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

NO_ANSWER = -1  # of a network whose output is not finite
_LAST = np.iinfo(np.int64).max  # the rank of a label that no number of answers reaches
_AT_ONCE = 128  # rows whose joint scores are held at a time: 97 × 300 each with EPIC's heads


def label_ranks(
    logits: Mapping[str, NDArray[np.floating]], labels: Mapping[str, NDArray[np.int64]]
) -> NDArray[np.int64]:
    """How many other answers are not behind the label: 0 is right, below 5 is among the top five.

    Ties count against the row, so a constant answer scores nothing; neither does a broken one, in
    which any logit is not finite. Of several heads together a tuple of classes has the product of
    the heads' probabilities: with `verb` and `noun` it is the action of EPIC-KITCHENS-100 (arXiv
    2006.13256), over all pairs of a verb and a noun.

    Args:
        logits: by head (N, K_head).
        labels: by head (N,), in the same order of heads.

    Returns:
        (N,)
    """
    found: NDArray[np.int64] = np.concatenate(
        [
            _ranks_of_part(
                {head: values[start : start + _AT_ONCE] for head, values in logits.items()},
                {head: values[start : start + _AT_ONCE] for head, values in labels.items()},
            )
            for start in range(0, max(1, len(next(iter(labels.values())))), _AT_ONCE)
        ]
    )
    found[~finite(logits)] = _LAST
    return found


def _ranks_of_part(
    logits: Mapping[str, NDArray[np.floating]], labels: Mapping[str, NDArray[np.int64]]
) -> NDArray[np.int64]:
    scores, own = next(iter(logits.values())), next(iter(labels.values()))
    for head in list(logits)[1:]:
        # The logarithm of a product, less a constant of the row, which no rank depends on.
        values = logits[head].astype(np.float64)
        with np.errstate(invalid="ignore"):  # of broken rows
            sums = scores.astype(np.float64)[:, :, None] + values[:, None]
        scores = sums.reshape(len(sums), sums.shape[1] * sums.shape[2])
        own = own * values.shape[1] + labels[head]
    of_label = np.take_along_axis(scores, own[:, None], axis=1)
    ahead: NDArray[np.int64] = (~(scores < of_label)).sum(axis=1) - 1  # less the label itself
    return ahead


def top_k(ranks: NDArray[np.int64], k: int) -> float:
    """Share of rows whose label is among the k highest answers.

    Args:
        ranks: (N,), see `label_ranks`.
        k: how many answers count; as many as there are classes always hold the label.

    Raises:
        ValueError: there are no rows.
    """
    if len(ranks) == 0:
        raise ValueError("no rows to score")
    return float(np.mean(ranks < k))


def mean_class_accuracy(
    right: NDArray[np.bool_], labels: NDArray[np.int64], counts: NDArray[np.floating]
) -> NDArray[np.float64]:
    """The mean over classes of each class's accuracy, over those classes that have rows.

    Args:
        right: (N, R), of each of R networks.
        labels: (N,), the class of a row; any numbers.
        counts: (S, N), in each of S resamples, how often a row counts; of the rows as they are,
            `np.ones((1, N))`.

    Returns:
        (S, R)
    """
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order], prepend=labels.min() - 1))
    ordered = counts[:, order]
    rows = np.add.reduceat(ordered, starts, axis=1)
    there = rows > 0
    means = []
    for of_network in right[order].T:
        hits = np.add.reduceat(ordered * of_network, starts, axis=1)
        shares = np.divide(hits, rows, out=np.zeros_like(rows), where=there)
        means.append(shares.sum(axis=1) / there.sum(axis=1))
    return np.stack(means, axis=1)


def answers(logits: NDArray[np.floating]) -> NDArray[np.int64]:
    """The class of the highest logit, the first of several (N,); `NO_ANSWER` of a broken row.

    Args:
        logits: (N, K).
    """
    return np.where(finite({"": logits}), logits.argmax(axis=1), NO_ANSWER)


def finite(logits: Mapping[str, NDArray[np.floating]]) -> NDArray[np.bool_]:
    """Which rows are finite in all heads (N,).

    Args:
        logits: by head (N, K_head).
    """
    checked: NDArray[np.bool_] = np.all(
        [np.isfinite(values).all(axis=1) for values in logits.values()], axis=0
    )
    return checked


def agreement(
    one: Mapping[str, NDArray[np.int64]], other: Mapping[str, NDArray[np.int64]]
) -> float:
    """Share of rows that two networks answer alike, in all heads; a broken answer is like none.

    Args:
        one: by head (N,), see `answers`.
        other: the same of the other network.
    """
    alike = [(one[head] == other[head]) & (one[head] != NO_ANSWER) for head in one]
    return float(np.mean(np.all(alike, axis=0)))


def confusion_counts(
    labels: NDArray[np.int64], answers: NDArray[np.int64], classes: int
) -> NDArray[np.int64]:
    """How often each class was answered for each, without broken answers.

    Args:
        labels: (N,)
        answers: (N,), see `answers`.
        classes: how many there are, K.

    Returns:
        (K, K): of label, then answer.
    """
    given = answers != NO_ANSWER
    pairs = np.bincount(labels[given] * classes + answers[given], minlength=classes * classes)
    return pairs.reshape(classes, classes)


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
