"""Datasets: every layout that people have, every row that cannot be right, the real annotations."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from torchvision.models.video import MViT_V2_S_Weights

from dataset_making import (
    HMDB_FILES,
    K400_HEADER,
    K400_ROWS,
    SHARED,
    epic100_csvs,
    epic100_lists,
    hmdb51,
    hmdb51_splits,
    k400_arranged,
    k400_csvs,
    k400_flat,
    k400_mmaction2,
    k400_stem,
    put_video,
    write_lines,
)
from pipeline.datasets import k400
from pipeline.datasets.annotations import read_csv, read_pairs, seconds
from pipeline.datasets.epic100 import frame_rate, list_epic100
from pipeline.datasets.folder import list_folder
from pipeline.datasets.hmdb51 import list_hmdb51
from pipeline.datasets.k400 import class_names, list_k400
from pipeline.datasets.listing import DatasetError, Listing, find_videos
from pipeline.samples import Sample, build_samples
from pipeline.video import open_video

shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason=f"needs the official annotations below {SHARED}"
)


def samples(listing: Listing, root: Path) -> dict[str, Sample]:
    """The samples that are there, by id: they make a table, and their videos open."""
    found = [row.sample for row in listing.rows if row.status == "found"]
    build_samples("x", listing.classes, found)
    for path in {sample.path for sample in found}:
        if "?" not in path:
            with open_video(root / path) as video:
                assert video.info.width == 64
    return {sample.sample_id: sample for sample in found}


def lost(listing: Listing) -> dict[str, str]:
    return {row.sample.sample_id: row.reason for row in listing.rows if row.status == "missing"}


def refused(call: Callable[[], Listing]) -> str:
    with pytest.raises(DatasetError) as caught:
        call()
    return str(caught.value)


# --- Kinetics-400 ------------------------------------------------------------------------------


def test_the_classes_of_k400_are_the_400_official_names_in_alphabetical_order() -> None:
    names = class_names()
    assert (len(names), len(set(names))) == (400, 400)
    assert names == sorted(names)
    assert (names[0], names[399]) == ("abseiling", "zumba")
    assert names == MViT_V2_S_Weights.DEFAULT.meta["categories"]


def test_the_classes_of_k400_without_torchvisions_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(k400, "_NAMES", "another name in another version")
    assert k400.class_names.__wrapped__() == class_names()


@shared
def test_the_classes_of_k400_agree_with_mmaction2s_list() -> None:
    assert class_names() == (SHARED / "k400" / "label_map_k400.txt").read_text().splitlines()


@pytest.mark.parametrize("layout", ["flat", "arranged", "mmaction2"])
def test_k400_in_each_layout_is_the_same_dataset(layout: str, tmp_path: Path) -> None:
    if layout == "flat":
        listing = list_k400(k400_flat(tmp_path))
    elif layout == "arranged":
        listing = list_k400(k400_arranged(tmp_path))
    else:
        listing = list_k400(k400_mmaction2(tmp_path, class_names()))
    found = samples(listing, tmp_path)
    expected = {
        k400_stem(row): (split, {"action": class_names().index(row[0])} if row[0] else {})
        for split, rows in K400_ROWS.items()
        for row in rows
        if layout == "flat" or row[0]  # the others have no test videos
    }
    assert {name: (one.split, one.labels) for name, one in found.items()} == expected
    assert found["-3B32lodo2M_000059_000069"].labels == {"action": 399}  # zumba, the last of 400
    if layout == "flat":
        bad = found["-3B32lodo2M_000059_000069"].path
        assert bad.startswith("replacement/replacement_for_corrupted_k400/")
        assert listing.notes == ["replacements of corrupted videos that are read: 1"]
        assert listing.layout.startswith("CSVs in annotations/, videos in train/ (flat)")
    if layout == "arranged":
        assert "videos/train/ (by class)" in listing.layout
        assert lost(listing) == {k400_stem(K400_ROWS["test"][0]): "no videos of this split"}
    if layout == "mmaction2":
        assert listing.layout.startswith("mmaction2's lists in ./, videos in videos_train/")


def test_mmaction2s_lists_find_videos_of_another_container_or_folder(tmp_path: Path) -> None:
    """The lists say .mp4 and a folder with underscores; downloads are often .mkv, or lie flat."""
    name = "0wR5jVB-WPk_000417_000427"
    write_lines(tmp_path / "kinetics400_train_list_videos.txt", [f"air_drumming/{name}.mp4 1"])
    for place in ("videos_train/air drumming", "videos_train"):
        video = put_video(tmp_path / place / f"{name}.mkv")
        found = samples(list_k400(tmp_path), tmp_path)
        assert found[name].path == f"{place}/{name}.mkv"
        video.unlink()


def test_a_file_of_annotations_without_rows_is_named(tmp_path: Path) -> None:
    k400 = k400_flat(tmp_path / "k400")
    write_lines(k400 / "annotations" / "val.csv", ["label,youtube_id,time_start,time_end,split"])
    assert "val.csv lists nothing: it has no row" in list_k400(k400).notes
    own = tmp_path / "own"
    put_video(own / "a.mp4")
    write_lines(own / "train.csv", ["path,label", "a.mp4,jump"])
    write_lines(own / "test.csv", ["path,label"])
    assert list_folder(own).notes == ["test.csv lists nothing: it has no row"]


def test_k400_csvs_of_other_systems_and_makers(tmp_path: Path) -> None:
    """A byte order mark, CRLF, DeepMind's own file names, numbers without leading zeros."""
    k400_flat(tmp_path)
    (tmp_path / "annotations" / "val.csv").rename(tmp_path / "annotations" / "validate.csv")
    before = samples(list_k400(tmp_path), tmp_path)
    assert Counter(one.split for one in before.values()) == {"train": 4, "val": 2, "test": 1}
    k400_csvs(tmp_path / "elsewhere", end="\r\n", bom=True)
    assert samples(list_k400(tmp_path, tmp_path / "elsewhere"), tmp_path) == before
    row = K400_ROWS["val"][0]
    old = tmp_path / "val" / f"{k400_stem(row)}.mp4"
    old.rename(old.with_name(f"{row[1]}_{row[2]}_{row[3]}.mp4"))
    after = samples(list_k400(tmp_path), tmp_path)
    assert after.keys() == before.keys()
    assert after[k400_stem(row)].path == f"val/{row[1]}_3_13.mp4"


def test_videos_of_k400_that_are_missing_are_named(tmp_path: Path) -> None:
    k400_flat(tmp_path)
    gone = k400_stem(K400_ROWS["train"][1])
    (tmp_path / "train" / f"{gone}.mp4").unlink()
    listing = list_k400(tmp_path)
    assert lost(listing) == {gone: "no such video"}
    assert gone not in samples(listing, tmp_path)
    (missing,) = [row for row in listing.rows if row.status == "missing"]
    assert missing.sample.path == f"train/{gone}.mp4"
    arranged = tmp_path / "arranged"
    k400_arranged(arranged)
    (arranged / "all" / f"{gone}.mp4").unlink()  # a link that leads nowhere
    assert gone in lost(list_k400(arranged))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["label,id,start,end"],
            "train.csv lacks the columns youtube_id, time_start, time_end; its first line is "
            "'label,id,start,end', expected columns are youtube_id,time_start,time_end,label",
        ),
        (
            [K400_HEADER, "zumba,a,1,2,train,0", "", "zumbaa,b,1,2,train,0"],
            "train.csv, line 4: the label 'zumbaa' is none of the 400 classes of Kinetics-400; the "
            "nearest is 'zumba'",
        ),
        (
            [K400_HEADER, ",a,1,2,train,0"],
            "train.csv, line 2: the label '' is none of the 400 classes",
        ),
        (
            [K400_HEADER, "surfing, water,a,1,2,train,0"],
            "train.csv, line 2: 7 cells, but the header has 6 (a comma without quotes?): surfing, ",
        ),
        (
            [K400_HEADER, "zumba,a,one,2,train,0"],
            "train.csv, line 2: time_start and time_end is 'one', expected seconds, as 59 or 1.5",
        ),
        (
            [K400_HEADER, "zumba,a,1,2,train,0", "zumba,b,1,2,train,0", "yoga,a,1,2,train,0"],
            "the id a_000001_000002 is listed twice, as two samples: in ",
        ),
    ],
)
def test_a_bad_csv_of_k400_is_refused_by_line(
    lines: list[str], message: str, tmp_path: Path
) -> None:
    put_video(tmp_path / "train" / "a_000001_000002.mp4")
    write_lines(tmp_path / "train.csv", lines)
    assert message in refused(lambda: list_k400(tmp_path))


def test_two_places_of_one_id_are_named_and_a_row_that_repeats_counts_once(tmp_path: Path) -> None:
    put_video(tmp_path / "train" / "a_000001_000002.mp4")
    write_lines(tmp_path / "train.csv", [K400_HEADER, *["zumba,a,1,2,train,0"] * 3])
    listing = list_k400(tmp_path)
    assert len(listing.rows) == 1
    assert listing.notes == ["rows that repeat another, and do not count: 2"]
    write_lines(tmp_path / "val.csv", [K400_HEADER, "zumba,a,1,2,val,0"])
    message = refused(lambda: list_k400(tmp_path))
    assert f"{tmp_path / 'train.csv'}, line 2 (split train, " in message
    assert f"{tmp_path / 'val.csv'}, line 2 (split val, " in message


def test_mmaction2s_lists_must_have_the_official_order(tmp_path: Path) -> None:
    put_video(tmp_path / "videos_train" / "air_drumming" / "a.mp4")
    path = tmp_path / "kinetics400_train_list_videos.txt"
    write_lines(path, ["air_drumming/a.mp4 0"])
    assert (
        f"{path}, line 1: air_drumming/a.mp4 is labelled 0, which is 'abseiling' in the official "
        "order; 'air drumming' is 1"
    ) in refused(lambda: list_k400(tmp_path))
    write_lines(path, ["air_drumming/a.mp4 400"])
    assert "expected one of the 400 classes, 0 to 399" in refused(lambda: list_k400(tmp_path))


def test_a_root_without_k400_names_what_was_looked_for_and_what_is_there(tmp_path: Path) -> None:
    assert "`dualkd prepare --root DIR` links DIR there" in refused(
        lambda: list_k400(tmp_path / "none")
    )
    put_video(tmp_path / "clips" / "a.mp4")
    message = refused(lambda: list_k400(tmp_path))
    assert f"{tmp_path} is not Kinetics-400 as it is known here" in message
    for part in ("train.csv", "kinetics400_train_list_videos.txt", "videos_train/"):
        assert part in message
    assert "Found there: clips/\n" in message
    k400_csvs(tmp_path)  # annotations, but no videos
    assert "videos: train/, videos/train/ or videos_train/" in refused(lambda: list_k400(tmp_path))


# --- HMDB51 ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("splits", "base", "nested"),
    [
        ("data/testTrainMulti_7030_splits", "", False),
        ("testTrainMulti_7030_splits", "", False),  # beside the root
        ("data/annotations", "videos", False),
        ("data/test_train_splits/testTrainMulti_7030_splits", "hmdb51_org", True),
        ("data", "", True),
    ],
)
def test_hmdb51_in_each_layout(splits: str, base: str, nested: bool, tmp_path: Path) -> None:
    root = hmdb51(tmp_path / "data", base, nested=nested)
    hmdb51_splits(tmp_path / splits)
    of_splits = []
    for split in (1, 2, 3):
        listing = list_hmdb51(root, split)
        assert listing.classes == {"action": ["dive", "wave"]}
        assert f"official split {split} in " in listing.layout
        found = samples(listing, root)
        assert not lost(listing)
        of_splits.append({name: one.split for name, one in found.items()})
    codes = {0: None, 1: "train", 2: "test"}
    for split, found_splits in enumerate(of_splits, start=1):
        expected = {
            stem: codes[(at + split) % 3]
            for stems in HMDB_FILES.values()
            for at, stem in enumerate(stems)
        }
        assert found_splits == {name: value for name, value in expected.items() if value}


def test_what_is_missing_or_wrong_of_hmdb51(tmp_path: Path) -> None:
    root = hmdb51(tmp_path)
    splits = root / "testTrainMulti_7030_splits"
    hmdb51_splits(splits)
    gone = HMDB_FILES["dive"][1]
    (root / "dive" / f"{gone}.avi").unlink()
    listing = list_hmdb51(root, 1)
    assert lost(listing) == {gone: "no such video"}
    assert listing.notes == [
        "videos that official split 1 leaves out: 1",
        "classes with a split file: 2, though HMDB51 has 51",
    ]
    write_lines(splits / "dive_test_split1.txt", [])
    assert "dive_test_split1.txt lists nothing: it has no row" in list_hmdb51(root, 1).notes
    with (splits / "wave_test_split1.txt").open("a") as file:
        file.write("c_wave.avi 3\n")
    message = refused(lambda: list_hmdb51(root, 1))
    assert "wave_test_split1.txt, line 3: the code of c_wave.avi is '3', expected 1 (tr" in message
    put_video(tmp_path / "no" / "dive" / "a.avi")
    assert "splits: <class>_test_split1.txt" in refused(lambda: list_hmdb51(root, 1, root / "no"))


def test_split_files_of_other_systems(tmp_path: Path) -> None:
    """A byte order mark, CRLF, and empty lines."""
    root = hmdb51(tmp_path)
    hmdb51_splits(root / "splits")
    before = samples(list_hmdb51(root, 1), root)
    for path in (root / "splits").iterdir():
        write_lines(path, [*path.read_text().splitlines(), ""], end="\r\n", bom=True)
    assert samples(list_hmdb51(root, 1), root) == before


@shared
def test_the_official_split_1_of_hmdb51(tmp_path: Path) -> None:
    (tmp_path / "dive").mkdir()
    put_video(tmp_path / "dive" / "50_FIRST_DATES_dive_f_cm_np1_ri_bad_32.avi")
    listing = list_hmdb51(tmp_path, 1, SHARED / "hmdb51" / "testTrainMulti_7030_splits")
    splits = Counter(row.sample.split for row in listing.rows)
    assert splits == {"train": 3570, "test": 1530}
    assert listing.notes == ["videos that official split 1 leaves out: 1,666"]
    assert len(listing.classes["action"]) == 51
    per_class = Counter((row.sample.labels["action"], row.sample.split) for row in listing.rows)
    assert set(per_class.values()) == {70, 30}
    assert len(samples(listing, tmp_path)) == 1


# --- EPIC-KITCHENS-100 -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form",
    [
        "P01/videos/P01_01.MP4",
        "EPIC-KITCHENS/P01/videos/P01_01.MP4",
        "P01/P01_01.MP4",
        "videos/P01/P01_01.mp4",
        "videos/P01_01.MP4",
        "P01_01.mp4",
    ],
)
def test_epic100_videos_in_each_layout(form: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    put_video(root / form)
    other = form.replace("P01", "P02").replace("P02_01", "P02_101")
    put_video(root / other)
    epic100_csvs(tmp_path / "epic-kitchens-100-annotations")
    listing = list_epic100(root)
    assert form in listing.layout
    found = samples(listing, root)
    assert listing.classes == {"verb": ["take", "put"], "noun": ["tap", "spoon", "plate"]}
    assert found == {
        "P01_01_0": Sample("P01_01_0", form, "train", {"verb": 0, "noun": 2}, 0.0, 0.45),
        "P01_01_1": Sample("P01_01_1", form, "train", {"verb": 1, "noun": 0}, 0.14, 0.9),
        "P02_101_0": Sample("P02_101_0", other, "validation", {"verb": 1, "noun": 1}, 0.1, 0.62),
        "P02_101_7": Sample("P02_101_7", other, "test", {}, 0.2, 0.8),
    }


def test_epic100_frames_carry_their_rate(tmp_path: Path) -> None:
    epic100_csvs(tmp_path / "annotations")
    (tmp_path / "P01/rgb_frames/P01_01").mkdir(parents=True)
    (tmp_path / "P01/rgb_frames/P01_01/frame_0000000001.jpg").touch()
    assert lost(list_epic100(tmp_path)).keys() == {"P02_101_0", "P02_101_7"}
    (tmp_path / "P02/rgb_frames").mkdir(parents=True)
    (tmp_path / "P02/rgb_frames/P02_101.tar").touch()
    listing = list_epic100(tmp_path)
    assert "frames as P01/rgb_frames/P01_01.tar" in listing.layout
    found = samples(listing, tmp_path)
    assert found["P01_01_1"].path == "P01/rgb_frames/P01_01?fps=60"
    assert found["P02_101_0"].path == "P02/rgb_frames/P02_101.tar?fps=50"
    put_video(tmp_path / "P01/videos/P01_01.MP4")
    paths = {
        prefer: samples(list_epic100(tmp_path, None, prefer), tmp_path)["P01_01_0"].path
        for prefer in ("videos", "frames")
    }
    assert paths == {"videos": "P01/videos/P01_01.MP4", "frames": "P01/rgb_frames/P01_01?fps=60"}


@shared
def test_official_frame_numbers_count_at_the_rate_of_the_frames() -> None:
    """Not at the rate of the videos: that of these recordings is 29.97, 47.95, 59.94 or 90."""
    path = SHARED / "epic100" / "EPIC_100_validation.csv"
    columns = ["video_id", "stop_timestamp", "stop_frame"]
    for place, (video, stop, frame) in read_csv(path, columns):
        expected = seconds(stop, place, "stop_timestamp") * frame_rate(video)
        assert abs(int(frame) - expected) <= 1


@shared
def test_the_official_validation_segments_of_epic100(tmp_path: Path) -> None:
    put_video(tmp_path / "P01_11.MP4")
    listing = list_epic100(tmp_path, SHARED / "epic100")
    assert len(listing.rows) == 9668
    assert {head: len(names) for head, names in listing.classes.items()} == {
        "verb": 97,
        "noun": 300,
    }
    found = samples(listing, tmp_path)
    text = (SHARED / "epic100" / "EPIC_100_validation.csv").read_text()
    rows = [row for row in csv.DictReader(io.StringIO(text)) if row["video_id"] == "P01_11"]
    assert len(found) == len(rows)
    first = found["P01_11_0"]
    assert (first.start_sec, first.stop_sec) == (0.0, 1.89)
    verb, noun = listing.classes["verb"], listing.classes["noun"]
    assert (verb[first.labels["verb"]], noun[first.labels["noun"]]) == ("take", "plate")


def test_epic100_knows_unseen_participants_and_tail_classes(tmp_path: Path) -> None:
    put_video(tmp_path / "P01_01.MP4")
    epic100_csvs(tmp_path)
    epic100_lists(tmp_path)
    listing = list_epic100(tmp_path)
    # By hand: verbs are 0, 1, 1 and nouns 2, 0, 1; the test segment has neither.
    assert listing.subsets == {
        "unseen": {"P02_101_0"},
        "tail_verb": {"P01_01_1", "P02_101_0"},
        "tail_noun": {"P01_01_0"},
        "tail_action": {"P01_01_0", "P01_01_1", "P02_101_0"},
    }
    assert listing.notes == []
    name = "EPIC_100_tail_nouns.csv"
    (tmp_path / name).unlink()
    listing = list_epic100(tmp_path)
    assert listing.subsets.keys() == {"unseen", "tail_verb"}
    (note,) = listing.notes
    assert note == f"no {name} beside the annotations: its segments get no score of their own"


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("tail_verbs", "2", "line 3: verb is '2', expected one of the 2 classes, 0 to 1"),
        ("tail_nouns", "tap", "line 3: noun is 'tap', expected one of the 3 classes, 0 to 2"),
        (
            "unseen_participant_ids_validation",
            "P2",
            "line 3: participant_id is 'P2', expected one as P01",
        ),
    ],
)
def test_a_bad_list_of_epic100_is_refused_by_line(
    name: str, line: str, message: str, tmp_path: Path
) -> None:
    put_video(tmp_path / "P01_01.MP4")
    epic100_csvs(tmp_path)
    epic100_lists(tmp_path)
    with (tmp_path / f"EPIC_100_{name}.csv").open("a") as file:
        file.write(f"{line}\n")
    assert message in refused(lambda: list_epic100(tmp_path))


@shared
def test_the_official_unseen_participants_and_tail_classes(tmp_path: Path) -> None:
    """Counted by the columns of the CSV, those of `participant_id` too."""
    put_video(tmp_path / "P01_11.MP4")
    subsets = list_epic100(tmp_path, SHARED / "epic100").subsets

    def cells(name: str, column: str) -> set[str]:
        text = (SHARED / "epic100" / f"EPIC_100_{name}.csv").read_text()
        return {row[column] for row in csv.DictReader(io.StringIO(text))}

    unseen = cells("unseen_participant_ids_validation", "participant_id")
    verbs, nouns = cells("tail_verbs", "verb"), cells("tail_nouns", "noun")
    counted = dict.fromkeys(("unseen", "tail_verb", "tail_noun", "tail_action"), 0)
    text = (SHARED / "epic100" / "EPIC_100_validation.csv").read_text()
    for row in csv.DictReader(io.StringIO(text)):
        counted["unseen"] += row["participant_id"] in unseen
        counted["tail_verb"] += row["verb_class"] in verbs
        counted["tail_noun"] += row["noun_class"] in nouns
        counted["tail_action"] += row["verb_class"] in verbs or row["noun_class"] in nouns
    assert {name: len(members) for name, members in subsets.items()} == counted
    assert counted == {
        "unseen": 1065,
        "tail_verb": 1760,
        "tail_noun": 1900,
        "tail_action": 3105,
    }


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("00:00:00.45", "0:45", "line 2: stop_timestamp is '0:45', expected seconds, as 59 or"),
        ("take,0,plate,2", "take,2,plate,2", "line 2: verb_class is '2', expected one of the 2"),
        ("take,0,plate,2", "take,,plate,2", "line 2: verb_class is '', expected one of the 2"),
        (",P01_01,", ",../x,", "line 2: video_id is '../x', expected one as P01_01"),
        ("narration_id", "narration", "lacks the column narration_id"),
    ],
)
def test_a_bad_csv_of_epic100_is_refused_by_line(
    old: str, new: str, message: str, tmp_path: Path
) -> None:
    put_video(tmp_path / "P01_01.MP4")
    epic100_csvs(tmp_path)
    path = tmp_path / "EPIC_100_train.csv"
    path.write_text(path.read_text().replace(old, new, 1))
    assert message in refused(lambda: list_epic100(tmp_path))


def test_what_else_can_be_wrong_with_epic100(tmp_path: Path) -> None:
    (tmp_path / "P01").mkdir()
    assert "annotations: EPIC_100_train.csv or " in refused(lambda: list_epic100(tmp_path))
    epic100_csvs(tmp_path)
    message = refused(lambda: list_epic100(tmp_path))
    assert "P01/videos/P01_01.MP4" in message
    assert "Found there: EPIC_100_noun_classes.csv, " in message
    put_video(tmp_path / "P01_01.MP4")
    path = tmp_path / "EPIC_100_train.csv"
    path.write_text(path.read_text().replace("00:00:00.45", "00:00:00.00"))
    reason = "it stops at 00:00:00.00 and starts at 00:00:00.00"
    assert lost(list_epic100(tmp_path))["P01_01_0"] == reason
    (tmp_path / "EPIC_100_noun_classes.csv").unlink()
    assert "no EPIC_100_noun_classes.csv beside" in refused(lambda: list_epic100(tmp_path))


# --- folders of one's own ----------------------------------------------------------------------


def test_a_folder_of_splits_and_classes(tmp_path: Path) -> None:
    names = ["train/b/1 #;(&.mp4", "train/a/2.avi", "test/a/3.MOV", "train/a/.hidden.mp4"]
    for name in names:
        put_video(tmp_path / name)
    (tmp_path / "train/a/notes.txt").touch()
    (tmp_path / "train/a/loop").symlink_to(tmp_path / "train")
    listing = list_folder(tmp_path)
    assert listing.classes == {"action": ["a", "b"]}
    found = samples(listing, tmp_path)
    assert {name: (one.split, one.labels["action"]) for name, one in found.items()} == {
        "train/b/1 #;(&.mp4": ("train", 1),
        "train/a/2.avi": ("train", 0),
        "test/a/3.MOV": ("test", 0),
    }


def test_files_whose_names_are_no_videos_are_counted(tmp_path: Path) -> None:
    put_video(tmp_path / "train/a/1.mp4")
    assert list_folder(tmp_path).notes == []
    for name in ("2.m4v", "3.mp4.part", "4.m4v", "README"):
        (tmp_path / "train/a" / name).touch()
    (note,) = list_folder(tmp_path).notes
    assert note == (
        "files whose names are no video's (.mp4, .avi, .mkv, .webm, .mov), left out: 4 (.m4v 2, "
        ".part 1, no ending 1), such as train/a/2.m4v; a CSV may list them"
    )


def test_one_video_with_two_labels_is_refused_by_both_lines(tmp_path: Path) -> None:
    put_video(tmp_path / "x.mp4")
    write_lines(tmp_path / "train.csv", ["path,label", "x.mp4,a", "x.mp4,b"])
    message = refused(lambda: list_folder(tmp_path))
    assert message.startswith("the id x.mp4 is listed twice, as two samples: in ")
    for number, label in ((2, 0), (3, 1)):
        place = (
            f"{tmp_path / 'train.csv'}, line {number} (split train, labels {{'action': {label}}}"
        )
        assert place in message


def test_csvs_of_ones_own(tmp_path: Path) -> None:
    for name in ("x.mp4", "sub/y.mkv", "sub/z.webm"):
        put_video(tmp_path / name)
    lines = [
        "path,label,start,stop,split",
        '"x.mp4","open, then close",0.1,0.5,train',
        "x.mp4,close,0.5,,train",
        f"{tmp_path}/sub/y.mkv,close,,,val",
        "sub/z.webm,,,,test",
        "gone.mp4,close,,,test",
    ]
    write_lines(tmp_path / "mine.csv", lines, end="\r\n", bom=True)
    listing = list_folder(tmp_path)
    assert listing.classes == {"action": ["close", "open, then close"]}
    assert samples(listing, tmp_path) == {
        "x.mp4#0.1-0.5": Sample("x.mp4#0.1-0.5", "x.mp4", "train", {"action": 1}, 0.1, 0.5),
        "x.mp4#0.5-": Sample("x.mp4#0.5-", "x.mp4", "train", {"action": 0}, 0.5),
        "sub/y.mkv": Sample("sub/y.mkv", "sub/y.mkv", "val", {"action": 0}),
        "sub/z.webm": Sample("sub/z.webm", "sub/z.webm", "test", {}),
    }
    assert lost(listing) == {"gone.mp4": "no such file"}
    (tmp_path / "mine.csv").unlink()
    write_lines(tmp_path / "train.csv", ["path,label", "x.mp4,10", "sub/y.mkv,9"])
    write_lines(tmp_path / "test.csv", ["label,path", "9,sub/z.webm"])
    listing = list_folder(tmp_path)
    assert listing.classes == {"action": ["9", "10"]}
    splits = {name: one.split for name, one in samples(listing, tmp_path).items()}
    assert splits == {"x.mp4": "train", "sub/y.mkv": "train", "sub/z.webm": "test"}
    assert len(list_folder(tmp_path, "test.csv").rows) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("../x.mp4,a,,", "line 2: ../x.mp4 does not lie in "),
        ("/etc/x.mp4,a,,", "line 2: /etc/x.mp4 does not lie in "),
        (",a,,", "line 2: the path is empty"),
        ("x.mp4,a,2,1", "line 2: it starts at 2 s and stops at 1 s"),
        ("x.mp4,a,soon,", "line 2: start is 'soon', expected seconds"),
        ("x.mp4,a,-1,", "line 2: start is '-1', expected seconds"),
        ("x.mp4,a,nan,", "line 2: start is 'nan', expected seconds"),
        ("x.mp4,a", "line 2: 2 cells, but the header has 4"),
    ],
)
def test_a_bad_row_of_ones_own_is_refused_by_line(line: str, message: str, tmp_path: Path) -> None:
    write_lines(tmp_path / "train.csv", ["path,label,start,stop", line])
    assert message in refused(lambda: list_folder(tmp_path))


def test_a_folder_that_is_none_of_this(tmp_path: Path) -> None:
    message = refused(lambda: list_folder(tmp_path))
    assert "<split>/<class>/<video>, where a video ends with .mp4, .avi" in message
    assert "Found there: nothing, the folder is empty" in message
    put_video(tmp_path / "a" / "x.mp4")
    message = refused(lambda: list_folder(tmp_path))
    assert "do not lie as <split>/<class>/<video>, left out: 1, such as a/x.mp4" in message
    write_lines(tmp_path / "results.csv", ["epoch,loss", "1,2"])
    message = refused(lambda: list_folder(tmp_path))
    assert "lacks the columns path, label" in message
    assert "move all CSVs elsewhere for the folders to be read" in message


def test_videos_that_lie_astray_and_links_that_lead_nowhere_are_told(tmp_path: Path) -> None:
    put_video(tmp_path / "train" / "a" / "x.mp4")
    put_video(tmp_path / "train" / "stray.mp4")
    (tmp_path / "train" / "a" / "y.mp4").symlink_to(tmp_path / "nowhere")
    listing = list_folder(tmp_path)
    assert [(row.sample.path, row.status) for row in listing.rows] == [
        ("train/a/x.mp4", "found"),
        ("train/a/y.mp4", "missing"),
    ]
    (note,) = listing.notes
    assert "left out: 1, such as train/stray.mp4" in note
    assert "no CSV at " in refused(lambda: list_folder(tmp_path, "mine.csv"))


def test_names_that_are_no_text_are_missing(tmp_path: Path) -> None:
    put_video(tmp_path / "train" / "a" / "x.mp4")
    put_video(tmp_path / "train" / "a" / "\udcff.mp4")
    listing = list_folder(tmp_path)
    assert lost(listing) == {"train/a/\\xff.mp4": "its name is not UTF-8: rename it"}


# --- reading -----------------------------------------------------------------------------------


def test_files_that_are_no_csv(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    for content, message in (
        (b"path,label\n\xff\xfe,a\n", "is no CSV in UTF-8"),
        (b"", "is empty (0 bytes); expected columns are path,label"),
        (b"\n", "lacks the columns path, label; its first line is ''"),
        (b"path;label\nx.mp4;a\n", "its first line is 'path;label'"),
        (b"path,label,label\nx.mp4,a,b\n", "has the column label twice"),
    ):
        path.write_bytes(content)
        with pytest.raises(DatasetError, match=str(path)) as caught:
            list(read_csv(path, ["path", "label"]))
        assert message in str(caught.value)
    path.write_bytes(b"one\n")
    with pytest.raises(DatasetError, match="line 1: got 'one', expected a name and a number"):
        list(read_pairs(path))


@pytest.mark.parametrize(
    ("text", "value"), [("59", 59.0), ("1.25", 1.25), ("00:00:01.89", 1.89), ("01:02:03", 3723.0)]
)
def test_seconds(text: str, value: float) -> None:
    assert seconds(text, "here", "start") == pytest.approx(value, abs=1e-9)


def test_videos_are_found_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b/2.mp4", "b/10.mp4", "a.avi", ".cache/x.mp4", "b/c.txt"):
        write_lines(tmp_path / name, [])
    (tmp_path / "d.mp4").symlink_to(tmp_path / "nowhere")
    (tmp_path / "e").symlink_to(tmp_path / "b")
    found = list(find_videos(tmp_path))
    assert found == ["a.avi", "b/10.mp4", "b/2.mp4", "e/10.mp4", "e/2.mp4"]
    assert list(find_videos(tmp_path, "b")) == ["b/10.mp4", "b/2.mp4"]
