"""Extraction by workers of dask: the bytes of one process, whatever dies on the way."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import cast

import dask
import psutil
import pytest
from distributed import Client, LocalCluster

from cache import StagedChunk, open_cache, verify_cache
from cache_making import contents
from chain_making import nudge_weights, options, write_config
from pipeline.config import Run
from stages import cluster
from stages.chunk_arrays import ExtractError
from stages.cluster_progress import Progress
from stages.extract import Options, extract
from stages.making import ChunkMaker
from stages.progress import Meter

# What dask says of workers that go away; the warnings of its own threads.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def small_chunks(mini: Run) -> Run:
    """14 chunks of one sample, made by one process to `one`."""
    run = write_config(Path.cwd(), ("chunk_samples: 5", "chunk_samples: 1"))
    extract(run, replace(options(run), out=Path("one")))
    shutil.rmtree(run.cache_path)
    return run


def commits(run: Run) -> int:
    return len(list((run.cache_path / "commits").glob("[0-9]*.json")))


def wait_for(condition: Callable[[], object], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def meanwhile(disturb: Callable[[], None]) -> Iterator[None]:
    """Do something beside the main thread; what it raises is raised at the end."""
    errors: list[BaseException] = []

    def guarded() -> None:
        try:
            disturb()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    yield
    thread.join()
    if errors:
        raise errors[0]


def check(run: Run) -> None:
    """The cache is that of one process, and nothing else is left."""
    assert contents(run.cache_path) == contents(Path("one"))
    assert verify_cache(run.cache_path).ok
    assert not (run.cache_path / ".staging").exists()


CLIENT = """
import sys
from dataclasses import replace
from pathlib import Path
from chain_making import options
from pipeline.config_file import load_config
from stages.extract import extract

if __name__ == "__main__":
    sys.argv = sys.argv[1:]  # the test's, which its cache records
    run = load_config(Path("configs/mini.yaml"))
    extract(run, replace(options(run), workers=2))
"""


def test_killed_workers_and_a_killed_client_change_no_byte(small_chunks: Run) -> None:
    run = small_chunks
    Path("client.py").write_text(CLIENT)
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    client = subprocess.Popen(
        [sys.executable, "client.py", *sys.argv],
        env={**os.environ, "PYTHONPATH": paths},
        stderr=subprocess.DEVNULL,
    )
    killed = set()
    for after in (1, 3):
        wait_for(lambda after=after: commits(run) >= after)  # type: ignore[misc]
        workers = [one for one in psutil.Process(client.pid).children() if is_worker(one)]
        for one in workers:
            one.send_signal(signal.SIGINT)  # as a terminal does on Ctrl-C: it is the client's
        killed.add(random.choice(workers).pid)
        for pid in killed & {one.pid for one in workers}:
            os.kill(pid, signal.SIGKILL)
    assert len(killed) == 2
    wait_for(lambda: commits(run) >= 6)  # those that were started anew work
    workers = psutil.Process(client.pid).children()
    client.kill()
    client.wait()
    assert psutil.wait_procs(workers, timeout=30)[1] == []  # they go with it
    assert commits(run) < 14
    extract(run, options(run))
    check(run)


def is_worker(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return any("spawn_main" in part for part in process.cmdline())
    return False


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def scheduler_and_worker(port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A scheduler and one worker as a team starts them; yields the scheduler."""
    dask = [sys.executable, "-m", "dask"]
    address = f"tcp://127.0.0.1:{port}"
    scheduler = subprocess.Popen(
        [*dask, "scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"],
        stderr=subprocess.DEVNULL,
    )
    worker = subprocess.Popen(
        [*dask, "worker", address, "--nthreads", "2", "--no-dashboard", "--death-timeout", "20"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        stderr=subprocess.DEVNULL,
    )
    try:
        yield scheduler
    finally:
        for process in (scheduler, worker):
            process.kill()
            process.wait()


def on_scheduler(run: Run, port: int) -> Options:
    return replace(options(run), scheduler=f"tcp://127.0.0.1:{port}")


def test_a_scheduler_that_is_started_again_goes_on(small_chunks: Run) -> None:
    run, port = small_chunks, free_port()
    second = scheduler_and_worker(port)
    with scheduler_and_worker(port) as first:

        def restart() -> None:
            wait_for(lambda: commits(run) >= 2)
            first.kill()
            first.wait()
            second.__enter__()

        with meanwhile(restart):
            extract(run, on_scheduler(run, port))
    second.__exit__(None, None, None)
    check(run)


def test_a_teams_cluster_makes_the_cache_or_says_why_not(small_chunks: Run) -> None:
    run = small_chunks
    with LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
    ) as cluster:
        asked = replace(options(run), scheduler=cluster.scheduler_address)
        with pytest.raises(ExtractError, match=r"1 worker offers the resource GPU"):
            extract(run, replace(asked, worker_device="cuda"))
        extract(run, asked)
        check(run)
        # Clips can be added later; another run of the same cache is no stranger to the scheduler.
        more = run.extract.model_copy(
            update={"clips": [*run.extract.clips, "pytorchvideo/x3d_tiny"]}
        )
        with_clips = run.model_copy(update={"extract": more})
        extract(with_clips, replace(asked, views=asked.views + 1))
        assert open_cache(run.cache_path).coverage == 1
        assert "clip/pytorchvideo/x3d_tiny" in open_cache(run.cache_path).fields
        shutil.rmtree(run.cache_path)
        recipes = []

        from stages import cluster_worker as stage

        real = stage.recipe_for

        def other(*given: object, **named: object) -> stage.Recipe:
            recipes.append(real(*given, **named))  # type: ignore[arg-type]
            nudge_weights(run.teach.cnn)
            return recipes[-1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stage, "recipe_for", other)
            with pytest.raises(ExtractError, match="has other teachers than the process that asks"):
                extract(run, asked)


def test_workers_that_never_come_back_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_PATIENCE_SEC", 0.5)
    monkeypatch.setattr(cluster, "_LOOK_EVERY_SEC", 0.1)
    with Client(n_workers=0, processes=False, dashboard_address=None) as client:
        future = client.submit(max, 1, 2)
        with pytest.raises(ExtractError, match=r"all workers are gone, and for .* none came back"):
            list(cluster._as_they_come(client, [future]))


def test_a_surprise_in_a_worker_is_told_with_the_chunk_and_where_it_came_from(
    small_chunks: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def surprise(*_given: object) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(ChunkMaker, "make", surprise)
    with LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
    ) as local:
        asked = replace(options(small_chunks), scheduler=local.scheduler_address)
        with pytest.raises(ExtractError) as told:
            extract(small_chunks, asked)
    message = str(told.value)
    assert re.match(r"chunk \d+ could not be made by the worker inproc://.*out of luck", message)
    assert "in surprise" in message
    assert commits(small_chunks) == 0


@pytest.mark.parametrize("address", ["foo", "", "http://head:8786", "127.0.0.1"])
def test_what_is_no_address_of_a_scheduler_is_told(small_chunks: Run, address: str) -> None:
    with pytest.raises(ExtractError, match=r"looks like tcp://head:8786|no scheduler answers"):
        extract(small_chunks, replace(options(small_chunks), scheduler=address))


def test_a_scheduler_that_is_not_there_is_told_before_anything_begins(small_chunks: Run) -> None:
    asked = replace(options(small_chunks), scheduler=f"tcp://127.0.0.1:{free_port()}")
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(ExtractError, match="no scheduler answers"),
    ):
        extract(small_chunks, asked)
    assert not small_chunks.cache_path.exists()


def test_the_pace_of_a_worker_counts_from_when_it_was_first_heard_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [1000.0]
    monkeypatch.setattr("stages.cluster_progress.time.monotonic", lambda: now[0])
    notes: list[str] = []

    class Notes:
        def note(self, text: str) -> None:
            notes.append(text)

        def advance(self, views: int) -> None:
            pass

    progress = Progress(cast("Meter", Notes()))

    def finish(chunk: int, host: str) -> None:
        staged = StagedChunk("", chunk, (0,), {}, {}, {}, {"host": host, "pid": 7})
        progress.finish(staged, 40, 2)

    finish(0, "a")  # until now it loaded
    now[0] += 10
    finish(1, "a")
    finish(2, "b")
    now[0] += 5
    finish(3, "b")
    now[0] += 400  # nothing is heard of a
    progress.hear((0.0, {"chunk": 4, "views": 10, "by": ["b", 7]}))
    finish(4, "b")
    rates = [None, "4.0", "4.0", "4.0 to 8.0", "0.2"]
    each = [f"2 workers{f' with {rate} views/s each' if rate else ''}, 0 failed" for rate in rates]
    assert notes == each
