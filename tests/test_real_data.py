"""Whatever is wrong with real data, all at once: one dataset of every kind through the chain."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import chain_making
from cache import Status, open_cache
from dataset_making import write_lines
from kind_making import BROKEN, CUT, KINDS, TURNED, picture, put_kinds
from pipeline.config import Run
from pipeline.datasets.listing import DatasetError
from pipeline.models import model_entry
from pipeline.views import View, cut_clip
from stages.distill import check_cache
from stages.extract import ExtractError, extract
from stages.prepare import prepare
from stages.student_training import train_student
from stages.teach import teach
from stages.teacher_training import TeachError

ROOT = Path("data/mini")
STUDENT = "pytorchvideo/x3d_nano"
_CHANGES = (
    (
        "{source: figures, root: data/mini, seed: 3, splits: {train: 14, test: 14}}",
        "{source: folder, root: data/mini}",
    ),
    ("pool: 14", "splits: [train]"),
    ("{count: 2, seed: 0", "{count: 1, seed: 0"),
    ("chunk_samples: 5", "chunk_samples: 32"),
)
# Further rows of the CSV: path, label, start, stop, and what extraction says of them, if anything.
PAST_THE_END = r"plain\.mp4: the sample starts at 5\.00 s, but the video ends at 0\.60 s"
STRETCHES = {
    "plain.mp4#0.2-99.0": ("plain.mp4,a,0.2,99", None),
    "plain.mp4#5.0-6.0": ("plain.mp4,a,5,6", PAST_THE_END),
    "variable_rate.mkv#0.5-1.0": ("variable_rate.mkv,b,0.5,1", None),
    "late_start.ts#0.3-": ("late_start.ts,b,0.3,", None),
}
NO_LABEL = "-dash_000001_000011.mp4"  # and a name that begins with a dash
# Only extraction can tell: the beginnings of these files are good.
LATE = {CUT: r"cut\.mp4: damaged after 1\.\d\d s \(a packet is incomplete\)"}
GOOD = [*KINDS, TURNED, "wrong.avi", NO_LABEL]
REASONS = {name: reason for name, (_, reason) in BROKEN.items()} | LATE
REASONS |= {name: reason for name, (_, reason) in STRETCHES.items() if reason}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The dataset and its config below the working folder; a CSV as Excel writes it lists all."""
    monkeypatch.chdir(tmp_path)
    put_kinds(ROOT)
    shutil.copy(ROOT / "plain.mp4", ROOT / "wrong.avi")
    shutil.copy(ROOT / "plain.mp4", ROOT / NO_LABEL)
    labels = ["a", "b"] * 50
    lines = [
        f"{name},{label},," for name, label in zip([*GOOD, *BROKEN, CUT], labels, strict=False)
    ]
    lines = [f"{NO_LABEL},,," if line.startswith(NO_LABEL) else line for line in lines]
    lines += [line for line, _ in STRETCHES.values()]
    lines += [lines[0], "", "gone.mp4,a,,"]  # a row again, an empty line, a missing video
    header = "path,label,start,stop"
    write_lines(ROOT / "train.csv", [header, *lines], end="\r\n", bom=True)
    write_lines(ROOT / "test.csv", [header, "plain.mp4,a,0.1,0.3", "hevc.mp4,b,0.1,0.3"])
    return chain_making.write_config(tmp_path, *_CHANGES)


def missing(run: Run) -> dict[str, tuple[str, str]]:
    with (run.outputs / "missing.csv").open(newline="") as file:
        return {row["sample_id"]: (row["status"], row["reason"]) for row in csv.DictReader(file)}


def test_every_kind_at_once_goes_through_the_chain(run: Run) -> None:
    # prepare opens no file: only what is not there is missing.
    samples = prepare(run, workers=0)
    assert missing(run) == {"gone.mp4": ("missing", "no such file")}
    every = {*GOOD, *BROKEN, CUT, *STRETCHES}
    listed = samples.of_splits(["train"]).table["sample_id"].to_pylist()
    assert len(listed) == len(every)
    assert set(listed) == every

    # extract: a status and a reason for each that is bad, the right pictures for all others.
    chain_making.write_teachers(run, classes=2)
    extract(run, chain_making.options(run))
    cache = open_cache(run.cache_path)
    ids = cache.samples["sample_id"].to_pylist()
    assert set(ids) == every
    assert cache.failures.keys() == REASONS.keys()
    for name, reason in REASONS.items():
        assert re.search(reason, cache.failures[name]), cache.failures[name]
    spec = model_entry(STUDENT).clip
    for row, name in enumerate(ids):
        stored = {field: values[0] for field, values in cache.read([row], [0]).items()}
        clip = stored[f"clip/{STUDENT}"]
        if name in REASONS:
            assert stored["status"] == Status.UNREADABLE_VIDEO
            assert not clip.any()  # nothing stands in the place of a bad video
            continue
        assert stored["status"] == Status.VALID
        rgb = picture(KINDS.get(name.partition("#")[0], KINDS["plain.mp4"]))
        rgb = np.rot90(rgb, -1) if name == TURNED else rgb
        whole = np.repeat(rgb[None].astype(np.uint8), spec.frames, axis=0)
        expected = cut_clip(whole, View.from_row(stored["views"]), spec)
        error = np.abs(clip.astype(int) - expected.astype(int))
        assert np.median(error, axis=(0, 1, 2)).max() <= 4, name
    summary = json.loads((run.outputs / "extract.json").read_text())
    assert (summary["rows"], summary["failed_samples"]) == (len(every), len(REASONS))

    # distill trains on the rest, whether they have a label or not.
    check_cache(run, cache)
    (record,) = train_student(chain_making.job(run)).records
    assert all(np.isfinite(value) for value in record.values())

    # prepare --probe finds all this out before, but for what lies behind a first frame.
    samples = prepare(run, probe=True, workers=0)
    found = missing(run)
    assert found.pop("gone.mp4") == ("missing", "no such file")
    assert found.keys() == REASONS.keys() - LATE.keys()
    for name, (status, reason) in found.items():
        assert status == "unreadable"
        past_the_end = "starts at 5.00 s, but the video lasts 0.60 s"
        assert reason == past_the_end if "#" in name else re.search(REASONS[name], reason)
    assert set(samples.of_splits(["train"]).table["sample_id"].to_pylist()) == every - found.keys()


def test_more_failures_than_the_config_allows_stop_the_run(run: Run) -> None:
    prepare(run, workers=0)
    chain_making.write_teachers(run, classes=2)
    strict = ("max_failed_share: 0.5", "max_failed_share: 0.1")
    other = chain_making.write_config(Path.cwd(), *_CHANGES, strict)
    with pytest.raises(ExtractError) as caught:
        extract(other, chain_making.options(other))
    message = str(caught.value)
    assert re.match(r"\d+ of \d+ samples failed, more than extract.max_failed_share 10%", message)
    assert "dualkd-cache repair --failed outputs/mini/cache" in message
    extract(run, chain_making.options(run))  # what was made is kept; with the share allowed it ends
    assert len(open_cache(run.cache_path).failures) == len(REASONS)


def test_a_dataset_without_a_readable_video_is_refused_by_each_stage(run: Run) -> None:
    lines = [f"{name},{'ab'[at % 2]}" for at, name in enumerate(BROKEN)]
    write_lines(ROOT / "train.csv", ["path,label", *lines])
    write_lines(ROOT / "test.csv", ["path,label,start,stop", "empty.mp4,a,0,1"])
    prepare(run, workers=0)
    chain_making.write_teachers(run, classes=2)
    with pytest.raises(ExtractError, match=r"13 of the 13 samples on which .* cannot be read"):
        extract(run, chain_making.options(run))
    with pytest.raises(TeachError, match="of 13 videos to train on cannot be read so far"):
        teach(run, train_them=True, only="cnn", device=torch.device("cpu"), decoders=0)
    with pytest.raises(
        DatasetError, match=r"none of 14 samples that are in data/mini can be read: empty\."
    ):
        prepare(run, probe=True, workers=0)


def test_annotations_without_a_row_are_refused(run: Run) -> None:
    (ROOT / "test.csv").unlink()
    for content, reason in {
        "": r"train\.csv is empty",
        "\ufeff\r\n": r"train\.csv lacks the columns path, label",
        "path,label\r\n\r\n": r"no video is listed by train\.csv: there is nothing below",
    }.items():
        (ROOT / "train.csv").write_bytes(content.encode())
        with pytest.raises(DatasetError, match=reason):
            prepare(run)
