"""The stage `export`: what is published has been proven, and what has not is not there."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch

import export_making
from chain_making import write_config
from dataset_making import SHARED
from pipeline.clips import ClipDataset
from pipeline.config import Run
from pipeline.models import create_model
from pipeline.onnx_files import ExportedModel
from pipeline.protocols import CENTRE, ProtocolViews
from pipeline.samples import Sample, Samples, build_samples, read_samples
from pipeline.views import normalise
from pipeline.weights import load_weights, save_weights
from stages import cli, export_checks
from stages import export as stage
from stages.export import Options, export, load_student
from stages.export_checks import ExportError, check_backbone, check_parity
from stages.model_card import model_card

FILES = {"student.onnx", "student.int8.onnx", "student.pt2", "MODEL_CARD.md", "export.json"}


@pytest.fixture(scope="module")
def published(extracted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature run with students, and the student exported; copy it before you change it."""
    folder = tmp_path_factory.mktemp("published") / "mini"
    shutil.copytree(extracted, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run = write_config(folder)
        export_making.write_students(run)
        export(run, Options(max_loss=100.0))
    return folder


@pytest.fixture
def run(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The run in a copy of its folder, which is the working folder."""
    folder = tmp_path / "mini"
    shutil.copytree(published, folder)
    monkeypatch.chdir(folder)
    return write_config(folder)


def facts(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run.outputs / "export" / "export.json").read_text())
    return found


def student(run: Run) -> Any:
    heads = read_samples(run.samples_path).heads
    return load_weights(run.distill.student, heads, run.outputs / "distill" / "student.safetensors")


def clips_of(run: Run, samples: Samples, root: Path) -> torch.Tensor:
    """The centre views of samples, normalised for the student."""
    spec = student(run).clip
    dataset = ClipDataset(root, samples, [spec], test_crop=True)
    views = ProtocolViews(CENTRE, spec.span_sec)
    reads = dataset.__getitems__([(row, views) for row in range(len(samples))])
    return normalise(torch.from_numpy(np.concatenate([one.clips.clips[0] for one in reads])), spec)


def answers(run: Run, name: str, clips: torch.Tensor) -> np.ndarray[Any, Any]:
    path = run.outputs / "export" / name
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    logits: np.ndarray[Any, Any] = session.run(["logits"], {"clips": clips.numpy()})[0]
    return logits


def test_all_files_are_there_and_nothing_else(run: Run) -> None:
    out = run.outputs / "export"
    assert {path.name for path in out.iterdir()} == FILES
    for name, file in facts(run)["files"].items():
        assert file["bytes"] == (out / name).stat().st_size
    quantised = facts(run)["quantisation"]
    assert quantised["bytes_int8"] < 0.55 * quantised["bytes_fp32"]


@pytest.mark.parametrize("count", [1, 14])
def test_rendered_clips_get_the_same_answers(run: Run, count: int) -> None:
    samples = read_samples(run.samples_path).of_splits(["test"])
    clips = clips_of(run, samples, Path(run.prepare.root))[:count]
    with torch.inference_mode():
        wanted = student(run)(clips).numpy()
    assert np.abs(wanted).max() > 1
    assert np.abs(answers(run, "student.onnx", clips) - wanted).max() <= 1e-4
    program = torch.export.load(run.outputs / "export" / "student.pt2").module()
    with torch.inference_mode():
        assert np.abs(program(clips).numpy() - wanted).max() <= 1e-4
    told = facts(run)["parity"]
    assert told["max_difference"].keys() == {"onnx", "pt2"}
    assert told["clips"] == 14
    assert told["largest_logit"] > 1


@pytest.mark.skipif(not (SHARED / "clips").is_dir(), reason="no real clips here")
def test_real_clips_get_the_same_answers(run: Run) -> None:
    names = sorted(path.name for path in (SHARED / "clips").iterdir())
    rows = [Sample(name, name, "test", {"action": 0}) for name in names]
    samples = build_samples("real", {"action": ["it"]}, rows)
    clips = clips_of(run, samples, SHARED / "clips")
    with torch.inference_mode():
        wanted = student(run)(clips).numpy()
    assert np.abs(answers(run, "student.onnx", clips) - wanted).max() <= 1e-4


def test_the_page_shows_how_to_use_a_file_without_our_code(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = read_samples(run.samples_path).of_splits(["test"]).take([3])
    video = Path(run.prepare.root) / samples.row(0).path
    page = (Path(__file__).parents[1] / "docs" / "deployment.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert not re.search(r"import .*(pipeline|stages|cache|torch)", example)
    example = example.replace("video.mp4", str(video))
    example = example.replace(
        "outputs/demo/export/student.int8.onnx", f"{run.outputs}/export/student.onnx"
    )
    Path("example.py").write_text(example)
    made = runpy.run_path("example.py")
    ours = clips_of(run, samples, Path(run.prepare.root))
    np.testing.assert_allclose(made["clips"], ours.numpy(), atol=1.01 / 255 / 0.225)
    names = samples.classes["action"]
    best = answers(run, "student.onnx", ours)[0].argsort()[::-1][:5]
    assert capsys.readouterr().out == f"action {[names[row] for row in best]}\n"


def test_accuracies_are_those_of_the_files_answers(run: Run) -> None:
    samples = read_samples(run.samples_path).of_splits(["test"])
    clips, labels = clips_of(run, samples, Path(run.prepare.root)), samples.labels(-1)["action"]
    right = {
        name: answers(run, file, clips).argmax(axis=1) == labels
        for name, file in (("fp32", "student.onnx"), ("int8", "student.int8.onnx"))
    }
    found = facts(run)["quantisation"]
    assert (found["videos"], found["split"]) == (14, "test")
    for name, of_name in right.items():
        assert found[name]["top1"] == pytest.approx(of_name.mean())
    loss = 100 * (right["fp32"].mean() - right["int8"].mean())
    assert found["loss_points"] == pytest.approx(loss, abs=1e-6)
    assert found["won"] - found["lost"] == right["int8"].sum() - right["fp32"].sum()
    assert found["calibration"] == {"splits": ["train"], "clips": 14}


def test_the_export_is_the_plain_backbone(run: Run) -> None:
    found = facts(run)["backbone"]
    assert found["export"] == found["plain"]
    plain = create_model(run.distill.student, 14)
    assert found["export"]["parameters"] == sum(each.numel() for each in plain.parameters())
    # Of 39 convolutions each has its norm folded in, or had a bias before.
    convolutions = [each for each in plain.modules() if isinstance(each, torch.nn.Conv3d)]
    assert found["export"]["operators"]["Conv"] == len(convolutions)


def test_a_part_of_the_training_in_the_export_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class WithBranch(export_making.Tiny):
        def forward(self, clips: torch.Tensor) -> torch.Tensor:
            made = self.features(clips)
            logits = torch.cat(list(made.logits.values()), dim=1)
            return logits + 0 * torch.nn.functional.avg_pool3d(made.map, 2).mean()

    monkeypatch.setattr(export_checks, "create_model", lambda *_: export_making.Tiny(seed=5))
    for model, message in ((export_making.Tiny(), ""), (WithBranch(), "is not the plain backbone")):
        path, program = tmp_path / "it.onnx", stage.traced(model)
        stage.export_onnx(program, path, {})
        if message:
            with pytest.raises(ExportError, match=message):
                check_backbone(path, program, model, tmp_path)
        else:
            check_backbone(path, program, model, tmp_path)


def test_the_card_tells_where_the_student_comes_from(run: Run) -> None:
    card = (run.outputs / "export" / "MODEL_CARD.md").read_text()
    found = facts(run)
    for told in (found["cache"], "pytorchvideo/x3d_nano", "`torchvision/mvit_tiny`", "Apache-2.0"):
        assert told in card
    assert "`dualkd evaluate --dataset mini`" in card  # it was not scored
    assert "check where the file came from" in card


@pytest.mark.parametrize(
    ("source", "licence"),
    [("k400", "CC BY 4.0 (Google)"), ("epic100", "CC BY-NC 4.0"), ("hmdb51", "CC BY 4.0")],
)
def test_the_card_says_what_is_certain_of_licences(run: Run, source: str, licence: str) -> None:
    prepare = run.prepare.model_copy(update={"source": source})
    vit = run.teach.vit.model_copy(update={"start": "published"})
    teach = run.teach.model_copy(update={"vit": vit})
    other = run.model_copy(update={"prepare": prepare, "teach": teach})
    card = model_card(other, read_samples(run.samples_path), student(run), facts(run))
    assert licence in card
    assert "Teacher `vit`: its weights began with those that were published" in card
    assert "Kinetics-400: annotations CC BY 4.0" in card


def test_the_card_has_the_results_of_these_weights_only(run: Run) -> None:
    one = {"model": "it", "top1": 0.5, "top5": 0.75, "parameters": 1000, "flops": 2000}
    digest = facts(run)["weights_sha256"]
    metrics = {"split": "test", "protocol": "centre", "videos": 14, "unreadable": 1}
    metrics |= {"gain_top1": 0.125, "baseline": one, "student": one | {"weights_sha256": digest}}
    metrics["vit"] = one | {"weights_sha256": "feed"}
    path = run.outputs / "evaluate" / "metrics.json"
    path.parent.mkdir()
    samples, model = read_samples(run.samples_path), student(run)
    path.write_text(json.dumps(metrics))
    card = model_card(run, samples, model, facts(run))
    assert "+12.5 points" in card
    assert "| feed | 50.0" in card
    path.write_text(json.dumps(metrics | {"student": one | {"weights_sha256": "other"}}))
    assert "Not scored with these weights" in model_card(run, samples, model, facts(run))


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run `dualkd` as its entry point does; returns the exit code."""
    monkeypatch.setattr(sys, "argv", ["dualkd", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


def test_too_great_a_loss_is_refused_and_no_8_bit_file_stays(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stage, "check_backbone", lambda *_: facts(run)["backbone"])
    measured = export_checks.compare_precisions

    def worse(*arguments: Any) -> dict[str, Any]:
        return measured(*arguments) | {"loss_points": 7.25}

    monkeypatch.setattr(stage, "compare_precisions", worse)
    options = ("--formats", "onnx,int8", "--max-loss", "2.5")
    assert command(monkeypatch, "export", "--dataset", "mini", *options) == 1
    error = capsys.readouterr().err
    for told in ("7.25 points is more than 2.5", "14 videos of test", "--max-loss", "--formats"):
        assert told in re.sub(r"\s+", " ", error)
    names = {path.name for path in (run.outputs / "export").iterdir()}
    assert names == FILES - {"student.int8.onnx", "student.pt2"}
    assert facts(run)["quantisation"]["published"] is False
    short = json.loads((run.outputs / "deployment.json").read_text())
    assert short["int8_loss_points"] == 7.25
    assert "int8" not in short
    assert short["onnx"].keys() == {"bytes", "max_difference", "top1"}
    assert command(monkeypatch, "export", "--dataset", "mini", *options, "--go-on") == 0
    assert "7.25 points is more than 2.5" in re.sub(r"\s+", " ", capsys.readouterr().err)
    assert "so there is no 8-bit file" in (run.outputs / "export" / "MODEL_CARD.md").read_text()


@pytest.mark.parametrize("off", [2e-4, float("nan")])
def test_other_answers_than_pytorchs_are_refused(run: Run, off: float) -> None:
    samples, model = read_samples(run.samples_path).of_splits(["test"]), student(run)
    files = {"onnx": ExportedModel(model, lambda clips: model(clips) + off)}
    with pytest.raises(ExportError, match=r"onnx: logits differ by up to .* Nothing was published"):
        check_parity(run, samples, model, files, 0)


def forget(run: Run) -> None:
    (run.outputs / "distill" / "student.safetensors").unlink()


def other_config(run: Run) -> None:
    path = Path("configs/mini.yaml")
    path.write_text(path.read_text().replace("temperature: 2.0", "temperature: 3.5"))


def other_weights(run: Run) -> None:
    model = student(run)
    with torch.no_grad():
        model.net.blocks[-1].proj.bias.add_(1)
    save_weights(model, run.outputs / "distill" / "student.safetensors", {})


def other_classes(run: Run) -> None:
    facts = {"classes": {"action": ["other"] * 14}}
    save_weights(student(run), run.outputs / "distill" / "student.safetensors", facts)


def damage(run: Run) -> None:
    (run.outputs / "distill" / "distill.json").write_text("{}")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (forget, r"there is no outputs/mini/distill/student.safetensors; `dualkd distill"),
        (other_config, r"distill.temperature is 3.5, but the student was trained with 2.0"),
        (other_weights, r"has the weights \w{12}, outputs/mini/distill/distill.json is of \w{12}"),
        (other_classes, r"was trained for other classes than outputs/mini/samples.parquet has"),
        (damage, r"distill.json is damaged .*`dualkd distill --dataset mini` writes it anew"),
    ],
)
def test_a_student_that_does_not_fit_is_refused(
    run: Run, spoil: Callable[[Run], None], message: str
) -> None:
    from pipeline.config_file import load_config

    spoil(run)
    again = load_config(Path("configs/mini.yaml"))
    with pytest.raises(ExportError, match=message):
        load_student(again, read_samples(run.samples_path), "student")


def test_mistakes_on_the_command_line_are_told(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "export", "--dataset", "mini", "--formats", "tflite") == 2
    assert "--formats takes onnx, int8, pt2; got 'tflite'" in capsys.readouterr().err
    assert command(monkeypatch, "export", "--dataset", "mini", "--student", "vit") == 2
    assert "--student takes student, baseline; got 'vit'" in capsys.readouterr().err
    monkeypatch.setattr("stages.cli_options.find_spec", lambda name: None)
    assert command(monkeypatch, "export", "--dataset", "mini") == 1
    assert "error: this command needs onnx, onnxruntime, onnxscript" in capsys.readouterr().err
