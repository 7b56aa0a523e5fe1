"""Two heads through the whole chain: a miniature EPIC-KITCHENS-100, from `prepare` to `report`."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
import xarray as xr
from PIL import Image

from cache import open_cache
from chain_making import in_turn, options, write_config
from dataset_making import EPIC_HEADER, write_lines
from pipeline.config import Run
from pipeline.models import create_model
from pipeline.onnx_files import properties
from pipeline.samples import SamplesError, read_samples
from pipeline.weights import save_weights
from report_making import Page
from stages import distill as distilling
from stages.evaluate import evaluate
from stages.export import Options, export
from stages.extract import extract
from stages.prepare import prepare
from stages.report import report
from stages.report_inputs import ReportError
from stages.teach import teach
from stages.verify import verify
from video_making import numbered_frame, write_video

CPU = torch.device("cpu")
ROOT = Path("data/mini")
VERBS, NOUNS = ["take", "put", "wash"], ["tap", "spoon", "plate", "1"]  # a number stays a name
ROLES = ("vit", "cnn", "baseline", "student")
# Of one long video, of a folder of frames, and of a participant without a training video.
TRAIN = [("P01_01", 0.3 * row, 0.3 * row + 1.2, row % 3, row % 4) for row in range(14)]
VALIDATION = [
    *(
        ("P02_101", 0.1 * row, 0.1 * row + 0.4 + 0.2 * row, row % 3, (row + 1) % 4)
        for row in range(5)
    ),
    *(("P18_02", 0.5 * row, 0.5 * row + 2.0, (row + 1) % 3, row % 4) for row in range(4)),
]
Segment = tuple[str, float, float, int, int]


def write_dataset() -> None:
    for video, frames in (("P01_01", 150), ("P18_02", 100)):
        path = ROOT / video[:3] / "videos" / f"{video}.MP4"
        path.parent.mkdir(parents=True)
        write_video(path, frames=frames, size=(96, 64), noise=True)
    frames = ROOT / "P02" / "rgb_frames" / "P02_101"
    frames.mkdir(parents=True)
    for number in range(60):
        Image.fromarray(numbered_frame(number, 96, 64)).save(frames / f"frame_{number + 1:010}.jpg")
    for split, rows in (("train", TRAIN), ("validation", VALIDATION)):
        lines = [EPIC_HEADER, *(line(index, row) for index, row in enumerate(rows))]
        write_lines(ROOT / f"EPIC_100_{split}.csv", lines)
    for head, names in (("verb", VERBS), ("noun", NOUNS)):
        rows = [f"{index},{name},[],x" for index, name in enumerate(names)]
        write_lines(ROOT / f"EPIC_100_{head}_classes.csv", ["id,key,instances,category", *rows])
    write_lines(ROOT / "EPIC_100_tail_verbs.csv", ["verb", "2"])
    write_lines(ROOT / "EPIC_100_tail_nouns.csv", ["noun", "0"])
    write_lines(ROOT / "EPIC_100_unseen_participant_ids_validation.csv", ["participant_id", "P18"])


def line(index: int, row: Segment) -> str:
    video, start, stop, verb, noun = row
    times = f"00:00:00.0,00:00:{start:05.2f},00:00:{stop:05.2f},1,2"
    return f"{video}_{index},{video[:3]},{video},{times},x,{VERBS[verb]},{verb},x,{noun},[],[]"


def make_run() -> Run:
    return write_config(
        Path(),
        (
            "{source: figures, root: data/mini, seed: 3, splits: {train: 14, test: 14}}",
            "{source: epic100, root: data/mini}",
        ),
        ("pool: 14", "splits: [train]"),
        ("max_failed_share: 0.5", "max_failed_share: 0.5\n  gate: {enforce: false}"),  # random ones
        ("evaluate: {split: test}", "evaluate: {split: validation, protocol: 10x3}"),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The whole chain, but for the report, in the working folder."""
    path, before, threads = tmp_path_factory.mktemp("heads"), Path.cwd(), torch.get_num_threads()
    os.chdir(path)
    torch.set_num_threads(1)
    try:
        write_dataset()
        run = make_run()
        heads = prepare(run).heads
        torch.manual_seed(0)
        for teacher in (run.teach.vit, run.teach.cnn):
            save_weights(create_model(teacher.model, heads), Path(teacher.weights), {})
        teach(run, train_them=False, only=None, device=CPU, decoders=0)
        extract(run, options(run))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(distilling, "run_side_by_side", in_turn)
            distilling.distill(run, distilling.Options(run.cache_path, CPU, 0))
        evaluate(run, device=CPU, decoders=0, batch_size=16)
    finally:
        os.chdir(before)
        torch.set_num_threads(threads)
    return path


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(folder)
    return make_run()


@pytest.fixture
def metrics(run: Run) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run.outputs / "evaluate/metrics.json").read_text())
    return content


def test_the_cache_holds_the_logits_of_each_head(run: Run) -> None:
    cache = open_cache(run.cache_path)
    rows = np.arange(len(TRAIN))
    fields = cache.read(rows, np.zeros_like(rows))
    for role in ("vit", "cnn"):
        assert fields[f"{role}/logits/verb"].shape == (14, 3)
        assert fields[f"{role}/logits/noun"].shape == (14, 4)
    with xr.open_zarr(run.cache_path, group="vit/logits", consolidated=False, chunks=None) as group:
        assert group["noun"].dims == ("sample", "view", "class_noun")
        assert group["noun"].shape == (14, 2, 4)
    assert verify(run.cache_path, None)["ok"]
    labels = {row[0]: row[1:] for row in csv_labels("train")}
    for name, verb, noun in zip(
        *(cache.samples[c].to_pylist() for c in ("sample_id", "label_verb", "label_noun")),
        strict=True,
    ):
        assert labels[name] == (verb, noun)


def csv_labels(split: str) -> list[tuple[Any, ...]]:
    with (ROOT / f"EPIC_100_{split}.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [(row["narration_id"], int(row["verb_class"]), int(row["noun_class"])) for row in rows]


def test_students_are_logged_by_head(run: Run) -> None:
    for variant in ("student", "baseline"):
        log = pyarrow.csv.read_csv(run.outputs / f"distill/{variant}.csv").to_pydict()
        for head in ("verb", "noun"):
            assert 0 <= log[f"accuracy/{head}"][0] <= 1
    assert log["accuracy/action"][0] <= min(log["accuracy/verb"][0], log["accuracy/noun"][0])


def test_verb_noun_and_action_follow_from_the_answers(run: Run, metrics: dict[str, Any]) -> None:
    assert (metrics["protocol"], metrics["views"]) == ("10x3", 30)
    assert (metrics["videos"], metrics["unreadable"]) == (9, 0)
    answers = pq.read_table(run.outputs / "evaluate/answers.parquet").to_pylist()
    truth = {name: (verb, noun) for name, verb, noun in csv_labels("validation")}
    parts = {
        "unseen": lambda name, _verb, _noun: name.startswith("P18"),
        "tail_verb": lambda _name, verb, _noun: verb == 2,
        "tail_noun": lambda _name, _verb, noun: noun == 0,
        "tail_action": lambda _name, verb, noun: verb == 2 or noun == 0,
    }
    for role in ROLES:
        right = {}
        for row in answers:
            verb, noun = truth[row["sample_id"]]
            assert (row["verb/label"], row["noun/label"]) == (verb, noun)
            hit = (row[f"verb/{role}_answer"] == verb, row[f"noun/{role}_answer"] == noun)
            right[row["sample_id"]] = (*hit, all(hit))
        assert metrics[role]["subsets"].keys() == parts.keys()
        subsets = {name: metrics[role]["subsets"][name] for name in parts}
        for name, figures in {"all": metrics[role], **subsets}.items():
            chosen = [
                right[key]
                for key, (verb, noun) in truth.items()
                if name == "all" or parts[name](key, verb, noun)
            ]
            assert figures.get("videos", 9) == len(chosen)
            verb, noun, action = np.mean(chosen, axis=0)
            assert figures["heads"]["verb"]["top1"] == pytest.approx(verb)
            assert figures["heads"]["noun"]["top1"] == pytest.approx(noun)
            assert figures["top1"] == pytest.approx(action)
            assert figures["heads"]["noun"]["top5"] == 1.0  # of four
            assert figures["top1"] <= figures["top5"] <= 1.0
            # Two long videos are drawn from, not nine segments; of one alone nothing is known.
            assert (figures["heads"]["verb"]["top1_interval"] is None) == (name == "unseen")
        assert metrics[role]["ece_calibrated"] is not None
        assert metrics[role]["heads"]["verb"]["temperature"] > 0
    assert metrics["bootstrap"]["videos"] == 2


def test_tables_name_the_head(run: Run, metrics: dict[str, Any]) -> None:
    out = run.outputs / "evaluate"
    with (out / "by_class.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["head"], row["class"]) for row in rows] == [
        *(("verb", name) for name in VERBS),
        *(("noun", name) for name in NOUNS),
    ]
    for head in ("verb", "noun"):
        mine = [row for row in rows if row["head"] == head and row["videos"] != "0"]
        mean = sum(float(row["student"]) * int(row["videos"]) for row in mine) / 9
        assert mean == pytest.approx(metrics["student"]["heads"][head]["top1"])
    with (out / "confusion.csv").open() as file:
        pairs = list(csv.DictReader(file))
    assert len(pairs) == 18
    assert pairs[0].keys() == {"actual", "predicted"}  # what dvc.yaml plots
    assert {pair["actual"] for pair in pairs} >= {"verb: take", "noun: 1"}
    for pair in pairs:
        assert pair["actual"].partition(":")[0] == pair["predicted"].partition(":")[0]


def test_the_report_shows_both_heads_and_every_part(run: Run, metrics: dict[str, Any]) -> None:
    html = report(run, cache_path=run.cache_path).read_text(encoding="utf-8")
    page = Page(html)
    text = re.sub(r"\s+", " ", page.text.replace("\u202f", " "))
    assert "30 views of each video (protocol 10x3: clips × crops)" in text
    assert "right, verb and noun at once" in text
    student = metrics["student"]
    for figure in (student["top1"], *(student["heads"][h]["top1"] for h in ("verb", "noun"))):
        assert f"{100 * figure:.1f} %" in text
    for part in ("unseen", "tail_verb", "tail_noun", "tail_action"):
        assert part in text
    for heading in ("What the student answers, verb", "What the student answers, noun"):
        assert heading in text
    assert "Accuracy while training, verb" in text
    assert "Accuracy while training, noun" in text
    assert re.search(r"(take|put|wash) / (tap|spoon|plate|1) ", text)
    won = sum(map(int, re.findall(r"right on (\d+) videos? where the baseline is wrong", text)))
    lost = int(re.findall(r"wrong on (\d+) where the baseline is right", text)[0])
    assert won - lost == round(9 * metrics["gain_top1"])
    assert len(page.having("class", "strip")) == len(VERBS) + won + lost


@pytest.mark.slow
def test_the_export_answers_all_heads(run: Run, metrics: dict[str, Any]) -> None:
    out = export(run, Options(max_loss=100.0))
    found = json.loads((out / "export.json").read_text())
    about = properties(out / "student.onnx")
    assert list(about["heads"].items()) == [("verb", 3), ("noun", 4)]
    assert about["classes"] == {"verb": VERBS, "noun": NOUNS}
    scored = found["quantisation"]
    assert scored["protocol"] == metrics["protocol"]
    for figure in ("top1", "top5"):  # of the pair, and of each head
        assert scored["fp32"][figure] == pytest.approx(metrics["student"][figure])
        for head in ("verb", "noun"):
            wanted = metrics["student"]["heads"][head][figure]
            assert scored["fp32"]["heads"][head][figure] == pytest.approx(wanted)
    card = (out / "MODEL_CARD.md").read_text()
    assert "3 classes (verb) and 4 classes (noun)" in card
    assert "CC BY-NC 4.0" in card
    assert "the cache with the fingerprint" in card


def test_answers_of_another_protocol_are_refused(run: Run) -> None:
    section = run.evaluate.model_copy(update={"protocol": "centre"})
    other = run.model_copy(update={"evaluate": section})
    with pytest.raises(ReportError, match=r"evaluate\.protocol is centre, but .* protocol 10x3"):
        report(other, cache_path=run.cache_path)


def test_prepare_tells_the_subsets_and_evaluate_needs_them(run: Run) -> None:
    table = pq.read_table(run.subsets_path)
    assert table.column_names == ["sample_id", "unseen", "tail_verb", "tail_noun", "tail_action"]
    assert table["sample_id"].to_pylist() == [
        *read_samples(run.samples_path).table["sample_id"].to_pylist()
    ]
    away = run.subsets_path.rename(run.subsets_path.with_suffix(".away"))
    try:
        with pytest.raises(SamplesError, match="no table of subsets at"):
            evaluate(run, device=CPU, decoders=0, batch_size=16)
    finally:
        away.rename(run.subsets_path)
