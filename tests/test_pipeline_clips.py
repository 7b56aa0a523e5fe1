"""Clips: one decode for all views and networks, and the same pixels wherever a view is replayed."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
import xxhash
from numpy.typing import NDArray

import video_making as making
from pipeline import video_file
from pipeline.clips import (
    ClipDataset,
    ClipReader,
    DecoderDiedError,
    DrawnViews,
    Read,
    Request,
    SampleClips,
    StoredViews,
    iterate,
    read_clips,
    stretch,
)
from pipeline.protocols import CENTRE, ProtocolViews
from pipeline.samples import Sample, Samples, build_samples
from pipeline.video import VideoError, VideoInfo
from pipeline.video_file import VideoFile
from pipeline.views import ClipSpec, View, ViewRule, cut_clip
from video_making import frame_number, write_video

WIDE = ClipSpec(frames=6, stride=4, size=32)
DENSE = ClipSpec(frames=9, stride=2, size=20)
SPECS = (WIDE, DENSE)
RULE = ViewRule(seed=3, scale=(0.3, 1.0), span_sec=WIDE.span_sec, flip=True)
VIEWS = DrawnViews(RULE, (0, 1, 2))
# The rate and the decoder's order of each video: 30 fps H.264 with B-frames, 25 fps MPEG-4.
PATHS = {"h264": "h264.mp4", "mpeg4": "mpeg4.avi"}
BAD = {"cut": "cut.mp4", "gone": "gone.mp4", "empty": "empty.mp4"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of videos, good and bad; read only."""
    root = tmp_path_factory.mktemp("videos")
    write_video(root / "h264.mp4", rate=30, frames=75, b_frames=3, size=(96, 64), noise=True)
    write_video(root / "mpeg4.avi", codec="mpeg4", frames=60, b_frames=2, noise=True)
    making.cut_off(write_video(root / "cut.mp4", noise=True, faststart=True), 0.3)
    (root / "empty.mp4").touch()
    return root


def sample(name: str, start_sec: float = 0.0, stop_sec: float | None = None) -> Sample:
    path = {**PATHS, **BAD}[name]
    return Sample(name, path, "train", {"action": 0}, start_sec=start_sec, stop_sec=stop_sec)


def table(*names: str) -> Samples:
    return build_samples("tiny", {"action": ["bow"]}, [sample(name) for name in names])


def every_frame(path: Path) -> NDArray[np.uint8]:
    """(frames, H, W, 3) by a plain decode."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(frames).astype(np.uint8)


def due(view: View, spec: ClipSpec, rate: int, frames: int) -> list[int]:
    """The frames of a clip by hand: evenly around the centre, inside the video."""
    middle = (spec.frames - 1) / 2
    times = [view.centre_sec + (step - middle) * spec.stride / 30 for step in range(spec.frames)]
    inside = [min(max(time, 0.0), frames / rate) for time in times]
    return [min(int(time * rate + 1e-3), frames - 1) for time in inside]


def assert_same(found: SampleClips | None, expected: SampleClips) -> None:
    assert found is not None
    np.testing.assert_array_equal(found.views, expected.views)
    np.testing.assert_array_equal(found.digests, expected.digests)
    assert len(found.clips) == len(expected.clips)
    for one, other in zip(found.clips, expected.clips, strict=True):
        np.testing.assert_array_equal(one, other)


# --- one decode --------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "rate", "frames"), [("h264", 30, 75), ("mpeg4", 25, 60)])
def test_clips_and_digests_against_a_plain_decode(
    name: str, rate: int, frames: int, root: Path
) -> None:
    read = read_clips(root, sample(name), VIEWS, SPECS)
    video = every_frame(root / PATHS[name])
    assert len(video) == frames
    assert [clips.shape for clips in read.clips] == [(3, 6, 32, 32, 3), (3, 9, 20, 20, 3)]
    for row, record in enumerate(read.views):
        view = View.from_row(record)
        hashes = b""
        for clips, spec in zip(read.clips, SPECS, strict=True):
            rows = due(view, spec, rate, frames)
            np.testing.assert_array_equal(clips[row], cut_clip(video[rows], view, spec))
            for index in rows:
                digest = xxhash.xxh3_64_intdigest(np.ascontiguousarray(video[index]).tobytes())
                hashes += digest.to_bytes(8, "little")
        assert int(read.digests[row, 0]) == xxhash.xxh3_64_intdigest(hashes)


def test_one_decode_serves_all_views_and_networks_like_separate_ones(root: Path) -> None:
    together = read_clips(root, sample("h264"), VIEWS, SPECS)
    for row in range(3):
        for which, spec in enumerate(SPECS):
            alone = read_clips(root, sample("h264"), DrawnViews(RULE, (row,)), [spec])
            np.testing.assert_array_equal(alone.views[0], together.views[row])
            np.testing.assert_array_equal(alone.clips[0][0], together.clips[which][row])


def test_a_box_is_resized_to_the_bytes_that_torch_gives_for_planes() -> None:
    """A cache's clips stay what they were: only the layout in memory is chosen for speed."""
    random = np.random.default_rng(0)
    rgb = random.integers(0, 256, (3, 96, 128, 3), dtype=np.uint8)
    for _ in range(25):
        x0, y0, *shares = random.uniform(0, 0.5, 4)
        view = View(0.0, x0, y0, x0 + shares[0] + 0.01, y0 + shares[1] + 0.01, flip=False)
        spec = ClipSpec(frames=3, stride=1, size=int(random.integers(5, 150)))
        left, right = round(view.x0 * 128), max(round(view.x0 * 128) + 1, round(view.x1 * 128))
        top, bottom = round(view.y0 * 96), max(round(view.y0 * 96) + 1, round(view.y1 * 96))
        planes = torch.from_numpy(rgb[:, top:bottom, left:right]).permute(0, 3, 1, 2).contiguous()
        resized = torch.nn.functional.interpolate(
            planes, size=(spec.size, spec.size), mode="bilinear", align_corners=False
        )
        whole = cut_clip(rgb, view, spec)
        np.testing.assert_array_equal(whole, resized.permute(0, 2, 3, 1).numpy())
        for one, frame in zip(whole, rgb, strict=True):
            np.testing.assert_array_equal(cut_clip(frame[None], view, spec)[0], one)


def test_later_networks_do_not_change_the_digest(root: Path) -> None:
    both = read_clips(root, sample("h264"), VIEWS, SPECS)
    first = read_clips(root, sample("h264"), VIEWS, SPECS, digested=[[0], [1, 0]])
    alone = read_clips(root, sample("h264"), VIEWS, SPECS[:1])
    np.testing.assert_array_equal(first.digests[:, :1], alone.digests)
    assert not np.any(first.digests == both.digests)  # (1, 0) is another order than (0, 1)
    assert len(set(both.digests[:, 0].tolist())) == 3


def test_a_digest_tells_of_a_changed_pixel(root: Path, tmp_path: Path) -> None:
    other = write_video(
        tmp_path / "h264.mp4", rate=30, frames=75, b_frames=3, size=(96, 64), first_number=1
    )
    before = read_clips(root, sample("h264"), VIEWS, SPECS)
    after = read_clips(other.parent, sample("h264"), VIEWS, SPECS)
    np.testing.assert_array_equal(before.views, after.views)
    assert not np.any(before.digests == after.digests)


# --- replay ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PATHS)
def test_a_stored_record_replays_in_this_process(name: str, root: Path) -> None:
    drawn = read_clips(root, sample(name), VIEWS, SPECS)
    assert_same(read_clips(root, sample(name), VIEWS, SPECS), drawn)
    assert_same(read_clips(root, sample(name), StoredViews(drawn.views), SPECS), drawn)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine of one core
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stored_record_replays_in_other_processes(workers: int, root: Path) -> None:
    names = ["cut", "h264", "mpeg4", "h264", "cut"]
    drawn = {name: read_clips(root, sample(name), VIEWS, SPECS) for name in PATHS}
    dataset = ClipDataset(root, table("h264", "mpeg4", "cut"), SPECS)
    requests: list[Request] = [
        (2, VIEWS),
        (0, StoredViews(drawn["h264"].views)),
        (1, StoredViews(drawn["mpeg4"].views)),
        (0, VIEWS),
    ]
    state = torch.get_rng_state()
    batches = list(iterate(dataset, [requests[:1], requests[1:], requests[:1]], workers))
    assert [len(batch) for batch in batches] == [1, 3, 1]
    assert torch.equal(torch.get_rng_state(), state)  # training must not notice the reading
    reads = [read for batch in batches for read in batch]
    assert [read.row for read in reads] == [2, 0, 1, 0, 2]
    for name, read in zip(names, reads, strict=True):
        if name == "cut":
            assert read.clips is None
            assert read.error is not None
            assert "damaged" in read.error
        else:
            assert read.error is None
            assert_same(read.clips, drawn[name])


def test_no_batches_are_no_answers(root: Path) -> None:
    dataset = ClipDataset(root, table("h264"), SPECS)
    for workers in (0, 2):
        assert list(iterate(dataset, [], workers)) == []


# --- bad videos --------------------------------------------------------------------------------


def test_a_bad_video_is_an_answer_and_the_others_are_unaffected(root: Path) -> None:
    dataset = ClipDataset(root, table("cut", "h264", "gone", "empty", "mpeg4"), SPECS)
    requests: list[Request] = [(row, VIEWS) for row in range(5)]
    (reads,) = iterate(dataset, [requests], 0)
    assert [read.row for read in reads] == [0, 1, 2, 3, 4]
    reasons = {0: r"cut.mp4: damaged", 2: r"gone.mp4: no such file", 3: "empty.mp4: the file is"}
    for row, read in enumerate(reads):
        if row in reasons:
            assert read == Read(row, None, read.error)
            assert reasons[row] in str(read.error)
    assert_same(reads[1].clips, read_clips(root, sample("h264"), VIEWS, SPECS))
    assert_same(reads[4].clips, read_clips(root, sample("mpeg4"), VIEWS, SPECS))


def test_a_record_that_is_no_view_is_an_error_not_a_bad_video(root: Path) -> None:
    dataset = ClipDataset(root, table("h264"), SPECS)
    with pytest.raises(ValueError, match="not a view record"):
        dataset[0, StoredViews(np.zeros((1, 6)))]


# --- several samples of one video --------------------------------------------------------------

# Overlapping, the same twice, far apart, short, at both ends, behind the end: in no order of time.
STRETCHES = [
    (8.0, 9.5),
    (0.0, 2.0),
    (8.4, 9.0),
    (13.9, 14.1),
    (30.0, 31.0),
    (11.0, None),
    (8.0, 9.5),
]


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a video of 14 seconds, a key frame each second, and a short one."""
    root = tmp_path_factory.mktemp("long")
    params = "keyint=30:min-keyint=30:scenecut=0:open-gop=1"
    write_video(root / "long.mp4", rate=30, frames=420, b_frames=3, noise=True, x264=params)
    write_video(root / "short.mp4", rate=30, frames=40, noise=True)
    return root


def segments(*paths: str) -> Samples:
    rows = [
        Sample(f"{path}-{number}", path, "train", {"action": 0}, start, stop)
        for path in paths
        for number, (start, stop) in enumerate(STRETCHES)
    ]
    return build_samples("tiny", {"action": ["bow"]}, rows)


def test_samples_of_one_video_are_read_in_one_pass_like_alone(
    long: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = segments("long.mp4")
    alone = [ClipDataset(long, samples, SPECS)[row, VIEWS] for row in range(len(samples))]
    opened, decoded = [], []
    open_container, decode = video_file.open_container, VideoFile._decode

    def watched(self: VideoFile, *arguments: Any) -> Any:
        for presented, frame in decode(self, *arguments):
            decoded.append(presented)
            yield presented, frame

    monkeypatch.setattr(
        video_file, "open_container", lambda path: opened.append(path) or open_container(path)
    )
    monkeypatch.setattr(
        VideoFile, "_decode", lambda self, packets, since=None: watched(self, packets, since)
    )
    requests: list[Request] = [(row, VIEWS) for row in range(len(samples))]
    (reads,) = iterate(ClipDataset(long, samples, SPECS), [requests], 0)
    assert opened == [long / "long.mp4"]
    assert decoded == sorted(decoded)  # one pass
    assert len(set(decoded)) == len(decoded)
    assert len(decoded) < 300  # and not through the gaps
    assert [read.row for read in reads] == list(range(len(samples)))
    for read, expected in zip(reads, alone, strict=True):
        assert read.error == expected.error
        if expected.clips is not None:
            assert_same(read.clips, expected.clips)
    assert [read.row for read in reads if read.error] == [4]
    assert "starts at 30.00 s, but the video ends at 14.00 s" in str(reads[4].error)


def test_a_batch_of_several_videos_is_answered_in_its_order(long: Path) -> None:
    samples = segments("long.mp4", "short.mp4", "gone.mp4")
    dataset = ClipDataset(long, samples, SPECS)
    order = np.random.default_rng(0).permutation(len(samples)).tolist()
    (reads,) = iterate(dataset, [[(row, VIEWS) for row in order]], 0)
    assert [read.row for read in reads] == order
    for read in reads:
        alone = dataset[read.row, VIEWS]
        assert read.error == alone.error
        if alone.clips is not None:
            assert_same(read.clips, alone.clips)


def test_damage_is_the_error_of_the_samples_that_need_what_is_damaged(
    long: Path, tmp_path: Path
) -> None:
    (tmp_path / "long.mp4").write_bytes((long / "long.mp4").read_bytes())
    making.spoil(tmp_path / "long.mp4", 260, begin=0.0)  # between 8 and 9 s
    reads = ClipDataset(tmp_path, segments("long.mp4"), SPECS).__getitems__(
        [(row, VIEWS) for row in range(len(STRETCHES))]
    )
    whole = ClipDataset(long, segments("long.mp4"), SPECS)
    for read in reads:
        if read.row in (0, 2, 4, 6):
            assert read.clips is None
            assert ("starts at 30" if read.row == 4 else "damaged after 8.") in str(read.error)
        else:
            expected = whole[read.row, VIEWS].clips
            assert expected is not None
            assert_same(read.clips, expected)


def test_requests_in_the_order_of_videos_and_time(long: Path) -> None:
    dataset = ClipDataset(long, segments("short.mp4", "long.mp4"), SPECS)
    requests: list[Request] = [(row, VIEWS) for row in range(14)]
    ordered = [row for row, _ in dataset.by_video(requests)]
    assert ordered == [1, 0, 6, 2, 5, 3, 4, 8, 7, 13, 9, 12, 10, 11]
    apart: list[Request] = [(8, VIEWS), (1, VIEWS)]
    assert dataset.by_video(apart) == apart


def test_a_published_test_crop_is_the_middle_of_the_view(root: Path) -> None:
    narrow = ClipSpec(frames=2, stride=6, size=20, test_share=0.5)
    choose = StoredViews(np.array([[1.0, 0.1, 0.0, 0.9, 1.0, 0.0]]))
    inner = StoredViews(np.array([[1.0, 0.3, 0.25, 0.7, 0.75, 0.0]]))
    cropped = ClipDataset(root, table("h264"), [narrow], test_crop=True)[0, choose].clips
    expected = ClipDataset(root, table("h264"), [narrow])[0, inner].clips
    whole = ClipDataset(root, table("h264"), [narrow])[0, choose].clips
    assert cropped is not None
    assert expected is not None
    assert whole is not None
    np.testing.assert_array_equal(cropped.clips[0], expected.clips[0])
    assert (cropped.clips[0] != whole.clips[0]).any()
    np.testing.assert_array_equal(cropped.views, whole.views)  # the record is of the view


# --- stretches ---------------------------------------------------------------------------------


def test_no_frame_is_taken_from_outside_a_stretch(root: Path) -> None:
    spec = ClipSpec(frames=16, stride=10, size=64)  # 5 seconds: more than any stretch here
    whole = View(0.0, 0.0, 0.0, 1.0, 1.0, flip=False)
    for start, stop, first, last in [(0.5, 1.0, 15, 30), (2.0, 99.0, 60, 74), (2.0, None, 60, 74)]:
        part = sample("h264", start, stop)
        middle = (start + min(stop or 2.5, 2.5)) / 2
        choose = StoredViews(np.array([[middle, *whole.as_row()[1:]]]))
        (clips,) = read_clips(root, part, choose, [spec]).clips
        numbers = [frame_number(frame) for frame in clips[0]]
        assert numbers[0] == first
        assert numbers[-1] == last
        assert numbers == sorted(numbers)


def test_views_are_drawn_inside_the_stretch(root: Path) -> None:
    part = sample("h264", 1.0, 2.25)
    choose = DrawnViews(RULE, tuple(range(50)))
    centres = [view.centre_sec for view in choose(part, VideoInfo(96, 64, 2.5, 30.0))]
    half = WIDE.span_sec / 2
    assert 1.0 + half <= min(centres) < max(centres) <= 2.25 - half
    (middle,) = ProtocolViews(CENTRE, 0.0)(part, VideoInfo(96, 64, 2.5, 30.0))
    assert middle.centre_sec == 1.625


def test_the_end_of_a_stretch_is_the_end_of_the_video_at_most() -> None:
    info = VideoInfo(96, 64, duration_sec=2.5, frame_rate=30.0)
    assert stretch(sample("h264"), info) == (0.0, 2.5)
    assert stretch(sample("h264", 1.0, 2.0), info) == (1.0, 2.0)
    assert stretch(sample("h264", 1.0, 9.0), info) == (1.0, 2.5)
    for start in (2.5, 7.0):
        with pytest.raises(
            VideoError, match=rf"h264\.mp4: the sample starts at {start:.2f} s, but"
        ):
            stretch(sample("h264", start, 9.0), info)


def test_a_decoder_ignores_ctrl_c_and_one_that_dies_is_told(root: Path) -> None:
    reader = ClipReader(ClipDataset(root, table("h264"), SPECS), 1, ahead=1)
    reads = reader.read([[(0, VIEWS)]] * 9)
    next(reads)
    for child in multiprocessing.active_children():
        os.kill(child.pid or 0, signal.SIGINT)
    for _ in range(3):
        next(reads)
    for child in multiprocessing.active_children():
        child.kill()
    with pytest.raises(DecoderDiedError, match=r"a process that decodes died .* the same command"):
        list(reads)
