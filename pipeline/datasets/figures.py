"""The embedded dataset: little articulated people, rendered here and encoded to H.264.

Fourteen actions that a single frame does not give away: the arms and legs that an action leaves
free hold poses that other actions pass through, so what counts is what moves, how and in which
direction. Every video is a function of (generator version, seed, split, index) and nothing else.
"""

from __future__ import annotations

import colorsys
import hashlib
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.samples import Sample

GENERATOR_VERSION = 1
SIZE = 64  # pixels, width and height of a video
FRAME_RATES = (24, 25, 30)  # frames per second
DURATION_SEC = (2.0, 4.0)

_SUPERSAMPLING = 2  # drawn at twice the size, then averaged down
_MARGIN = 16  # texture around the frame, for a camera that moves
_LEFT, _RIGHT = 0, 1  # sides of the picture, not of the person


@dataclass(frozen=True)
class Pose:
    """Joint angles in radians (0 hangs down, positive lifts outward) and offsets in body units."""

    upper_arm: tuple[float, float]
    forearm: tuple[float, float]
    thigh: tuple[float, float] = (0.1, 0.1)
    shin: tuple[float, float] = (0.0, 0.0)
    x: float = 0.0
    y: float = 0.0
    heading: float = 0.0  # rotation about the vertical axis, 0 faces the camera
    torso: float = 1.0  # apparent torso length: a bow towards the camera shortens it
    crouch: float = 0.0  # 0 stands, 1 has the hips at the knees


@dataclass(frozen=True)
class Body:
    """What one person looks like; lengths in pixels of the final frame."""

    height: float
    limb: float
    head: float
    skin: tuple[int, int, int]
    shirt: tuple[int, int, int]
    trousers: tuple[int, int, int]
    hair: tuple[int, int, int]
    badge: tuple[int, int, int]  # on the chest: it tells front from back


@dataclass(frozen=True)
class Motion:
    """How one video performs its action: `phase(t) = offset + t · rate`, in cycles."""

    rate: float  # cycles per second
    offset: float
    amplitude: float
    rest: Pose
    drift: float  # of the free limbs, radians
    drift_rate: float
    duration: float  # seconds

    def cycle(self, time: float) -> float:
        """Phase in radians."""
        return 2 * math.pi * (self.offset + self.rate * time)

    def resting(self, time: float) -> Pose:
        """The free limbs: a random pose that sways slowly."""
        sway = self.drift * math.sin(2 * math.pi * (self.drift_rate * time + self.offset))
        left, right = self.rest.upper_arm
        return replace(self.rest, upper_arm=(left + sway, right - sway))


def _set(pair: tuple[float, float], limb: int, value: float) -> tuple[float, float]:
    return (value, pair[1]) if limb == _LEFT else (pair[0], value)


def _limb_on(side: int, pose: Pose) -> int:
    """The limb on that side of the picture: the other one where the person shows their back."""
    return side if math.cos(pose.heading) > 0 else 1 - side


def _wave(time: float, motion: Motion, side: int) -> Pose:
    pose = motion.resting(time)
    arm = _limb_on(side, pose)
    swing = 1.0 * motion.amplitude * math.sin(motion.cycle(time))
    return replace(
        pose,
        upper_arm=_set(pose.upper_arm, arm, 1.9),
        forearm=_set(pose.forearm, arm, 0.8 + swing),
    )


def _punch(time: float, motion: Motion, side: int) -> Pose:
    pose = motion.resting(time)
    arm = _limb_on(side, pose)
    reach = max(0.0, math.sin(motion.cycle(time))) ** 0.7  # out fast, a pause between
    return replace(
        pose,
        upper_arm=_set(pose.upper_arm, arm, 0.9 + 0.7 * reach * motion.amplitude),
        forearm=_set(pose.forearm, arm, 2.3 * (1 - reach)),
    )


def _kick(time: float, motion: Motion, side: int) -> Pose:
    pose = motion.resting(time)
    leg = _limb_on(side, pose)
    lift = max(0.0, math.sin(motion.cycle(time)))
    return replace(
        pose,
        thigh=_set(pose.thigh, leg, 0.1 + 1.2 * motion.amplitude * lift),
        shin=_set(pose.shin, leg, -0.5 * (1 - lift)),
    )


def _walk(time: float, motion: Motion, side: int) -> Pose:
    pose = motion.resting(time)
    step = 0.45 * math.sin(motion.cycle(time))
    direction = -1.0 if side == _LEFT else 1.0
    pace = 0.3 * motion.amplitude  # body heights per second
    return replace(
        pose,
        thigh=(0.05 + step, 0.05 + step),  # both outward, then both inward: the legs cross
        x=direction * pace * (time - motion.duration / 2),
        y=0.015 * abs(math.cos(motion.cycle(time))),
    )


def _turn(time: float, motion: Motion, side: int) -> Pose:
    direction = -1.0 if side == _LEFT else 1.0
    pose = motion.resting(time)
    return replace(pose, heading=pose.heading + direction * 0.6 * motion.cycle(time))


def _clap(time: float, motion: Motion) -> Pose:
    opening = 0.5 + 0.5 * math.sin(motion.cycle(time))
    upper = 0.5 + 0.7 * opening * motion.amplitude
    bend = 2.2 - 1.0 * opening * motion.amplitude
    return replace(motion.resting(time), upper_arm=(upper, upper), forearm=(bend, bend))


def _jump(time: float, motion: Motion) -> Pose:
    height = abs(math.sin(motion.cycle(time) / 2))
    return replace(
        motion.resting(time),
        y=0.16 * motion.amplitude * height,
        crouch=0.25 * (1 - height),
    )


def _squat(time: float, motion: Motion) -> Pose:
    depth = 0.5 - 0.5 * math.cos(motion.cycle(time))
    return replace(motion.resting(time), crouch=0.85 * motion.amplitude * depth)


def _bow(time: float, motion: Motion) -> Pose:
    depth = 0.5 - 0.5 * math.cos(motion.cycle(time))
    return replace(motion.resting(time), torso=1 - 0.65 * motion.amplitude * depth)


ACTIONS: dict[str, Callable[[float, Motion], Pose]] = {
    "bow": _bow,
    "clap": _clap,
    "jump": _jump,
    "kick_left": partial(_kick, side=_LEFT),
    "kick_right": partial(_kick, side=_RIGHT),
    "punch_left": partial(_punch, side=_LEFT),
    "punch_right": partial(_punch, side=_RIGHT),
    "squat": _squat,
    "turn_left": partial(_turn, side=_LEFT),
    "turn_right": partial(_turn, side=_RIGHT),
    "walk_left": partial(_walk, side=_LEFT),
    "walk_right": partial(_walk, side=_RIGHT),
    "wave_left": partial(_wave, side=_LEFT),
    "wave_right": partial(_wave, side=_RIGHT),
}
CLASSES: tuple[str, ...] = tuple(sorted(ACTIONS))


@dataclass(frozen=True)
class Distractor:
    """A shape that drifts through the picture, behind or in front of the person."""

    shape: str  # "disc", "box" or "bar"
    colour: tuple[int, int, int]
    size: float  # pixels
    start: tuple[float, float]  # pixels
    velocity: tuple[float, float]  # pixels per second
    spin: float  # radians per second
    in_front: bool


@dataclass(frozen=True)
class Scene:
    """Everything that decides one video."""

    action: str
    frame_rate: int
    frames: int
    body: Body
    motion: Motion
    centre: tuple[float, float]
    texture: NDArray[np.uint8] = field(repr=False)
    distractors: tuple[Distractor, ...]
    shake: NDArray[np.float64] = field(repr=False)  # (4, 4): amplitude x, y, rate, phase


def scene_id(seed: int, split: str, index: int) -> str:
    """A stable sample id; it changes whenever the pixels would, so caches never mix two sets."""
    key = f"figures/{GENERATOR_VERSION}/{seed}/{split}/{index}"
    digest = hashlib.sha256(key.encode()).hexdigest()[:10]
    return f"{CLASSES[index % len(CLASSES)]}-{digest}"


def draw_scene(seed: int, split: str, index: int) -> Scene:
    """Draw the scene of one video; the classes take turns, so every split is balanced."""
    key = f"figures/{GENERATOR_VERSION}/{seed}/{split}/{index}"
    rng = np.random.default_rng(list(hashlib.sha256(key.encode()).digest()))
    action = CLASSES[index % len(CLASSES)]
    frame_rate = int(rng.choice(FRAME_RATES))
    frames = round(float(rng.uniform(*DURATION_SEC)) * frame_rate)
    ground = _colour(rng, dark=0.25, bright=0.85)
    motion = Motion(
        rate=float(rng.uniform(0.7, 1.5)),
        offset=float(rng.uniform()),
        amplitude=float(rng.uniform(0.75, 1.1)),
        rest=_draw_rest(rng),
        drift=float(rng.uniform(0.0, 0.25)),
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
        distractors=tuple(_draw_distractor(rng) for _ in range(int(rng.integers(0, 4)))),
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
        chosen, value = rng.uniform() < 0.2, float(rng.uniform(low, high))
        return value if chosen else otherwise

    return Pose(
        upper_arm=(float(rng.uniform(0.1, 2.2)), float(rng.uniform(0.1, 2.2))),
        forearm=(float(rng.uniform(0.0, 2.0)), float(rng.uniform(0.0, 2.0))),
        thigh=(sometimes(0.3, 1.2, 0.1), sometimes(0.3, 1.2, 0.1)),
        heading=float(rng.uniform(-0.4, 0.4)) + sometimes(math.pi, math.pi, 0.0),
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
        height=float(rng.uniform(40, 52)),
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
    side = (SIZE + 2 * _MARGIN) * _SUPERSAMPLING
    base = np.array(ground, dtype=np.float64)
    noise = np.zeros((side, side, 3))
    for cells, strength in ((4, 26.0), (11, 15.0), (29, 9.0)):
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


def render_frames(scene: Scene) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames of a scene, each (SIZE, SIZE, 3) uint8 RGB."""
    texture = Image.fromarray(scene.texture)
    act = ACTIONS[scene.action]
    for index in range(scene.frames):
        time = index / scene.frame_rate
        shake_x, shake_y = _camera(scene.shake, time)
        left = round((_MARGIN + shake_x) * _SUPERSAMPLING)
        top = round((_MARGIN + shake_y) * _SUPERSAMPLING)
        side = SIZE * _SUPERSAMPLING
        canvas = texture.crop((left, top, left + side, top + side))
        draw = ImageDraw.Draw(canvas)
        for distractor in scene.distractors:
            if not distractor.in_front:
                _paint_distractor(draw, distractor, time)
        origin = (scene.centre[0] - shake_x, scene.centre[1] - shake_y)
        _paint_person(draw, scene.body, act(time, scene.motion), origin)
        for distractor in scene.distractors:
            if distractor.in_front:
                _paint_distractor(draw, distractor, time)
        yield np.asarray(canvas.reduce(_SUPERSAMPLING))


def _camera(shake: NDArray[np.float64], time: float) -> tuple[float, float]:
    wave = np.sin(2 * math.pi * shake[2] * time + shake[3])
    limit = _MARGIN - 1
    x, y = float(shake[0] @ wave), float(shake[1] @ wave)
    return max(-limit, min(limit, x)), max(-limit, min(limit, y))


def _paint_distractor(draw: ImageDraw.ImageDraw, item: Distractor, time: float) -> None:
    x = (item.start[0] + item.velocity[0] * time + SIZE / 2) % (2 * SIZE) - SIZE / 2
    y = (item.start[1] + item.velocity[1] * time + SIZE / 2) % (2 * SIZE) - SIZE / 2
    scale, radius = _SUPERSAMPLING, item.size / 2
    if item.shape == "disc":
        draw.ellipse(_box(x, y, radius), fill=item.colour)
        return
    angle = item.spin * time
    along = np.array([math.cos(angle), math.sin(angle)]) * item.size * 0.7
    across = np.array([-along[1], along[0]]) * (1.0 if item.shape == "box" else 0.25)
    corners = [along + across, along - across, -along - across, -along + across]
    draw.polygon([(scale * (x + c[0]), scale * (y + c[1])) for c in corners], fill=item.colour)


def _box(x: float, y: float, radius: float) -> tuple[float, float, float, float]:
    scale = _SUPERSAMPLING
    return scale * (x - radius), scale * (y - radius), scale * (x + radius), scale * (y + radius)


def _limb(
    draw: ImageDraw.ImageDraw,
    points: list[tuple[float, float]],
    width: float,
    colour: tuple[int, int, int],
) -> None:
    scaled = [(_SUPERSAMPLING * x, _SUPERSAMPLING * y) for x, y in points]
    draw.line(scaled, fill=colour, width=round(_SUPERSAMPLING * width), joint="curve")
    for x, y in (points[0], points[-1]):
        draw.ellipse(_box(x, y, width / 2), fill=colour)


def _paint_person(
    draw: ImageDraw.ImageDraw, body: Body, pose: Pose, origin: tuple[float, float]
) -> None:
    """Front view; `heading` turns it about the vertical axis by scaling what lies sideways."""
    unit = body.height
    facing, side_on = math.cos(pose.heading), math.sin(pose.heading)
    thigh = 0.24 * unit
    x = origin[0] + pose.x * unit
    hips_y = origin[1] + 0.04 * unit - pose.y * unit + pose.crouch * thigh
    shoulders_y = hips_y - 0.31 * unit * pose.torso

    def sideways(offset: float) -> float:
        return x + offset * facing

    for side, sign in ((_LEFT, -1.0), (_RIGHT, 1.0)):
        hip = (sideways(sign * 0.06 * unit), hips_y)
        # A crouch folds the leg: the knee goes out as the hips come down.
        bend = pose.thigh[side] + pose.crouch * 0.9
        knee = (
            hip[0] + sign * math.sin(bend) * thigh * facing,
            hip[1] + math.cos(bend) * thigh,
        )
        lower = bend + pose.shin[side] - pose.crouch * 1.3
        foot = (
            knee[0] + sign * math.sin(lower) * thigh * facing,
            knee[1] + math.cos(lower) * thigh,
        )
        _limb(draw, [hip, knee, foot], body.limb, body.trousers)
    torso = [(x, hips_y), (x, shoulders_y)]
    _limb(draw, torso, body.limb * (1.2 + 1.1 * abs(facing)), body.shirt)
    if facing > 0:
        chest = (x + side_on * 0.085 * unit, 0.6 * shoulders_y + 0.4 * hips_y)
        draw.ellipse(_box(*chest, 0.06 * unit), fill=body.badge)
    head = (x, shoulders_y - (0.06 + body.head) * unit * (0.35 + 0.65 * pose.torso))
    draw.ellipse(_box(*head, body.head * unit), fill=body.skin if facing > 0 else body.hair)
    if facing > 0:  # a nose, and hair above: the face says which way the body is turned
        nose = (head[0] + side_on * body.head * unit, head[1] + 0.02 * unit)
        draw.ellipse(_box(*nose, 0.05 * unit), fill=body.hair)
    for side, sign in ((_LEFT, -1.0), (_RIGHT, 1.0)):
        shoulder = (sideways(sign * 0.1 * unit), shoulders_y + 0.02 * unit)
        upper = pose.upper_arm[side]
        elbow = (
            shoulder[0] + sign * math.sin(upper) * 0.17 * unit * facing,
            shoulder[1] + math.cos(upper) * 0.17 * unit,
        )
        lower = upper + pose.forearm[side]
        hand = (
            elbow[0] + sign * math.sin(lower) * 0.17 * unit * facing,
            elbow[1] + math.cos(lower) * 0.17 * unit,
        )
        _limb(draw, [shoulder, elbow, hand], body.limb * 0.85, body.shirt)
        draw.ellipse(_box(*hand, body.limb * 0.6), fill=body.skin)


def encode(frames: Iterator[NDArray[np.uint8]], path: Path, frame_rate: int) -> None:
    """Encode RGB frames to H.264 in MP4; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_path = path.with_name(f".{path.name}.partial")
    with av.open(str(partial_path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(frame_rate))
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        stream.options = {"preset": "veryfast", "crf": "20", "threads": "1"}
        for rgb in frames:
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    partial_path.replace(path)


def sample(seed: int, split: str, index: int) -> Sample:
    """The row of the samples table for one video."""
    name = scene_id(seed, split, index)
    action = CLASSES[index % len(CLASSES)]
    return Sample(
        sample_id=name,
        path=f"{split}/{action}/{name}.mp4",
        split=split,
        labels={"action": CLASSES.index(action)},
    )


def render_one(root: Path, seed: int, split: str, index: int) -> Sample:
    """Render one video unless it is there already."""
    row = sample(seed, split, index)
    path = root / row.path
    if not path.exists():
        scene = draw_scene(seed, split, index)
        encode(render_frames(scene), path, scene.frame_rate)
    return row


def render(root: Path, *, seed: int, split: str, count: int, workers: int) -> Iterator[Sample]:
    """Render `count` videos of one split below `root`, in parallel; yields their samples in order.

    Raises:
        OSError: the disk is full or not writable.
    """
    job = partial(render_one, root, seed, split)
    if workers <= 1:
        yield from map(job, range(count))
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(job, range(count), chunksize=16)
