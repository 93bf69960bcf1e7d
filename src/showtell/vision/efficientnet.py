"""EfficientNet-Lite 0, 1 and 2: Tan and Le 2019 without squeeze-and-excite, with ReLU6.

These encoders come with the project. timm has them too, but importing timm takes longer than
captioning a picture. Tensors have timm's names, because the names enter an encoder's identity, and
outputs equal timm's bit for bit (tested).

Shapes: ``B`` images, ``C`` channels, ``S`` side of an image or a feature map.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

# Network size -> multipliers of (width, depth).
SCALES = {0: (1.0, 1.0), 1: (1.0, 1.1), 2: (1.1, 1.2)}
STEM_WIDTH = 32
HEAD_WIDTH = 1280
CLASSES = 1000
# The stages of EfficientNet-B0 (table 1): kernel size, stride, expansion, width, depth.
_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


class EfficientNetLite(nn.Module):
    """The network up to its last feature map.

    The classifier is not used; it is there to match the tensors in the weights files.

    ``size`` is a key of ``SCALES``.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.conv_stem = _SameConv(3, STEM_WIDTH, kernel=3, stride=2)
        self.bn1 = _norm(STEM_WIDTH)
        stages = [nn.Sequential(*blocks) for blocks in _blocks(*SCALES[size])]
        self.blocks = nn.Sequential(*stages)
        last_width = _scaled_width(_STAGES[-1][3], SCALES[size][0])
        self.conv_head = _SameConv(last_width, HEAD_WIDTH, kernel=1)
        self.bn2 = _norm(HEAD_WIDTH)
        self.classifier: nn.Module = nn.Linear(HEAD_WIDTH, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """The last feature map (B, 1280, S / 32, S / 32) of preprocessed images (B, 3, S, S)."""
        return self.upper(self.lower(images, 0), 0)

    def lower(self, images: Tensor, stages: int) -> Tensor:
        """The maps (B, C, s, s) after the stem and the first ``stages`` of the seven stages."""
        return cast(Tensor, self.blocks[:stages](F.relu6(self.bn1(self.conv_stem(images)))))

    def upper(self, maps: Tensor, stages: int) -> Tensor:
        """The last feature map (B, 1280, S / 32, S / 32), from the output of ``lower``."""
        return F.relu6(self.bn2(self.conv_head(self.blocks[stages:](maps))))

    def upper_parts(self, stages: int) -> list[nn.Module]:
        """The modules that ``upper`` applies."""
        return [*self.blocks[stages:], self.conv_head, self.bn2]


class _SameConv(nn.Conv2d):
    """A convolution with TensorFlow's "SAME" padding: an odd pixel goes to the bottom or right."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int, stride: int = 1, groups: int = 1):
        # With stride 1 the padding is symmetric and the convolution can do it by itself.
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(
            inputs, outputs, kernel, stride, padding=padding, groups=groups, bias=False
        )

    def forward(self, input: Tensor) -> Tensor:
        if self.stride[0] > 1:
            rows, columns = (self._lacking(side) for side in input.shape[-2:])
            input = F.pad(
                input, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2]
            )
        return super().forward(input)

    def _lacking(self, side: int) -> int:
        """Total padding along a side, so that the output has ceil(side / stride) pixels."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        return max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)


class _SeparableBlock(nn.Module):
    """The first stage's block: depthwise and pointwise convolution, no expansion or shortcut."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv_dw = _SameConv(inputs, inputs, kernel=kernel, stride=stride, groups=inputs)
        self.bn1 = _norm(inputs)
        self.conv_pw = _SameConv(inputs, outputs, kernel=1)
        self.bn2 = _norm(outputs)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, S, S) -> (B, outputs, S, S)."""
        return self.bn2(self.conv_pw(F.relu6(self.bn1(self.conv_dw(maps)))))  # type: ignore[no-any-return]


class _InvertedResidual(nn.Module):
    """Pointwise expansion, depthwise convolution, pointwise projection.

    Sandler et al. 2018, figure 4. The input is added where its shape stays the same.
    """

    def __init__(
        self, inputs: int, outputs: int, *, kernel: int, stride: int, expansion: int
    ) -> None:
        super().__init__()
        width = inputs * expansion
        self.conv_pw = _SameConv(inputs, width, kernel=1)
        self.bn1 = _norm(width)
        self.conv_dw = _SameConv(width, width, kernel=kernel, stride=stride, groups=width)
        self.bn2 = _norm(width)
        self.conv_pwl = _SameConv(width, outputs, kernel=1)
        self.bn3 = _norm(outputs)
        self._has_shortcut = stride == 1 and inputs == outputs

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, S, S) -> (B, outputs, S / stride, S / stride)."""
        wide = F.relu6(self.bn1(self.conv_pw(maps)))
        wide = F.relu6(self.bn2(self.conv_dw(wide)))
        narrow: Tensor = self.bn3(self.conv_pwl(wide))
        return narrow + maps if self._has_shortcut else narrow


def _blocks(width_scale: float, depth_scale: float) -> Iterator[list[nn.Module]]:
    """The blocks of each stage."""
    inputs = STEM_WIDTH
    for number, (kernel, stride, expansion, width, depth) in enumerate(_STAGES):
        outputs = _scaled_width(width, width_scale)
        # The Lite family keeps the depth of the first and the last stage.
        if 0 < number < len(_STAGES) - 1:
            depth = math.ceil(depth * depth_scale)
        stage: list[nn.Module] = []
        for _ in range(depth):
            stage.append(
                _SeparableBlock(inputs, outputs, kernel=kernel, stride=stride)
                if expansion == 1
                else _InvertedResidual(
                    inputs, outputs, kernel=kernel, stride=stride, expansion=expansion
                )
            )
            inputs, stride = outputs, 1
        yield stage


def _scaled_width(width: int, scale: float) -> int:
    """The multiple of 8 nearest to ``width * scale``."""
    return int(width * scale + 4) // 8 * 8


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=1e-3)
