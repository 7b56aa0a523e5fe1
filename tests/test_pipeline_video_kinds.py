"""Kinds of video: the colours of pixel formats and codecs, odd sizes, names, and what is none."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from kind_making import BROKEN, CUT, KINDS, TURNED, difference, picture, put_kinds, write_kind
from pipeline.clips import DrawnViews, read_clips
from pipeline.probing import probe
from pipeline.protocols import CENTRE, ProtocolViews
from pipeline.samples import Sample
from pipeline.video import VideoError, open_video
from pipeline.views import ClipSpec, ViewRule

_LEVELS = 4.0  # of 256: what lossy codecs may be off in the mean


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all of them."""
    return put_kinds(tmp_path_factory.mktemp("kinds") / "all")


@pytest.mark.parametrize("name", KINDS)
def test_the_colours_are_those_that_were_stored(name: str, kinds: Path) -> None:
    kind = KINDS[name]
    with open_video(kinds / name) as video:
        info = video.info
        times = np.array([0.0, info.duration_sec / 2, info.duration_sec])
        frames = video.frames_at(times)
    assert (info.width, info.height) == kind.size
    for rgb in frames.rgb:
        assert rgb.shape == (*kind.size[::-1], 3)
        assert difference(rgb, picture(kind)) <= _LEVELS
    assert probe(kinds, name).error is None


@pytest.mark.parametrize("name", KINDS)
def test_clips_are_cut_out_of_every_size_and_length(name: str, kinds: Path) -> None:
    spec, rule = ClipSpec(frames=3, stride=9, size=12), ViewRule(0, (0.1, 1.0), 0.9, flip=True)
    for choose in (DrawnViews(rule, (0, 1, 2)), ProtocolViews(CENTRE, 0.0)):
        read = read_clips(kinds, Sample(name, name, "train", {}), choose, [spec])
        assert read.clips[0].shape[1:] == (3, 12, 12, 3)


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_video_says_what_it_is(name: str, kinds: Path) -> None:
    with pytest.raises(VideoError, match=BROKEN[name][1]) as caught, open_video(kinds / name):
        pass
    assert str(kinds / name) in str(caught.value)


def test_a_turned_and_a_cut_video(kinds: Path) -> None:
    with open_video(kinds / TURNED) as video:
        (rgb,) = video.frames_at(np.zeros(1)).rgb
    assert difference(rgb, np.rot90(picture(KINDS["plain.mp4"]), -1)) <= _LEVELS
    assert probe(kinds, CUT).error is None  # only the beginning is looked at
    with open_video(kinds / CUT) as video, pytest.raises(VideoError, match=r"damaged after 1\."):
        video.frames_at(np.array([1.9]))


@pytest.mark.parametrize("name", ["wrong.avi", "wrong.webm", "wrong.mov", "wrong.jpg"])
def test_the_content_decides_not_the_ending(name: str, kinds: Path, tmp_path: Path) -> None:
    shutil.copy(kinds / "plain.mp4", tmp_path / name)
    with open_video(tmp_path / name) as video:
        (rgb,) = video.frames_at(np.zeros(1)).rgb
    assert difference(rgb, picture(KINDS["plain.mp4"])) <= _LEVELS


@pytest.mark.parametrize("name", ["-dash.mp4", "a:b.mp4", "http:x.mp4", "%03d.mp4", "#;(& ü.mp4"])
def test_names_mean_nothing_to_the_decoder(
    name: str, kinds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(kinds / "plain.mp4", tmp_path / name)
    monkeypatch.chdir(tmp_path)  # so that the path begins with the name
    assert probe(Path(), name).error is None


def test_a_kind_is_what_it_says(tmp_path: Path) -> None:
    """The pictures of the fixtures would be other ones by another matrix or range."""
    kind = KINDS["bt709.mp4"]
    wrong = write_kind(tmp_path / "wrong.mp4", kind._replace(tagged=False))  # read as BT.601
    with open_video(wrong) as video:
        (rgb,) = video.frames_at(np.zeros(1)).rgb
    assert difference(rgb, picture(kind)) > 2 * _LEVELS
