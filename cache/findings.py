"""What a proof of a cache says: its findings and its counts."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from cache.layout import repair_hint
from cache.manifest import way_out


class Kind(StrEnum):
    """What a finding is about, which decides who can mend it."""

    METADATA = "metadata"  # the manifest or a file of it: can only be put back
    COMMIT = "commit"  # repair drops it, with its chunk
    CHUNK = "chunk"  # repair drops it
    STRANGER = "stranger"  # no file of the cache's own
    UNFINISHED = "unfinished"  # a writer left it, or is writing it: no damage


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it was recorded.

    Attributes:
        kind: what it is about.
        file: its path inside the cache.
        what: what is wrong: the rest of a sentence that begins with the file.
        way_out: what to do.
        chunk: index along the sample axis, where one chunk is concerned.
        view: index along the view axis, where one view is concerned.
    """

    kind: Kind
    file: str
    what: str
    way_out: str
    chunk: int | None = None
    view: int | None = None


def find(
    folder: Path,
    kind: Kind,
    file: str,
    what: str,
    *,
    chunk: int | None = None,
    view: int | None = None,
) -> Finding:
    """Note a finding in the cache at `folder`, with the way out for its kind."""
    ways_out = {
        Kind.METADATA: way_out(folder),
        Kind.COMMIT: repair_hint(folder),
        Kind.CHUNK: repair_hint(folder),
        Kind.STRANGER: "it is no part of the cache: remove it if nobody needs it",
        Kind.UNFINISHED: "a writer was interrupted or is at work; the next extract removes it",
    }
    return Finding(kind, file, what, ways_out[kind], chunk, view)


@dataclass(frozen=True)
class Verification:
    """What a proof found.

    Attributes:
        path: the cache.
        findings: everything that is not as it was recorded.
        files: number of files that were found.
        bytes: their size.
        fingerprint: of the identity; None where the metadata are too damaged to read the rest.
        provenance: as it is recorded.
        coverage: the part of the rows that is committed; a partial cache can be a sound one.
        rows: number of committed rows by status, of the chunks that could be read.
        packages: package → the versions that the commits record.
    """

    path: Path
    findings: list[Finding]
    files: int
    bytes: int
    fingerprint: str | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    coverage: float = 0.0
    rows: dict[str, int] = field(default_factory=dict)
    packages: dict[str, list[str]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged; what a writer left unfinished is no damage."""
        return all(finding.kind == Kind.UNFINISHED for finding in self.findings)
