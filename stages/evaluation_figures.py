"""What `evaluate` measures of answers: accuracies, their intervals, calibration, agreement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.bootstrap import LEVEL, SAMPLES, SEED, interval, resamples, shares
from pipeline.calibration import Calibration, calibrate
from pipeline.metrics import agreement, finite, mean_class_accuracy
from stages.scoring import Heads, Scored, together

TEACHERS = ("vit", "cnn")
Figures = dict[str, Any]
Calibrations = Mapping[str, Mapping[Heads, Calibration]]


def calibrations(scored: Scored, videos: Sequence[str]) -> Calibrations:
    """Of each network and of heads that are taken as one.

    Args:
        scored: the answers.
        videos: of each of them: stretches of one video stay together.
    """
    return {
        role: {
            heads: calibrate(
                {head: logits[head] for head in heads},
                {head: scored.labels[head] for head in heads},
                ranks == 0,
                videos,
            )
            for heads, ranks in scored.label_ranks(role).items()
        }
        for role, logits in scored.logits.items()
    }


def all_figures(
    scored: Scored,
    calibrated: Calibrations,
    videos: Sequence[str],
    subsets: Mapping[str, NDArray[np.bool_]],
) -> dict[str, Figures]:
    """By role everything of `metrics.json` that follows from the answers.

    Args:
        scored: the answers.
        calibrated: see `calibrations`.
        videos: of each answer.
        subsets: by name, which answers (N,) are scored on their own too.
    """
    everything = np.ones(len(videos), bool)
    found = accuracies(scored, videos, everything)
    for role, logits in scored.logits.items():
        of_role = found[role]
        for heads in together(list(scored.labels)):
            of_heads = of_role if len(heads) == len(scored.labels) else of_role["heads"][heads[0]]
            one = calibrated[role][heads]
            of_heads["temperature"] = one.temperature
            of_heads["ece"] = one.before.ece
            of_heads["ece_calibrated"] = one.after.ece if one.after else None
            if role not in TEACHERS:
                of_heads |= _agreements(scored, role, heads)
        of_role["non_finite"] = int((~finite(logits)).sum())
    for name, members in subsets.items():
        of_subset = accuracies(scored, videos, members)
        for role, of_role in found.items():
            of_role.setdefault("subsets", {})[name] = {
                "videos": int(members.sum()),
                **of_subset.get(role, {}),
            }
    return found


def accuracies(
    scored: Scored, videos: Sequence[str], chosen: NDArray[np.bool_]
) -> dict[str, Figures]:
    """By role `top1`, `top5`, `mean_class_accuracy`, each with its interval over videos.

    With several heads these are of all heads together, and those of each stand below `heads`. The
    student also has `gain_top1`, over the baseline, with an interval of the same resamples. Of
    fewer than two videos intervals are None, and of none there is nothing.

    Args:
        scored: the answers.
        videos: of each answer (N,).
        chosen: (N,), which of them count.
    """
    rows = np.flatnonzero(chosen)
    if not len(rows):
        return {}
    names = [video for video, there in zip(videos, chosen, strict=True) if there]
    parts = {
        heads: _of_heads(scored, heads, names, rows) for heads in together(list(scored.labels))
    }
    found = parts[tuple(scored.labels)]
    for heads, by_role in parts.items():
        if len(heads) < len(scored.labels):
            for role, figures in by_role.items():
                found[role].setdefault("heads", {})[heads[0]] = figures
    return found


def _of_heads(
    scored: Scored, heads: Heads, names: Sequence[str], rows: NDArray[np.int64]
) -> dict[str, Figures]:
    """The accuracies of some rows, by role, with heads taken as one."""
    roles = list(scored.logits)
    ranks = np.stack([scored.label_ranks(role)[heads][rows] for role in roles], axis=1)
    classes = _classes([scored.labels[head][rows] for head in heads])

    def measure(counts: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """Each figure (S, R) of S resamples and R roles."""
        return {
            "top1": shares(counts, ranks < 1),
            "top5": shares(counts, ranks < 5),
            "mean_class": mean_class_accuracy(ranks < 1, classes, counts),
        }

    exact = measure(np.ones((1, len(rows))))
    drawn: dict[str, NDArray[np.float64]] = {}
    if len(set(names)) > 1:
        parts = [measure(counts) for counts in resamples(names)]
        drawn = {name: np.concatenate([part[name] for part in parts]) for name in exact}
    found: dict[str, Figures] = {}
    for place, role in enumerate(roles):
        found[role] = {
            "top1": float(exact["top1"][0, place]),
            "top5": float(exact["top5"][0, place]),
            "mean_class_accuracy": float(exact["mean_class"][0, place]),
            **{
                f"{name}_interval": interval(drawn[name][:, place]) if drawn else None
                for name in exact
            },
        }
    if {"student", "baseline"} <= found.keys():
        student, baseline = roles.index("student"), roles.index("baseline")
        gains = drawn["top1"][:, student] - drawn["top1"][:, baseline] if drawn else None
        found["student"] |= {
            "gain_top1": found["student"]["top1"] - found["baseline"]["top1"],
            "gain_top1_interval": None if gains is None else interval(gains),
        }
    return found


def _classes(labels: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """One class per row (N,): of several heads, the number of the tuple of theirs."""
    if len(labels) == 1:
        return labels[0]
    _, classes = np.unique(np.stack(labels, axis=1), axis=0, return_inverse=True)
    return classes.reshape(-1)


def _agreements(scored: Scored, role: str, heads: Heads) -> Figures:
    """How often a network answers as each teacher, right or wrong."""
    mine = scored.answers(role)
    return {
        f"agreement_{teacher}": agreement(
            {head: mine[head] for head in heads}, scored.answers(teacher)
        )
        for teacher in TEACHERS
    }


def bootstrap_facts(videos: Sequence[str]) -> Figures:
    """How the intervals came about."""
    return {"samples": SAMPLES, "seed": SEED, "level": LEVEL, "videos": len(set(videos))}
