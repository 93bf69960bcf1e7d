"""Every YAML builds what it configures, with nothing but what the program itself passes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from showtell.config import build, compose, config_folder
from showtell.training.callbacks import CallbackSettings
from showtell.training.optimization import Optimization
from showtell.training.trainer import TrainerSettings

SIZES = {"vocabulary_size": 9, "feature_size": 5, "vector_width": 4}
SETTINGS = {"optim": Optimization, "trainer": TrainerSettings, "callbacks": CallbackSettings}


def choices(group: str) -> list[str]:
    names = sorted(path.stem for path in (config_folder() / group).glob("*.yaml"))
    assert names, f"conf/{group} is empty"
    return names


def built(group: str, name: str, *overrides: str, **injected: Any) -> Any:
    return build(group, compose([f"{group}={name}", *overrides])[group], **injected)


@pytest.mark.parametrize("name", choices("model"))
def test_every_model_is_a_decoder(name: str) -> None:
    decoder = built("model", name, **SIZES)
    assert decoder.feature_kind in ("pooled", "grid")
    assert all(callable(getattr(decoder, method)) for method in ("start", "step", "forward"))


@pytest.mark.parametrize("name", choices("decoding"))
def test_every_search_builds(name: str) -> None:
    assert built("decoding", name).max_length >= 1


@pytest.mark.parametrize("name", choices("text"))
def test_every_text_group_builds(name: str) -> None:
    assert built("text", name).min_count >= 1


@pytest.mark.parametrize(("group", "kind"), SETTINGS.items())
def test_every_settings_group_builds(group: str, kind: type) -> None:
    for name in choices(group):
        assert isinstance(built(group, name), kind)


@pytest.mark.parametrize("name", choices("tracking"))
def test_every_tracking_builds(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Whatever the machine's credentials are, a test writes files and talks to nobody.
    monkeypatch.setenv("WANDB_MODE", "disabled")
    overrides = ["tracking.mode=disabled"] if name in ("online", "offline") else []
    tracker = built("tracking", name, *overrides, run_folder=tmp_path, config={}, origin={})
    assert len(tracker.loggers) >= 1
    tracker.finish(0)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"])
def test_the_encoders_of_the_package_index_build(name: str) -> None:
    encoder = built("encoder", name)
    assert encoder.identity.pooled_shape == (1280,)


def test_scenes_build_and_a_table_reads(tmp_path: Path) -> None:
    small = ["data.train_images=6", "data.val_images=2", "data.test_images=2"]
    scenes = built("data", "scenes", f"data.root={tmp_path}", *small)
    assert [len(scenes.split(name)) for name in ("train", "val", "test")] == [6, 2, 2]
    lines = ["image,caption,split"]
    lines += [f"{i.path},{i.captions[0]},{i.split}" for i in scenes.images]
    folder = scenes.images[0].path.parent
    (folder / "table.csv").write_text("\n".join(lines).replace(f"{folder}/", "") + "\n")
    table = built("data", "table", f"data.file={folder / 'table.csv'}")
    assert {i.image_id for i in table.images} == {i.image_id for i in scenes.images}
