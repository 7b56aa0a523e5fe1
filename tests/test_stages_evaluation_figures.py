"""The figures of `evaluate` against answers made up and counted by hand, and by brute force."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from evaluation_making import ROLES, by_answers, one_head, two_heads, videos_of
from pipeline.samples import Samples
from stages.evaluation_figures import Figures, accuracies, all_figures, calibrations
from stages.scoring import Scored

SURE = math.exp(2) / (math.exp(2) + 2)  # the confidence of every answer among three classes


def measured(
    samples: Samples, scored: Scored, **subsets: np.ndarray[tuple[int], np.dtype[np.bool_]]
) -> dict[str, Figures]:
    videos = videos_of(samples)
    return all_figures(scored, calibrations(scored, videos), videos, subsets)


def test_one_head_by_hand() -> None:
    found = measured(*one_head())
    student = found["student"]
    assert found.keys() == set(ROLES)
    assert student["top1"] == 4 / 6
    assert student["mean_class_accuracy"] == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert found["baseline"]["mean_class_accuracy"] == pytest.approx((2 / 4 + 0 / 2) / 2)
    assert student["top5"] == 5 / 6  # of three classes all but the output that is not finite
    assert student["non_finite"] == 1
    assert (student["agreement_vit"], student["agreement_cnn"]) == (4 / 6, 3 / 6)
    assert (found["baseline"]["agreement_vit"], found["baseline"]["agreement_cnn"]) == (
        2 / 6,
        2 / 6,
    )
    assert "agreement_vit" not in found["vit"]
    assert student["ece"] == pytest.approx(abs(4 / 5 - SURE))
    assert found["baseline"]["ece"] == pytest.approx(SURE - 2 / 6)
    assert student["gain_top1"] == 4 / 6 - 2 / 6
    low, high = student["gain_top1_interval"]
    assert low < 2 / 6 < high


def test_intervals_against_every_possible_draw() -> None:
    """Three videos of two stretches: 27 draws, so many of each share."""
    labels = {"action": [0, 0, 0, 1, 1, 1]}
    right = {"baseline": [1, 0, 1, 0, 0, 0], "student": [1, 1, 1, 0, 1, 0]}
    by_role = {
        role: {
            "action": [
                label if hit else 2 for label, hit in zip(*labels.values(), hits, strict=True)
            ]
        }
        for role, hits in right.items()
    }
    samples, scored = by_answers(
        {"action": ["a", "b", "c"]}, labels, by_role | {"vit": labels, "cnn": labels}, stretches=2
    )
    gains, means = [], []
    for draw in np.ndindex(3, 3, 3):
        rows = [row for video in draw for row in (2 * video, 2 * video + 1)]
        hits = {role: np.array(of_role)[rows] for role, of_role in right.items()}
        gains.append(hits["student"].mean() - hits["baseline"].mean())
        classes = np.array(labels["action"])[rows]
        means.append(np.mean([hits["student"][classes == one].mean() for one in set(classes)]))
    found = measured(samples, scored)["student"]
    for name, values in (("gain_top1_interval", gains), ("mean_class_interval", means)):
        # Each quantile of 2000 draws is one of so few values that both are the same.
        expected = np.quantile(values, [0.025, 0.975], method="inverted_cdf")
        assert found[name] == pytest.approx(tuple(expected)), name


def test_two_heads_by_hand() -> None:
    """All heads together are right where each is, and their classes are the pairs that occur."""
    samples, scored = two_heads()
    found = measured(samples, scored, tail=np.arange(8) < 4, none=np.zeros(8, bool))
    student, heads = found["student"], found["student"]["heads"]
    assert (heads["verb"]["top1"], heads["noun"]["top1"], student["top1"]) == (7 / 8, 6 / 8, 6 / 8)
    assert heads["verb"]["mean_class_accuracy"] == pytest.approx((1 + 3 / 4) / 2)
    # Pairs: (0, 0) twice, (0, 1) twice, (1, 2) three times, (1, 0) once.
    assert student["mean_class_accuracy"] == pytest.approx((1 + 1 + 1 / 3 + 1) / 4)
    assert (student["agreement_vit"], student["agreement_cnn"]) == (6 / 8, 5 / 8)
    assert heads["verb"]["agreement_cnn"] == 7 / 8
    verb = math.exp(2) / (math.exp(2) + 1)
    assert heads["verb"]["ece"] == pytest.approx(abs(7 / 8 - verb))
    assert student["ece"] == pytest.approx(abs(6 / 8 - verb * SURE))
    tail = student["subsets"]["tail"]
    assert (tail["videos"], tail["top1"], tail["heads"]["noun"]["top1"]) == (4, 3 / 4, 3 / 4)
    assert tail["gain_top1"] == 3 / 4 - 2 / 4
    assert student["subsets"]["none"] == {"videos": 0}
    assert heads["noun"]["gain_top1"] == 6 / 8 - 4 / 8
    for role in ROLES:
        for figures in (found[role], *found[role]["heads"].values()):
            assert {"temperature", "ece_calibrated", "top1_interval", "top5_interval"} <= set(
                figures
            )


def test_one_video_has_no_intervals_and_no_temperature() -> None:
    labels = {"action": [0, 1, 0]}
    samples, scored = by_answers(
        {"action": ["a", "b"]}, labels, dict.fromkeys(ROLES, labels), stretches=3
    )
    student = measured(samples, scored)["student"]
    assert (student["top1"], student["mean_class_accuracy"]) == (1.0, 1.0)
    for name in ("top1_interval", "top5_interval", "mean_class_interval", "gain_top1_interval"):
        assert student[name] is None
    assert (student["temperature"], student["ece_calibrated"]) == (None, None)
    assert student["ece"] == pytest.approx(1 - math.exp(2) / (math.exp(2) + 1))


def test_a_network_of_nothing_finite_scores_nothing_and_json_can_hold_it() -> None:
    labels, nothing = {"action": [0, 1, 0]}, {"action": [-1, -1, -1]}
    samples, scored = by_answers(
        {"action": ["a", "b"]}, labels, dict.fromkeys(ROLES, labels) | {"student": nothing}
    )
    found = measured(samples, scored)
    student = found["student"]
    assert (student["top1"], student["top5"], student["non_finite"]) == (0.0, 0.0, 3)
    assert (student["ece"], student["temperature"], student["agreement_vit"]) == (None, None, 0.0)
    assert student["gain_top1"] == -1.0
    json.dumps(found, allow_nan=False)


def test_one_class_is_always_right() -> None:
    labels = {"action": [0, 0, 0]}
    samples, scored = by_answers({"action": ["a"]}, labels, dict.fromkeys(ROLES, labels))
    for logits in scored.logits.values():
        logits["action"] = np.random.default_rng(0).normal(size=(3, 1)).astype(np.float32)
    student = measured(samples, scored)["student"]
    assert (student["top1"], student["ece"], student["ece_calibrated"]) == (1.0, 0.0, 0.0)
    assert student["temperature"] == 1.0
    assert student["top1_interval"] == (1.0, 1.0)


def test_figures_follow_from_the_answers_whatever_the_order_of_the_videos() -> None:
    samples, scored = two_heads()
    order = np.random.default_rng(0).permutation(8)
    other = Scored(list(ROLES))
    other.rows, other.labels = order, {head: of[order] for head, of in scored.labels.items()}
    other.logits = {
        role: {head: one[order] for head, one in of_role.items()}
        for role, of_role in scored.logits.items()
    }
    videos = videos_of(samples)
    assert json.dumps(measured(*two_heads())) == json.dumps(measured(samples, scored))
    shuffled = accuracies(other, [videos[row] for row in order], np.ones(8, bool))
    assert shuffled == accuracies(scored, videos, np.ones(8, bool))
