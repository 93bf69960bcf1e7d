"""The project's dashboard in W&B, as code: ``make dashboard``.

Needs a login (``wandb login``). ``--output FILE`` writes what would be sent and needs none.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

# The options that the search spaces of all models have.
SEARCHED = ("optim.lr", "optim.weight_decay", "objective.label_smoothing", "trainer.batch_size")
SCORES = ("CIDEr", "BLEU-4", "METEOR", "ROUGE-L")
MACHINE = (
    *("system/gpu.0.gpu", "system/gpu.0.memoryAllocated"),
    *("system/cpu", "system/proc.memory.rssMB"),
)


def workspace(*, entity: str, project: str) -> Any:
    """The W&B workspace: curves, scores by configuration, a sweep's parameters, captions, machine.

    Raises:
        ImportError: wandb-workspaces is not installed.
    """
    import wandb_workspaces.reports.v2.interface as panels
    import wandb_workspaces.workspaces as workspaces

    def section(name: str, shown: list[Any]) -> Any:
        return workspaces.Section(name=name, is_open=True, panels=shown)

    def curve(y: str, x: str) -> Any:
        return panels.LinePlot(title=y, x=x, y=[y])

    columns: list[Any] = [panels.Config(option) for option in SEARCHED]
    columns.append(panels.SummaryMetric("best/CIDEr"))
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name="showtell",
        sections=[
            section(
                "Curves",
                [
                    *(curve(f"val/{name}", "epoch") for name in ("CIDEr", "BLEU-4", "loss")),
                    *(curve(name, "step") for name in ("train/step_loss", "train/lr")),
                    curve("train/loss", "epoch"),
                ],
            ),
            section(
                "Scores by configuration",
                [
                    panels.BarPlot(title=name, metrics=[f"best/{name}"], groupby="name")
                    for name in SCORES
                ],
            ),
            section(
                "Sweep",
                [
                    panels.ParallelCoordinatesPlot(
                        columns=[panels.ParallelCoordinatesPlotColumn(each) for each in columns]
                    ),
                    panels.ParameterImportancePlot(with_respect_to="best/CIDEr"),
                ],
            ),
            section(
                "Captions",
                [
                    panels.WeavePanelSummaryTable(table_name=name)
                    for name in ("val/captions", "best/captions")
                ],
            ),
            section("Machine", [curve(name, "_runtime") for name in MACHINE]),
        ],
    )


def main(words: list[str] | None = None) -> None:
    """Save the dashboard, or write it to a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--project", default="showtell", help="as in tracking.project")
    parser.add_argument("--entity", default="", help="user or team; yours when not given")
    parser.add_argument("--output", type=Path, help="write the dashboard here and send nothing")
    options = parser.parse_args(words)
    try:
        board = workspace(entity=options.entity, project=options.project)
    except ImportError:
        sys.exit("error: the dashboard needs wandb-workspaces: pip install 'showtell[dashboard]'")
    if options.output is not None:
        content = board._to_model().spec.model_dump(by_alias=True, exclude_none=True)
        options.output.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        print(f"dashboard: {options.output}")
        return
    import wandb

    try:
        board.entity = options.entity or wandb.Api().default_entity
        board.save()
    except Exception as error:  # W&B raises dozens of unrelated types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        sys.exit(
            f"error: W&B did not take the dashboard ({reason}); run `wandb login`, look at the "
            "network, or use --output FILE"
        )
    print(f"dashboard: {board.url}")


if __name__ == "__main__":
    main()
