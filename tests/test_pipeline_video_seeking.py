"""Seeking changes nothing: the frames are those of a decode from the beginning, bit for bit."""

from __future__ import annotations

import struct
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

import video_making as making
from pipeline import video_file
from pipeline.video import VideoError, open_video
from pipeline.video_file import VideoFile

CLIPS = Path(__file__).parents[2] / "shared" / "data" / "clips"
RATE, FRAMES, SIZE = 30, 420, 48  # 14 seconds
MILLISECOND = Fraction(1, 1000)
CLOSED = "keyint=30:min-keyint=30:scenecut=0:bframes=3:b-adapt=0"
OPEN = f"{CLOSED}:open-gop=1"
UNEVEN_MS = list(accumulate(np.random.default_rng(5).integers(5, 62, FRAMES).tolist()))

# name of the file → how it is made, and whether it is sought in
Making = dict[str, Any]
FILES: dict[str, tuple[Making, bool]] = {
    "closed.mp4": ({"params": CLOSED}, True),
    "open.mp4": ({"params": OPEN}, True),
    "open.mkv": ({"params": OPEN}, True),
    "open.mov": ({"params": OPEN + ":b-pyramid=normal:weightp=2:ref=4"}, True),
    "uneven.mp4": ({"params": OPEN, "stamps_ms": UNEVEN_MS}, True),
    "uneven.mkv": ({"params": OPEN, "stamps_ms": UNEVEN_MS}, True),
    "starts_later.mp4": ({"params": OPEN, "first_ms": 7000}, True),
    "starts_later.mkv": ({"params": OPEN, "first_ms": 7000}, True),
    "fragments.mp4": ({"params": OPEN, "flags": "frag_keyframe+empty_moov"}, True),
    "edited.mp4": ({"params": OPEN, "trim": 47}, True),
    "refreshed.mp4": ({"params": "keyint=30:intra-refresh=1:bframes=0"}, False),
    "refreshed.mkv": ({"params": "keyint=30:intra-refresh=1:bframes=0"}, False),
    "one_key.mp4": ({"params": "keyint=infinite:scenecut=0"}, False),
    "mpeg4.mp4": ({"codec": "mpeg4", "options": {"bf": "2", "g": "30"}}, True),
    "mpeg4.avi": ({"codec": "mpeg4", "options": {"bf": "2", "g": "30"}}, False),
    "h264.avi": ({"params": OPEN}, False),
    "h264.ts": ({"params": OPEN}, False),
    "mpeg2.mkv": ({"codec": "mpeg2video", "options": {"bf": "2", "g": "30"}}, True),
    "vp9.webm": (
        {"codec": "libvpx-vp9", "options": {"g": "30", "deadline": "realtime", "cpu-used": "8"}},
        True,
    ),
}


def write(
    path: Path,
    *,
    codec: str = "libx264",
    params: str = "",
    options: dict[str, str] | None = None,
    stamps_ms: list[int] | None = None,
    first_ms: int = 0,
    flags: str = "",
    trim: int = 0,
) -> Path:
    """Encode drifting noise: every frame differs, and a wrong reference shows."""
    random = np.random.default_rng(0)
    backdrop = random.integers(0, 200, (SIZE, 4 * SIZE, 3), dtype=np.uint8)
    with av.open(str(path), "w", options={"movflags": flags} if flags else {}) as container:
        stream = container.add_stream(codec, rate=RATE)
        stream.width, stream.height, stream.pix_fmt = SIZE, SIZE, "yuv420p"
        stream.options = {"threads": "1", **(options or {})}
        if params:
            stream.options = {**stream.options, "x264-params": params, "preset": "veryfast"}
        if stamps_ms or first_ms:
            stream.codec_context.time_base = MILLISECOND
        for index in range(FRAMES):
            left = index % (3 * SIZE)
            picture = backdrop[:, left : left + SIZE] + random.integers(0, 50, dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if stamps_ms or first_ms:
                frame.pts = stamps_ms[index] if stamps_ms else first_ms + index * 1000 // RATE
                frame.time_base = MILLISECOND
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    if trim:
        _begin_later(path, trim)
    return path


def _begin_later(path: Path, frames: int) -> None:
    """Let an MP4's edit list begin so many frames later, within a group of pictures."""
    content = bytearray(path.read_bytes())
    at = content.index(b"elst") + 16
    with av.open(str(path)) as container:
        unit = container.streams.video[0].time_base or Fraction(1)
    (begin,) = struct.unpack_from(">i", content, at)
    struct.pack_into(">i", content, at, begin + int(frames / RATE / unit))
    path.write_bytes(content)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Make a file of `FILES`, once."""
    folder = tmp_path_factory.mktemp("long")

    def make(name: str) -> Path:
        path = folder / name
        return path if path.exists() else write(path, **FILES[name][0])

    return make


@lru_cache(maxsize=3)
def every_frame(path: Path) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """By a plain decode from the beginning: seconds since the first frame, and (N, H, W, 3)."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        ticks = [frame.dts if path.suffix == ".avi" else frame.pts for frame in frames]
        unit = float(stream.time_base or 0)
        # The last frames of an AVI have no stamp.
        seconds = [k / RATE if t is None else (t - ticks[0]) * unit for k, t in enumerate(ticks)]
        rgb = np.stack([frame.to_ndarray(format="rgb24") for frame in frames])
    return np.array(seconds), rgb


def on_screen(stamps_sec: NDArray[np.float64], times_sec: NDArray[np.float64]) -> NDArray[np.int64]:
    """The last frame presented at or before each time (0.1 ms early counts as in time)."""
    return np.maximum(np.searchsorted(stamps_sec, times_sec + 1e-4, side="right") - 1, 0)


class Watched:
    """Counts what is opened, sought and decoded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = self.seeks = self.decoded = 0
        opened, sought, decode = video_file.open_container, VideoFile._from_key, VideoFile._decode

        def count_opened(path: Path) -> Any:
            self.opened += 1
            return opened(path)

        def count_seeks(video: VideoFile, *times: float) -> Any:
            self.seeks += 1
            return sought(video, *times)

        def count_decoded(video: VideoFile, packets: Any, since: int | None = None) -> Any:
            for frame in decode(video, packets, since):
                self.decoded += 1
                yield frame

        monkeypatch.setattr(video_file, "open_container", count_opened)
        monkeypatch.setattr(VideoFile, "_from_key", count_seeks)
        monkeypatch.setattr(VideoFile, "_decode", count_decoded)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


@pytest.mark.parametrize("name", FILES)
def test_the_frames_are_those_of_a_decode_from_the_beginning(
    name: str, made: Callable[[str], Path], watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_file, "_LEAST_BLIND_JUMP_SEC", 2.0)
    stamps, every = every_frame(made(name))
    assert len(stamps) == FRAMES - FILES[name][0].get("trim", 0)
    assert np.all(np.diff(stamps) > 0)
    random = np.random.default_rng(1)
    # Single times; short stretches; the very stamps; and far apart, in any order, in one pass.
    asked = [random.uniform(-0.2, stamps[-1] + 0.2, 1) for _ in range(12)]
    asked += [random.uniform(0, stamps[-1]) + np.arange(6) * 0.13 for _ in range(6)]
    asked += [stamps[[random.integers(len(stamps))]] for _ in range(12)]
    asked += [random.uniform(0, stamps[-1], 4), random.permutation(stamps)]
    for times in asked:
        with open_video(made(name)) as video:
            frames = video.frames_at(times)
        expected = on_screen(stamps, times)
        np.testing.assert_array_equal(frames.rgb[frames.index], every[expected])
    sought = watched.decoded < 0.55 * sum(on_screen(stamps, times).max() + 2 for times in asked)
    assert sought == FILES[name][1], name


def test_the_fixtures_are_what_they_say(made: Callable[[str], Path]) -> None:
    with av.open(str(made("open.mkv"))) as container:
        packets = [p for p in container.demux(video=0) if p.pts is not None]
    keys = [at for at, packet in enumerate(packets) if packet.is_keyframe]
    assert len(keys) > 5
    assert all(packets[at + 1].pts < packets[at].pts for at in keys[1:-1])  # shown before the key
    with av.open(str(made("refreshed.mkv"))) as container:
        packets = [p for p in container.demux(video=0) if p.pts is not None]
    assert sum(packet.is_keyframe for packet in packets) > 5
    with av.open(str(made("starts_later.mp4"))) as container:
        assert next(container.decode(video=0)).time == pytest.approx(7.0, abs=1e-3)
    with av.open(str(made("edited.mp4"))) as container:
        assert not next(container.decode(video=0)).key_frame


def test_an_open_video_answers_again_and_earlier(made: Callable[[str], Path]) -> None:
    for name in ("open.mp4", "mpeg4.avi"):
        stamps, every = every_frame(made(name))
        with open_video(made(name)) as video:
            for time in (11.0, 11.0, 3.0, 3.2, 0.0, 13.9, 99.0, 13.0):
                (rgb,) = video.frames_at(np.array([time])).rgb
                (at,) = on_screen(stamps, np.array([time]))
                np.testing.assert_array_equal(rgb, every[at])


def test_what_is_near_is_decoded_through(made: Callable[[str], Path], watched: Watched) -> None:
    with open_video(made("closed.mp4")) as video:
        video.frames_at(np.array([0.5, 1.1, 2.05, 2.9]))  # key frames each second
        assert watched.seeks == 0
        video.frames_at(np.array([2.95, 12.05]))
        assert watched.seeks == 1
    assert watched.decoded < 150
    assert watched.opened == 1


def test_where_a_seek_lands_too_late_an_earlier_key_frame_is_taken(
    made: Callable[[str], Path], watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A demuxer that lands `late` seconds after what it is asked for."""
    stamps, every = every_frame(made("closed.mp4"))
    ticks = VideoFile._ticks
    for late, seeks, opened in ((0.0, 1, 1), (2.0, 2, 1), (90.0, 2, 2)):
        monkeypatch.setattr(VideoFile, "_ticks", lambda v, t, late=late: ticks(v, t + late))
        watched.seeks = watched.opened = 0
        with open_video(made("closed.mp4")) as video:
            (rgb,) = video.frames_at(np.array([11.5])).rgb
        np.testing.assert_array_equal(rgb, every[on_screen(stamps, np.array([11.5]))[0]])
        assert (watched.seeks, watched.opened) == (seeks, opened)


# --- damage ------------------------------------------------------------------------------------


def test_only_what_is_read_is_checked(tmp_path: Path) -> None:
    path = write(tmp_path / "spoilt.mp4", params=CLOSED)
    _, every = every_frame(path)
    making.spoil(path, 195, begin=0.0)  # in the second from 6 to 7
    for second in (5.5, 7.5):
        with open_video(path) as video:
            (rgb,) = video.frames_at(np.array([second])).rgb
        np.testing.assert_array_equal(rgb, every[int(second * RATE)])
    with open_video(path) as video, pytest.raises(VideoError, match=r"damaged after 6\.\d\d s"):
        video.frames_at(np.array([6.9]))


@pytest.mark.parametrize("name", ["cut.mp4", "cut.mkv", "cut.avi"])
def test_a_stretch_behind_the_end_of_the_data_is_an_error(name: str, tmp_path: Path) -> None:
    flags = "faststart" if name == "cut.mp4" else ""
    path = making.cut_before(write(tmp_path / name, params=CLOSED, flags=flags), 300)
    with (
        open_video(path) as video,
        pytest.raises(VideoError, match=r"ends at (9|10)\.\d+ s, but|dam"),
    ):
        video.frames_at(np.array([13.5]))
    with open_video(path) as video:
        assert len(video.frames_at(np.array([8.5])).rgb) == 1


# --- real clips --------------------------------------------------------------------------------


def test_stretches_of_a_real_clip(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    path = CLIPS / "arm_wrestling.mp4"
    if not path.is_file():
        pytest.skip(f"no real clip at {path}")
    stamps, every = every_frame(path)
    for time in np.random.default_rng(0).uniform(0, stamps[-1], 10):
        with open_video(path) as video:
            (rgb,) = video.frames_at(np.array([time])).rgb
        np.testing.assert_array_equal(rgb, every[on_screen(stamps, np.array([time]))[0]])
