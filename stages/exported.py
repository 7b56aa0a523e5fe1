"""What `dualkd export` measured of the student's files, as far as it has been run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FORMATS = {"onnx": "ONNX, float32", "int8": "ONNX, 8 bits", "pt2": "torch.export, float32"}


@dataclass(frozen=True)
class ExportedFile:
    """One file of the student.

    Attributes:
        name: of the file.
        format: for people.
        bytes: its size.
        difference: the greatest one of a logit from PyTorch's; None where it was not compared.
        top1: None where it was not measured.
    """

    name: str
    format: str
    bytes: int
    difference: float | None
    top1: float | None


@dataclass(frozen=True)
class Exported:
    """What the page tells of an export.

    Attributes:
        files: those that were published.
        parity_clips: on how many clips logits were compared; 0 where they were not.
        videos: of which top-1 is; 0 where 8 bits were not asked for.
        refused: points of top-1 that 8 bits lose, where that is too much; else None.
        limit: points that they may lose.
    """

    files: list[ExportedFile]
    parity_clips: int
    videos: int
    refused: float | None
    limit: float


def read_exported(content: Mapping[str, Any] | None, student_sha256: str) -> Exported | None:
    """What `export/export.json` tells; None without any, or of another student.

    Args:
        content: of the file; None where nothing was exported.
        student_sha256: the weights of the student that the page is about.
    """
    if content is None or content.get("weights_sha256") != student_sha256:
        return None
    parity, measured = content.get("parity", {}), content.get("quantisation", {})
    differences = parity.get("max_difference", {})
    scores = {"onnx": measured.get("fp32", {}), "int8": measured.get("int8", {})}
    files = [
        ExportedFile(
            name=name,
            format=FORMATS.get(file["format"], file["format"]),
            bytes=file["bytes"],
            difference=differences.get(file["format"]),
            top1=scores.get(file["format"], {}).get("top1"),
        )
        for name, file in content.get("files", {}).items()
    ]
    return Exported(
        files=files,
        parity_clips=parity.get("clips", 0),
        videos=measured.get("videos", 0),
        refused=None if measured.get("published", True) else measured["loss_points"],
        limit=measured.get("limit_points", 0.0),
    )
