"""`teach --train`: what it trains on, what it keeps, how it goes on, and what it says."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as csv
import pytest
import torch
from safetensors.torch import load_file

from chain_making import write_config
from pipeline.config import Run
from pipeline.datasets import figures
from pipeline.models import create_model
from pipeline.objective import NO_LABEL
from pipeline.resuming import CheckpointError
from pipeline.samples import Samples, read_samples
from pipeline.weights import WeightsError, load_weights, read_facts, save_weights
from stages import teacher_training
from stages.scoring import ScoringError
from stages.teach import teach
from stages.teacher_training import Labelled, TeachError

CPU = torch.device("cpu")
WEIGHTS = Path("configs/mini/cnn.safetensors")
OUT = Path("outputs/mini/teach")
ON_TRAIN = ("pool: 14", "splits: [train]")


def train_cnn(run: Run) -> None:
    teach(run, train_them=True, only="cnn", device=CPU, decoders=0)


VALIDATED = ("scale: [0.7, 1.0]\n  vit", "scale: [0.7, 1.0]\n  validation: test\n  vit")


def configured(recipe: str, *changes: tuple[str, str], epochs: int = 3) -> Run:
    """The miniature run with other options for the CNN teacher."""
    section = f"{{<<: *recipe, epochs: {epochs}{recipe}}}"
    cnn = ("cnn.safetensors, train: *recipe", f"cnn.safetensors, train: {section}")
    return write_config(Path.cwd(), cnn, *changes)


def lines() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (OUT / "cnn.jsonl").read_text().splitlines()]


def untimed(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    timed = ("seconds", "clips_per_sec", "waited")
    return [{k: v for k, v in record.items() if k not in timed} for record in records]


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The scores of the coming epochs, which a test may change."""
    coming = [0.2, 0.9, 0.5]
    monkeypatch.setattr(teacher_training, "validation_top1", lambda *_: coming.pop(0))
    return coming


@pytest.mark.slow
@pytest.mark.parametrize("killed_before_the_checkpoint", [False, True])
def test_an_interrupted_training_ends_as_an_uninterrupted_one(
    mini: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    killed_before_the_checkpoint: bool,
) -> None:
    options = ", mixup: 0.4, cutmix: 1.0, ema_decay: 0.6, layer_decay: 0.8, keep: best"
    run = configured(options, ON_TRAIN, VALIDATED)
    train_cnn(run)
    whole = {path: path.read_bytes() for path in (WEIGHTS, OUT / "cnn/last.safetensors")}
    logs = untimed(lines())
    assert not (OUT / "cnn/checkpoint.pt").exists()

    original = WEIGHTS.read_bytes()[::-1]
    WEIGHTS.write_bytes(original)
    save, calls = teacher_training.save_checkpoint, iter((False, True, False))

    def interrupted(*arguments: Any) -> None:
        last = next(calls)
        if not (last and killed_before_the_checkpoint):
            save(*arguments)
        if last:
            raise KeyboardInterrupt

    monkeypatch.setattr(teacher_training, "save_checkpoint", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_cnn(run)
    assert WEIGHTS.read_bytes() == original  # the old ones stand until it is finished
    monkeypatch.setattr(teacher_training, "save_checkpoint", save)
    torch.rand(3)
    train_cnn(run)
    after = 2 if killed_before_the_checkpoint else 4  # two steps make an epoch
    assert f"goes on after {after} steps" in " ".join(capsys.readouterr().err.split())
    assert {path: path.read_bytes() for path in whole} == whole
    assert untimed(lines()) == logs
    assert [record["epoch"] for record in logs] == [0, 1, 2]


@pytest.mark.slow
def test_a_teacher_that_is_done_is_not_trained_again_when_the_other_was_interrupted(
    mini: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, epochs = write_config(Path.cwd(), ON_TRAIN), []
    feed = teacher_training._Feed.__call__

    def watched(self: Any, epoch: int, first: int) -> Any:
        epochs.append(epoch)
        if len(epochs) == 2:  # one epoch each: the second is the CNN's
            raise KeyboardInterrupt
        return feed(self, epoch, first)

    monkeypatch.setattr(teacher_training._Feed, "__call__", watched)
    with pytest.raises(KeyboardInterrupt):
        teach(run, train_them=True, only=None, device=CPU, decoders=0)
    vit = Path(run.teach.vit.weights).read_bytes()
    teach(run, train_them=True, only=None, device=CPU, decoders=0)
    assert len(epochs) == 3
    assert Path(run.teach.vit.weights).read_bytes() == vit
    assert not list(OUT.rglob("checkpoint.pt"))


def test_a_checkpoint_of_another_config_is_refused(
    mini: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    run = configured("", ON_TRAIN)
    with monkeypatch.context() as patched:
        patched.setattr(teacher_training, "_write_logs", stop)
        with pytest.raises(KeyboardInterrupt):
            train_cnn(run)
    other = configured(", mixup: 0.2", ON_TRAIN, ("seed: 0\n  splits", "seed: 1\n  splits"))
    with pytest.raises(CheckpointError) as caught:
        train_cnn(other)
    message = str(caught.value)
    assert "train.mixup: the checkpoint has 0.0, the run 0.2" in message
    assert "seed: the checkpoint has 0, the run 1" in message
    assert "outputs/mini/teach/cnn/checkpoint.pt away to begin anew" in message


@pytest.mark.slow
def test_last_is_kept_unless_best_is_asked_for(mini: Run, scores: list[float]) -> None:
    train_cnn(configured("", ON_TRAIN, VALIDATED))
    last, best = ((OUT / f"cnn/{name}.safetensors").read_bytes() for name in ("last", "best"))
    assert WEIGHTS.read_bytes() == last != best
    names = json.dumps({"action": list(figures.CLASSES)}, separators=(",", ":"))
    facts = {"seed": 0, "classes_sha256": hashlib.sha256(names.encode()).hexdigest()}
    assert json.loads(read_facts(OUT / "cnn/best.safetensors")["facts"]) == {
        "epoch": 2,
        **facts,
        "validation": "test",
        "top1": 0.9,
    }
    last_facts = json.loads(read_facts(OUT / "cnn/last.safetensors")["facts"])
    assert last_facts == {"epoch": 3, **facts}
    scores += [0.2, 0.9, 0.9]  # of equals the first
    train_cnn(configured(", keep: best", ON_TRAIN, VALIDATED))
    assert WEIGHTS.read_bytes() == best


def test_metrics_have_a_line_and_a_row_for_each_epoch(mini: Run) -> None:
    train_cnn(configured("", ON_TRAIN, VALIDATED, epochs=2))
    records = lines()
    assert [record["epoch"] for record in records] == [0, 1]
    for record in records:
        assert record["role"] == "cnn"
        assert record["seconds"] > 0
        assert {"loss", "accuracy/action", "learning_rate"} <= record.keys()
    assert csv.read_csv(OUT / "cnn.csv").to_pylist() == [
        {name: pytest.approx(value) for name, value in record.items() if name != "role"}
        for record in records
    ]
    # The last epoch's score is what the stage itself then measures on the same split.
    score = json.loads((mini.outputs / "teach.json").read_text())["cnn"]
    assert records[-1]["top1"] == pytest.approx(score["top1"])


def test_a_dataset_s_own_samples_are_trained_on(mini: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    feed = teacher_training._Feed.__call__

    def watched(self: Any, epoch: int, first: int) -> Any:
        for batch in feed(self, epoch, first):
            seen.append(batch.names)
            assert batch.mix is None
            labels = batch.labels["action"].tolist()
            assert labels == [truth[name] for name in batch.names]
            yield batch

    table = read_samples(mini.samples_path).of_splits(["train"]).table
    ids = table["sample_id"].to_pylist()
    truth = dict(zip(ids, table["label_action"].to_pylist(), strict=True))
    monkeypatch.setattr(teacher_training._Feed, "__call__", watched)
    train_cnn(configured("", ON_TRAIN, epochs=2))
    assert sorted(name for batch in seen for name in batch) == sorted(ids * 2)
    assert not (Path(mini.prepare.root) / "pool").exists()
    assert not (OUT / "cnn/best.safetensors").exists()
    assert "top1" not in lines()[0]


def without_labels(samples: Samples, rows: list[int]) -> Samples:
    index = samples.table.column_names.index("label_action")
    labels = samples.table["label_action"].to_pylist()
    blank = [None if row in rows else label for row, label in enumerate(labels)]
    column = pa.array(blank, pa.int32())
    table = samples.table.set_column(index, "label_action", column)
    return Samples(samples.dataset, samples.classes, table)


def test_samples_without_a_label_are_counted_and_left_out(
    mini: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = read_samples(mini.samples_path)
    left = Labelled.of(Path("videos"), without_labels(samples, [1, 4]))
    assert "2 samples without a label are left out" in capsys.readouterr().err
    assert len(left.samples) == len(samples) - 2
    assert (
        left.samples.labels(NO_LABEL)["action"].tolist()
        == left.samples.table["label_action"].to_pylist()
    )
    with pytest.raises(TeachError, match="not one sample below videos has a label"):
        Labelled.of(Path("videos"), without_labels(samples, list(range(len(samples)))))
    assert left.samples.digest() != samples.digest()


def test_a_sample_may_lack_the_label_of_one_head(mini: Run) -> None:
    samples = read_samples(mini.samples_path)
    blank = without_labels(samples, [0]).table["label_action"]
    table = samples.table.append_column("label_noun", blank)
    both = Samples(samples.dataset, {**samples.classes, "noun": samples.classes["action"]}, table)
    labels = Labelled.of(Path("videos"), both).samples.labels(NO_LABEL)
    assert labels["noun"][0] == -100
    assert labels["noun"][1:].tolist() == labels["action"][1:].tolist()


def test_unreadable_videos_are_told_and_left_out_of_training_and_score(
    mini: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = read_samples(mini.samples_path)
    for split in ("train", "test"):
        (Path(mini.prepare.root) / samples.of_splits([split]).row(3).path).write_bytes(b"no video")
    train_cnn(write_config(Path.cwd(), ON_TRAIN, VALIDATED))
    told = capsys.readouterr().err
    sample = samples.of_splits(["train"]).row(3)
    assert " ".join(told.split()).count(f"left out of the training: {sample.sample_id}") == 1
    assert f"left out: {samples.of_splits(['test']).row(3).sample_id}" in " ".join(told.split())
    assert lines()[0]["top1"] * 13 == pytest.approx(round(lines()[0]["top1"] * 13))


def test_too_many_unreadable_videos_stop_the_training(mini: Run) -> None:
    samples = read_samples(mini.samples_path).of_splits(["train"])
    for row in range(2):
        (Path(mini.prepare.root) / samples.row(row).path).write_bytes(b"no video")
    limit = ("max_failed_share: 0.5", "max_failed_share: 0.1")
    with pytest.raises(TeachError, match=r"2 of 14 videos .* extract\.max_failed_share 10%"):
        train_cnn(write_config(Path.cwd(), ON_TRAIN, limit))


def test_a_validation_split_without_a_readable_video_is_an_error(mini: Run) -> None:
    for path in (Path(mini.prepare.root) / "test").rglob("*.mp4"):
        path.unlink()
    with pytest.raises(ScoringError, match="not one of 14 videos can be read"):
        train_cnn(write_config(Path.cwd(), ON_TRAIN, VALIDATED))


def test_training_may_begin_with_given_weights(mini: Run) -> None:
    Path("first.safetensors").write_bytes(WEIGHTS.read_bytes())
    start = ("weights: configs/mini/cnn", "start: first.safetensors, weights: configs/mini/cnn")
    train_cnn(configured(", learning_rate: 1.0e-12", ON_TRAIN, start, epochs=1))
    first, then = (
        dict(load_weights(mini.teach.cnn.model, {"action": 14}, path).named_parameters())
        for path in (Path("first.safetensors"), WEIGHTS)
    )
    assert all(torch.allclose(then[name], first[name], atol=1e-8) for name in first)
    assert WEIGHTS.read_bytes() != Path("first.safetensors").read_bytes()


def test_a_head_for_other_classes_is_replaced_where_that_is_asked_for(mini: Run) -> None:
    first = Path("first.safetensors")
    save_weights(create_model(mini.teach.cnn.model, 5), first, {})
    start = ("weights: configs/mini/cnn", f"start: {first}, weights: configs/mini/cnn")
    with pytest.raises(WeightsError, match="new_head"):
        train_cnn(configured(", learning_rate: 1.0e-12", ON_TRAIN, start, epochs=1))
    start = (start[0], f"new_head: true, {start[1]}")
    train_cnn(configured(", learning_rate: 1.0e-12", ON_TRAIN, start, epochs=1))
    given, then = load_file(first), load_file(WEIGHTS)
    same = {name for name in given if given[name].shape == then[name].shape}
    assert given.keys() - same == {"blocks.5.proj.weight", "blocks.5.proj.bias"}
    learnt = [name for name in same if "norm" not in name and "running" not in name]
    assert all(torch.allclose(then[name], given[name], atol=1e-8) for name in learnt)


def test_training_needs_samples_and_a_file_to_write(mini: Run) -> None:
    with pytest.raises(TeachError, match=r"name splits in teach\.splits, as \[train\]"):
        train_cnn(configured("", ("  pool: 14\n", "")))
    published = ("configs/mini/cnn.safetensors", "published")
    with pytest.raises(TeachError, match=r"teach\.cnn\.weights is 'published'.*teach\.cnn\.start"):
        train_cnn(write_config(Path.cwd(), ON_TRAIN, published))
