"""The two teachers as the stages use them: loaded by role, run over clips, named in a cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from cache import TeacherCache
from pipeline.clips import Read
from pipeline.config import Run
from pipeline.identity import build_identity
from pipeline.models import Features, VideoModel
from pipeline.samples import Samples
from pipeline.views import normalise
from pipeline.weights import load_weights


class Teachers(NamedTuple):
    """The pair, on one device; the names of the fields are the roles."""

    vit: VideoModel
    cnn: VideoModel

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return next(self.vit.parameters()).device

    def by_role(self) -> dict[str, VideoModel]:
        """`vit` and `cnn`."""
        return self._asdict()

    @torch.inference_mode()
    def features(
        self, reads: Sequence[Read], batch_size: int
    ) -> Iterator[tuple[Features, Features]]:
        """Outputs of both for all views of samples whose first two clips are theirs, in batches."""
        both = [
            np.concatenate([read.clips.clips[which] for read in reads if read.clips is not None])
            for which in range(len(self))
        ]
        for start in range(0, len(both[0]), batch_size):
            vit, cnn = (clips[start : start + batch_size] for clips in both)
            yield _features(self.vit, vit), _features(self.cnn, cnn)


def _features(model: VideoModel, clips: NDArray[np.uint8]) -> Features:
    device = next(model.parameters()).device
    batch = normalise(torch.from_numpy(clips).to(device), model.clip)
    return model.features(batch.contiguous(memory_format=torch.channels_last_3d))


def load_teachers(run: Run, samples: Samples, device: torch.device) -> Teachers:
    """Both teachers with the weights that the config names, in evaluation mode.

    Raises:
        pipeline.weights.WeightsError: a file is missing, or holds another network.
    """
    pair = Teachers(
        *(
            load_weights(teacher.model, samples.heads, Path(teacher.weights))
            for teacher in (run.teach.vit, run.teach.cnn)
        )
    )
    for model in pair:
        model.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    return pair


def identity_for(
    run: Run, samples: Samples, teachers: Teachers, cache: TeacherCache
) -> dict[str, Any]:
    """The identity that a standing cache has if it is the one the config describes.

    Its projection was fitted when it was made: the digest is the cache's own.
    """
    projection = cache.identity.get("projection")
    sha256 = projection.get("sha256") if isinstance(projection, dict) else None
    return build_identity(run, samples, teachers.vit, teachers.cnn, str(sha256))
