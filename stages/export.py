"""Stage `export`: the student as ONNX, by `torch.export` and in 8 bits, proven before published."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cache import identity_differences
from pipeline.config import Run
from pipeline.exporting import OPSET, describe, export_onnx, export_program, traced
from pipeline.models import VideoModel
from pipeline.onnx_files import ExportedModel, onnx_model, program_model
from pipeline.quantising import METHOD, quantise
from pipeline.samples import Samples, read_samples
from pipeline.weights import load_weights, recorded_facts, weights_digest
from stages.export_checks import (
    ExportError,
    calibration_clips,
    check_backbone,
    check_parity,
    compare_precisions,
)
from stages.files import write_json, write_text
from stages.model_card import model_card
from stages.progress import console
from stages.scoring import labelled
from stages.wording import count, percent, points, size

SUFFIXES = {"onnx": ".onnx", "int8": ".int8.onnx", "pt2": ".pt2"}
FORMATS = tuple(SUFFIXES)


@dataclass(frozen=True)
class Options:
    """What is made, and of whom.

    Attributes:
        student: `student` or `baseline`.
        formats: of `FORMATS`.
        max_loss: points of top-1 that 8 bits may lose; the config's `export.max_loss` if None.
        go_on: whether 8 bits that lose too much are told and left out, and are no error.
        decoders: processes that decode.
        batch_size: clips in one forward pass.
    """

    student: str = "student"
    formats: tuple[str, ...] = FORMATS
    max_loss: float | None = None
    go_on: bool = False
    decoders: int = 0
    batch_size: int = 32


def export_folder(run: Run, student: str = "student") -> Path:
    """Where the files of a student are; the baseline has a folder of its own."""
    return run.outputs / ("export" if student == "student" else f"export_{student}")


def export(run: Run, options: Options) -> Path:
    """Write a student's files, a model card, and `export.json` with what was proven of them.

    A file takes its place only after its checks, and files of another export go away. The figures
    that are compared between experiments stand in `deployment.json` beside the folder.

    Returns:
        The folder.

    Raises:
        ExportError: there is no student, it is of another config, a check fails, or 8 bits lose
            too much: then the other files are there, and the 8-bit one is not.
        pipeline.weights.WeightsError: the student's file holds another network.
        stages.scoring.ScoringError: the evaluation split cannot be read.
    """
    samples = read_samples(run.samples_path)
    scored = labelled(samples.of_splits([run.evaluate.split]))
    model, facts = load_student(run, samples, options.student)
    about = describe(model, facts)
    out = export_folder(run, options.student)
    with _making(out) as folder:
        paths = {name: folder / f"{options.student}{SUFFIXES[name]}" for name in FORMATS}
        program = traced(model)
        export_onnx(program, paths["onnx"], about)
        export_program(program, paths["pt2"], about)
        found: dict[str, Any] = {
            "student": options.student,
            **{key: about[key] for key in ("model", "weights_sha256", "dataset", "cache")},
            "opset": OPSET,
            "files": {},
            "backbone": check_backbone(paths["onnx"], program, model, folder),
            "parity": check_parity(
                run, scored, model, _opened(paths, model, options), options.decoders
            ),
        }
        _tell_checks(found)
        if "int8" in options.formats:
            limit = run.export.max_loss if options.max_loss is None else options.max_loss
            found["quantisation"] = _quantised(run, samples, scored, model, paths, options, limit)
        _publish(out, paths, options, found)
    write_json(out / "export.json", found)
    write_json(out.with_name(out.name.replace("export", "deployment") + ".json"), in_short(found))
    write_text(out / "MODEL_CARD.md", model_card(run, samples, model, found))
    try:
        _refuse_loss(run, found)
    except ExportError as error:
        if not options.go_on:
            raise
        console.print(str(error))
    return out


def in_short(found: Mapping[str, Any]) -> dict[str, Any]:
    """What people compare between experiments: of each file its size, difference and top-1."""
    measured = found.get("quantisation", {})
    scores = {"onnx": measured.get("fp32", {}), "int8": measured.get("int8", {})}
    short: dict[str, Any] = {}
    for file in found["files"].values():
        name = file["format"]
        short[name] = {"bytes": file["bytes"]}
        if name in found["parity"]["max_difference"]:
            short[name]["max_difference"] = found["parity"]["max_difference"][name]
        if "top1" in scores.get(name, {}):
            short[name]["top1"] = scores[name]["top1"]
    if measured:
        short["int8_loss_points"] = measured["loss_points"]
    return short


def load_student(run: Run, samples: Samples, student: str) -> tuple[VideoModel, dict[str, Any]]:
    """What `distill` made, and what its files will say of it, see `pipeline.exporting.describe`.

    Raises:
        ExportError: it is not there, or was trained with another config or for other classes.
        pipeline.weights.WeightsError: the file is damaged, or holds another network.
    """
    folder = run.outputs / "distill"
    path, record = folder / f"{student}.safetensors", folder / "distill.json"
    again = f"`dualkd distill --dataset {run.name}`"
    for file in (path, record):
        if not file.is_file():
            raise ExportError(f"there is no {file}; {again} trains the student")
    try:
        trained = json.loads(record.read_text())
        config, weights = trained["config"], trained["weights_sha256"][student]
        fingerprint = trained["cache_fingerprint"]
    except (ValueError, KeyError, TypeError) as error:
        raise ExportError(f"{record} is damaged ({error!r}); {again} writes it anew") from error
    wanted = run.distill.model_dump(mode="json")
    for name, then, now in identity_differences(config, wanted):
        raise ExportError(
            f"distill.{name} is {now}, but the {student} was trained with {then}; {again} trains "
            "it anew, or put the value back"
        )
    model = load_weights(run.distill.student, samples.heads, path)
    digest = weights_digest(model.net)
    if digest != weights:
        raise ExportError(
            f"{path} has the weights {digest:.12}, {record} is of {weights:.12}; {again} trains "
            "both anew"
        )
    recorded = recorded_facts(path) or {}
    if recorded.get("classes", samples.classes) != samples.classes:
        raise ExportError(
            f"{path} was trained for other classes than {run.samples_path} has, or in another "
            f"order; {again} trains it anew"
        )
    return model, {
        "classes": samples.classes,
        "dataset": run.name,
        "cache": fingerprint,
        "student": student,
        "weights_sha256": digest,
    }


@contextmanager
def _making(out: Path) -> Iterator[Path]:
    """A folder beside the published files, gone in the end."""
    folder = out / ".making"
    shutil.rmtree(folder, ignore_errors=True)  # of one that was killed
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _opened(
    paths: Mapping[str, Path], model: VideoModel, options: Options
) -> dict[str, ExportedModel]:
    """The files in float32 that are to be published, and ONNX where 8 bits are made of it."""
    opened = {"onnx": onnx_model(paths["onnx"], model)}
    if "pt2" in options.formats:
        opened["pt2"] = program_model(paths["pt2"], model)
    return opened


def _quantised(
    run: Run,
    samples: Samples,
    scored: Samples,
    model: VideoModel,
    paths: Mapping[str, Path],
    options: Options,
    limit: float,
) -> dict[str, Any]:
    """Make the 8-bit file, and measure what it loses."""
    clips = calibration_clips(run, samples, model, options.decoders)
    taken = quantise(paths["onnx"], paths["int8"], clips)
    threads = torch.get_num_threads()
    files = {
        "fp32": onnx_model(paths["onnx"], model, threads),
        "int8": onnx_model(paths["int8"], model, threads),
    }
    found = compare_precisions(run, scored, files, options.decoders, options.batch_size)
    sizes = {name: paths[name].stat().st_size for name in ("onnx", "int8")}
    return {
        "method": METHOD,
        "calibration": {"splits": run.distill.splits, "clips": taken},
        **found,
        "bytes_fp32": sizes["onnx"],
        "bytes_int8": sizes["int8"],
        "size_ratio": sizes["int8"] / sizes["onnx"],
        "limit_points": limit,
        "published": found["loss_points"] <= limit,
    }


def _publish(out: Path, paths: Mapping[str, Path], options: Options, found: dict[str, Any]) -> None:
    """Move what was asked for, and has passed, into its place; remove what is of another export."""
    for name, path in paths.items():
        passed = name != "int8" or found.get("quantisation", {}).get("published", False)
        if name in options.formats and passed:
            found["files"][path.name] = {"format": name, "bytes": path.stat().st_size}
            path.replace(out / path.name)
            console.print(f"{out / path.name}  {size(found['files'][path.name]['bytes'])}")
        else:
            (out / path.name).unlink(missing_ok=True)


def _tell_checks(found: Mapping[str, Any]) -> None:
    backbone, parity = found["backbone"], found["parity"]
    nodes = sum(backbone["export"]["operators"].values())
    console.print(
        f"the plain backbone and nothing else: {nodes} operators and "
        f"{count(backbone['export']['weights'])} weights, as {backbone['model']} built anew has"
    )
    for name, difference in parity["max_difference"].items():
        console.print(
            f"{name}: at most {difference:.1e} from PyTorch's logits on {parity['clips']} clips of "
            f"{parity['split']}; {parity['limit']:.0e} is allowed"
        )


def _refuse_loss(run: Run, found: Mapping[str, Any]) -> None:
    """Tell what 8 bits lose.

    Raises:
        ExportError: more than is allowed.
    """
    if "quantisation" not in found:
        return
    measured = found["quantisation"]
    fp32, int8, limit = measured["fp32"]["top1"], measured["int8"]["top1"], measured["limit_points"]
    told = (
        f"8 bits: top-1 {percent(int8)} on {measured['videos']} videos of {measured['split']}, "
        f"float32 {percent(fp32)} ({points(int8 - fp32)} points; {measured['lost']} lost, "
        f"{measured['won']} won), {percent(measured['size_ratio'], 0)} of the size"
    )
    if measured["published"]:
        console.print(told)
        return
    raise ExportError(
        f"{told}. A loss of {measured['loss_points']:.2f} points is more than {limit:g}: no 8-bit "
        "file is published, all else is. Calibrate on more clips than "
        f"{run.export.calibration} (export.calibration), allow more (export.max_loss, "
        "`--max-loss`), or leave it out: `--formats onnx,pt2`"
    )
