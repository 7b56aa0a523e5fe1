"""`dualkd bench-student`: how fast the student answers, beside its teachers, in one run.

Every network is run in every way: by PyTorch, by ONNX Runtime in float32 and in 8 bits, on one core
and on all, one clip at a time and many; by PyTorch on a GPU where there is one. All take turns, so
that whatever else the machine does meets all of them; ratios are medians of each turn's own.
"""

from __future__ import annotations

import copy
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from pipeline.config import Run
from pipeline.devices import processor
from pipeline.exporting import describe, export_onnx, traced
from pipeline.models import VideoModel, count_parameters, create_model
from pipeline.onnx_files import INPUT, open_session
from pipeline.quantising import quantise
from pipeline.samples import read_samples
from stages.export import load_student
from stages.progress import meter, track
from stages.teachers import load_teachers, placed

PYTORCH, ONNX, INT8 = "PyTorch", "ONNX Runtime", "ONNX Runtime int8"
STUDENT = "student"
_LEAST_SEC = 0.05  # of one measurement: short calls are repeated within it
_CLASSES = 400  # of networks that are asked for by name: Kinetics-400's


class BenchError(ValueError):
    """There is nothing to measure; the message says why."""


@dataclass(frozen=True)
class Options:
    """How it is measured.

    Attributes:
        batch: clips at once, for the throughput.
        turns: how often each is measured.
    """

    batch: int = 8
    turns: int = 7


@dataclass(frozen=True)
class Case:
    """One network run in one way on some cores (0: on the GPU), with so many clips at once."""

    role: str
    way: str
    cores: int
    clips: int


Clips = NDArray[np.float32]  # (B, 3, T, S, S)
Cases = dict[Case, Callable[[], object]]


def of_run(run: Run) -> dict[str, VideoModel]:
    """The student and its two teachers, by role.

    Raises:
        stages.export.ExportError: there is no student, or it is of another config.
        pipeline.weights.WeightsError: a teacher's weights are missing or do not fit.
    """
    samples = read_samples(run.samples_path)
    student, _ = load_student(run, samples, STUDENT)
    return {STUDENT: student, **load_teachers(run, samples, torch.device("cpu")).by_role()}


def by_name(student: str, teachers: Sequence[str]) -> dict[str, VideoModel]:
    """Networks of the registry with random weights, the teachers by their names.

    Raises:
        BenchError: no teacher is named.
        pipeline.models.UnknownModelError: a name is unknown.
    """
    if not teachers:
        raise BenchError(
            "name the teachers too: --teachers torchvision/mvit_v2_s,pytorchvideo/x3d_m"
        )
    torch.manual_seed(0)
    names = {STUDENT: student, **{name: name for name in teachers}}
    return {role: create_model(name, _CLASSES).eval() for role, name in names.items()}


def bench(networks: Mapping[str, VideoModel], options: Options, *, random: bool) -> dict[str, Any]:
    """Measure all of them.

    Args:
        networks: by role; the reference is the first teacher that is a ViT, else the first.
        options: how.
        random: whether the weights are: it goes into the facts.

    Returns:
        Plain JSON: `reference` (a role), `random_weights`, `networks`, `machine`, `load` (before
        and after), `batch`, `turns`, `left_out` (what cannot run, with the reason) and `rows`; each
        of these has `role`, `way`, `cores`, and for `latency` and `throughput` the `ratio` to the
        reference run in the same way, and `median`, `least` and `greatest`, in ms per clip and in
        clips per second.
    """
    teachers = [role for role in networks if role != STUDENT]
    reference = next((role for role in teachers if networks[role].family == "vit"), teachers[0])
    threads, before = torch.get_num_threads(), _load()
    left_out: dict[str, str] = {}
    with TemporaryDirectory() as folder:
        cases = _cases(networks, Path(folder), options, left_out)
        try:
            seconds = _in_turns(cases, options.turns, left_out)
        finally:
            torch.set_num_threads(threads)
    return {
        "reference": reference,
        "random_weights": random,
        "networks": {
            role: {
                "model": model.name,
                "parameters": count_parameters(model),
                "clip": [model.clip.frames, model.clip.size],
            }
            for role, model in networks.items()
        },
        "machine": _machine(),
        "load": [before, _load()],
        "batch": options.batch,
        "turns": options.turns,
        "left_out": left_out,
        "rows": _rows(seconds, reference, options.batch),
    }


def _cases(
    networks: Mapping[str, VideoModel], folder: Path, options: Options, left_out: dict[str, str]
) -> Cases:
    """Everything that is to be measured, ready to be called."""
    cases: Cases = {}
    for role, model in track(
        networks.items(), total=len(networks), what="exporting", unit="networks"
    ):
        clip = model.clip
        shape = (max(options.batch, 2), 3, clip.frames, clip.size, clip.size)
        clips = np.random.default_rng(0).standard_normal(shape, np.float32)
        batches = {size: clips[:size] for size in (1, options.batch)}
        files = _files(role, model, folder, clips, left_out)
        for cores in sorted({1, os.cpu_count() or 1}):
            for size, batch in batches.items():
                cases[Case(role, PYTORCH, cores, size)] = _by_pytorch(model, batch, cores)
            for way, path in files.items():
                session = open_session(path, cores)
                for size, batch in batches.items():
                    cases[Case(role, way, cores, size)] = _by_onnx(session, batch)
        if torch.cuda.is_available():
            there = copy.deepcopy(model).cuda()
            for size, batch in batches.items():
                cases[Case(role, f"{PYTORCH}, GPU", 0, size)] = _by_pytorch(there, batch, 0)
    return cases


def _files(
    role: str, model: VideoModel, folder: Path, clips: Clips, left_out: dict[str, str]
) -> dict[str, Path]:
    """ONNX by way: in float32 and in 8 bits, which are as fast whatever clips calibrate them."""
    paths = {
        way: folder / f"{role.replace('/', '_')}.{kind}.onnx"
        for way, kind in ((ONNX, "fp32"), (INT8, "int8"))
    }
    for way, path in paths.items():
        try:
            if way == ONNX:
                export_onnx(traced(model), path, describe(model, {}))
            else:
                quantise(paths[ONNX], path, [clips[:1], clips[1:2]])
        except Exception as error:  # an operator that the exporter does not know: the others go on
            left_out[f"{role}, {way}"] = f"{type(error).__name__}: {str(error)[:200]}"
    return {way: path for way, path in paths.items() if path.exists()}


def _by_pytorch(model: VideoModel, clips: Clips, cores: int) -> Callable[[], object]:
    """A forward pass on so many cores, or on the GPU (0), as `evaluate` runs it."""
    device = next(model.parameters()).device
    net = placed(model.eval(), device)
    batch = torch.from_numpy(clips).to(device, memory_format=torch.channels_last_3d)

    @torch.inference_mode()
    def call() -> object:
        if cores:
            torch.set_num_threads(cores)
        answer = net(batch)
        if not cores:
            torch.cuda.synchronize()
        return answer

    return call


def _by_onnx(session: ort.InferenceSession, clips: Clips) -> Callable[[], object]:
    return lambda: session.run(None, {INPUT: clips})


def _in_turns(cases: Cases, turns: int, left_out: dict[str, str]) -> dict[Case, list[float]]:
    """Seconds of one call, by case, one for each turn; all cases of a turn come after another."""
    calls = {}
    for case, call in cases.items():
        try:
            call()  # sets things up
            calls[case] = max(1, int(_LEAST_SEC / _seconds(call, 1)))
        except Exception as error:  # no kernel, no memory: told, and the others go on
            left_out[f"{case.role}, {case.way}"] = f"{type(error).__name__}: {str(error)[:200]}"
    seconds: dict[Case, list[float]] = {case: [] for case in calls}
    with meter("measuring", total=turns * len(calls), unit="measurements") as counter:
        for _ in range(turns):
            for case, times in calls.items():
                seconds[case].append(_seconds(cases[case], times))
                counter.advance(1)
    return seconds


def _seconds(call: Callable[[], object], times: int) -> float:
    """Of one call, the mean of so many."""
    started = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - started) / times


def _rows(seconds: Mapping[Case, list[float]], reference: str, batch: int) -> list[dict[str, Any]]:
    """One row for each network, way and number of cores."""
    rows = []
    for case, latency in seconds.items():
        many = replace(case, clips=batch)
        if case.clips != 1 or many not in seconds:
            continue
        ms = [1000 * one for one in latency]
        rates = [batch / one for one in seconds[many]]
        rows.append(
            {
                "role": case.role,
                "way": case.way,
                "cores": case.cores,
                "latency": _figures(ms, _ratio(seconds, case, reference)),
                "throughput": _figures(rates, _ratio(seconds, many, reference)),
            }
        )
    return rows


def _figures(values: Sequence[float], ratio: float | None) -> dict[str, float | None]:
    return {
        "ratio": ratio,
        "median": statistics.median(values),
        "least": min(values),
        "greatest": max(values),
    }


def _ratio(seconds: Mapping[Case, list[float]], case: Case, reference: str) -> float | None:
    """How many times as fast as the reference run in the same way: the median over turns."""
    other = seconds.get(replace(case, role=reference))
    if other is None:
        return None
    return statistics.median(its / own for its, own in zip(other, seconds[case], strict=True))


def _load() -> float:
    return round(os.getloadavg()[0], 2)


def _machine() -> dict[str, Any]:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cores": os.cpu_count(),
        "processor": processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "gpu": gpu,
        "packages": {name: version(name) for name in ("torch", "onnxruntime")},
    }
