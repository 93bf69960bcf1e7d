"""Expected CIDEr of captions that are still being written, all beams of all images at once.

A decoder follows what it finds likely, and the best of ten such captions is still one that the
decoder would write. Where the search itself adds up likelihood and expected CIDEr, as shallow
fusion adds a language model (Gulcehre et al. 2015, "On Using Monolingual Corpora in Neural Machine
Translation"), it finds captions that say more of what the image leads to expect.

Dimension key: B images, L live images, C continuations, T tokens or n-grams of a caption,
G known n-grams.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from showtell.decoding.expected import ExpectedNgrams, NgramWeights
from showtell.metrics.cider import LONGEST, SCALE


class ExpectedCider:
    """A `Guide`: adds ``weight`` times the expected CIDEr of the tokens so far.

    Of tokens that end with END this is the score of `ExpectedNgrams`; of others what it would be if
    they were the whole caption. `NgramWeights.scores` computes it for captions of any length, a few
    of each image, one n-gram after the other; this for all beams at once, at every token.

    Args:
        expected: the prediction.
        features: pooled features (B, D) of the images that will be searched. A vector of G numbers
            is kept for each.
        weight: of the expected CIDEr.
    """

    def __init__(self, expected: ExpectedNgrams, features: Tensor, weight: float) -> None:
        device = features.device
        predicted_BG = expected.predicted(features).to(device) * (weight * SCALE / LONGEST)
        self._ngrams = NgramTable(expected.known, device)
        # One n-gram more, which stands for all unknown ones and is never expected.
        self._worth = pad(predicted_BG, (0, 1))

    def __call__(self, images: Tensor, tokens: Tensor) -> Tensor:
        """(L, C) for captions (L, C, T) of the images with indices ``images`` (L,)."""
        total_LC = torch.zeros(tokens.shape[:2], device=tokens.device)
        for numbers_LCT, counts_LCT in self._ngrams.of(tokens):
            idf_LCT = self._ngrams.idf[numbers_LCT]
            # An n-gram that occurs c times is met c times.
            norm_LC = (counts_LCT * idf_LCT.square()).sum(dim=-1).sqrt()
            worth_LCT = self._worth[images.view(-1, 1, 1), numbers_LCT]
            products_LC = (idf_LCT * worth_LCT / counts_LCT).sum(dim=-1)
            total_LC += torch.where(norm_LC > 0, products_LC / norm_LC, 0.0)
        return total_LC


class NgramTable:
    """Finds the numbers of the n-grams of many captions at once.

    Attributes:
        idf: (G + 1,) of each n-gram; the last is that of all unknown ones.
    """

    def __init__(self, known: NgramWeights, device: torch.device) -> None:
        self.idf = torch.tensor([*known.idf, known.unseen], device=device)
        # An n-gram is a node and its last word: node 0 stands for no words, node i + 1 for n-gram
        # number i, which all its words but the last are (`NgramWeights`).
        self._words = 1 + max((gram[-1] for gram in known.ngrams), default=0)
        keys = [
            (known.ngrams[gram[:-1]] + 1 if len(gram) > 1 else 0) * (self._words + 1) + gram[-1]
            for gram in known.ngrams
        ]
        # After the largest key comes one that is never looked for: every search ends at a key.
        self._keys, self._numbers = torch.tensor(
            [*keys, torch.iinfo(torch.long).max], device=device
        ).sort()

    def of(self, tokens: Tensor) -> list[tuple[Tensor, Tensor]]:
        """For each length n <= T the n-grams of captions (L, C, T), by where they start.

        The first tensor (L, C, T - n + 1) has their numbers, G for an unknown one, the second how
        often each occurs in its caption.
        """
        same_LCTT = tokens.unsqueeze(-1) == tokens.unsqueeze(-2)
        same_n, numbers = same_LCTT, self._find(torch.zeros_like(tokens), tokens)
        found = [(numbers, same_n.sum(dim=-1))]
        for before in range(1, min(LONGEST, tokens.shape[-1])):
            same_n = same_n[..., :-1, :-1] & same_LCTT[..., before:, before:]
            numbers = self._find(numbers[..., :-1] + 1, tokens[..., before:])
            found.append((numbers, same_n.sum(dim=-1)))
        return found

    def _find(self, nodes: Tensor, words: Tensor) -> Tensor:
        """Numbers of the n-grams that consist of the words of a node and one more."""
        # No n-gram ends with word number `_words`, and none begins with an unknown one.
        keys = nodes * (self._words + 1) + words.clamp(max=self._words)
        places = torch.searchsorted(self._keys, keys)
        unknown = len(self._numbers) - 1
        return torch.where(self._keys[places] == keys, self._numbers[places], unknown)
