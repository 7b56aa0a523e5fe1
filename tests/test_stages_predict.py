"""`dualkd predict`: what `evaluate` answers, for people and programs, whatever the files."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from pipeline.config import Run
from pipeline.models import create_model
from pipeline.protocols import PROTOCOLS
from pipeline.samples import read_samples
from pipeline.student import load_student
from pipeline.weights import load_weights, save_weights
from stages import cli, predict_output
from stages.answers import Answer
from stages.predict import Options, PredictError, predict, seconds_of
from stages.scoring import score
from student_making import about, write_onnx
from video_making import cut_off, write_video

ROOT = Path(__file__).parents[1]
NANO = "pytorchvideo/x3d_nano"
CLASSES = 14


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one random student: saved, as ONNX, and as a program of torch.export."""
    folder = tmp_path_factory.mktemp("students")
    torch.manual_seed(0)
    model = create_model(NANO, CLASSES).eval()
    names = {"action": [f"class {index}" for index in range(CLASSES)]}
    save_weights(model, folder / "s.safetensors", {"variant": "student", "classes": names})
    said = {"model": NANO, "heads": model.heads, "classes": names, "clip": asdict(model.clip)}
    example = torch.zeros(2, 3, model.clip.frames, model.clip.size, model.clip.size)
    program = torch.export.export(
        model, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    torch.export.save(program, folder / "s.pt2", extra_files={"about.json": json.dumps(said)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.onnx.export(program, input_names=["clips"], output_names=["logits"])
    assert made is not None
    proto = made.model_proto
    for name, value in said.items():
        proto.metadata_props.add(key=name, value=json.dumps(value))
    onnx.save(proto, folder / "s.onnx")
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two videos of 3 and 2 seconds, one of them in a folder below."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "below").mkdir()
    write_video(folder / "a.mp4", frames=75)
    write_video(folder / "below" / "b.avi", codec="mpeg4", frames=50)
    return folder


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_onnx(tmp_path / "tiny.onnx", about(action=6))


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """Run `dualkd predict` as its entry point does; returns the exit code."""
    monkeypatch.setattr(sys, "argv", ["dualkd", "predict", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


# --- the answers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["centre", "5x1"])
def test_it_answers_what_evaluate_answers(mini: Run, exported: Path, protocol: str) -> None:
    """The same logits from saved weights, to 1e-4 from exports: of the same videos' views."""
    samples = read_samples(mini.samples_path).of_splits(["test"]).take(range(6))
    root, path = Path(mini.prepare.root), exported / "s.safetensors"
    model = load_weights(NANO, {"action": CLASSES}, path)
    views = PROTOCOLS[protocol].views
    scored = score({"it": model}, root, samples, 0, 4 * views, protocol=PROTOCOLS[protocol])
    expected = scored.logits["it"]["action"]
    options = Options(PROTOCOLS[protocol], batch_size=4 * views)
    files = [root / samples.row(row).path for row in scored.rows]
    for name, tolerance in (("s.safetensors", 0.0), ("s.onnx", 1e-4), ("s.pt2", 1e-4)):
        answers = list(predict(load_student(exported / name, device="cpu"), files, options))
        found = np.stack([one.logits["action"] for one in answers if isinstance(one, Answer)])
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance, err_msg=name)


def test_batches_hold_clips_of_several_videos(tiny: Path, videos: Path) -> None:
    student = load_student(tiny)
    sizes: list[int] = []

    def counted(clips: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        sizes.append(len(clips))
        return student.answer(clips)

    watched = type(student)(student.path, student.model, student.clip, student.classes, counted)
    files = [videos / "a.mp4", videos / "none.mp4", videos, videos / "a.mp4"]
    one_by_one = list(predict(student, files, Options(batch_size=1)))
    together = list(predict(watched, files, Options(batch_size=3)))
    assert sizes == [1, 3]  # what stands before a bad file is answered first
    assert [one.video for one in together] == [one.video for one in one_by_one]
    for one, other in zip(one_by_one, together, strict=True):
        if isinstance(one, Answer) and isinstance(other, Answer):
            np.testing.assert_allclose(one.logits["action"], other.logits["action"], atol=1e-5)


# --- for people ----------------------------------------------------------------------------------


def lines_of(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_the_best_classes_have_bars(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny: Path, videos: Path
) -> None:
    assert run(monkeypatch, tiny, videos, "--top", "2") == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out  # no terminal
    assert max(map(len, out.splitlines())) <= 80
    lines = lines_of(out)
    assert lines[0] == [str(videos / "a.mp4"), "3.0", "s"]
    assert lines[3] == [str(videos / "below" / "b.avi"), "2.0", "s"]
    assert len(lines) == 6
    first, second = (float(line[-2]) for line in lines[1:3])
    assert 100 >= first >= second > 0
    assert "━" in lines[1][2]


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("coloured", [True, False])
def test_several_heads_are_readable_on_terminals(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    videos: Path,
    width: int,
    coloured: bool,
) -> None:
    said = about(verb=3, noun=4)
    said["classes"]["noun"][0] = "a very long name of a noun " * 3
    path = write_onnx(tmp_path / "a.onnx", said)

    def terminal() -> predict_output.PlainConsole:
        console = predict_output.PlainConsole(
            width=width, force_terminal=True, no_color=not coloured, color_system="standard"
        )
        console.width = min(console.width, 100)
        return console

    monkeypatch.setattr(predict_output, "_console", terminal)
    assert run(monkeypatch, path, videos / "a.mp4") == 0
    out = capsys.readouterr().out
    assert ("\x1b[3" in out or "\x1b[9" in out) is coloured
    plain = re.sub(r"\x1b\[[0-9;]*m", "", out)
    assert max(map(len, plain.splitlines())) <= min(width, 100)
    lines = [line.split() for line in plain.splitlines()]
    assert ["verb"] in lines
    assert ["noun"] in lines
    assert ["action", "verb", "×", "noun"] in lines


def test_a_timeline_merges_steps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny: Path, videos: Path
) -> None:
    assert run(monkeypatch, tiny, videos / "a.mp4", "--every", "500ms", "--json") == 0
    steps = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [step["start_sec"] for step in steps] == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    tops = [step["answers"]["action"][0]["class"] for step in steps]
    changes = [0, *(i for i in range(1, 6) if tops[i] != tops[i - 1])]
    assert run(monkeypatch, tiny, videos / "a.mp4", "--every", "0.5s") == 0
    heading, *lines = lines_of(capsys.readouterr().out)
    assert heading[1:] == ["every", "0.5", "s"]
    begins = [f"0:{steps[i]['start_sec']:04.1f}" for i in changes]
    assert [line[0] for line in lines] == begins
    assert [" ".join(line[3:5]) for line in lines] == [tops[i] for i in changes]
    assert lines[-1][2] == "0:03.0"


# --- for programs --------------------------------------------------------------------------------


def test_each_answer_is_a_line_of_json(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    videos: Path,
) -> None:
    path = write_onnx(tmp_path / "a.onnx", about(verb=3, noun=4))
    none = tmp_path / "none.mp4"
    assert run(monkeypatch, path, videos / "a.mp4", none, videos / "a.mp4", "--json") == 1
    captured = capsys.readouterr()
    first, bad, again = map(json.loads, captured.out.splitlines())
    assert bad == {"video": str(none), "error": f"{none}: no such file"}
    assert first == again
    assert (first["start_sec"], first["stop_sec"]) == (0.0, 3.0)
    answers = first["answers"]
    assert [len(answers[head]) for head in ("verb", "noun", "action")] == [3, 4, 5]
    best = answers["action"][0]
    assert best["class"] == {head: answers[head][0]["class"] for head in ("verb", "noun")}
    product = answers["verb"][0]["probability"] * answers["noun"][0]["probability"]
    assert best["probability"] == pytest.approx(product)
    assert "1 video could not be read" in captured.err


# --- bad files and options -----------------------------------------------------------------------


def test_bad_videos_are_named_and_the_others_answered(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    tiny: Path,
    videos: Path,
) -> None:
    (tmp_path / "text.mp4").write_text("hello")
    (tmp_path / "empty.mp4").touch()
    for folder, file in (("none", "readme.txt"), ("frames", "frame_0001.jpg")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).touch()
    truncated = write_video(tmp_path / "cut.mp4", frames=100, faststart=True, noise=True)
    cut_off(truncated, 0.3)
    bad = ["text.mp4", "empty.mp4", "none", "frames", "cut.mp4", "absent.mp4", "a" * 300]
    assert run(monkeypatch, tiny, *(tmp_path / name for name in bad), videos / "a.mp4") == 1
    captured = capsys.readouterr()
    errors = captured.err.splitlines()
    for name, message in zip(
        bad,
        [
            "it is text: 'hello'",
            "the file is empty (0 bytes)",
            "no videos in this folder or below it (.mp4, ",
            f"holds pictures, not videos; if they are the frames of one, give their rate as in "
            f"{tmp_path / 'frames'}?fps=25",
            "",
            "no such file",
            "File name too long",
        ],
        strict=True,
    ):
        (line,) = (line for line in errors if line.startswith(f"error: {tmp_path / name}:"))
        assert message in line
    assert errors[-1] == "7 videos could not be read, or not to the end"
    assert captured.out.startswith(str(videos / "a.mp4"))


def test_of_a_truncated_video_the_timeline_shows_what_there_is(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    tiny: Path,
) -> None:
    path = write_video(tmp_path / "cut.mp4", frames=250, faststart=True, noise=True)
    cut_off(path, 0.5)
    assert run(monkeypatch, tiny, path, "--every", "1s", "--json") == 1
    *steps, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert 2 <= len(steps) <= 6
    assert last["video"] == str(path)
    assert "cut.mp4" in last["error"]


def test_frames_with_their_rate_are_a_video(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    tiny: Path,
) -> None:
    from PIL import Image

    for index in range(20):
        Image.new("RGB", (64, 48), (10 * index, 0, 0)).save(tmp_path / f"frame_{index:04}.jpg")
    assert run(monkeypatch, tiny, f"{tmp_path}?fps=10", "--json") == 0
    assert json.loads(capsys.readouterr().out)["stop_sec"] == 2.0


@pytest.mark.parametrize(
    ("text", "seconds"), [("1s", 1.0), ("500ms", 0.5), ("2min", 120.0), (".5 s", 0.5), ("1h", 3600)]
)
def test_times_have_units(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["1", "0", "-1s", "1x", "s", "", "nan s", "1e3s"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(PredictError, match=f"takes a time as 1s, 500ms or 2min; got '{text}'"):
        seconds_of(text)


@pytest.mark.parametrize("text", ["0s", "0.0s", "50ms"])
def test_steps_are_not_too_short(text: str) -> None:
    with pytest.raises(PredictError, match=f"--every {text}: a step is at least 0.1 s"):
        seconds_of(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--protocol", "7x7"], "--protocol takes centre, 5x1, 10x1, 10x3; got '7x7'"),
        (["--protocol", "5x1", "--every", "1s"], "with --every each step has one clip"),
        (["--every", "soon"], "got 'soon'"),
        (["--every", "25h"], "--every 25h: a step is at most 24 h long"),
        (["--device", "cuda"], "tiny.onnx runs on the CPU; --device cuda is for saved students"),
        (["--classes", "/nope"], "--classes /nope cannot be read: No such file or directory; it "),
        (["--classes", "http://x/y.txt"], "--classes http://x/y.txt is a URL"),
        (["--classes", ""], "--classes is empty"),
        (
            ["http://me:secret@localhost:1/b.mp4?key=secret"],
            "VIDEO http://localhost:1/b.mp4 is a URL, and only files of this machine are read: "
            "download it first, and give the file",
        ),
        ([""], "VIDEO is empty; give a path"),
    ],
)
def test_options_that_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tiny: Path,
    options: Sequence[str],
    message: str,
) -> None:
    assert run(monkeypatch, tiny, "a.mp4", *options) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert "secret" not in error


def test_a_model_at_a_url_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "s3://bucket/student.onnx", "a.mp4") == 1
    assert "MODEL s3://bucket/student.onnx is a URL" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["cuda:77", "foo"])
def test_a_device_that_is_not_here_is_one_message(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    exported: Path,
    device: str,
) -> None:
    assert run(monkeypatch, exported / "s.safetensors", "a.mp4", "--device", device) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: --device '{device}' cannot be used: ")
    assert len(error.splitlines()) == 1


# --- what is imported ----------------------------------------------------------------------------


def test_an_onnx_student_imports_only_what_it_needs(tiny: Path, videos: Path) -> None:
    """Importing torch alone takes most of the three seconds in which an answer is due."""
    script = (
        "import sys; from stages import cli\n"
        "try: cli.main()\n"
        "except SystemExit as stop: code = stop.code or 0\n"
        "heavy = 'torch torchvision timm pytorchvideo fvcore zarr dask distributed pyarrow pandas "
        "onnx dvc fsspec tensorboard'.split()\n"
        "print([name for name in heavy if name in sys.modules], code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "predict", str(tiny), str(videos / "a.mp4")],
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[] 0"
