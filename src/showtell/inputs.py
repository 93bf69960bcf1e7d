"""What a configured decoder reads of a data set: the stored features of its images.

Nothing here imports Lightning, which takes longer than the rest of a short command.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from showtell.caption import device_for
from showtell.config import build, target_of
from showtell.data.batches import FeatureSource
from showtell.errors import UserError
from showtell.types import CaptionData, CaptionedImage, FeatureKind
from showtell.vision.encoder import Encoder
from showtell.vision.extract import ensure_features
from showtell.vision.features import CombinedViews, FeatureStore
from showtell.vision.images import VIEWS, view_names

Config = Mapping[str, Any]


def extract(config: Config, data: CaptionData) -> None:
    """Fill the feature store with what the configured model reads of ``data``, a folder per view.

    Raises:
        UserError: a view does not exist, a stored file does not match its checksum, or the encoder
            is to be trained.
    """
    if config["optim"]["encoder_lr"] is not None:
        raise UserError(
            "optim.encoder_lr: an encoder that learns has no features to store ahead; leave it out"
        )
    seen = caption_views(config)
    try:
        shown = view_names(config["trainer"]["views"])
    except ValueError as error:
        raise UserError(f"trainer: {error}") from error
    encoder: Encoder = build("encoder", config["encoder"])
    kind = target_of("model", config["model"]).feature_kind
    for view in dict.fromkeys([*shown, *seen]):
        store = features_of(data.images, encoder, kind, config, view=view)
        store.verify()
        print(f"features: {store.folder}")


def caption_views(config: Config) -> tuple[str, ...]:
    """The views of an image that decoding uses together.

    Raises:
        UserError: ``views`` is not a valid list of views.
    """
    try:
        return view_names(config["views"])
    except ValueError as error:
        raise UserError(str(error)) from error


def features_of(
    images: Iterable[CaptionedImage],
    encoder: Encoder,
    kind: FeatureKind,
    config: Config,
    *,
    view: str = "original",
) -> FeatureStore:
    """The stored features of ``images`` in one view; missing ones are computed first."""
    stores = ensure_features(
        [(image.image_id, image.path) for image in images],
        encoder if view == "original" else encoder.seeing(VIEWS[view](encoder.preprocessing)),
        [kind],
        root=Path(config["features"]["root"]),
        batch_size=config["features"]["batch_size"],
        device=device_for(config["trainer"]["accelerator"]),
        progress=True,
    )
    return stores[kind]


def seen_features_of(
    images: Sequence[CaptionedImage],
    store: FeatureStore,
    encoder: Encoder,
    kind: FeatureKind,
    config: Config,
    views: Sequence[str],
) -> FeatureSource:
    """The features of ``images`` that decoding uses: of one view, or of several together.

    ``store`` has those of the first of the ``views``, the original.
    """
    others = [features_of(images, encoder, kind, config, view=view) for view in views[1:]]
    return CombinedViews([store, *others]) if others else store
