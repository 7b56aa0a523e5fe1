"""What is written for those who watch, read back by TensorBoard, pyarrow and json."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow.csv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.resuming import Past
from stages.watching import Watch


def record(epoch: int) -> dict[str, Any]:
    return {"epoch": epoch, "loss": 2.0 / (epoch + 1), "accuracy/action": 0.25 * epoch}


def watched(folder: Path, past: Past, until: int) -> None:
    """Train from where the past ends, in appearance."""
    with closing(Watch(folder, past)) as watch:
        for epoch in range(len(past.records), until):
            past.records.append(record(epoch))
            watch.epoch(past)


def left(folder: Path) -> dict[str, Any]:
    """All that can be read back."""
    (events,) = (folder / "tensorboard").iterdir()
    board = EventAccumulator(str(events))
    board.Reload()
    scalars = {
        name: [(one.step, round(one.value, 6)) for one in board.Scalars(name)]
        for name in board.Tags()["scalars"]
    }
    live = {
        path.stem: pyarrow.csv.read_csv(
            path, parse_options=pyarrow.csv.ParseOptions(delimiter="\t")
        ).to_pylist()
        for path in sorted((folder / "dvclive/plots").rglob("*.tsv"))
    }
    return {
        "scalars": scalars,
        "live": live,
        "latest": json.loads((folder / "dvclive/metrics.json").read_text()),
        "lines": [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()],
        "csv": pyarrow.csv.read_csv(folder / "metrics.csv").to_pylist(),
    }


def test_every_epoch_is_everywhere_once(tmp_path: Path) -> None:
    watched(tmp_path / "whole", Past(), 3)
    found = left(tmp_path / "whole")
    records = [record(epoch) for epoch in range(3)]
    assert found["lines"] == found["csv"] == records
    assert found["scalars"]["accuracy/action"] == [(0, 0.0), (1, 0.25), (2, 0.5)]
    assert [row["loss"] for row in found["live"]["loss"]] == [one["loss"] for one in records]
    assert [row["step"] for row in found["live"]["action"]] == [0, 1, 2]
    assert found["latest"]["loss"] == records[2]["loss"]


def test_a_training_that_goes_on_tells_all_of_it(tmp_path: Path) -> None:
    """Epochs 1 and 2 were told before it was killed; its checkpoint is of after epoch 0."""
    watched(tmp_path / "whole", Past(), 4)
    watched(tmp_path / "killed", Past(), 3)
    watched(tmp_path / "killed", Past([record(0)]), 4)
    assert left(tmp_path / "killed") == left(tmp_path / "whole")
