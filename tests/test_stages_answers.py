"""What is said of logits: the best classes, of several heads together, and segments."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stages.answers import JOINT, Answer, Failure, Segment, best, segments

VERBS, NOUNS = ["take", "put", "wash"], ["cup", "pan", "knife", "egg"]


def test_probabilities_are_the_softmax() -> None:
    logits = np.array([0.5, 3.0, -1.0, 2.0], np.float32)
    (ranked,) = best({"noun": logits}, {"noun": NOUNS}, 3).values()
    expected = torch.softmax(torch.from_numpy(logits).double(), 0).numpy()
    assert [one.names for one in ranked] == [{"noun": "pan"}, {"noun": "egg"}, {"noun": "cup"}]
    assert [one.probability for one in ranked] == pytest.approx(expected[[1, 3, 0]])


def test_several_heads_together_are_the_best_of_all_products() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        verb, noun = (random.normal(0, 2, size).astype(np.float32) for size in (3, 4))
        found = best({"verb": verb, "noun": noun}, {"verb": VERBS, "noun": NOUNS}, 3)
        assert list(found) == ["verb", "noun", JOINT]
        shares = [torch.softmax(torch.from_numpy(one).double(), 0).numpy() for one in (verb, noun)]
        product = np.outer(*shares)
        for one, place in zip(found[JOINT], np.argsort(-product, axis=None), strict=False):
            row, column = np.unravel_index(place, product.shape)
            assert one.names == {"verb": VERBS[row], "noun": NOUNS[column]}
            assert one.probability == pytest.approx(product[row, column])


def test_there_are_no_more_classes_than_there_are() -> None:
    assert len(best({"verb": np.zeros(3, np.float32)}, {"verb": VERBS}, 9)["verb"]) == 3


def step(video: str, start: int, top: int, logit: float = 5.0) -> Answer:
    logits = np.zeros(3, np.float32)
    logits[top] = logit
    return Answer(video, float(start), start + 1.0, {"verb": logits})


def test_steps_merge_while_the_same_class_is_on_top() -> None:
    found = list(
        segments(
            [
                step("a", 0, 1, 5.0),
                step("a", 1, 1, 2.0),
                step("a", 2, 0),
                step("b", 0, 0),
                Failure("b", "b: damaged"),
                step("b", 0, 0),
            ],
            {"verb": VERBS},
        )
    )
    share = {logit: float(np.exp(logit) / (np.exp(logit) + 2)) for logit in (2.0, 5.0)}
    assert found[0] == Segment(
        "a", 0.0, 2.0, {"verb": "put"}, pytest.approx(sum(share.values()) / 2)
    )
    assert found[1] == Segment("a", 2.0, 3.0, {"verb": "take"}, pytest.approx(share[5.0]))
    assert found[2] == Segment("b", 0.0, 1.0, {"verb": "take"}, pytest.approx(share[5.0]))
    assert found[3] == Failure("b", "b: damaged")
    assert isinstance(found[4], Segment)
    assert len(found) == 5
