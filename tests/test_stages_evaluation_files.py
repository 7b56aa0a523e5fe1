"""The tables of `evaluate`, read with the standard library, against answers counted by hand."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from dvc_render.vega import VegaRenderer
from ruamel.yaml import YAML

from evaluation_making import ROLES, by_answers, one_head, two_heads, videos_of
from pipeline.samples import Samples
from stages.evaluation_figures import calibrations
from stages.evaluation_files import class_rows, confusion_rows, write_answers, write_tables
from stages.scoring import Scored

ROOT = Path(__file__).parents[1]
Table = list[dict[str, str]]


def written(out: Path, made: tuple[Samples, Scored]) -> dict[str, Table]:
    """All CSV files, by name."""
    samples, scored = made
    calibrated = calibrations(scored, videos_of(samples))
    out.mkdir(exist_ok=True)
    write_answers(out, samples, scored)
    rows = class_rows(samples, scored), confusion_rows(samples, scored)
    write_tables(out, samples, scored, calibrated, *rows)
    tables = {}
    for path in out.glob("*.csv"):
        with path.open(newline="") as file:
            tables[path.stem] = list(csv.DictReader(file))
    return tables


def test_accuracy_and_gain_by_class(tmp_path: Path) -> None:
    rows = written(tmp_path, one_head())["by_class"]
    assert list(rows[0]) == ["class", "videos", *ROLES, "gain"]
    found = {row["class"]: (row["videos"], row["baseline"], row["student"]) for row in rows}
    assert found == {"bow": ("4", "0.5", "0.75"), "hop": ("2", "0", "0.5"), "never": ("0", "", "")}
    assert [row["gain"] for row in rows] == ["0.25", "0.5", ""]


def test_confusions_that_were_removed_come_first(tmp_path: Path) -> None:
    """Whoever makes them; an output that is not finite confuses nothing."""
    rows = written(tmp_path, one_head())["confusions"]
    assert list(rows[0]) == ["actual", "predicted", "baseline", "student", "removed"]
    assert [list(row.values()) for row in rows] == [
        ["bow", "hop", "2", "1", "1"],
        ["hop", "bow", "1", "0", "1"],
        ["hop", "never", "1", "0", "1"],
    ]


def test_tables_of_several_heads_say_whose_they_are(tmp_path: Path) -> None:
    tables = written(tmp_path, two_heads())
    assert [list(row.values()) for row in tables["confusions"]] == [
        ["noun", "tap", "spoon", "2", "0", "2"],
        ["verb", "take", "put", "1", "0", "1"],
        ["noun", "cup", "spoon", "1", "1", "0"],
        ["noun", "cup", "tap", "1", "1", "0"],
        ["verb", "put", "take", "1", "1", "0"],
    ]
    assert {(row["head"], row["class"]): row["gain"] for row in tables["by_class"]} == {
        ("verb", "take"): "0.25",
        ("verb", "put"): "0",
        ("noun", "tap"): str(3 / 3 - 1 / 3),
        ("noun", "spoon"): "0",
        ("noun", "cup"): "0",
    }
    assert {row["head"] for row in tables["reliability"]} == {"action", "verb", "noun"}
    assert {row["actual"] for row in tables["confusion"]} >= {"verb: take", "noun: cup"}


def test_reliability_has_every_bin_before_and_after(tmp_path: Path) -> None:
    rows = written(tmp_path, one_head())["reliability"]
    names = ["bin_low", "bin_high", "videos", "confidence", "accuracy"]
    assert list(rows[0]) == ["role", "calibrated", *names]
    assert len(rows) == 4 * 2 * 15
    for role, videos, right in (("vit", 6, 6), ("baseline", 6, 2), ("student", 5, 4)):
        for scaled in ("false", "true"):
            mine = [row for row in rows if (row["role"], row["calibrated"]) == (role, scaled)]
            assert sum(int(row["videos"]) for row in mine) == videos
            full = [row for row in mine if row["videos"] != "0"]
            hits = sum(int(row["videos"]) * float(row["accuracy"]) for row in full)
            assert hits == pytest.approx(right)
            for row in full:
                assert float(row["bin_low"]) < float(row["confidence"]) <= float(row["bin_high"])
    sure = math.exp(2) / (math.exp(2) + 2)
    (one,) = (r for r in rows if (r["role"], r["calibrated"]) == ("vit", "false") and r["accuracy"])
    assert float(one["confidence"]) == pytest.approx(sure)


def test_an_output_that_is_not_finite_has_no_answer(tmp_path: Path) -> None:
    tables = written(tmp_path, one_head())
    answers = pq.read_table(tmp_path / "answers.parquet").to_pydict()
    assert answers["student_answer"] == [0, 0, 1, 0, 1, -1]
    assert np.isnan(answers["student_probability"][5])
    assert len(tables["confusion"]) == 5  # of the student's answers


def test_a_perfect_run_has_tables_with_columns_and_no_confusions(tmp_path: Path) -> None:
    labels = {"action": [0, 1]}
    made = by_answers({"action": ["a", "b"]}, labels, dict.fromkeys(ROLES, labels))
    assert written(tmp_path, made)["confusions"] == []
    header = (tmp_path / "confusions.csv").read_text().split("\n")[0]
    assert header == '"actual","predicted","baseline","student","removed"'


@pytest.mark.parametrize("made", [one_head, two_heads])
def test_the_plots_of_dvc_find_their_columns(tmp_path: Path, made: Any) -> None:
    """By dvc's own renderer: templates of the project are filled, and name columns that exist."""
    tables = written(tmp_path, made())
    plots = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["plots"]
    ours = {name: of for plot in plots if isinstance(plot, dict) for name, of in plot.items()}
    checked = 0
    for about in ours.values():
        for file, column in about["y"].items():
            if "/evaluate/" not in file:
                continue
            points = [{**row, "rev": "workspace"} for row in tables[Path(file).stem]]
            folder, checked = ROOT / ".dvc" / "plots", checked + 1
            more = {"template_dir": str(folder), "title": "a title"}
            filled = VegaRenderer(points, "name", **(about | {"y": column} | more))
            text = json.dumps(filled.get_filled_template())
            assert "<DVC_METRIC" not in text
            assert f'"{column}"' in text or f"'{column}'" in text
    assert checked == 3
