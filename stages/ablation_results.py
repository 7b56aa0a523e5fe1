"""What an ablation keeps of each student: what it belongs to, its weights' digest, its score.

The file is `result.json` in the student's folder. It is written before the training, after it and
after the scoring, so that whatever was interrupted goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cache import TeacherCache, identity_differences
from pipeline.config import Run
from pipeline.models import VideoModel
from pipeline.samples import Samples
from pipeline.weights import WeightsError, load_weights, weights_digest
from stages.feed import Part
from stages.files import write_json, write_text
from stages.recorded import in_lines
from stages.student_training import CHECKPOINT, forget_checkpoint
from stages.variants import Variant


class AblationError(ValueError):
    """The ablation cannot go on, or not all of it was done; the message tells the way out."""


@dataclass(frozen=True)
class Student:
    """One student of an ablation.

    Attributes:
        variant: how it is trained.
        seed: of its start and of its batches.
        run: the config that trains it.
        folder: where it lies.
        belongs_to: what its training depends on, plain JSON.
    """

    variant: Variant
    seed: int
    run: Run
    folder: Path
    belongs_to: Mapping[str, Any]

    @property
    def name(self) -> str:
        """For messages and bars."""
        return f"{self.variant.name}, seed {self.seed}"

    @property
    def weights(self) -> Path:
        """Its weights, once it is trained."""
        return self.folder / f"{self.run.distill.train.keep}.safetensors"

    @cached_property
    def result(self) -> dict[str, Any]:
        """What is kept of it so far; empty where nothing is.

        Raises:
            AblationError: the file is damaged.
        """
        path = self.folder / "result.json"
        try:
            content = json.loads(path.read_text())
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise AblationError(
                f"{path} is damaged ({error}): remove {self.folder}, and it is made again"
            ) from error
        return dict(content)

    @property
    def trained(self) -> bool:
        """Whether its weights are there for good."""
        return "weights_sha256" in self.result

    def score_of(self, of: Mapping[str, Any]) -> dict[str, Any] | None:
        """Its accuracies on just these samples, see `scored_on`; None where there are none yet."""
        score = self.result.get("score")
        return score if score is not None and score["of"] == of else None

    def keep(self, **facts: object) -> None:
        """Add to what is kept."""
        self.result.update(facts)
        write_json(self.folder / "result.json", self.result)

    def begin(self) -> None:
        """Say what its folder belongs to."""
        about = {"variant": self.variant.name, "seed": self.seed, "loss": self.variant.loss}
        self.keep(**about, belongs_to=self.belongs_to)

    def end(self, heads: Mapping[str, int]) -> None:
        """It is trained: keep its weights' digest in the place of its checkpoint.

        Raises:
            pipeline.weights.WeightsError: the weights are not there.
        """
        self.keep(weights_sha256=weights_digest(self._load(heads).net))
        forget_checkpoint(self.folder)
        (self.folder / "failed.txt").unlink(missing_ok=True)

    def load(self, heads: Mapping[str, int]) -> VideoModel:
        """The student, in evaluation mode.

        Raises:
            pipeline.weights.WeightsError: its weights are not there, or not those it ended with.
        """
        model = self._load(heads)
        if weights_digest(model.net) != self.result["weights_sha256"]:
            raise WeightsError(
                f"{self.weights} are not the weights that the training ended with: remove "
                f"{self.folder}, and it is trained again"
            )
        return model

    def _load(self, heads: Mapping[str, int]) -> VideoModel:
        return load_weights(self.run.distill.student, heads, self.weights)

    def fail(self, error: BaseException) -> None:
        """Keep the whole traceback of a failure."""
        write_text(self.folder / "failed.txt", "".join(traceback.format_exception(error)))

    def forget(self) -> None:
        """Drop all that stands."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.result.clear()

    def differences(self) -> list[str]:
        """What it was trained with and what the config says now, where these differ."""
        if not self.result or not (self.trained or (self.folder / CHECKPOINT).exists()):
            return []  # nothing is known, or nothing would be lost
        found = identity_differences(self.result["belongs_to"], self.belongs_to)
        return [f"{name}: was {before!r}, is {now!r}" for name, before, now in found]


def student_of(run: Run, variant: Variant, seed: int, cache: TeacherCache, part: Part) -> Student:
    """Describe one student."""
    own = variant.of(run, seed)
    belongs_to = {
        "cache_fingerprint": cache.fingerprint,
        "distill": own.distill.model_dump(mode="json"),
        "rows": {"samples": len(part.rows), "valid": int(part.valid.sum())},
    }
    folder = run.outputs / "ablate" / variant.name / f"seed-{seed}"
    return Student(variant, seed, own, folder, belongs_to)


def check_unchanged(students: Sequence[Student]) -> None:
    """Refuse to go on with students that were trained, be it in part, with another config.

    Raises:
        AblationError: naming what differs.
    """
    changed = {student.name: lines for student in students if (lines := student.differences())}
    if changed:
        lines = list(dict.fromkeys(line for lines in changed.values() for line in lines))
        raise AblationError(
            f"{len(changed)} of {len(students)} students were trained with another config "
            f"(the first: {next(iter(changed))}). What differs:\n{in_lines(lines)}\n"
            "--anew drops all that were chosen and trains them again; a copy of the config under "
            "another name would have outputs of its own"
        )


def scored_on(split: str, samples: Samples) -> dict[str, Any]:
    """What a score is of: the split, and a digest of its samples."""
    rows = json.dumps(samples.table.to_pylist()).encode()
    return {"split": split, "samples": len(samples), "sha256": hashlib.sha256(rows).hexdigest()}
