from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import KDTree

from textseg.reports.tsne import _joint_probabilities, _nearness, principal_components, tsne


def clusters(count: int = 40, groups: int = 4, size: int = 20) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(3)
    centres = random.normal(0, 6, (groups, size))
    of = np.repeat(np.arange(groups), count)
    return centres[of] + random.normal(0, 1, (len(of), size)), of


def divergence(joint: np.ndarray, places: np.ndarray) -> float:
    """Kullback-Leibler divergence of the neighbourhoods in the plane from those of the points: what is minimised."""
    near = _nearness(places)
    spread = near / near.sum()
    known = joint > 0
    return float((joint[known] * np.log(joint[known] / np.maximum(spread[known], 1e-300))).sum())


def test_groups_stay_groups() -> None:
    points, of = clusters()
    places = tsne(points)
    _, nearest = KDTree(places).query(places, k=11)
    assert (of[nearest[:, 1:]] == of[:, None]).mean() > 0.99


def test_as_good_as_scikit_learn() -> None:
    manifold = pytest.importorskip("sklearn.manifold")
    points, _ = clusters(30, 5)
    joint = _joint_probabilities(principal_components(points, 20), 30)
    theirs = manifold.TSNE(method="exact", init="pca", perplexity=30, random_state=0, max_iter=750).fit_transform(
        points
    )
    ours = divergence(joint, tsne(points))
    assert ours <= divergence(joint, theirs.astype(np.float64)) * 1.05
    assert ours < divergence(joint, principal_components(points, 2) / 3) / 2


def test_each_neighbourhood_has_the_perplexity_asked_for() -> None:
    points, _ = clusters(25)
    joint = _joint_probabilities(points, 12.0)
    assert joint.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(joint, joint.T)
    manifold = pytest.importorskip("sklearn.manifold._t_sne")
    from scipy.spatial.distance import pdist, squareform

    theirs = squareform(manifold._joint_probabilities(squareform(pdist(points)) ** 2, 12.0, 0))
    np.testing.assert_allclose(joint, theirs, atol=1e-6)


def test_principal_components_are_those_of_the_covariance() -> None:
    points, _ = clusters(20, 3, 6)
    values = np.linalg.eigvalsh(np.cov(points.T))[::-1]
    np.testing.assert_allclose(principal_components(points, 3).var(axis=0, ddof=1), values[:3])


@pytest.mark.parametrize("points", [np.zeros((6, 3)), np.eye(3), np.ones((1, 2)), np.arange(5.0)[:, None]])
def test_few_or_equal_points_still_have_places(points: np.ndarray) -> None:
    places = tsne(points, iterations=300)
    assert places.shape == (len(points), 2)
    assert np.isfinite(places).all()


def test_the_same_points_give_the_same_picture() -> None:
    points, _ = clusters(10)
    np.testing.assert_array_equal(tsne(points, iterations=50), tsne(points, iterations=50))
