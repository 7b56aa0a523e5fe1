"""What `dualkd evaluate` prints, of answers made up."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from evaluation_making import ROLES, by_answers, one_head, two_heads, videos_of
from pipeline.samples import Samples
from stages.evaluation_figures import all_figures, bootstrap_facts, calibrations
from stages.evaluation_files import class_rows, confusion_rows
from stages.evaluation_table import show
from stages.scoring import Scored


def printed(
    capsys: pytest.CaptureFixture[str], samples: Samples, scored: Scored, **subsets: Any
) -> list[str]:
    """The lines, as printed without a terminal: 80 columns."""
    videos = videos_of(samples)
    figures = all_figures(scored, calibrations(scored, videos), videos, subsets)
    gain = {name: figures["student"].pop(name) for name in ("gain_top1", "gain_top1_interval")}
    metrics = {**figures, **gain, "bootstrap": bootstrap_facts(videos)}
    show(metrics, ROLES, class_rows(samples, scored), confusion_rows(samples, scored))
    lines = capsys.readouterr().err.splitlines()
    assert max(map(len, lines)) <= 80
    return lines


def test_shares_intervals_and_confusions(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, *one_head())
    at = next(index for index, line in enumerate(lines) if line.startswith("student"))
    assert lines[at].split()[:4] == ["student", "66.7", "83.3", "62.5"]
    assert re.match(r"\s+\d+\.\d–100\.0 ", lines[at + 1])
    text = " ".join(lines)
    assert "student 1" in text.partition("not finite score nothing")[2]
    assert re.search(
        r"Gain of the student over the baseline: \+33\.3 points \([−+0-9.]+ to \+", text
    )
    assert "Of 2 classes 2 gained, 0 lost" in text
    assert "gained most: hop +50.0, bow +25.0" in text
    assert "bow answered hop: 2 → 1" in text
    assert "lost most" not in text
    assert "Confusions added" not in text


def test_heads_and_parts_have_rows_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(
        capsys, *two_heads(), tail_action=np.arange(8) < 4, unseen=np.zeros(8, dtype=bool)
    )
    text = "\n".join(lines)
    assert re.search(r"^ verb +87\.5 +100\.0 ", text, re.MULTILINE)
    assert re.search(r"^ tail_action +75\.0 ", text, re.MULTILINE)
    assert "unseen" not in text
    assert "baseline, tail_action: +25.0 points" in text
    assert "verb: take +25.0" in text


def test_nothing_gained_and_a_single_video(capsys: pytest.CaptureFixture[str]) -> None:
    labels = {"action": [0, 1]}
    made = by_answers({"action": ["a", "b"]}, labels, dict.fromkeys(ROLES, labels), stretches=2)
    text = " ".join(printed(capsys, *made))
    assert "over the baseline: 0.0 points" in text
    assert "Not one of 2 classes gained or lost" in text
    assert "–" in text  # no temperature
    assert "Confusions" not in text
