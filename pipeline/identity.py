"""What decides the value of a cached row: the identity whose sha256 is a cache's fingerprint.

Which samples, views and fields are present is extent, not identity, and not in here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Precision, Run, Views
from pipeline.models import VideoModel
from pipeline.samples import Samples
from pipeline.views import VIEW_RULE_VERSION, ClipSpec, ViewRule
from pipeline.weights import weights_digest

CACHE_FORMAT = 1


def build_identity(
    run: Run,
    samples: Samples,
    teachers: Mapping[str, Mapping[str, Any]],
    projection_sha256: str,
    *,
    available: int,
) -> dict[str, Any]:
    """The identity, plain JSON: equal to itself after a journey through a file.

    Args:
        run: the config.
        samples: for the dataset's name and its label map.
        teachers: `vit` and `cnn`, see `teacher_identity`.
        projection_sha256: digest of the fitted projection, see `projection_digest`.
        available: how many samples there are to fit it on; a cache of fewer than the config asks
            for must not grow beyond them with a projection of these few.
    """
    projection = run.extract.projection
    identity = {
        "format_version": CACHE_FORMAT,
        "dataset": {"name": samples.dataset, "classes": samples.classes},
        "views": {"rule_version": VIEW_RULE_VERSION, **asdict(view_rule(run.extract.views))},
        "teachers": dict(teachers),
        "projection": {
            "kind": projection.kind,
            "dim": projection.dim,
            "grid": list(projection.grid),
            "ridge": projection.ridge,
            "samples": min(projection.samples, available),
            "seed": projection.seed,
            "sha256": projection_sha256,
        },
    }
    # A codec that loses something decides the value of a row; the others do not.
    lossy = {
        name: codec
        for name, codec in run.extract.codecs.items()
        if codec.lossy and name.partition("/")[0] not in run.extract.added
    }
    if lossy:
        identity["codecs"] = {name: codec.model_dump() for name, codec in lossy.items()}
    plain: dict[str, Any] = json.loads(json.dumps(identity))  # tuples become lists
    return plain


def teacher_identity(model: VideoModel, precision: Precision) -> dict[str, Any]:
    """What decides the outputs of a teacher, plain JSON: architecture, weights, clip, precision."""
    identity = {
        "model": model.name,
        "weights_sha256": weights_digest(model.net),
        "clip": clip_identity(model.clip),
        **({} if precision == "fp32" else {"precision": precision}),
    }
    plain: dict[str, Any] = json.loads(json.dumps(identity))
    return plain


def added_identity(run: Run, name: str, model: VideoModel) -> dict[str, Any]:
    """What decides the values of the fields of a teacher of `extract.added`, plain JSON."""
    codecs = {
        field: codec.model_dump()
        for field, codec in run.extract.codecs.items()
        if codec.lossy and field.partition("/")[0] == name
    }
    identity = teacher_identity(model, run.extract.precision)
    return {**identity, **({"codecs": codecs} if codecs else {})}


def view_rule(views: Views) -> ViewRule:
    """The view rule of a config."""
    return ViewRule(seed=views.seed, scale=views.scale, span_sec=views.span_sec, flip=views.flip)


def clip_identity(clip: ClipSpec) -> dict[str, Any]:
    """What of a clip specification decides a cached row, with the resize of `views.cut_clip`.

    Cached rows are of drawn views: `test_share` is not among it.
    """
    decides = {name: value for name, value in asdict(clip).items() if name != "test_share"}
    return {**decides, "resize": "bilinear, not antialiased, uint8"}


def projection_digest(arrays: Mapping[str, NDArray[np.float32]]) -> str:
    """Sha256 over names, shapes and little-endian float32 bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name}|{array.shape}|".encode())
        digest.update(np.ascontiguousarray(array, dtype="<f4").tobytes())
    return digest.hexdigest()
