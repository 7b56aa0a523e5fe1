"""`dualkd-cache plan`: bytes are exact, times are sums of what was measured."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cache import describe
from chain_making import write_config
from pipeline.config import Run
from stages.plan import Options, PlanError, plan, show

FEW = Options(
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


def test_bytes_are_those_of_the_cache(mini: Run) -> None:
    facts = plan(mini, FEW)
    cache = describe(mini.cache_path)
    assert (facts["samples"], facts["views"], facts["rows"]) == (14, 2, 28)
    assert facts["bytes"]["row"] == cache["row_bytes"]
    by_field = {name: 28 * field["row_bytes"] for name, field in cache["fields"].items()}
    assert facts["bytes"]["by_field"] == by_field
    assert facts["bytes"]["all"] == sum(by_field.values())


def test_times_add_up(mini: Run) -> None:
    facts = plan(write_config(Path.cwd(), ADDED), replace(FEW, limit=9))
    seconds, forecast = facts["seconds"], facts["forecast"]
    assert seconds.keys() == {"decode", "vit", "cnn", "third", "store"}
    assert min(seconds.values()) > 0
    decode = 9 * seconds["decode"]
    network = 18 * sum(seconds[name] for name in ("vit", "cnn", "third", "store"))
    fit = 9 * (seconds["vit"] + seconds["cnn"] + seconds["decode"])
    assert forecast["decode_core_hours"] * 3600 == pytest.approx(decode)
    assert forecast["network_hours"] * 3600 == pytest.approx(network)
    assert forecast["wall_hours"] * 3600 == pytest.approx(decode + network + fit)
    assert forecast["decoding_limits"] == (decode > network)
    assert facts["break_even_epochs"] == 3  # two views, and view 0 once more for the projection


def test_workers_share_the_rows_but_not_the_projection(mini: Run) -> None:
    facts = plan(mini, replace(FEW, workers=4, decoders=1))
    seconds = facts["seconds"]
    rows = 14 * seconds["decode"] + 28 * (seconds["vit"] + seconds["cnn"] + seconds["store"])
    fit = 14 * (seconds["vit"] + seconds["cnn"] + seconds["decode"])
    assert facts["forecast"]["wall_hours"] * 3600 == pytest.approx(rows / 4 + fit)
    assert facts["workers"] == 4


def test_less_is_less(mini: Run) -> None:
    facts = plan(mini, FEW)
    sizes, less = facts["bytes"], facts["less"]
    residual, clips = (sizes["by_field"][n] for n in ("residual", "clip/pytorchvideo/x3d_nano"))
    assert less["1 of 2 views"]["bytes"] == sizes["all"] / 2
    assert less["residual grid 4×1×1"]["bytes"] == sizes["all"] - residual * 3 / 4
    assert less["residual dimension 2"]["bytes"] == sizes["all"] - residual / 2
    assert less["no stored clips"]["bytes"] == sizes["all"] - clips
    assert less["1 of 2 views"]["wall_hours"] < facts["forecast"]["wall_hours"]


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
    with pytest.raises(PlanError, match="none of 14 samples below data/mini can be read"):
        plan(mini, FEW)
