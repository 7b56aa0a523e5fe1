"""Chunks that other processes stage: committed once, by the holder of the lock, or dropped."""

from __future__ import annotations

import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from cache import (
    CacheError,
    Kind,
    StagedChunk,
    open_cache,
    open_writer,
    read_layout,
    stage_chunk,
    verify_cache,
)
from cache_making import IDENTITY, chunk_arrays, contents, fill_cache, full_cache, make_cache

OTHER = """
    import pickle, sys
    from types import SimpleNamespace
    from cache import read_layout, stage_chunk
    from cache_making import chunk_arrays

    layout = read_layout(sys.argv[1])
    writer = SimpleNamespace(layout=layout, sample_range=layout.sample_range)
    arrays = chunk_arrays(writer, 1, (0, 1))
    staged = stage_chunk(layout, 1, arrays, (0, 1), {})
    sys.stdout.buffer.write(pickle.dumps(staged))
"""


def stage_elsewhere(path: Path) -> StagedChunk:
    """Have another process stage chunk 1."""
    root = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(OTHER), str(path)],
        env={"PYTHONPATH": f"{root}:{root.parent}"},
        capture_output=True,
        check=True,
    )
    staged = pickle.loads(done.stdout)
    assert isinstance(staged, StagedChunk)
    return staged


def test_a_chunk_of_another_process_is_taken_in(tmp_path: Path) -> None:
    with make_cache(tmp_path / "c") as writer:
        staged = stage_elsewhere(tmp_path / "c")
        assert open_cache(tmp_path / "c").coverage == 0
        (finding,) = {find.kind for find in verify_cache(tmp_path / "c").findings}
        assert finding == Kind.UNFINISHED  # it is no damage
        writer.commit(staged)
        fill_cache(writer)
    assert contents(tmp_path / "c") == contents(full_cache(tmp_path / "full"))
    assert verify_cache(tmp_path / "c").ok


def test_of_two_that_made_a_chunk_the_first_one_stands(tmp_path: Path) -> None:
    with make_cache(tmp_path / "c") as writer:
        one, two = (stage_elsewhere(tmp_path / "c") for _ in range(2))
        writer.commit(two)
        before = contents(tmp_path / "c")
        with pytest.raises(CacheError, match=r"chunk 1 .* is already committed"):
            writer.commit(one)
    after = contents(tmp_path / "c")  # the writer left none of what was staged
    assert after == {name: before[name] for name in before if ".staging" not in name}


def test_nothing_is_staged_where_nobody_writes(tmp_path: Path) -> None:
    with make_cache(tmp_path / "c") as writer:
        arrays = chunk_arrays(writer, 1, (0, 1))
        stage_elsewhere(tmp_path / "c")  # and never committed
    assert not (tmp_path / "c" / ".staging").exists()
    with pytest.raises(CacheError, match=r"is not being written: no \.staging in it"):
        stage_chunk(read_layout(tmp_path / "c"), 1, arrays, (0, 1), {})


def test_a_link_in_the_place_of_the_staging_folder_is_refused(tmp_path: Path) -> None:
    make_cache(tmp_path / "c").close()
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("mine")
    (tmp_path / "c" / ".staging").symlink_to(tmp_path / "precious")
    with pytest.raises(CacheError, match=r"\.staging is a link"):
        open_writer(tmp_path / "c", identity=IDENTITY)
    assert (tmp_path / "precious" / "file").read_text() == "mine"
