"""Leave-one-out expected CIDEr: each training image is predicted without its own captions.

A decoder rewarded for agreeing with the captions of its training images can memorize each image.
What `ExpectedNgrams` predicts for an image from all *other* images and their captions is visible
in the image, or it could not be predicted: rewarding it rewards what generalizes to new images.

With A = (K + ridge)^-1, K the centred similarities of the images, a kernel ridge regression fitted
without image i misses its n-gram vector by (A T)_i / A_ii, where T has the vectors of all images
(Rasmussen and Williams 2006, "Gaussian Processes for Machine Learning", section 5.4.2): one inverse
gives all leave-one-out fits. Means, directions, document frequencies and the choice of n-grams come
from all images, the left-out one included.

Dimension key: I images of a group, B images, D feature size, E directions, Q rank, G n-grams.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from showtell.decoding.expected import (
    MOST_LANDMARKS,
    RIDGE,
    Captions,
    Directions,
    NgramWeights,
    left_singular_vectors,
    similarities,
)
from showtell.errors import UserError

# ``least_images`` and ``rank`` of the predictions, as in conf/decoding/reranked.yaml.
LEAST_IMAGES = 5
RANK = 512


class _Group(NamedTuple):
    """Low-rank predictions of images from each other: ``weights @ read[i]`` (G,) for image i."""

    read: Tensor  # (I, Q)
    weights: Tensor  # (G, Q)


class LeftOut:
    """Expected CIDEr of captions of training images, predicted from the other training images.

    More than `MOST_LANDMARKS` images are split into groups of at most that many, and an image is
    predicted from its own group: the result grows with the images, each matrix inverse does not.

    Args:
        image_ids: ids of the training images.
        captions: all references of each, as token ids that end with END.
        features: their pooled features in the same order, in chunks (any, D); iterated over twice.

    Raises:
        UserError: no n-gram is frequent enough to be predicted.
    """

    def __init__(
        self,
        image_ids: Sequence[str],
        captions: Sequence[Captions],
        features: Iterable[Tensor],
    ) -> None:
        self._known = NgramWeights.of(captions, LEAST_IMAGES)
        if not self._known.ngrams:
            raise UserError(
                f"no words stand in the captions of {LEAST_IMAGES} training images: there is too "
                "little to expect of a picture; train on more, or with objective=self_critical"
            )
        directions = Directions.of(features)
        points_IE = torch.cat([directions(chunk) for chunk in features])
        groups = -(-len(image_ids) // MOST_LANDMARKS)
        self._groups, self._bias = [], torch.zeros(len(self._known.ngrams))
        self._place: dict[str, tuple[int, int]] = {}
        for number in range(groups):
            # Interleaved, because neighbours in a list of images may belong to one series.
            own = slice(number, None, groups)
            vectors_IG = self._known.mean_vectors(captions[own])
            self._bias += vectors_IG.sum(dim=0) / len(image_ids)
            self._groups.append(_predicted(points_IE[own], vectors_IG))
            self._place |= {image: (number, row) for row, image in enumerate(image_ids[own])}

    def __call__(self, image_id: str, captions: Captions) -> list[float]:
        """The expected CIDEr of ``captions`` of one training image."""
        number, row = self._place[image_id]
        read, weights = self._groups[number]
        return self._known.scores(captions, weights, self._bias, read[row])


def _predicted(points: Tensor, vectors: Tensor) -> _Group:
    """Predict each image at ``points`` (I, E) from the others; overwrites ``vectors`` (I, G)."""
    inverse_II = _inverse(points.double())
    vectors -= vectors.mean(dim=0)
    missed_IG = (inverse_II @ vectors).div_(inverse_II.diagonal().unsqueeze(1))
    predicted_IG = vectors.sub_(missed_IG)
    del missed_IG, inverse_II  # as large as everything else
    read_IQ = left_singular_vectors(predicted_IG, RANK)
    return _Group(read_IQ, predicted_IG.T @ read_IQ)


def _inverse(points: Tensor) -> Tensor:
    """The matrix A (I, I) of the module docstring for images at ``points`` (I, E)."""
    similarity_II = similarities(points, points)
    mean_I = similarity_II.mean(dim=0)
    similarity_II.sub_(mean_I).sub_(mean_I.unsqueeze(1)).add_(mean_I.mean())
    similarity_II.diagonal().add_(RIDGE)
    inverse: Tensor = torch.linalg.inv(similarity_II).float()
    return inverse
