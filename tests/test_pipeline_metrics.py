"""Accuracies against a table made by hand and against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.metrics import joint_top_k, mean_of_views, top_k

LOGITS = np.array(
    [
        [9.0, 5.0, 1.0, 0.0],  # label 0: first
        [5.0, 9.0, 1.0, 0.0],  # label 0: second
        [5.0, 6.0, -2.0, 7.0],  # label 2: last
        [-1.0, -4.0, -3.0, -2.0],  # label 2: third
    ]
)
LABELS = np.array([0, 0, 2, 2])


@pytest.mark.parametrize(
    ("k", "share"), [(1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0), (5, 1.0), (400, 1.0)]
)
def test_top_k_by_hand(k: int, share: float) -> None:
    assert top_k(LOGITS, LABELS, k) == share


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_against_torch(k: int, dtype: type[np.floating]) -> None:
    rng = np.random.default_rng(0)
    # Every row a shuffled 0, 1, … 10: no ties in any precision.
    logits = rng.permuted(np.tile(np.arange(11.0), (200, 1)), axis=1).astype(dtype)
    labels = rng.integers(11, size=200)
    answers = torch.from_numpy(logits).topk(k, dim=1).indices
    hits = (answers == torch.from_numpy(labels)[:, None]).any(dim=1)
    assert top_k(logits, labels, k) == pytest.approx(hits.double().mean().item(), abs=1e-12)


def test_a_constant_answer_scores_nothing() -> None:
    assert top_k(np.zeros((5, 4)), np.arange(5) % 4, 1) == 0.0
    assert top_k(np.zeros((5, 4)), np.arange(5) % 4, 3) == 0.0


def test_ties_count_against_the_row() -> None:
    logits = np.array([[3.0, 3.0, 1.0]])
    assert [top_k(logits, np.array([0]), k) for k in (1, 2)] == [0.0, 1.0]
    assert [top_k(logits, np.array([1]), k) for k in (1, 2)] == [0.0, 1.0]
    assert top_k(logits, np.array([2]), 2) == 0.0


@pytest.mark.parametrize("row", [[np.nan] * 3, [np.nan, 1.0, 0.0], [2.0, np.nan, 1.0]])
def test_a_broken_answer_scores_nothing(row: list[float]) -> None:
    assert top_k(np.array([row]), np.array([0]), 1) == 0.0


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="no rows"):
        top_k(np.zeros((0, 4)), np.zeros(0, np.int64), 1)


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
        assert joint_top_k(logits, labels, k) == hits / rows


def test_joint_accuracy_of_one_head_is_plain() -> None:
    logits, labels = np.array([[1.0, 2.0], [3.0, 0.0]]), np.array([1, 1])
    assert joint_top_k({"action": logits}, {"action": labels}, 1) == top_k(logits, labels, 1) == 0.5
    with pytest.raises(ValueError, match="no rows"):
        joint_top_k({"a": logits[:0], "b": logits[:0]}, {"a": labels[:0], "b": labels[:0]}, 1)


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
    assert top_k(mean_of_views(np.array([[np.inf, 0.0]]))[None], np.array([0]), 1) == 0.0
    with pytest.raises(ValueError, match="no views"):
        mean_of_views(np.zeros((0, 3)))
