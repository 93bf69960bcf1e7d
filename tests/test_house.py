"""The house: an import only goes down a floor, and each library stays behind its fence."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "showtell"
FILES = sorted(SOURCE.rglob("*.py"))
# Hydra looks for plugins in a package of this name, beside ours: they too may use Hydra.
PLUGINS = sorted((SOURCE.parent / "hydra_plugins").rglob("*.py"))

FLOORS = {
    1: (
        "errors",
        "types",
        "files",
        "cores",
        "memory",
        "cpu_matmul",
        "locks",
        "quantization",
        "config",
        "text",
    ),
    2: ("vision", "models", "decoding", "metrics", "tracking", "search"),
    3: ("data", "runs"),
    4: ("training", "sweeps", "caption", "inputs", "report", "tables"),
    5: ("parts", "evaluation", "ensembles", "experiment", "comparison"),
    6: ("cli", "__main__"),
}
FLOOR_OF = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
# Rooms of one floor that may look at each other: searches run decoders and one of them aims at a
# score, and a page or a callback opens the run that the same floor made.
NEIGHBOURS = {
    ("decoding", "models"),
    ("decoding", "metrics"),
    ("ensembles", "parts"),
    ("ensembles", "evaluation"),
    ("report", "caption"),
    ("inputs", "caption"),
    ("__main__", "cli"),
    ("experiment", "parts"),
    ("experiment", "evaluation"),
}

FENCES = {
    "hydra": {"config", "experiment", "cli"},
    "omegaconf": {"config", "experiment", "cli"},
    "lightning": {"data.datamodule", "training", "parts", "experiment", "tracking"},
    "wandb": {"tracking"},
    "optuna": {"search"},
    "timm": {"vision"},
    "torchvision": {"vision"},
    "openvino": {"vision"},
    "pycocoevalcap": {"metrics"},
}
WITHOUT_TORCH = ("text", "metrics", "errors", "types", "files", "config", "data.sources")


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


def imports_of(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
            if node.module == "showtell":
                names |= {f"showtell.{alias.name}" for alias in node.names}
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"relative import in {file}"
    return names


def inside(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.")


def test_there_is_a_house_to_look_at() -> None:
    assert len(FILES) > 35
    rooms = {module_of(f).split(".")[0] for f in FILES} - {"__init__"}
    assert rooms <= set(FLOOR_OF), "a room without a floor"


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_imports_go_down_a_floor(file: Path) -> None:
    room = module_of(file).split(".")[0]
    if room == "__init__":
        return
    for name in imports_of(file):
        if not name.startswith("showtell."):
            continue
        other = name.split(".")[1]
        below = FLOOR_OF[other] < FLOOR_OF[room]
        same_room = other == room
        on_ground = FLOOR_OF[room] == FLOOR_OF[other] == 1
        assert below or same_room or on_ground or (room, other) in NEIGHBOURS, f"{room} -> {name}"


@pytest.mark.parametrize("library", FENCES)
def test_libraries_stay_behind_their_fences(library: str) -> None:
    users = {
        module_of(file) for file in FILES if any(inside(name, library) for name in imports_of(file))
    }
    assert users, f"nobody uses {library}"
    assert [u for u in users if not any(inside(u, room) for room in FENCES[library])] == []


def test_words_and_scores_need_no_torch() -> None:
    users = [module_of(f) for f in FILES if any(inside(n, "torch") for n in imports_of(f))]
    assert [u for u in users if any(inside(u, room) for room in WITHOUT_TORCH)] == []


def test_plugins_cost_nothing_where_they_are_not_used() -> None:
    """Hydra imports them at every start, also of ``--help``."""
    assert [file.stem for file in PLUGINS if file.stem.startswith("showtell_")]
    names = ", ".join(f"hydra_plugins.{file.stem}" for file in PLUGINS)
    heavy = "{'torch', 'numpy', 'lightning', 'optuna', 'wandb'}"
    code = f"import sys, {names}; print(*({heavy} & set(sys.modules)))"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "\n"


def test_features_and_scores_wait_for_no_trainer() -> None:
    """Importing Lightning, and what it imports, takes longer than PyTorch itself."""
    heavy = "{'lightning', 'torchmetrics', 'torchvision', 'transformers', 'wandb'}"
    code = f"import sys, showtell.inputs, showtell.evaluation; print(*({heavy} & set(sys.modules)))"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "\n"


def test_lightning_is_imported_under_its_one_name() -> None:
    assert not [f for f in FILES if any(inside(n, "pytorch_lightning") for n in imports_of(f))]
