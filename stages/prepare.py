"""Stage `prepare`: a folder on disk, or a generator → the samples table, and an account of it."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from pipeline.config import Run
from pipeline.config_file import splits_asked
from pipeline.config_prepare import (
    PrepareEpic100,
    PrepareFigures,
    PrepareFolder,
    PrepareHmdb51,
    PrepareK400,
)
from pipeline.datasets import figures
from pipeline.datasets.epic100 import list_epic100
from pipeline.datasets.folder import list_folder
from pipeline.datasets.hmdb51 import list_hmdb51
from pipeline.datasets.k400 import list_k400
from pipeline.datasets.listing import DatasetError, Listed, Listing, contents, make_listing
from pipeline.probing import Answer, probe_all, read_answers
from pipeline.samples import Sample, Samples, build_samples, write_samples
from pipeline.subsets import write_subsets
from stages import account
from stages.files import write_csv, write_json
from stages.progress import console, meter, track
from stages.wording import count, plural

_ANSWERS = "probe.jsonl"  # of the videos, from earlier probes


def prepare(run: Run, *, probe: bool = False, workers: int | None = None) -> Samples:
    """Write the samples table, the account and the list of what is not in the table.

    Args:
        run: the config.
        probe: open every video that is there and decode its first frame. Without it, what an
            earlier probe was told counts, of videos that are the same today.
        workers: processes that render or probe; one per core by default.

    Raises:
        pipeline.datasets.listing.DatasetError: the root is not such a dataset, nothing of it is
            there, or its splits are not those that the config reads.
        pipeline.probing.ProbeError: a process died while probing.
    """
    workers = (os.cpu_count() or 1) if workers is None else workers
    section = run.prepare
    if isinstance(section, PrepareFigures):
        listing = _render(section, workers)
    else:
        listing = _listed(section)
        if not listing.rows:
            raise DatasetError(
                f"{section.root}: {listing.layout}, but the annotations list not one video: is "
                "there anything below their headers?"
            )
        if all(row.status == "missing" for row in listing.rows):
            row = listing.rows[0]
            raise DatasetError(
                f"{listing.layout}: {plural(len(listing.rows), 'sample')} listed, and not one of "
                f"the videos is in {section.root}: {row.sample.path}: {row.reason}. There is: "
                f"{contents(Path(section.root))}"
            )
    wanted = _wanted_splits(run)
    if isinstance(section, PrepareFolder):
        _check_splits(run, listing, wanted)
    if probe:
        listing = _probe(run, listing, workers)
        _check_readable(run, listing)
    elif (run.outputs / _ANSWERS).is_file():
        probe = True
        listing = _judged(listing, _known_answers(run, listing))
    rows = [row.sample for row in listing.rows if row.status == "found"]
    samples = build_samples(run.dataset, listing.classes, rows)
    found = account.describe(listing, root=section.root, probed=probe)
    if isinstance(section, PrepareFigures):
        found["videos_sha256"] = videos_sha256(Path(section.root), samples)
    (Path("configs") / run.name).mkdir(parents=True, exist_ok=True)  # for weights; see dvc.yaml
    write_csv(run.outputs / "missing.csv", account.not_found(listing))
    write_json(run.outputs / "prepare.json", found)
    write_subsets(samples, listing.subsets, run.subsets_path)
    write_samples(samples, run.samples_path)
    if not isinstance(section, PrepareFigures):
        account.show(found)
        if len(rows) < len(listing.rows):
            console.print(f"what is not in the table: {run.outputs / 'missing.csv'}")
        for warning in account.warnings(found, wanted):
            console.print(f"warning: {warning}")
    return samples


def render_split(
    root: Path,
    *,
    seed: int,
    split: str,
    count: int,
    of: figures.FigureSet,
    workers: int | None = None,
) -> list[Sample]:
    """Render one split of the figures with all cores by default, showing progress."""
    workers = (os.cpu_count() or 1) if workers is None else workers
    rendered = figures.render(root, seed=seed, split=split, count=count, workers=workers, of=of)
    return list(track(rendered, total=count, what=f"rendering {split}", unit="videos"))


def _render(section: PrepareFigures, workers: int) -> Listing:
    """Render the videos that are not there yet."""
    root, seed, of = Path(section.root), section.seed, figures.SETS[section.set]
    samples = [
        sample
        for split, number in section.splits.items()
        for sample in render_split(
            root, seed=seed, split=split, count=number, of=of, workers=workers
        )
    ]
    rows = [Listed(sample, "figures") for sample in samples]
    return make_listing("rendered", {"action": list(of.classes)}, rows)


def _listed(section: PrepareK400 | PrepareHmdb51 | PrepareEpic100 | PrepareFolder) -> Listing:
    root = Path(section.root)
    annotations = Path(section.annotations) if section.annotations else None
    if isinstance(section, PrepareK400):
        return list_k400(root, annotations)
    if isinstance(section, PrepareHmdb51):
        return list_hmdb51(root, section.official_split, annotations)
    if isinstance(section, PrepareEpic100):
        return list_epic100(root, annotations, section.prefer)
    return list_folder(root, section.annotations)


def _wanted_splits(run: Run) -> dict[str, list[str]]:
    """The splits that a config reads, with the fields that name them."""
    wanted = defaultdict(list)
    for field, name in splits_asked(run.model_dump()):
        wanted[name].append(field)
    return dict(wanted)


def _check_splits(run: Run, listing: Listing, wanted: dict[str, list[str]]) -> None:
    """Refuse a config of a folder whose splits have other names.

    Raises:
        DatasetError: a split is not listed.
    """
    there = sorted({row.sample.split for row in listing.rows})
    for name, fields in wanted.items():
        if name not in there:
            raise DatasetError(
                f"configs/{run.name}.yaml reads the split {name} ({' and '.join(fields)}), but "
                f"{run.prepare.root} has {', '.join(there)} ({listing.layout}); name those in the "
                "config, or rename them (without a column split, a CSV's name is its split)"
            )


def _known_answers(run: Run, listing: Listing) -> dict[str, Answer]:
    """What an earlier probe was told by videos that are the same today."""
    paths = _paths(listing)
    answers = read_answers(run.outputs / _ANSWERS, Path(run.prepare.root), paths)
    console.print(f"{count(len(answers))} of {plural(len(paths), 'video')} are probed already")
    return answers


def _paths(listing: Listing) -> list[str]:
    return list(dict.fromkeys(row.sample.path for row in listing.rows if row.status == "found"))


def _probe(run: Run, listing: Listing, workers: int) -> Listing:
    """The listing with what cannot be decoded as unreadable; goes on after an interruption."""
    root, file, paths = Path(run.prepare.root), run.outputs / _ANSWERS, _paths(listing)
    answers = _known_answers(run, listing) if file.is_file() else {}
    with meter("probing", total=len(paths), unit="videos") as counter:
        counter.advance(len(answers))
        known = dict(answers)
        for answer in probe_all(file, root, paths, known, workers):
            answers[answer.path] = answer
            counter.advance()
    return _judged(listing, answers)


def _judged(listing: Listing, answers: Mapping[str, Answer]) -> Listing:
    """The listing with what its video's answer makes unreadable; videos without one stay."""
    rows = []
    for row in listing.rows:
        problem = None
        answer = answers.get(row.sample.path) if row.status == "found" else None
        if answer is not None:
            problem = answer.error
            if problem is None and row.sample.start_sec >= answer.duration_sec:
                problem = (
                    f"starts at {row.sample.start_sec:.2f} s, "
                    f"but the video lasts {answer.duration_sec:.2f} s"
                )
        rows.append(row if problem is None else row._replace(status="unreadable", reason=problem))
    return replace(listing, rows=rows)


def _check_readable(run: Run, listing: Listing) -> None:
    """Refuse a dataset of which nothing is left after probing.

    Raises:
        DatasetError: the first unreadable video is named, and where the others are.
    """
    if any(row.status == "found" for row in listing.rows):
        return
    bad = [row for row in listing.rows if row.status == "unreadable"]
    raise DatasetError(
        f"none of {plural(len(bad), 'sample')} that are in {run.prepare.root} can be read: "
        f"{bad[0].sample.path}: {bad[0].reason}. {run.outputs / _ANSWERS} has the reason of "
        "each; videos that change are asked again by the same command"
    )


def videos_sha256(root: Path, samples: Samples) -> str:
    """One digest over the bytes of all videos, in the table's order."""
    digest = hashlib.sha256()
    for path in samples.table["path"].to_pylist():
        content = (root / path).read_bytes()
        digest.update(f"{path}|{len(content)}|".encode())
        digest.update(content)
    return digest.hexdigest()


@contextmanager
def linked_root(root: Path, videos: Path) -> Iterator[bool]:
    """Make the config's root a link to the folder of the videos, unless it is that folder.

    Every later command, and DVC, then finds the videos by the config alone. If they turn out not to
    be the dataset the link goes again, so that the next one may lead elsewhere.

    Yields:
        Whether a link was made.

    Raises:
        DatasetError: there is no such folder, or something else stands at the root.
    """
    if not videos.is_dir():
        raise DatasetError(f"--root {videos} is no folder")
    if root.exists() and root.resolve() == videos.resolve():
        yield False
        return
    if root.is_symlink() or root.exists():
        what = f"a link to {root.readlink()}" if root.is_symlink() else "another folder or file"
        raise DatasetError(
            f"--root {videos}: {root} (prepare.root of the config) is {what} already. Remove or "
            f"rename {root}, leave --root out to read what is there, or write {videos} as "
            "prepare.root"
        )
    root.parent.mkdir(parents=True, exist_ok=True)
    root.symlink_to(videos.resolve(), target_is_directory=True)
    try:
        yield True
    except DatasetError:
        root.unlink()
        raise
