"""Batches without a cache: every epoch draws fresh views, and the teachers run beside the student.

The videos are decoded again each time. Only the projection φ comes from the cache, which a training
without one would have to fit too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.clips import ClipDataset, ClipReader, Request
from pipeline.models import Features, model_entry
from pipeline.objective import Batch, TeacherRows
from stages.feed import Feed
from stages.rows import drawn_views, stored_projection
from stages.teachers import features, load_teachers


class OnlineFeed(Feed):
    """As `Feed`; the view of an epoch is the one of the epoch's number, drawn by the same rule."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.stored = False
        self._teachers = load_teachers(self._run, self._samples, self._device)
        self._projection = stored_projection(self._cache).to(self._device)
        specs = [model_entry(self._run.distill.student).clip]
        specs += [model.clip for model in self._teachers]
        videos = ClipDataset(Path(self._run.prepare.root), self._samples, specs)
        self._reader = ClipReader(videos, self._decoders)

    def _view(self, _place: int, epoch: int) -> int:
        return epoch

    def _want(self, *_batch: Any) -> None:
        """Nothing is fetched from a cache."""

    def _decoded_clips(
        self, rows: list[NDArray[np.int64]], views: list[NDArray[np.int64]]
    ) -> Iterator[NDArray[np.uint8]]:
        requests: list[Sequence[Request]] = [
            [
                (int(row), drawn_views(self._run, (int(view),)))
                for row, view in zip(of_rows, of_views, strict=True)
            ]
            for of_rows, of_views in zip(rows, views, strict=True)
        ]
        for reads in self._reader.read(requests):
            clips = [read.clips.clips for read in reads if read.clips]
            student, *self._of_teachers = (
                np.concatenate(of_one) for of_one in zip(*clips, strict=True)
            )
            yield student

    def _batch(
        self,
        rows: NDArray[np.int64],
        views: NDArray[np.int64],
        clips: NDArray[np.uint8],
        number: int,
        share: float,
    ) -> Batch:
        fields, self._fields = self._fields, []  # nothing of the teachers is read
        batch = super()._batch(rows, views, clips, number, share)
        self._fields = fields
        return replace(batch, teachers=self._answers()) if fields else batch

    def _answers(self) -> TeacherRows:
        vit, cnn = map(self._outputs, self._teachers, self._of_teachers)
        residual = self._projection.residual(vit_map=vit.map, cnn_map=cnn.map)
        # Copies: autograd keeps nothing that was made in inference mode.
        return TeacherRows(
            vit_logits={head: logits.clone() for head, logits in vit.logits.items()},
            cnn_logits={head: logits.clone() for head, logits in cnn.logits.items()},
            vit_pooled=vit.pooled.clone(),
            residual=residual.clone(),
            cnn_pooled=cnn.pooled.clone(),
        )

    def _outputs(self, model: Any, clips: NDArray[np.uint8]) -> Features:
        return features(model, self._placed(clips), self._run.extract.precision)
