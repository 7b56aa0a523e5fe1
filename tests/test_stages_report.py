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
from stages import residual, strips, wording
from stages.files import write_json
from stages.pictures import picture_uri
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
    assert all(value and value.startswith(("#", "data:image/webp;base64,")) for value in references)
    assert not re.search(r"https?://|url\(|@import|fetch\(|XMLHttpRequest|WebSocket", html)
    (policy,) = (
        str(attributes["content"])
        for _, attributes in page.elements
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'; img-src data:; ")  # browsers see to it, too


def test_names_are_escaped_and_stay_names(html: str, page: Page) -> None:
    assert html.count("<script>") == html.count("<script") == 2  # the page's own
    assert "alert(" not in html.replace("&lt;script&gt;alert(", "")
    for name in CLASSES:
        assert name in page.text


def test_every_class_and_what_was_won_has_a_film_with_four_marked_answers(page: Page) -> None:
    """The student won the second and the third video, and lost none."""
    films = len(CLASSES) + 2
    assert len(page.having("class", "strip")) == films
    assert page.having("class", "frames small").count("img") == films
    assert page.having("aria-label", "right:").count("svg") == 10 + 6
    assert page.having("aria-label", "wrong:").count("svg") == 2 + 2
    text = " ".join(page.text.split())
    assert "only the student is right 2 of 2 videos" in text
    assert "only the baseline is right 0 of 0 videos" in text


def test_pictures_are_of_a_bounded_size(html: str) -> None:
    """9 videos won, 9 lost and 24 of classes; 8 steps of 3 clips; a third more as base64."""
    most = 4 / 3 * ((9 + 9 + 24) * strips.MOST_BYTES + 3 * 8 * residual.MOST_BYTES)
    assert most < 1_700_000
    pictures = re.findall(r'src="(data:[^"]*)"', html)
    assert len(pictures) == 5 + 3 * 2
    assert max(map(len, pictures)) < 4 / 3 * strips.MOST_BYTES + 100
    noise = np.random.default_rng(0).integers(256, size=(96, 12 * 96, 3), dtype=np.uint8)
    assert len(picture_uri(noise, strips.MOST_BYTES)) < 4 / 3 * strips.MOST_BYTES + 100


def test_intervals_calibration_and_agreement_are_on_the_page(page: Page) -> None:
    text = " ".join(page.text.split()).replace("\u202f", " ")
    assert "95 % interval over the videos: +3.1 to +19.4 points" in text
    assert "83.4 %80.3–86.1" in text
    assert text.count("calibration error 8.1 %; 4.3 % at temperature 1.37") == 4
    labels = [label for label in page.circles if "accuracy by confidence" in label]
    assert len(labels) == 4
    assert "right in 80.0 % of 3 videos" in labels[0].replace("\u202f", " ")
    squeezed = re.sub(r"\s", "", page.text)
    assert "Baseline81.2%76.5%Student81.2%76.5%" in squeezed  # as the ViT, as the CNN
    assert "<script>alert('x')</script>bow1→0+1" in squeezed  # a pair of classes confused less


def test_teacher_weights_by_confidence_are_on_the_page(page: Page) -> None:
    text = " ".join(page.text.split())
    assert "ViT surer 0, alike 6, CNN surer 4" in text
    label = "Weight of the ViT by epoch and by which teacher is surer"
    assert page.circles[label] == 2 * EPOCHS


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
    by_epoch.pop("", None)
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
        ("distill/datw_confidence.csv", "dualkd distill"),
        ("distill/distill.json", "dualkd distill"),
        ("evaluate/metrics.json", "dualkd evaluate"),
        ("evaluate/answers.parquet", "dualkd evaluate"),
        ("evaluate/by_class.csv", "dualkd evaluate"),
        ("evaluate/confusions.csv", "dualkd evaluate"),
        ("evaluate/reliability.csv", "dualkd evaluate"),
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


def test_what_export_measured_is_on_the_page(
    outputs: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(outputs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    content: dict[str, Any] = {
        "weights_sha256": "of student",
        "files": {
            "student.onnx": {"format": "onnx", "bytes": 512_000},
            "student.int8.onnx": {"format": "int8", "bytes": 160_000},
        },
        "parity": {"clips": 64, "max_difference": {"onnx": 2.5e-6}},
        "quantisation": {"videos": 3, "fp32": {"top1": 0.8342}, "int8": {"top1": 0.8231}},
    }
    path = Path("outputs/demo/export/export.json")
    write_json(path, content)
    page = Page(report(load_run(videos), cache_path=CACHE).read_text(encoding="utf-8"))
    squeezed = re.sub(r"\s", "", page.text)
    assert "ONNX,float32512kB83.4%2.5e-06student.onnx" in squeezed
    assert "ONNX,8bits160kB82.3%–student.int8.onnx" in squeezed
    content["quantisation"] |= {"published": False, "loss_points": 1.1, "limit_points": 1.0}
    write_json(path, content)
    page = Page(report(load_run(videos), cache_path=CACHE).read_text(encoding="utf-8"))
    refused = "There is no 8-bit file: it loses 1.1 points of top-1, and 1 are allowed."
    assert refused in " ".join(page.text.split())
    del content["quantisation"], content["files"]["student.int8.onnx"]  # --formats onnx
    write_json(path, content)
    page = Page(report(load_run(videos), cache_path=CACHE).read_text(encoding="utf-8"))
    assert "ONNX,float32512kB–2.5e-06student.onnx" in re.sub(r"\s", "", page.text)
    write_json(path, content | {"weights_sha256": "of another student"})
    page = Page(report(load_run(videos), cache_path=CACHE).read_text(encoding="utf-8"))
    assert "student.onnx" not in page.text
