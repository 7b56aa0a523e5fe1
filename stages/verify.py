"""`dualkd-cache verify` and `dualkd-cache repair`: their progress, and what they say."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache import CacheError, Kind, command, open_cache, repair_cache, verify_cache
from stages.progress import PlainConsole, track
from stages.recorded import other_versions

if TYPE_CHECKING:  # torch takes seconds to import
    from stages.recompute import Recomputed

_console = PlainConsole(soft_wrap=True)
_OTHER_FRAMES = (
    "{other_frames} of {rows} rows have other frames here: these copies of the videos are "
    "re-encoded, resized or cut in another way, or another decoder reads them. That is no damage "
    "of the cache. What it means: students that train on clips stored in the cache are not "
    "touched. Where clips are decoded from these copies, the student sees other pixels than the "
    "teachers saw: the figures above say how far the teachers' answers to these copies are from "
    "the stored ones. What is near acts as noise of the targets; where they are far off, another "
    "picture or another stretch of time is shown, and the stored targets are wrong for it."
)


def verify(path: Path, again: Callable[[], Recomputed] | None) -> dict[str, Any]:
    """Verify a cache, with progress; afterwards, if it is sound, make rows of it again.

    Args:
        path: the cache.
        again: compares with the config's teachers, samples and videos; None: the cache alone.

    Returns:
        plain JSON: `path`, `sound` (every byte is as recorded), `ok` (and what was asked for is
        proven), `refused` (why it is not the config's cache), `fingerprint`,
        `coverage`, `rows` by status, `files`, `bytes`, `seconds`, `findings`, `versions` that are
        others here (name → recorded, present), and `recomputed` (`rows`, `fields`, `findings`,
        `left_out`, `other_frames`, `lacking`), null where nothing was made again.

    Raises:
        cache.CacheError: there is no cache.
    """
    started = time.monotonic()
    proof = verify_cache(path, _track)
    seconds = time.monotonic() - started
    recomputed, refused = None, None
    if again and proof.ok:  # rows of a damaged cache prove nothing
        from stages.recompute import RecomputeError  # noqa: PLC0415 (torch takes seconds to import)

        try:
            recomputed = again()
        except (CacheError, RecomputeError) as error:
            refused = str(error)
    return {
        "path": str(path),
        "sound": proof.ok,
        "ok": proof.ok and refused is None and not (recomputed and recomputed.findings),
        "refused": refused,
        "fingerprint": proof.fingerprint,
        "coverage": proof.coverage,
        "rows": proof.rows,
        "files": proof.files,
        "bytes": proof.bytes,
        "seconds": seconds,
        "findings": [asdict(finding) for finding in proof.findings],
        "versions": other_versions(proof.packages, proof.provenance),
        "recomputed": _plain(recomputed) if recomputed else None,
    }


def show(facts: dict[str, Any]) -> None:
    """Print what `verify` says, for people."""
    rate = facts["bytes"] / 1e6 / max(facts["seconds"], 1e-9)
    _console.print(
        f"{facts['path']}: {facts['files']} files, {facts['bytes'] / 1e6:.1f} MB read in "
        f"{facts['seconds']:.1f} s ({rate:.0f} MB/s)"
    )
    if facts["fingerprint"] is None:
        _console.print("the chunks were not read: what says how is damaged")
    else:
        rows = ", ".join(f"{count} {kind}" for kind, count in facts["rows"].items() if count)
        partial = " (what is not there yet is no damage)" if facts["coverage"] < 1 else ""
        _console.print(f"fingerprint {facts['fingerprint']}")
        _console.print(f"coverage {facts['coverage']:.1%}{partial}; rows: {rows or 'none'}")
    for name, (recorded, present) in facts["versions"].items():
        _console.print(f"{name}: made with {recorded}, here is {present} (told, not refused)")
    for finding in facts["findings"]:
        _console.print(f"{finding['kind']}: {finding['file']} {finding['what']}")
        _console.print(f"  {finding['way_out']}")
    if facts["refused"]:
        _console.print(facts["refused"])
    recomputed = facts["recomputed"]
    if recomputed:
        _console.print(f"{recomputed['rows']} rows made again; largest difference by field:")
        for name, field in recomputed["fields"].items():
            codec = f", which allows for {field['codec']}" if field["codec"] else ""
            _console.print(
                f"  {name}: {field['largest']:.3g}, {field['of_tolerance']:.3g} × the tolerance"
                f"{codec}"
            )
        for name in recomputed["lacking"]:
            _console.print(f"  {name}: not compared where it is not here; the cache is partial")
        for name in recomputed["left_out"]:
            _console.print(f"  {name}: not made again, the config has no such extract.added")
        for finding in recomputed["findings"]:
            _console.print(f"{finding['sample_id']}, view {finding['view']}: {finding['what']}")
            _console.print(f"  {finding['way_out']}")
        if recomputed["other_frames"]:
            _console.print(_OTHER_FRAMES.format(**recomputed))
    _console.print(_verdict(facts))


def _verdict(facts: dict[str, Any]) -> str:
    """The last line: what is proven, and what is not."""
    if facts["ok"]:
        return "all is well"
    if not facts["sound"]:
        return "this cache is NOT well: see above"
    lacks = "it is not proven to be what the config describes"
    recomputed = facts["recomputed"]
    if recomputed:
        lacks = "not every row comes out again here"
        if recomputed["other_frames"] == len(recomputed["findings"]):
            lacks = "it is not proven against these videos"
    return f"the cache is sound, every byte as it was recorded; but {lacks}: see above"


def repair(path: Path, *, failed: bool = False) -> bool:
    """Drop the damaged chunks of a cache, with progress, and print what was done.

    Returns:
        whether nothing is left that cannot be repaired.

    Raises:
        cache.CacheError: there is no cache, or another process is writing it.
    """
    repaired = repair_cache(path, _track, failed=failed)
    for dropped in repaired.dropped:
        what = ", ".join(dropped.commits) or "files without commit"
        views = ", ".join(map(str, dropped.views)) or "none"
        _console.print(
            f"dropped: {what} of chunk {dropped.chunk} ({len(dropped.samples)} samples from "
            f"{dropped.samples.start} on); views to make again: {views}"
        )
        if not dropped.findings:
            _console.print("  because it holds failed samples")
        for finding in dropped.findings:
            _console.print(f"  because {finding.file} {finding.what}")
    for finding in repaired.beyond:
        _console.print(f"not repaired: {finding.file} {finding.what}; {finding.way_out}")
    if any(finding.kind == Kind.METADATA for finding in repaired.beyond):
        _console.print("nothing was dropped: chunks are not judged by damaged metadata")
    elif repaired.dropped:
        options = ("--dataset", open_cache(path).dataset, "--out", path)
        extract = command("dualkd-cache", "extract", *options)
        _console.print(f"`{extract}` makes the dropped rows again")
    elif not repaired.beyond:
        _console.print(f"{path} is sound: there was nothing to repair")
    return not repaired.beyond


def _track(units: Sequence[tuple[int, int]]) -> Iterable[tuple[int, int]]:
    return track(units, total=len(units), what="verifying", unit="chunks")


def _plain(recomputed: Recomputed) -> dict[str, Any]:
    return {
        "rows": recomputed.rows,
        "fields": {name: asdict(field) for name, field in recomputed.fields.items()},
        "findings": [asdict(finding) for finding in recomputed.findings],
        "left_out": recomputed.left_out,
        "other_frames": recomputed.other_frames,
        "lacking": sorted(recomputed.lacking),
    }
