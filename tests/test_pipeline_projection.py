"""φ against numpy's SVD and least squares on the data itself, and its properties."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from pipeline.projection import KINDS, Projection, ProjectionSums, pool_to_grid

GRID = (1, 2, 2)
VIT, CNN, DIM, VIEWS = 12, 9, 4, 60
Array = npt.NDArray[np.float64]


def teacher_maps(views: int = VIEWS, cnn: int = CNN, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Correlated float64 maps of a ViT and a CNN, with means far from 0 and their own sizes."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    mix = torch.Generator().manual_seed(99)  # one pair of networks, whatever the views
    to_vit = torch.randn(6, VIT, generator=mix, dtype=torch.float64)
    to_cnn = torch.randn(6, cnn, generator=mix, dtype=torch.float64)
    shared = normal(views, 6, *GRID)
    vit_cells = torch.einsum("bsthw,sc->bcthw", shared, to_vit) + normal(views, VIT, *GRID) + 50
    cnn_cells = torch.einsum("bsthw,sc->bcthw", shared, to_cnn) + normal(views, cnn, *GRID) - 7
    vit_map = vit_cells.repeat_interleave(2, dim=2)  # 2x2x2
    cnn_map = cnn_cells.repeat_interleave(3, dim=3)  # 1x6x2
    return vit_map + 0.1 * normal(*vit_map.shape), cnn_map + 0.1 * normal(*cnn_map.shape)


def sums_of(*batches: tuple[Tensor, Tensor], grid: tuple[int, int, int] = GRID) -> ProjectionSums:
    """Sums over batches of maps."""
    sums = ProjectionSums(grid=grid)
    for vit_map, cnn_map in batches:
        sums.update(vit_map, cnn_map)
    return sums


def fit(kind: str = "aligned", ridge: float = 0.0, seed: int = 0, dim: int = DIM) -> Projection:
    """A projection fitted to `teacher_maps`, square ones for the identity."""
    maps = teacher_maps(cnn=VIT if kind == "identity" else CNN)
    dim = VIT if kind == "identity" else dim
    return sums_of(maps).fit(kind=kind, dim=dim, ridge=ridge, seed=seed)


def cells(feature_map: Tensor) -> Array:
    """Grid cells as rows: averages over whole blocks, written without the pooling under test."""
    b, c, t, h, w = feature_map.shape
    blocks = feature_map.reshape(b, c, 1, t, 2, h // 2, 2, w // 2).mean(dim=(3, 5, 7))
    return np.asarray(blocks.numpy().transpose(0, 2, 3, 4, 1).reshape(-1, c))


def centred_cells() -> tuple[Array, Array]:
    """The calibration vectors of `teacher_maps`, centred."""
    vit, cnn = (cells(feature_map) for feature_map in teacher_maps())
    return vit - vit.mean(axis=0), cnn - cnn.mean(axis=0)


def rows(residual: Tensor) -> Array:
    """(B, D, T', H', W') as rows (n, D)."""
    return np.asarray(residual.double().permute(0, 2, 3, 4, 1).flatten(end_dim=3).numpy())


# ---- The fit against numpy on the data


def test_principal_axes_are_those_of_the_svd() -> None:
    vit, cnn = centred_cells()
    projection = fit("pca")
    for matrix, data in ((projection.vit_matrix, vit), (projection.cnn_matrix, cnn)):
        axes = np.linalg.svd(data, full_matrices=False)[2][:DIM].T
        got = matrix.double().numpy()
        np.testing.assert_allclose(np.abs((got * axes).sum(axis=0)), 1, atol=1e-6)
        np.testing.assert_allclose(got.T @ got, np.eye(DIM), atol=1e-6)
        largest = got[np.abs(got).argmax(axis=0), np.arange(DIM)]
        assert (largest > 0).all()


@pytest.mark.parametrize("ridge", [0.0, 0.01, 1.0])
def test_the_cnn_matrix_is_the_ridge_regression(ridge: float) -> None:
    vit, cnn = centred_cells()
    projection = fit(ridge=ridge)
    told = vit @ projection.vit_matrix.double().numpy()
    # min |Y - X Q|² / n + penalty |Q|², as the least squares of an augmented system
    penalty = ridge * (cnn**2).mean()
    n = len(cnn)
    system = np.concatenate([cnn / np.sqrt(n), np.sqrt(penalty) * np.eye(CNN)])
    target = np.concatenate([told / np.sqrt(n), np.zeros((CNN, DIM))])
    expected = np.linalg.lstsq(system, target, rcond=None)[0]
    np.testing.assert_allclose(projection.cnn_matrix.numpy(), expected, atol=1e-5)
    unexplained = ((told - cnn @ expected) ** 2).sum() / (told**2).sum()
    assert projection.explained == pytest.approx(1 - unexplained, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_explained_is_the_share_of_the_linear_map_whatever_the_kind(kind: str) -> None:
    vit_map, cnn_map = teacher_maps(cnn=VIT if kind == "identity" else CNN)
    vit, cnn = cells(vit_map), cells(cnn_map)
    projection = fit(kind)
    told = (vit - vit.mean(axis=0)) @ projection.vit_matrix.double().numpy()
    cnn = cnn - cnn.mean(axis=0)
    left = told - cnn @ np.linalg.lstsq(cnn, told, rcond=None)[0]
    assert projection.explained == pytest.approx(1 - (left**2).sum() / (told**2).sum(), abs=1e-6)
    assert 0.3 < projection.explained < 1


def test_random_axes_are_orthonormal_and_follow_the_seed() -> None:
    one, again, other = fit("random"), fit("random"), fit("random", seed=1)
    for name in ("vit_matrix", "cnn_matrix"):
        axes = getattr(one, name)
        torch.testing.assert_close(axes.T @ axes, torch.eye(DIM), atol=1e-6, rtol=0)
        assert torch.equal(axes, getattr(again, name))
        assert not torch.allclose(axes, getattr(other, name), atol=0.1)


# ---- The residual


def test_the_aligned_residual_is_uncorrelated_with_the_cnn() -> None:
    vit_map, cnn_map = teacher_maps()
    residual = rows(fit().residual(vit_map=vit_map, cnn_map=cnn_map))
    cnn = centred_cells()[1]
    correlation = (residual.T @ cnn) / len(cnn) / np.outer(residual.std(axis=0), cnn.std(axis=0))
    assert np.abs(correlation).max() < 1e-5
    # and this says something: for each teacher's own axes it is far from 0
    other = rows(fit("pca").residual(vit_map=vit_map, cnn_map=cnn_map))
    correlation = (other.T @ cnn) / len(cnn) / np.outer(other.std(axis=0), cnn.std(axis=0))
    assert np.abs(correlation).max() > 0.3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_the_residual_has_mean_square_one_on_the_calibration_data(kind: str, ridge: float) -> None:
    vit_map, cnn_map = teacher_maps(cnn=VIT if kind == "identity" else CNN)
    projection = fit(kind, ridge=ridge)
    residual = projection.residual(vit_map=vit_map, cnn_map=cnn_map)
    assert residual.shape == (VIEWS, projection.dim, *GRID)
    assert residual.dtype == torch.float32
    assert residual.double().square().mean().item() == pytest.approx(1, abs=1e-4)
    assert rows(residual).mean(axis=0) == pytest.approx(np.zeros(projection.dim), abs=1e-4)


def test_the_identity_residual_is_the_difference_of_the_centred_maps() -> None:
    vit_map, cnn_map = teacher_maps(cnn=VIT)
    projection = fit("identity")
    vit, cnn = cells(vit_map), cells(cnn_map)
    difference = (vit - vit.mean(axis=0)) - (cnn - cnn.mean(axis=0))
    got = rows(projection.residual(vit_map=vit_map, cnn_map=cnn_map))
    np.testing.assert_allclose(got, difference / np.sqrt((difference**2).mean()), atol=1e-4)


def test_the_residual_of_the_vit_alone_is_its_principal_components() -> None:
    vit_map, cnn_map = teacher_maps()
    projection = fit("vit")
    residual = rows(projection.residual(vit_map=vit_map, cnn_map=cnn_map))
    other = projection.residual(vit_map=vit_map, cnn_map=torch.zeros_like(cnn_map))
    assert np.array_equal(residual, rows(other))
    vit = centred_cells()[0]
    left, values, _ = np.linalg.svd(vit, full_matrices=False)
    components = (left * values)[:, :DIM]
    components /= np.sqrt((components**2).mean())
    np.testing.assert_allclose(np.abs(residual), np.abs(components), atol=1e-4)
    assert fit("vit", dim=VIT).dim == VIT  # more than the CNN has channels


def test_the_residual_of_a_half_precision_map_is_computed_in_float32() -> None:
    vit_map, cnn_map = (feature_map.half() for feature_map in teacher_maps())
    projection = fit()
    expected = projection.residual(vit_map=vit_map.double(), cnn_map=cnn_map.double())
    with torch.autocast(device_type="cpu", dtype=torch.bfloat16):
        got = projection.residual(vit_map=vit_map, cnn_map=cnn_map)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


def test_the_residual_carries_no_gradient() -> None:
    vit_map, cnn_map = (feature_map.requires_grad_() for feature_map in teacher_maps())
    assert not fit().residual(vit_map=vit_map, cnn_map=cnn_map).requires_grad


def test_a_map_smaller_than_the_grid_repeats_its_cells() -> None:
    line = torch.tensor([1.0, 2.0, 4.0]).view(1, 1, 1, 1, 3)
    # 3 → 4 cells: cell i averages from floor(3i/4) to ceil(3(i+1)/4): 1; 1, 2; 2, 4; 4
    assert pool_to_grid(line, (1, 1, 4)).flatten().tolist() == [1.0, 1.5, 3.0, 4.0]
    assert pool_to_grid(line, (1, 1, 6)).flatten().tolist() == [1.0, 1.0, 2.0, 2.0, 4.0, 4.0]


# ---- The sums


def test_streaming_in_pieces_equals_all_at_once() -> None:
    vit_map, cnn_map = teacher_maps()
    vit_map, cnn_map = vit_map + 1e6, cnn_map - 1e6  # raw sums of squares would lose 12 digits
    sizes = [1, 30, 0, 29]
    batches = zip(torch.split(vit_map, sizes), torch.split(cnn_map, sizes), strict=True)
    pieces = sums_of(*batches)
    whole = sums_of((vit_map, cnn_map))
    assert pieces.count == whole.count == VIEWS * 4
    one, other = (s.fit(kind="aligned", dim=DIM, ridge=0.1, seed=0) for s in (pieces, whole))
    for name, array in one.arrays().items():
        np.testing.assert_allclose(array, other.arrays()[name], rtol=1e-5, atol=1e-6)


def test_the_fit_is_deterministic() -> None:
    for kind in KINDS:
        one, other = fit(kind).arrays(), fit(kind).arrays()
        for name, array in one.items():
            np.testing.assert_array_equal(array, other[name])


def test_dead_and_repeated_channels_of_the_cnn_need_no_ridge() -> None:
    vit_map, cnn_map = teacher_maps()
    dead = torch.cat([cnn_map, torch.zeros_like(cnn_map[:, :3])], dim=1)
    matrix = sums_of((vit_map, dead)).fit(kind="aligned", dim=DIM, ridge=0.0, seed=0).cnn_matrix
    torch.testing.assert_close(matrix, torch.cat([fit().cnn_matrix, torch.zeros(3, DIM)]))
    # and a repeated channel shares its coefficient with its twin
    twins = torch.cat([cnn_map, cnn_map[:, :3]], dim=1)
    matrix = sums_of((vit_map, twins)).fit(kind="aligned", dim=DIM, ridge=0.0, seed=0).cnn_matrix
    torch.testing.assert_close(matrix[:3], fit().cnn_matrix[:3] / 2, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(matrix[:3], matrix[CNN:], atol=1e-6, rtol=1e-4)


# ---- Storage


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_round_trip_exactly(kind: str) -> None:
    projection = fit(kind)
    arrays = projection.arrays()
    assert all(array.dtype == np.float32 for array in arrays.values())
    for array in arrays.values():
        array.setflags(write=False)  # as a reader that maps its files gives them
    back = Projection.from_arrays(arrays, kind)
    assert (back.kind, back.grid, back.scale, back.explained) == (
        projection.kind,
        projection.grid,
        projection.scale,
        projection.explained,
    )
    for name, array in back.arrays().items():
        np.testing.assert_array_equal(array, arrays[name])
    vit_map, cnn_map = teacher_maps(views=2, cnn=VIT if kind == "identity" else CNN)
    assert torch.equal(
        back.residual(vit_map=vit_map, cnn_map=cnn_map),
        projection.residual(vit_map=vit_map, cnn_map=cnn_map),
    )


def test_arrays_that_do_not_fit_are_refused() -> None:
    arrays = fit().arrays()
    with pytest.raises(ValueError, match="unknown projection kind 'learned'; choose one of align"):
        Projection.from_arrays(arrays, "learned")
    with pytest.raises(ValueError, match="projection lacks scale; it has vit_mean"):
        Projection.from_arrays({n: a for n, a in arrays.items() if n != "scale"}, "aligned")
    with pytest.raises(ValueError, match=r"do not fit each other.*'cnn_matrix': \(9, 3\)"):
        Projection.from_arrays(arrays | {"cnn_matrix": arrays["cnn_matrix"][:, 1:]}, "aligned")
    with pytest.raises(ValueError, match=r"do not fit each other.*'vit_mean': \(11,\)"):
        Projection.from_arrays(arrays | {"vit_mean": arrays["vit_mean"][1:]}, "aligned")


# ---- Bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "learned"}, "'learned'; choose one of aligned, pca, random, identity, vit"),
        ({"dim": 13}, "dim 13 must be from 1 to 12 for kind aligned; the maps have 12 ViT and 9"),
        ({"dim": 10, "kind": "pca"}, "dim 10 must be from 1 to 9 for kind pca"),
        ({"dim": 10, "kind": "random"}, "dim 10 must be from 1 to 9 for kind random"),
        ({"dim": 0}, "dim 0 must be from 1"),
        ({"ridge": -1.0}, "ridge -1.0 must be a finite number of at least 0"),
        ({"ridge": float("nan")}, "ridge nan"),
    ],
)
def test_a_wrong_request_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(**changes)


def test_identity_on_unequal_channels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"identity needs.*dim 9, 12 ViT and 9 CNN channels"):
        sums_of(teacher_maps()).fit(kind="identity", dim=CNN, ridge=0.0, seed=0)


def test_too_few_vectors_are_refused() -> None:
    message = "12 calibration vectors are too few for 12 channels: at least 13.*a view gives 4"
    with pytest.raises(ValueError, match=message):
        sums_of(teacher_maps(views=3)).fit(kind="aligned", dim=DIM, ridge=1.0, seed=0)
    with pytest.raises(ValueError, match="0 calibration vectors are too few"):
        ProjectionSums(grid=GRID).fit(kind="aligned", dim=DIM, ridge=1.0, seed=0)


def test_features_that_do_not_vary_enough_are_refused() -> None:
    vit_map, cnn_map = teacher_maps()
    flat = torch.cat([vit_map[:, :3], torch.ones_like(vit_map[:, 3:])], dim=1)
    with pytest.raises(ValueError, match="the ViT's features vary in 3 directions only: dim 4"):
        sums_of((flat, cnn_map)).fit(kind="aligned", dim=DIM, ridge=0.0, seed=0)
    with pytest.raises(ValueError, match=r"nothing is left to distil.*the same network"):
        sums_of((vit_map, vit_map)).fit(kind="aligned", dim=DIM, ridge=0.0, seed=0)


def test_bad_maps_are_refused_and_add_nothing() -> None:
    vit_map, cnn_map = teacher_maps(views=3)
    sums = sums_of((vit_map, cnn_map))
    with pytest.raises(ValueError, match=r"begun with 12 ViT and 9 CNN.*vit_map \(3, 9, 1, 6, 2\)"):
        sums.update(cnn_map, vit_map)
    with pytest.raises(ValueError, match=r"one batch; got vit_map \(2, 12.*cnn_map \(3, 9"):
        sums.update(vit_map[:2], cnn_map)
    with pytest.raises(ValueError, match=r"of one batch; got vit_map \(3, 12\)"):
        sums.update(vit_map[:, :, 0, 0, 0], cnn_map)
    cnn_map[1, 0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"feature maps \[1\] of the batch are not finite"):
        sums.update(vit_map, cnn_map)
    assert sums.count == 12
    with pytest.raises(ValueError, match=r"begun with 12 ViT and 9 CNN channels"):
        fit().residual(vit_map=vit_map, cnn_map=cnn_map[:, :5])
    with pytest.raises(ValueError, match=r"grid \(0, 2, 2\) must be three sizes"):
        ProjectionSums(grid=(0, 2, 2))
