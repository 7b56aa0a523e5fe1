"""Settings with few seeds: what is left of the noise when that of all settings is pooled.

Which seed a student has moves its accuracy by as much as most settings do, and much alike
in them. So accuracy = setting + seed + noise, by least squares over all students of one kind:
differences of settings keep the seed out as pairing does, and their intervals use the noise of all
students, not of two or three (two-way analysis of variance without interaction; Montgomery, Design
and Analysis of Experiments, ch. 4). It takes the noise to be alike in all settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.intervals import Estimate, t_quantile


@dataclass(frozen=True)
class Fit:
    """Of accuracies, by setting and seed.

    Attributes:
        settings: in the order of the effects.
        effects: float64 (settings,), the accuracy of each as if trained with all seeds.
        covariance: float64 (settings, settings), of the effects.
        noise: the standard deviation of one student beside setting and seed.
        degrees: of freedom of `noise`.
    """

    settings: tuple[str, ...]
    effects: NDArray[np.floating[Any]]
    covariance: NDArray[np.floating[Any]]
    noise: float
    degrees: int

    def difference(self, setting: str, against: str) -> Estimate:
        """Of two settings, with the 95 % interval of the pooled noise; it has no values."""
        contrast = np.zeros(len(self.settings))
        contrast[self.settings.index(setting)] += 1
        contrast[self.settings.index(against)] -= 1
        mean = float(contrast @ self.effects)
        half = t_quantile(self.degrees) * float(np.sqrt(contrast @ self.covariance @ contrast))
        return Estimate(mean, (mean - half, mean + half), ())

    def effect(self, setting: str) -> float:
        """The accuracy of a setting, as if it had been trained with all seeds."""
        return float(self.effects[self.settings.index(setting)])


def fit(accuracies: Mapping[str, list[tuple[int, float]]]) -> Fit | None:
    """Fit setting → (seed, accuracy) of its students; one seed may have several.

    None where nothing is left to tell the noise from: as many students as are needed for the fit.
    """
    settings = tuple(accuracies)
    students = [(name, seed, value) for name in settings for seed, value in accuracies[name]]
    seeds = sorted({seed for _, seed, _ in students})
    design = np.zeros((len(students), len(settings) + len(seeds)))
    for row, (name, seed, _) in enumerate(students):
        design[row, settings.index(name)] = 1
        design[row, len(settings) + seeds.index(seed)] = 1
    # An effect is a setting's mean over the seeds, whatever was split between them.
    design[:, len(settings) :] -= 1 / max(len(seeds), 1)
    values = np.array([value for *_, value in students], np.float64)
    found, _, rank, _ = np.linalg.lstsq(design, values)
    degrees = len(students) - int(rank)
    if degrees < 1:
        return None
    variance = float(np.square(values - design @ found).sum()) / degrees
    inverse = np.linalg.pinv(design.T @ design)[: len(settings), : len(settings)]
    return Fit(
        settings, found[: len(settings)], variance * inverse, float(np.sqrt(variance)), degrees
    )
