"""Frames as JPEG files of a fixed length, held against FFmpeg, which has a decoder of its own."""

from __future__ import annotations

from collections.abc import Callable

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.jpeg import JpegError, decode_frames, encode_frames, frame_bytes

SIZES = (8, 56, 160, 182, 224, 312)


def smooth(size: int, count: int = 3) -> NDArray[np.uint8]:
    """Soft waves of colour, each frame another one."""
    y, x = np.mgrid[:size, :size] / size
    waves = [
        np.sin(2 * np.pi * (x * (1 + channel) + y * (2 - channel) + number / 5))
        for number in range(count)
        for channel in range(3)
    ]
    of_frames = np.stack(waves).reshape(count, 3, size, size).transpose(0, 2, 3, 1)
    return (127.5 + 100 * of_frames).astype(np.uint8)


def noise(size: int, count: int = 2) -> NDArray[np.uint8]:
    return np.random.default_rng(size).integers(0, 256, (count, size, size, 3), np.uint8)


def psnr(frames: NDArray[np.uint8], others: NDArray[np.uint8]) -> float:
    return float(10 * np.log10(255**2 / np.mean((frames.astype(float) - others) ** 2)))


def by_ffmpeg(file: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The luma (H, W) that FFmpeg reads of a row, padding and all."""
    decoder = av.CodecContext.create("mjpeg", "r")
    (frame,) = decoder.decode(av.Packet(file.tobytes()))
    assert frame.format.name == "yuvj420p"
    return frame.reformat(format="gray", src_color_range=2, dst_color_range=2).to_ndarray()


def luma(frame: NDArray[np.uint8]) -> NDArray[np.float64]:
    return np.asarray(frame @ [0.299, 0.587, 0.114])


@pytest.mark.parametrize("size", SIZES)
def test_room_follows_from_the_size(size: int) -> None:
    room = frame_bytes(size)
    assert room % 512 == 0
    assert 0.4 * size**2 + 640 <= room < 0.4 * size**2 + 640 + 512
    assert frame_bytes(182) == 14_336


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("make", [smooth, noise])
def test_another_decoder_reads_the_same_pixels(
    make: Callable[[int], NDArray[np.uint8]], size: int
) -> None:
    frames = make(size)
    files = encode_frames(frames, frame_bytes(size))
    assert files.shape == (len(frames), frame_bytes(size))
    assert files.dtype == np.uint8
    decoded = decode_frames(files, size)
    assert decoded.shape == frames.shape
    for file, frame in zip(files, decoded, strict=True):
        error = np.abs(by_ffmpeg(file) - luma(frame))  # of noise some colours do not exist in RGB
        assert np.quantile(error, 1 if make is smooth else 0.9) <= 3
        end = file.tobytes().rindex(b"\xff\xd9") + 2
        assert not file[end:].any()


@pytest.mark.parametrize("size", [56, 182])
def test_the_error_is_small_where_the_picture_is_smooth(size: int) -> None:
    frames = smooth(size)
    decoded = decode_frames(encode_frames(frames, frame_bytes(size)), size)
    assert psnr(frames, decoded) > 36
    assert np.abs(frames.astype(int) - decoded.astype(int)).mean() < 3


def test_quality_falls_until_the_frame_fits() -> None:
    frames = smooth(182, 1)
    errors = [
        psnr(frames, decode_frames(encode_frames(frames, room), 182))
        for room in (14_336, 6_000, 3_000, 2_000)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > errors[-1] + 3
    with pytest.raises(
        JpegError, match=r"182×182 takes \d+ bytes as JPEG of quality 1; there is room for 1024"
    ):
        encode_frames(noise(182), 1024)


def test_frames_do_not_depend_on_their_neighbours() -> None:
    frames = np.concatenate([smooth(56), noise(56)])
    whole = encode_frames(frames, frame_bytes(56))
    for frame, file in zip(frames, whole, strict=True):
        np.testing.assert_array_equal(encode_frames(frame[None], frame_bytes(56))[0], file)


def test_damage_and_other_sizes_are_refused() -> None:
    files = encode_frames(smooth(56), frame_bytes(56))
    with pytest.raises(JpegError, match="frame 0 is 56×56 in RGB, not 64×64 in RGB"):
        decode_frames(files, 64)
    cut = files.copy()
    cut[1, 700:] = 0
    with pytest.raises(JpegError, match="frame 1 does not end as a JPEG file"):
        decode_frames(cut, 56)
    for length in range(0, 600, 30):
        with pytest.raises(JpegError, match="frame 0 does not end"):
            decode_frames(files[:, :length], 56)
    files[2, :2] = 0
    with pytest.raises(JpegError, match=r"frame 2: cannot identify image file$"):
        decode_frames(files, 56)


def test_a_file_that_claims_to_be_huge_is_not_decoded() -> None:
    files = encode_frames(smooth(56), frame_bytes(56))
    place = files[0].tobytes().index(b"\xff\xc0")
    for side, message in ((0xFFFF, "could be decompression bomb"), (0x1000, "is 4096×4096 in RGB")):
        files[0, place + 5 : place + 9] = [*divmod(side, 256)] * 2
        with pytest.raises(JpegError, match=message):
            decode_frames(files, 56)
