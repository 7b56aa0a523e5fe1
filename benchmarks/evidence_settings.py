"""What the evidence consists of: named groups of settings, each a variant of `dualkd ablate`.

A setting is a variant's loss with some fields of the config changed. Those that change `extract`
have caches of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stages.variants import NAMES

FOUR = ("labels", "uniform", "datw", "all")
EPOCHS = 60  # of figures_hard; the groups that change them are of that set
LARGER = {"distill.student": "pytorchvideo/x3d_tiny"}  # the second student
HALF = {"distill.fraction": 0.5, "distill.train.epochs": 2 * EPOCHS}  # so 4,560 steps
LONGER = {"distill.train.epochs": 2 * EPOCHS}
FRESH = {"distill.views": EPOCHS, "extract.views.count": EPOCHS}  # a view for each epoch
SDD8 = {"distill.weights.sdd": 8.0}  # SDD's λ that val prefers to figures_hard's
VIT = {"extract.projection.kind": "vit"}  # SDD's target: the ViT's own features


@dataclass(frozen=True)
class Setting:
    """One line of the tables.

    Attributes:
        group: the table it belongs to.
        name: unique, names its folder.
        variant: of `dualkd ablate`.
        changes: dotted fields of the config, and their values.
        fixed8: whether its cache has the teachers' fields as 8-bit steps.
        online: whether the teachers run beside the training instead of being read.
        cost: of a run, in runs of the group `main`.
    """

    group: str
    name: str
    variant: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    fixed8: bool = False
    online: bool = False
    cost: float = 1.0

    @property
    def own_cache(self) -> bool:
        """Whether it needs another cache than the dataset's own."""
        return self.fixed8 or any(name.startswith("extract.") for name in self.changes)


def _of(
    group: str,
    variants: tuple[str, ...],
    changes: Mapping[str, Any] | None = None,
    *,
    label: str = "",
    cost: float = 1.0,
) -> list[Setting]:
    """A group, or a part of it with a label, that changes the same fields of some variants."""
    prefix = f"{group}-{label}" if label else group
    return [Setting(group, f"{prefix}-{one}", one, changes or {}, cost=cost) for one in variants]


def _knob(
    group: str, variants: tuple[str, ...], field_name: str, values: Mapping[str, Any]
) -> list[Setting]:
    return [
        Setting(group, f"{group}-{label}-{variant}", variant, {field_name: value})
        for label, value in values.items()
        for variant in variants
    ]


_ALL = [
    *_of("main", NAMES),
    *_of("student", FOUR, LARGER, cost=2.3),
    *_of("student", ("all",), {**LARGER, **SDD8}, label="sdd8", cost=2.3),
    *_of("size", FOUR, HALF),
    *_of("size", ("all",), {**HALF, **SDD8}, label="sdd8"),
    *_knob("views", ("all", "labels"), "distill.views", {"1": 1, "2": 2, "8": 8}),
    *_knob("views", ("all",), "distill.views", {"20": 20}),
    *_of("longer", ("labels", "all"), LONGER, cost=2.0),
    *_of("longer", ("all",), {**LONGER, **SDD8}, label="sdd8", cost=2.0),
    *_of("fresh", ("labels", "all"), FRESH),
    *_of("fresh", ("all",), {**FRESH, **SDD8}, label="sdd8"),
    *_knob("dim", ("datw_sdd",), "extract.projection.dim", {"8": 8, "64": 64}),
    *_knob(
        "grid", ("datw_sdd",), "extract.projection.grid", {"1x1x1": [1, 1, 1], "4x1x1": [4, 1, 1]}
    ),
    *_knob(
        "projection", ("datw_sdd",), "extract.projection.kind", {"pca": "pca", "random": "random"}
    ),
    Setting("fields", "fields-fixed8-all", "all", fixed8=True),
    *_knob("temperature", ("datw",), "distill.temperature", {"1": 1.0, "4": 4.0}),
    *_knob("weight", ("datw",), "distill.weights.kd", {"kd0.3": 0.3, "kd3": 3.0}),
    *_knob(
        "weight",
        ("datw_sdd",),
        "distill.weights.sdd",
        {"sdd0.1": 0.1, "sdd2": 2.0, "sdd8": 8.0, "sdd32": 32.0},
    ),
    *_knob("weight", ("datw_rkd",), "distill.weights.rkd", {"rkd0.003": 0.003, "rkd0.3": 0.3}),
    *_knob("weighting", ("datw", "datw_sdd"), "distill.weighting", {"centred": "datw_centred"}),
    *_knob("weighting", ("datw_sdd",), "distill.weighting", {"uniform": "uniform"}),
    # with SDD's λ of 8, in whole and in parts; and its rival's
    *_of("stronger", ("all",), SDD8),
    *_of("stronger", ("datw_sdd",), {**SDD8, "distill.weighting": "uniform"}, label="uniform"),
    *_of("stronger", ("mimic",), {"distill.weights.mimic": 8.0}),
    # and the control: the ViT's own features in place of the residual
    *_of("stronger", ("datw_sdd",), {**SDD8, **VIT}, label="vit"),
    # and the ViT as the only teacher
    *_of("stronger", ("datw_sdd",), {**SDD8, **VIT, "distill.weighting": "vit"}, label="vit_alone"),
    Setting("online", "online-all", "all", online=True, cost=3.0),
]
SETTINGS = {setting.name: setting for setting in _ALL}
GROUPS = tuple(dict.fromkeys(setting.group for setting in _ALL))


def chosen(names: list[str]) -> list[Setting]:
    """The settings of some groups, or of some names, in the order given; all where there are none.

    Raises:
        ValueError: there is no such group or setting.
    """
    if not names:
        return list(_ALL)
    found: dict[str, Setting] = {}
    for name in names:
        members = [one for one in _ALL if name in (one.group, one.name)]
        if not members:
            raise ValueError(
                f"there is no group or setting {name!r}; the groups are {', '.join(GROUPS)}"
            )
        found |= {one.name: one for one in members}
    return list(found.values())
