"""Pictures for a page: data URIs of at most so many bytes."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_QUALITIES = (85, 70, 50, 30, 10)


def picture_uri(pixels: NDArray[np.uint8], most_bytes: int) -> str:
    """A picture as WebP, of the best quality that fits; of the least one where none does.

    Args:
        pixels: (H, W, 3), no side above 16,383.
        most_bytes: of the file; its data URI takes a third more.
    """
    content = b""
    for quality in _QUALITIES:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="WEBP", quality=quality, method=4)
        content = buffer.getvalue()
        if len(content) <= most_bytes:
            break
    return "data:image/webp;base64," + base64.b64encode(content).decode()
