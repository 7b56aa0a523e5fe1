"""Evaluation: all four on the same clips, with every video counted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
import torch

from chain_making import job
from pipeline.config import Run
from pipeline.samples import read_samples
from pipeline.weights import WeightsError
from stages.evaluate import evaluate
from stages.student_training import train_student
from stages.teach import teach

CPU = torch.device("cpu")


@pytest.fixture
def trained(mini: Run) -> Run:
    for variant in ("baseline", "student"):
        out = mini.outputs / "distill"
        train_student(job(mini, variant, out / variant))
        shutil.copy(out / variant / "last.safetensors", out / f"{variant}.safetensors")
    return mini


def test_metrics_follow_from_the_answers(trained: Run) -> None:
    evaluate(trained, device=CPU, decoders=0, batch_size=4)
    out = trained.outputs / "evaluate"
    metrics = json.loads((out / "metrics.json").read_text())
    answers = pq.read_table(out / "answers.parquet").to_pydict()
    truth = np.array(answers["label"])
    assert (metrics["videos"], metrics["protocol"], metrics["views"]) == (14, "centre", 1)
    assert "subsets" not in metrics["student"]
    assert "heads" not in metrics["student"]
    for role in ("vit", "cnn", "baseline", "student"):
        right = np.array(answers[f"{role}_answer"]) == truth
        assert metrics[role]["top1"] == pytest.approx(right.mean())
        assert metrics[role]["top1"] <= metrics[role]["top5"] <= 1
        low, high = metrics[role]["top1_interval"]
        assert 0 <= low <= metrics[role]["top1"] <= high <= 1
        sure = np.array(answers[f"{role}_probability"])  # in float32, of the softmax of torch
        places = np.ceil(sure * 15)
        gaps = [abs((right * 1.0 - sure)[places == one].sum()) for one in range(1, 16)]
        assert metrics[role]["ece"] == pytest.approx(sum(gaps) / 14, abs=1e-5)
        shares = [right[truth == one].mean() for one in np.unique(truth)]
        assert metrics[role]["mean_class_accuracy"] == pytest.approx(np.mean(shares))
        for teacher in ("vit", "cnn") if role in ("baseline", "student") else ():
            alike = np.array(answers[f"{role}_answer"]) == np.array(answers[f"{teacher}_answer"])
            assert metrics[role][f"agreement_{teacher}"] == pytest.approx(alike.mean())
    assert metrics["gain_top1"] == metrics["student"]["top1"] - metrics["baseline"]["top1"]
    assert metrics["bootstrap"] == {"samples": 2000, "seed": 0, "level": 0.95, "videos": 14}
    by_class = csv.read_csv(out / "by_class.csv").to_pydict()
    mean = np.average(by_class["student"], weights=by_class["videos"])
    assert mean == pytest.approx(metrics["student"]["top1"])


def test_answers_do_not_depend_on_the_batch_size(trained: Run) -> None:
    tables = []
    for size in (3, 14):
        evaluate(trained, device=CPU, decoders=0, batch_size=size)
        tables.append(pq.read_table(trained.outputs / "evaluate" / "answers.parquet").to_pydict())
    for name in tables[0]:
        if name.endswith("_probability"):
            np.testing.assert_allclose(tables[0][name], tables[1][name], atol=1e-5)
        else:
            assert tables[0][name] == tables[1][name]


def test_unreadable_test_videos_are_counted_and_left_out(trained: Run) -> None:
    test = read_samples(trained.samples_path).of_splits(["test"])
    (Path(trained.prepare.root) / test.row(5).path).write_bytes(b"not a video")
    evaluate(trained, device=CPU, decoders=0, batch_size=4)
    metrics = json.loads((trained.outputs / "evaluate" / "metrics.json").read_text())
    assert (metrics["videos"], metrics["unreadable"]) == (13, 1)
    answers = pq.read_table(trained.outputs / "evaluate" / "answers.parquet")
    assert test.row(5).sample_id not in answers["sample_id"].to_pylist()


def test_too_many_unreadable_test_videos_are_an_error(trained: Run) -> None:
    test = read_samples(trained.samples_path).of_splits(["test"])
    for row in range(8):
        (Path(trained.prepare.root) / test.row(row).path).write_bytes(b"not a video")
    with pytest.raises(ValueError, match=r"8 of 14 samples cannot be read, more than .* 50%"):
        evaluate(trained, device=CPU, decoders=0, batch_size=4)
    assert not (trained.outputs / "evaluate" / "metrics.json").exists()


def test_a_split_without_a_readable_video_is_an_error(trained: Run) -> None:
    test = read_samples(trained.samples_path).of_splits(["test"])
    for row in range(len(test)):
        (Path(trained.prepare.root) / test.row(row).path).unlink()
    with pytest.raises(ValueError, match="not one of 14 videos"):
        evaluate(trained, device=CPU, decoders=0, batch_size=4)


def test_samples_of_before_there_were_subsets_are_scored(trained: Run) -> None:
    trained.subsets_path.unlink()
    evaluate(trained, device=CPU, decoders=0, batch_size=4)
    assert (trained.outputs / "evaluate" / "metrics.json").exists()


def test_missing_students_name_the_file(mini: Run) -> None:
    with pytest.raises(WeightsError, match=r"baseline\.safetensors"):
        evaluate(mini, device=CPU, decoders=0, batch_size=4)


def test_teach_scores_both_teachers(mini: Run) -> None:
    teach(mini, train_them=False, only=None, device=CPU, decoders=0)
    scores = json.loads((mini.outputs / "teach.json").read_text())
    assert scores.keys() == {"vit", "cnn"}
    assert all(0 <= score["top1"] <= score["top5"] <= 1 for score in scores.values())


def test_teach_trains_only_what_is_asked_for(mini: Run) -> None:
    before = {
        role: Path(f"configs/mini/{role}.safetensors").read_bytes() for role in ("vit", "cnn")
    }
    teach(mini, train_them=True, only="cnn", device=CPU, decoders=0)
    assert Path("configs/mini/vit.safetensors").read_bytes() == before["vit"]
    assert Path("configs/mini/cnn.safetensors").read_bytes() != before["cnn"]
