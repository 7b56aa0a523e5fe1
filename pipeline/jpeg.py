"""Frames as JPEG files of at most so many bytes, padded with zeros to one length.

By PIL: torchvision writes and reads the same bytes and pixels, but deprecates its functions (0.29).
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_END = b"\xff\xd9"
# Of real clips of 182 pixels a frame takes 0.35 bytes a pixel at quality 95 and rarely more than
# 0.44; some 600 bytes of each file are tables, which do not grow with the picture.
_BYTES_PER_PIXEL = 0.4
_TABLE_BYTES = 640
_STEP_BYTES = 512
# The first at which a frame fits is taken. Noise of 182 pixels takes 0.45 bytes a pixel at 50, and
# 0.06 at 1.
_QUALITIES = (*range(95, 0, -5), 1)


class JpegError(ValueError):
    """A frame cannot be stored, or a file does not hold it; the message says why."""


def frame_bytes(size: int) -> int:
    """The room for a frame of `size` × `size` pixels; it depends on nothing else."""
    wanted = _TABLE_BYTES + _BYTES_PER_PIXEL * size**2
    return int(-(-wanted // _STEP_BYTES)) * _STEP_BYTES


def encode_frames(frames: NDArray[np.uint8], most: int) -> NDArray[np.uint8]:
    """Encode each frame (4:2:0) at the highest of the qualities 95, 90, …, 5, 1 at which it fits.

    Args:
        frames: (N, H, W, 3) uint8, RGB.
        most: bytes of the room for one.

    Returns:
        (N, most) uint8, each row a whole JPEG file and zeros behind its end.

    Raises:
        JpegError: a frame does not fit at any quality.
    """
    files = np.zeros((len(frames), most), np.uint8)
    for file, frame in zip(files, frames, strict=True):
        encoded = _fitting(Image.fromarray(frame), most)
        file[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    return files


def _fitting(image: Image.Image, most: int) -> bytes:
    for quality in _QUALITIES:
        buffer = io.BytesIO()
        image.save(buffer, format="JPEG", quality=quality, subsampling="4:2:0")
        if buffer.tell() <= most:
            return buffer.getvalue()
    raise JpegError(
        f"a frame of {image.width}×{image.height} takes {buffer.tell()} bytes as JPEG of quality "
        f"{quality}; there is room for {most}"
    )


def decode_frames(files: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Undo `encode_frames`, up to what JPEG loses.

    Args:
        files: (N, bytes) uint8, each row a JPEG file and zeros behind its end.
        size: height and width of the frames.

    Returns:
        (N, size, size, 3) uint8, RGB.

    Raises:
        JpegError: a row is no JPEG file, is not whole, or holds another picture than one of that
            size in colour.
    """
    frames = np.empty((len(files), size, size, 3), np.uint8)
    for place, padded in enumerate(files):
        file = padded.tobytes().rstrip(b"\0")
        if not file.endswith(_END):  # zeros in the place of its second half decode to something
            raise JpegError(f"frame {place} does not end as a JPEG file")
        try:
            image = Image.open(io.BytesIO(file), formats=("JPEG",))
            # Before it is decoded: no file gets more memory than its frame.
            if (image.size, image.mode) != ((size, size), "RGB"):
                raise JpegError(
                    f"frame {place} is {image.width}×{image.height} in {image.mode}, not "
                    f"{size}×{size} in RGB"
                )
            frames[place] = np.asarray(image)
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            reason = str(error).partition(" <")[0]  # without an object's address
            raise JpegError(f"frame {place}: {reason}") from error
    return frames
