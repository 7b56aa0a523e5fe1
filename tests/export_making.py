"""A tiny network behind the registry's interface, and students that were never trained."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from cache import open_cache
from pipeline.config import Run
from pipeline.model_interface import Family, Features, VideoModel
from pipeline.models import create_model
from pipeline.samples import read_samples
from pipeline.views import ClipSpec
from pipeline.weights import save_weights, weights_digest

HEADS = {"verb": 5, "noun": 3}
CLIP = ClipSpec(4, 2, 12, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), test_share=0.875)


class Tiny(VideoModel):
    """A convolution with a norm, the mean, a linear layer with two heads."""

    def __init__(self, seed: int = 0, family: Family = "cnn", width: int = 6) -> None:
        torch.manual_seed(seed)
        layers = (nn.Conv3d(3, width, 3, padding=1), nn.BatchNorm3d(width), nn.ReLU())
        net = nn.Sequential(*layers, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(width, 8))
        super().__init__("tests/tiny", family, CLIP, HEADS, net)
        with torch.no_grad():
            net(torch.randn(4, 3, CLIP.frames, CLIP.size, CLIP.size))  # sets the norm's statistics
            net[-1].weight.mul_(20)
        self.eval()

    def features(self, clips: Tensor) -> Features:
        made = self.net[:3](clips)
        pooled = self.net[3:5](made)
        return Features(self.split_heads(self.net[5](pooled)), pooled, made)


def tiny_clips(count: int, seed: int = 1) -> Tensor:
    """Normalised clips."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, CLIP.frames, CLIP.size, CLIP.size, generator=generator)


def write_students(run: Run) -> None:
    """What `distill` leaves, but for the training: random students whose logits differ by clip."""
    samples, fingerprint = read_samples(run.samples_path), open_cache(run.cache_path).fingerprint
    facts = {"dataset": run.name, "classes": samples.classes, "cache": fingerprint}
    digests = {}
    for seed, variant in enumerate(("baseline", "student")):
        torch.manual_seed(seed)
        model = create_model(run.distill.student, samples.heads)
        clip = model.clip
        with torch.no_grad():
            model.train()(torch.randn(8, 3, clip.frames, clip.size, clip.size))
            model.net.blocks[-1].proj.weight.mul_(500)
        path = run.outputs / "distill" / f"{variant}.safetensors"
        save_weights(model, path, {"variant": variant, **facts})
        digests[variant] = weights_digest(model.net)
    record = {
        "cache_fingerprint": fingerprint,
        "config": run.distill.model_dump(mode="json"),
        "weights_sha256": digests,
    }
    Path(run.outputs, "distill", "distill.json").write_text(json.dumps(record))
