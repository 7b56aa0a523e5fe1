"""How a row comes about: which views are cut from which videos, and what is stored of the teachers.

`extract` makes rows so, and `verify --recompute` makes some of them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache import TeacherCache
from pipeline.clips import ClipDataset, DrawnViews
from pipeline.config import Run
from pipeline.identity import view_rule
from pipeline.models import Features, model_entry
from pipeline.projection import Projection
from pipeline.samples import Samples
from stages.teachers import Teachers


def drawn_views(run: Run, views: Sequence[int]) -> DrawnViews:
    """The views of these indices, as the config's rule draws them."""
    return DrawnViews(view_rule(run.extract.views), tuple(views))


def clip_dataset(
    run: Run, samples: Samples, teachers: Teachers, students: Sequence[str]
) -> ClipDataset:
    """Reads the clips of the ViT, of the CNN, then of each student."""
    specs = [teachers.vit.clip, teachers.cnn.clip, *(model_entry(name).clip for name in students)]
    # The digest is of what the teachers saw; a student's clip may be added later.
    return ClipDataset(Path(run.prepare.root), samples, specs, digested=2)


def stored_projection(cache: TeacherCache) -> Projection:
    """The projection that a cache's residuals were made with."""
    return Projection.from_arrays(cache.projection, cache.identity["projection"]["kind"])


def stored_values(
    vit: Features, cnn: Features, projection: Projection
) -> dict[str, NDArray[np.float16]]:
    """What the cache stores of the teachers' outputs: field → (batch, ...)."""
    values = {
        **{f"vit/logits/{head}": logits for head, logits in vit.logits.items()},
        **{f"cnn/logits/{head}": logits for head, logits in cnn.logits.items()},
        "vit/pooled": vit.pooled,
        "cnn/pooled": cnn.pooled,
        "residual": projection.residual(vit_map=vit.map, cnn_map=cnn.map),
    }
    return {name: tensor.half().cpu().numpy() for name, tensor in values.items()}
