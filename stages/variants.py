"""The variants that `dualkd ablate` compares: each is a config's `distill` with other terms.

docs/ablation.md tells why these, and what a fair reference is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.config import Run
from pipeline.config_training import Weighting, Weights
from pipeline.objective import LABELS_ONLY

REFERENCES = ("labels", "uniform")
"""What the others are compared with, seed by seed."""

DEFAULTS = {"kd": 1.0, "sdd": 8.0, "rkd": 0.03, "dkd": 1.0, "mimic": 1.0}
"""λ of terms that a config has at 0; that of `learned_sdd` is then the one of `sdd`."""

_TERMS: dict[str, tuple[Weighting, tuple[str, ...]]] = {
    "labels": ("uniform", ()),
    "kd_vit": ("vit", ("kd",)),
    "kd_cnn": ("cnn", ("kd",)),
    "uniform": ("uniform", ("kd",)),
    "datw": ("datw", ("kd",)),
    "datw_sdd": ("datw", ("kd", "sdd")),
    "datw_rkd": ("datw", ("kd", "rkd")),
    "all": ("datw", ("kd", "sdd", "rkd")),
    "dkd": ("uniform", ("dkd",)),
    "entropy": ("entropy", ("kd",)),
    "mimic": ("uniform", ("mimic",)),
    "learned_sdd": ("datw", ("kd", "learned_sdd")),
}
NAMES = tuple(_TERMS)
FROM_OUTSIDE = NAMES[NAMES.index("dkd") :]
"""Other people's methods, which the method is compared with; the rest are its parts."""

_SHOWN_WEIGHTING = {
    "datw": "DATW",
    "datw_centred": "DATW, centred",
    "uniform": "uniform",
    "entropy": "entropy",
    "vit": "ViT",
    "cnn": "CNN",
}
_SHOWN_TERM = {
    "sdd": "SDD",
    "rkd": "RKD",
    "mimic": "mimicry of the ViT",
    "learned_sdd": "SDD with a learned φ",
}


class VariantError(ValueError):
    """There is no such variant; the message lists them."""


@dataclass(frozen=True)
class Variant:
    """One of them, resolved for a config.

    Attributes:
        name: as `--only` takes it.
        weighting: how two teachers become one target.
        weights: λ of its terms, the others at 0.
    """

    name: str
    weighting: Weighting
    weights: Weights

    @property
    def loss(self) -> str:
        """Its loss for people, as `CE + 1·KD(DATW) + 0.5·SDD`."""
        parts = ["CE"]
        for term, weight in self.weights:
            if weight > 0:
                blend = f"{term.upper()}({_SHOWN_WEIGHTING[self.weighting]})"
                parts.append(f"{weight:g}·{_SHOWN_TERM.get(term, blend)}")
        return " + ".join(parts)

    def of(self, run: Run, seed: int | None = None) -> Run:
        """The config that trains it."""
        changes: dict[str, object] = {"weights": self.weights, "weighting": self.weighting}
        if seed is not None:
            changes["seed"] = seed
        return run.model_copy(update={"distill": run.distill.model_copy(update=changes)})


def variants_of(run: Run) -> dict[str, Variant]:
    """All variants by name: λ are the config's, or `DEFAULTS` where it has 0."""
    known = _lambdas(run.distill.weights)
    return {
        name: Variant(name, weighting, _weights({term: known[term] for term in terms}))
        for name, (weighting, terms) in _TERMS.items()
    }


def of_everything(run: Run) -> Run:
    """A run whose method reads whatever any variant reads; it is never trained."""
    weights = _weights(_lambdas(run.distill.weights))
    return Variant("everything", "datw", weights).of(run)


def chosen(names: str | None) -> list[str]:
    """Read `--only`: names with commas between; all where there are none.

    Returns:
        In the order of `NAMES`.

    Raises:
        VariantError: a name is unknown.
    """
    if names is None:
        return list(NAMES)
    asked = [name.strip() for name in names.split(",")]
    unknown: Sequence[str] = [name for name in asked if name not in NAMES]
    if unknown:
        raise VariantError(
            f"--only: there is no variant {unknown[0]!r}; there are {', '.join(NAMES)}"
        )
    return [name for name in NAMES if name in asked]


def _lambdas(weights: Weights) -> dict[str, float]:
    known = {term: weight or DEFAULTS.get(term, 0.0) for term, weight in weights}
    return known | {"learned_sdd": weights.learned_sdd or known["sdd"]}


def _weights(chosen_terms: Mapping[str, float]) -> Weights:
    return LABELS_ONLY.model_copy(update=dict(chosen_terms))
