"""Bootstrap intervals against closed forms: the binomial, a normal mean of clusters, all draws."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from pipeline.bootstrap import interval, resamples, shares


def distribution(names: list[str], hits: np.ndarray, **options: int) -> np.ndarray:
    parts = [shares(counts, hits) for counts in resamples(names, **options)]
    return np.concatenate(parts)


def test_of_single_videos_it_is_the_binomial() -> None:
    """The share of hits of n draws from n rows of which 30 % are hits, its exact quantiles."""
    n, p = 200, 0.3
    hits = (np.arange(n) < p * n)[:, None]
    values = distribution([f"v{row}" for row in range(n)], hits, samples=20_000)[:, 0]
    chances = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
    below = np.cumsum(chances)
    low, high = (int(np.searchsorted(below, share)) / n for share in (0.025, 0.975))
    assert interval(values) == pytest.approx((low, high), abs=1.01 / n)
    assert values.mean() == pytest.approx(p, abs=0.002)
    assert values.std() == pytest.approx(math.sqrt(p * (1 - p) / n), rel=0.02)


def test_of_three_videos_it_is_all_27_draws() -> None:
    """Videos of unequal lengths: each share is of the stretches that were drawn."""
    names, hits = ["a", "b", "b", "b", "c", "c"], np.array([1, 1, 0, 0, 1, 1], bool)[:, None]
    expected = [
        sum(hits[row, 0] for video in draw for row in range(6) if names[row] == video)
        / sum(names.count(video) for video in draw)
        for draw in itertools.product("abc", repeat=3)
    ]
    values = distribution(names, hits, samples=40_000)[:, 0]
    assert set(np.round(values, 12)) == set(np.round(expected, 12))
    assert values.mean() == pytest.approx(np.mean(expected), abs=0.005)
    assert values.std() == pytest.approx(np.std(expected), rel=0.02)


def test_stretches_of_one_video_are_drawn_together() -> None:
    """40 videos of 25 like stretches say as much as 40 stretches, not as much as 1,000."""
    names = [f"v{row // 25}" for row in range(1000)]
    hits = (np.arange(1000) // 25 % 2 == 0)[:, None]
    spread = distribution(names, hits)[:, 0].std()
    assert spread == pytest.approx(math.sqrt(0.25 / 40), rel=0.05)
    alone = distribution([str(row) for row in range(1000)], hits)[:, 0].std()
    assert alone == pytest.approx(math.sqrt(0.25 / 1000), rel=0.05)


def test_a_gain_is_paired() -> None:
    """Two networks that differ on 10 of 400 videos: the variance of the difference, no other."""
    first = np.arange(400) % 2 == 0
    second = first.copy()
    second[1:20:2] = True
    values = distribution([str(row) for row in range(400)], np.stack([first, second], axis=1))
    gains = values[:, 1] - values[:, 0]
    assert gains.std() == pytest.approx(math.sqrt(0.025 * 0.975 / 400), rel=0.05)
    assert interval(gains)[0] > 0


def test_it_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    names, covered = [str(row) for row in range(150)], 0
    counts = np.concatenate(list(resamples(names, samples=400)))
    for _ in range(400):
        low, high = interval(shares(counts, rng.random((150, 1)) < 0.6)[:, 0])
        covered += low <= 0.6 <= high
    assert covered / 400 == pytest.approx(0.95, abs=0.035)


def test_the_same_whatever_the_order_of_rows_and_the_size_of_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = [f"v{row % 5}" for row in range(13)]
    order = np.random.default_rng(0).permutation(13)
    whole = np.concatenate(list(resamples(names, samples=50)))
    shuffled = np.concatenate(list(resamples([names[row] for row in order], samples=50)))
    np.testing.assert_array_equal(whole[:, order], shuffled)
    monkeypatch.setattr("pipeline.bootstrap._AT_ONCE", 40)
    parts = list(resamples(names, samples=50))
    assert len(parts) > 10
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert (np.concatenate(list(resamples(names, samples=50, seed=1))) != whole).any()


def test_the_interval_is_that_of_the_level() -> None:
    assert interval(np.arange(101.0), level=0.9) == pytest.approx((5, 95))
    assert interval(np.full(7, 0.25)) == (0.25, 0.25)
