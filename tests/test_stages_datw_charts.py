"""How DATW weighed the teachers: what the charts leave out, and means over clips."""

from __future__ import annotations

import re

import pytest

from stages import datw_charts


def test_many_classes_and_epochs_are_thinned_and_said_to_be() -> None:
    rows = [
        {"epoch": epoch, "class": f"class {number}", "vit_weight": number / 50}
        for epoch in range(80)
        for number in range(50)
    ]
    weights = datw_charts.class_weights(rows)
    assert weights is not None
    assert weights.most == ("class 49", 0.98)
    assert weights.hidden == "the 20 classes between the extremes and 40 of 80 epochs"


def test_who_is_surer_is_a_mean_over_clips() -> None:
    """The ViT by two bins with 1 clip, by one with 3; alike 2; the CNN never."""
    bins = [(0.8, 0.4, 1, 0.9), (0.6, 0.4, 3, 0.7), (0.2, 0.2, 2, 0.5)]
    names = ("vit_confidence", "cnn_confidence", "clips", "vit_weight")
    rows = [{"epoch": e} | dict(zip(names, one, strict=True)) for e in (0, 1) for one in bins]
    found = datw_charts.confidence_weights(rows)
    assert found is not None
    assert found.clips == "ViT surer 4, alike 2, CNN surer 0"
    told = re.findall(r"<title>(.*?)</title>", str(found.lines).replace("\u202f", " "))
    assert told == [
        f"{who}, epoch {e}: {mean}"
        for who, mean in (("ViT surer", "75 %"), ("alike", "50 %"))
        for e in (1, 2)
    ]
    assert found.reach == pytest.approx(0.4)
    cells = re.findall(r"<title>(.*?)</title>", str(found.chart).replace("\u202f", " "))
    assert cells[0] == "ViT’s confidence from 80 %, CNN’s from 40 %, 1 clip: ViT 90.0 %, CNN 10.0 %"
    assert len(cells) == 3
    assert datw_charts.confidence_weights([]) is None
