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

from pipeline.config import Run, Views
from pipeline.models import VideoModel
from pipeline.samples import Samples
from pipeline.views import VIEW_RULE_VERSION, ClipSpec, ViewRule
from pipeline.weights import weights_digest

CACHE_FORMAT = 1


def build_identity(
    run: Run, samples: Samples, vit: VideoModel, cnn: VideoModel, projection_sha256: str
) -> dict[str, Any]:
    """The identity, plain JSON: equal to itself after a journey through a file.

    Args:
        run: the config.
        samples: for the dataset's name and its label map.
        vit: the ViT teacher with its weights.
        cnn: the CNN teacher with its weights.
        projection_sha256: digest of the fitted projection, see `projection_digest`.
    """
    projection = run.extract.projection
    identity = {
        "format_version": CACHE_FORMAT,
        "dataset": {"name": samples.dataset, "classes": samples.classes},
        "views": {"rule_version": VIEW_RULE_VERSION, **asdict(view_rule(run.extract.views))},
        "teachers": {
            role: {
                "model": model.name,
                "weights_sha256": weights_digest(model.net),
                "clip": clip_identity(model.clip),
            }
            for role, model in (("vit", vit), ("cnn", cnn))
        },
        "projection": {
            "kind": projection.kind,
            "dim": projection.dim,
            "grid": list(projection.grid),
            "ridge": projection.ridge,
            "samples": projection.samples,
            "seed": projection.seed,
            "sha256": projection_sha256,
        },
    }
    # A codec that loses something decides the value of a row; the others do not.
    lossy = {name: codec for name, codec in run.extract.codecs.items() if codec.lossy}
    if lossy:
        identity["codecs"] = {name: codec.model_dump() for name, codec in lossy.items()}
    plain: dict[str, Any] = json.loads(json.dumps(identity))  # tuples become lists
    return plain


def view_rule(views: Views) -> ViewRule:
    """The view rule of a config."""
    return ViewRule(seed=views.seed, scale=views.scale, span_sec=views.span_sec, flip=views.flip)


def clip_identity(clip: ClipSpec) -> dict[str, Any]:
    """A clip specification with the resize that `views.cut_clip` does."""
    return {**asdict(clip), "resize": "bilinear, not antialiased, uint8"}


def projection_digest(arrays: Mapping[str, NDArray[np.float32]]) -> str:
    """Sha256 over names, shapes and little-endian float32 bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name}|{array.shape}|".encode())
        digest.update(np.ascontiguousarray(array, dtype="<f4").tobytes())
    return digest.hexdigest()
