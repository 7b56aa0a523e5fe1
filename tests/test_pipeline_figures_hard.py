"""The hard rendered set: reproducible, balanced, other looks in the test split, pairs reversed."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.datasets import figures
from pipeline.datasets.figure_looks import HELD_OUT, SEEN, Phrase, draw_phrase
from pipeline.datasets.figure_painting import Scene, render_frames
from pipeline.datasets.figure_phrases import (
    PHRASES,
    Performance,
    order_blind_bound,
    single_frame_bound,
)
from pipeline.datasets.figures import HARD, draw_scene

SPLITS = ("train", "val", "pool", "test")
BY_BAG = {
    group: [name for name, action in PHRASES.items() if action.bag_group == group]
    for group in {action.bag_group for action in PHRASES.values()}
}
PAIRS = sorted(names for names in BY_BAG.values() if len(names) > 1)


def frames_of(scene: Scene) -> NDArray[np.uint8]:
    """(frames, SIZE, SIZE, 3)."""
    return np.stack(list(render_frames(scene)))


def digest(scene: Scene) -> str:
    """Of its frames."""
    return hashlib.sha256(frames_of(scene).tobytes()).hexdigest()[:16]


def some_phrases(split: str, count: int = 60) -> list[Phrase]:
    scenes = [draw_scene(3, split, index, HARD) for index in range(count)]
    return [scene for scene in scenes if isinstance(scene, Phrase)]


# --- what decides a video ----------------------------------------------------------------------


def test_the_demo_is_what_it_was() -> None:
    """Its ids and pixels: the cache and the teachers of the demo rely on them."""
    assert figures.GENERATOR_VERSION == 1
    assert figures.scene_id(0, "train", 0) == "bow-9bddf3d713"
    assert figures.scene_id(0, "test", 11) == "walk_right-db5634cb6c"
    assert digest(draw_scene(0, "train", 9)) == "4bedfb9823bac0cc"
    assert digest(draw_scene(1_000_003, "pool", 5)) == "906c68b0789f971c"


def test_the_hard_set_is_what_it_was() -> None:
    assert figures.HARD_VERSION == 1
    assert figures.scene_id(0, "train", 0, HARD) == "arms_raise_left_first-0dc8878582"
    assert digest(draw_scene(0, "train", 20, HARD)) == "26ec1e9f9e4a831d"
    assert digest(draw_scene(0, "test", 35, HARD)) == "e72cdc125baf5e70"


def test_scenes_are_a_function_of_seed_split_and_index() -> None:
    once = digest(draw_scene(1, "val", 18, HARD))
    draw_scene(2, "val", 18, HARD)
    assert digest(draw_scene(1, "val", 18, HARD)) == once
    for other in [(2, "val", 18), (1, "train", 18), (1, "val", 18 + len(PHRASES))]:
        assert digest(draw_scene(*other, HARD)) != once


def test_classes_are_many_balanced_and_not_the_demo_s() -> None:
    assert HARD.classes == tuple(sorted(PHRASES))
    assert len(HARD.classes) == 48
    assert not set(HARD.classes) & set(figures.CLASSES)
    rows = [figures.sample(0, "train", index, HARD) for index in range(2 * len(PHRASES))]
    assert Counter(row.labels["action"] for row in rows) == dict.fromkeys(range(48), 2)
    assert all(row.path.split("/")[1] == HARD.action(index) for index, row in enumerate(rows))
    assert Counter(action.kind for action in PHRASES.values()) == {
        "rhythm": 18,
        "order": 16,
        "detail": 8,
        "detail and order": 6,
    }


def test_every_action_moves() -> None:
    for index in range(len(PHRASES)):
        scene = draw_scene(0, "train", index, HARD)
        quiet = replace(scene, shake=np.zeros_like(scene.shake), distractors=())
        assert np.abs(np.diff(frames_of(quiet).astype(float), axis=0)).max() > 40, scene.action


# --- what the test split shows -----------------------------------------------------------------


def test_the_domains_share_no_value() -> None:
    for name in ("heights", "limbs", "heads", "tones"):
        (low, high), (other_low, other_high) = getattr(SEEN, name), getattr(HELD_OUT, name)
        assert low < high, name
        assert other_low < other_high, name
        assert high < other_low or other_high < low, name
    for (low, high), (other_low, other_high) in product(SEEN.hues, HELD_OUT.hues):
        assert high <= other_low or other_high <= low
    for name in ("textures", "cameras", "distractors"):
        assert not set(getattr(SEEN, name)) & set(getattr(HELD_OUT, name)), name


@pytest.mark.parametrize("split", SPLITS)
def test_scenes_are_of_their_split_s_domain(split: str) -> None:
    domain = HELD_OUT if split == "test" else SEEN
    shapes = set()
    for scene in some_phrases(split):
        assert domain.heights[0] <= scene.body.height <= domain.heights[1]
        assert domain.limbs[0] <= scene.body.limb <= domain.limbs[1]
        assert domain.heads[0] <= scene.body.head <= domain.heads[1]
        shapes |= {distractor.shape for distractor in scene.distractors}
        assert (scene.pan != (0.0, 0.0)) == (split == "test")
        if split == "test":
            assert not scene.shake[:2].any()
    assert shapes == set(domain.distractors)


# --- what the order tells ----------------------------------------------------------------------


def test_bounds_follow_from_the_groups() -> None:
    assert single_frame_bound() == 24 / 48
    assert order_blind_bound() == 31 / 48
    assert len(PAIRS) == 17
    for names in PAIRS:
        assert len(names) == 2
        first, second = (PHRASES[name] for name in names)
        assert first.clock == -second.clock
        assert (first.rates, first.rises) == (second.rates, second.rises)
        assert first.frame_group == second.frame_group


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_a_pair_is_one_video_forwards_and_backwards(first: str, second: str) -> None:
    """The same draw, but for the action: no bag of frames tells the two apart."""
    draws = [draw_phrase(np.random.default_rng(7), "train", name) for name in (first, second)]
    forwards, backwards = (frames_of(scene) for scene in draws)
    np.testing.assert_array_equal(forwards, backwards[::-1])
    assert np.any(forwards != backwards)


def test_a_rhythm_spends_as_much_time_in_each_height() -> None:
    """Over whole cycles: so one frame does not tell the rhythm."""
    (scene,) = some_phrases("train", 1)
    heights = []
    for rise, rate in ((0.2, 0.8), (0.5, 0.6), (0.5, 1.5)):
        how: Performance = replace(scene.motion, rise=rise, rate=rate)
        times = np.linspace(0, 1 / rate, 2001)
        heights.append(np.sort([how.height(float(time)) for time in times]))
    for one, other in pairwise(heights):
        np.testing.assert_allclose(one, other, atol=5e-3)
