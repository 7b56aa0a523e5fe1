"""How the little people move: fourteen actions as poses over time.

A single frame does not give an action away: what it leaves free holds poses that other actions
pass through, so what counts is what moves, how and in which direction.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

LEFT, RIGHT = 0, 1  # sides of the picture, not of the person


@dataclass(frozen=True)
class Held:
    """What a hand holds."""

    thing: str  # "ball", "bar" or "ring"
    side: int  # of the picture
    angle: float  # radians, of a bar


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
    head: tuple[float, float] = (0.0, 0.0)  # moved right and down
    held: Held | None = None
    lamps: tuple[float, float] | None = None  # on the chest, upper and lower: 0 dark, 1 lit


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
    return (value, pair[1]) if limb == LEFT else (pair[0], value)


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
    direction = -1.0 if side == LEFT else 1.0
    pace = 0.3 * motion.amplitude  # body heights per second
    return replace(
        pose,
        thigh=(0.05 + step, 0.05 + step),  # both outward, then both inward: the legs cross
        x=direction * pace * (time - motion.duration / 2),
        y=0.015 * abs(math.cos(motion.cycle(time))),
    )


def _turn(time: float, motion: Motion, side: int) -> Pose:
    direction = -1.0 if side == LEFT else 1.0
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
    "kick_left": partial(_kick, side=LEFT),
    "kick_right": partial(_kick, side=RIGHT),
    "punch_left": partial(_punch, side=LEFT),
    "punch_right": partial(_punch, side=RIGHT),
    "squat": _squat,
    "turn_left": partial(_turn, side=LEFT),
    "turn_right": partial(_turn, side=RIGHT),
    "walk_left": partial(_walk, side=LEFT),
    "walk_right": partial(_walk, side=RIGHT),
    "wave_left": partial(_wave, side=LEFT),
    "wave_right": partial(_wave, side=RIGHT),
}
