"""Outputs of networks on their way from a GPU, while it computes what comes next."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray


class CopyToHost:
    """Values that are copied beside the kernels that were queued after them; on a CPU no copy.

    Made in the thread that runs the networks, read in another one.
    """

    def __init__(self, values: Mapping[str, torch.Tensor]) -> None:
        """Begin, on a stream of its own, as soon as the device has made them.

        Args:
            values: field → (batch, ...) float16, all on one device.
        """
        device = next(iter(values.values())).device
        self._done: torch.cuda.Event | None = None
        self._values = dict(values)
        if device.type != "cuda":
            return
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for name, tensor in values.items():
                self._values[name] = tensor.to("cpu", non_blocking=True)  # into pinned memory
                tensor.record_stream(stream)  # else the next batch could be put in its place
            self._done = stream.record_event()

    def arrays(self) -> dict[str, NDArray[np.float16]]:
        """The values as numpy has them; waits until they are here."""
        if self._done is not None:
            self._done.synchronize()
        return {name: tensor.numpy() for name, tensor in self._values.items()}
