"""Fine-tuning of an encoder: the upper stages are trained, the lower ones stay frozen.

Edges and textures do not depend on captions, so the lower stages are kept. Batch normalisation
keeps its running statistics, because batches here are small and alike.

Dimension key: B images, S input side, C channels, Q side of a feature map, R regions, D feature
size.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from showtell.errors import UserError
from showtell.types import FeatureKind
from showtell.vision.efficientnet import EfficientNetLite
from showtell.vision.encoder import Encoder
from showtell.vision.frozen import frozen
from showtell.vision.weights import digest, round_to_half

# How many of the network's stages stay frozen.
FROZEN_STAGES = 4


class TrainableStages(nn.Module):
    """The trainable upper stages of an encoder: features from the maps of the frozen stages.

    Raises:
        UserError: the network is not an EfficientNet-Lite.
    """

    network: EfficientNetLite

    def __init__(self, encoder: Encoder, kind: FeatureKind) -> None:
        super().__init__()
        network = encoder.body
        if not isinstance(network, EfficientNetLite):
            raise UserError(
                f"{encoder.identity.network} cannot be tuned; choose encoder=efficientnet_lite0, "
                "efficientnet_lite1 or efficientnet_lite2"
            )
        # A copy: the original encoder stays frozen and unchanged.
        self.network = copy.deepcopy(network)
        for part in self.network.upper_parts(FROZEN_STAGES):
            part.requires_grad_(True)
        self.kind = kind
        self.size = encoder.identity.size
        self.preprocessing = encoder.preprocessing
        self._name = encoder.identity.network
        self.eval()

    def forward(self, maps: Tensor) -> Tensor:
        """Features (B, D) or (B, R, D) in float32 from maps (B, C, Q, Q)."""
        maps = maps.contiguous(memory_format=torch.channels_last)
        feature_map = self.network.upper(maps, FROZEN_STAGES)
        grid_BRD = feature_map.float().permute(0, 2, 3, 1).flatten(1, 2)
        return grid_BRD.mean(dim=1) if self.kind == "pooled" else grid_BRD

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode: batch normalisation keeps ImageNet's running statistics."""
        return super().train(False)

    def frozen_stages(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        """A fast function from pixels (B, S, S, 3), float32 in 0..255, to maps (B, C, Q, Q).

        The network must be on ``device``, and its frozen weights final: they are compiled in.
        """
        normalised, side = self.preprocessing.in_network(device), self.preprocessing.size

        def lower(pixels: Tensor) -> Tensor:
            return self.network.lower(normalised(pixels), FROZEN_STAGES)

        return frozen(lower, torch.zeros(1, side, side, 3, device=device))

    def rounded(self) -> Encoder:
        """A copy as an `Encoder`, rounded to half precision as its saved file is."""
        network = copy.deepcopy(self.network).cpu()
        round_to_half(network)
        return Encoder(
            network,
            network=self._name,
            weights=digest(network),
            preprocessing=self.preprocessing,
        )
