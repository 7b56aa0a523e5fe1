"""Answers of four networks, made up, for the tests of what `evaluate` says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.samples import Sample, Samples, build_samples
from stages.scoring import Scored

ROLES = ("vit", "cnn", "baseline", "student")
ONE = {"action": ["bow", "hop", "never"]}
TWO = {"verb": ["take", "put"], "noun": ["tap", "spoon", "cup"]}


def by_answers(
    classes: Mapping[str, Sequence[str]],
    labels: Mapping[str, Sequence[int]],
    answers: Mapping[str, Mapping[str, Sequence[int]]],
    *,
    stretches: int = 1,
) -> tuple[Samples, Scored]:
    """Networks that answer just so, with logit 2 of the answer and 0 of all others.

    Args:
        classes: names by head.
        labels: by head.
        answers: by role, then head; −1 is an answer that is not finite.
        stretches: how many samples there are of each video.
    """
    heads, rows = list(classes), len(next(iter(labels.values())))
    samples = build_samples(
        "made",
        {head: list(names) for head, names in classes.items()},
        [
            Sample(
                f"sample-{row}",
                f"video-{row // stretches}.mp4",
                "test",
                {head: labels[head][row] for head in heads},
            )
            for row in range(rows)
        ],
    )
    scored = Scored(list(answers))
    scored.rows = np.arange(rows)
    scored.labels = {head: np.array(labels[head], np.int64) for head in heads}
    for role, by_head in answers.items():
        scored.logits[role] = {}
        for head in heads:
            logits = np.zeros((rows, len(classes[head])), np.float32)
            given = np.array(by_head[head])
            logits[np.arange(rows), given] = 2.0
            logits[given < 0] = np.nan
            scored.logits[role][head] = logits
    return samples, scored


def videos_of(samples: Samples) -> list[str]:
    """The video of each sample."""
    return [str(path) for path in samples.table["path"].to_pylist()]


def one_head() -> tuple[Samples, Scored]:
    """Six videos, none of the third class; one output of the student is not finite."""
    answers = {
        "vit": [0, 0, 0, 0, 1, 1],
        "cnn": [0, 0, 0, 1, 1, 2],
        "baseline": [0, 1, 1, 0, 0, 2],
        "student": [0, 0, 1, 0, 1, -1],
    }
    by_role = {role: {"action": given} for role, given in answers.items()}
    return by_answers(ONE, {"action": [0, 0, 0, 0, 1, 1]}, by_role)


def two_heads() -> tuple[Samples, Scored]:
    """Eight stretches of four videos, with verbs and nouns."""
    labels = {"verb": [0, 0, 1, 1, 0, 0, 1, 1], "noun": [0, 1, 2, 2, 0, 1, 2, 0]}
    teacher = labels
    baseline = {"verb": [0, 1, 1, 0, 0, 0, 1, 1], "noun": [0, 1, 2, 1, 1, 1, 0, 1]}
    student = {"verb": [0, 0, 1, 0, 0, 0, 1, 1], "noun": [0, 1, 2, 1, 0, 1, 0, 0]}
    by_role = {"vit": teacher, "cnn": baseline, "baseline": baseline, "student": student}
    return by_answers(TWO, labels, by_role, stretches=2)
