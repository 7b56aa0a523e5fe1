"""The embedded datasets: little articulated people, rendered here and encoded to H.264.

Every video is a function of (set, generator version, seed, split, index) and nothing else. The
demo's scenes are drawn at random here and move by `figure_motion`, the hard set's are drawn by
`figure_looks` and move by `figure_phrases`; `figure_painting` paints both.
"""

from __future__ import annotations

import colorsys
import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.datasets.figure_looks import draw_phrase
from pipeline.datasets.figure_motion import ACTIONS, Motion, Pose
from pipeline.datasets.figure_painting import (
    MARGIN,
    SIZE,
    SUPERSAMPLING,
    Body,
    Distractor,
    Scene,
    render_frames,
)
from pipeline.datasets.figure_phrases import PHRASES
from pipeline.processes import ProcessPool
from pipeline.samples import Sample

CLASSES: tuple[str, ...] = tuple(sorted(ACTIONS))
GENERATOR_VERSION = 1
HARD_VERSION = 1  # of the hard set
FRAME_RATES = (24, 25, 30)  # frames per second
DURATION_SEC = (2.0, 4.0)


@dataclass(frozen=True)
class FigureSet:
    """A set of rendered videos.

    Attributes:
        name: its ids and draws depend on it.
        version: raised whenever a pixel changes.
        classes: its actions, alphabetical; they take turns, so every split is balanced.
        draw: (random generator, split, action) -> the scene of one video.
    """

    name: str
    version: int
    classes: tuple[str, ...]
    draw: Callable[[np.random.Generator, str, str], Scene]

    def key(self, seed: int, split: str, index: int) -> str:
        """All that a video depends on."""
        return f"{self.name}/{self.version}/{seed}/{split}/{index}"

    def action(self, index: int) -> str:
        """The class of one video."""
        return self.classes[index % len(self.classes)]


def _draw_demo(rng: np.random.Generator, split: str, action: str) -> Scene:
    """Draw a scene of the demo: all splits look alike."""
    frame_rate = int(rng.choice(FRAME_RATES))
    frames = round(float(rng.uniform(*DURATION_SEC)) * frame_rate)
    ground = _colour(rng, dark=0.25, bright=0.85)
    motion = Motion(
        rate=float(rng.uniform(0.7, 1.5)),
        offset=float(rng.uniform()),
        amplitude=float(rng.uniform(0.85, 1.15)),
        rest=_draw_rest(rng),
        drift=float(rng.uniform(0.0, 0.15)),
        drift_rate=float(rng.uniform(0.1, 0.4)),
        duration=frames / frame_rate,
    )
    return Scene(
        action=action,
        frame_rate=frame_rate,
        frames=frames,
        body=_draw_body(rng, bright=float(np.mean(ground)) < 128),
        motion=motion,
        centre=(SIZE / 2 + float(rng.uniform(-8, 8)), SIZE * 0.55 + float(rng.uniform(-4, 4))),
        texture=_draw_texture(rng, ground),
        distractors=tuple(_draw_distractor(rng) for _ in range(int(rng.integers(0, 3)))),
        shake=np.stack(
            [
                rng.uniform(0.0, 0.6, 4),
                rng.uniform(0.0, 0.6, 4),
                rng.uniform(0.1, 1.5, 4),
                rng.uniform(0.0, 2 * math.pi, 4),
            ]
        ),
    )


def _draw_rest(rng: np.random.Generator) -> Pose:
    """The pose of all that the action leaves free: often one that another action passes through."""

    def sometimes(low: float, high: float, otherwise: float) -> float:
        chosen, value = rng.uniform() < 0.1, float(rng.uniform(low, high))
        return value if chosen else otherwise

    return Pose(
        upper_arm=(float(rng.uniform(0.1, 2.2)), float(rng.uniform(0.1, 2.2))),
        forearm=(float(rng.uniform(0.0, 2.0)), float(rng.uniform(0.0, 2.0))),
        thigh=(sometimes(0.3, 1.2, 0.1), sometimes(0.3, 1.2, 0.1)),
        heading=float(rng.uniform(-0.3, 0.3)) + sometimes(math.pi, math.pi, 0.0),
        torso=sometimes(0.5, 0.9, 1.0),
        crouch=sometimes(0.1, 0.7, 0.0),
    )


def _colour(rng: np.random.Generator, *, dark: float, bright: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(
        float(rng.uniform()), float(rng.uniform(0.1, 0.9)), float(rng.uniform(dark, bright))
    )
    return round(255 * red), round(255 * green), round(255 * blue)


def _draw_body(rng: np.random.Generator, *, bright: bool) -> Body:
    """A person who stands out: bright clothes on a dark ground, dark ones on a bright ground."""
    low, high = (0.6, 1.0) if bright else (0.05, 0.4)
    tone = float(rng.uniform(0.35, 1.0))
    return Body(
        height=float(rng.uniform(44, 54)),
        limb=float(rng.uniform(3.0, 4.4)),
        head=float(rng.uniform(0.075, 0.095)),
        skin=(round(250 * tone), round(200 * tone), round(165 * tone)),
        shirt=_colour(rng, dark=low, bright=high),
        trousers=_colour(rng, dark=low, bright=high),
        hair=_colour(rng, dark=0.05, bright=0.25)
        if tone > 0.65
        else _colour(rng, dark=0.8, bright=1.0),
        badge=_colour(rng, dark=0.05, bright=0.3)
        if bright
        else _colour(rng, dark=0.85, bright=1.0),
    )


def _draw_texture(rng: np.random.Generator, ground: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Value noise of three octaves around one colour, at drawing resolution."""
    side = (SIZE + 2 * MARGIN) * SUPERSAMPLING
    base = np.array(ground, dtype=np.float64)
    noise = np.zeros((side, side, 3))
    for cells, strength in ((4, 20.0), (11, 11.0), (29, 7.0)):
        grid = rng.normal(size=(cells, cells, 3)) * strength * rng.uniform(0.4, 1.0)
        for channel in range(3):
            layer = Image.fromarray(grid[..., channel].astype(np.float32))
            noise[..., channel] += np.asarray(layer.resize((side, side), Image.Resampling.BICUBIC))
    return np.clip(base + noise, 0, 255).astype(np.uint8)


def _draw_distractor(rng: np.random.Generator) -> Distractor:
    heading = float(rng.uniform(0, 2 * math.pi))
    speed = float(rng.uniform(0, 10))
    return Distractor(
        shape=str(rng.choice(["disc", "box", "bar"])),
        colour=_colour(rng, dark=0.2, bright=1.0),
        size=float(rng.uniform(3, 7)),
        start=(float(rng.uniform(0, SIZE)), float(rng.uniform(0, SIZE))),
        velocity=(speed * math.cos(heading), speed * math.sin(heading)),
        spin=float(rng.uniform(-3, 3)),
        in_front=bool(rng.uniform() < 0.3),
    )


DEMO = FigureSet("figures", GENERATOR_VERSION, CLASSES, _draw_demo)
HARD = FigureSet("figures_hard", HARD_VERSION, tuple(PHRASES), draw_phrase)
SETS = {"demo": DEMO, "hard": HARD}
"""By the name that a config gives as `prepare.set`."""


def scene_id(seed: int, split: str, index: int, of: FigureSet = DEMO) -> str:
    """A stable sample id; it changes whenever the pixels would, so caches never mix two sets."""
    digest = hashlib.sha256(of.key(seed, split, index).encode()).hexdigest()[:10]
    return f"{of.action(index)}-{digest}"


def draw_scene(seed: int, split: str, index: int, of: FigureSet = DEMO) -> Scene:
    """Draw the scene of one video."""
    digest = hashlib.sha256(of.key(seed, split, index).encode()).digest()
    return of.draw(np.random.default_rng(list(digest)), split, of.action(index))


def encode(frames: Iterator[NDArray[np.uint8]], path: Path, frame_rate: int) -> None:
    """Encode RGB frames to H.264 in MP4; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_path = path.with_name(f".{path.name}.partial")
    with av.open(str(partial_path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(frame_rate))
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        # x264's macroblock tree reads memory that nobody wrote: with it the bytes differ by chance.
        stream.options = {
            "preset": "veryfast",
            "crf": "20",
            "threads": "1",
            "x264-params": "mbtree=0",
        }
        for rgb in frames:
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    partial_path.replace(path)


def sample(seed: int, split: str, index: int, of: FigureSet = DEMO) -> Sample:
    """The row of the samples table for one video."""
    name = scene_id(seed, split, index, of)
    action = of.action(index)
    return Sample(
        sample_id=name,
        path=f"{split}/{action}/{name}.mp4",
        split=split,
        labels={"action": of.classes.index(action)},
    )


def render_one(root: Path, seed: int, split: str, index: int, of: FigureSet = DEMO) -> Sample:
    """Render one video unless it is there already."""
    row = sample(seed, split, index, of)
    path = root / row.path
    if not path.exists():
        scene = draw_scene(seed, split, index, of)
        encode(render_frames(scene), path, scene.frame_rate)
    return row


def render(
    root: Path, *, seed: int, split: str, count: int, workers: int, of: FigureSet = DEMO
) -> Iterator[Sample]:
    """Render `count` videos of one split below `root`, in parallel; yields their samples in order.

    Raises:
        OSError: the disk is full or not writable.
    """
    job = partial(render_one, root, seed, split, of=of)
    if workers <= 1:
        yield from map(job, range(count))
        return
    with ProcessPool(workers) as pool:
        yield from pool.map(job, range(count), chunksize=16)
