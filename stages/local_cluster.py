"""A dask cluster on this machine: a worker for each GPU, or shares of the CPU."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import dask
import torch
from distributed import Nanny, Scheduler, SpecCluster

from pipeline.processes import ignoring_interrupts
from stages.chunk_arrays import ExtractError
from stages.cluster_worker import GPU, TASKS
from stages.progress import console
from stages.wording import plural

_QUIET = logging.CRITICAL  # of dask on this machine: errors reach this process, which tells them


def check_gpus(workers: int, device: torch.device) -> int:
    """Return how many GPUs there are for so many workers; 0 on a CPU.

    Raises:
        ExtractError: there are fewer than workers.
    """
    gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    if device.type == "cuda" and workers > gpus:
        raise ExtractError(f"--workers {workers}: this machine has {plural(gpus, 'GPU')}")
    return gpus


@contextmanager
def local_cluster(workers: int, device: torch.device) -> Iterator[str]:
    """Start a scheduler and workers on this machine, reachable from it alone.

    Of GPUs each worker has its own, of a CPU its share of the cores.

    Args:
        workers: how many.
        device: what they compute on.

    Yields:
        The scheduler's address.

    Raises:
        ExtractError: there are fewer GPUs.
    """
    gpus = check_gpus(workers, device)
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = named.split(",") if named else [str(index) for index in range(gpus)]
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // workers))
    settings = {
        "distributed.worker.daemon": False,  # or a worker could not have decoders
        "distributed.scheduler.allowed-failures": 10,
        # Where torch takes longer than this to be imported, a worker that died and is being started
        # anew would be given up.
        "distributed.deploy.lost-worker-timeout": "1 hour",
        "distributed.nanny.pre-spawn-environ": {"OMP_NUM_THREADS": threads},
    }
    host = "127.0.0.1"

    def worker(index: int) -> dict[str, Any]:
        options: dict[str, Any] = {"nthreads": TASKS, "memory_limit": 0, "host": host}
        options["silence_logs"] = _QUIET
        if gpus:
            options |= {"resources": {GPU: 1}, "env": {"CUDA_VISIBLE_DEVICES": visible[index]}}
        return {"cls": Nanny, "options": options}

    with dask.config.set(settings):
        with ignoring_interrupts():  # dask's thread, which this starts, starts the workers
            cluster = SpecCluster(
                workers={index: worker(index) for index in range(workers)},
                scheduler={
                    "cls": Scheduler,
                    "options": {"host": host, "port": 0, "dashboard_address": f"{host}:0"},
                },
                silence_logs=_QUIET,
            )
        with cluster:
            console.print(
                f"{plural(workers, 'worker')} on this machine, scheduler "
                f"{cluster.scheduler_address}"
                + (f", dashboard {cluster.dashboard_link}" if _has_dashboard() else "")
            )
            yield cluster.scheduler_address


def _has_dashboard() -> bool:
    return find_spec("bokeh") is not None
