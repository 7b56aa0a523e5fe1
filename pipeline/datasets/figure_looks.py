"""The hard set's scenes: what people, grounds and cameras look like, other ones in the test split.

`SEEN` is what the train and val splits and the teachers' pool show, `HELD_OUT` what the split
`test` shows: no value of one is a value of the other.
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.datasets.figure_motion import Pose
from pipeline.datasets.figure_painting import (
    MARGIN,
    SIZE,
    SUPERSAMPLING,
    Body,
    Distractor,
    Scene,
)
from pipeline.datasets.figure_phrases import PHRASES, Performance

FRAME_RATES = (12, 15, 20)  # frames per second
DURATION_SEC = (2.0, 2.6)
_TEXTURE_SIDE = (SIZE + 2 * MARGIN) * SUPERSAMPLING

Range = tuple[float, float]
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Domain:
    """What some splits show; ranges of one domain do not meet those of the other.

    Attributes:
        heights: of bodies, pixels.
        limbs: their width, pixels.
        heads: radius, in heights.
        tones: of skin, 1 is the lightest.
        hues: of clothes, grounds and things: colours whose hue lies in one of these.
        textures: of grounds, by name.
        cameras: how they move, by name.
        distractors: shapes that drift by.
    """

    heights: Range
    limbs: Range
    heads: Range
    tones: Range
    hues: tuple[Range, ...]
    textures: tuple[str, ...]
    cameras: tuple[str, ...]
    distractors: tuple[str, ...]


SEEN = Domain(
    heights=(47.0, 54.0),
    limbs=(3.4, 4.4),
    heads=(0.075, 0.088),
    tones=(0.55, 1.0),
    hues=((0.0, 1 / 6), (2 / 6, 3 / 6), (4 / 6, 5 / 6)),
    textures=("clouds", "tiles", "slope"),
    cameras=("still", "handheld"),
    distractors=("disc", "box", "bar"),
)
HELD_OUT = Domain(
    heights=(41.0, 46.0),
    limbs=(2.8, 3.3),
    heads=(0.09, 0.1),
    tones=(0.35, 0.5),
    hues=((1 / 6, 2 / 6), (3 / 6, 4 / 6), (5 / 6, 1.0)),
    textures=("stripes", "dots"),
    cameras=("pan",),
    distractors=("triangle", "cross"),
)


def domain_of(split: str) -> Domain:
    """What a split shows."""
    return HELD_OUT if split == "test" else SEEN


@dataclass(frozen=True)
class Phrase(Scene):
    """A scene of the hard set: its clock is 0 in the middle, and may run backwards."""

    motion: Performance
    pan: tuple[float, float] = field(default=(0.0, 0.0))  # pixels per second

    def clock(self, index: int) -> float:
        """Seconds at one frame: with the opposite `clock` the video is this one reversed."""
        return PHRASES[self.action].clock * (index - (self.frames - 1) / 2) / self.frame_rate

    def pose(self, time: float) -> Pose:
        """The person."""
        return PHRASES[self.action].move(time, self.motion)

    def camera(self, time: float) -> tuple[float, float]:
        """Offset of the picture in pixels."""
        x, y = super().camera(time)
        return x + self.pan[0] * time, y + self.pan[1] * time


def draw_phrase(rng: np.random.Generator, split: str, action: str) -> Phrase:
    """Draw the scene of one video."""
    domain, phrase = domain_of(split), PHRASES[action]
    frame_rate = int(rng.choice(FRAME_RATES))
    frames = round(float(rng.uniform(*DURATION_SEC)) * frame_rate)
    ground = _colour(rng, domain, dark=0.25, bright=0.85)
    bright = float(np.mean(ground)) < 128
    motion = Performance(
        rate=float(rng.uniform(*phrase.rates)),
        offset=float(rng.uniform()),
        amplitude=float(rng.uniform(0.85, 1.1)),
        rest=_draw_rest(rng),
        drift=float(rng.uniform(0.0, 0.15)),
        drift_rate=float(rng.uniform(0.1, 0.4)),
        duration=frames / frame_rate,
        drift_offset=float(rng.uniform()),
        rise=float(rng.uniform(*phrase.rises)),
        side=int(rng.integers(2)),
        angle=float(rng.uniform(0, math.pi)),
    )
    shake, pan = _draw_camera(rng, str(rng.choice(domain.cameras)))
    return Phrase(
        action=action,
        frame_rate=frame_rate,
        frames=frames,
        body=_draw_body(rng, domain, bright=bright),
        motion=motion,
        centre=(SIZE / 2 + float(rng.uniform(-6, 6)), SIZE * 0.55 + float(rng.uniform(-3, 3))),
        texture=_draw_texture(rng, domain, str(rng.choice(domain.textures)), ground),
        distractors=tuple(_draw_distractor(rng, domain) for _ in range(int(rng.integers(0, 3)))),
        shake=shake,
        pan=pan,
    )


def _draw_rest(rng: np.random.Generator) -> Pose:
    """The pose of all that an action leaves free; one lamp, both or none may be lit."""
    return Pose(
        upper_arm=(float(rng.uniform(0.1, 2.2)), float(rng.uniform(0.1, 2.2))),
        forearm=(float(rng.uniform(0.0, 1.6)), float(rng.uniform(0.0, 1.6))),
        thigh=(float(rng.uniform(0.05, 0.3)), float(rng.uniform(0.05, 0.3))),
        heading=float(rng.uniform(-0.3, 0.3)),
        lamps=(float(rng.integers(2)), float(rng.integers(2))),
    )


def _colour(rng: np.random.Generator, domain: Domain, *, dark: float, bright: float) -> Colour:
    low, high = domain.hues[int(rng.integers(len(domain.hues)))]
    red, green, blue = colorsys.hsv_to_rgb(
        float(rng.uniform(low, high)),
        float(rng.uniform(0.2, 0.9)),
        float(rng.uniform(dark, bright)),
    )
    return round(255 * red), round(255 * green), round(255 * blue)


def _draw_body(rng: np.random.Generator, domain: Domain, *, bright: bool) -> Body:
    """A person who stands out: bright clothes on a dark ground, dark ones on a bright ground."""
    low, high = (0.6, 1.0) if bright else (0.05, 0.4)
    tone = float(rng.uniform(*domain.tones))
    shirt = _colour(rng, domain, dark=low, bright=high)
    against = (0.05, 0.25) if np.mean(shirt) > 110 else (0.85, 1.0)
    thing = (0.9, 1.0) if float(rng.uniform()) < 0.5 else (0.05, 0.15)
    return Body(
        height=float(rng.uniform(*domain.heights)),
        limb=float(rng.uniform(*domain.limbs)),
        head=float(rng.uniform(*domain.heads)),
        skin=(round(250 * tone), round(200 * tone), round(165 * tone)),
        shirt=shirt,
        trousers=_colour(rng, domain, dark=low, bright=high),
        hair=_colour(rng, domain, dark=0.05, bright=0.25)
        if tone > 0.65
        else _colour(rng, domain, dark=0.8, bright=1.0),
        badge=_colour(rng, domain, dark=against[0], bright=against[1]),
        thing=_colour(rng, domain, dark=thing[0], bright=thing[1]),
    )


def _draw_camera(
    rng: np.random.Generator, kind: str
) -> tuple[NDArray[np.float64], tuple[float, float]]:
    """Four waves (amplitude x and y in pixels, rate, phase), and a steady pan."""
    strength = 0.6 if kind == "handheld" else 0.0
    shake = np.stack(
        [
            rng.uniform(0.0, 1.0, 4) * strength,
            rng.uniform(0.0, 1.0, 4) * strength,
            rng.uniform(0.1, 1.5, 4),
            rng.uniform(0.0, 2 * math.pi, 4),
        ]
    )
    heading, speed = float(rng.uniform(0, 2 * math.pi)), float(rng.uniform(1.0, 5.0))
    if kind != "pan":
        return shake, (0.0, 0.0)
    return shake, (speed * math.cos(heading), 0.5 * speed * math.sin(heading))


def _draw_texture(
    rng: np.random.Generator, domain: Domain, kind: str, ground: Colour
) -> NDArray[np.uint8]:
    """A ground around one colour, at drawing resolution: (side, side, 3) uint8."""
    second = np.array(_colour(rng, domain, dark=0.25, bright=0.85), dtype=np.float64)
    base = np.array(ground, dtype=np.float64)
    # Not far from the ground's brightness, against which the person stands out.
    toward = (second - second.mean() + base.mean() - base) * 0.6
    return np.clip(base + _PATTERNS[kind](rng, toward), 0, 255).astype(np.uint8)


def _noise(rng: np.random.Generator, cells: int, strength: float) -> NDArray[np.float64]:
    """Value noise of one octave, (side, side, 3)."""
    side = (_TEXTURE_SIDE, _TEXTURE_SIDE)
    grid = (rng.normal(size=(cells, cells, 3)) * strength).astype(np.float32)
    layers = [
        Image.fromarray(grid[..., channel]).resize(side, Image.Resampling.BICUBIC)
        for channel in range(3)
    ]
    return np.stack([np.asarray(layer) for layer in layers], axis=-1).astype(np.float64)


def _clouds(rng: np.random.Generator, toward: NDArray[np.float64]) -> NDArray[np.float64]:
    return _noise(rng, 4, 20.0) + _noise(rng, 11, 10.0) + _noise(rng, 29, 6.0)


def _tiles(rng: np.random.Generator, toward: NDArray[np.float64]) -> NDArray[np.float64]:
    cells = int(rng.integers(5, 14))
    edges = np.arange(_TEXTURE_SIDE) * cells // _TEXTURE_SIDE
    grid = rng.normal(size=(cells, cells, 1)) * 14.0 + rng.uniform(size=(cells, cells, 1)) * toward
    return np.asarray(grid[edges][:, edges], dtype=np.float64)


def _across(rng: np.random.Generator) -> NDArray[np.float64]:
    """Distance along a random direction in pixels of the video, (side, side, 1)."""
    angle = float(rng.uniform(0, math.pi))
    along = (np.arange(_TEXTURE_SIDE) - _TEXTURE_SIDE / 2) / SUPERSAMPLING
    return (along[None, :, None] * math.cos(angle)) + (along[:, None, None] * math.sin(angle))


def _slope(rng: np.random.Generator, toward: NDArray[np.float64]) -> NDArray[np.float64]:
    return _across(rng) / (SIZE + 2 * MARGIN) * (toward + 40.0) + _noise(rng, 23, 8.0)


def _stripes(rng: np.random.Generator, toward: NDArray[np.float64]) -> NDArray[np.float64]:
    wave = np.sin(2 * math.pi * _across(rng) / float(rng.uniform(7, 20)))
    return wave * (10.0 + 0.5 * toward)


def _dots(rng: np.random.Generator, toward: NDArray[np.float64]) -> NDArray[np.float64]:
    gap, share = float(rng.uniform(7, 14)), float(rng.uniform(0.2, 0.35))
    along = np.arange(_TEXTURE_SIDE) / SUPERSAMPLING
    off = (along + float(rng.uniform(0, gap))) % gap / gap - 0.5
    inside = (off[None, :] ** 2 + off[:, None] ** 2) < share**2
    return inside[..., None] * (toward + 22.0)


_PATTERNS = {
    "clouds": _clouds,
    "tiles": _tiles,
    "slope": _slope,
    "stripes": _stripes,
    "dots": _dots,
}


def _draw_distractor(rng: np.random.Generator, domain: Domain) -> Distractor:
    heading, speed = float(rng.uniform(0, 2 * math.pi)), float(rng.uniform(0, 10))
    return Distractor(
        shape=str(rng.choice(domain.distractors)),
        colour=_colour(rng, domain, dark=0.2, bright=1.0),
        size=float(rng.uniform(3, 7)),
        start=(float(rng.uniform(0, SIZE)), float(rng.uniform(0, SIZE))),
        velocity=(speed * math.cos(heading), speed * math.sin(heading)),
        spin=float(rng.uniform(-3, 3)),
        in_front=bool(rng.uniform() < 0.3),
    )
