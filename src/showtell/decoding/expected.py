"""What people would say of a picture, as far as its features tell: the n-grams to be expected.

CIDEr-D (Vedantam et al. 2015, see `showtell.metrics.cider`) compares a caption with the references
of its image by the tf-idf weights of their n-grams. A new picture has no references, but their mean
vector can be predicted from its features, by ridge regression fitted to the training images. What a
caption scores against that prediction is the CIDEr to be expected of it, without clipping and the
penalty on length. With the references of the most similar training images in place of a prediction
this is the consensus re-ranking of Devlin et al. 2015, "Language Models for Image Captioning", and
Mao et al. 2015, "Learning like a Child".

Dimension key: I training images, B images, D feature size, Q rank, G n-grams,
N n-grams of all captions.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from showtell.errors import UserError
from showtell.files import write_atomically
from showtell.in_bytes import in_bytes
from showtell.metrics.cider import LONGEST, SCALE, ngrams
from showtell.text.vocabulary import PAD

Ngram = tuple[int, ...]
Captions = Sequence[Sequence[int]]  # of one image, each the ids of its tokens

# The most frequent are predicted, and bound the memory; Flickr8k has 21,600 in five images or more.
MOST_NGRAMS = 30_000
# How strongly the weights are drawn towards zero, in variances of a feature.
RIDGE = 0.5
# The entry of the file's metadata with what is no tensor.
FACTS = "facts"


@dataclass(frozen=True, slots=True)
class ExpectedNgrams:
    """Predicts the mean tf-idf vector of an image's references from its pooled features.

    Attributes:
        ngrams: n-gram of token ids -> its number, 0 to G - 1.
        idf: of each, log(training images / images with the n-gram).
        unseen: the idf of all other n-grams, log(training images).
        means: (D,) of the features over the training images.
        projection: (D, Q) what is read of a picture's features.
        weights: (G, Q) what follows from it.
        bias: (G,) the prediction for the mean of the pictures.
    """

    ngrams: Mapping[Ngram, int]
    idf: Sequence[float]
    unseen: float
    means: Tensor
    projection: Tensor
    weights: Tensor
    bias: Tensor

    @classmethod
    def fit(
        cls,
        captions: Sequence[Captions],
        features: Iterable[Tensor],
        *,
        least_images: int,
        rank: int,
    ) -> Self:
        """Fit it to training images.

        Args:
            captions: all references of each image.
            features: the pooled features of the same images in chunks (at most I, D).
            least_images: an n-gram of fewer images is not predicted.
            rank: largest Q; the prediction is the best one of that rank.
        """
        images = len(captions)
        documents: Counter[Ngram] = Counter()
        for references in captions:
            documents.update({gram for tokens in references for gram in ngrams(tokens)})
        # Alphabetically where equally frequent: not in the order of the images.
        ranked = sorted(documents.items(), key=lambda item: (-item[1], item[0]))[:MOST_NGRAMS]
        chosen = [(gram, count) for gram, count in ranked if count >= least_images]
        idf = [math.log(images / count) for _, count in chosen]
        grams = {gram: number for number, (gram, _) in enumerate(chosen)}
        unfitted = cls(grams, idf, math.log(images), *(torch.empty(0) for _ in range(4)))
        means, deviations, covariance_DD, bias, together_DG = unfitted._moments(captions, features)
        covariance_DD.diagonal().add_(RIDGE)
        solution_DG = torch.linalg.solve(covariance_DD, together_DG)
        # The best approximation of rank Q: along the left singular vectors of the largest values.
        _, vectors = torch.linalg.eigh(solution_DG @ solution_DG.T)
        best_DQ = vectors[:, -rank:]
        projection, weights = best_DQ / deviations.unsqueeze(1), solution_DG.T @ best_DQ
        # As they are kept.
        projection, weights = projection.half().float(), torch.mul(*in_bytes(weights))
        return cls(grams, idf, unfitted.unseen, means, projection, weights, bias)

    def scores(self, features: Tensor, captions: Sequence[Captions]) -> list[list[float]]:
        """The CIDEr to be expected of each of the ``captions`` of each image.

        ``features`` are pooled, (B, D).
        """
        owners, images, numbers, values = [], [], [], []
        counts = [len(each) for each in captions]
        flat = ((image, tokens) for image, each in enumerate(captions) for tokens in each)
        for owner, (image, tokens) in enumerate(flat):
            for number, value in self._vector(tokens):
                owners.append(owner)
                images.append(image)
                numbers.append(number)
                values.append(value)
        read_BQ = (features.cpu().float() - self.means) @ self.projection
        expected_N = (self.weights[numbers] * read_BQ[images]).sum(dim=1) + self.bias[numbers]
        products_N = torch.tensor(values) * expected_N * (SCALE / LONGEST)
        owners_N = torch.tensor(owners, dtype=torch.long)
        scores = torch.zeros(sum(counts)).index_add(0, owners_N, products_N)
        flat_scores, ends = scores.tolist(), accumulate(counts, initial=0)
        return [flat_scores[start:stop] for start, stop in pairwise(ends)]

    def save(self, path: Path, made_for: str) -> None:
        """Write it as ``.safetensors``; ``made_for`` names the features and the ids of words."""
        padded = [(*gram, *(PAD,) * (LONGEST - len(gram))) for gram in self.ngrams]
        tensors = {
            "ngrams": torch.tensor(padded, dtype=torch.int32).view(-1, LONGEST),
            "idf": torch.tensor(self.idf, dtype=torch.float64),
            "means": self.means,
            "projection": self.projection.half(),
            "bias": self.bias,
        }
        tensors["weights"], tensors["steps"] = in_bytes(self.weights)
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        # In one entry: several would stand in another order each time.
        facts = json.dumps({"unseen": self.unseen, "made_for": made_for})
        write_atomically(path, save(contiguous, metadata={FACTS: facts}))

    @classmethod
    def load(cls, path: Path, made_for: str) -> Self:
        """Inverse of ``save``.

        Raises:
            UserError: it is missing, damaged, or was made for something else.
        """
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads(file.metadata()[FACTS])
                unseen, is_own = float(facts["unseen"]), facts["made_for"] == made_for
                padded, idf = file.get_tensor("ngrams").tolist(), file.get_tensor("idf").tolist()
                names = ("means", "projection", "bias", "weights", "steps")
                means, projection, bias, weights, steps = (
                    file.get_tensor(name).float() for name in names
                )
            weights = weights * steps
            is_whole = (len(means), projection.shape[1]) == (
                len(projection),
                weights.shape[1],
            ) and len(padded) == len(idf) == len(weights) == len(bias)
        except (
            OSError,
            SafetensorError,
            LookupError,
            TypeError,
            ValueError,
            RuntimeError,
        ) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{path} cannot be read ({reason}); restore it from a copy") from error
        if not is_whole or not is_own:
            problem = "its parts do not fit" if is_own else "it belongs to another run"
            raise UserError(
                f"{path} is not the file of this run: {problem}; restore it from a copy"
            )
        grams = {tuple(i for i in gram if i != PAD): number for number, gram in enumerate(padded)}
        return cls(grams, idf, unseen, means, projection, weights, bias)

    def _moments(
        self, captions: Sequence[Captions], features: Iterable[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Of the features: means (D,), deviations (D,), covariance (D, D) in these deviations.

        Of the targets: their means (G,) and their covariance with the features (D, G).
        """
        images, done = len(captions), 0
        shift = torch.empty(0)
        for chunk in features:
            if done == 0:
                # Sums of squares around something near the mean lose nothing in single precision.
                shift = chunk.mean(dim=0)
                size = len(shift)
                sums, squares_DD = torch.zeros(size), torch.zeros(size, size)
                targets_sum = torch.zeros(len(self.ngrams))
                together_DG = torch.zeros(size, len(self.ngrams))
            targets = self._mean_vectors(captions[done : done + len(chunk)])
            near = chunk - shift
            sums += near.sum(dim=0)
            squares_DD.addmm_(near.T, near)
            targets_sum += targets.sum(dim=0)
            together_DG.addmm_(near.T, targets)
            done += len(chunk)
        mean, bias = sums / images, targets_sum / images
        covariance_DD = squares_DD / images - torch.outer(mean, mean)
        # A feature that never changes tells nothing, and shall not be divided by nothing.
        deviations = covariance_DD.diagonal().clamp(min=0).sqrt() + 1e-3
        covariance_DD = covariance_DD / deviations / deviations.unsqueeze(1)
        together_DG = (together_DG / images - torch.outer(mean, bias)) / deviations.unsqueeze(1)
        return shift + mean, deviations, covariance_DD, bias, together_DG

    def _mean_vectors(self, captions: Sequence[Captions]) -> Tensor:
        """For some images the mean (images, G) of their references' vectors."""
        means = torch.zeros(len(captions), len(self.ngrams))
        for row, references in enumerate(captions):
            sums: Counter[int] = Counter()
            for tokens in references:
                for number, value in self._vector(tokens):
                    sums[number] += value  # type: ignore[assignment]  # numbers of any kind
            share = 1 / max(1, len(references))
            means[row, list(sums)] = torch.tensor(list(sums.values())) * share
        return means

    def _vector(self, tokens: Sequence[int]) -> Iterator[tuple[int, float]]:
        """Number and tf-idf of the known n-grams of a caption, whose norm is 1 for each length."""
        squares = [0.0] * LONGEST
        known = []
        for gram, count in ngrams(tokens).items():
            number = self.ngrams.get(gram)
            weight = count * (self.unseen if number is None else self.idf[number])
            squares[len(gram) - 1] += weight * weight
            if number is not None:
                known.append((number, len(gram), weight))
        for number, words, weight in known:
            if weight:
                yield number, weight / math.sqrt(squares[words - 1])
