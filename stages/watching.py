"""What people watch while a student trains: JSON lines and CSV always, DVCLive and TensorBoard.

All of it follows from the records of the epochs so far, so a training that goes on after a kill
writes them anew and no epoch is missing or there twice.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.resuming import Past
from stages.files import write_csv, write_json_lines


class Watch:
    """Writes the records of one training, until it is closed.

    Below the folder come to lie `metrics.jsonl` and `metrics.csv`, a line per epoch; `dvclive/`,
    for `dvc plots` and `dvc exp show`; and `tensorboard/`.
    """

    def __init__(self, folder: Path, past: Past) -> None:
        """Write what has been so far.

        Args:
            folder: the training's.
            past: its epochs, as a checkpoint has them.
        """
        # Here: the two take two seconds, which commands that only import this should not wait.
        from dvclive.live import Live  # noqa: PLC0415
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415

        self._folder = folder
        events = folder / "tensorboard"
        shutil.rmtree(events, ignore_errors=True)
        self._board = SummaryWriter(str(events))
        self._live: Any = Live(
            str(folder / "dvclive"),
            save_dvc_exp=False,  # experiments are `dvc exp`'s
            dvcyaml=None,  # the project's own dvc.yaml names the plots
            report=None,
            monitor_system=False,
        )
        for record in past.records:
            self._tell(record)
        if past.records:
            self._write(past)

    def close(self) -> None:
        """Close what is open."""
        self._live.end()
        self._board.close()

    def epoch(self, past: Past) -> None:
        """Write an epoch: the last one of these."""
        self._tell(past.records[-1])
        self._write(past)

    def _tell(self, record: Mapping[str, Any]) -> None:
        epoch = record["epoch"]
        self._live.step = epoch
        for name, value in record.items():
            if name != "epoch":
                self._live.log_metric(name, value)
                self._board.add_scalar(name, value, epoch)
        self._live.make_summary()
        self._board.flush()

    def _write(self, past: Past) -> None:
        write_json_lines(self._folder / "metrics.jsonl", past.records)
        write_csv(self._folder / "metrics.csv", pa.Table.from_pylist(past.records))
