"""What making rows takes: the work, the seconds of each part, and the hours that follow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Work:
    """What is to be made.

    Attributes:
        samples: those that are decoded.
        views: those that each teacher sees.
        clip_views: those whose clips are stored.
        fitted: samples that the projection is fitted on before.
        scored: the teachers that are scored before.
        gate_videos: on how many videos.
    """

    samples: int
    views: Mapping[str, int]
    clip_views: int
    fitted: int
    scored: tuple[str, ...]
    gate_videos: int


@dataclass(frozen=True)
class Seconds:
    """What the parts take.

    Attributes:
        decode: a sample with all its views, on one core.
        encode: the stored clips of a view as JPEG, on one core.
        networks: each teacher's forward pass over a view.
        store: a view's outputs being projected and fetched.
    """

    decode: float
    encode: float
    networks: Mapping[str, float]
    store: float

    def of_teachers(self, views: Mapping[str, int]) -> float:
        """Of their passes over so many views each."""
        return sum(count * self.networks[name] for name, count in views.items())


@dataclass(frozen=True)
class Machine:
    """What the work runs on.

    Attributes:
        device: of each worker.
        decoders: processes that decode, of each worker.
        workers: on a CPU they share its cores.
    """

    device: torch.device
    decoders: int
    workers: int = 1


def forecast(work: Work, seconds: Seconds, machine: Machine) -> dict[str, Any]:
    """Hours; the gate and the fit of the projection come before the rows, which workers share.

    Returns:
        `decode_core_hours` (with encoding), `network_hours` (with storing), `gate_hours`,
        `fit_hours`, `wall_hours`, `decoding_limits` (whether the videos cannot be decoded as fast
        as the networks take them) and `decoders_enough`.
    """
    decode = work.samples * seconds.decode + work.clip_views * seconds.encode
    stored = max(work.views.values(), default=0)
    network = seconds.of_teachers(work.views) + stored * seconds.store
    # One view is not a `views`-th of the decoding: most of it is the video's.
    gate = _wall(
        work.gate_videos * seconds.decode,
        seconds.of_teachers(dict.fromkeys(work.scored, work.gate_videos)),
        machine,
    )
    fit = _wall(
        work.fitted * seconds.decode,
        seconds.of_teachers({"vit": work.fitted, "cnn": work.fitted}),
        machine,
    )
    wall = gate + fit + _share(machine) * _wall(decode, network, machine)
    return {
        "decode_core_hours": decode / 3600,
        "network_hours": network / 3600,
        "gate_hours": gate / 3600,
        "fit_hours": fit / 3600,
        "wall_hours": wall / 3600,
        "decoding_limits": decode / max(machine.decoders, 1) > network,
        "decoders_enough": max(1, math.ceil(decode / max(network, 1e-9))),
    }


def _wall(decode: float, network: float, machine: Machine) -> float:
    """A GPU computes while decoders decode; a CPU shares its cores between the two."""
    decode /= max(machine.decoders, 1)
    if machine.device.type == "cpu" or not machine.decoders:
        return network + decode
    return max(network, decode)


def _share(machine: Machine) -> float:
    """Of the rows' time, with workers: each has a GPU, but a CPU was tried with all its cores."""
    return 1.0 if machine.device.type == "cpu" else 1 / machine.workers
