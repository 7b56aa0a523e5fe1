"""The identity: what is in it, what changes it, what does not, and its digests by hand."""

from __future__ import annotations

import copy
import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import chain_making
from cache.identity import fingerprint
from pipeline import identity as identity_module
from pipeline.config import Run
from pipeline.identity import (
    build_identity,
    clip_identity,
    projection_digest,
    teacher_identity,
    view_rule,
)
from pipeline.models import VideoModel, create_model
from pipeline.samples import Sample, Samples, build_samples
from pipeline.views import ClipSpec, ViewRule

CLASSES = {"action": ["bow", "clap", "wave"]}


@dataclass(frozen=True)
class Inputs:
    """The arguments of `build_identity`."""

    run: Run
    samples: Samples
    vit: VideoModel
    cnn: VideoModel
    projection_sha256: str = "ab" * 32

    def identity(self) -> dict[str, Any]:
        teachers = {
            "vit": teacher_identity(self.vit, "fp32"),
            "cnn": teacher_identity(self.cnn, "fp32"),
        }
        return build_identity(
            self.run, self.samples, teachers, self.projection_sha256, available=1000
        )


def made_samples(
    dataset: str = "mini", classes: dict[str, list[str]] = CLASSES, count: int = 6
) -> Samples:
    """A samples table with all labels 0."""
    labels = dict.fromkeys(classes, 0)
    rows = [
        Sample(f"id-{row}", f"{row}.mp4", "test" if row % 3 == 2 else "train", labels)
        for row in range(count)
    ]
    return build_samples(dataset, classes, rows)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """A run with two small random teachers; not to be changed."""
    torch.manual_seed(0)
    return Inputs(
        run=chain_making.write_config(tmp_path_factory.mktemp("run")),
        samples=made_samples(),
        vit=create_model("torchvision/mvit_tiny", 3),
        cnn=create_model("pytorchvideo/x3d_nano", 3),
    )


def set_in_run(inputs: Inputs, field: str, value: object) -> Inputs:
    """The inputs with one field of the run changed, named as `extract.views.seed`."""
    content = inputs.run.model_dump()
    *sections, last = field.split(".")
    section = content
    for name in sections:
        section = section[name]
    assert section[last] != value, "nothing changed"
    section[last] = value
    return replace(inputs, run=Run.model_validate(content))


def with_nudged_weight(model: VideoModel, key: str) -> VideoModel:
    """A copy whose named tensor differs in one value by one bit."""
    nudged = copy.deepcopy(model)
    values = nudged.net.state_dict()[key].view(-1)  # shares the copy's memory
    values[0] = torch.nextafter(values[0], torch.tensor(torch.inf))
    return nudged


def with_clip(model: VideoModel, **changes: object) -> VideoModel:
    """A copy that takes other clips."""
    other = copy.copy(model)
    other.clip = replace(model.clip, **changes)  # type: ignore[arg-type]
    return other


def named(model: VideoModel, name: str) -> VideoModel:
    """A copy that calls itself otherwise."""
    other = copy.copy(model)
    other.name = name
    return other


Change = Callable[[Inputs], Inputs]

CHANGES: dict[str, Change] = {
    "vit weights": lambda i: replace(i, vit=with_nudged_weight(i.vit, "head.1.bias")),
    "cnn weights": lambda i: replace(i, cnn=with_nudged_weight(i.cnn, "blocks.5.proj.weight")),
    "cnn running mean": lambda i: replace(
        i, cnn=with_nudged_weight(i.cnn, "blocks.0.norm.running_mean")
    ),
    "vit architecture": lambda i: replace(i, vit=named(i.vit, "torchvision/mvit_other")),
    "cnn architecture": lambda i: replace(i, cnn=named(i.cnn, "pytorchvideo/x3d_other")),
    "vit frames": lambda i: replace(i, vit=with_clip(i.vit, frames=9)),
    "vit stride": lambda i: replace(i, vit=with_clip(i.vit, stride=5)),
    "cnn size": lambda i: replace(i, cnn=with_clip(i.cnn, size=41)),
    "cnn mean": lambda i: replace(i, cnn=with_clip(i.cnn, mean=(0.45, 0.45, 0.46))),
    "cnn std": lambda i: replace(i, cnn=with_clip(i.cnn, std=(0.2, 0.225, 0.225))),
    "view seed": lambda i: set_in_run(i, "extract.views.seed", 1),
    "view scale": lambda i: set_in_run(i, "extract.views.scale", (0.7, 0.9)),
    "view span": lambda i: set_in_run(i, "extract.views.span_sec", 1.5),
    "view flip": lambda i: set_in_run(i, "extract.views.flip", value=True),
    "dataset name": lambda i: replace(i, samples=made_samples("other")),
    "class name": lambda i: replace(
        i, samples=made_samples(classes={"action": ["bow", "clap", "wave_left"]})
    ),
    "class order": lambda i: replace(
        i, samples=made_samples(classes={"action": ["clap", "bow", "wave"]})
    ),
    "one class more": lambda i: replace(
        i, samples=made_samples(classes={"action": [*CLASSES["action"], "yawn"]})
    ),
    "head name": lambda i: replace(i, samples=made_samples(classes={"verb": CLASSES["action"]})),
    "projection kind": lambda i: set_in_run(i, "extract.projection.kind", "pca"),
    "projection dim": lambda i: set_in_run(i, "extract.projection.dim", 5),
    "projection grid": lambda i: set_in_run(i, "extract.projection.grid", (2, 2, 2)),
    "projection ridge": lambda i: set_in_run(i, "extract.projection.ridge", 0.01),
    "projection calibration": lambda i: set_in_run(i, "extract.projection.samples", 13),
    "projection seed": lambda i: set_in_run(i, "extract.projection.seed", 1),
    "projection digest": lambda i: replace(i, projection_sha256="ba" * 32),
}

EXTENT: dict[str, Change] = {
    "count of views": lambda i: set_in_run(i, "extract.views.count", 9),
    "splits": lambda i: set_in_run(i, "extract.splits", ["train", "test"]),
    "limit": lambda i: replace(i, samples=i.samples.take(range(2))),
    "order of samples": lambda i: replace(i, samples=i.samples.take(reversed(range(6)))),
    "chunk size": lambda i: set_in_run(i, "extract.chunk_samples", 7),
    "stored clips": lambda i: set_in_run(i, "extract.clips", []),
    "tolerated failures": lambda i: set_in_run(i, "extract.max_failed_share", 0.1),
    "place of the videos": lambda i: set_in_run(i, "prepare.root", "elsewhere"),
    "place of the weights": lambda i: set_in_run(i, "teach.vit.weights", "other.safetensors"),
    "recipe of a teacher": lambda i: set_in_run(i, "teach.cnn.train.epochs", 3),
    "student": lambda i: set_in_run(i, "distill.student", "pytorchvideo/x3d_tiny"),
    "weights of the loss": lambda i: set_in_run(i, "distill.weights.kd", 2.0),
    "mode of a teacher": lambda i: replace(i, vit=copy.deepcopy(i.vit).eval()),
}


def digest_by_hand(model: VideoModel) -> str:
    """The weights digest, spelled out."""
    spelled = b""
    state = model.net.state_dict()
    for name in sorted(state):
        array = state[name].numpy()
        kind = {"float32": "<f4", "int64": "<i8"}[str(array.dtype)]
        spelled += f"{name}|{kind}|{array.shape}|".encode() + array.tobytes()
    return hashlib.sha256(spelled).hexdigest()


def test_the_identity_by_hand(inputs: Inputs) -> None:
    resize = "bilinear, not antialiased, uint8"
    normal = {"mean": [0.45, 0.45, 0.45], "std": [0.225, 0.225, 0.225], "resize": resize}
    expected = {
        "format_version": 1,
        "dataset": {"name": "mini", "classes": {"action": ["bow", "clap", "wave"]}},
        "views": {
            "rule_version": 1,
            "seed": 0,
            "scale": [0.7, 1.0],
            "span_sec": 1.4,
            "flip": False,
        },
        "teachers": {
            "vit": {
                "model": "torchvision/mvit_tiny",
                "weights_sha256": digest_by_hand(inputs.vit),
                "clip": {"frames": 8, "stride": 6, "size": 48, **normal},
            },
            "cnn": {
                "model": "pytorchvideo/x3d_nano",
                "weights_sha256": digest_by_hand(inputs.cnn),
                "clip": {"frames": 8, "stride": 6, "size": 40, **normal},
            },
        },
        "projection": {
            "kind": "aligned",
            "dim": 4,
            "grid": [4, 2, 2],
            "ridge": 0.001,
            "samples": 14,
            "seed": 0,
            "sha256": "ab" * 32,
        },
    }
    assert inputs.identity() == expected
    spelled = json.dumps(expected, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert fingerprint(inputs.identity()) == hashlib.sha256(spelled.encode()).hexdigest()


def test_the_identity_is_plain_json(inputs: Inputs, tmp_path: Path) -> None:
    identity = inputs.identity()
    (tmp_path / "identity.json").write_text(json.dumps(identity, allow_nan=False))
    assert json.loads((tmp_path / "identity.json").read_text()) == identity


@pytest.mark.parametrize("what", CHANGES)
def test_what_decides_a_row_changes_the_fingerprint(inputs: Inputs, what: str) -> None:
    assert fingerprint(CHANGES[what](inputs).identity()) != fingerprint(inputs.identity())


@pytest.mark.parametrize("constant", ["VIEW_RULE_VERSION", "CACHE_FORMAT"])
def test_our_own_rules_change_the_fingerprint(
    inputs: Inputs, monkeypatch: pytest.MonkeyPatch, constant: str
) -> None:
    before = fingerprint(inputs.identity())
    monkeypatch.setattr(identity_module, constant, 2)
    assert fingerprint(inputs.identity()) != before


@pytest.mark.parametrize("what", EXTENT)
def test_extent_and_whereabouts_do_not_change_the_fingerprint(inputs: Inputs, what: str) -> None:
    assert EXTENT[what](inputs).identity() == inputs.identity()


def test_the_two_teachers_are_told_apart(inputs: Inputs) -> None:
    swapped = replace(inputs, vit=inputs.cnn, cnn=inputs.vit)
    assert fingerprint(swapped.identity()) != fingerprint(inputs.identity())


def test_the_view_rule_is_the_one_of_the_config(inputs: Inputs) -> None:
    changed = set_in_run(inputs, "extract.views.seed", 5)
    changed = set_in_run(changed, "extract.views.flip", value=True)
    assert view_rule(changed.run.extract.views) == ViewRule(5, (0.7, 1.0), 1.4, flip=True)


def test_the_digest_of_a_projection_by_hand() -> None:
    arrays = {
        "weight": np.array([[1.5, -2.0]], np.float32),
        "scale": np.array(0.5, np.float32),
    }
    spelled = b"scale|()|" + struct.pack("<f", 0.5)
    spelled += b"weight|(1, 2)|" + struct.pack("<2f", 1.5, -2.0)
    assert projection_digest(arrays) == hashlib.sha256(spelled).hexdigest()
    assert projection_digest(dict(reversed(arrays.items()))) == projection_digest(arrays)


def test_the_digest_of_a_projection_depends_on_values_names_and_shapes_only() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    digest = projection_digest({"weight": array})
    assert projection_digest({"weight": np.asfortranarray(array)}) == digest
    assert projection_digest({"weight": array.astype(">f4")}) == digest
    nudged = array.copy()
    nudged[1, 2] = np.nextafter(nudged[1, 2], np.float32(9))
    assert projection_digest({"weight": nudged}) != digest
    assert projection_digest({"weights": array}) != digest
    assert projection_digest({"weight": array.reshape(3, 2)}) != digest


def test_the_crop_of_the_published_evaluation_decides_no_row() -> None:
    assert clip_identity(ClipSpec(4, 2, 8)) == clip_identity(ClipSpec(4, 2, 8, test_share=0.875))
    assert "test_share" not in clip_identity(ClipSpec(4, 2, 8))
