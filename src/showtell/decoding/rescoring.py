"""Log probabilities of captions that are already written, by teacher forcing.

Dimension key: B images, N captions, T positions, P real positions, V vocabulary, D feature size,
R regions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from showtell.decoding.expected import Captions
from showtell.models.decoder import Decoder
from showtell.text.vocabulary import BEGIN, PAD

# Captions computed together. Their logits take some 100 MB for Flickr8k's words; more at once are
# no faster on a CPU.
_ROWS = 768


@torch.inference_mode()
def log_probs_of(
    decoder: Decoder, features: Tensor, captions: Sequence[Captions]
) -> list[list[float]]:
    """Natural log probability of each caption of each image, as a beam search would compute it.

    Probabilities are those of softmax over the whole vocabulary: rules of a search that forbid
    words do not renormalize them.

    Args:
        decoder: in eval mode.
        features: (B, D) or (B, R, D).
        captions: of each image at least one, as token ids with END; images may have any number.
    """
    most = max(map(len, captions), default=1)
    size = max(1, _ROWS // most)  # images computed together
    return [
        log_probs
        for start in range(0, len(features), size)
        for log_probs in _of_group(
            decoder, features[start : start + size], captions[start : start + size]
        )
    ]


def _of_group(
    decoder: Decoder, features: Tensor, captions: Sequence[Captions]
) -> list[list[float]]:
    device = features.device
    flat = [caption for image in captions for caption in image]
    lengths = list(map(len, flat))
    inputs = [torch.tensor([BEGIN, *caption[:-1]]) for caption in flat]
    tokens_NT = pad_sequence(inputs, batch_first=True, padding_value=PAD).to(device)
    image_of_row = torch.repeat_interleave(torch.tensor([len(image) for image in captions]))
    logits_PV = decoder(features, tokens_NT, torch.tensor(lengths), image_of_row.to(device))
    targets_P = torch.tensor([token_id for caption in flat for token_id in caption], device=device)
    log_probs_P = -cross_entropy(logits_PV.float(), targets_P, reduction="none").cpu()
    totals = (sum(each.tolist()) for each in torch.split(log_probs_P, lengths))
    return [[next(totals) for _ in image] for image in captions]
