"""Where the curves of a training go: ``metrics.csv`` always, Weights & Biases unless disabled.

The only module that knows W&B. A run without its CSV is worthless, so a CSV that cannot be written
stops the training; nothing that happens to W&B ever does.
"""

from __future__ import annotations

import csv
import io
import os
import secrets
import shlex
import shutil
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from PIL import Image, ImageOps

from showtell.errors import UserError
from showtell.files import write_atomically

if TYPE_CHECKING:
    import wandb

Mode = Literal["auto", "online", "offline", "disabled"]

METRICS_FILE = "metrics.csv"
EPOCH_CAPTIONS = "val/captions"
BEST_CAPTIONS = "best/captions"
_WANDB_FOLDER = "wandb"
# Curves with a point an epoch; all others have one every few steps.
_EPOCH_CURVES = ("val/*", "train/loss", "train/reward", "best/*")
# Longest side of a picture in a table, in pixels: some 10 kB each, and a table comes every epoch.
_PICTURE_SIDE = 224

# W&B's own limits are 90 s for a server that does not answer and none at all for the last upload.
_INIT_SECONDS = 5.0
_FINISH_SECONDS = 8.0
# Weights take longer on a slow line: they are waited for as long as the server shows life.
_UPLOAD_SECONDS = 600.0
_UPLOAD_LOOK_SECONDS = 5
_ANSWER_SECONDS = 2.0
# Set by `wandb agent` for the programs it starts.
_SWEEP_AGENT = "WANDB_SWEEP_ID"
# How much an offline run may lose to a SIGKILL; W&B's own limit is 15 s.
_FLUSH_SECONDS = 2.0
# W&B says nothing when a disk is full: it tears its file in the middle of a record and drops all
# that follows, even when there is room again. It is switched off before that.
_LEAST_ROOM_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class CaptionRow:
    """One line of a caption table: a photograph, what was generated, what people wrote."""

    image: Path
    caption: str
    references: Sequence[str]
    scores: Mapping[str, float]


class Tracker:
    """Everything one run reports about itself, from its first step to its exit status.

    Hand ``loggers`` to the Lightning Trainer, and always ``finish``: a run that is not finished
    is unmarked in W&B, and the next run of the process would continue it. As a context manager it
    finishes by itself, as failed when an exception passes through.

    Args:
        mode: ``auto`` is ``online`` where W&B finds credentials and ``offline`` elsewhere, unless
            ``WANDB_MODE`` says otherwise; ``offline`` runs are sent later with ``wandb sync``;
            ``disabled`` writes the CSV alone.
        project: the W&B project.
        group: the W&B group, such as the name of a sweep.
        tags: W&B tags.
        run_folder: an existing folder, whose name is the name of the run. Curves go to its
            ``metrics.csv``, W&B's files below its ``wandb/``. A folder that has them already is
            continued.
        config: the composed configuration, plain values.
        origin: what the run came from: data and encoder identity, versions, and ``commit``.
    """

    def __init__(
        self,
        *,
        mode: Mode,
        project: str,
        group: str | None,
        tags: Sequence[str],
        run_folder: Path,
        config: Mapping[str, Any],
        origin: Mapping[str, Any],
    ) -> None:
        self._csv = CsvCurves(run_folder / METRICS_FILE)
        self._wandb = _open_wandb(
            mode,
            # Absolute: W&B writes down where it staged a picture, and syncs it from there.
            run_folder.resolve() / _WANDB_FOLDER,
            name=run_folder.resolve().name,
            project=project,
            group=group,
            tags=list(tags),
            config={**config, "origin": {"commit": "unknown", **origin}},
        )

    @property
    def loggers(self) -> list[Logger]:
        """What the Lightning Trainer logs to."""
        return [self._csv] if self._wandb is None else [self._csv, self._wandb]

    def rewind(self, steps: int) -> None:
        """Forget the rows logged after the first ``steps`` optimizer steps.

        To be called before a training is resumed from a checkpoint whose ``global_step`` is
        ``steps``, so that its CSV becomes the one of an unbroken training.
        """
        self._csv.rewind(steps)

    def log_captions(
        self, table: str, rows: Sequence[CaptionRow], *, step: int, epoch: int
    ) -> None:
        """Show small photographs with their captions and references as a W&B table.

        ``table`` is `EPOCH_CAPTIONS` or `BEST_CAPTIONS`; ``step`` and ``epoch`` count from 0.
        """
        if self._wandb is not None and rows:
            self._wandb.log_captions(table, rows, {"step": step, "epoch": epoch})

    def log_captioner(self, files: Mapping[str, Path]) -> None:
        """Keep name -> file as the W&B artifact ``captioner-<run id>`` of type ``model``.

        The files are copied: some of them change when the run ends or goes on.
        """
        if self._wandb is not None:
            self._wandb.log_captioner(files)

    def summarize(self, results: Mapping[str, float | str]) -> None:
        """Set figures of the run as a whole, such as the score of its best checkpoint."""
        if self._wandb is not None:
            self._wandb.summarize(results)

    def finish(self, exit_code: int) -> None:
        """Close the run, marked failed unless ``exit_code`` is 0; calling it again does nothing."""
        if self._wandb is not None:
            self._wandb.finish(exit_code)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.finish(exit_code=0 if kind is None else 1)


class CsvCurves(Logger):
    """Curves in a CSV file: a row per step; ``epoch``, ``step``, then metrics as they came up.

    The file is complete after every call, so that a kill loses nothing that was logged, and at
    most leaves half a line at the end, which is not read again. Steps count from 0, as Lightning's
    do: the row of the ``n``-th optimizer step is ``n - 1``.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._rows = _read_rows(path) if path.exists() else {}
        # Columns of the file as this process wrote it: empty, so that the first write is a whole.
        self._columns: list[str] = []

    @property
    def name(self) -> str:
        """What Lightning calls this logger."""
        return "csv"

    @property
    def version(self) -> str:
        """Unused: the run folder is the version."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run folder."""
        return str(self.path.parent)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add the metrics to the row of ``step``.

        Raises:
            UserError: the file cannot be written.
        """
        if step is None:
            raise ValueError("a curve needs the step of its metrics")
        is_last = step > next(reversed(self._rows), -1)
        row = self._rows.setdefault(step, {"step": str(step)})
        row |= {name: _text(value) for name, value in metrics.items()}
        if is_last and row.keys() <= set(self._columns):
            self._append(row)
        else:
            self._rewrite()

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run folder holds the configuration."""

    @rank_zero_only
    def rewind(self, steps: int) -> None:
        """Drop the rows beyond the first ``steps`` optimizer steps."""
        self._rows = {step: row for step, row in self._rows.items() if step < steps}
        self._rewrite()

    def _append(self, row: Mapping[str, str]) -> None:
        with _explained(self.path), self.path.open("a", encoding="utf-8", newline="") as file:
            file.write(_csv_line(row.get(column, "") for column in self._columns))

    def _rewrite(self) -> None:
        self._rows = dict(sorted(self._rows.items()))
        metrics = (name for row in self._rows.values() for name in row)
        self._columns = list(dict.fromkeys(["epoch", "step", *metrics]))
        lines = [_csv_line(self._columns)]
        lines += [_csv_line(row.get(c, "") for c in self._columns) for row in self._rows.values()]
        write_atomically(self.path, "".join(lines).encode())


def _read_rows(path: Path) -> dict[int, dict[str, str]]:
    text = path.read_text(encoding="utf-8")
    whole_lines = text[: text.rfind("\n") + 1]
    rows = {}
    for line, row in enumerate(csv.DictReader(io.StringIO(whole_lines)), start=2):
        step = row.get("step") or ""
        if not step.isdecimal() or None in row:
            raise UserError(
                f"{path}:{line} is not a row of metrics: mend the line, or remove the file to go "
                f"on without the earlier curves"
            )
        rows[int(step)] = {name: value for name, value in row.items() if value}
    return rows


def _csv_line(cells: Any) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()


def _text(value: float) -> str:
    """The shortest text that reads back as the same number."""
    return str(value) if isinstance(value, int) else repr(float(value))


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}): make room or give write permission, "
            f"then go on with resume={path.parent}"
        ) from error


class _WandbCurves(Logger):
    """A W&B run that switches itself off, with one warning, when anything about it fails."""

    def __init__(self, run: wandb.Run, folder: Path) -> None:
        super().__init__()
        self._run: wandb.Run | None = run
        self._folder = folder
        self._lacks_data = False
        self._send(_define_axes)

    @property
    def name(self) -> str:
        """What Lightning calls this logger."""
        return "wandb"

    @property
    def version(self) -> str:
        """Unused: the run folder is the version."""
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add one point to each curve."""
        self._send(lambda run: run.log({**metrics, "step": step}))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run has its configuration from the start."""

    def log_captions(self, table: str, rows: Sequence[CaptionRow], axes: Mapping[str, int]) -> None:
        """Log a table with a column for each score that any row has; without network, none."""
        self._send_data(
            f"the captions of step {axes['step']}",
            lambda run: run.log({table: _caption_table(rows), **axes}),
        )

    def log_captioner(self, files: Mapping[str, Path]) -> None:
        """Log files as one artifact, marked ``best``, and wait for what is worth waiting for."""
        self._send_data("the captioner", lambda run: _await(run, _log_artifact(run, files)))

    def _send_data(self, what: str, action: Callable[[wandb.Run], object]) -> None:
        """Send what W&B stages in files; unlike curves, it needs the server at once.

        W&B would wait twenty seconds for one that is gone, each time anew.
        """

        def send(run: wandb.Run) -> None:
            try:
                if not run.offline and not _answers(run.settings.base_url):
                    raise TimeoutError("its server does not answer")
                with _staged_in(self._folder / "data"):
                    action(run)
            except ConnectionError:  # to W&B's helper process, without which nothing works
                raise
            except Exception as error:
                if not self._lacks_data:
                    rank_zero_warn(
                        f"W&B did not take {what} ({_reason(error)}), and takes no more until it "
                        f"answers; the curves can be sent later with "
                        f"`{_sync_command(self._folder)}`"
                    )
                self._lacks_data = True

        self._send(send)

    def summarize(self, results: Mapping[str, float | str]) -> None:
        """Set entries of the run's summary."""
        self._send(lambda run: run.summary.update(dict(results)))

    def finish(self, exit_code: int) -> None:
        """Close the run and wait, not for ever, until what it holds is sent."""
        self._send(lambda run: run.finish(exit_code=exit_code))
        self._run = None

    def _send(self, action: Callable[[wandb.Run], object]) -> None:
        if self._run is None:
            return
        try:
            _check_room(self._folder)
            action(self._run)
        except Exception as error:  # whatever it is, a training of hours must not die of it
            self._run = None
            _abandon_service()
            if self._lacks_data and isinstance(error, TimeoutError):
                return  # of the last upload, after what to do was told
            rank_zero_warn(
                f"W&B failed ({_reason(error)}) and is switched off; nothing else is lost, all "
                f"curves are in {METRICS_FILE}; send what W&B had by then with "
                f"`{_sync_command(self._folder)}`"
            )


@rank_zero_only
def _open_wandb(mode: Mode, folder: Path, **described: Any) -> _WandbCurves | None:
    """Start or continue the W&B run of ``folder``; offline where online fails, else None."""
    if mode == "disabled":
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _check_room(folder)
    except OSError as error:
        rank_zero_warn(
            f"W&B cannot start ({error}); the curves of this run are in {METRICS_FILE} alone"
        )
        return None
    # W&B reads these when its service starts, and complains when they differ for a later run.
    os.environ.setdefault("WANDB_CACHE_DIR", str(folder / "cache"))
    # Otherwise W&B reports on itself over the network even when it is offline.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    # Where a dashboard is, we say ourselves; warnings and errors stay.
    os.environ.setdefault("WANDB_SHOW_INFO", "false")
    attempts = _attempts(mode)
    for attempt in attempts:
        try:
            run = _init(attempt, folder, **described)
            if attempt == "online":
                print(f"note: W&B shows this run at {run.url}")
            return _WandbCurves(run, folder)
        except Exception as error:  # as in _send: W&B raises dozens of unrelated types
            _abandon_service()
            rank_zero_warn(
                f"W&B cannot start {attempt} ({_reason(error)}); "
                + (
                    f"the curves of this run are in {METRICS_FILE} alone"
                    if attempt == attempts[-1]
                    else f"this run stays offline: send it with `{_sync_command(folder)}`"
                )
            )
    return None


def _attempts(mode: Mode) -> Sequence[Literal["online", "offline"]]:
    """The modes to try, in this order, for what the user wants and W&B knows."""
    import wandb
    from wandb.sdk.lib import wbauth

    try:
        settings = wandb.setup().settings
        # `WANDB_MODE` and `wandb offline` arrive here.
        wanted = settings.mode if mode == "auto" else mode
        # Unlike `wandb.login`, this asks no network and writes no file.
        credentials = wbauth.authenticate_session(
            host=settings.base_url, source="showtell", prompt=False, update_session=False
        )
    except Exception:  # a malformed key, say: going online will tell what is wrong
        return ("online", "offline")
    if wanted == "disabled":
        return ()
    if wanted == "online" and credentials is not None:
        return ("online", "offline")
    if mode == "online":
        rank_zero_warn(
            "W&B is not logged in and this run stays offline: run `wandb login`, then send it "
            "with `wandb sync`"
        )
    return ("offline",)


def _init(mode: Literal["online", "offline"], folder: Path, **described: Any) -> wandb.Run:
    import wandb

    run_id, is_known = _run_id(folder)
    fixed_by_sweep = {"project": None, "id": None} if _SWEEP_AGENT in os.environ else {}
    return wandb.init(
        mode=mode,
        resume="allow" if is_known else None,
        job_type="train",
        dir=folder.parent,
        reinit="create_new",
        save_code=False,
        settings=wandb.Settings(
            init_timeout=_INIT_SECONDS,
            finish_timeout=_FINISH_SECONDS,
            finish_timeout_raises=True,
            x_transaction_log_flush_interval=_FLUSH_SECONDS,
            git_commit=described["config"]["origin"]["commit"],
            disable_git=True,  # the commit is that of our source, not of the working folder
            console="off",  # progress bars would fill the log with their every state
            quiet=True,
        ),
        **{"id": run_id, **described, **fixed_by_sweep},
    )


def _run_id(folder: Path) -> tuple[str, bool]:
    """The W&B id of a run folder, and whether an earlier process used it."""
    path = folder / "run-id"
    if path.exists():
        return path.read_text(encoding="utf-8"), True
    # The agent of a W&B sweep has named the run already.
    run_id = os.environ["WANDB_RUN_ID"] if _SWEEP_AGENT in os.environ else secrets.token_hex(8)
    write_atomically(path, run_id.encode())
    return run_id, False


def _check_room(folder: Path) -> None:
    """Raise an OSError while W&B can still close its file."""
    if shutil.disk_usage(folder).free < _LEAST_ROOM_BYTES:
        raise OSError(f"no room is left in {folder}")


def _caption_table(rows: Sequence[CaptionRow]) -> wandb.Table:
    import wandb

    scores = list(dict.fromkeys(name for row in rows for name in row.scores))
    table = wandb.Table(columns=["image", "caption", "references", *scores])
    for row in rows:
        picture = _small_picture(row.image)
        image = None if picture is None else wandb.Image(picture, file_type="jpg")
        references = "\n".join(row.references)
        table.add_data(image, row.caption, references, *(row.scores.get(name) for name in scores))
    return table


def _small_picture(file: Path) -> Image.Image | None:
    """A photograph as people hold it; None for one that is gone, as features are cached."""
    try:
        with Image.open(file) as photograph:
            photograph.draft("RGB", (2 * _PICTURE_SIDE, 2 * _PICTURE_SIDE))
            upright = ImageOps.exif_transpose(photograph).convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    upright.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE))
    return upright


def _define_axes(run: wandb.Run) -> None:
    """Draw curves over the training's own steps or epochs, not over the number of calls."""
    run.define_metric("step")
    run.define_metric("epoch")
    run.define_metric("*", step_metric="step", step_sync=True)
    for curve in _EPOCH_CURVES:
        run.define_metric(curve, step_metric="epoch", step_sync=True)


def _log_artifact(run: wandb.Run, files: Mapping[str, Path]) -> wandb.Artifact:
    import wandb

    artifact = wandb.Artifact(f"captioner-{run.id}", type="model")
    for name, file in files.items():
        artifact.add_file(str(file), name=name)
    return run.log_artifact(artifact, aliases=["best"])


def _await(run: wandb.Run, artifact: wandb.Artifact) -> None:
    """Wait until an artifact is sent, while there is a server that takes it."""
    from wandb.sdk.artifacts.exceptions import WaitTimeoutError

    deadline = monotonic() + _UPLOAD_SECONDS
    while not run.offline and monotonic() < deadline and _answers(run.settings.base_url):
        with suppress(WaitTimeoutError):
            artifact.wait(timeout=_UPLOAD_LOOK_SECONDS)
            return


def _answers(url: str) -> bool:
    """Whether a server says anything at all."""
    try:
        with urllib.request.urlopen(url, timeout=_ANSWER_SECONDS):
            return True
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:  # a certificate that W&B may know how to check
        return isinstance(error.reason, ssl.SSLError)
    except (OSError, ValueError):
        return False


def _sync_command(folder: Path) -> str:
    """What sends the runs in ``folder`` later; those that began online are left out by default."""
    return f"wandb sync --include-online {shlex.quote(str(folder))}/*run-*"


@contextmanager
def _staged_in(folder: Path) -> Iterator[None]:
    """Have W&B keep the pictures it is about to log in ``folder``, not in the user's home."""
    before = os.environ.get("WANDB_DATA_DIR")
    os.environ["WANDB_DATA_DIR"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["WANDB_DATA_DIR"]
        else:
            os.environ["WANDB_DATA_DIR"] = before


def _abandon_service() -> None:
    """Leave W&B's helper process behind; it may be dead, and would complain at exit."""
    import wandb

    # It hands on the exit status of a process that crashed, by leaving Python.
    with suppress(Exception, SystemExit):
        wandb.teardown()


def _reason(error: Exception) -> str:
    """The first line of what W&B says, which is otherwise a page."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
