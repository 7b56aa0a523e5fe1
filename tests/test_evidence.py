"""The evidence: its settings fit the config, rows are written once, online rows are the cached."""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow.csv
import pytest
import torch

from cache import CacheError, open_cache
from chain_making import write_config
from pipeline.config import Run
from pipeline.config_file import load_config
from pipeline.models import create_model
from pipeline.samples import read_samples
from pipeline.weights import save_weights
from stages import side_by_side
from stages.ablation_results import AblationError
from stages.feed import used_part
from stages.prepare import prepare
from stages.variants import of_everything
from test_stages_ablate import in_turn, no_training

ROOT = Path(__file__).parents[1]


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Import a file of benchmarks/."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


@pytest.fixture
def evidence(
    mini: Run,
    module: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., str]:
    """Run the script on the miniature run, training in this process; returns what it prints."""
    monkeypatch.setattr(side_by_side, "run_many", in_turn)

    def run_it(*arguments: str) -> str:
        program = str(ROOT / "benchmarks" / "evidence.py")
        monkeypatch.setattr(sys, "argv", [program, *arguments, "--dataset", "mini"])
        runpy.run_path(program, run_name="__main__")
        return capsys.readouterr().out

    return run_it


def test_every_setting_is_a_change_of_the_config(module: Callable[[str], ModuleType]) -> None:
    run = load_config(ROOT / "configs" / "figures_hard.yaml")
    settings = module("evidence_settings").SETTINGS
    for name, setting in settings.items():
        own = module("evidence_plan").changed(run, setting)
        assert (own == run) == (not setting.changes), name
        assert own.distill_views <= own.extract.views.count
    assert run.distill.train.epochs == module("evidence_settings").EPOCHS
    with pytest.raises(ValueError, match=r"no group or setting 'sice'; the groups are main, s"):
        module("evidence_settings").chosen(["sice"])


def test_online_rows_are_what_a_cache_of_that_view_holds_but_for_rounding(
    mini: Run, module: Callable[[str], ModuleType]
) -> None:
    run, cache = of_everything(mini), open_cache(mini.cache_path)
    part = used_part(run, cache)
    epoch = 1  # its number is the view's
    batches = list(
        module("online_feed").OnlineFeed(run, cache, part, torch.device("cpu"), 0)(epoch)
    )
    ids = cache.samples["sample_id"].to_pylist()
    assert sorted(name for batch in batches for name in batch.names) == sorted(ids)
    for batch in batches:
        rows = [ids.index(name) for name in batch.names]
        stored = cache.read(rows, [epoch] * len(rows), part.fields)
        clips = next(name for name in part.fields if name.startswith("clip/"))
        assert np.array_equal(batch.clips, stored[clips])
        teachers = batch.teachers
        assert teachers is not None
        fresh = {
            "vit/logits/action": teachers.vit_logits["action"],
            "cnn/logits/action": teachers.cnn_logits["action"],
            "vit/pooled": teachers.vit_pooled,
            "cnn/pooled": teachers.cnn_pooled,
            "residual": teachers.residual,
        }
        assert fresh.keys() == set(part.fields) - {clips}
        for name, values in fresh.items():
            assert values is not None
            scale = float(values.square().mean().sqrt())
            np.testing.assert_allclose(stored[name], values, rtol=2**-10, atol=2**-10 * scale)
            assert values.dtype == torch.float32
            assert not values.is_inference()


@pytest.mark.slow
def test_a_row_for_each_setting_and_seed_and_nothing_twice(
    mini: Run, evidence: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("run", "temperature", "fields", "--seeds", "2", "--csv", "rows.csv")
    evidence(*arguments)
    rows = pyarrow.csv.read_csv("rows.csv").to_pylist()
    names = ["fields-fixed8-all", "temperature-1-datw", "temperature-4-datw"]
    assert [(row["setting"], row["seed"]) for row in rows] == [
        (name, seed) for name in names for seed in (0, 1)
    ]
    assert all(0 <= row["test_top1"] <= row["test_top5"] <= 1 for row in rows)
    assert all(row["minutes"] >= 0 and row["val_top1"] is None for row in rows)
    assert all(row["left_start"] is None or row["left_start"] >= 1 for row in rows)
    assert all(0 <= row["train_top1"] <= 1 for row in rows)
    assert len({row["config_sha256"] for row in rows}) == len(rows)
    assert len({row["cache"] for row in rows}) == 2
    before = Path("rows.csv").read_bytes()
    monkeypatch.setattr(side_by_side, "run_many", no_training)
    kept, elsewhere = mini.outputs / "evidence", Path("elsewhere")
    kept.rename(elsewhere)
    evidence(*arguments)  # on another machine, which has the rows only
    assert Path("rows.csv").read_bytes() == before
    assert not kept.exists()
    elsewhere.rename(kept)
    Path("rows.csv").rename("before.csv")
    evidence("score", *arguments[1:])  # all are trained: their rows are made again
    again = pyarrow.csv.read_csv("rows.csv").to_pylist()
    for name in ("setting", "seed", "test_top1", "minutes", "config_sha256", "command"):
        assert [row[name] for row in again] == [row[name] for row in rows]
    config = Path("configs/mini.yaml")
    config.write_text(config.read_text().replace("sdd: 0.1", "sdd: 0.2"))
    with pytest.raises(ValueError, match=r"fields-fixed8-all, seed 0, by another config: take"):
        evidence(*arguments)
    Path("rows.csv").unlink()
    with pytest.raises(AblationError, match=r"distill\.weights\.sdd: was 0\.1, is 0\.2"):
        evidence(*arguments)


def test_what_a_trainings_log_tells(tmp_path: Path, module: Callable[[str], ModuleType]) -> None:
    log = tmp_path / "metrics.jsonl"
    records = zip((3.9, 3.3, 2), (0.1, 0.2, 0.6), strict=True)
    lines = [
        {"epoch": n, "ce": ce, "accuracy/action": top1} for n, (ce, top1) in enumerate(records)
    ]
    log.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    of_training = module("evidence").of_training
    assert of_training(log, 48) == {"train_top1": 0.6, "left_start": 3}  # 0.85 log 48 = 3.29
    assert of_training(log, 49)["left_start"] == 2  # 0.85 log 49 = 3.31
    assert of_training(log, 4)["left_start"] is None


def test_the_plan_is_counted(evidence: Callable[..., str]) -> None:
    printed = evidence("list", "main", "size", "--seeds", "3", "--minutes", "2")
    assert "| main | 12 | 36 | 72 |" in printed
    assert "| together | 17 | 51 | 102 |" in printed


def test_shortcuts_are_looked_for(
    tmp_path: Path,
    module: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = ("train: 14, test: 14", "train: 1, test: 3")
    prepare(
        write_config(tmp_path, ("source: figures,", "source: figures, set: hard,"), sizes),
        workers=1,
    )
    arguments = [
        "--dataset",
        "mini",
        "--videos",
        "4",
        "--views",
        "1",
        "--epochs",
        "1",
        "--batch",
        "2",
    ]
    monkeypatch.setattr(sys, "argv", ["x", *arguments])
    monkeypatch.setattr(os, "cpu_count", lambda: 1)  # a few videos: no processes to render them
    module("shortcuts").main()
    printed = capsys.readouterr().out
    for name, bound in (
        ("in order", "100 %"),
        ("in no order", "64.6%"),
        ("single frame", "50.0%"),
    ):
        assert re.search(rf"\| {name} \| test \| [0-9.]+% \| {bound} \|", printed), printed


def test_what_a_network_without_order_is_shown(module: Callable[[str], ModuleType]) -> None:
    shortcuts = module("shortcuts")
    seen: list[torch.Tensor] = []
    for single in (False, True):
        model = shortcuts.Without(create_model("pytorchvideo/x3d_tiny", 48), single=single)
        model.of_inner = seen.append
        clips = torch.arange(64.0).view(2, 1, 32, 1, 1).expand(2, 3, 32, 48, 48)
        model.train().features(clips)
        model.eval().features(clips)
    ordered = clips[:, 0, :, 0, 0]
    shuffled, again, drawn, middle = (shown[:, 0, :, 0, 0] for shown in seen)
    for one in (shuffled, again):
        assert not torch.equal(one, ordered)
        assert torch.equal(one.sort(dim=1).values, ordered)
    assert not torch.equal(shuffled[0], shuffled[1] - 32)  # each clip has an order of its own
    assert torch.equal(drawn, drawn[:, :1].expand_as(drawn))
    assert torch.equal(middle, ordered[:, 16:17].expand_as(middle))


def test_errors_of_teachers_are_counted(
    mini: Run,
    module: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    vit, cnn = (np.array([bool(int(one)) for one in word]) for word in ("1100", "1010"))
    row = module("teacher_errors").counted("test", "all", vit, cnn, mean=vit)
    shares = {
        name: row[name] for name in ("both", "only_vit", "only_cnn", "neither", "mean_of_both")
    }
    assert shares == {"mean_of_both": 0.5} | dict.fromkeys(list(shares)[:4], 0.25)
    assert row["neither_if_independent"] == 0.25
    arguments = ["--dataset", "mini", "--splits", "test", "--csv", "it.csv"]
    monkeypatch.setattr(sys, "argv", ["x", *arguments])
    module("teacher_errors").main()
    assert "| test | all | 14 | " in capsys.readouterr().out
    (read,) = pyarrow.csv.read_csv("it.csv").to_pylist()
    assert read["both"] + read["only_vit"] == pytest.approx(read["vit"])


def test_targets_are_held_against_the_labels(
    mini: Run,
    module: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Four views of label 0 by hand: both right, the ViT only, the CNN only, neither."""
    of = {True: [2.0, 0.0], False: [0.0, 1.0]}
    vit, cnn = (torch.tensor([of[one == "1"] for one in word]) for word in ("1100", "1010"))
    line = module("target_quality").line
    half = torch.full((4, 2), 0.5)
    # 2 for the label outweighs 1 against it: the mean is right wherever one of them is.
    assert line("mean", half, vit, cnn, torch.zeros(4, dtype=torch.int64))[1:3] == [
        "75.0%",
        "100.0%",
    ]
    only_vit = torch.tensor([[1.0, 0.0]]).expand(4, 2)
    assert line("vit", only_vit, vit, cnn, torch.zeros(4, dtype=torch.int64))[1:] == [
        "50.0%",
        "50.0%",
        "0.575",
        "1.00 ± 0.00",
        "100%",
    ]
    student = create_model(mini.distill.student, dict(read_samples(mini.samples_path).heads))
    save_weights(student, mini.outputs / "evidence" / "it" / "last.safetensors", {})
    monkeypatch.setattr(sys, "argv", ["x", "--dataset", "mini", "--student", "it", "--views", "2"])
    module("target_quality").main()
    printed = capsys.readouterr().out
    assert printed.startswith("28 training views; both teachers are right on ")
    assert re.search(r"\| whoever is right leads \| [0-9.]+% \| 100\.0% \|", printed), printed


def test_relations_are_held_against_the_vits(
    mini: Run,
    module: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The same features, larger, have the same relations; three in a row have another angle."""
    line = module("relation_quality").line
    corner = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    assert line("it", [2 * corner], [corner]) == ["it", "0.0000", "0.0000", "0.0000", "1.00"]
    # Distances 3, 4, 5 beside 1, 1, 2, by their means; cosines 0, 0.6, 0.8 beside −1, 1, 1.
    straight = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    distance = np.mean([0.5 * (a / 4 - b * 0.75) ** 2 for a, b in ((3, 1), (4, 1), (5, 2))])
    angle = np.mean([0.5 * (a - b) ** 2 for a, b in ((0, -1), (0.6, 1), (0.8, 1))])
    found = line("it", [corner], [straight])
    assert [float(one) for one in found[1:4]] == pytest.approx(
        [distance, angle, distance + 2 * angle], abs=1e-4
    )
    assert found[4] == "0.87"  # of 3, 4, 5 and 1, 1, 2: √3 / 2
    student = create_model(mini.distill.student, dict(read_samples(mini.samples_path).heads))
    save_weights(student, mini.outputs / "evidence" / "it" / "last.safetensors", {})
    monkeypatch.setattr(sys, "argv", ["x", "it", "--dataset", "mini"])
    module("relation_quality").main()
    printed = capsys.readouterr().out
    assert re.search(
        r"^\| `it` \| 0\.\d+ \| 0\.\d+ \| 0\.\d+ \| -?[01]\.\d\d \|$", printed, re.M
    ), printed
    save_weights(student, mini.outputs / "evidence" / "student-all" / "last.safetensors", {})
    monkeypatch.setattr(sys, "argv", ["x", "student-all", "--dataset", "mini"])
    with pytest.raises(CacheError, match="clip/pytorchvideo/x3d_tiny"):  # its own clips
        module("relation_quality").main()


def test_tables_come_from_the_rows(
    tmp_path: Path,
    module: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Against values worked out by hand: differences 0.02, 0.04 over seeds 0, 1; t is 12.706.

    The noise of all: seeds differ by 0.1, 0.12 and 0, so its variance is that of these three
    numbers, halved: 0.0455²; t is 4.303. A difference has twice a half of it; that of the one
    student of `labels` a half, one and a sixth, of its seed's effect that three settings tell.
    """
    lines = ["group,setting,variant,seed,train_top1,val_top1,test_top1,minutes,left_start"]
    for setting, values in {"uniform": (0.5, 0.6), "datw": (0.52, 0.64), "labels": (0.4,)}.items():
        sooner = 2 if setting == "datw" else 1
        lines += [
            f"main,main-{setting},{setting},{seed},0.9,0.7,{value},1.5,{9 - seed * sooner}"
            for seed, value in enumerate(values)
        ]
    lines += [f"main,main-all,all,{seed},,,{value},2," for seed, value in enumerate((0.6, 0.6))]
    (tmp_path / "it.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "it_short.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "it_teachers.csv").write_text("split,actions,vit,cnn\ntest,all,0.5,0.9\n")
    readme = tmp_path / "README.md"
    readme.write_text(
        "# It\n\n<!-- table it number-of-views -->\nold\n<!-- end -->\n\n![](it-main.svg)\n"
    )
    arguments = ["x", "--dataset", "it", "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    module("evidence_tables").main()
    printed = capsys.readouterr().out
    assert (
        "| DATW over uniform: datw − uniform | 2 | +3.0 ± 12.7 | open | +3.0 ± 19.6 | 0.0 ± 0.0 |"
        in printed
    )
    assert (
        "| two teachers help: uniform − labels | 1 | +10.0 | too few seeds | +11.3 ± 25.3 | 0.0 |"
        in printed
    )
    of_datw = (
        "| `main-datw` | 2 | 58.0 ± 76.2 | +12.0 over `main-labels` | 70.0 ± 0.0 | 90.0 ± 0.0 |"
    )
    assert f"{of_datw} 8 |" in printed
    # Beside the means of settings and seeds: epochs ±0.25, of 9, 8 and 9, 7; accuracies ∓0.005.
    assert "goes with −2.0 points (correlation -1.00, 4 students of main)" in printed
    assert "Other than 0 when adjusted for all 81 claims: the student is above the ViT t" in printed
    assert "Without rows so far: the method helps: all − labels, the larger student; " in printed
    assert (
        "| the student is above the ViT teacher: all − ViT | 2 | +10.0 ± 0.0 | above 0 | – | –"
        in printed
    )
    assert (
        "| the student is above the CNN teacher: all − CNN | 2 | −30.0 ± 0.0 | below 0 | – | –"
        in printed
    )
    assert "| `all` | 2.00 | 1.33 |" in printed
    views = "| 4 | 40.0 | 60.0 ± 0.0 | +20.0 | – | – |"
    assert views in printed
    places = readme.read_text().split("\n")
    assert places[:3] == ["# It", "", "<!-- table it number-of-views -->"]
    assert places[5:] == [views, "<!-- end -->", "", "![](it-main.svg)", ""]
    # One seed has labels; all three others are held against it.
    assert (tmp_path / "it-main.svg").read_text().count("<circle") == 3


def test_the_documents_have_the_tables_of_the_rows(
    tmp_path: Path, module: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever adds rows runs evidence_tables.py; whoever edits a table by hand is told here."""
    results = tmp_path / "results"
    shutil.copytree(ROOT / "docs" / "results", results)
    shutil.copy(ROOT / "docs" / "results.md", tmp_path)
    for dataset in ("figures_hard", "demo"):
        arguments = ["x", "--dataset", dataset, "--results", str(results)]
        monkeypatch.setattr(sys, "argv", arguments)
        module("evidence_tables").main()
    for name in ("results.md", "results/README.md"):
        assert (tmp_path / name).read_text() == (ROOT / "docs" / name).read_text()
        assert "<!-- table figures_hard " in (tmp_path / name).read_text()
    for plot in results.glob("*.svg"):
        assert plot.read_text() == (ROOT / "docs" / "results" / plot.name).read_text()
    wrong = results / "README.md"
    wrong.write_text("<!-- table demo nosuch -->\n<!-- end -->\n")
    with pytest.raises(ValueError, match=r"README\.md: no table nosuch; there are claims, vari"):
        module("evidence_tables").main()
    wrong.write_text(
        "<!-- table demo claims -->\nits text\n<!-- table demo main -->\n<!-- end -->\n"
    )
    with pytest.raises(ValueError, match=r"README\.md: a table's place has no `<!-- end -->`"):
        module("evidence_tables").main()
    assert "its text" in wrong.read_text()


def test_figures_in_the_text_are_those_of_the_tables() -> None:
    """A mean or a difference with its interval that words tell stands in a table of the rows."""
    figure = re.compile(r"(\d+\.\d) ± (\d+\.\d)(?!\d)")
    table = re.compile(r"<!-- table .*?<!-- end -->", re.DOTALL)
    texts = [(ROOT / name).read_text() for name in ("docs/results.md", "docs/results/README.md")]
    ablation = re.findall(r"^\|.*", (ROOT / "docs" / "ablation.md").read_text(), re.MULTILINE)
    tables = [one for text in texts for one in table.findall(text)]
    known = set(figure.findall("\n".join([*tables, *ablation])))
    for text in (*texts, (ROOT / "README.md").read_text()):
        told = figure.findall(" ".join(table.sub("", text).split()))
        assert len(told) > 2
        assert not set(told) - known


def test_a_row_that_stands_among_the_repeated_is_one_student(
    tmp_path: Path, module: Callable[[str], ModuleType]
) -> None:
    """Seed 0 is a CPU's in the first place; seed 1 was trained again, and gains 0.1."""

    def row(seed: int, device: str, value: float) -> dict[str, object]:
        known = {"setting": "main-datw", "group": "main", "variant": "datw", "seed": seed}
        return {**known, "device": device, "test_top1": value, "minutes": 90.0}

    first = [row(0, "a CPU", 0.4), row(1, "a GPU", 0.4)]
    again = [row(0, "a CPU", 0.4), row(1, "a CPU", 0.5)]
    pyarrow.csv.write_csv(pyarrow.Table.from_pylist(again), tmp_path / "again.csv")
    figures, tables = module("evidence_figures"), module("evidence_tables")
    rows = figures.with_again(first, tmp_path / "again.csv")
    assert figures.alike(rows)["main-datw"] == [(0, 0.4), (1, 0.4), (1, 0.5)]
    assert "| `again-main-datw` | 45.0 ± 63.5 | +10.0 | 1 |" in tables.again_table(rows)
    budget = tables.budget_table(rows)
    assert "| a CPU | 2 | 3.0 |" in budget
    assert "| a GPU | 1 | 1.5 |" in budget


def test_a_fit_of_settings_and_seeds_is_pairing_where_all_have_all(
    module: Callable[[str], ModuleType],
) -> None:
    """Two settings: Student's paired interval; and what only one of them has changes neither."""
    fit, estimate = module("evidence_fit").fit, module("evidence_figures").estimate
    drawn = np.random.default_rng(0).normal(0.4, 0.1, (2, 5))
    known = {name: list(enumerate(drawn[place])) for place, name in enumerate("ab")}
    paired = estimate(drawn[0] - drawn[1])
    for alone in ([], [(9, 0.9)]):
        found = fit({"a": [*known["a"], *alone], "b": known["b"]})
        assert found.degrees == 4
        assert found.difference("a", "b").mean == pytest.approx(paired.mean)
        assert found.difference("a", "b").interval == pytest.approx(paired.interval)
    assert fit(known).effect("a") == pytest.approx(drawn[0].mean())
    assert fit({"a": known["a"]}) is None


def test_tables_of_a_dataset_without_rows_are_an_error(
    tmp_path: Path,
    module: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "--dataset", "nosuch", "--results", str(tmp_path)])
    with pytest.raises(SystemExit):
        module("evidence_tables").main()
    assert "nosuch.csv has no row: `python benchmarks/evidence.py run`" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_knobs_are_held_against_their_default(
    tmp_path: Path,
    module: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Values of the test above, so its noise; a knob whose default nobody trained is left out."""
    lines = ["group,setting,variant,seed,test_top1,minutes,changes"]
    temperature = '"{""distill.temperature"": 1.0}"'
    for group, setting, variant, changes, values in (
        ("main", "main-uniform", "uniform", "{}", (0.5, 0.6)),
        ("main", "main-datw", "datw", "{}", (0.52, 0.64)),
        ("temperature", "temperature-1-datw", "datw", temperature, (0.6, 0.6)),
        ("weight", "weight-sdd2-datw_sdd", "datw_sdd", "{}", (0.7,)),
    ):
        for seed, value in enumerate(values):
            lines.append(f"{group},{setting},{variant},{seed},{value},1,{changes}")
    (tmp_path / "README.md").write_text("![](it-knobs.svg)\n")
    (tmp_path / "it.csv").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(sys, "argv", ["x", "--dataset", "it", "--results", str(tmp_path)])
    module("evidence_tables").main()
    printed = capsys.readouterr().out
    assert "4 settings, fitted together; noise: 4.5 points (2 degrees of freedom)." in printed
    knob = '`"distill.temperature": 1.0` | `datw` | 2 | 60.0 | 58.0 |'
    assert f"{knob} +2.0 ± 19.6 | open | +2.0 ± 76.2 |" in printed  # t of one degree: 12.71 · 6
    assert printed.count("| open |") == 2  # the other one is of DATW over uniform
    drawn = (tmp_path / "it-knobs.svg").read_text()
    assert drawn.count("<circle") == 2
    assert "sdd2" not in drawn


def test_intervals_are_wider_for_many_claims(module: Callable[[str], ModuleType]) -> None:
    """Of two values with half their distance 1 the half interval is t, here 1 / tan(π p / 2)."""
    tables = module("evidence_figures")
    for claims in (1, 7):
        t = 1 / math.tan(math.pi * 0.05 / claims / 2)
        for mean in (0.999 * t, 1.001 * t):
            difference = tables.estimate([mean - 1, mean + 1])
            assert tables.stands_adjusted(difference, claims) == (mean > t)
    assert not tables.stands_adjusted(tables.estimate([1.0]), 1)


def test_what_was_trained_again_on_a_device_is_the_reference_there(
    tmp_path: Path,
    module: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    head = "group,setting,variant,seed,test_top1,minutes,device\n"
    first = "main,main-datw,datw,0,0.5,2,a GPU\n"
    centred = "weighting,weighting-centred-datw,datw,0,0.6,2,a CPU\n"
    (tmp_path / "it.csv").write_text(head + first + centred)
    (tmp_path / "it_again.csv").write_text(f"{head}main,main-datw,datw,0,0.53,9,a CPU\n")
    monkeypatch.setattr(sys, "argv", ["x", "--dataset", "it", "--results", str(tmp_path)])
    module("evidence_tables").main()
    printed = capsys.readouterr().out
    assert (
        "| `weighting-centred-datw` | 1 | 60.0 | +7.0 over `again-main-datw` | – | – |" in printed
    )
    assert "| `again-main-datw` | 53.0 | +3.0 |" in printed
    assert "| centring mends DATW: both on a CPU | 1 | +7.0 | too few seeds | – | – |" in printed
    assert "| `main-datw` | 1 | 50.0 | – | – |" in printed


def test_a_mistyped_option_makes_nothing(
    evidence: Callable[..., str], mini: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        evidence("run", "temperature", "--device", "banana")
    printed = capsys.readouterr().err
    assert re.search(r"error: --device 'banana' cannot be used: .*`cpu` needs none", printed)
    with pytest.raises(SystemExit):
        evidence("run", "temperature", "--together", "0")
    with pytest.raises(SystemExit):
        evidence("list", "temperatures")
    with pytest.raises(SystemExit, match=r"evidence has no student of these settings: `run` t"):
        evidence("score", "fields")  # and no cache is made for them
    assert not Path("docs/results/mini.csv").exists()
    assert not (mini.outputs / "evidence").exists()
