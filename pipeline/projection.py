"""φ: two teachers' feature maps → the residual r = φ_V(f_V) - φ_C(f_C), fixed before extraction.

A learned φ could shrink the residual to nothing, and a cached target must not move; so φ is fitted
once, in closed form, from sums streamed over a calibration subset (`ProjectionSums`), frozen
(`Projection`) and stored inside the cache.

Both maps are pooled to a common grid; a *vector* is one grid cell of one view. φ_V(f) = (f - μ_V) P
and φ_C(f) = (f - μ_C) Q, with μ the calibration means: what is constant over all videos is not
worth predicting, and without it 1 - residual_loss is the branch's R².

Kinds of (P, Q):
- `aligned`: P = the first D principal axes of the ViT's vectors (orthonormal, no whitening:
  whitening would make the branch chase noise); Q = the ridge regression of φ_V(f_V) on f_C. Then r
  is what the ViT knows and no linear map of the CNN's features tells.
- `pca`: each teacher's own first D principal axes.
- `random`: orthonormal columns, drawn from a seed for each teacher.
- `identity`: P = Q = 1, where both have the same number of channels.
- `vit`: P as in `aligned`, Q = 0: the ViT's own features on the grid, nothing taken off. The
  control that tells what the residual adds to any target with a grid.

The residual is divided by one number, so that its mean square over the calibration vectors is 1
(isotropic standardisation, PHI-S, arXiv 2410.01680). Source of the residual: arXiv 2511.09469.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (the field's own name)

Grid = tuple[int, int, int]
Float64 = npt.NDArray[np.float64]

KINDS = ("aligned", "pca", "random", "identity", "vit")
NOTHING_LEFT = 1e-10
"""A residual with less than this share of φ_V's variance is rounding, not knowledge."""


def pool_to_grid(feature_map: Tensor, grid: Grid) -> Tensor:
    """Average a feature map to the common grid.

    Adaptive average pooling: cell i of n averages the positions from ⌊i·T/n⌋ to ⌈(i+1)·T/n⌉. Where
    the map is smaller than the grid, cells share positions: values are repeated or averaged with
    their neighbour, nothing is interpolated and no position is lost.

    Args:
        feature_map: (B, C, T, H, W), any floating dtype.
        grid: (T', H', W').

    Returns:
        (B, C, T', H', W'), float32 (float64 for a float64 map).
    """
    full = feature_map if feature_map.dtype == torch.float64 else feature_map.float()
    return F.adaptive_avg_pool3d(full, grid)


@dataclass(frozen=True, eq=False)
class Projection:
    """A fitted φ.

    Attributes:
        kind: One of `KINDS`.
        grid: (T', H', W') to which both maps are pooled.
        vit_mean: (C_V,) float32, subtracted from the ViT's vectors.
        vit_matrix: (C_V, D) float32, P.
        cnn_mean: (C_C,) float32.
        cnn_matrix: (C_C, D) float32, Q.
        scale: Divides the residual; a float32 value.
        explained: Share of φ_V's variance over the calibration vectors that the ridge regression
            on the CNN's vectors explains (R²), whatever the kind; a float32 value.
    """

    kind: str
    grid: Grid
    vit_mean: Tensor
    vit_matrix: Tensor
    cnn_mean: Tensor
    cnn_matrix: Tensor
    scale: float
    explained: float

    @property
    def dim(self) -> int:
        """Channels D of the residual."""
        return self.vit_matrix.shape[1]

    def to(self, device: torch.device) -> "Projection":
        """The same on a device, where it need not be sent again with each batch."""
        return replace(self, **{name: getattr(self, name).to(device) for name in _TENSORS})

    @torch.no_grad()
    def residual(self, *, vit_map: Tensor, cnn_map: Tensor) -> Tensor:
        """The residual r = (φ_V(f_V) - φ_C(f_C)) / scale on the grid.

        Args:
            vit_map: (B, C_V, T, H, W), last feature map of the ViT.
            cnn_map: (B, C_C, T, H, W), last feature map of the CNN; its own T, H, W.

        Returns:
            (B, D, T', H', W'), float32, on the maps' device; no gradient.

        Raises:
            ValueError: The maps are not of one batch, or not of the fitted channels.
        """
        _check_maps(vit_map, cnn_map, channels=(len(self.vit_mean), len(self.cnn_mean)))
        # Autocast would run the products in half precision.
        with torch.autocast(device_type=vit_map.device.type, enabled=False):
            vit = _project(vit_map, self.grid, self.vit_mean, self.vit_matrix)
            cnn = _project(cnn_map, self.grid, self.cnn_mean, self.cnn_matrix)
        return (vit - cnn) / self.scale

    def arrays(self) -> dict[str, npt.NDArray[np.float32]]:
        """All but the kind, as new float32 arrays to be stored under `projection/*`."""
        arrays = {name: getattr(self, name).cpu().numpy() for name in _TENSORS}
        arrays |= {name: getattr(self, name) for name in _NUMBERS}
        return {name: np.array(value, dtype=np.float32) for name, value in arrays.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]], kind: str) -> "Projection":
        """The projection of which `arrays` are the `arrays()`; an exact round trip.

        Raises:
            ValueError: The kind is unknown, an array is missing, or the shapes do not fit.
        """
        _check_kind(kind)
        missing = [name for name in (*_TENSORS, *_NUMBERS) if name not in arrays]
        if missing:
            raise ValueError(f"projection lacks {', '.join(missing)}; it has {', '.join(arrays)}")
        shapes = {name: np.shape(arrays[name]) for name in (*_TENSORS, "grid")}
        widths = {shapes["vit_matrix"][1:], shapes["cnn_matrix"][1:]}
        fits = all(shapes[f"{t}_matrix"][:1] == shapes[f"{t}_mean"] for t in ("vit", "cnn"))
        if not fits or len(widths) > 1 or shapes["grid"] != (3,):
            raise ValueError(f"projection arrays do not fit each other: {shapes}")
        time, height, width = (int(size) for size in arrays["grid"])
        tensors = {n: torch.tensor(np.array(arrays[n], dtype=np.float32)) for n in _TENSORS}
        scale, explained = float(arrays["scale"]), float(arrays["explained"])
        return cls(kind, (time, height, width), **tensors, scale=scale, explained=explained)


_TENSORS = ("vit_mean", "vit_matrix", "cnn_mean", "cnn_matrix")
_NUMBERS = ("grid", "scale", "explained")


class ProjectionSums:
    """Sums over the calibration vectors, from which every kind of φ follows in closed form.

    Count, means and the joint (C_V + C_C)² scatter about the means, in float64 on the CPU, merged
    batch by batch (Chan et al., 1979: no cancellation where means are large). One pass over the
    data, in any pieces; the pieces' order changes the rounding only.

    Attributes:
        grid: (T', H', W') to which both maps are pooled.
        count: Vectors so far: views · T' · H' · W'.
    """

    def __init__(self, *, grid: Grid) -> None:
        """Start with no vectors.

        Raises:
            ValueError: A side of the grid is smaller than 1.
        """
        if len(grid) != 3 or min(grid) < 1:
            raise ValueError(f"grid {grid} must be three sizes (time, height, width) of at least 1")
        self.grid = grid
        self.count = 0
        self._channels: tuple[int, int] | None = None
        self._mean: Float64 = np.zeros(0)
        self._scatter: Float64 = np.zeros((0, 0))

    def update(self, vit_map: Tensor, cnn_map: Tensor) -> None:
        """Add the vectors of a batch of views.

        Args:
            vit_map: (B, C_V, T, H, W), last feature map of the ViT.
            cnn_map: (B, C_C, T, H, W), last feature map of the CNN, of the same views.

        Raises:
            ValueError: The maps are not of one batch, the channels differ from the first batch's,
                or a value is not finite; nothing is added then.
        """
        _check_maps(vit_map, cnn_map, channels=self._channels)
        pieces = [_vectors(feature_map, self.grid) for feature_map in (vit_map, cnn_map)]
        vectors = np.concatenate(pieces, axis=1)  # (n, C_V + C_C)
        if self._channels is None:
            self._channels = (vit_map.shape[1], cnn_map.shape[1])
            self._mean = np.zeros(vectors.shape[1])
            self._scatter = np.zeros((vectors.shape[1], vectors.shape[1]))
        added = len(vectors)
        if added == 0:
            return
        mean = vectors.mean(axis=0)
        shift = mean - self._mean
        total = self.count + added
        centred = vectors - mean
        self._scatter += centred.T @ centred
        self._scatter += np.outer(shift, shift) * (self.count * added / total)
        self._mean += shift * (added / total)
        self.count = total

    def fit(self, *, kind: str, dim: int, ridge: float, seed: int) -> Projection:
        """The projection of the given kind, in closed form.

        Args:
            kind: One of `KINDS`.
            dim: Channels D of the residual.
            ridge: Penalty of the regression on the CNN's vectors, relative to the mean of the
                diagonal of their covariance: the system solved is (Σ_CC + ridge · mean(diag Σ_CC)
                · 1) Q = Σ_CV P, Σ = scatter / count; so it means the same for any number of
                vectors and any size of the features. At 0, directions in which the CNN does not
                vary (dead channels) are left out: the solution of least norm.
            seed: Draws the axes of `random`; without effect on the others.

        Raises:
            ValueError: The kind is unknown, dim does not fit the channels, ridge is negative, the
                vectors are too few, or their features do not vary enough.
        """
        moments = self._moments()
        _check_request(kind, dim, ridge, *moments.cross.shape)
        vit_matrix, cnn_matrix = _matrices(moments, kind=kind, dim=dim, ridge=ridge, seed=seed)
        told_by_cnn = _regression(moments, vit_matrix, ridge)
        variance = _mean_square(moments, vit_matrix, np.zeros_like(told_by_cnn))
        residual = _mean_square(moments, vit_matrix, cnn_matrix)
        if residual <= NOTHING_LEFT * variance:
            raise ValueError(
                f"nothing is left to distil: the residual's mean square is {residual:.3g}, φ_V's "
                f"variance {variance:.3g}; are the two teachers the same network?"
            )
        unexplained = _mean_square(moments, vit_matrix, told_by_cnn)
        vit_channels = len(vit_matrix)
        return Projection(
            kind=kind,
            grid=self.grid,
            vit_mean=torch.tensor(self._mean[:vit_channels], dtype=torch.float32),
            vit_matrix=torch.tensor(vit_matrix, dtype=torch.float32),
            cnn_mean=torch.tensor(self._mean[vit_channels:], dtype=torch.float32),
            cnn_matrix=torch.tensor(cnn_matrix, dtype=torch.float32),
            scale=float(np.float32(math.sqrt(residual))),
            explained=float(np.float32(1 - unexplained / variance)) if variance > 0 else 0.0,
        )

    def _moments(self) -> "_Moments":
        """The covariances, where the vectors are enough to trust them."""
        needed = max(self._channels or (0, 0)) + 1
        if self._channels is None or self.count < needed:
            raise ValueError(
                f"{self.count} calibration vectors are too few for {max(needed - 1, 1)} channels: "
                f"at least {max(needed, 2)} are needed, and many times that is better; a view "
                f"gives {math.prod(self.grid)} of them, so calibrate on at least "
                f"{-(-max(needed, 2) // math.prod(self.grid))} samples"
            )
        vit = self._channels[0]
        covariance = self._scatter / self.count
        return _Moments(covariance[:vit, :vit], covariance[vit:, vit:], covariance[:vit, vit:])


@dataclass(frozen=True, eq=False)
class _Moments:
    """Covariances of the vectors: (C_V, C_V), (C_C, C_C) and (C_V, C_C)."""

    vit: Float64
    cnn: Float64
    cross: Float64


def _matrices(
    moments: _Moments, *, kind: str, dim: int, ridge: float, seed: int
) -> tuple[Float64, Float64]:
    """P (C_V, D) and Q (C_C, D) of a kind."""
    vit_channels, cnn_channels = moments.cross.shape
    if kind == "identity":
        return np.eye(dim), np.eye(dim)
    if kind == "random":
        vit_matrix = _random_axes(vit_channels, dim, (seed, 0))
        return vit_matrix, _random_axes(cnn_channels, dim, (seed, 1))
    vit_matrix = _principal_axes(moments.vit, dim, "ViT")
    if kind == "vit":
        return vit_matrix, np.zeros((cnn_channels, dim))
    if kind == "pca":
        return vit_matrix, _principal_axes(moments.cnn, dim, "CNN")
    return vit_matrix, _regression(moments, vit_matrix, ridge)


def _principal_axes(covariance: Float64, dim: int, teacher: str) -> Float64:
    """First axes as columns; the sign makes each axis' largest entry positive."""
    variances, axes = np.linalg.eigh(covariance)  # ascending
    varying = int((variances > _rounding(covariance) * variances[-1]).sum())
    if varying < dim:
        raise ValueError(
            f"the {teacher}'s features vary in {varying} directions only: dim {dim} must be at "
            f"most {varying}, or the calibration views more varied"
        )
    axes = axes[:, ::-1][:, :dim]
    largest = axes[np.abs(axes).argmax(axis=0), np.arange(dim)]
    signed: Float64 = axes * np.sign(largest)
    return signed


def _random_axes(channels: int, dim: int, seed: tuple[int, int]) -> Float64:
    """Orthonormal columns, uniformly distributed (QR of a Gaussian with R's diagonal positive)."""
    gaussian = np.random.default_rng(seed).standard_normal((channels, dim))
    q, r = np.linalg.qr(gaussian)
    axes: Float64 = q * np.sign(np.diag(r))
    return axes


def _regression(moments: _Moments, vit_matrix: Float64, ridge: float) -> Float64:
    """Ridge regression of φ_V(f_V) on f_C, (C_C, D)."""
    penalty = ridge * np.trace(moments.cnn) / len(moments.cnn)
    system = moments.cnn + penalty * np.eye(len(moments.cnn))
    inverse = np.linalg.pinv(system, rcond=_rounding(system), hermitian=True)
    solution: Float64 = inverse @ (moments.cross.T @ vit_matrix)
    return solution


def _mean_square(moments: _Moments, vit_matrix: Float64, cnn_matrix: Float64) -> float:
    """Mean over vectors and channels of (φ_V - φ_C)²: from the covariances, without the data."""
    vit = np.sum(vit_matrix * (moments.vit @ vit_matrix))
    cross = np.sum(vit_matrix * (moments.cross @ cnn_matrix))
    cnn = np.sum(cnn_matrix * (moments.cnn @ cnn_matrix))
    mean_square: float = (vit - 2 * cross + cnn).item() / vit_matrix.shape[1]
    return max(mean_square, 0.0)  # below 0 by rounding only


def _rounding(matrix: Float64) -> float:
    """Eigenvalues below this share of the largest are float64 rounding."""
    return float(len(matrix) * np.finfo(np.float64).eps)


def _vectors(feature_map: Tensor, grid: Grid) -> Float64:
    """The grid cells as rows, (B · T' · H' · W', C) float64."""
    pooled = pool_to_grid(feature_map.detach(), grid).cpu().double()
    if not bool(torch.isfinite(pooled).all()):
        bad = (~torch.isfinite(pooled)).flatten(start_dim=1).any(dim=1).nonzero().flatten().tolist()
        raise ValueError(f"feature maps {bad} of the batch are not finite: leave these views out")
    vectors: Float64 = pooled.permute(0, 2, 3, 4, 1).flatten(end_dim=3).numpy()
    return vectors


def _project(feature_map: Tensor, grid: Grid, mean: Tensor, matrix: Tensor) -> Tensor:
    """(pooled - mean) · matrix, (B, D, T', H', W') float32."""
    pooled = pool_to_grid(feature_map, grid).float()
    centred = pooled - mean.to(pooled.device).view(-1, 1, 1, 1)  # nothing to do after `to`
    return torch.einsum("bcthw,cd->bdthw", centred, matrix.to(pooled.device))


def _check_maps(vit_map: Tensor, cnn_map: Tensor, channels: tuple[int, int] | None) -> None:
    """Refuse maps that are not (B, C, T, H, W) of one batch and the expected channels."""
    got = f"vit_map {tuple(vit_map.shape)}, cnn_map {tuple(cnn_map.shape)}"
    if vit_map.ndim != 5 or cnn_map.ndim != 5 or vit_map.shape[0] != cnn_map.shape[0]:
        raise ValueError(
            f"feature maps must be (batch, channels, time, height, width) of one batch; got {got}"
        )
    if channels is not None and (vit_map.shape[1], cnn_map.shape[1]) != channels:
        raise ValueError(
            f"the projection was begun with {channels[0]} ViT and {channels[1]} CNN channels; got "
            f"{got}: use the teachers of the calibration"
        )


def _check_request(kind: str, dim: int, ridge: float, vit_channels: int, cnn_channels: int) -> None:
    """Refuse an unknown kind, a negative ridge, and a dim that the channels cannot give."""
    _check_kind(kind)
    if not (math.isfinite(ridge) and ridge >= 0):
        raise ValueError(f"ridge {ridge} must be a finite number of at least 0")
    channels = f"{vit_channels} ViT and {cnn_channels} CNN channels"
    if kind == "identity" and not dim == vit_channels == cnn_channels:
        raise ValueError(
            f"identity needs dim and both channels equal; got dim {dim}, {channels}: choose the "
            "kind aligned, pca, random or vit"
        )
    of_vit = kind in ("aligned", "vit")  # their Q is not of axes of the CNN's own
    limit = vit_channels if of_vit else min(vit_channels, cnn_channels)
    if not 1 <= dim <= limit:
        raise ValueError(
            f"dim {dim} must be from 1 to {limit} for kind {kind}; the maps have {channels}"
        )


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"unknown projection kind {kind!r}; choose one of {', '.join(KINDS)}")
