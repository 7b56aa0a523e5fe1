"""Folders of frames, and tars of them: chosen by number and rate, read like a video."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.clips import ClipDataset, DrawnViews, iterate, read_clips
from pipeline.frames_folder import FramesFolder
from pipeline.probing import probe_all, read_answers
from pipeline.protocols import CENTRE, ProtocolViews
from pipeline.samples import Sample, build_samples
from pipeline.video import VideoError, open_video
from pipeline.views import ClipSpec, ViewRule
from video_making import frame_number, numbered_frame

COUNT, WIDTH, HEIGHT = 40, 64, 48


def write_frames(folder: Path, *, first: int = 1, suffix: str = ".jpg", count: int = COUNT) -> Path:
    """Frame k shows k, from 0 on; its file is numbered k + first."""
    folder.mkdir(parents=True)
    for number in range(count):
        image = Image.fromarray(numbered_frame(number, WIDTH, HEIGHT))
        image.save(folder / f"frame_{number + first:010d}{suffix}", quality=90)
    return folder


def pack(folder: Path, inside: str = ".") -> Path:
    """A tar beside a folder, as EPIC-KITCHENS packs its frames."""
    path = folder.with_suffix(".tar")
    with tarfile.open(path, "w") as tar:
        tar.add(folder, arcname=inside)
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("frames")
    pack(write_frames(root / "rgb_frames" / "P01" / "P01_01"))
    return root


def numbers_at(path: Path, times_sec: NDArray[np.float64]) -> list[int]:
    with open_video(path) as video:
        frames = video.frames_at(times_sec)
    return [frame_number(frames.rgb[row]) for row in frames.index]


@pytest.mark.parametrize("place", ["P01_01", "P01_01.tar"])
@pytest.mark.parametrize(
    ("written", "rate"),
    [("59.94", 59.94), ("60000/1001", 60000 / 1001), ("50", 50.0), ("0.5", 0.5), ("7.", 7.0)],
)
def test_frame_i_is_presented_at_i_over_the_rate(
    written: str, rate: float, place: str, root: Path
) -> None:
    path = root / "rgb_frames" / "P01" / f"{place}?fps={written}"
    with open_video(path) as video:
        assert video.path == path
        assert (video.info.width, video.info.height) == (WIDTH, HEIGHT)
        assert video.info.frame_rate == pytest.approx(rate)
        assert video.info.duration_sec == pytest.approx(COUNT / rate)
    stamps = np.arange(COUNT) / rate
    random = np.random.default_rng(0)
    times = np.concatenate([stamps, random.uniform(-1, stamps[-1] + 1, 40)])
    random.shuffle(times)
    expected = np.searchsorted(stamps, times + 1e-4, side="right") - 1
    assert numbers_at(path, times) == np.maximum(expected, 0).tolist()


@pytest.mark.parametrize(("first", "suffix"), [(0, ".jpg"), (1, ".JPG"), (1, ".png"), (0, ".webp")])
def test_numbering_starts_at_0_or_1(first: int, suffix: str, tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "frames", first=first, suffix=suffix, count=12)
    (folder / "._frame_0000000003.jpg").touch()  # what some systems leave in an archive
    (folder / "readme.txt").touch()
    (folder / "u").mkdir()
    for place in (folder, pack(folder, "some/where")):
        assert numbers_at(Path(f"{place}?fps=10"), np.array([0.0, 0.55, 1.1, 9.0])) == [
            0,
            5,
            11,
            11,
        ]


def test_numbers_are_sorted_as_numbers(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "frames", count=12)
    for path in folder.iterdir():
        path.rename(folder / f"{int(path.stem[-10:])}.jpg")
    assert numbers_at(Path(f"{folder}?fps=1"), np.arange(12.0)) == list(range(12))


def test_only_the_needed_frames_are_opened_once(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    read = FramesFolder._read
    monkeypatch.setattr(
        FramesFolder, "_read", lambda self, index: opened.append(index) or read(self, index)
    )
    path = root / "rgb_frames" / "P01" / "P01_01?fps=10"
    assert numbers_at(path, np.array([3.0, 0.5, 3.05, 0.51])) == [30, 5, 30, 5]
    assert opened == [5, 30]


def test_pixels_are_those_of_pillow_wherever_they_lie(root: Path) -> None:
    folder = root / "rgb_frames" / "P01"
    expected = np.array(Image.open(folder / "P01_01" / "frame_0000000008.jpg").convert("RGB"))
    for _ in range(2):
        for place in ("P01_01", "P01_01.tar"):
            with open_video(folder / f"{place}?fps=10") as video:
                (rgb,) = video.frames_at(np.array([0.7])).rgb
            np.testing.assert_array_equal(rgb, expected)


def test_samples_of_a_folder_are_read_like_those_of_a_video(root: Path) -> None:
    spec = ClipSpec(frames=4, stride=3, size=16)
    choose = DrawnViews(ViewRule(1, (0.5, 1.0), spec.span_sec, flip=False), (0, 1))
    rows = [
        Sample(f"{number}", f"rgb_frames/P01/{place}?fps=60000/1001", "train", {}, start, stop)
        for number, (place, start, stop) in enumerate(
            [("P01_01", 0.1, 0.5), ("P01_01.tar", 0.1, 0.5), ("P01_01", 9.0, 9.5)]
        )
    ]
    samples = build_samples("tiny", {"verb": ["take"]}, rows)
    dataset = ClipDataset(root, samples, [spec])
    (reads,) = iterate(dataset, [[(0, choose), (1, choose), (2, choose)]], 0)
    alone = read_clips(root, rows[0], choose, [spec])
    assert reads[0].clips is not None
    np.testing.assert_array_equal(reads[0].clips.digests, alone.digests)
    np.testing.assert_array_equal(reads[0].clips.clips[0], alone.clips[0])
    assert "the sample starts at 9.00 s, but the video ends at 0.67 s" in str(reads[2].error)
    (central,) = read_clips(root, rows[1], ProtocolViews(CENTRE, 0.0), [spec]).clips
    assert [frame_number(frame) for frame in central[0]] == [8, 14, 20, 26]


# --- bad folders -------------------------------------------------------------------------------


def _spoil(number: int, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / f"frame_{number:010d}.jpg").write_bytes(content)


def _cut(folder: Path) -> None:
    path = folder / "frame_0000000006.jpg"
    path.write_bytes(path.read_bytes()[:-40])


def _twice(folder: Path) -> None:
    (folder / "again_6.jpg").write_bytes((folder / "frame_0000000006.jpg").read_bytes())


def _other_size(folder: Path) -> None:
    Image.new("RGB", (32, 32)).save(folder / "frame_0000000006.jpg")


def _no_first(folder: Path) -> None:
    (folder / "frame_0000000001.jpg").unlink()


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "gap": (
        lambda folder: (folder / "frame_0000000006.jpg").unlink(),
        r"frame 6 is missing \(\S*frame_0000000005.jpg is followed by \S*frame_0000000007.jpg\)",
    ),
    "no first": (_no_first, "the first frame is .*frame_0000000002.jpg, expected number 0 or 1"),
    "two of a number": (_twice, "have the same number"),
    "no picture": (_spoil(6, b"404 not found" * 9), "frame_0000000006.jpg is no readable picture"),
    "no first picture": (_spoil(1, b""), "frame_0000000001.jpg is no readable picture"),
    "cut off": (_cut, r"frame_0000000006.jpg is damaged \(image file is truncated"),
    "another size": (_other_size, r"frame_0000000006.jpg has 32×32 pixels, the first .* 64×48"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", BAD)
def test_a_bad_folder_is_refused_by_name_and_reason(
    name: str, packed: bool, tmp_path: Path
) -> None:
    spoil, reason = BAD[name]
    place = write_frames(tmp_path / "frames", count=9)
    spoil(place)
    place = pack(place) if packed else place
    with pytest.raises(VideoError, match=reason) as caught:
        numbers_at(Path(f"{place}?fps=10"), np.array([0.0, 0.5, 0.8]))
    assert str(place) in str(caught.value)


def test_a_place_that_is_no_folder_of_frames(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.tar").write_text("this is no tar" * 99)
    frames = write_frames(tmp_path / "frames", count=2)
    with tarfile.open(tmp_path / "packed.tar", "w:gz") as tar:
        tar.add(frames, "frames")
    for name, reason in {
        "gone": "no such folder or tar of frames",
        "empty": "holds no numbered pictures, such as frame_0000000001.jpg",
        "text.tar": "not a readable tar, uncompressed",
        "packed.tar": "not a readable tar, uncompressed",
    }.items():
        with pytest.raises(VideoError, match=reason):
            numbers_at(tmp_path / f"{name}?fps=10", np.array([0.0]))


def test_frames_that_vanish_after_they_were_listed(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "frames", count=9)
    with open_video(Path(f"{folder}?fps=10")) as video:
        (folder / "frame_0000000006.jpg").unlink()
        with pytest.raises(VideoError, match=r"frame_0000000006\.jpg is gone"):
            video.frames_at(np.array([0.5]))
    with pytest.raises(VideoError, match="frame 6 is missing"):  # a changed folder is listed anew
        numbers_at(Path(f"{folder}?fps=10"), np.array([0.0]))


@pytest.mark.parametrize("rate", ["", "0", "-5", "1/0", "0/7", "fast", "nan", "1e3", "59,94", " 5"])
def test_a_rate_is_a_positive_number_or_fraction(rate: str, root: Path) -> None:
    path = root / "rgb_frames" / "P01" / f"P01_01?fps={rate}"
    with pytest.raises(VideoError, match="is not a positive number or fraction, as in"):
        numbers_at(path, np.array([0.0]))


@pytest.mark.parametrize("rate", ["9" * 400, f"1/{'9' * 400}", "0.00001", "1000001"])
def test_a_rate_is_one_that_a_camera_has(rate: str, root: Path) -> None:
    path = root / "rgb_frames" / "P01" / f"P01_01?fps={rate}"
    with pytest.raises(VideoError, match="rate is not between 1/86400 and 1000000 frames per sec"):
        numbers_at(path, np.array([0.0]))


def test_a_folder_whose_first_frame_was_mended_is_asked_again(tmp_path: Path) -> None:
    folder = tmp_path / "P01_01"
    folder.mkdir()
    first = folder / "frame_0000000001.jpg"
    first.write_bytes(b"")
    path, file = "P01_01?fps=60", tmp_path / "probe.jsonl"
    (answer,) = probe_all(file, tmp_path, [path], {}, 0)
    assert answer.error is not None
    assert read_answers(file, tmp_path, [path])
    Image.new("RGB", (32, 24)).save(first)
    assert not read_answers(file, tmp_path, [path])
