"""Stage prepare: the table, the account of what is missing, probing, and the link to the videos."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from chain_making import write_config
from dataset_making import (
    K400_ROWS,
    epic100_csvs,
    hmdb51,
    hmdb51_splits,
    k400_flat,
    k400_stem,
    put_video,
    video,
    write_lines,
    write_run,
)
from pipeline import probing
from pipeline.config import Run
from pipeline.datasets.figures import HARD, scene_id
from pipeline.datasets.listing import DatasetError
from pipeline.samples import read_samples
from stages import cli
from stages.prepare import linked_root, prepare

SPLITS = {"splits": {"train": 1, "test": 1}}


@pytest.fixture(autouse=True)
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder; the datasets lie in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path


def account(run: Run) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run.outputs / "prepare.json").read_text())
    return content


def missing(run: Run) -> list[dict[str, str]]:
    with (run.outputs / "missing.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def own_folder(root: Path) -> Path:
    """Two classes, two splits, three videos each."""
    for split in ("train", "test"):
        for name in ("a", "b"):
            for number in range(3):
                put_video(root / split / name / f"{number}.mp4")
    return root


# --- the account -------------------------------------------------------------------------------


def test_the_account_counts_and_names_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    root = k400_flat(Path("data/k400"))
    gone = K400_ROWS["train"][1]
    (root / "train" / f"{k400_stem(gone)}.mp4").unlink()
    run = write_run(Path(), "k400")
    samples = prepare(run)
    assert read_samples(run.samples_path).table.equals(samples.table)
    assert samples.splits() == {"train": 3, "val": 2, "test": 1}
    assert samples.dataset == "k400"
    found = account(run)
    assert [found[name] for name in ("listed", "found", "missing", "unreadable")] == [7, 6, 1, None]
    assert found["splits"]["train"] == {"listed": 4, "found": 3, "missing": 1, "unreadable": None}
    of_class = found["classes"]["action"]
    assert len(of_class) == 400
    assert of_class["air drumming"] == {"listed": 1, "found": 0, "missing": 1, "unreadable": None}
    assert of_class["zumba"]["found"] == 2
    assert found["root"] == "data/k400"
    assert found["layout"].startswith("CSVs in annotations/, videos in train/ (flat)")
    assert missing(run) == [
        {
            "sample_id": k400_stem(gone),
            "path": f"train/{k400_stem(gone)}.mp4",
            "split": "train",
            "class": "air drumming",
            "status": "missing",
            "reason": "no such video",
        }
    ]
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) <= 12
    assert ["train", "4", "3", "1", "–"] in [line.split() for line in printed]
    assert ["all", "7", "6", "1", "–"] in [line.split() for line in printed]
    assert "classes that lack most: air drumming (1 of 1)" in printed
    assert "what is not in the table: outputs/k400/missing.csv" in printed


def test_other_datasets_become_tables_too() -> None:
    hmdb51_splits(hmdb51(Path("data/hmdb51")) / "testTrainMulti_7030_splits")
    ids = {}
    for split in (1, 2, 3):
        run = write_run(Path(), "hmdb51", official_split=split)
        samples = prepare(run)
        assert samples.heads == {"action": 2}
        ids[split] = set(samples.of_splits(["train"]).table["sample_id"].to_pylist())
    assert ids[1] != ids[2] != ids[3]
    put_video(Path("data/epic100/P01/videos/P01_01.MP4"))
    epic100_csvs(Path("data/epic100"))
    run = write_run(Path(), "epic100")
    samples = prepare(run)
    assert samples.heads == {"verb": 2, "noun": 3}
    assert samples.splits() == {"train": 2}
    assert samples.row(1).stop_sec == 0.9
    assert account(run)["classes"]["noun"]["spoon"]["missing"] == 1
    assert [row["class"] for row in missing(run)] == ["put / spoon", ""]


def test_what_is_odd_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    root = k400_flat(Path("data/k400"))
    for row in K400_ROWS["train"][1:]:
        (root / "train" / f"{k400_stem(row)}.mp4").unlink()
    shutil.rmtree(root / "val")
    prepare(write_run(Path(), "k400"))
    printed = capsys.readouterr().err
    assert "warning: split train: 75.0\u202f% is not here; is this the whole dataset?" in printed
    assert "warning: split val: none of its 2 samples is here" in printed
    assert (
        "warning: the config reads split val (evaluate.split), of which there is nothing" in printed
    )


def test_a_dataset_of_which_nothing_is_there_is_an_error() -> None:
    root = k400_flat(Path("data/k400"))
    shutil.rmtree(root / "replacement")
    for path in root.glob("t*/*.mp4"):
        path.rename(path.with_name(f"other-{path.name}"))
    shutil.rmtree(root / "val")
    run = write_run(Path(), "k400")
    with pytest.raises(DatasetError) as caught:
        prepare(run)
    message = str(caught.value)
    assert message.startswith("CSVs in annotations/, videos in train/ (flat)")
    assert "7 samples listed, and not one of the videos is in data/k400" in message
    assert "train/-3B32lodo2M_000059_000069.mp4: no such video" in message
    assert "There is: annotations/, test/, train/" in message
    assert not run.outputs.exists()


def test_annotations_that_list_nothing_are_an_error() -> None:
    root = k400_flat(Path("data/k400"))
    for path in (root / "annotations").iterdir():
        path.write_text(path.read_text().splitlines()[0])
    with pytest.raises(DatasetError, match="but the annotations list not one video: is there any"):
        prepare(write_run(Path(), "k400"))


def test_the_splits_of_a_folder_must_be_those_of_the_config() -> None:
    own_folder(Path("data/folder"))
    run = write_run(Path(), "folder")
    assert prepare(run).splits() == {"test": 6, "train": 6}
    Path("data/folder/test").rename("data/folder/val")
    with pytest.raises(DatasetError) as caught:
        prepare(run)
    message = str(caught.value)
    assert "configs/folder.yaml reads the split test (evaluate.split), but data/folder" in message
    assert "has train, val (folders <split>/<class>/)" in message


def test_the_account_of_rendered_videos_has_a_digest_of_their_bytes() -> None:
    run = write_run(Path(), "demo", root="data/demo", **SPLITS)
    samples = prepare(run, workers=0)
    found = account(run)
    assert (found["listed"], found["found"], found["missing"]) == (2, 2, 0)
    digest = hashlib.sha256()
    for path in samples.table["path"].to_pylist():
        content = Path("data/demo", path).read_bytes()
        digest.update(f"{path}|{len(content)}|".encode() + content)
    assert found["videos_sha256"] == digest.hexdigest()
    assert prepare(run, workers=0).table.equals(samples.table)
    assert account(run) == found
    Path("data/demo", path).write_bytes(content + b"x")
    prepare(run, workers=0)
    assert account(run)["videos_sha256"] != found["videos_sha256"]


# --- probing -----------------------------------------------------------------------------------


def test_probing_counts_and_names_what_cannot_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    root = own_folder(Path("data/folder"))
    Path(root / "train/a/0.mp4").write_bytes(b"")
    Path(root / "train/b/1.mp4").write_bytes(b"no video")
    run = write_run(Path(), "folder")
    samples = prepare(run, probe=True, workers=0)
    assert samples.splits() == {"test": 6, "train": 4}
    found = account(run)
    assert [found[name] for name in ("listed", "found", "missing", "unreadable")] == [12, 10, 0, 2]
    assert found["splits"]["test"]["unreadable"] == 0
    rows = missing(run)
    assert [(row["sample_id"], row["status"]) for row in rows] == [
        ("train/a/0.mp4", "unreadable"),
        ("train/b/1.mp4", "unreadable"),
    ]
    assert rows[0]["reason"] == "the file is empty (0 bytes)"
    assert rows[1]["reason"].startswith("not a readable video")
    answers = [json.loads(line) for line in (run.outputs / "probe.jsonl").read_text().splitlines()]
    good = [answer for answer in answers if answer["error"] is None]
    assert (len(answers), len(good)) == (12, 10)
    facts = {name: good[0][name] for name in ("width", "height", "duration_sec", "frame_rate")}
    assert facts == {"width": 64, "height": 48, "duration_sec": 1.0, "frame_rate": 10.0}
    assert "probing: 12/12 videos" in capsys.readouterr().err


def test_a_later_prepare_goes_by_what_was_probed(capsys: pytest.CaptureFixture[str]) -> None:
    root = own_folder(Path("data/folder"))
    for name in ("train/a/0.mp4", "train/b/1.mp4"):
        Path(root / name).write_bytes(b"")
    run = write_run(Path(), "folder")
    prepare(run, probe=True, workers=0)
    put_video(root / "train/b/1.mp4")  # mended since: its answer holds no more
    assert prepare(run).splits() == {"test": 6, "train": 5}
    assert [row["sample_id"] for row in missing(run)] == ["train/a/0.mp4"]
    assert account(run)["unreadable"] == 1
    assert "11 of 12 videos are probed already" in " ".join(capsys.readouterr().err.split())


def test_a_stretch_behind_the_end_of_its_video_is_unreadable() -> None:
    put_video(Path("data/folder/x.mp4"))
    lines = ["path,label,start,stop,split"]
    lines += ["x.mp4,a,0,0.5,train", "x.mp4,b,1.5,2,train", "x.mp4,a,0.5,9,test"]
    write_lines(Path("data/folder/list.csv"), lines)
    run = write_run(Path(), "folder")
    samples = prepare(run, probe=True, workers=0)
    assert samples.table["sample_id"].to_pylist() == ["x.mp4#0.0-0.5", "x.mp4#0.5-9.0"]
    (row,) = missing(run)
    assert row["reason"] == "starts at 1.50 s, but the video lasts 1.00 s"
    assert len((run.outputs / "probe.jsonl").read_text().splitlines()) == 1  # a file, three rows


def test_an_interrupted_probe_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = own_folder(Path("data/folder"))
    run = write_run(Path(), "folder")
    probed: list[str] = []
    stop_after: int | None = 5
    real = probing.probe

    def counted(root: Path, path: str) -> probing.Answer:
        if len(probed) == stop_after:
            raise KeyboardInterrupt
        probed.append(path)
        return real(root, path)

    monkeypatch.setattr(probing, "probe", counted)
    monkeypatch.setattr(probing, "_BATCH", 2)
    with pytest.raises(KeyboardInterrupt):
        prepare(run, probe=True, workers=0)
    file = run.outputs / "probe.jsonl"
    assert len(file.read_text().splitlines()) == 4  # the batch that was cut short is probed again
    file.write_text(file.read_text() + '{"path": "train/b/2.mp4", "si')
    assert not run.samples_path.exists()
    before = probed[:4]
    probed.clear()
    stop_after = None
    prepare(run, probe=True, workers=0)
    every = [str(path.relative_to(root)) for path in root.rglob("*.mp4")]
    assert sorted(before + probed) == sorted(every)
    assert "4 of 12 videos are probed already" in capsys.readouterr().err
    # A file that changed is another video.
    shutil.copy(video(".avi"), root / "test/a/1.mp4")
    probed.clear()
    prepare(run, probe=True, workers=0)
    assert probed == ["test/a/1.mp4"]
    assert len(file.read_text().splitlines()) == 12


@pytest.mark.slow
def test_probing_in_processes_says_the_same() -> None:
    root = own_folder(Path("data/folder"))
    Path(root / "train/a/0.mp4").write_bytes(b"")
    run = write_run(Path(), "folder")
    answers = []
    for workers in (0, 2):
        prepare(run, probe=True, workers=workers)
        file = run.outputs / "probe.jsonl"
        answers.append(sorted(file.read_text().splitlines()))
        file.unlink()
    assert answers[0] == answers[1]


# --- where the videos are ----------------------------------------------------------------------


def test_a_root_is_linked_to_where_the_config_looks() -> None:
    videos = own_folder(Path("elsewhere"))
    root = Path("data/folder")
    with linked_root(root, videos) as new:
        assert new
        assert root.readlink() == videos.resolve()
    with linked_root(root, videos) as new:
        assert not new
    with linked_root(root, root) as new:
        assert not new
    with linked_root(videos, videos) as new:
        assert not new


def test_a_link_goes_again_if_the_dataset_is_not_there() -> None:
    Path("empty").mkdir()
    with pytest.raises(DatasetError, match="boom"), linked_root(Path("data/k400"), Path("empty")):
        raise DatasetError("boom")
    assert not Path("data/k400").is_symlink()
    assert Path("empty").is_dir()


@pytest.mark.parametrize("standing", ["folder", "link", "broken link"])
def test_what_stands_at_the_root_is_never_replaced(standing: str) -> None:
    Path("videos").mkdir()
    root = Path("data/k400")
    root.parent.mkdir()
    if standing == "folder":
        root.mkdir()
    else:
        Path("other").mkdir()
        root.symlink_to(Path("other" if standing == "link" else "nowhere").absolute())
    with pytest.raises(DatasetError) as caught, linked_root(root, Path("videos")):
        pass
    message = str(caught.value)
    assert message.startswith("--root videos: data/k400 (prepare.root of the config) is a")
    for way in ("Remove or rename data/k400", "leave --root out", "write videos as prepare.root"):
        assert way in message
    assert root.is_symlink() == (standing != "folder")


def test_the_command_links_prepares_and_counts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own_folder(Path("mine"))
    write_run(Path(), "folder")

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["dualkd", "prepare", "--dataset", "folder", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(stop.value.code or 0)

    assert run() == 1
    assert "no folder at data/folder, where prepare.root says" in capsys.readouterr().err
    assert run("--root", "nowhere") == 1
    assert "--root nowhere is no folder" in capsys.readouterr().err
    assert run("--root", ".") == 1  # not such a dataset: no link stays behind
    assert "such as mine/test/a/0.mp4; move them there" in capsys.readouterr().err
    assert not Path("data/folder").is_symlink()
    assert run("--root", "mine") == 0
    printed = capsys.readouterr()
    assert f"data/folder is now a link to {Path('mine').resolve()}" in printed.out
    assert "folder: 6 test, 6 train samples" in printed.out
    assert run("--probe", "--workers", "0") == 0  # without --root, by the link
    assert ["all", "12", "12", "0", "0"] in [
        line.split() for line in capsys.readouterr().err.splitlines()
    ]


def test_the_hard_set_is_rendered_where_a_config_asks_for_it(at: Path) -> None:
    run = write_config(
        at,
        ("source: figures,", "source: figures, set: hard,"),
        ("train: 14, test: 14", "train: 1, test: 1"),
    )
    samples = prepare(run, workers=1)
    assert samples.classes == {"action": list(HARD.classes)}
    assert samples.table["sample_id"].to_pylist() == [
        scene_id(3, split, 0, HARD) for split in ("train", "test")
    ]
    assert all((at / "data/mini" / path).is_file() for path in samples.table["path"].to_pylist())
