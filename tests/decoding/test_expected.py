"""Expected n-grams: against sums written out, and against ridge regression in closed form."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from showtell.decoding import expected as module
from showtell.decoding.expected import ExpectedNgrams
from showtell.errors import UserError

# Six images of two references each, ids of tokens as END would end them (2).
CAPTIONS = [
    [(4, 5, 2), (4, 6, 2)],
    [(4, 5, 7, 2), (5, 2)],
    [(6, 6, 2), (6, 2)],
    [(4, 2), (7, 4, 2)],
    [(5, 5, 5, 2), (4, 5, 2)],
    [(7, 2), (7, 6, 2)],
]
SIZE = 3


def features(images: int = len(CAPTIONS)) -> Tensor:
    return torch.randn(images, SIZE, generator=torch.Generator().manual_seed(1)) * 2 + 1


def fit(chunk: int = 6, *, least_images: int = 1, rank: int = SIZE) -> ExpectedNgrams:
    return ExpectedNgrams.fit(
        CAPTIONS, features().split(chunk), least_images=least_images, rank=rank
    )


def grams_of(tokens: Sequence[int]) -> Counter[tuple[int, ...]]:
    return Counter(
        tuple(tokens[a : a + n]) for n in (1, 2, 3, 4) for a in range(len(tokens) - n + 1)
    )


def idf(gram: tuple[int, ...], least_images: int) -> float:
    documents = sum(any(gram in grams_of(tokens) for tokens in image) for image in CAPTIONS)
    return math.log(len(CAPTIONS) / (documents if documents >= least_images else 1))


def vector(tokens: Sequence[int], least_images: int = 1) -> dict[tuple[int, ...], float]:
    """The tf-idf of all n-grams, of norm 1 for each length."""
    weighed = {g: n * idf(g, least_images) for g, n in grams_of(tokens).items()}
    norms = [math.hypot(*(w for g, w in weighed.items() if len(g) == n)) for n in range(5)]
    return {g: w / norms[len(g)] for g, w in weighed.items() if w}


def test_the_mean_picture_gets_the_mean_of_all_references() -> None:
    """Nothing is known of it: a caption scores what it does on average against any reference."""
    caption = (4, 5, 6, 2)
    mine = vector(caption)
    similarities = [
        sum(mine.get(g, 0) * w for g, w in vector(tokens).items())
        for image in CAPTIONS
        for tokens in image
    ]
    ((score,),) = fit().scores(features().mean(dim=0, keepdim=True), [[caption]])
    assert score == pytest.approx(10 / 4 * sum(similarities) / len(similarities), abs=1e-4)


@pytest.mark.parametrize("least_images", [1, 3])
def test_it_is_ridge_regression_of_the_mean_reference(least_images: int) -> None:
    found = fit(least_images=least_images)
    grams = list(found.ngrams)
    assert all(idf(g, 1) == pytest.approx(i) for g, i in zip(grams, found.idf, strict=True))
    targets = np.array(
        [
            [np.mean([vector(t, least_images).get(g, 0) for t in image]) for g in grams]
            for image in CAPTIONS
        ]
    )
    x = features().double().numpy()
    deviation = x.std(axis=0) + 1e-3
    x = (x - x.mean(axis=0)) / deviation
    # With a row for each feature that asks for a weight of zero, least squares are ridge's.
    zeros = np.sqrt(module.RIDGE * len(x)) * np.eye(SIZE)
    centred = targets - targets.mean(axis=0)
    rows = np.vstack([x, zeros]), np.vstack([centred, np.zeros((SIZE, len(grams)))])
    weights = np.linalg.lstsq(*rows, rcond=None)[0]
    ours = (found.weights @ found.projection.T).numpy() * deviation
    np.testing.assert_allclose(ours, weights.T, atol=2e-3)
    np.testing.assert_allclose(found.bias.numpy(), targets.mean(axis=0), atol=1e-6)


def test_what_it_expects_of_its_own_pictures_is_nearer_to_their_captions() -> None:
    found = fit()
    for image, own in enumerate(CAPTIONS):
        scores = found.scores(features()[[image, (image + 3) % 6]], [own, own])
        assert sum(scores[0]) > sum(scores[1])


def test_chunks_change_nothing() -> None:
    whole, parts = fit(6), fit(4)
    candidates = [[(4, 5, 2), (6, 2)], [(7, 7, 2)], [], [(5, 2)], [(2,)], [(4, 4, 4, 4, 2)]]
    at_once = whole.scores(features(), candidates)
    assert [len(each) for each in at_once] == [2, 1, 0, 1, 1, 1]
    for one, other in zip(at_once, parts.scores(features(), candidates), strict=True):
        assert one == pytest.approx(other, abs=1e-3)


def test_a_smaller_rank_is_the_best_of_its_kind() -> None:
    whole, thin = fit(), fit(rank=1)
    deviations = features().std(dim=0, correction=0) + 1e-3
    full = (whole.weights @ (whole.projection * deviations.unsqueeze(1)).T).double()
    near = (thin.weights @ (thin.projection * deviations.unsqueeze(1)).T).double()
    assert thin.projection.shape == (SIZE, 1)
    lost = torch.linalg.svdvals(full)[1:].square().sum().sqrt()
    assert float((full - near).norm()) == pytest.approx(float(lost), rel=2e-2)


def test_ngrams_that_nobody_says_count_against_a_caption() -> None:
    found, picture = fit(), features()[:1]
    ((usual, strange),) = found.scores(picture, [[(4, 5, 2), (4, 5, 9, 2)]])
    assert strange < usual


def test_where_nothing_is_frequent_enough_all_captions_are_alike() -> None:
    assert fit(least_images=9).scores(features(), [[(4, 2), (5, 2)]] * 6) == [[0.0, 0.0]] * 6


def test_a_feature_that_never_changes_tells_nothing() -> None:
    constant = torch.cat([features(), torch.full((6, 1), 7.0)], dim=1)
    found = ExpectedNgrams.fit(CAPTIONS, [constant], least_images=1, rank=4)
    candidates = [[(4, 5, 2)]] * 6
    for one, other in zip(
        found.scores(constant, candidates), fit().scores(features(), candidates), strict=True
    ):
        assert one == pytest.approx(other, abs=2e-3)


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    found, file = fit(least_images=2), tmp_path / "expected.safetensors"
    found.save(file, "mine")
    read = ExpectedNgrams.load(file, "mine")
    with pytest.raises(UserError, match="belongs to another run"):
        ExpectedNgrams.load(file, "another")
    assert (dict(read.ngrams), list(read.idf)) == (dict(found.ngrams), list(found.idf))
    assert read.unseen == found.unseen
    candidates = [[(4, 5, 2), (9, 2)]] * 6
    assert read.scores(features(), candidates) == found.scores(features(), candidates)


@pytest.mark.parametrize("content", [b"", b"no tensors"])
def test_damaged_files_are_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "expected.safetensors"
    with pytest.raises(UserError, match=r"expected\.safetensors cannot be read"):
        ExpectedNgrams.load(file, "")
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"expected\.safetensors cannot be read"):
        ExpectedNgrams.load(file, "")


def test_parts_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    found = fit()
    file = tmp_path / "expected.safetensors"
    other = ExpectedNgrams(
        found.ngrams,
        found.idf,
        found.unseen,
        found.means,
        found.projection,
        found.weights[1:],
        found.bias,
    )
    other.save(file, "")
    with pytest.raises(UserError, match="its parts do not fit"):
        ExpectedNgrams.load(file, "")
