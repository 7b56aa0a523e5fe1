"""The report: one page from a small fake run, and the parts that it is made of."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.datasets import figures
from report_making import CACHE, CLASSES, EPOCHS, SCORES, Page, load_run, make_run
from stages import curves, findings, wording
from stages.charts import ticks
from stages.files import write_json
from stages.report import report
from stages.report_inputs import ReportError


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    for index in range(len(CLASSES)):
        figures.render_one(root, 0, "test", index)
    return root


@pytest.fixture(scope="module")
def outputs(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every input and the page."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        path = report(make_run(videos), cache_path=CACHE)
        assert path == Path("outputs/demo/report.html")
    return folder


@pytest.fixture(scope="module")
def html(outputs: Path) -> str:
    return (outputs / "outputs/demo/report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_every_figure_of_the_metrics_is_on_the_page(page: Page) -> None:
    for top1, top5, parameters, flops, ms_per_clip in SCORES.values():
        assert wording.percent(top1) in page.text
        assert wording.percent(top5) in page.text
        assert wording.scaled(parameters) in page.text
        assert wording.scaled(flops) in page.text
        assert wording.duration(ms_per_clip / 1000) in page.text
    text = " ".join(page.text.split())
    assert "Distillation gains 11.3 points" in text
    assert "of 3 test videos right" in text
    assert "2 videos of the split could not be read and are not counted" in text


def test_the_page_fetches_nothing(html: str, page: Page) -> None:
    references = [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "xlink:href", "data", "action", "poster")
    ]
    assert references
    assert all(value and value.startswith(("#", "data:image/jpeg;base64,")) for value in references)
    assert not re.search(r"https?://|url\(|@import", html)


def test_names_are_escaped_and_stay_names(html: str, page: Page) -> None:
    assert "<script" not in html
    for name in CLASSES:
        assert name in page.text


def test_every_class_has_a_strip_with_four_marked_answers(page: Page) -> None:
    assert len(page.having("class", "strip")) == len(CLASSES)
    assert page.having("class", "small").count("img") == 8 * len(CLASSES)
    assert page.having("aria-label", "right:").count("svg") == 10
    assert page.having("aria-label", "wrong:").count("svg") == 2


def test_every_chart_has_a_point_per_epoch(page: Page) -> None:
    by_epoch = {label: n for label, n in page.circles.items() if " by epoch: " in label}
    expected = {
        "Total loss of the student": EPOCHS,
        "Cross-entropy": 2 * EPOCHS,
        "KD with DATW": EPOCHS,
        "SDD": EPOCHS,
        "RKD": EPOCHS,
        "Accuracy while training, action": 2 * EPOCHS,
        "Mean weight of the ViT": EPOCHS,
        "Clips where the ViT leads": EPOCHS,
    }
    assert {label.partition(" by epoch")[0]: n for label, n in by_epoch.items()} == expected


def test_images_and_tables_speak_to_those_who_do_not_see(page: Page) -> None:
    for tag, attributes in page.elements:
        if tag == "img":
            assert "alt" in attributes
        if attributes.get("role") in ("img", "region"):
            assert attributes["aria-label"]
        if tag == "th":
            assert attributes["scope"] in ("col", "row")


def test_terms_that_are_off_are_said_to_be_off(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = Page(report(make_run(videos, terms=()), cache_path=CACHE).read_text(encoding="utf-8"))
    assert page.text.count("This term was off") == 3
    assert "DATW was off" in page.text
    assert "Nothing in this run" in page.text
    assert len([label for label in page.circles if " by epoch: " in label]) == 3


def test_a_video_that_is_gone_is_said_to_be_gone(
    outputs: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(outputs, tmp_path, dirs_exist_ok=True)
    shutil.copytree(videos, tmp_path / "videos")
    monkeypatch.chdir(tmp_path)
    gone = sorted((tmp_path / "videos").rglob("*.mp4"))[0]
    gone.unlink()
    path = report(load_run(tmp_path / "videos"), cache_path=CACHE)
    assert f"No frames: {gone}: no such file" in Page(path.read_text(encoding="utf-8")).text


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("teach.json", "dualkd teach"),
        ("distill/student.csv", "dualkd distill"),
        ("distill/baseline.csv", "dualkd distill"),
        ("distill/datw.csv", "dualkd distill"),
        ("distill/distill.json", "dualkd distill"),
        ("evaluate/metrics.json", "dualkd evaluate"),
        ("evaluate/answers.parquet", "dualkd evaluate"),
        ("evaluate/by_class.csv", "dualkd evaluate"),
    ],
)
def test_a_missing_input_is_named_with_the_command_that_makes_it(
    outputs: Path,
    videos: Path,
    name: str,
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(outputs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    (Path("outputs/demo") / name).unlink()
    with pytest.raises(ReportError, match=f"{name} is missing; `{command} --dataset demo` makes"):
        report(load_run(videos), cache_path=CACHE)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("distill/distill.json", {"cache_fingerprint": "c3"}, "trained from the cache c3, but"),
        (
            "distill/distill.json",
            {"weights_sha256": {"student": "e5"}},
            "student that answered has the weights of student, the one that was trained e5",
        ),
        ("teach.json", {"vit": {"weights_sha256": "d4"}}, "teacher vit: .* scored the weights d4"),
        ("evaluate/metrics.json", {"videos": 7}, "counts 7 videos, answers.parquet 3"),
        ("evaluate/metrics.json", {"student": {}}, "metrics.json lacks 'student.model'"),
        ("evaluate/metrics.json", None, "metrics.json is damaged"),
        ("evaluate/answers.parquet", None, "answers.parquet is damaged"),
        ("distill/student.csv", None, "student.csv is damaged"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    outputs: Path,
    videos: Path,
    name: str,
    change: dict[str, Any] | None,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(outputs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    path = Path("outputs/demo") / name
    if change is None:
        path.write_bytes(b"{")
    else:
        write_json(path, json.loads(path.read_text()) | change)
    with pytest.raises(ReportError, match=message):
        report(load_run(videos), cache_path=CACHE)


def test_a_network_whose_output_is_not_finite_is_refused(
    outputs: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(outputs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    path = Path("outputs/demo/evaluate/answers.parquet")
    columns = pq.read_table(path).to_pydict() | {"cnn_answer": [0, -1, -1]}
    pq.write_table(pa.table(columns), path)
    with pytest.raises(ReportError, match="output of cnn is not finite for 2 of 3 videos"):
        report(load_run(videos), cache_path=CACHE)


def test_another_config_than_the_student_was_trained_with_is_refused(
    outputs: Path, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(outputs)
    with pytest.raises(ReportError, match=r"distill\.weights\.rkd is 0\.0, but .* 0\.5"):
        report(load_run(videos, ("kd", "sdd")), cache_path=CACHE)


def test_a_cache_that_is_not_there(
    outputs: Path, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(outputs)
    with pytest.raises(ReportError, match="no cache at elsewhere; `dualkd-cache extract"):
        report(load_run(videos), cache_path=Path("elsewhere"))


def test_teacher_time_is_the_arithmetic_on_the_page() -> None:
    saving = findings.Saving(rows=2400, clips=600, epochs=14, cache_ms=50.0, online_ms=50.0)
    assert (saving.once_sec, saving.student_sec) == (120.0, 420.0)
    assert saving.break_even == "after 4 of the first student’s 14 epochs"
    short = findings.Saving(rows=2400, clips=600, epochs=1, cache_ms=50.0, online_ms=50.0)
    assert short.break_even == "with student number 4"


def test_the_interval_of_the_gain_is_paired() -> None:
    label = np.zeros(100, np.int64)
    student, baseline = np.repeat([0, 1], [80, 20]), np.repeat([0, 1], [70, 30])
    found = findings.compare(
        {"label": label, "student_answer": student, "baseline_answer": baseline}
    )
    # Ten videos of a hundred were won: variance 0.1 · 0.9 · 100/99.
    half = 1.96 * (0.09 * 100 / 99 / 100) ** 0.5
    assert (found.won, found.lost, found.sure) == (10, 0, True)
    assert found.interval == pytest.approx((0.1 - half, 0.1 + half))


def test_many_classes_and_epochs_are_thinned_and_said_to_be() -> None:
    rows = [
        {"epoch": epoch, "class": f"class {number}", "vit_weight": number / 50}
        for epoch in range(80)
        for number in range(50)
    ]
    weights = curves.class_weights(rows)
    assert weights is not None
    assert weights.most == ("class 49", 0.98)
    assert weights.hidden == "the 20 classes between the extremes and 40 of 80 epochs"
    assert findings.confusion_chart({}, [str(number) for number in range(31)]) is None


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.25, 0.5, 0.75, 1]), (0, 6.1, [0, 2, 4, 6, 8]), (3, 3, [2.5, 2.75, 3, 3.25, 3.5])],
)
def test_ticks_are_round_and_hold_the_values(
    low: float, high: float, expected: list[float]
) -> None:
    assert ticks(low, high) == expected


def test_numbers_are_written_for_people() -> None:
    spoken = [
        (wording.percent(0.8349), "83.5 %"),
        (wording.percent(None), "–"),
        (wording.points(-0.012), "−1.2"),
        (wording.points(0.1129), "+11.3"),
        (wording.points(0.0), "0.0"),
        (wording.scaled(4_900_000), "4.9 M"),
        (wording.scaled(999_700), "1 M"),
        (wording.size(38_000), "38 kB"),
        (wording.duration(0.0312), "31.2 ms"),
        (wording.duration(0.9994), "999 ms"),
        (wording.duration(0.9996), "1 s"),
        (wording.duration(432), "7 min 12 s"),
        (wording.duration(12_000), "3 h 20 min"),
        (wording.plural(1, "video"), "1 video"),
        (wording.plural(2400, "video"), "2,400 videos"),
    ]
    assert [text.replace("\u202f", " ") for text, _ in spoken] == [wanted for _, wanted in spoken]
