"""The configs of the paper's pairs at full size: stretches of real clips, random weights."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cache import open_cache
from chain_making import options
from pipeline.config import Run
from pipeline.config_file import load_config
from pipeline.datasets.k400 import class_names
from pipeline.models import create_model, model_entry
from pipeline.samples import Sample, build_samples, write_samples
from pipeline.weights import save_weights
from stages.distill import Options, distill
from stages.evaluate import evaluate
from stages.extract import extract
from stages.teachers import features
from video_making import write_video

CONFIGS = Path(__file__).parents[1] / "configs"
CLIPS = Path(__file__).parents[2] / "shared" / "data" / "clips"
GRID = (8, 7, 7)  # of both teachers' maps: the projection wants more vectors than channels
# Millions of parameters, 10⁹ multiply-adds of one clip of the network's own size.
PUBLISHED = {
    "torchvision/mvit_v2_s": (34.54, 64.46),
    "pytorchvideo/x3d_s": (3.79, 2.82),
    "pytorchvideo/slowfast_r50": (34.57, 50.6),
}


class Pair(NamedTuple):
    """A config, and what it should name: two teachers and their student.

    `stored` says whether the student's clips are cached or decoded; `samples` are as many as the
    projection needs, and the student is trained on three of them.
    """

    config: str
    vit: str
    cnn: str
    student: str
    stored: bool
    samples: int


PAIRS = [
    Pair(
        "k400",
        "torchvision/mvit_v2_s",
        "pytorchvideo/x3d_m",
        "pytorchvideo/x3d_s",
        stored=True,
        samples=3,
    ),
    Pair(
        "k400_slowfast",
        "torchvision/mvit_v2_s",
        "pytorchvideo/slowfast_r101",
        "pytorchvideo/slowfast_r50",
        stored=False,
        samples=6,
    ),
]


def full_size(folder: Path, pair: Pair) -> Run:
    """The pair's own config, made small: few samples of one view, one epoch, weights of a file."""
    text = (CONFIGS / f"{pair.config}.yaml").read_text(encoding="utf-8")
    for old, new in (
        (r"weights: published", "weights: {role}.safetensors"),
        (r"count: 4", "count: 1"),
        (r"grid: \[2, 7, 7\]", f"grid: {list(GRID)}"),
        (r"samples: 2048", f"samples: {pair.samples}"),
        (r"clips: \[\]", f"clips: [{pair.student if pair.stored else ''}]"),
        (r"chunk_samples: 1024", "chunk_samples: 2"),
        (r"epochs: 60, batch_size: 64", "epochs: 1, batch_size: 3"),
        (r"temperature: 2.0", f"temperature: 2.0\n  fraction: {3 / pair.samples}"),
        (r"protocol: 10x3", "protocol: centre"),
    ):
        assert re.search(old, text), old
        roles = iter(("vit", "cnn"))
        text = re.sub(old, lambda _: new.replace("{role}", next(roles, "")), text)  # noqa: B023
    path = folder / "configs" / f"{pair.config}.yaml"
    path.parent.mkdir()
    path.write_text(text)
    run = load_config(path)
    assert (run.teach.vit.model, run.teach.cnn.model) == (pair.vit, pair.cnn)
    assert run.distill.student == pair.student
    classes = class_names()
    label = classes.index("arm wrestling")
    rows = [
        Sample(f"{name}-{start}", name, "train", {"action": label}, start, start + 3)
        for name, start in list(zip(("a.mp4", "b.avi") * 3, (0, 0.5, 3, 1, 6, 2), strict=True))
    ][: pair.samples]
    rows.append(Sample("whole", "a.mp4", "val", {"action": label}))
    root = Path(run.prepare.root)
    root.mkdir(parents=True)
    real = {"a.mp4": CLIPS / "arm_wrestling.mp4", "b.avi": CLIPS / "mpeg4_25fps.avi"}
    for name, clip in real.items():
        if clip.exists():
            (root / name).symlink_to(clip)
        else:  # of their form
            codec = "libx264" if name == "a.mp4" else "mpeg4"
            write_video(root / name, codec=codec, frames=260, rate=28, size=(340, 256))
    write_samples(build_samples("k400", {"action": classes}, rows), run.samples_path)
    for teacher in (run.teach.vit, run.teach.cnn):
        torch.manual_seed(0)
        save_weights(create_model(teacher.model, 400), Path(teacher.weights), {})
    return run


def losses(run: Run, variant: str) -> dict[str, float]:
    """The last epoch's row of a training log."""
    with (run.outputs / "distill" / f"{variant}.csv").open() as file:
        return {name: float(value) for name, value in list(csv.DictReader(file))[-1].items()}


def run_chain(run: Run, device: torch.device) -> None:
    """Extract → distill one epoch → evaluate."""
    extract(run, replace(options(run, views=1), batch_size=1, device=device))
    distill(run, Options(run.cache_path, device, 0))
    evaluate(run, device=device, decoders=0, batch_size=1)


def check_chain(run: Run, pair: Pair) -> None:
    """What must be true of a pair's cache, student and metrics."""
    cache = open_cache(run.cache_path)
    vit, cnn, student = (create_model(name, 400) for name in (pair.vit, pair.cnn, pair.student))
    fields = {name: field.shape for name, field in cache.fields.items()}
    assert fields["vit/logits/action"] == fields["cnn/logits/action"] == (400,)
    assert fields["vit/pooled"] == (768,) == (vit.pooled_channels,)
    assert fields["cnn/pooled"] == (cnn.pooled_channels,)
    assert fields["residual"] == (64, *GRID)
    clip = model_entry(pair.student).clip
    stored = {f"clip/{pair.student}": (clip.frames, clip.size, clip.size, 3)}
    assert {name: shape for name, shape in fields.items() if "clip" in name} == (
        stored if pair.stored else {}
    )
    rows = cache.read(np.arange(pair.samples), np.zeros(pair.samples, int))
    assert (rows["status"] == 1).all()
    for role in ("vit", "cnn"):
        logits = rows[f"{role}/logits/action"].astype(np.float64)
        assert np.isfinite(logits).all()
        assert (logits < 0).any()  # no probabilities
    assert np.mean(rows["residual"].astype(np.float64) ** 2) == pytest.approx(1, rel=0.05)
    terms = losses(run, "student")
    for name in ("ce", "kd", "sdd", "rkd"):
        assert np.isfinite(terms[name])
        assert terms[name] > 0
    assert 0 < terms["vit_weight"] < 1
    metrics = json.loads((run.outputs / "evaluate" / "metrics.json").read_text())
    assert metrics["videos"] == 1
    plain = {name: tensor.shape for name, tensor in student.net.state_dict().items()}
    for variant in ("baseline", "student"):
        saved = load_file(run.outputs / "distill" / f"{variant}.safetensors")
        assert {name: tensor.shape for name, tensor in saved.items()} == plain
    for role, name in (("vit", pair.vit), ("student", pair.student)):
        parameters, flops = PUBLISHED[name]
        assert metrics[role]["parameters"] / 1e6 == pytest.approx(parameters, rel=0.005)
        assert metrics[role]["flops"] / 1e9 == pytest.approx(flops, rel=0.01)


DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
        ],
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.student.partition("/")[2])
def test_a_pair_goes_through_the_whole_chain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pair: Pair, device: str
) -> None:
    monkeypatch.chdir(tmp_path)
    run = full_size(tmp_path, pair)
    run_chain(run, torch.device(device))
    check_chain(run, pair)


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["torchvision/mvit_v2_s", "pytorchvideo/x3d_s"])
def test_bfloat16_outputs_are_those_of_float32_but_for_its_rounding(name: str, device: str) -> None:
    """8 bits of mantissa: a rounding is up to 2⁻⁹; these networks have some hundred of them."""
    torch.manual_seed(0)
    model = create_model(name, 400).eval().to(device)
    clip = model.clip
    shape = (2, clip.frames, clip.size, clip.size, 3)
    clips = torch.from_numpy(np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8))
    exact, close = (features(model, clips, precision) for precision in ("fp32", "bf16"))
    for whole, half in (
        (exact.logits["action"], close.logits["action"]),
        (exact.pooled, close.pooled),
        (exact.map, close.map),
    ):
        assert whole.dtype == half.dtype == torch.float32
        now, then = half.flatten(1).double(), whole.flatten(1).double()
        rms = then.square().mean(1, keepdim=True).sqrt()
        error = (now - then).square().mean(1).sqrt() / rms[:, 0]
        assert 0 < float(error.max()) < 0.03
