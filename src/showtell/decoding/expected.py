"""Expected CIDEr: scores captions by the n-grams that an image's features predict.

CIDEr-D (Vedantam et al. 2015, see `showtell.metrics.cider`) compares a caption with the references
of its image by the tf-idf weights of their n-grams. A new image has no references, but their mean
vector can be predicted from its features, by kernel ridge regression fitted to the training images.
The score of a caption against that prediction is its expected CIDEr, without the penalty on length.
CIDEr-D clips the count of an n-gram to that of the reference; here it is clipped to one, since
references seldom repeat a word of any weight. With the references of the most similar training
images in place of a prediction this is the consensus re-ranking of Devlin et al. 2015, "Language
Models for Image Captioning", and Mao et al. 2015, "Learning like a Child".

All training images would be too many to keep. The regression represents an image by its similarity
to some of them, the landmarks (Williams and Seeger 2001, "Using the Nystrom Method to Speed Up
Kernel Machines"), along the principal components of the features, and its weights are the best ones
of a given rank (Mukherjee and Zhu 2011, "Reduced Rank Ridge Regression and Its Kernel Extensions").

Dimension key: I training images, B images, D feature size, E directions, M landmarks, Q rank,
G n-grams, N n-grams of all captions.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from showtell.errors import UserError
from showtell.files import write_atomically
from showtell.metrics.cider import LONGEST, SCALE, ngrams
from showtell.quantization import SCALES_SUFFIX, dequantize_state, quantize
from showtell.text.vocabulary import PAD

Ngram = tuple[int, ...]
Captions = Sequence[Sequence[int]]  # of one image, each as token ids

# At most this many n-grams, the most frequent, are predicted: a bound on memory. Flickr8k has
# 21,600 n-grams that occur in five images or more.
MOST_NGRAMS = 30_000
# Similarity is exp(-WIDTH * d), with d the mean squared difference of the features, each in units
# of its standard deviation: d is 2 for two images that have nothing in common.
WIDTH = 0.5
# Added to the similarity of a training image with itself, which is 1: the larger, the smoother.
RIDGE = 0.3
MOST_DIRECTIONS = 256
# Enough for all training images of Flickr8k: a third of them loses most of the gain over a
# regression on the features themselves.
MOST_LANDMARKS = 6_000
# Added to the similarity of a landmark with itself, because landmarks may be alike.
_ALIKE = 1e-4
# Directions whose variance is less than this share of the largest are dropped.
_LEAST_VARIANCE = 1e-5
# Images whose dense n-gram vectors are in memory at a time.
_CHUNK = 250
# Metadata entry of the file for what is not a tensor.
FACTS = "facts"


@dataclass(frozen=True, slots=True)
class NgramWeights:
    """Tf-idf weights of n-grams, by the number of training images whose references have them.

    Attributes:
        ngrams: n-gram of token ids -> its number, 0 to G - 1. All of an n-gram but its last token
            is one of them, too.
        idf: of each n-gram, log(training images / images with the n-gram).
        unseen: the idf of all other n-grams, log(training images).
    """

    ngrams: Mapping[Ngram, int]
    idf: Sequence[float]
    unseen: float

    @classmethod
    def of(cls, captions: Sequence[Captions], least_images: int) -> Self:
        """Weights of the n-grams in the references of at least ``least_images`` training images."""
        documents: Counter[Ngram] = Counter()
        for references in captions:
            documents.update({gram for tokens in references for gram in ngrams(tokens)})
        # Ties are sorted by token ids, not by the order of the images: so an n-gram comes after its
        # beginning, which no fewer images have, and the bound leaves no gap.
        ranked = sorted(documents.items(), key=lambda item: (-item[1], item[0]))[:MOST_NGRAMS]
        chosen = [(gram, count) for gram, count in ranked if count >= least_images]
        return cls(
            {gram: number for number, (gram, _) in enumerate(chosen)},
            [math.log(len(captions) / count) for _, count in chosen],
            math.log(len(captions)),
        )

    def vector(self, tokens: Sequence[int], *, once: bool = False) -> Iterator[tuple[int, float]]:
        """Number and tf-idf of a caption's known n-grams; all its n-grams of a length have norm 1.

        With ``once`` each n-gram counts once, but in the norm as often as it occurs.
        """
        squares = [0.0] * LONGEST
        known = []
        for gram, count in ngrams(tokens).items():
            number = self.ngrams.get(gram)
            weight = count * (self.unseen if number is None else self.idf[number])
            squares[len(gram) - 1] += weight * weight
            if number is not None:
                known.append((number, len(gram), weight / count if once else weight))
        for number, words, weight in known:
            if weight:
                yield number, weight / math.sqrt(squares[words - 1])

    def scores(
        self, captions: Captions, weights: Tensor, bias: Tensor, read: Tensor
    ) -> list[float]:
        """CIDEr of ``captions`` against the predicted vector ``weights @ read + bias`` (G,).

        ``weights`` are (G, Q), ``read`` is (Q,).
        """
        owners, numbers, values = [], [], []
        for owner, tokens in enumerate(captions):
            for number, value in self.vector(tokens, once=True):
                owners.append(owner)
                numbers.append(number)
                values.append(value)
        # Not a matrix product, which autocast would compute in bfloat16 during training.
        expected_N = (weights[numbers] * read).sum(dim=1) + bias[numbers]
        products_N = torch.tensor(values) * expected_N * (SCALE / LONGEST)
        owners_N = torch.tensor(owners, dtype=torch.long)
        scores: list[float] = torch.zeros(len(captions)).index_add(0, owners_N, products_N).tolist()
        return scores

    def mean_vectors(self, captions: Sequence[Captions]) -> Tensor:
        """The mean (images, G) of the vectors of each image's references."""
        means = torch.zeros(len(captions), len(self.ngrams))
        for row, references in enumerate(captions):
            sums: defaultdict[int, float] = defaultdict(float)
            for tokens in references:
                for number, value in self.vector(tokens):
                    sums[number] += value
            share = 1 / max(1, len(references))
            means[row, list(sums)] = torch.tensor(list(sums.values())) * share
        return means


@dataclass(frozen=True, slots=True)
class Directions:
    """The first principal components of the features of the training images.

    Attributes:
        means: (D,) means of the features.
        scales: (D,) what features are divided by: their standard deviations times the root of D, so
            that the squared distance of two images is the mean squared difference of their
            features, each in units of its standard deviation.
        vectors: (D, E) components, as columns of norm 1.
    """

    means: Tensor
    scales: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, features: Iterable[Tensor]) -> Self:
        """Compute them from the features of the training images, in chunks (any, D)."""
        images, shift = 0, torch.empty(0)
        for chunk in features:
            if images == 0:
                # Near the mean, sums of squares lose little in single precision.
                shift = chunk.mean(dim=0)
                sums, squares_DD = torch.zeros_like(shift), torch.zeros(len(shift), len(shift))
            near = chunk - shift
            sums += near.sum(dim=0)
            squares_DD.addmm_(near.T, near)
            images += len(chunk)
        mean = sums / images
        covariance_DD = squares_DD / images - torch.outer(mean, mean)
        # A constant feature tells nothing and must not be divided by 0.
        deviations = covariance_DD.diagonal().clamp(min=0).sqrt() + 1e-3
        covariance_DD = covariance_DD / deviations / deviations.unsqueeze(1)
        try:
            variances, vectors = torch.linalg.eigh(covariance_DD)
        except RuntimeError:  # LinAlgError; few images: most variances are the same, 0
            variances, vectors = (
                each.float() for each in torch.linalg.eigh(covariance_DD.double())
            )
        # The training images do not vary along the others: there a new image would be unlike all
        # of them by chance alone.
        vectors = vectors[:, variances >= _LEAST_VARIANCE * variances[-1]][:, -MOST_DIRECTIONS:]
        # In the precision of the file, so that everything is fitted to what will be loaded.
        kept = vectors.half().float()
        return cls(shift + mean, deviations * math.sqrt(len(deviations)), kept)

    def __call__(self, features: Tensor) -> Tensor:
        """Project ``features`` (B, D) on the components: points (B, E)."""
        return (features - self.means) / self.scales @ self.vectors


@dataclass(frozen=True, slots=True)
class ExpectedNgrams:
    """Predicts the mean tf-idf vector of an image's references from its pooled features.

    Attributes:
        known: the n-grams that are predicted, and their weights.
        directions: components along which an image is compared with the landmarks.
        landmarks: (M, E) points of training images.
        projection: (M, Q) maps the similarities to the landmarks to the Q inputs of ``weights``.
        weights: (G, Q) maps these inputs to the n-grams.
        bias: (G,) prediction for inputs of 0.
    """

    known: NgramWeights
    directions: Directions
    landmarks: Tensor
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
        """Fit the prediction to training images.

        Args:
            captions: all references of each image.
            features: the pooled features of the same images in chunks (at most I, D); iterated
                over twice.
            least_images: an n-gram in the references of fewer images is not predicted.
            rank: largest Q; the prediction is the best one of that rank.
        """
        known = NgramWeights.of(captions, least_images)
        directions = Directions.of(features)
        points_IE = torch.cat([directions(chunk) for chunk in features])
        landmarks = torch.mul(*quantize(_landmarks(points_IE)))
        similarity_M, bias, gram_MM, together_MG = _moments(known, captions, points_IE, landmarks)
        between_MM = similarities(landmarks.double(), landmarks.double())
        between_MM.diagonal().add_(_ALIKE)
        lower_MM = torch.linalg.cholesky(gram_MM + RIDGE * between_MM).float()
        # With C = L L' the solution C^-1 T is L'^-1 W, where W = L^-1 T: a smaller rank loses least
        # if it keeps the first left singular vectors of W.
        whitened_MG = torch.linalg.solve_triangular(lower_MM, together_MG, upper=False)
        best_MQ = left_singular_vectors(whitened_MG, rank)
        projection = torch.linalg.solve_triangular(lower_MM.T, best_MQ, upper=True)
        projection = torch.mul(*quantize(projection.T)).T
        weights = torch.mul(*quantize(whitened_MG.T @ best_MQ))
        bias = bias - weights @ (similarity_M @ projection)
        return cls(known, directions, landmarks, projection, weights, bias)

    def scores(self, features: Tensor, captions: Sequence[Captions]) -> list[list[float]]:
        """The expected CIDEr of each of the ``captions`` of each image.

        ``features`` are pooled, (B, D).
        """
        return [
            self.known.scores(each, self.weights, self.bias, read_Q)
            for each, read_Q in zip(captions, self._read(features), strict=True)
        ]

    def predicted(self, features: Tensor) -> Tensor:
        """The predicted vectors (B, G) of images with pooled ``features`` (B, D)."""
        read_BQ = self._read(features)
        with torch.autocast("cpu", enabled=False):
            return read_BQ @ self.weights.T + self.bias

    def _read(self, features: Tensor) -> Tensor:
        """The inputs (B, Q) of the weights, in single precision where validation is in half."""
        with torch.autocast("cpu", enabled=False):
            points_BE = self.directions(features.cpu().float())
            return similarities(points_BE, self.landmarks) @ self.projection

    def widened(self, columns: Sequence[int], size: int) -> Self:
        """The same prediction for ``size`` features, of which it reads ``columns``, in this order.

        It has read len(columns) features until now.
        """
        own, places = self.directions, torch.tensor(columns)
        directions = Directions(
            torch.zeros(size).index_copy(0, places, own.means),
            torch.ones(size).index_copy(0, places, own.scales),
            torch.zeros(size, own.vectors.shape[1]).index_copy(0, places, own.vectors),
        )
        return replace(self, directions=directions)

    def save(self, path: Path, made_for: str) -> None:
        """Write a ``.safetensors`` file; ``made_for`` identifies the features and word ids."""
        padded = [(*gram, *(PAD,) * (LONGEST - len(gram))) for gram in self.known.ngrams]
        tensors = {
            "ngrams": torch.tensor(padded, dtype=torch.int32).view(-1, LONGEST),
            "idf": torch.tensor(self.known.idf, dtype=torch.float64),
            "means": self.directions.means,
            "scales": self.directions.scales,
            "directions": self.directions.vectors.half(),
            "bias": self.bias,
        }
        wide = {"landmarks": self.landmarks, "projection": self.projection.T}
        for name, tensor in (wide | {"weights": self.weights}).items():
            tensors[name], tensors[name + SCALES_SUFFIX] = quantize(tensor)
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        # One entry only: the order of several would differ each time.
        facts = json.dumps({"unseen": self.known.unseen, "made_for": made_for})
        write_atomically(path, save(contiguous, metadata={FACTS: facts}))

    @classmethod
    def load(cls, path: Path, made_for: str) -> Self:
        """Read a file that ``save`` wrote.

        Raises:
            UserError: the file is missing, damaged, or was made for something else.
        """
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads(file.metadata()[FACTS])
                unseen, is_own = float(facts["unseen"]), facts["made_for"] == made_for
                names = list(file.keys())
                tensors = {name: file.get_tensor(name) for name in names}
            if "scales" not in tensors:
                raise UserError(
                    f"{path} was made by an earlier version of showtell; put the run together "
                    "again from its members with showtell ensemble, or train it again"
                )
            read = dequantize_state(tensors)
            size, directions = read["directions"].shape
            landmarks, (count, rank) = len(read["landmarks"]), read["weights"].shape
            shapes = {
                **{"means": (size,), "scales": (size,), "landmarks": (landmarks, directions)},
                **{"ngrams": (count, LONGEST), "idf": (count,), "bias": (count,)},
                "projection": (rank, landmarks),
            }
            is_whole = all(read[name].shape == shape for name, shape in shapes.items())
            padded = read["ngrams"].tolist()
            grams = {tuple(i for i in gram if i != PAD): n for n, gram in enumerate(padded)}
            beginnings = {gram[:-1] for gram in grams if len(gram) != 1}
            is_whole &= len(grams) == count and beginnings <= grams.keys() - {()}
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
        return cls(
            NgramWeights(grams, read["idf"].tolist(), unseen),
            Directions(read["means"], read["scales"], read["directions"].float()),
            read["landmarks"],
            read["projection"].T,
            read["weights"],
            read["bias"],
        )


def _moments(
    known: NgramWeights, captions: Sequence[Captions], points: Tensor, landmarks: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Moments of the similarities and n-gram vectors of the training images at ``points`` (I, E).

    Returns the mean similarities to the landmarks (M,), the mean vector (G,), and the sums over the
    images, around these means, of similarity x similarity (M, M) and similarity x vector (M, G).
    """
    # In single precision what images have in common would drown the little in which they differ.
    landmarks, count = landmarks.double(), len(landmarks)
    starts = range(0, len(points), _CHUNK)
    chunks = [points[start : start + _CHUNK].double() for start in starts]
    total_M = torch.zeros(count, dtype=torch.float64)
    for chunk in chunks:
        total_M += similarities(chunk, landmarks).sum(dim=0)
    similarity_M = total_M / len(points)
    gram_MM = torch.zeros(count, count, dtype=torch.float64)
    together_MG = torch.zeros(count, len(known.ngrams))
    total_G = torch.zeros(len(known.ngrams))
    for start, chunk in zip(starts, chunks, strict=True):
        around_means = similarities(chunk, landmarks) - similarity_M
        vectors = known.mean_vectors(captions[start : start + len(chunk)])
        gram_MM.addmm_(around_means.T, around_means)
        together_MG.addmm_(around_means.float().T, vectors)
        total_G += vectors.sum(dim=0)
    return similarity_M.float(), total_G / len(points), gram_MM, together_MG


def left_singular_vectors(matrix: Tensor, count: int) -> Tensor:
    """Left singular vectors of the ``count`` largest singular values of ``matrix``, as columns.

    Found by subspace iteration from a random start (Halko, Martinsson and Tropp 2011, "Finding
    Structure with Randomness", algorithm 4.4) with a fixed seed. ``matrix`` is (M, G).
    """
    if not matrix.numel():
        return matrix.new_zeros(len(matrix), 1)
    wide = min(count + 32, *matrix.shape)
    random = torch.randn(matrix.shape[1], wide, generator=torch.Generator().manual_seed(0))
    basis, _ = torch.linalg.qr(matrix @ random)
    for _ in range(4):
        basis, _ = torch.linalg.qr(matrix @ (matrix.T @ basis))
    vectors, _, _ = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    singular_vectors: Tensor = basis @ vectors[:, :count]
    return singular_vectors


def _landmarks(points: Tensor) -> Tensor:
    """At most `MOST_LANDMARKS` of the training images (I, E), evenly spaced."""
    count = min(len(points), MOST_LANDMARKS)
    return points[torch.linspace(0, len(points) - 1, count).round().long()]


def similarities(points: Tensor, landmarks: Tensor) -> Tensor:
    """Similarities (B, M), from 0 to 1, of images (B, E) to landmarks (M, E)."""
    squares_BM = points.square().sum(dim=1, keepdim=True) + landmarks.square().sum(dim=1)
    return (-WIDTH * (squares_BM - 2 * points @ landmarks.T).clamp(min=0)).exp()
