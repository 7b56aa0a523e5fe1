"""`dualkd-cache plan`: bytes are exact, times are sums of what was measured."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cache import IdentityMismatch, describe
from chain_making import write_config
from pipeline.config import Run
from pipeline.samples import read_samples
from stages.calibration import Calibration, CalibrationError
from stages.forecast import Machine, Seconds, Work, forecast
from stages.gate import videos_to_score
from stages.plan import Options, plan
from stages.plan_table import show

FEW = Options(
    out=Path("outputs/nowhere"),
    views=2,
    limit=None,
    decoders=0,
    batch_size=4,
    seconds=0.01,
    device=torch.device("cpu"),
)
ADDED = (
    "max_failed_share: 0.5",
    "max_failed_share: 0.5\n  added: {third: {model: pytorchvideo/x3d_nano, weights: none}}",
)
JPEG = ("clips: [pytorchvideo/x3d_nano]", "clips: [pytorchvideo/x3d_nano]\n  clip_format: jpeg")


def test_bytes_are_those_of_the_cache(mini: Run) -> None:
    facts = plan(mini, FEW)
    cache = describe(mini.cache_path)
    assert (facts["samples"], facts["views"], facts["rows"]) == (14, 2, 28)
    assert facts["bytes"]["row"] == cache["row_bytes"]
    by_field = {name: 28 * field["row_bytes"] for name, field in cache["fields"].items()}
    assert facts["bytes"]["by_field"] == by_field
    assert facts["bytes"]["all"] == sum(by_field.values())


def test_times_add_up(mini: Run) -> None:
    facts = plan(write_config(Path.cwd(), ADDED, JPEG), replace(FEW, limit=9))
    seconds, forecast = facts["seconds"], facts["forecast"]
    assert seconds["networks"].keys() == {"vit", "cnn", "third"}
    parts = [seconds["decode"], seconds["encode"], seconds["store"], *seconds["networks"].values()]
    assert min(parts) > 0
    decode = 9 * seconds["decode"] + 18 * seconds["encode"]
    network = 18 * (sum(seconds["networks"].values()) + seconds["store"])
    fit = 9 * (seconds["networks"]["vit"] + seconds["networks"]["cnn"] + seconds["decode"])
    assert forecast["decode_core_hours"] * 3600 == pytest.approx(decode)
    assert forecast["network_hours"] * 3600 == pytest.approx(network)
    assert forecast["fit_hours"] * 3600 == pytest.approx(fit)
    assert forecast["gate_hours"] == facts["gate_videos"] == 0  # a short run
    assert forecast["wall_hours"] * 3600 == pytest.approx(decode + network + fit)
    assert forecast["decoding_limits"] == (decode > network)
    assert facts["break_even_epochs"] == 3  # two views, and view 0 once more for the projection


# Of a sample, of a view's clips, of a view, of a view; each part shows by its own digits.
SECONDS = Seconds(decode=1000, encode=10, networks={"vit": 4, "cnn": 2, "third": 1}, store=3)
WORK = Work(
    samples=100,
    views={"vit": 200, "cnn": 200, "third": 200},
    clip_views=200,
    fitted=50,
    scored=("vit", "cnn", "third"),
    gate_videos=60,
)
ON_CPU = Machine(torch.device("cpu"), decoders=0)


def test_the_teachers_are_scored_on_few_videos_before_a_long_run(mini: Run) -> None:
    before = forecast(WORK, SECONDS, ON_CPU)
    without = forecast(replace(WORK, gate_videos=0), SECONDS, ON_CPU)
    assert before["gate_hours"] * 3600 == pytest.approx(60 * (1000 + 4 + 2 + 1))
    assert before["wall_hours"] - without["wall_hours"] == pytest.approx(before["gate_hours"])
    one_scored = forecast(replace(WORK, scored=("third",)), SECONDS, ON_CPU)
    assert one_scored["gate_hours"] * 3600 == pytest.approx(60 * (1000 + 1))
    table = read_samples(mini.samples_path)
    gate = mini.extract.gate.samples
    assert [videos_to_score(mini, table, rows) for rows in (499, 500, 10**6)] == [0, 14, 14]
    assert gate > len(table.of_splits(["test"])) == 14  # there are no more


def test_workers_with_a_gpu_each_share_the_rows_but_nothing_before_them() -> None:
    on_gpu = Machine(torch.device("cuda"), decoders=5)
    one = forecast(WORK, SECONDS, on_gpu)
    four = forecast(WORK, SECONDS, replace(on_gpu, workers=4))
    assert one["gate_hours"] * 3600 == pytest.approx(60 * 1000 / 5)  # the networks run meanwhile
    before = one["gate_hours"] + one["fit_hours"]
    rows = 100 * (1000 + 2 * 10) / 5 / 3600
    assert one["wall_hours"] == pytest.approx(before + rows)
    assert four["wall_hours"] == pytest.approx(before + rows / 4)


def test_workers_on_a_cpu_share_it() -> None:
    one, four = (forecast(WORK, SECONDS, replace(ON_CPU, workers=n)) for n in (1, 4))
    assert four == one


# --- where a cache stands --------------------------------------------------------------------


@pytest.fixture
def at_cache(mini: Run) -> Options:
    """The options of a plan for the cache of `mini`, which is complete."""
    return replace(FEW, out=mini.cache_path)


def test_nothing_is_left_of_a_complete_cache(
    mini: Run, at_cache: Options, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = plan(mini, at_cache)
    assert facts["to_make"] == {
        "samples": 0,
        "views": {"vit": 0, "cnn": 0},
        "clip_views": 0,
        "bytes": 0,
    }
    assert facts["forecast"]["wall_hours"] == 0
    assert (facts["rows"], facts["less"]) == (28, {})
    show(facts)
    assert "nothing is left to be made" in " ".join(capsys.readouterr().out.split())


def test_more_views_are_planned_without_those_that_are_there(mini: Run, at_cache: Options) -> None:
    facts = plan(mini, replace(at_cache, views=5))
    left = facts["to_make"]
    assert (facts["rows"], left["samples"], left["views"]) == (70, 14, {"vit": 42, "cnn": 42})
    assert left["bytes"] == 42 * facts["bytes"]["row"]
    assert facts["forecast"]["fit_hours"] == 0


def test_an_added_teacher_sees_all_views_alone(at_cache: Options) -> None:
    facts = plan(write_config(Path.cwd(), ADDED), at_cache)
    left = facts["to_make"]
    assert left["views"] == {"vit": 0, "cnn": 0, "third": 28}
    assert left["clip_views"] == 0
    cache = facts["bytes"]["by_field"]
    assert left["bytes"] == sum(size for name, size in cache.items() if name.startswith("third/"))


def test_added_clips_need_decoding_only(mini: Run, at_cache: Options) -> None:
    clips = ["pytorchvideo/x3d_nano", "pytorchvideo/x3d_tiny"]
    section = mini.extract.model_copy(update={"clips": clips})
    facts = plan(mini.model_copy(update={"extract": section}), at_cache)
    left, seconds = facts["to_make"], facts["seconds"]
    assert (left["samples"], left["views"], left["clip_views"]) == (14, {"vit": 0, "cnn": 0}, 28)
    assert left["bytes"] == facts["bytes"]["by_field"]["clip/pytorchvideo/x3d_tiny"]
    assert facts["forecast"]["wall_hours"] * 3600 == pytest.approx(14 * seconds["decode"])
    assert facts["forecast"]["network_hours"] == 0


def test_a_cache_of_other_arrays_is_refused(at_cache: Options) -> None:
    other = write_config(Path.cwd(), ("dim: 4", "dim: 8"))
    with pytest.raises(IdentityMismatch, match=r"projection.dim"):
        plan(other, at_cache)


def test_chunks_on_their_way_take_memory(mini: Run) -> None:
    alone, two = plan(mini, FEW), plan(mini, replace(FEW, workers=2))
    chunk = min(mini.extract.chunk_samples, 14) * 2 * alone["bytes"]["row"]
    assert (alone["memory_bytes"], two["memory_bytes"]) == (3 * chunk, 2 * 2 * chunk)


def test_decoders_beyond_the_cores_gain_nothing(
    mini: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    facts = plan(mini, replace(FEW, decoders=64))
    hours, seconds = facts["forecast"], facts["seconds"]
    fit = 14 * (seconds["networks"]["vit"] + seconds["networks"]["cnn"] + seconds["decode"] / 2)
    assert hours["fit_hours"] * 3600 == pytest.approx(fit)
    show(facts)
    assert "with --decoders 64 on 2 cores" in capsys.readouterr().out


def test_less_is_less(mini: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Calibration, "store", lambda _self, config: config.dim * math.prod(config.grid)
    )
    facts = plan(write_config(Path.cwd(), JPEG), FEW)
    sizes, less = facts["bytes"], facts["less"]
    residual, clips = (sizes["by_field"][n] for n in ("residual", "clip/pytorchvideo/x3d_nano"))
    assert less["1 of 2 views"]["bytes"] == sizes["all"] / 2
    assert less["residual grid 4×1×1"]["bytes"] == sizes["all"] - residual * 3 / 4
    assert less["residual dimension 2"]["bytes"] == sizes["all"] - residual / 2
    assert less["no stored clips"]["bytes"] == sizes["all"] - clips
    wall = facts["forecast"]["wall_hours"]
    saved = {name: 3600 * (wall - one["wall_hours"]) for name, one in less.items()}
    assert saved["residual grid 4×1×1"] == pytest.approx(28 * 4 * (16 - 4))
    assert saved["residual dimension 2"] == pytest.approx(28 * (4 - 2) * 16)
    assert saved["no stored clips"] == pytest.approx(28 * facts["seconds"]["encode"], rel=1e-3)
    views = facts["seconds"]
    one_view = sum(views["networks"].values()) + views["store"] + views["encode"]
    assert saved["1 of 2 views"] == pytest.approx(14 * one_view)


def test_no_weights_are_needed_and_nothing_is_written(
    mini: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree("configs/mini", ignore_errors=True)
    shutil.rmtree(mini.cache_path)
    before = sorted(Path.cwd().rglob("*"))
    facts = plan(mini, FEW)
    assert json.loads(json.dumps(facts)) == facts
    show(facts)
    assert sorted(Path.cwd().rglob("*")) == before
    printed = capsys.readouterr().out
    for line in ("28: 14 samples (train) × 2 views", "break-even", "residual dimension 2"):
        assert line in printed


def test_without_a_readable_video_there_is_no_forecast(mini: Run) -> None:
    shutil.rmtree(mini.prepare.root)
    with pytest.raises(CalibrationError, match="none of 14 samples below data/mini can be read"):
        plan(mini, FEW)
