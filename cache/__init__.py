"""The teacher cache: storage only, on numpy, zarr, pyarrow; no torch."""

from cache.address import checked_address, is_url, public_url
from cache.chunk_store import Store
from cache.codecs import BitRound, BloscZstd, Codec, Fixed8, codec_from_json
from cache.commands import command
from cache.commits import Commits, package_versions
from cache.create import check_place
from cache.findings import Finding, Kind, Verification
from cache.identity import ABSENT, IdentityMismatch, fingerprint, identity_differences
from cache.info import describe
from cache.layout import Layout
from cache.metadata import is_cache, read_layout
from cache.origin import Origin
from cache.pull import Pulled, pull_cache
from cache.push import Pushed, push_cache
from cache.reader import TeacherCache, open_cache
from cache.remote import Metered
from cache.repair import Dropped, Repair, repair_cache
from cache.schema import (
    FORMAT_VERSION,
    OWN_FIELDS,
    STATUS_FIELD,
    VIEW_COLUMNS,
    CacheError,
    DamagedError,
    Field,
    FieldError,
    RowError,
    Status,
)
from cache.selection import Selection
from cache.shelf import Shelved, shelved
from cache.source import about_shelved
from cache.staging import StagedChunk, stage_chunk
from cache.transfer_errors import TransferError
from cache.union import ConflictError
from cache.verify import verify_cache
from cache.writer import CacheWriter, PendingChunk, create_cache, open_writer

__all__ = [
    "ABSENT",
    "FORMAT_VERSION",
    "OWN_FIELDS",
    "STATUS_FIELD",
    "VIEW_COLUMNS",
    "BitRound",
    "BloscZstd",
    "CacheError",
    "CacheWriter",
    "Codec",
    "Commits",
    "ConflictError",
    "DamagedError",
    "Dropped",
    "Field",
    "FieldError",
    "Finding",
    "Fixed8",
    "IdentityMismatch",
    "Kind",
    "Layout",
    "Metered",
    "Origin",
    "PendingChunk",
    "Pulled",
    "Pushed",
    "Repair",
    "RowError",
    "Selection",
    "Shelved",
    "StagedChunk",
    "Status",
    "Store",
    "TeacherCache",
    "TransferError",
    "Verification",
    "about_shelved",
    "check_place",
    "checked_address",
    "codec_from_json",
    "command",
    "create_cache",
    "describe",
    "fingerprint",
    "identity_differences",
    "is_cache",
    "is_url",
    "open_cache",
    "open_writer",
    "package_versions",
    "public_url",
    "pull_cache",
    "push_cache",
    "read_layout",
    "repair_cache",
    "shelved",
    "stage_chunk",
    "verify_cache",
]
