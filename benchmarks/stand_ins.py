"""Stand-ins for decoding and teachers, at next to no cost: what is left is `extract` itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.clips import ClipDataset, Read, Request
from pipeline.config import Run
from pipeline.cutting import SampleClips
from pipeline.models import Features, VideoModel
from pipeline.views import ClipSpec
from stages import cluster, cluster_worker, rows
from stages.rows import Networks
from stages.teachers import Teachers

CLIP = ClipSpec(frames=1, stride=1, size=8)
POOLED = {"torchvision/mvit_v2_s": 768, "pytorchvideo/x3d_m": 2048}
MAP = (48, 2, 7, 7)


class StandIn(VideoModel):
    """One linear map from a few pixels to outputs of the real sizes."""

    def __init__(self, name: str, heads: dict[str, int]) -> None:
        outputs = sum(heads.values()) + POOLED[name] + MAP[0] * MAP[1] * MAP[2] * MAP[3]
        super().__init__(name, "vit", CLIP, heads, nn.Linear(3 * CLIP.size**2, outputs))
        self.pooled_channels, self.map_channels = POOLED[name], MAP[0]

    def features(self, clips: Tensor) -> Features:
        """Cut one vector into logits, pooled features and a map."""
        sizes = [*self.heads.values(), self.pooled_channels]
        *logits, pooled, rest = self.net(clips.flatten(1)).split([*sizes, int(np.prod(MAP))], dim=1)
        return Features(dict(zip(self.heads, logits, strict=True)), pooled, rest.view(-1, *MAP))


def stand_in_teachers(run: Run, samples: Any, device: torch.device) -> Teachers:
    """The same two on every machine."""
    torch.manual_seed(0)
    models = (run.teach.vit.model, run.teach.cnn.model)
    return Teachers(*(StandIn(name, samples.heads).to(device).eval() for name in models))


def stand_in_reads(dataset: ClipDataset, requests: Sequence[Request]) -> list[Read]:
    """What a decoder would answer, drawn from the sample's row."""
    reads = []
    for row, choose in requests:
        sample = dataset._samples.row(row)
        views = len(choose.indices)  # type: ignore[attr-defined]
        draw = np.random.default_rng(row)
        clips = draw.integers(256, size=(2, views, 1, CLIP.size, CLIP.size, 3), dtype=np.uint8)
        records = np.tile([float(len(sample.path)), 0.0, 0.0, 1.0, 1.0, 0.0], (views, 1))
        digests = draw.integers(2**63, size=(views, 1), dtype=np.uint64)
        reads.append(Read(row, SampleClips(records, tuple(clips), digests), None))
    return reads


def put_stand_ins() -> None:
    """Replace decoding and networks, in this process."""
    clips: Any = ClipDataset
    clips.__getitems__ = stand_in_reads
    networks: Any = rows
    networks.load_teachers = stand_in_teachers
    workers: Any = cluster
    workers.ChunkPlugin = StandInPlugin


class StandInPlugin(cluster_worker.ChunkPlugin):
    """A worker with stand-ins."""

    def _load(self) -> Networks:
        put_stand_ins()
        return super()._load()
