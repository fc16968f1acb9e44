"""Points of many dimensions in a plane: exact t-SNE, for the thousand points that a figure shows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

EXAGGERATION, EARLY = 12.0, 250  # attraction in the early iterations, and how many of these there are
DIMENSIONS = 50  # principal components that are kept beforehand, as van der Maaten and Hinton do


def tsne(points: Floats, *, perplexity: float = 30.0, iterations: int = 750) -> Floats:
    """Places [N, 2] in which points [N, D] keep their neighbours (van der Maaten and Hinton, 2008).

    Starts from the first two principal components, so that the same points always give the same picture. Every pair
    is computed: N^2 numbers in memory. With fewer than four points there are no neighbours to keep: the components.
    """
    components = principal_components(points, DIMENSIONS)
    count = len(components)
    start: Floats = np.pad(components[:, :2], ((0, 0), (0, max(0, 2 - components.shape[1]))))
    if count < 4 or not start.any():
        return start
    joint = _joint_probabilities(components, min(perplexity, (count - 1) / 3))
    places: Floats = start / start[:, 0].std() * 1e-4
    step = max(count / EXAGGERATION / 4, 50.0)
    velocity, gains = np.zeros_like(places), np.ones_like(places)
    for iteration in range(iterations):
        early = iteration < EARLY
        gradient = _gradient(joint * EXAGGERATION if early else joint, places)
        gains = np.where(gradient * velocity < 0, gains + 0.2, gains * 0.8).clip(0.01)
        velocity = (0.5 if early else 0.8) * velocity - step * gains * gradient
        places = places + velocity
        places -= places.mean(axis=0)
    return places


def principal_components(points: Floats, count: int) -> Floats:
    """The first `count` principal components [N, count] of [N, D], at most D; signs are those of the largest weight."""
    centred = np.asarray(points, dtype=np.float64) - np.mean(points, axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    axes = axes[:count]
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1)
    found: Floats = centred @ (axes * np.sign(largest)).T
    return found


def _joint_probabilities(points: Floats, perplexity: float) -> Floats:
    """[N, N], symmetric, sum 1: each row a Gaussian whose width gives it `perplexity`."""
    squares = _squared_distances(points)
    squares /= squares.mean()  # the search below then starts near its end, whatever the unit
    rows = np.empty_like(squares)
    for index, row in enumerate(squares):
        others = np.delete(row, index)
        others = others - others.min()
        precision, low, high = 1.0, 0.0, np.inf
        for _ in range(64):
            weights = np.exp(-others * precision)
            total = weights.sum()
            entropy = np.log(total) + precision * (others * weights).sum() / total
            if abs(entropy - np.log(perplexity)) < 1e-5:
                break
            low, high = (precision, high) if entropy > np.log(perplexity) else (low, precision)
            precision = 2 * precision if np.isinf(high) else (low + high) / 2
        rows[index] = np.insert(weights / total, index, 0.0)
    joint: Floats = (rows + rows.T) / (2 * len(rows))
    return joint


def _gradient(joint: Floats, places: Floats) -> Floats:
    near = _nearness(places)
    force = (joint - near / near.sum()) * near
    found: Floats = 4 * (force.sum(axis=1)[:, None] * places - force @ places)
    return found


def _nearness(places: Floats) -> Floats:
    """Student's t with one degree of freedom, [N, N]; zero on the diagonal."""
    near = 1 / (1 + _squared_distances(places))
    np.fill_diagonal(near, 0.0)
    return near


def _squared_distances(points: Floats) -> Floats:
    lengths = (points**2).sum(axis=1)
    squares: Floats = np.maximum(lengths[:, None] + lengths[None] - 2 * points @ points.T, 0.0)
    np.fill_diagonal(squares, 0.0)
    return squares
