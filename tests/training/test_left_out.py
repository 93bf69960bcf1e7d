"""Predictions of training images from the others, against a fit without each of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from showtell.config import compose
from showtell.decoding.expected import RIDGE, Directions, NgramWeights, similarities
from showtell.errors import UserError
from showtell.metrics.cider import LONGEST, SCALE, ngrams
from showtell.training import left_out
from showtell.training.left_out import LeftOut

USUAL_LEAST_IMAGES = left_out.LEAST_IMAGES
# Seven images of two references each, ids of tokens as END would end them (2).
CAPTIONS = [
    [(4, 5, 2), (4, 6, 2)],
    [(4, 5, 7, 2), (5, 2)],
    [(6, 6, 2), (6, 2)],
    [(4, 2), (7, 4, 2)],
    [(5, 5, 5, 2), (4, 5, 2)],
    [(7, 2), (7, 6, 2)],
    [(4, 5, 2), (6, 7, 2)],
]
IDS = [f"{number}.jpg" for number in range(len(CAPTIONS))]
WRITTEN = [(4, 5, 2), (6, 2), (7, 7, 4, 2), (2,)]


@pytest.fixture(autouse=True)
def all_ngrams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(left_out, "LEAST_IMAGES", 1)


def features() -> Tensor:
    return torch.randn(len(CAPTIONS), 3, generator=torch.Generator().manual_seed(1)) * 2 + 1


def fitted_without(image: int, own: list[int]) -> Tensor:
    """The vector of ``image``, by a ridge regression of the ``own`` images that are not it."""
    known = NgramWeights.of(CAPTIONS, 1)
    vectors = known.mean_vectors(CAPTIONS).double()
    points = Directions.of([features()])(features())[own].double()
    centre = torch.eye(len(own), dtype=torch.float64) - 1 / len(own)
    kernel = centre @ similarities(points, points) @ centre
    around = centre @ vectors[own]
    at = own.index(image)
    others = [i for i in range(len(own)) if i != at]
    among = kernel[others][:, others] + RIDGE * torch.eye(len(others), dtype=torch.float64)
    return kernel[at, others] @ torch.linalg.solve(among, around[others]) + vectors.mean(dim=0)


def expected(image: int, own: list[int]) -> list[float]:
    known, predicted = NgramWeights.of(CAPTIONS, 1), fitted_without(image, own)
    numbers = list(known.ngrams)
    return [
        sum(
            value / ngrams(tokens)[numbers[number]] * predicted[number].item()
            for number, value in known.vector(tokens)
        )
        * (SCALE / LONGEST)
        for tokens in WRITTEN
    ]


def test_it_predicts_as_many_ngrams_as_the_second_opinion() -> None:
    usual = compose(["decoding=reranked"])["decoding"]
    assert (usual["least_images"], usual["rank"]) == (USUAL_LEAST_IMAGES, left_out.RANK)


@pytest.mark.parametrize("chunk", [2, 7])
def test_it_is_what_a_fit_without_the_image_expects(chunk: int) -> None:
    found = LeftOut(IDS, CAPTIONS, features().split(chunk))
    for image, image_id in enumerate(IDS):
        own = list(range(len(IDS)))
        assert found(image_id, WRITTEN) == pytest.approx(expected(image, own), abs=1e-4)


def test_many_images_are_predicted_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(left_out, "MOST_LANDMARKS", 4)
    found = LeftOut(IDS, CAPTIONS, [features()])
    for image, image_id in enumerate(IDS):
        own = list(range(image % 2, len(IDS), 2))
        assert found(image_id, WRITTEN) == pytest.approx(expected(image, own), abs=1e-4)


def test_of_a_small_rank_it_is_near(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = LeftOut(IDS, CAPTIONS, [features()])
    errors = []
    for rank in (1, 3, 6):
        monkeypatch.setattr(left_out, "RANK", rank)
        found = LeftOut(IDS, CAPTIONS, [features()])
        apart = [
            abs(a - b)
            for image_id in IDS
            for a, b in zip(found(image_id, WRITTEN), whole(image_id, WRITTEN), strict=True)
        ]
        errors.append(sum(apart))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-3


def test_captions_of_which_nothing_is_known() -> None:
    found = LeftOut(IDS, CAPTIONS, [features()])
    assert found(IDS[0], [(99, 98), ()]) == [0.0, 0.0]


def test_too_little_to_expect_anything_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(left_out, "LEAST_IMAGES", 8)
    with pytest.raises(UserError, match="captions of 8 training images: there is too little"):
        LeftOut(IDS, CAPTIONS, [features()])
