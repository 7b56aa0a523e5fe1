"""Pictures for a page: data URIs of at most so many bytes."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_QUALITIES = (85, 70, 50, 30, 10)


def picture_uri(pixels: NDArray[np.uint8], most_bytes: int) -> str:
    """A picture as WebP, of the best quality that fits; at half its size where none does.

    Args:
        pixels: (H, W, 3), no side above 16,383.
        most_bytes: of the file; its data URI takes a third more.
    """
    image = Image.fromarray(pixels)
    content = _encoded(image, most_bytes)
    while len(content) > most_bytes:
        image = image.reduce(2)
        content = _encoded(image, most_bytes)
    return "data:image/webp;base64," + base64.b64encode(content).decode()


def _encoded(image: Image.Image, most_bytes: int) -> bytes:
    """The best quality that fits, or the worst."""
    content = b""
    for quality in _QUALITIES:
        buffer = io.BytesIO()
        image.save(buffer, format="WEBP", quality=quality, method=4)
        content = buffer.getvalue()
        if len(content) <= most_bytes:
            break
    return content
