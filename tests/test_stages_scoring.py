"""Scoring: several views of a video against one view at a time; subsets against brute force."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.clips import read_clips
from pipeline.config import Precision, Run
from pipeline.models import VideoModel, create_model
from pipeline.protocols import CENTRE, PROTOCOLS, Protocol, ProtocolViews
from pipeline.samples import Sample, Samples, read_samples
from pipeline.training import predict
from pipeline.video import VideoInfo
from pipeline.views import View
from stages import scoring
from stages.evaluation_figures import accuracies
from stages.scoring import Scored, score
from video_making import write_video


@pytest.fixture
def models() -> dict[str, VideoModel]:
    """Two tiny networks that differ in all of their clip."""
    torch.manual_seed(0)
    made = {name: create_model(f"pytorchvideo/x3d_{name}", 14) for name in ("tiny", "nano")}
    made["tiny"].clip = replace(made["tiny"].clip, test_share=0.5)
    made["nano"].clip = replace(made["nano"].clip, frames=4, stride=3)
    return made


def some(run: Run) -> Samples:
    return read_samples(run.samples_path).of_splits(["test"]).take(range(4))


def wide(run: Run) -> Samples:
    """The demo's videos are square, so that three crops would be one: others take their places."""
    samples = some(run)
    for path in samples.table["path"].to_pylist():
        write_video(Path(run.prepare.root) / path, frames=75, size=(96, 64), noise=True)
    return samples


class OneView:
    """Chooses one of the views that a protocol chooses."""

    def __init__(self, views: ProtocolViews, index: int) -> None:
        self._views, self._index = views, index

    def __call__(self, sample: Sample, info: VideoInfo) -> list[View]:
        return [self._views(sample, info)[self._index]]


def one_by_one(
    run: Run, models: dict[str, VideoModel], role: str, sample: Sample, protocol: Protocol
) -> NDArray[np.float64]:
    """Mean of softmax probabilities, each view decoded, cut and answered on its own."""
    longest = max((model.clip.frames - 1) * model.clip.stride / 30 for model in models.values())
    chosen = ProtocolViews(protocol, longest)
    spec = models[role].clip
    if protocol.crops == 3:
        spec = replace(spec, test_share=1.0)
    total = np.zeros(14)
    for index in range(protocol.views):
        one = read_clips(
            Path(run.prepare.root), sample, OneView(chosen, index), [spec], test_crop=True
        )
        logits = predict(models[role], torch.from_numpy(one.clips[0]))["action"]
        total += torch.softmax(logits.double(), dim=1)[0].numpy()
    return total / protocol.views


@pytest.mark.parametrize("protocol", [PROTOCOLS["5x1"], Protocol(2, 3)])
def test_several_views_are_the_mean_of_their_probabilities(
    mini: Run, models: dict[str, VideoModel], protocol: Protocol
) -> None:
    samples = wide(mini)
    scored = score(models, Path(mini.prepare.root), samples, 0, 4, protocol=protocol)
    assert scored.clips == len(samples) * protocol.views
    for role in models:
        for row in range(len(samples)):
            expected = one_by_one(mini, models, role, samples.row(row), protocol)
            logits = scored.logits[role]["action"][row].astype(np.float64)
            found = np.exp(logits) / np.exp(logits).sum()
            np.testing.assert_allclose(found, expected, atol=1e-6)
            np.testing.assert_allclose(np.exp(logits), expected, atol=1e-6)  # normalised already


def test_no_forward_pass_is_larger_than_the_batch_size(
    mini: Run, models: dict[str, VideoModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = wide(mini)
    sizes: list[int] = []

    def counted(
        model: VideoModel, clips: torch.Tensor, precision: Precision = "fp32"
    ) -> dict[str, torch.Tensor]:
        sizes.append(len(clips))
        return predict(model, clips, precision)

    monkeypatch.setattr(scoring, "predict", counted)
    answers = []
    for batch_size in (4, 13, 100):
        sizes.clear()
        scored = score(
            models, Path(mini.prepare.root), samples, 0, batch_size, protocol=Protocol(2, 3)
        )
        assert max(sizes) <= batch_size
        assert sum(sizes) == 2 * (24 + 1)  # each network warms up with one
        answers.append(scored.logits["tiny"]["action"])
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-5)
    np.testing.assert_allclose(answers[0], answers[2], atol=1e-5)


def test_by_default_it_is_the_centre_and_the_logits_as_they_are(
    mini: Run, models: dict[str, VideoModel]
) -> None:
    samples = some(mini)
    scored = score(models, Path(mini.prepare.root), samples, 0, 1)
    for role, model in models.items():
        for row in range(len(samples)):
            one = read_clips(
                Path(mini.prepare.root),
                samples.row(row),
                ProtocolViews(CENTRE, 0.0),
                [model.clip],
                test_crop=True,
            )
            expected = predict(model, torch.from_numpy(one.clips[0]))["action"][0].numpy()
            np.testing.assert_array_equal(scored.logits[role]["action"][row], expected)


@pytest.fixture
def epic() -> Scored:
    """Answers of EPIC-KITCHENS-100's size, some of them right."""
    rng = np.random.default_rng(0)
    scored = Scored(["student"])
    scored.rows = np.arange(80)
    scored.labels = {"verb": rng.integers(97, size=80), "noun": rng.integers(300, size=80)}
    logits = {"verb": rng.normal(size=(80, 97)), "noun": rng.normal(size=(80, 300))}
    for head, values in logits.items():
        values[np.arange(80), scored.labels[head]] += rng.uniform(0, 5, size=80)
    scored.logits = {"student": {head: one.astype(np.float32) for head, one in logits.items()}}
    return scored


def ranks(scored: Scored, row: int) -> dict[str, int]:
    """How many classes are ahead of the label: verbs, nouns, and all pairs of a verb and a noun."""
    probabilities = {}
    for head, logits in scored.logits["student"].items():
        exact = [math.exp(value) for value in logits[row].tolist()]
        probabilities[head] = [value / sum(exact) for value in exact]
    verb, noun = (int(scored.labels[head][row]) for head in ("verb", "noun"))
    pairs = [v * n for v in probabilities["verb"] for n in probabilities["noun"]]
    own = probabilities["verb"][verb] * probabilities["noun"][noun]
    ahead = {
        head: sum(value > probabilities[head][label] for value in probabilities[head])
        for head, label in (("verb", verb), ("noun", noun))
    }
    return {**ahead, "action": sum(value > own for value in pairs)}


def test_verb_noun_and_action_of_a_part_are_those_of_the_official_scorer(epic: Scored) -> None:
    """By its rules: ranks of verbs, of nouns, and of the products of their probabilities."""
    chosen, videos = epic.labels["verb"] % 3 == 0, [str(row // 4) for row in range(80)]
    everything = np.ones(80, bool)
    for figures, members in (
        (epic.accuracies("student"), everything),
        (accuracies(epic, videos, everything)["student"], everything),
        (accuracies(epic, videos, chosen)["student"], chosen),
    ):
        of_rows = [ranks(epic, row) for row in np.flatnonzero(members).tolist()]
        for k in (1, 5):
            expected = {
                task: sum(rank[task] < k for rank in of_rows) / len(of_rows)
                for task in ("verb", "noun", "action")
            }
            assert 0 < expected["action"] < expected["verb"] < 1
            assert figures[f"top{k}"] == pytest.approx(expected["action"])
            for head in ("verb", "noun"):
                assert figures["heads"][head][f"top{k}"] == pytest.approx(expected[head])
    assert accuracies(epic, videos, np.zeros(80, bool)) == {}
