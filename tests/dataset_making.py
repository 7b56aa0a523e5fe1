"""Miniatures of the real datasets, in the layouts that people have them in."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from ruamel.yaml import YAML

from pipeline.config import Run
from pipeline.config_file import load_config
from video_making import write_video

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
K400_HEADER = "label,youtube_id,time_start,time_end,split,is_cc"
# Ids may begin with a dash and contain underscores; labels may be quoted and hold parentheses.
K400_ROWS = {
    "train": [
        ("zumba", "-3B32lodo2M", 59, 69),
        ("air drumming", "_dbcJuKJQ_s", 0, 10),
        ("hurling (sport)", "0wR5jVB_WPk", 417, 427),
        ("massaging person's head", "a_b-c_d-e_f", 1000, 1010),
    ],
    "val": [("abseiling", "zzzzzzzzzz1", 3, 13), ("zumba", "zzzzzzzzzz2", 7, 17)],
    "test": [("", "yyyyyyyyyy1", 1, 11)],
}
HMDB_FILES = {
    "dive": [
        "50_FIRST_DATES_dive_f_cm_np1_ri_bad_32",
        "#20_Rhythm;dive(1)&more_dive_u_0",
        "a_dive",
    ],
    "wave": ["(!)_wave_u_nm_np1_ba_0", "b_wave"],
}
EPIC_HEADER = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,"
    "start_frame,stop_frame,narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes"
)
EPIC_TEST_HEADER = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,"
    "start_frame,stop_frame"
)


@cache
def video(suffix: str = ".mp4") -> Path:
    """One second of video, made once."""
    codec = "mpeg4" if suffix == ".avi" else "libx264"
    path = Path(mkdtemp(prefix="dualkd-test-")) / f"one{suffix}"
    return write_video(path, codec=codec, frames=10, rate=10)


def put_video(path: Path) -> Path:
    """A small real video at a path; its name says its format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(video(path.suffix.lower() if path.suffix.lower() == ".avi" else ".mp4"), path)
    return path


def write_lines(path: Path, lines: Iterable[str], *, end: str = "\n", bom: bool = False) -> Path:
    """A text file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = ("\ufeff" if bom else "") + "".join(f"{line}{end}" for line in lines)
    path.write_bytes(text.encode())
    return path


def k400_stem(row: tuple[str, str, int, int]) -> str:
    return f"{row[1]}_{row[2]:06d}_{row[3]:06d}"


def k400_csvs(folder: Path, *, end: str = "\n", bom: bool = False) -> None:
    """The official CSVs; labels of more than one word are quoted, the test file has none."""
    for split, rows in K400_ROWS.items():
        if split == "test":
            lines = ["youtube_id,time_start,time_end,split"]
            lines += [f"{name},{start},{stop},test" for _, name, start, stop in rows]
        else:
            lines = [K400_HEADER]
            for label, name, start, stop in rows:
                quoted = f'"{label}"' if " " in label else label
                lines += [f"{quoted},{name},{start},{stop},{split},0", ""]
        write_lines(folder / f"{split}.csv", lines, end=end, bom=bom)


def k400_flat(root: Path) -> Path:
    """CVDF's layout: flat folders, CSVs in `annotations`, and a replacement of a bad video."""
    k400_csvs(root / "annotations")
    for split, rows in K400_ROWS.items():
        for row in rows:
            put_video(root / split / f"{k400_stem(row)}.mp4")
    bad = k400_stem(K400_ROWS["train"][0])
    (root / "train" / f"{bad}.mp4").write_bytes(b"corrupted")
    put_video(root / "replacement/replacement_for_corrupted_k400" / f"{bad}.mp4")
    return root


def k400_arranged(root: Path) -> Path:
    """CVDF's layout after `arrange_by_classes.py`: links by class."""
    k400_csvs(root / "annotations")
    for split, rows in K400_ROWS.items():
        for row in rows:
            if row[0]:
                video_file = put_video(root / "all" / f"{k400_stem(row)}.mp4")
                link = root / "videos" / split / row[0] / video_file.name
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(video_file.resolve())
    return root


def k400_mmaction2(root: Path, names: list[str]) -> Path:
    """mmaction2's layout: its lists, and class folders with underscores."""
    for split in ("train", "val"):
        lines = []
        for row in K400_ROWS[split]:
            relative = f"{row[0].replace(' ', '_')}/{k400_stem(row)}.mp4"
            put_video(root / f"videos_{split}" / relative)
            lines.append(f"{relative} {names.index(row[0])}")
        write_lines(root / f"kinetics400_{split}_list_videos.txt", lines)
    return root


def hmdb51_splits(folder: Path) -> None:
    """The files of the three official splits; the code of a video is another in each."""
    for split in (1, 2, 3):
        for name, stems in HMDB_FILES.items():
            lines = [f"{stem}.avi {(at + split) % 3} " for at, stem in enumerate(stems)]
            write_lines(folder / f"{name}_test_split{split}.txt", lines)


def hmdb51(root: Path, base: str = "", *, nested: bool = False) -> Path:
    """The videos by class; `nested` is what unpacking each class in its own folder gives."""
    for name, stems in HMDB_FILES.items():
        for stem in stems:
            put_video(root / base / name / (name if nested else "") / f"{stem}.avi")
    return root


def epic100_csvs(folder: Path) -> None:
    """The official CSVs, cut to some rows of two videos; `P02_101` is of the extension."""
    for head, keys in {"verb": ["take", "put"], "noun": ["tap", "spoon", "plate"]}.items():
        lines = ["id,key,instances,category"]
        lines += [f"{at},{key},\"['{key}', '{key}:hot']\",x" for at, key in enumerate(keys)]
        write_lines(folder / f"EPIC_100_{head}_classes.csv", lines)

    def row(video_id: str, number: int, start: str, stop: str, verb: int, noun: int) -> str:
        times = f"00:00:00.100,00:00:{start},00:00:{stop},999,9999"
        labels = f'"take, it",take,{verb},plate,{noun},"[\'plate\', \'tap\']","[{noun}, 0]"'
        return f"{video_id}_{number},{video_id[:3]},{video_id},{times},{labels}"

    train = [row("P01_01", 0, "00.00", "00.45", 0, 2), row("P01_01", 1, "00.14", "00.90", 1, 0)]
    validation = [row("P02_101", 0, "00.10", "00.62", 1, 1)]
    write_lines(folder / "EPIC_100_train.csv", [EPIC_HEADER, *train])
    write_lines(folder / "EPIC_100_validation.csv", [EPIC_HEADER, *validation])
    test = "P02_101_7,P02,P02_101,00:00:00.1,00:00:00.20,00:00:00.80,9,99"
    write_lines(folder / "EPIC_100_test_timestamps.csv", [EPIC_TEST_HEADER, test])


def epic100_lists(folder: Path) -> None:
    """The official lists of what is scored on its own: unseen participants, tail classes."""
    write_lines(
        folder / "EPIC_100_unseen_participant_ids_validation.csv", ["participant_id", "P02"]
    )
    write_lines(folder / "EPIC_100_tail_verbs.csv", ["verb", "1"])
    write_lines(folder / "EPIC_100_tail_nouns.csv", ["noun", "2"])


def write_run(folder: Path, name: str, **prepare: object) -> Run:
    """The project's own config of a dataset below `folder`, with another section `prepare`."""
    yaml = YAML(typ="safe", pure=True)
    content = yaml.load((ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8"))
    content["prepare"].update(prepare)
    path = folder / "configs" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(content, file)
    return load_config(path)
