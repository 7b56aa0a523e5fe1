"""The rendered dataset: reproducible, balanced, real video files, and truly left and right.

What the people look like is free to change: nothing here knows colours, sizes or poses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.datasets import figures
from pipeline.datasets.figure_motion import ACTIONS, Pose
from pipeline.datasets.figure_painting import SIZE, Scene, render_frames
from pipeline.datasets.figures import CLASSES, draw_scene

SIDES = sorted(name.removesuffix("_left") for name in CLASSES if name.endswith("_left"))
BACKGROUND = 128


def frames_of(scene: Scene) -> NDArray[np.uint8]:
    """(frames, SIZE, SIZE, 3)."""
    return np.stack(list(render_frames(scene)))


def still(scene: Scene) -> Scene:
    """The same person before a plain wall, without distractors, filmed from a tripod."""
    return replace(
        scene,
        texture=np.full_like(scene.texture, BACKGROUND),
        distractors=(),
        shake=np.zeros_like(scene.shake),
    )


def symmetric(scene: Scene) -> Scene:
    """The same action in the middle of the picture, everything else alike on both sides."""
    rest = Pose(upper_arm=(0.2, 0.2), forearm=(0.3, 0.3))
    return replace(
        still(scene),
        motion=replace(scene.motion, rest=rest, drift=0.0),
        centre=(SIZE / 2, scene.centre[1]),
    )


def some_scenes(action: str, count: int) -> list[Scene]:
    first = CLASSES.index(action)
    return [draw_scene(5, "test", first + turn * len(CLASSES)) for turn in range(count)]


def decoded(path: Path) -> NDArray[np.uint8]:
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(frames).astype(np.uint8)


# --- what is drawn -----------------------------------------------------------------------------


def test_frames_are_a_function_of_seed_split_and_index() -> None:
    frames = frames_of(draw_scene(1, "train", 3))
    assert frames.dtype == np.uint8
    assert frames.shape[1:] == (64, 64, 3)
    draw_scene(2, "train", 3)
    assert frames_of(draw_scene(1, "train", 3)).tobytes() == frames.tobytes()
    for other in [(2, "train", 3), (1, "test", 3), (1, "train", 3 + len(CLASSES))]:
        assert draw_scene(*other).action == draw_scene(1, "train", 3).action
        assert frames_of(draw_scene(*other)).tobytes() != frames.tobytes()


def test_classes_are_many_and_balanced() -> None:
    assert len(CLASSES) >= 12
    assert list(CLASSES) == sorted(set(CLASSES))
    rows = [figures.sample(0, "train", index) for index in range(5 * len(CLASSES))]
    assert Counter(row.labels["action"] for row in rows) == dict.fromkeys(range(len(CLASSES)), 5)
    for index, row in enumerate(rows):
        action = CLASSES[row.labels["action"]]
        assert draw_scene(0, "train", index).action == action
        assert row.path == f"train/{action}/{row.sample_id}.mp4"
    others = [figures.sample(seed, split, 0) for seed, split in [(1, "train"), (0, "test")]]
    assert len({row.sample_id for row in rows + others}) == len(rows) + 2


def test_durations_and_frame_rates_differ() -> None:
    scenes = [draw_scene(0, "train", index) for index in range(60)]
    assert {scene.frame_rate for scene in scenes} == {24, 25, 30}
    durations = np.array([scene.frames / scene.frame_rate for scene in scenes])
    assert durations.min() >= 2 - 1 / 24
    assert durations.max() <= 4 + 1 / 24
    assert np.ptp(durations) > 1


def test_every_action_moves() -> None:
    for action in CLASSES:
        frames = frames_of(still(some_scenes(action, 1)[0])).astype(float)
        assert np.abs(np.diff(frames, axis=0)).max() > 20, action


# --- left and right ----------------------------------------------------------------------------


def test_there_are_pairs() -> None:
    assert len(SIDES) >= 3
    assert {f"{name}_right" for name in SIDES} <= set(CLASSES)


def people_x(frames: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Where the person stands in each frame: the mean column of what is not the wall."""
    person = np.abs(frames.astype(float) - BACKGROUND).max(axis=-1) > 25
    columns = np.arange(frames.shape[2])
    return (person.sum(axis=1) @ columns) / person.sum(axis=(1, 2))


@pytest.mark.parametrize(("action", "sign"), [("walk_left", -1), ("walk_right", 1)])
def test_who_walks_left_gets_there(action: str, sign: int) -> None:
    for scene in some_scenes(action, 4):
        x = people_x(frames_of(still(scene)))
        third = len(x) // 3
        assert sign * (x[-third:].mean() - x[:third].mean()) > 2


def coarse(frames: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Means of 4 × 4 pixels: drawing rounds to pixels, and not alike on both sides."""
    return frames.reshape(len(frames), SIZE // 4, 4, SIZE // 4, 4, 3).mean(axis=(2, 4))


@pytest.mark.parametrize("name", [name for name in SIDES if name != "turn"])
def test_right_is_left_mirrored(name: str) -> None:
    unlike, mirrored = 0.0, 0.0
    for scene in some_scenes(f"{name}_left", 4):
        left = frames_of(symmetric(scene))
        right = frames_of(replace(symmetric(scene), action=f"{name}_right"))
        unlike += float(np.abs(coarse(left) - coarse(right)).mean())
        mirrored += float(np.abs(coarse(left[:, :, ::-1]) - coarse(right)).mean())
    assert mirrored < 0.4 * unlike


def headings(action: str, scene: Scene) -> NDArray[np.float64]:
    """Which way the person faces in each frame, in radians."""
    times = np.arange(scene.frames) / scene.frame_rate
    poses = [ACTIONS[action](float(time), scene.motion) for time in times]
    return np.array([pose.heading for pose in poses])


def test_turns_go_opposite_ways_at_one_pace() -> None:
    """Little of a turn tells its side: the poses are compared, not the pixels."""
    for scene in map(symmetric, some_scenes("turn_left", 4)):
        left, right = headings("turn_left", scene), headings("turn_right", scene)
        assert np.all(np.diff(right) > 0)
        np.testing.assert_allclose(left, -right)
        assert np.any(frames_of(scene) != frames_of(replace(scene, action="turn_right")))


@pytest.mark.parametrize("name", [name for name in SIDES if name not in ("walk", "turn")])
@pytest.mark.parametrize("side", ["left", "right"])
def test_one_limb_moves_on_its_side_of_the_picture(name: str, side: str) -> None:
    for scene in some_scenes(f"{name}_{side}", 2):
        frames = frames_of(symmetric(scene)).astype(float)
        moved = np.abs(np.diff(frames, axis=0)).sum(axis=(0, 1, 3))
        half = moved[: SIZE // 2] if side == "left" else moved[SIZE // 2 :]
        assert half.sum() > 0.8 * moved.sum()


# --- the files ---------------------------------------------------------------------------------


def test_a_file_is_h264_and_holds_what_was_rendered(tmp_path: Path) -> None:
    for index in range(3):
        row = figures.render_one(tmp_path, 7, "test", index)
        scene = draw_scene(7, "test", index)
        with av.open(str(tmp_path / row.path)) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
            assert (stream.width, stream.height) == (64, 64)
            assert (stream.average_rate, stream.frames) == (scene.frame_rate, scene.frames)
        rendered, read = frames_of(scene).astype(float), decoded(tmp_path / row.path)
        assert read.shape == rendered.shape
        error = np.abs(read - rendered).mean(axis=(1, 2, 3))
        assert error.max() < 8
        shifted = np.abs(read[:-5] - rendered[5:]).mean(axis=(1, 2, 3))
        assert error.mean() < shifted.mean()  # each frame at its own place


def test_files_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    arguments = {"seed": 3, "split": "train", "count": 3}
    one = list(figures.render(tmp_path / "one", **arguments, workers=1))  # type: ignore[arg-type]
    two = list(figures.render(tmp_path / "two", **arguments, workers=2))  # type: ignore[arg-type]
    assert one == two == [figures.sample(3, "train", index) for index in range(3)]
    for row in one:
        first, second = tmp_path / "one" / row.path, tmp_path / "two" / row.path
        assert first.read_bytes() == second.read_bytes()


def test_a_file_appears_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / figures.sample(0, "train", 0).path

    def interrupted(scene: Scene) -> Iterator[NDArray[np.uint8]]:
        for number, frame in enumerate(render_frames(scene)):
            if number == 20:
                raise KeyboardInterrupt
            yield frame

    with monkeypatch.context() as patched:
        patched.setattr(figures, "render_frames", interrupted)
        with pytest.raises(KeyboardInterrupt):
            figures.render_one(tmp_path, 0, "train", 0)
    assert not path.exists()
    assert list(tmp_path.rglob("*.mp4")) == []
    figures.render_one(tmp_path, 0, "train", 0)
    assert len(decoded(path)) == draw_scene(0, "train", 0).frames
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_file_that_stands_is_not_rendered_again(tmp_path: Path) -> None:
    row = figures.sample(0, "train", 0)
    path = tmp_path / row.path
    path.parent.mkdir(parents=True)
    path.write_bytes(b"as it was")
    assert figures.render_one(tmp_path, 0, "train", 0) == row
    assert path.read_bytes() == b"as it was"
