"""Calibration against bins made by hand, a loop in plain Python, and torch's own optimisers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.calibration import (
    HIGHEST,
    LOWEST,
    calibrate,
    confidences,
    fit_temperature,
    halves,
    reliability,
)

Array = NDArray[np.float64]


def drawn(
    rows: int, classes: int, temperature: float, seed: int = 0
) -> tuple[Array, NDArray[np.int64]]:
    """Logits, and labels drawn from their softmax at a temperature: so true is that one."""
    rng = np.random.default_rng(seed)
    logits = 4 * rng.normal(size=(rows, classes))
    noise = rng.gumbel(size=logits.shape)
    return logits, (logits / temperature + noise).argmax(axis=1)


def videos(rows: int) -> list[str]:
    return [f"video-{row}" for row in range(rows)]


def test_the_calibration_error_by_hand() -> None:
    """Of 15 bins: three answers in (9/15, 10/15], two right; one in (14/15, 1], wrong."""
    found = reliability(np.array([0.61, 0.62, 0.66, 1.0]), np.array([True, True, False, False]))
    assert found.videos.tolist() == [0] * 9 + [3] + [0] * 4 + [1]
    assert found.confidence[9] == pytest.approx(0.63)
    assert found.accuracy[9] == pytest.approx(2 / 3)
    assert np.isnan(found.accuracy[0])
    assert found.ece == pytest.approx(3 / 4 * (2 / 3 - 0.63) + 1 / 4 * 1.0)


def test_an_edge_belongs_to_the_bin_below() -> None:
    """As in the paper: bin m is ((m − 1) / M, m / M]."""
    confidence = np.array([0.25, 0.5, 0.5000001, 0.75, 1.0])
    assert reliability(confidence, np.zeros(5, bool), bins=4).videos.tolist() == [1, 1, 2, 1]


def test_the_calibration_error_against_a_loop() -> None:
    logits, labels = drawn(500, 6, 2.0)
    probabilities = torch.softmax(torch.from_numpy(logits), dim=1)
    sure, answers = (one.tolist() for one in probabilities.max(dim=1))
    bins: dict[int, list[tuple[float, bool]]] = {}
    for confidence, answer, label in zip(sure, answers, labels.tolist(), strict=True):
        bins.setdefault(math.ceil(confidence * 15), []).append((confidence, answer == label))
    expected = sum(
        abs(sum(right for _, right in one) - sum(confidence for confidence, _ in one))
        for one in bins.values()
    )
    right = np.array(answers) == labels
    assert reliability(confidences({"a": logits}), right).ece == pytest.approx(expected / 500)


def test_an_honest_network_has_no_calibration_error() -> None:
    logits, labels = drawn(200_000, 4, 1.0)
    found = reliability(confidences({"a": logits}), logits.argmax(axis=1) == labels).ece
    assert found == pytest.approx(0, abs=0.005)
    assert fit_temperature({"a": logits}, {"a": labels}) == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 3.0])
def test_the_temperature_against_lbfgs(temperature: float) -> None:
    logits, labels = drawn(400, 7, temperature)
    log_inverse = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [log_inverse],
        max_iter=200,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-10,
        tolerance_change=1e-16,
    )

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        scaled = torch.from_numpy(logits) * log_inverse.exp()
        value = torch.nn.functional.cross_entropy(scaled, torch.from_numpy(labels))
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    expected = math.exp(-log_inverse.item())
    for start in (0.06, 1.0, 15.0):
        found = fit_temperature({"a": logits}, {"a": labels}, start)
        assert found == pytest.approx(expected, rel=1e-5)


def test_the_temperature_of_several_heads_against_a_grid() -> None:
    """It makes the tuples of labels likeliest: their probability is a product over heads."""
    heads = {"verb": drawn(300, 5, 2.0), "noun": drawn(300, 9, 1.2, seed=1)}
    logits = {head: one for head, (one, _) in heads.items()}
    labels = {head: one for head, (_, one) in heads.items()}

    def loss(temperature: float) -> float:
        return sum(
            torch.nn.functional.cross_entropy(
                torch.from_numpy(logits[head] / temperature), torch.from_numpy(labels[head])
            ).item()
            for head in logits
        )

    grid = np.arange(1.0, 2.5, 0.001)
    best = grid[np.argmin([loss(float(one)) for one in grid])]
    assert fit_temperature(logits, labels) == pytest.approx(best, abs=0.001)
    joint = confidences(logits, 2.0)
    verb, noun = (
        np.exp(one / 2) / np.exp(one / 2).sum(1, keepdims=True) for one in logits.values()
    )
    outer = np.einsum("nv,nm->nvm", verb, noun).reshape(300, -1).max(axis=1)
    np.testing.assert_allclose(joint, outer)


def test_where_there_is_no_best_temperature_it_is_a_bound() -> None:
    logits = np.array([[3.0, 1.0, 0.0], [0.0, 2.0, 1.0]])
    right, wrong = {"a": logits.argmax(axis=1)}, {"a": logits.argmin(axis=1)}
    assert fit_temperature({"a": logits}, right) == pytest.approx(LOWEST, rel=1e-4)
    assert fit_temperature({"a": logits}, wrong) == pytest.approx(HIGHEST, rel=1e-4)


@pytest.mark.parametrize("logits", [np.zeros((4, 3)), np.ones((4, 1)), np.array([[1e4, 0.0]] * 4)])
def test_where_nothing_depends_on_the_temperature_it_stays(logits: Array) -> None:
    """Equal logits, a single class, and a network so sure and right that nothing is left."""
    assert fit_temperature({"a": logits}, {"a": np.zeros(4, np.int64)}) == 1.0


def test_no_answer_is_judged_by_a_temperature_that_saw_it() -> None:
    """Each half is scaled by what the other half alone gives, fitted here one after the other."""
    logits, labels = drawn(90, 5, 2.5)
    names = [f"video-{row // 3}" for row in range(90)]
    right = logits.argmax(axis=1) == labels
    found = calibrate({"a": logits}, {"a": labels}, right, names)
    second = halves(names)
    scaled = np.zeros(90)
    for half in (second, ~second):
        other = fit_temperature({"a": logits[~half]}, {"a": labels[~half]})
        scaled[half] = torch.softmax(torch.from_numpy(logits[half] / other), 1).amax(1).numpy()
    assert found.after is not None
    assert found.after.ece == pytest.approx(reliability(scaled, right).ece, rel=1e-6)
    assert found.temperature == pytest.approx(fit_temperature({"a": logits}, {"a": labels}))
    assert found.after.ece is not None
    assert found.before.ece is not None
    assert found.after.ece < found.before.ece
    again = calibrate({"a": logits[::-1]}, {"a": labels[::-1]}, right[::-1], names[::-1])
    assert again.after is not None
    assert again.after.ece == pytest.approx(found.after.ece, rel=1e-9)


def test_halves_are_of_whole_videos_even_and_known_beforehand() -> None:
    names = [f"P01_{row % 7:02}" for row in range(100)]
    second = halves(names)
    assert {name for name, of in zip(names, second, strict=True) if of}.isdisjoint(
        {name for name, of in zip(names, second, strict=True) if not of}
    )
    assert len({name for name, of in zip(names, second, strict=True) if of}) == 3
    assert halves(names[::-1]).tolist() == second.tolist()[::-1]
    # sha256 of a, b, c begins with ca97…, 3e23…, 2e7d…: c, b, a is their order.
    assert halves(["a", "b", "c"]).tolist() == [False, True, False]


def test_broken_answers_are_left_out() -> None:
    logits, labels = drawn(60, 4, 1.5)
    spoilt = np.concatenate([logits, [[np.nan, 1, 2, 3], [np.inf, 0, 0, 0]]])
    more = np.concatenate([labels, [0, 0]])
    right, names = logits.argmax(axis=1) == labels, videos(60)
    expected = calibrate({"a": logits}, {"a": labels}, right, names)
    found = calibrate({"a": spoilt}, {"a": more}, np.append(right, [False] * 2), [*names, "x", "y"])
    assert found.temperature == expected.temperature
    assert found.before.ece == expected.before.ece
    assert found.before.videos.sum() == 60
    assert found.after is not None
    assert expected.after is not None
    assert found.after.ece == expected.after.ece


def test_one_video_has_no_temperature_and_no_answer_no_error() -> None:
    logits, labels = drawn(3, 4, 1.0)
    one = calibrate({"a": logits}, {"a": labels}, logits.argmax(1) == labels, ["long"] * 3)
    assert (one.temperature, one.after) == (None, None)
    assert one.before.ece is not None
    none = calibrate({"a": logits * np.nan}, {"a": labels}, np.zeros(3, bool), videos(3))
    assert (none.temperature, none.before.ece, none.after) == (None, None, None)
