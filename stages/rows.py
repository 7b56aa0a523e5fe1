"""How a row comes about: which views are cut from which videos, and what is stored of the teachers.

`extract` makes rows so, and `verify --recompute` makes some of them again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from cache import Field, TeacherCache
from pipeline.clips import ClipDataset, DrawnViews, Read
from pipeline.config import Precision, Run
from pipeline.identity import view_rule
from pipeline.models import Features, VideoModel, model_entry
from pipeline.projection import Projection
from pipeline.samples import Samples
from stages.stored_clips import as_stored, clip_field
from stages.teachers import Teachers, features, load_added, load_teachers


def ordered_samples(run: Run, table: Samples) -> Samples:
    """The samples that the config asks for, as a cache holds them.

    Their order is drawn by the seed of the views, so that any contiguous part is an unbiased one.
    """
    listed = table.of_splits(run.extract.splits)
    return listed.take(np.random.default_rng(run.extract.views.seed).permutation(len(listed)))


def drawn_views(run: Run, views: Sequence[int]) -> DrawnViews:
    """The views of these indices, as the config's rule draws them."""
    return DrawnViews(view_rule(run.extract.views), tuple(views))


@dataclass(frozen=True)
class Networks:
    """All networks for which a cache stores something: of each view they get clips of one decode.

    Attributes:
        teachers: the ViT and the CNN.
        students: those whose clips are stored.
        added: further teachers by name.
        precision: what the teachers compute in.
    """

    teachers: Teachers
    students: Sequence[str] = ()
    added: Mapping[str, VideoModel] = field(default_factory=dict)
    precision: Precision = "fp32"

    def outputs_of(
        self, name: str, clips: torch.Tensor, batch_size: int | None = None
    ) -> Iterator[Features]:
        """Outputs of a teacher for its clips (N, T, H, W, 3), in batches; in one by default."""
        model, size = self.by_name[name], batch_size or len(clips)
        for start in range(0, len(clips), size):
            yield features(model, clips[start : start + size], self.precision)

    @property
    def by_name(self) -> dict[str, VideoModel]:
        """All teachers: the two by role, further ones by their names."""
        return self.teachers.by_role() | dict(self.added)

    def clips_of(self, name: str, reads: Sequence[Read]) -> torch.Tensor:
        """A teacher's clips (N, T, H, W, 3) uint8 of all views of samples, on its device."""
        which = Teachers._fields.index(name) if name in Teachers._fields else self._added(name)
        clips = np.concatenate([read.clips.clips[which] for read in reads if read.clips])
        device, on_host = self.teachers.device, torch.from_numpy(clips)
        if device.type == "cpu":
            return on_host
        # From pinned memory the copy is asynchronous; it takes its turn with the kernels.
        return on_host.pin_memory().to(device, non_blocking=True)

    def leave_device(self) -> None:
        """Make room on the device: the teachers are not used any more in this process."""
        for model in self.by_name.values():
            model.to("cpu")
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.empty_cache()

    def student_clip(self, name: str) -> int:
        """Which of a sample's clips is a student's."""
        return len(self.teachers) + self.students.index(name)

    def _added(self, name: str) -> int:
        """Which of a sample's clips is an added teacher's."""
        return len(self.teachers) + len(self.students) + list(self.added).index(name)

    def added_digest(self, name: str) -> int:
        """Which of a sample's digests is of the frames that an added teacher saw."""
        return 1 + list(self.added).index(name)

    def dataset(
        self, run: Run, samples: Samples, fields: Mapping[str, Field] | None = None
    ) -> ClipDataset:
        """Reads the clips of all of them; the first digest is of what the two teachers saw.

        Args:
            run: the config.
            samples: what is read.
            fields: of the cache; the students' clips come as their fields take them.
        """
        specs = [
            *(model.clip for model in self.teachers),
            *(model_entry(name).clip for name in self.students),
            *(model.clip for model in self.added.values()),
        ]
        digested = [range(len(self.teachers)), *([self._added(name)] for name in self.added)]
        encoders = {
            self.student_clip(name): partial(as_stored, field=fields[clip_field(name)])
            for name in self.students
            if fields and clip_field(name) in fields
        }
        return ClipDataset(
            Path(run.prepare.root), samples, specs, digested=digested, encoders=encoders
        )


def load_networks(run: Run, table: Samples, device: torch.device) -> Networks:
    """All networks for which the config has something stored.

    Args:
        run: the config.
        table: its classes are those of the heads.
        device: where the teachers are put.
    """
    return Networks(
        load_teachers(run, table, device),
        run.extract.clips,
        load_added(run, table, device),
        run.extract.precision,
    )


def stored_projection(cache: TeacherCache) -> Projection:
    """The projection that a cache's residuals were made with."""
    return Projection.from_arrays(cache.projection, cache.identity["projection"]["kind"])


def stored_values(vit: Features, cnn: Features, projection: Projection) -> dict[str, torch.Tensor]:
    """What the cache stores of the teachers' outputs: field → (batch, ...) float16, still there."""
    values = {
        **{f"vit/logits/{head}": logits for head, logits in vit.logits.items()},
        **{f"cnn/logits/{head}": logits for head, logits in cnn.logits.items()},
        "vit/pooled": vit.pooled,
        "cnn/pooled": cnn.pooled,
        "residual": projection.residual(vit_map=vit.map, cnn_map=cnn.map),
    }
    return {name: tensor.half() for name, tensor in values.items()}


def stored_values_of_added(name: str, features: Features) -> dict[str, torch.Tensor]:
    """What the cache stores of an added teacher's outputs: field → (batch, ...) float16."""
    values = {f"{name}/logits/{head}": logits for head, logits in features.logits.items()}
    values[f"{name}/pooled"] = features.pooled
    return {field: tensor.half() for field, tensor in values.items()}
