"""Batches whose teachers run online: in the place of cached rows, on the very views of the batch.

What a training without a cache does. With as many views in the cache as there are epochs each view
comes once, so that these are fresh random views with online teachers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.clips import ClipDataset, Read, Request, StoredViews
from pipeline.models import Features, VideoModel
from pipeline.objective import Batch, TeacherRows
from stages.feed import Feed
from stages.rows import stored_projection
from stages.teachers import features, load_teachers


class OnlineFeed(Feed):
    """As `Feed`, but the teachers' outputs come from the videos, in full precision."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._teachers = load_teachers(self._run, self._samples, self._device)
        self._projection = stored_projection(self._cache)
        root = Path(self._run.prepare.root)
        self._videos = ClipDataset(root, self._samples, [model.clip for model in self._teachers])

    def _batch(
        self,
        rows: NDArray[np.int64],
        views: NDArray[np.int64],
        clips: NDArray[np.uint8],
        number: int,
        share: float,
    ) -> Batch:
        batch = super()._batch(rows, views, clips, number, share)
        if batch.teachers is None:
            return batch
        return replace(batch, teachers=self._rows_of(rows, views))

    def _rows_of(self, rows: NDArray[np.int64], views: NDArray[np.int64]) -> TeacherRows:
        records = self._cache.read(rows, views, ["views"])["views"]
        requests: list[Request] = [
            (int(row), StoredViews(record[None])) for row, record in zip(rows, records, strict=True)
        ]
        reads = self._videos.__getitems__(requests)
        vit, cnn = (
            self._outputs(model, reads, which) for which, model in enumerate(self._teachers)
        )
        residual = self._projection.residual(vit_map=vit.map, cnn_map=cnn.map)
        # Copies: autograd keeps nothing that was made in inference mode.
        return TeacherRows(
            vit_logits={head: logits.clone() for head, logits in vit.logits.items()},
            cnn_logits={head: logits.clone() for head, logits in cnn.logits.items()},
            vit_pooled=vit.pooled.clone(),
            residual=residual.clone(),
            cnn_pooled=cnn.pooled.clone(),
        )

    def _outputs(self, model: VideoModel, reads: Sequence[Read], which: int) -> Features:
        clips = np.concatenate([read.clips.clips[which] for read in reads if read.clips])
        return features(model, self._placed(clips), self._run.extract.precision)
