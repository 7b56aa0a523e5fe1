"""The hard set's 48 actions: body part × movement × direction × rhythm, as poses over time.

A scene's clock is 0 in the middle of its video. Two actions that differ in direction, or as `snap`
and `drag`, are one movement whose clock runs forwards or backwards: their videos hold the very same
frames in reversed order, so that no model that ignores the order can tell them apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple

from pipeline.datasets.figure_motion import LEFT, RIGHT, Held, Motion, Pose

Kind = Literal["rhythm", "order", "detail", "detail and order"]
THINGS = ("ball", "bar", "ring")  # what a hand holds


@dataclass(frozen=True)
class Performance(Motion):
    """How one video performs its action; time is that of the scene's clock."""

    drift_offset: float  # cycles
    rise: float  # share of a cycle in which a movement goes out; it comes back in the rest
    side: int  # the hand that holds something, where the action does not say it
    angle: float  # of what it holds, radians

    def part(self, time: float) -> float:
        """The part of the cycle that is over, in [0, 1)."""
        return (self.offset + self.rate * time) % 1.0

    def height(self, time: float) -> float:
        """How far out a movement is, in [0, 1].

        A cycle spends as much time in each height whatever `rise` and `rate` are.
        """
        part = self.part(time)
        way = part / self.rise if part < self.rise else (1 - part) / (1 - self.rise)
        return 0.5 - 0.5 * math.cos(math.pi * way)

    def beats(self, time: float) -> tuple[float, float]:
        """How far out two movements are, one after the other: first, second, a rest."""
        beat, part = divmod(3 * self.part(time), 1.0)
        out = 0.5 - 0.5 * math.cos(2 * math.pi * part)
        return (out if beat == 0 else 0.0), (out if beat == 1 else 0.0)

    def resting(self, time: float) -> Pose:
        """The free limbs: a random pose that sways slowly, by no phase of the action."""
        sway = self.drift * math.sin(2 * math.pi * (self.drift_rate * time + self.drift_offset))
        left, right = self.rest.upper_arm
        return replace(self.rest, upper_arm=(left + sway, right - sway))


Movement = Callable[[float, Performance], Pose]


class Action(NamedTuple):
    """One class.

    Attributes:
        part: of the body.
        movement: what it does.
        direction: which way, or in which order; empty where there is no other way.
        rhythm: `slow`, `quick`, `snap` (out fast, back slowly), `drag` (out slowly) or `even`.
        move: the poses over time.
        rates: cycles per second, least and greatest.
        rises: share of a cycle that goes out, least and greatest.
        clock: 1, or -1 where the movement runs backwards.
    """

    part: str
    movement: str
    direction: str
    rhythm: str
    move: Movement
    rates: tuple[float, float]
    rises: tuple[float, float] = (0.5, 0.5)
    clock: int = 1

    @property
    def name(self) -> str:
        """Of the class."""
        rhythm = "" if self.rhythm == "even" else self.rhythm
        return "_".join(filter(None, (self.part, self.movement, self.direction, rhythm)))

    @property
    def frame_group(self) -> str:
        """Actions of one group share the distribution of single frames."""
        return f"{self.part}_{self.movement}"

    @property
    def bag_group(self) -> str:
        """Actions of one group share the distribution of unordered sets of frames."""
        own_pace = self.rhythm if self.rhythm in ("slow", "quick") else ""
        return "_".join(filter(None, (self.part, self.movement, own_pace)))

    @property
    def kind(self) -> Kind:
        """What telling it from its nearest neighbours needs."""
        if self.part in ("hand", "head", "lamps"):
            return "detail and order" if self.direction else "detail"
        return "order" if self.direction else "rhythm"


def _set(pair: tuple[float, float], limb: int, value: float) -> tuple[float, float]:
    return (value, pair[1]) if limb == LEFT else (pair[0], value)


def _raise_arm(time: float, how: Performance, side: int, out: float | None = None) -> Pose:
    pose = how.resting(time)
    out = how.height(time) if out is None else out
    return replace(
        pose,
        upper_arm=_set(pose.upper_arm, side, 0.2 + 2.2 * how.amplitude * out),
        forearm=_set(pose.forearm, side, 0.25),
    )


def _circle(time: float, how: Performance, side: int) -> Pose:
    pose, turn = how.resting(time), how.cycle(time)
    return replace(
        pose,
        upper_arm=_set(pose.upper_arm, side, 1.3 + 0.6 * how.amplitude * math.cos(turn)),
        forearm=_set(pose.forearm, side, 0.6 + 1.0 * how.amplitude * math.sin(turn)),
    )


def _kick(time: float, how: Performance, side: int, out: float | None = None) -> Pose:
    pose = how.resting(time)
    out = how.height(time) if out is None else out
    return replace(
        pose,
        thigh=_set(pose.thigh, side, 0.1 + 1.15 * how.amplitude * out),
        shin=_set(pose.shin, side, -0.4 * (1 - out)),
    )


def _squat(time: float, how: Performance) -> Pose:
    return replace(how.resting(time), crouch=0.85 * how.amplitude * how.height(time))


def _bow(time: float, how: Performance) -> Pose:
    return replace(how.resting(time), torso=1 - 0.6 * how.amplitude * how.height(time))


def _arms_in_turn(time: float, how: Performance) -> Pose:
    first, second = how.beats(time)
    left, right = _raise_arm(time, how, LEFT, first), _raise_arm(time, how, RIGHT, second)
    return replace(
        left,
        upper_arm=(left.upper_arm[LEFT], right.upper_arm[RIGHT]),
        forearm=(left.forearm[LEFT], right.forearm[RIGHT]),
    )


def _legs_in_turn(time: float, how: Performance) -> Pose:
    first, second = how.beats(time)
    left, right = _kick(time, how, LEFT, first), _kick(time, how, RIGHT, second)
    return replace(
        left,
        thigh=(left.thigh[LEFT], right.thigh[RIGHT]),
        shin=(left.shin[LEFT], right.shin[RIGHT]),
    )


def _squat_and_raise(time: float, how: Performance) -> Pose:
    first, second = how.beats(time)
    arm = 0.2 + 2.2 * how.amplitude * second
    return replace(
        how.resting(time),
        crouch=0.85 * how.amplitude * first,
        upper_arm=(arm, arm),
        forearm=(0.25, 0.25),
    )


def _arm_and_leg(time: float, how: Performance) -> Pose:
    first, second = how.beats(time)
    arm, leg = _raise_arm(time, how, LEFT, first), _kick(time, how, RIGHT, second)
    return replace(arm, thigh=leg.thigh, shin=leg.shin)


def _turn(time: float, how: Performance) -> Pose:
    return replace(how.resting(time), heading=how.cycle(time))


def _walk(time: float, how: Performance) -> Pose:
    step = 0.45 * math.sin(2 * how.cycle(time))
    pace = 0.26 * how.amplitude  # body heights per second
    return replace(
        how.resting(time),
        thigh=(0.05 + step, 0.05 + step),  # both outward, then both inward: the legs cross
        x=pace * time,
    )


def _lift(time: float, how: Performance, thing: str) -> Pose:
    return replace(_raise_arm(time, how, how.side), held=Held(thing, how.side, how.angle))


def _wave(time: float, how: Performance, thing: str) -> Pose:
    pose = how.resting(time)
    swing = how.amplitude * math.sin(how.cycle(time))
    return replace(
        pose,
        upper_arm=_set(pose.upper_arm, how.side, 1.5),
        forearm=_set(pose.forearm, how.side, 0.8 + 0.8 * swing),
        held=Held(thing, how.side, how.angle),
    )


def _spin(time: float, how: Performance) -> Pose:
    angle = how.cycle(time) / 2  # a bar looks the same after half a turn
    return replace(how.resting(time), held=Held("bar", how.side, angle))


def _nod(time: float, how: Performance) -> Pose:
    return replace(how.resting(time), head=(0.0, 0.1 * how.amplitude * how.height(time)))


def _roll(time: float, how: Performance) -> Pose:
    first, second = how.beats(time)
    return replace(how.resting(time), head=(0.11 * how.amplitude * (second - first), 0.0))


def _lamps(time: float, how: Performance) -> Pose:
    first, second = how.beats(time)
    return replace(how.resting(time), lamps=(float(first > 0.1), float(second > 0.1)))


_SLOW, _QUICK, _SNAP = (0.53, 0.67), (1.35, 1.8), (0.75, 1.0)
_PHRASE, _CIRCLE, _TURN, _STEP = (0.58, 0.72), (0.7, 1.1), (0.45, 0.7), (0.5, 0.75)
_FAST_RISE = (0.16, 0.24)


def _paces(part: str, movement: str, move: Movement) -> list[Action]:
    return [
        Action(part, movement, "", "slow", move, _SLOW),
        Action(part, movement, "", "quick", move, _QUICK),
    ]


def _snaps(part: str, movement: str, move: Movement) -> list[Action]:
    return [
        Action(part, movement, "", "snap", move, _SNAP, _FAST_RISE),
        Action(part, movement, "", "drag", move, _SNAP, _FAST_RISE, clock=-1),
    ]


def _ways(
    part: str,
    movement: str,
    directions: tuple[str, str],
    move: Movement,
    rates: tuple[float, float] = _PHRASE,
) -> list[Action]:
    forwards, backwards = directions
    return [
        Action(part, movement, forwards, "even", move, rates),
        Action(part, movement, backwards, "even", move, rates, clock=-1),
    ]


def _all_actions() -> list[Action]:
    found: list[Action] = []
    for side, name in ((LEFT, "left"), (RIGHT, "right")):
        raising, circling = partial(_raise_arm, side=side), partial(_circle, side=side)
        found += _paces(f"{name}_arm", "raise", raising) + _snaps(f"{name}_arm", "raise", raising)
        found += _ways(f"{name}_arm", "circle", ("outward", "inward"), circling, _CIRCLE)
        found += _snaps(f"{name}_leg", "kick", partial(_kick, side=side))
    found += _paces("body", "squat", _squat) + _snaps("body", "squat", _squat)
    found += _snaps("body", "bow", _bow)
    found += _ways("arms", "raise", ("left_first", "right_first"), _arms_in_turn)
    found += _ways("legs", "kick", ("left_first", "right_first"), _legs_in_turn)
    found += _ways("body", "squat_and_raise", ("squat_first", "raise_first"), _squat_and_raise)
    found += _ways("body", "raise_and_kick", ("raise_first", "kick_first"), _arm_and_leg)
    found += _ways("body", "turn", ("right", "left"), _turn, _TURN)
    found += _ways("body", "walk", ("right", "left"), _walk, _STEP)
    for thing in THINGS:
        for movement, move, rates in (("lift", _lift, _SLOW), ("wave", _wave, _SNAP)):
            moving = partial(move, thing=thing)
            found.append(Action("hand", f"{movement}_{thing}", "", "even", moving, rates))
    found += _ways("hand", "spin_bar", ("right", "left"), _spin, _CIRCLE)
    found += _paces("head", "nod", _nod)
    found += _ways("head", "roll", ("left_first", "right_first"), _roll)
    found += _ways("lamps", "blink", ("upper_first", "lower_first"), _lamps)
    return sorted(found, key=lambda action: action.name)


PHRASES: dict[str, Action] = {action.name: action for action in _all_actions()}


def order_blind_bound() -> float:
    """The most accuracy that a model of unordered frames can have on balanced classes."""
    return len({action.bag_group for action in PHRASES.values()}) / len(PHRASES)


def single_frame_bound() -> float:
    """The most accuracy that a model of one frame can have on balanced classes."""
    return len({action.frame_group for action in PHRASES.values()}) / len(PHRASES)
