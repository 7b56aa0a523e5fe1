"""Reading video: the frame on screen at a time, and every way in which a file can be bad."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

import video_making as making
from pipeline.video import Frames, VideoError, open_video
from pipeline.video_file import VideoFile
from video_making import frame_number, numbered_frame, write_video

CLIPS = Path(__file__).parents[2] / "shared" / "data" / "clips"

# name of the file → how it is made, and the milliseconds of its frames from the first one on
UNEVEN_MS = [0, 40, 50, 400, 1000, 1010, 1020, 2500]
GOOD: dict[str, tuple[dict[str, object], list[float]]] = {
    "24fps.mp4": ({"rate": 24, "frames": 48}, [1000 * k / 24 for k in range(48)]),
    "ntsc.mp4": (
        {"rate": Fraction(30000, 1001), "frames": 60},
        [1001 * k / 30 for k in range(60)],
    ),
    "b_frames.mp4": ({"b_frames": 3}, [40.0 * k for k in range(50)]),
    "starts_at_2s.mp4": (
        {"stamps_ms": [2000 + 40 * k for k in range(50)], "b_frames": 2},
        [40.0 * k for k in range(50)],
    ),
    "starts_at_2s.mkv": (
        {"stamps_ms": [2000 + 40 * k for k in range(50)]},
        [40.0 * k for k in range(50)],
    ),
    "starts_at_2s.ts": (
        {"stamps_ms": [2000 + 40 * k for k in range(50)], "b_frames": 2},
        [40.0 * k for k in range(50)],
    ),
    "uneven.mp4": ({"frames": 8, "stamps_ms": UNEVEN_MS}, [float(ms) for ms in UNEVEN_MS]),
    "uneven.mkv": ({"frames": 8, "stamps_ms": UNEVEN_MS}, [float(ms) for ms in UNEVEN_MS]),
    "mpeg4.avi": ({"codec": "mpeg4"}, [40.0 * k for k in range(50)]),
    # AVI stores no presentation stamps: frame k is due at k / rate, whatever FFmpeg guesses.
    "mpeg4_b_frames.avi": ({"codec": "mpeg4", "b_frames": 2}, [40.0 * k for k in range(50)]),
    "h264_b_frames.avi": ({"b_frames": 3}, [40.0 * k for k in range(50)]),
    "slideshow.mp4": ({"rate": Fraction(1, 4), "frames": 3}, [0.0, 4000.0, 8000.0]),
    "one_frame.mp4": ({"frames": 1}, [0.0]),
    "one_frame.avi": ({"frames": 1, "codec": "mpeg4"}, [0.0]),
    "longer_audio.mp4": ({"audio_sec": 4.0}, [40.0 * k for k in range(50)]),
    "longer_audio.mkv": ({"audio_sec": 4.0}, [40.0 * k for k in range(50)]),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Make a good video of `GOOD`, once."""
    folder = tmp_path_factory.mktemp("good")

    def make(name: str) -> Path:
        path = folder / name
        return path if path.exists() else write_video(path, **GOOD[name][0])  # type: ignore[arg-type]

    return make


def frames_at(path: Path, *times_sec: float) -> Frames:
    with open_video(path) as video:
        return video.frames_at(np.array(times_sec))


def numbers_at(path: Path, *times_sec: float) -> list[int]:
    frames = frames_at(path, *times_sec)
    return [frame_number(frames.rgb[row]) for row in frames.index]


def on_screen(stamps_sec: NDArray[np.float64], times_sec: NDArray[np.float64]) -> NDArray[np.int64]:
    """The last frame presented at or before each time (0.1 ms early counts as in time)."""
    last = np.searchsorted(stamps_sec, times_sec + 1e-4, side="right") - 1
    return np.maximum(last, 0)


# --- which frame -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GOOD)
def test_the_frame_on_screen_is_the_last_one_presented(
    name: str, good: Callable[[str], Path]
) -> None:
    stamps = np.array(GOOD[name][1]) / 1000
    random = np.random.default_rng(0)
    times = np.concatenate(
        [stamps, stamps + 0.004, random.uniform(-0.5, stamps[-1] + 0.5, 60), stamps[::3]]
    )
    random.shuffle(times)
    assert numbers_at(good(name), *times) == on_screen(stamps, times).tolist()


@pytest.mark.parametrize("name", ["arm_wrestling.mp4", "mpeg4_25fps.avi"])
def test_frames_of_real_clips(name: str) -> None:
    path = CLIPS / name
    if not path.is_file():
        pytest.skip(f"no real clip at {path}")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        # The stamps of an AVI are those of decoding: sorted, they are the frames' due times.
        ticks = sorted((p.dts if name.endswith("avi") else p.pts) or 0 for p in packets)
        stamps = np.array([float(tick * stream.time_base) for tick in ticks])
        container.seek(0)
        every = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(every) == len(stamps)
    times = np.random.default_rng(0).uniform(-0.5, stamps[-1] + 0.5, 40)
    frames = frames_at(path, *times)
    for row, expected in zip(frames.index, on_screen(stamps, times), strict=True):
        np.testing.assert_array_equal(frames.rgb[row], every[expected])


def test_the_fixtures_are_what_they_say(good: Callable[[str], Path]) -> None:
    for name, b_frames in {
        "b_frames.mp4": True,
        "h264_b_frames.avi": True,
        "24fps.mp4": False,
    }.items():
        with av.open(str(good(name))) as container:
            kinds = {frame.pict_type for frame in container.decode(video=0)}
        assert (av.video.frame.PictureType.B in kinds) == b_frames, name
    with av.open(str(good("starts_at_2s.mp4"))) as container:
        assert next(container.decode(video=0)).time == 2.0
    for number in range(256):
        assert frame_number(numbered_frame(number)) == number


def test_times_in_any_order_and_repeated(good: Callable[[str], Path]) -> None:
    times = (1.5, 0.1, 1.5, 0.11, 0.9)
    frames = frames_at(good("b_frames.mp4"), *times)
    assert [frame_number(rgb) for rgb in frames.rgb] == [2, 22, 37]
    assert frames.index.tolist() == [2, 0, 2, 0, 1]


def test_edge_frames_repeat(good: Callable[[str], Path]) -> None:
    assert numbers_at(good("24fps.mp4"), -3.0, -0.001, 1.99, 2.5, 100.0) == [0, 0, 47, 47, 47]
    assert numbers_at(good("slideshow.mp4"), 11.9, 30.0) == [2, 2]  # the last one stands for 4 s


@pytest.mark.parametrize("name", ["one_frame.mp4", "one_frame.avi"])
def test_a_video_of_one_frame_gives_as_many_as_are_asked(
    name: str, good: Callable[[str], Path]
) -> None:
    frames = frames_at(good(name), *np.linspace(0, 2, 16))
    assert frames.rgb.shape == (1, making.HEIGHT, making.WIDTH, 3)
    assert frames.index.tolist() == [0] * 16


def test_pixels_are_those_of_a_plain_decode(good: Callable[[str], Path]) -> None:
    with av.open(str(good("b_frames.mp4"))) as container:
        every = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    frames = frames_at(good("b_frames.mp4"), *(k / 25 for k in range(50)))
    np.testing.assert_array_equal(frames.rgb, np.stack(every))


def test_only_the_needed_frames_are_converted(
    good: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    converted = []
    convert = VideoFile._to_rgb
    monkeypatch.setattr(
        VideoFile,
        "_to_rgb",
        lambda file, frame: converted.append(frame.pts) or convert(file, frame),
    )
    assert numbers_at(good("24fps.mp4"), 0.5, 1.0, 0.51, 0.5) == [12, 24, 12, 12]
    assert len(converted) == 2


def test_info(good: Callable[[str], Path]) -> None:
    for name, duration, rate in [
        ("24fps.mp4", 2.0, 24.0),
        ("ntsc.mp4", 60 * 1.001 / 30, 30 / 1.001),
        ("starts_at_2s.mp4", 2.0, 25.0),
        ("starts_at_2s.mkv", 2.0, 25.0),
        ("starts_at_2s.ts", 2.0, 25.0),
        ("mpeg4_b_frames.avi", 2.0, 25.0),
        ("longer_audio.mp4", 2.0, 25.0),
        ("longer_audio.mkv", 2.0, 25.0),
        ("slideshow.mp4", 12.0, 0.25),
    ]:
        with open_video(good(name)) as video:
            info = video.info
        assert (info.width, info.height) == (making.WIDTH, making.HEIGHT)
        assert info.duration_sec == pytest.approx(duration, abs=1e-3), name
        assert info.frame_rate == pytest.approx(rate), name


def test_a_title_in_another_encoding_is_no_hindrance(tmp_path: Path) -> None:
    path = write_video(tmp_path / "old.mp4", title="cafe")
    making.patch(path, b"cafe", b"caf\xe9")
    assert numbers_at(path, 0.2) == [5]


# --- bad files ---------------------------------------------------------------------------------


def _written(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def _no_index(path: Path) -> None:
    making.cut_off(write_video(path, noise=True), 0.5)


def _no_decoder(path: Path) -> None:
    making.patch(write_video(path), b"avc1\x00", b"qqqq\x00")


def _two_sizes(path: Path) -> None:
    write_video(path, codec="mpeg2video", frames=25)
    second = path.with_name(f"second-{path.name}")
    write_video(second, codec="mpeg2video", frames=25, size=(96, 48))
    path.write_bytes(path.read_bytes() + second.read_bytes())


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing.mp4": (lambda path: None, "no such file"),
    "folder.mp4": (
        Path.mkdir,
        r"is a folder; a folder of frames needs their rate, as in \S+\?fps=59\.94",
    ),
    "empty.mp4": (Path.touch, r"the file is empty \(0 bytes\)"),
    "page.mp4": (_written(b"<!doctype html><title>404</title>" * 50), "not a readable video"),
    "text.avi": (_written(b"this is not a video\n" * 50), "not a readable video"),
    "zeros.mp4": (_written(bytes(5000)), "not a readable video"),
    "no_index.mp4": (_no_index, "not a readable video, or cut off before its index"),
    "audio.mp4": (making.write_audio, r"no video stream \(it holds audio\)"),
    "album.m4a": (
        lambda path: making.write_audio(path, cover=True),
        r"no video stream \(it holds a cover picture, audio\)",
    ),
    "stream.h264": (write_video, "has no duration"),
    "instant.mp4": (
        lambda path: making.erase_duration(write_video(path, frames=1)),
        "has no duration",
    ),
    "codec.mp4": (_no_decoder, "FFmpeg has no decoder"),
    "cut_packet.mp4": (
        lambda path: making.cut_off(write_video(path, noise=True, faststart=True), 0.9),
        r"damaged after 1\.\d\d s \(a packet is incomplete\)",
    ),
    "cut_packet.avi": (
        lambda path: making.cut_off(write_video(path, codec="mpeg4", noise=True), 0.5),
        r"(damaged after|ends at) [01]\.\d\d s",
    ),
    "spoilt.mp4": (
        lambda path: making.spoil(write_video(path, noise=True), 20, begin=0.0),
        r"damaged after 0\.\d\d s",
    ),
    "spoilt.avi": (
        lambda path: making.spoil(write_video(path, codec="mpeg4", noise=True), 20, begin=0.5),
        r"damaged after 0\.76 s \(the picture is incomplete\)",
    ),
    "two_sizes.mpg": (_two_sizes, "the size of the picture changes"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_by_name_and_reason(name: str, tmp_path: Path) -> None:
    make, reason = BAD[name]
    path = tmp_path / name
    make(path)
    with pytest.raises(VideoError, match=reason) as caught:
        frames_at(path, 0.0, 1.99)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "codec"), [("whole.mp4", "libx264"), ("whole.avi", "mpeg4"), ("whole.mkv", "libx264")]
)
def test_a_file_cut_between_packets_is_not_a_short_one(
    name: str, codec: str, tmp_path: Path
) -> None:
    path = write_video(tmp_path / name, codec=codec, noise=True, faststart=name == "whole.mp4")
    making.cut_before(path, 25)
    with pytest.raises(VideoError, match=r"(ends at (0\.9|1\.0)\d s, but states 2\.00 s|damaged)"):
        frames_at(path, 1.99)


def test_what_lies_before_the_damage_is_readable(tmp_path: Path) -> None:
    cut = making.cut_off(write_video(tmp_path / "cut.mp4", noise=True, faststart=True), 0.7)
    assert numbers_at(cut, 0.1, 0.9) == [2, 22]
    with pytest.raises(VideoError, match="damaged"):
        frames_at(cut, 0.1, 1.9)


def test_an_error_in_the_body_of_an_open_video_is_a_video_error(
    good: Callable[[str], Path],
) -> None:
    path = good("24fps.mp4")
    with pytest.raises(VideoError, match=r"24fps\.mp4: cannot be read"), open_video(path):
        raise av.error.MemoryError(12, "Cannot allocate memory")


def test_the_error_travels_between_processes() -> None:
    error = pickle.loads(pickle.dumps(VideoError("a.mp4: no such file")))
    assert type(error) is VideoError
    assert str(error) == "a.mp4: no such file"
