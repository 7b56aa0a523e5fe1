"""How the little people look: one scene → its frames, painted with PIL."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.datasets.figure_motion import ACTIONS, LEFT, RIGHT, Motion, Pose

SIZE = 64  # pixels, width and height of a video
SUPERSAMPLING = 2  # drawn at twice the size, then averaged down
MARGIN = 16  # texture around the frame, for a camera that moves


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


def render_frames(scene: Scene) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames of a scene, each (SIZE, SIZE, 3) uint8 RGB."""
    texture = Image.fromarray(scene.texture)
    act = ACTIONS[scene.action]
    for index in range(scene.frames):
        time = index / scene.frame_rate
        shake_x, shake_y = _camera(scene.shake, time)
        left = round((MARGIN + shake_x) * SUPERSAMPLING)
        top = round((MARGIN + shake_y) * SUPERSAMPLING)
        side = SIZE * SUPERSAMPLING
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
        yield np.asarray(canvas.reduce(SUPERSAMPLING))


def _camera(shake: NDArray[np.float64], time: float) -> tuple[float, float]:
    wave = np.sin(2 * math.pi * shake[2] * time + shake[3])
    limit = MARGIN - 1
    x, y = float(shake[0] @ wave), float(shake[1] @ wave)
    return max(-limit, min(limit, x)), max(-limit, min(limit, y))


def _paint_distractor(draw: ImageDraw.ImageDraw, item: Distractor, time: float) -> None:
    x = (item.start[0] + item.velocity[0] * time + SIZE / 2) % (2 * SIZE) - SIZE / 2
    y = (item.start[1] + item.velocity[1] * time + SIZE / 2) % (2 * SIZE) - SIZE / 2
    scale, radius = SUPERSAMPLING, item.size / 2
    if item.shape == "disc":
        draw.ellipse(_box(x, y, radius), fill=item.colour)
        return
    angle = item.spin * time
    along = np.array([math.cos(angle), math.sin(angle)]) * item.size * 0.7
    across = np.array([-along[1], along[0]]) * (1.0 if item.shape == "box" else 0.25)
    corners = [along + across, along - across, -along - across, -along + across]
    draw.polygon([(scale * (x + c[0]), scale * (y + c[1])) for c in corners], fill=item.colour)


def _box(x: float, y: float, radius: float) -> tuple[float, float, float, float]:
    scale = SUPERSAMPLING
    return scale * (x - radius), scale * (y - radius), scale * (x + radius), scale * (y + radius)


def _limb(
    draw: ImageDraw.ImageDraw,
    points: list[tuple[float, float]],
    width: float,
    colour: tuple[int, int, int],
) -> None:
    scaled = [(SUPERSAMPLING * x, SUPERSAMPLING * y) for x, y in points]
    draw.line(scaled, fill=colour, width=round(SUPERSAMPLING * width), joint="curve")
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

    for side, sign in ((LEFT, -1.0), (RIGHT, 1.0)):
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
        toe = (foot[0] + side_on * 0.1 * unit, foot[1])  # shoes point where the person looks
        _limb(draw, [foot, toe], body.limb * 0.8, body.badge)
    torso = [(x, hips_y), (x, shoulders_y)]
    _limb(draw, torso, body.limb * (1.2 + 1.1 * abs(facing)), body.shirt)
    if facing > 0:
        chest = (x + side_on * 0.085 * unit, 0.6 * shoulders_y + 0.4 * hips_y)
        draw.ellipse(_box(*chest, 0.06 * unit), fill=body.badge)
    head = (x, shoulders_y - (0.06 + body.head) * unit * (0.35 + 0.65 * pose.torso))
    tail = (head[0] - side_on * 1.3 * body.head * unit, head[1])
    nose = (head[0] + side_on * 1.1 * body.head * unit, head[1] + 0.02 * unit)
    # A ponytail behind and a nose in front: both say which way the body is turned.
    behind, ahead = (tail, body.hair), (nose, body.badge)
    if facing <= 0:
        behind, ahead = ahead, behind
    draw.ellipse(_box(*behind[0], 0.05 * unit), fill=behind[1])
    draw.ellipse(_box(*head, body.head * unit), fill=body.skin if facing > 0 else body.hair)
    draw.ellipse(_box(*ahead[0], 0.05 * unit), fill=ahead[1])
    for side, sign in ((LEFT, -1.0), (RIGHT, 1.0)):
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
