"""Fixtures every test may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# Before anything imports torch: the tests run in one process per core, and tensors this small are
# not worth a second thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real Flickr8k and known answers beside the repository, where there is one."""
    if not SHARED.is_dir():
        pytest.skip(f"no real data beside the repository: {SHARED} is absent")
    return SHARED


@dataclass(frozen=True)
class Smoke:
    """One tiny training that many tests look at; whoever changes its folder copies it first."""

    folder: Path
    overrides: tuple[str, ...]  # of `train.py` and `showtell`, but for where the run goes

    def config(self, *overrides: str) -> dict[str, Any]:
        """Its configuration with some more overrides."""
        from showtell.config import compose

        return compose([*self.overrides, "name=smoke", *overrides])


@pytest.fixture
def without_java(monkeypatch: pytest.MonkeyPatch) -> None:
    """METEOR is skipped: its process takes seconds to start."""
    import showtell.metrics.meteor

    monkeypatch.setattr(showtell.metrics.meteor, "find_java", lambda: None)


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Smoke]:
    """Two epochs on a dozen small scenes, with the real encoder."""
    import showtell.metrics.meteor
    from showtell.config import build
    from showtell.experiment import train

    root = tmp_path_factory.mktemp("smoke")
    overrides = (
        "experiment=smoke",
        *(f"{key}.root={root / key}" for key in ("data", "features")),
        *("data.train_images=12", "data.val_images=4", "data.test_images=4"),
        *("model.embedding_width=24", "model.hidden_size=24", "model.dense_size=24"),
        *("encoder.preprocessing.size=64", "trainer.batch_size=4", "trainer.accelerator=cpu"),
        *("decoding.max_length=8", "callbacks.checkpoint_every_steps=1"),
    )
    smoke = Smoke(root / "run", overrides)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(showtell.metrics.meteor, "find_java", lambda: None)
        config = smoke.config(f"output.folder={smoke.folder}")
        train(config, build("data", config["data"]))
    yield smoke


@pytest.fixture(scope="session")
def attentive(smoke: Smoke, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose model attends, to a grid of 2 x 2."""
    folder = tmp_path_factory.mktemp("attentive") / "run"
    return _trained(smoke, folder, "model=attention_glove", "model.embedding_width=60")


@pytest.fixture(scope="session")
def further(smoke: Smoke, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that went on from the smoke run, with self-critical training."""
    folder = tmp_path_factory.mktemp("further") / "run"
    return _trained(smoke, folder, "objective=self_critical", f"start_from={smoke.folder}")


def _trained(smoke: Smoke, folder: Path, *overrides: str) -> Path:
    """One epoch, scored without Java."""
    import showtell.metrics.meteor
    from showtell.config import build
    from showtell.experiment import train

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(showtell.metrics.meteor, "find_java", lambda: None)
        config = smoke.config(*overrides, "trainer.max_epochs=1", f"output.folder={folder}")
        return train(config, build("data", config["data"]))
