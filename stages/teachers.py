"""The two teachers as the stages use them: loaded by role, run over clips, named in a cache."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch

from cache import IdentityMismatch, TeacherCache, identity_differences
from pipeline.config import Precision, Run
from pipeline.identity import added_identity, build_identity, teacher_identity
from pipeline.models import Features, VideoModel
from pipeline.optimising import uses_bf16
from pipeline.samples import Samples
from pipeline.views import normalise
from pipeline.weights import WeightsError, load_weights, trained_classes


class Teachers(NamedTuple):
    """The pair, on one device; the names of the fields are the roles."""

    vit: VideoModel
    cnn: VideoModel

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return next(self.vit.parameters()).device

    def identities(self, run: Run) -> dict[str, dict[str, Any]]:
        """What decides their outputs, by role; weights are digested, which takes its time."""
        precision = run.extract.precision
        return {role: teacher_identity(model, precision) for role, model in self.by_role().items()}

    def by_role(self) -> dict[str, VideoModel]:
        """`vit` and `cnn`."""
        return self._asdict()


@torch.inference_mode()
def features(model: VideoModel, clips: torch.Tensor, precision: Precision) -> Features:
    """Float32 outputs of a teacher for clips (B, T, H, W, 3) uint8."""
    device = next(model.parameters()).device
    batch = normalise(clips.to(device), model.clip)
    with torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16(precision, device)):
        answer = model.features(batch.contiguous(memory_format=torch.channels_last_3d))
    return answer.float32()


def load_teachers(run: Run, samples: Samples, device: torch.device) -> Teachers:
    """Both teachers with the weights that the config names, in evaluation mode.

    Raises:
        pipeline.weights.WeightsError: a file is missing, holds another network, or was trained for
            other classes than the samples table's; or published weights could not be downloaded.
    """
    pair = Teachers(*(_load(run, samples, role) for role in Teachers._fields))
    return Teachers(*(placed(model, device) for model in pair))


def load_added(
    run: Run, samples: Samples, device: torch.device, names: Iterable[str] | None = None
) -> dict[str, VideoModel]:
    """Teachers of `extract.added` by name, all by default; see `load_teachers`."""
    added = {}
    for name in run.extract.added if names is None else names:
        added[name] = _load(run, samples, name)
    return {name: placed(model, device) for name, model in added.items()}


def placed(model: VideoModel, device: torch.device) -> VideoModel:
    """A teacher moved to a device, its weights in the order of memory that `features` expects."""
    model.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    return model


def _load(run: Run, samples: Samples, name: str) -> VideoModel:
    teacher = run.teachers[name]
    model = load_weights(teacher.model, samples.heads, teacher.weights)
    theirs, ours = trained_classes(teacher.weights), samples.classes_sha256
    if theirs not in (None, ours):
        listed = "; ".join(
            f"{len(names)} of {head}, {names[0]!r} to {names[-1]!r}"
            for head, names in samples.classes.items()
        )
        raise WeightsError(
            f"{teacher.weights} ({name}) was trained for other classes than those of the samples "
            f"table, or in another order: it records class names with the digest {theirs:.12}, the "
            f"table's ({listed}) have {ours:.12}. Name weights of this dataset in the config; or "
            "train them on it with `dualkd teach --train`, these as `start`, `new_head: true`, and "
            "another file as `weights`"
        )
    return model


def added_identities(run: Run, added: Mapping[str, VideoModel]) -> dict[str, dict[str, Any]]:
    """What decides the fields of added teachers, by name; weights are digested."""
    return {name: added_identity(run, name, model) for name, model in added.items()}


def check_added(cache: TeacherCache, added: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a cache in which a teacher of these is another one; those it lacks are no matter.

    Args:
        cache: the cache.
        added: see `added_identities`.

    Raises:
        cache.IdentityMismatch: with the fields that differ.
    """
    both = sorted(cache.added.keys() & added.keys())
    standing = {name: cache.added[name] for name in both}
    wanted = {name: added[name] for name in both}
    differences = identity_differences({"added": standing}, {"added": wanted})
    if differences:
        raise IdentityMismatch(cache.place, differences)


def identity_for(
    run: Run,
    samples: Samples,
    teachers: Mapping[str, Mapping[str, Any]],
    cache: TeacherCache,
    *,
    more: int = 0,
) -> dict[str, Any]:
    """The identity that a standing cache has if it is the one the config describes.

    Its projection was fitted when it was made: the digest is the cache's own.

    Args:
        run: the config.
        samples: for the dataset's name and its label map.
        teachers: see `Teachers.identities`.
        cache: the cache.
        more: number of samples by which it is to grow.
    """
    projection = cache.identity.get("projection")
    sha256 = projection.get("sha256") if isinstance(projection, dict) else None
    available = cache.num_samples + more
    return build_identity(run, samples, teachers, str(sha256), available=available)
