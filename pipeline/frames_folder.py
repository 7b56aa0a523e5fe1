"""A folder of pictures as a video: `frame_0000000001.jpg` … at a given rate; or a tar of it.

This is how EPIC-KITCHENS publishes its RGB frames. Frame i, counted from 0 in the order of the
numbers in the files' names, is presented at i / fps seconds. Pillow decodes, and only what is
needed; as it says nothing of JPEG data that are wrong within a whole file, only files that are
missing, cut off or no pictures are found out.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pipeline.video_interface import TOLERANCE_SEC, Video, VideoError, VideoInfo

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
_NUMBER = re.compile(r"(\d+)$")
_LEAST_RATE, _MOST_RATE = Fraction(1, 86400), 10**6  # a picture a day; a very fast camera
_RATE = re.compile(r"\d+(\.\d*)?|\.\d+|\d+/\d+")


def split_rate(path: Path) -> tuple[Path, Fraction | None]:
    """Part a path from its `?fps=` suffix, if it has one.

    Raises:
        VideoError: the rate is not a positive number, or none that a camera has.
    """
    place, mark, written = str(path).rpartition("?fps=")
    if not mark:
        return path, None
    try:
        rate = Fraction(written) if _RATE.fullmatch(written) else Fraction(0)
    except ZeroDivisionError:
        rate = Fraction(0)
    if not _LEAST_RATE <= rate <= _MOST_RATE:
        if rate > 0:
            raise VideoError(
                f"{path}: the rate is not between {_LEAST_RATE} and {_MOST_RATE} frames per second"
            )
        raise VideoError(
            f"{path}: the rate {written!r} is not a positive number or fraction, as in ?fps=59.94 "
            "or ?fps=60000/1001"
        )
    return Path(place), rate


@dataclass(frozen=True)
class _Listing:
    """The frames of a folder or tar, in order.

    Attributes:
        names: of the files.
        offsets: (N,) int64, where the bytes of each begin in a tar.
        sizes: (N,) int64, how many they are.
    """

    names: list[str]
    offsets: NDArray[np.int64] | None = None
    sizes: NDArray[np.int64] | None = None


class FramesFolder(Video):
    """An open folder or tar of frames. Made by `pipeline.video.open_video`."""

    def __init__(self, path: Path, place: Path, rate: Fraction) -> None:
        """List the frames and look at the first.

        Args:
            path: as it was asked for, with the rate.
            place: the folder or the tar.
            rate: frames per second.

        Raises:
            VideoError: there is no such folder or tar, there are no frames in it, their numbers
                have a gap, or the first is no picture.
        """
        self.path, self._place, self._rate = path, place, float(rate)
        try:
            stat = place.stat()
            self._listing = _list(place, stat.st_mtime_ns, stat.st_size)
        except FileNotFoundError as error:
            raise VideoError(f"{place}: no such folder or tar of frames") from error
        except OSError as error:
            raise VideoError(f"{place}: {error.strerror or error}") from error
        self._tar = None if place.is_dir() else place.open("rb")
        try:
            with self._open(0) as first:
                width, height = first.size
        except BaseException:
            self.close()
            raise
        count = len(self._listing.names)
        self.info = VideoInfo(width, height, float(count / rate), self._rate)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the tar."""
        if self._tar is not None:
            self._tar.close()

    def shown_at(
        self, times_sec: NDArray[np.float64]
    ) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
        """Open each needed frame once; see `Video.shown_at`.

        Raises:
            VideoError: a needed frame is missing, no picture, cut off, or of another size than the
                first of the folder.
        """
        order = np.argsort(times_sec, kind="stable")
        last = len(self._listing.names) - 1
        frames = np.floor((times_sec[order] + TOLERANCE_SEC) * self._rate).clip(0, last)
        needed, begins = np.unique(frames, return_index=True)
        for index, places in zip(needed, np.split(order, begins[1:]), strict=True):
            yield self._read(int(index)), places

    def _read(self, index: int) -> NDArray[np.uint8]:
        name = self._listing.names[index]
        with self._open(index) as image:
            if image.size != (self.info.width, self.info.height):
                raise VideoError(
                    f"{self._place}: {name} has {image.width}×{image.height} pixels, the first "
                    f"frame has {self.info.width}×{self.info.height}"
                )
            try:
                return np.array(image.convert("RGB"))
            except (OSError, SyntaxError, ValueError) as error:
                raise VideoError(f"{self._place}: {name} is damaged ({error})") from error

    def _open(self, index: int) -> Image.Image:
        """Open a picture; its pixels are not read yet."""
        name = self._listing.names[index]
        try:
            return Image.open(io.BytesIO(self._bytes(index)), formats=_FORMATS)
        except UnidentifiedImageError as error:
            raise VideoError(f"{self._place}: {name} is no readable picture") from error
        except FileNotFoundError as error:
            raise VideoError(f"{self._place}: {name} is gone") from error
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise VideoError(f"{self._place}: {name} cannot be read ({error})") from error

    def _bytes(self, index: int) -> bytes:
        listing = self._listing
        if self._tar is None or listing.offsets is None or listing.sizes is None:
            return (self._place / listing.names[index]).read_bytes()
        self._tar.seek(int(listing.offsets[index]))
        return self._tar.read(int(listing.sizes[index]))


@lru_cache(maxsize=8)
def _list(place: Path, _mtime_ns: int, _size: int) -> _Listing:
    """List a folder or tar; kept for some of them, as a long one takes a second or more.

    Raises:
        VideoError: there are no frames in it, or their numbers have a gap.
        OSError: it cannot be read.
    """
    if place.is_dir():
        return _Listing([name for _, name in _ordered(place, [p.name for p in place.iterdir()])])
    try:
        with tarfile.open(place, "r:") as tar:
            members = {member.name: member for member in tar if member.isreg()}
    except tarfile.TarError as error:
        raise VideoError(f"{place}: not a readable tar, uncompressed ({error})") from error
    names = [name for _, name in _ordered(place, list(members))]
    return _Listing(
        names,
        np.array([members[name].offset_data for name in names], np.int64),
        np.array([members[name].size for name in names], np.int64),
    )


def _ordered(place: Path, names: list[str]) -> list[tuple[int, str]]:
    """The frames among some files, by number.

    Raises:
        VideoError: there are none, two have one number, they start at neither 0 nor 1, or one is
            missing between two others.
    """
    frames = []
    for name in names:
        file = name.rpartition("/")[2]
        stem, dot, suffix = file.rpartition(".")
        digits = _NUMBER.search(stem)
        if digits and not file.startswith(".") and (dot + suffix).lower() in _SUFFIXES:
            frames.append((int(digits[1]), name))
    if not frames:
        raise VideoError(f"{place}: holds no numbered pictures, such as frame_0000000001.jpg")
    frames.sort()
    if frames[0][0] not in (0, 1):
        raise VideoError(f"{place}: the first frame is {frames[0][1]}, expected number 0 or 1")
    for (number, name), (following, other) in pairwise(frames):
        if following == number:
            raise VideoError(f"{place}: {name} and {other} have the same number")
        if following != number + 1:
            raise VideoError(
                f"{place}: frame {number + 1} is missing ({name} is followed by {other})"
            )
    return frames
