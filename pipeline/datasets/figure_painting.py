"""How the little people look: one scene → its frames, painted with PIL."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.datasets.figure_motion import ACTIONS, LEFT, RIGHT, Held, Motion, Pose

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
    thing: tuple[int, int, int] = (0, 0, 0)  # what a hand holds


@dataclass(frozen=True)
class Distractor:
    """A shape that drifts through the picture, behind or in front of the person."""

    shape: str  # "disc", "box", "bar", "triangle" or "cross"
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

    def clock(self, index: int) -> float:
        """Seconds at one frame."""
        return index / self.frame_rate

    def pose(self, time: float) -> Pose:
        """The person."""
        return ACTIONS[self.action](time, self.motion)

    def camera(self, time: float) -> tuple[float, float]:
        """Offset of the picture in pixels."""
        wave = np.sin(2 * math.pi * self.shake[2] * time + self.shake[3])
        return float(self.shake[0] @ wave), float(self.shake[1] @ wave)


def render_frames(scene: Scene) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames of a scene, each (SIZE, SIZE, 3) uint8 RGB."""
    texture = Image.fromarray(scene.texture)
    for index in range(scene.frames):
        time = scene.clock(index)
        shake_x, shake_y = map(_limited, scene.camera(time))
        left = round((MARGIN + shake_x) * SUPERSAMPLING)
        top = round((MARGIN + shake_y) * SUPERSAMPLING)
        side = SIZE * SUPERSAMPLING
        canvas = texture.crop((left, top, left + side, top + side))
        draw = ImageDraw.Draw(canvas)
        for distractor in scene.distractors:
            if not distractor.in_front:
                _paint_distractor(draw, distractor, time)
        origin = (scene.centre[0] - shake_x, scene.centre[1] - shake_y)
        _paint_person(draw, scene.body, scene.pose(time), origin)
        for distractor in scene.distractors:
            if distractor.in_front:
                _paint_distractor(draw, distractor, time)
        yield np.asarray(canvas.reduce(SUPERSAMPLING))


def _limited(offset: float) -> float:
    limit = MARGIN - 1
    return max(-limit, min(limit, offset))


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
    if item.shape == "triangle":
        corners = [2 * along, -along + 4 * across, -along - 4 * across]
    draw.polygon([(scale * (x + c[0]), scale * (y + c[1])) for c in corners], fill=item.colour)
    if item.shape == "cross":
        turned = [(-c[1], c[0]) for c in corners]
        draw.polygon([(scale * (x + c[0]), scale * (y + c[1])) for c in turned], fill=item.colour)


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
        _paint_chest(draw, body, pose, (x + side_on * 0.085 * unit, shoulders_y, hips_y))
    head = (
        x + pose.head[0] * unit,
        shoulders_y - (0.06 + body.head) * unit * (0.35 + 0.65 * pose.torso) + pose.head[1] * unit,
    )
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
        if pose.held is not None and pose.held.side == side:
            _paint_held(draw, body, pose.held, hand)


def _paint_chest(
    draw: ImageDraw.ImageDraw, body: Body, pose: Pose, chest: tuple[float, float, float]
) -> None:
    """A badge, or two lamps that show where they are lit."""
    x, shoulders_y, hips_y = chest
    if pose.lamps is None:
        middle = (x, 0.6 * shoulders_y + 0.4 * hips_y)
        draw.ellipse(_box(*middle, 0.06 * body.height), fill=body.badge)
        return
    for share, lit in zip((0.3, 0.85), pose.lamps, strict=True):
        middle = (x, (1 - share) * shoulders_y + share * hips_y)
        if lit:
            draw.ellipse(_box(*middle, 0.065 * body.height), fill=body.badge)


def _paint_held(
    draw: ImageDraw.ImageDraw, body: Body, held: Held, hand: tuple[float, float]
) -> None:
    unit, scale = body.height, SUPERSAMPLING
    if held.thing == "ball":
        draw.ellipse(_box(*hand, 0.065 * unit), fill=body.thing)
    elif held.thing == "ring":
        draw.ellipse(
            _box(*hand, 0.085 * unit), outline=body.thing, width=round(scale * 0.03 * unit)
        )
    else:
        x, y = math.cos(held.angle) * 0.12 * unit, math.sin(held.angle) * 0.12 * unit
        _limb(
            draw,
            [(hand[0] - x, hand[1] - y), (hand[0] + x, hand[1] + y)],
            0.05 * unit,
            body.thing,
        )
