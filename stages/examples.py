"""Test videos for the page: what the student won and lost, and one of each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.samples import Sample
from pipeline.views import ClipSpec
from stages.findings import by_gain, compare, spread_out, together
from stages.progress import track
from stages.report_inputs import ROLES, Inputs
from stages.strips import Answer, Strip, make_strips

_MOST_CHANGED = 9  # won, and as many lost
_MOST_CLASSES = 24  # with a video each


@dataclass(frozen=True)
class Examples:
    """What the page shows of the test videos.

    Attributes:
        won: some of the videos that only the student gets right.
        won_in_all: how many there are.
        lost: some of those that only the baseline gets right.
        lost_in_all: how many there are.
        of_classes: the first scored video of every class of the first head; of many, of those
            that changed most.
    """

    won: list[Strip]
    won_in_all: int
    lost: list[Strip]
    lost_in_all: int
    of_classes: list[Strip]


def read_examples(inputs: Inputs) -> Examples:
    """Choose the videos, by their place in the samples table alone, and read them."""
    head, classes = next(iter(inputs.samples.classes.items()))
    labels = inputs.answers[head]["label"]
    compared = compare(together(inputs.answers, list(inputs.samples.heads.values())))
    won = spread_out(compared.won, labels, _MOST_CHANGED)
    lost = spread_out(compared.lost, labels, _MOST_CHANGED)
    names = _shown_classes(inputs, head)
    first = {classes[labels[row]]: row for row in reversed(range(len(labels)))}
    wanted = [(classes[labels[row]], row) for row in [*won, *lost]]
    strips = _read(inputs, [*wanted, *((name, first.get(name)) for name in names)])
    ends = np.cumsum([len(won), len(lost)])
    parts = [strips[part] for part in (slice(ends[0]), slice(*ends), slice(ends[1], None))]
    return Examples(parts[0], len(compared.won), parts[1], len(compared.lost), parts[2])


def _shown_classes(inputs: Inputs, head: str) -> list[str]:
    """Those of the first head, in its order; of many, those at both ends of the gain."""
    classes = inputs.samples.classes[head]
    names = [row["class"] for row in by_gain(inputs.by_class[head])]
    if len(names) > _MOST_CLASSES:
        names = [*names[: _MOST_CLASSES // 2], *names[-_MOST_CLASSES // 2 :]]
    return sorted(names, key=classes.index)


def _read(inputs: Inputs, wanted: Sequence[tuple[str, int | None]]) -> list[Strip]:
    """Strips of rows of the answers, each with its class; None where a class has none."""
    places = {
        name: place for place, name in enumerate(inputs.samples.table["sample_id"].to_pylist())
    }

    def sample(row: int | None) -> Sample | None:
        return None if row is None else inputs.samples.row(places[inputs.sample_ids[row]])

    said: Mapping[str, list[Answer]] = {
        inputs.sample_ids[row]: [_answer(inputs, role, row) for role in ROLES]
        for _, row in wanted
        if row is not None
    }
    clip = inputs.cache["teachers"]["vit"]["clip"]
    spec = ClipSpec(clip["frames"], clip["stride"], clip["size"])
    samples = [(name, sample(row)) for name, row in wanted]
    strips = make_strips(Path(inputs.run.prepare.root), spec, samples, said)
    return list(track(strips, total=len(samples), what="reading frames", unit="videos"))


def _answer(inputs: Inputs, role: str, row: int) -> Answer:
    """A network's classes of all heads, with the probability and the truth of all together."""
    names, probability, right = [], 1.0, True
    for head, classes in inputs.samples.classes.items():
        answers: Mapping[str, NDArray[np.int64]] = inputs.answers[head]
        answer = int(answers[f"{role}_answer"][row])
        names.append(classes[answer])
        probability *= float(answers[f"{role}_probability"][row])
        right &= bool(answer == answers["label"][row])
    return Answer(role=role, name=" / ".join(names), probability=probability, right=right)
