"""A student as it was saved or exported: what it says of itself, and what it answers to clips.

What a file is, its content decides. Only what its kind needs is imported: an ONNX file needs no
torch, a `torch.export` file no network of the registry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.views import ClipSpec

SUFFIXES = (".onnx", ".pt2", ".safetensors")
_SAID = ("model", "heads", "classes", "clip")  # what a file must say of itself
_NEWER = "it was made by another version of dualkd: take that one, or export it anew"


class StudentError(ValueError):
    """A file is no student that can be used; the message says what it is, and the way out."""


@dataclass(frozen=True)
class Student:
    """A student that answers.

    Attributes:
        path: its file.
        model: the registry's name of its network.
        clip: the clips that it takes.
        classes: the names of its classes, by head, in the order of the logits.
        answer: from clips (B, T, size, size, 3) uint8 to the logits of all heads, (B, ΣK) float32.
    """

    path: Path
    model: str
    clip: ClipSpec
    classes: dict[str, list[str]]
    answer: Callable[[NDArray[np.uint8]], NDArray[np.float32]]

    def logits(self, clips: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """What it answers to clips (B, T, size, size, 3): by head (B, K).

        Raises:
            StudentError: the file gives something else than it says, or no finite numbers.
        """
        logits, counts = self.answer(clips), [len(names) for names in self.classes.values()]
        if logits.shape != (len(clips), sum(counts)):
            raise StudentError(
                f"{self.path} answers {logits.shape} to {len(clips)} clips, but says that it has "
                f"{sum(counts)} classes: it is damaged, or was changed"
            )
        if not np.isfinite(logits).all():
            raise StudentError(f"{self.path} answers numbers that are not finite")
        parts = np.split(logits, np.cumsum(counts)[:-1], axis=1)
        return dict(zip(self.classes, parts, strict=True))


def load_student(path: Path, *, names: Path | None = None, device: str = "auto") -> Student:
    """Load any exported or saved student.

    Args:
        path: an ONNX file, a `torch.export` file, a saved student, or the folder that `distill`
            trained it in.
        names: a file of class names, see `pipeline.class_names`, for a student that has none.
        device: what a saved student computes on; exported ones run on the CPU.

    Raises:
        StudentError: it is something else, or lacks what it must say of itself.
        pipeline.devices.DeviceError: there is no such device for a saved one.
        pipeline.weights.WeightsError: a saved student does not fit its network.
    """
    try:
        file = _file_of(path)
        with file.open("rb") as opened:
            begin = opened.read(9)
    except OSError as error:
        raise StudentError(f"cannot read the model {path}: {error.strerror or error}") from error
    if begin[8:9] == b"{":  # behind the header's length, the header
        from pipeline.student_saved import load_saved  # noqa: PLC0415

        return load_saved(file, names, device)
    if device not in ("auto", "cpu"):
        raise StudentError(
            f"{file} runs on the CPU; --device {device} is for saved students (.safetensors): "
            "leave it out"
        )
    if begin[:4] == b"PK\x03\x04":
        from pipeline.student_program import load_program  # noqa: PLC0415

        return load_program(file, names)
    if not begin:
        raise StudentError(f"the model {file} is empty (0 bytes)")
    if file.suffix != ".onnx" and begin[:1] != b"\x08":  # the tag of an ONNX file's first field
        raise StudentError(
            f"{file} is no model: neither ONNX, nor what `torch.export` wrote, nor a saved student "
            f"(safetensors); it begins with {begin[:8]!r}"
        )
    from pipeline.student_onnx import load_onnx  # noqa: PLC0415

    return load_onnx(file, names)


def from_facts(
    path: Path,
    facts: Mapping[str, Any],
    names: Path | None,
    answer: Callable[[NDArray[np.uint8]], NDArray[np.float32]],
) -> Student:
    """A student by what its file says of itself.

    Args:
        path: the file.
        facts: `model`, `heads`, `classes` and `clip`, as the export writes them.
        names: see `load_student`.
        answer: see `Student`.

    Raises:
        StudentError: something is missing, or is not what it must be.
    """
    wanted = [name for name in _SAID if name != "classes" or names is None]
    missing = [name for name in wanted if name not in facts]
    if len(missing) == len(wanted):
        raise StudentError(
            f"{path} is none of dualkd's exports: it does not say what clips it takes and what its "
            "answers mean. `dualkd export` writes files that do"
        )
    if missing:
        raise StudentError(f"{path} does not say its {' and '.join(missing)}; {_NEWER}")
    heads = facts["heads"]
    if not isinstance(heads, dict) or not all(isinstance(count, int) for count in heads.values()):
        raise StudentError(f"{path}: heads are {heads!r}, expected numbers of classes; {_NEWER}")
    return Student(
        path=path,
        model=str(facts["model"]),
        clip=_clip(path, facts["clip"]),
        classes=class_names(path, heads, facts.get("classes"), names),
        answer=answer,
    )


def class_names(
    path: Path, heads: Mapping[str, int], said: Any, names: Path | None
) -> dict[str, list[str]]:
    """The names of the classes by head: those of a file, else those that the model says.

    Raises:
        StudentError: they do not fit the heads.
    """
    source: Path = path
    if names is not None:
        from pipeline.class_names import read_class_names  # noqa: PLC0415

        source, said = names, read_class_names(names, list(heads))
    if not isinstance(said, dict) or not all(isinstance(of, list) for of in said.values()):
        raise StudentError(f"{source}: classes are {said!r}, expected names by head; {_NEWER}")
    counted = {head: len(of_head) for head, of_head in said.items()}
    if counted != dict(heads):
        raise StudentError(
            f"{source} has names for {_counted(counted)}, but {path} answers {_counted(heads)}"
        )
    return {head: [str(name) for name in said[head]] for head in heads}


def _counted(heads: Mapping[str, int]) -> str:
    return ", ".join(f"{count} classes of {head}" for head, count in heads.items()) or "nothing"


def _clip(path: Path, said: Any) -> ClipSpec:
    """The clips that a network takes.

    Raises:
        StudentError: they are described in a way that is not known here.
    """
    known = [field.name for field in fields(ClipSpec)]
    if not isinstance(said, dict) or set(said) - set(known):
        strange = sorted(set(said) - set(known)) if isinstance(said, dict) else said
        raise StudentError(f"{path} says of its clips what is not known here: {strange}; {_NEWER}")
    try:
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in said.items()}
        clip = ClipSpec(**given)
        sizes = (clip.frames, clip.stride, clip.size)
        sound = all(isinstance(size, int) and size > 0 for size in sizes)
        sound &= len(clip.mean) == len(clip.std) == 3 and all(std > 0 for std in clip.std)
        sound &= 0 < clip.test_share <= 1
    except TypeError:
        sound = False
    if not sound:
        raise StudentError(f"{path}: its clip is {said}, which is no clip; {_NEWER}")
    return clip


def _file_of(path: Path) -> Path:
    """The file that a path means: a student's folder means the weights that its config keeps.

    Raises:
        StudentError: there is none.
    """
    if not path.exists():
        raise StudentError(
            f"no model at {path}; `dualkd export` writes one, `dualkd distill` "
            "outputs/NAME/distill/student.safetensors"
        )
    if not path.is_dir():
        return path
    if (path / "zarr.json").exists():
        raise StudentError(
            f"{path} is a cache of teachers' outputs, not a model; the student that learnt from it "
            f"is {path.parent / 'distill' / 'student.safetensors'}"
        )
    if (path / "config.yaml").is_file() and (path / "last.safetensors").is_file():
        from pipeline.config_file import load_config  # noqa: PLC0415

        keep = load_config(path / "config.yaml").distill.train.keep
        return path / f"{keep}.safetensors"
    models = sorted(file.name for file in path.iterdir() if file.suffix in SUFFIXES)
    if models:
        raise StudentError(f"{path} is a folder; name the model itself: {', '.join(models)}")
    raise StudentError(f"{path} is a folder without a model ({', '.join(SUFFIXES)})")
