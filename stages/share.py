"""The commands `push`, `pull` and `ls` of `dualkd-cache`: caches travel by a shelf."""

from __future__ import annotations

import getpass
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from cache import (
    CacheError,
    Commits,
    Layout,
    Selection,
    Shelved,
    TeacherCache,
    about_shelved,
    command,
    open_cache,
    public_url,
    pull_cache,
    push_cache,
    shelved,
)
from stages.progress import PlainConsole, byte_meter, console
from stages.wording import plural

_SHOWN_DIGITS = 12  # of a fingerprint


def push(
    path: Path, url: str, *, author: str | None, jobs: int, ours: bool, check: bool
) -> dict[str, Any]:
    """Send what a shelf lacks of a cache.

    Raises:
        cache.CacheError: the cache there holds other rows, a file is damaged, or cannot be sent.
    """
    done = push_cache(
        path,
        url,
        author=author or _author(),
        about=about_cache,
        jobs=jobs,
        ours=ours,
        check=check,
        metered=partial(byte_meter, "sending"),
    )
    _tell(
        f"{plural(done.files, 'chunk file')} sent, {done.standing} were there; "
        f"{done.bytes / 1e6:.1f} MB with metadata. {done.coverage:.1%} of the rows are there now"
    )
    _tell(command("dualkd-cache", "pull", done.url, "PATH"))
    return vars(done)


def pull(url: str, path: Path, selection: Selection, *, jobs: int, theirs: bool) -> dict[str, Any]:
    """Fetch what a folder lacks of a cache.

    Raises:
        cache.CacheError: the folder holds another cache or other rows, or a file cannot be fetched.
    """
    done = pull_cache(
        url,
        path,
        selection,
        jobs=jobs,
        theirs=theirs,
        metered=partial(byte_meter, "fetching"),
    )
    _tell(
        f"{plural(done.files, 'chunk file')} fetched, {done.standing} were here; "
        f"{done.bytes / 1e6:.1f} MB from {done.url}"
    )
    cache = open_cache(path)
    if selection.fraction is not None:
        _tell_fraction(cache, selection)
    if done.left:
        coverage = cache.coverage_by_field()
        lacking = [f"{name} {share:.0%}" for name, share in coverage.items() if share < 1]
        _tell(
            f"{path} is partial: {plural(done.left, 'chunk file')} of there were not asked for "
            f"(here now: {', '.join(lacking) or 'all fields'}). The same command without a choice "
            "fetches them"
        )
    return vars(done)


def catalogue(url: str) -> list[dict[str, Any]]:
    """What is on a shelf, newest first; plain JSON.

    Returns:
        of each cache `url`, `dataset`, `fingerprint`, `author`, `time` of the last push, what
        `about_cache` says, and `damaged`, why it cannot be read, where that is known.

    Raises:
        cache.CacheError: there is nothing, or it cannot be read.
    """
    found = shelved(url)
    if not found:
        raise CacheError(
            f"{public_url(url)} holds no caches: "
            f"`{command('dualkd-cache', 'push', 'PATH', public_url(url))}` puts one there"
        )
    facts = [
        {
            "url": one.cache.url,
            "dataset": record.dataset,
            "fingerprint": record.fingerprint,
            "author": record.author,
            "time": record.time,
            **_about(one),
        }
        for one in found
        for record in one.records[:1]
    ]
    return sorted(facts, key=lambda fact: str(fact["time"]), reverse=True)


def _about(one: Shelved) -> dict[str, Any]:
    """What a cache holds by all of its records; by the newest one where they cannot be read."""
    try:
        return about_shelved(one, about_cache)
    except CacheError as error:
        return {**one.records[0].about, "damaged": str(error)}


def about_cache(layout: Layout, commits: Commits) -> dict[str, Any]:
    """What a catalogue shows of a cache.

    Returns:
        `teachers` (role → `model`, `top1` or None), `samples`, `views`, `fields` (name → the part
        of its rows that is there), `bytes`, `coverage` (of rows with all fields).
    """
    accuracy = _mapping(layout.provenance.get("accuracy"))
    teachers = {**_mapping(layout.identity.get("teachers")), **layout.added}
    return {
        "teachers": {
            str(role): {
                "model": str(_mapping(teacher).get("model")),
                "top1": _mapping(accuracy.get(role)).get("top1"),
            }
            for role, teacher in teachers.items()
        },
        "samples": layout.num_samples,
        "views": layout.num_views,
        "fields": {name: commits.coverage(layout, [name]) for name in layout.fields},
        "bytes": int(sum(sizes.sum() for sizes in commits.sizes.values())),
        "coverage": commits.coverage(layout, layout.fields),
    }


def show(facts: list[dict[str, Any]]) -> None:
    """Print a catalogue, for people."""
    out = PlainConsole()
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("cache", "teachers, top-1", "samples × views", "size", "made", "pushed"):
        table.add_column(column, overflow="fold")
    for fact in facts:
        teachers = [
            f"{role} {teacher['model'].rpartition('/')[2]}{_percent(teacher['top1'])}"
            for role, teacher in fact["teachers"].items()
        ]
        table.add_row(
            f"{fact['dataset']}/{fact['fingerprint'][:_SHOWN_DIGITS]}",
            "\n".join(teachers),
            f"{fact['samples']} × {fact['views']}",
            f"{fact['bytes'] / 1e6:.1f} MB",
            f"{fact['coverage']:.0%}",
            f"{_age(fact['time'])} ago\nby {fact['author']}",
        )
    out.print(table)
    for fact in facts:
        if "damaged" in fact:
            out.print(f"{fact['url']} is damaged: {fact['damaged']}", soft_wrap=True)
    shelf = facts[0]["url"].rpartition("/")[0].rpartition("/")[0]
    out.print(command("dualkd-cache", "pull", f"{shelf}/CACHE", "PATH"), soft_wrap=True)


def _tell_fraction(cache: TeacherCache, selection: Selection) -> None:
    """Say why more samples came than were asked for."""
    came, every = selection.samples(cache.layout), cache.num_samples
    _tell(
        f"--fraction {selection.fraction:g} took {came} of {every} samples ({came / every:.0%}): a "
        f"cache travels in whole chunks, here of {cache.chunk_samples} samples"
    )


def _tell(line: str) -> None:
    """Print a line as one, so that what it says can be copied."""
    console.print(line, soft_wrap=True)


def _percent(share: object) -> str:
    return f" {share:.1%}" if isinstance(share, float) else ""


def _age(time: str) -> str:
    """How long ago a time was, in its largest unit."""
    try:
        seconds = (datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds()
    except (TypeError, ValueError):
        return "unknown time"
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= size:
            return plural(int(seconds // size), unit)
    return plural(max(0, int(seconds)), "second")


def _author() -> str:
    """Who pushes: as git knows them, else as this machine does."""
    try:
        asked = subprocess.run(
            ["git", "config", "user.name"],  # noqa: S607
            capture_output=True,
            text=True,
            check=False,
        )
        name = asked.stdout.strip()
    except OSError:
        name = ""
    if name:
        return name
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "unknown"


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
