"""Accuracies and confusions against tables made by hand and against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.metrics import (
    NO_ANSWER,
    agreement,
    answers,
    confusion_counts,
    label_ranks,
    mean_class_accuracy,
    mean_of_views,
    top_k,
)

LOGITS = np.array(
    [
        [9.0, 5.0, 1.0, 0.0],  # label 0: first
        [5.0, 9.0, 1.0, 0.0],  # label 0: second
        [5.0, 6.0, -2.0, 7.0],  # label 2: last
        [-1.0, -4.0, -3.0, -2.0],  # label 2: third
    ]
)
LABELS = np.array([0, 0, 2, 2])


def share(logits: NDArray[np.floating], labels: NDArray[np.int64], k: int) -> float:
    """Top-k of one head."""
    return top_k(label_ranks({"action": logits}, {"action": labels}), k)


@pytest.mark.parametrize(
    ("k", "expected"), [(1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0), (5, 1.0), (400, 1.0)]
)
def test_top_k_by_hand(k: int, expected: float) -> None:
    assert share(LOGITS, LABELS, k) == expected


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_against_torch(k: int, dtype: type[np.floating]) -> None:
    rng = np.random.default_rng(0)
    # Every row a shuffled 0, 1, … 10: no ties in any precision.
    logits = rng.permuted(np.tile(np.arange(11.0), (200, 1)), axis=1).astype(dtype)
    labels = rng.integers(11, size=200)
    answers = torch.from_numpy(logits).topk(k, dim=1).indices
    hits = (answers == torch.from_numpy(labels)[:, None]).any(dim=1)
    assert share(logits, labels, k) == pytest.approx(hits.double().mean().item(), abs=1e-12)


def test_a_constant_answer_scores_nothing() -> None:
    assert share(np.zeros((5, 4)), np.arange(5) % 4, 1) == 0.0
    assert share(np.zeros((5, 4)), np.arange(5) % 4, 3) == 0.0


def test_ties_count_against_the_row() -> None:
    logits = np.array([[3.0, 3.0, 1.0]])
    assert [share(logits, np.array([0]), k) for k in (1, 2)] == [0.0, 1.0]
    assert [share(logits, np.array([1]), k) for k in (1, 2)] == [0.0, 1.0]
    assert share(logits, np.array([2]), 2) == 0.0


@pytest.mark.parametrize(
    "row", [[np.nan] * 3, [np.nan, 1.0, 0.0], [2.0, np.nan, 1.0], [np.inf, 1.0, 0.0]]
)
def test_a_broken_answer_scores_nothing(row: list[float]) -> None:
    for k in (1, 5, 400):
        assert share(np.array([row, [1.0, 0.0, 0.0]]), np.array([0, 0]), k) == 0.5
    both = {"verb": np.array([row]), "noun": np.array([[1.0, 0.0]])}
    labels = {"verb": np.array([0]), "noun": np.array([0])}
    assert top_k(label_ranks(both, labels), 5) == 0.0
    assert answers(np.array([row, [1.0, 0.0, 2.0]])).tolist() == [NO_ANSWER, 2]


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="no rows"):
        share(np.zeros((0, 4)), np.zeros(0, np.int64), 1)
    none, labels = np.zeros((0, 2)), np.zeros(0, np.int64)
    assert label_ranks({"a": none, "b": none}, {"a": labels, "b": labels}).shape == (0,)


@pytest.mark.parametrize("rows", [7, 300])
def test_joint_accuracy_is_that_of_the_product_of_probabilities(rows: int) -> None:
    rng = np.random.default_rng(rows)
    logits = {"verb": rng.normal(size=(rows, 5)), "noun": 3 * rng.normal(size=(rows, 7))}
    labels = {"verb": rng.integers(5, size=rows), "noun": rng.integers(7, size=rows)}
    verb, noun = (np.exp(one) / np.exp(one).sum(1, keepdims=True) for one in logits.values())
    for k in (1, 5):
        hits = 0
        for row in range(rows):
            product = np.outer(verb[row], noun[row])
            own = product[labels["verb"][row], labels["noun"][row]]
            hits += int((product > own).sum() < k)
        assert top_k(label_ranks(logits, labels), k) == hits / rows


def test_several_views_are_the_mean_of_their_probabilities() -> None:
    logits = np.random.default_rng(0).normal(scale=4, size=(30, 11)).astype(np.float32)
    expected = torch.softmax(torch.from_numpy(logits).double(), dim=1).mean(dim=0)
    found = mean_of_views(logits)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.exp(found), expected.numpy(), atol=1e-7)
    np.testing.assert_allclose(
        np.exp(mean_of_views(logits[:1])), np.exp(logits[0]) / np.exp(logits[0]).sum(), rtol=1e-5
    )


def test_views_are_averaged_as_probabilities_and_not_as_logits() -> None:
    """One view is sure of class 1, two lean to class 0: by probability 1 wins, by votes 0."""
    probabilities = np.array([[0.05, 0.95], [0.6, 0.4], [0.6, 0.4]])
    found = mean_of_views(np.log(probabilities))
    np.testing.assert_allclose(np.exp(found), [1.25 / 3, 1.75 / 3], rtol=1e-6)


def test_views_of_great_logits_and_broken_ones() -> None:
    great = np.array([[1e4, 0.0, -1e4], [1e4, 0.0, -1e4]])
    np.testing.assert_allclose(mean_of_views(great), [0.0, -1e4, -2e4])
    assert np.isnan(mean_of_views(np.array([[0.0, 1.0], [np.nan, 1.0]]))).all()
    assert share(mean_of_views(np.array([[np.inf, 0.0]]))[None], np.array([0]), 1) == 0.0
    with pytest.raises(ValueError, match="no views"):
        mean_of_views(np.zeros((0, 3)))


def test_mean_class_accuracy_by_hand() -> None:
    """Class 2: 2 of 3 and 0 of 3; class 7: 0 of 1 and 1 of 1; the others have no rows."""
    labels = np.array([2, 7, 2, 2])
    right = np.array([[1, 0], [0, 1], [1, 0], [0, 0]], bool)
    once = mean_class_accuracy(right, labels, np.ones((1, 4)))
    np.testing.assert_allclose(once, [[(2 / 3 + 0) / 2, (0 + 1) / 2]])
    # Resamples: the first row twice and the last once; class 7 alone; all of them.
    counts = np.array([[2.0, 0, 0, 1], [0, 3, 0, 0], [1, 1, 1, 1]])
    found = mean_class_accuracy(right, labels, counts)
    np.testing.assert_allclose(found, [[2 / 3, 0], [0, 1], once[0]])


def test_mean_class_accuracy_against_a_loop_over_copied_rows() -> None:
    rng = np.random.default_rng(0)
    labels, right = rng.integers(9, size=70), rng.random((70, 3)) < 0.4
    counts = rng.integers(3, size=(5, 70)).astype(float)
    found = mean_class_accuracy(right, labels, counts)
    for resample, of_resample in zip(counts.astype(int), found, strict=True):
        rows = np.repeat(np.arange(70), resample)
        for network in range(3):
            by_class = [
                np.mean([right[row, network] for row in rows if labels[row] == one])
                for one in set(labels[rows].tolist())
            ]
            assert of_resample[network] == pytest.approx(np.mean(by_class), rel=1e-12)


def test_agreement_is_of_all_heads_and_never_of_broken_answers() -> None:
    one = {"verb": np.array([1, 2, 3, NO_ANSWER]), "noun": np.array([5, 5, 5, 5])}
    other = {"verb": np.array([1, 2, 0, NO_ANSWER]), "noun": np.array([5, 6, 5, 5])}
    assert agreement(one, other) == 0.25
    assert agreement({"verb": one["verb"]}, {"verb": other["verb"]}) == 0.5
    assert agreement(one, one) == 0.75


def test_confusions_by_hand() -> None:
    labels, given = np.array([0, 0, 1, 2, 2]), np.array([0, 2, 1, NO_ANSWER, 0])
    expected = [[1, 0, 1], [0, 1, 0], [1, 0, 0]]
    assert confusion_counts(labels, given, 3).tolist() == expected
