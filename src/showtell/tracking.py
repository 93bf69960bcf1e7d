"""Experiment tracking: ``metrics.csv`` always, Weights & Biases unless disabled.

The only module that uses W&B. A run without its CSV is worthless, so a CSV that cannot be written
stops the training; a failure of W&B never does.
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
# Curves with one point per epoch; all others have one every few steps.
_EPOCH_CURVES = ("val/*", "train/loss", "train/reward", "best/*")
# Longest side of a picture in a table, in pixels: about 10 kB each, in a table every epoch.
_PICTURE_SIDE = 224

# W&B's own limits are 90 s for a server that does not answer, and none for the final upload.
_INIT_SECONDS = 5.0
_FINISH_SECONDS = 8.0
# Uploading weights takes longer on a slow network: wait this long while the server responds.
_UPLOAD_SECONDS = 600.0
_UPLOAD_LOOK_SECONDS = 5
_ANSWER_SECONDS = 2.0
# Set by `wandb agent` for the programs it starts.
_SWEEP_AGENT = "WANDB_SWEEP_ID"
# Data that an offline run may lose to a SIGKILL, in seconds; W&B's default is 15.
_FLUSH_SECONDS = 2.0
# On a full disk W&B silently truncates its file within a record and drops all later data, even when
# there is room again. It is switched off before that.
_LEAST_ROOM_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class CaptionRow:
    """A row of a caption table: image, generated caption, references and scores."""

    image: Path
    caption: str
    references: Sequence[str]
    scores: Mapping[str, float]


class Tracker:
    """The tracking of one run, from its first step to its exit status.

    Pass ``loggers`` to the Lightning Trainer, and always call ``finish``: otherwise the run has no
    exit status in W&B, and the next run of the process would continue it. As a context manager it
    finishes by itself, as failed if an exception passes through.

    Args:
        mode: ``auto`` is ``online`` if W&B finds credentials and ``offline`` otherwise, unless
            ``WANDB_MODE`` says otherwise; ``offline`` runs can be sent later with ``wandb sync``;
            ``disabled`` writes only the CSV.
        project: the W&B project.
        group: the W&B group, such as the name of a sweep.
        tags: W&B tags.
        run_folder: an existing folder; its name becomes the run's. Curves go to its
            ``metrics.csv``, W&B's files to its ``wandb/``; existing ones are continued.
        config: the composed configuration as plain values.
        origin: provenance of the run: data and encoder identity, versions, and ``commit``.
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
            # Absolute, because W&B records where it staged a picture and syncs it from there.
            run_folder.resolve() / _WANDB_FOLDER,
            name=run_folder.resolve().name,
            project=project,
            group=group,
            tags=list(tags),
            config={**config, "origin": {"commit": "unknown", **origin}},
        )

    @property
    def loggers(self) -> list[Logger]:
        """The loggers for the Lightning Trainer."""
        return [self._csv] if self._wandb is None else [self._csv, self._wandb]

    def rewind(self, steps: int) -> None:
        """Remove the CSV rows after the first ``steps`` optimizer steps.

        Call it before resuming from a checkpoint with ``global_step == steps``, so that the CSV
        equals that of an uninterrupted training.
        """
        self._csv.rewind(steps)

    def log_captions(
        self, table: str, rows: Sequence[CaptionRow], *, step: int, epoch: int
    ) -> None:
        """Log a W&B table of small images with captions and references.

        ``table`` is `EPOCH_CAPTIONS` or `BEST_CAPTIONS`; ``step`` and ``epoch`` count from 0.
        """
        if self._wandb is not None and rows:
            self._wandb.log_captions(table, rows, {"step": step, "epoch": epoch})

    def log_captioner(self, files: Mapping[str, Path]) -> None:
        """Log ``files`` (name -> file) as the W&B artifact ``captioner-<run id>``, type ``model``.

        The files are copied, because some change when the run ends or continues.
        """
        if self._wandb is not None:
            self._wandb.log_captioner(files)

    def summarize(self, results: Mapping[str, float | str]) -> None:
        """Set summary values of the run, such as the score of its best checkpoint."""
        if self._wandb is not None:
            self._wandb.summarize(results)

    def finish(self, exit_code: int) -> None:
        """Close the run, as failed unless ``exit_code`` is 0; further calls do nothing."""
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
    """Curves in a CSV file, a row per step, with columns ``epoch``, ``step`` and the metrics.

    The file is complete after every call, so that a kill loses nothing that was logged and leaves
    at most an incomplete last line, which is ignored when the file is read. Steps count from 0, as
    in Lightning: the ``n``-th optimizer step has the row ``n - 1``.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._rows = _read_rows(path) if path.exists() else {}
        # Columns of the file as this process wrote it; empty at first, to force a full rewrite.
        self._columns: list[str] = []

    @property
    def name(self) -> str:
        """The name that Lightning uses for this logger."""
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
        """Do nothing: the run folder contains the configuration."""

    @rank_zero_only
    def rewind(self, steps: int) -> None:
        """Remove the rows after the first ``steps`` optimizer steps."""
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
    """A W&B run that switches itself off, with one warning, when anything fails."""

    def __init__(self, run: wandb.Run, folder: Path) -> None:
        super().__init__()
        self._run: wandb.Run | None = run
        self._folder = folder
        self._lacks_data = False
        self._send(_define_axes)

    @property
    def name(self) -> str:
        """The name that Lightning uses for this logger."""
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
        """Do nothing: the run has its configuration from the start."""

    def log_captions(self, table: str, rows: Sequence[CaptionRow], axes: Mapping[str, int]) -> None:
        """Log a table with a column for each score of any row; skipped if the server is down."""
        self._send_data(
            f"the captions of step {axes['step']}",
            lambda run: run.log({table: _caption_table(rows), **axes}),
        )

    def log_captioner(self, files: Mapping[str, Path]) -> None:
        """Log files as an artifact with the alias ``best``; wait for its upload, within limits."""
        self._send_data("the captioner", lambda run: _await(run, _log_artifact(run, files)))

    def _send_data(self, what: str, action: Callable[[wandb.Run], object]) -> None:
        """Send data that W&B stages in files; unlike curves, they need the server immediately.

        Checked first, because W&B would wait twenty seconds each time for a missing server.
        """

        def send(run: wandb.Run) -> None:
            try:
                if not run.offline and not _answers(run.settings.base_url):
                    raise TimeoutError("its server does not answer")
                with _staged_in(self._folder / "data"):
                    action(run)
            except ConnectionError:  # to W&B's service process, without which nothing works
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
        """Set entries of the W&B summary."""
        self._send(lambda run: run.summary.update(dict(results)))

    def finish(self, exit_code: int) -> None:
        """Close the run and wait, for a limited time, until its data are sent."""
        self._send(lambda run: run.finish(exit_code=exit_code))
        self._run = None

    def _send(self, action: Callable[[wandb.Run], object]) -> None:
        if self._run is None:
            return
        try:
            _check_room(self._folder)
            action(self._run)
        except Exception as error:  # of any type: it must not end a training of hours
            self._run = None
            _abandon_service()
            if self._lacks_data and isinstance(error, TimeoutError):
                return  # the final upload; the user was already told what to do
            rank_zero_warn(
                f"W&B failed ({_reason(error)}) and is switched off; nothing else is lost, all "
                f"curves are in {METRICS_FILE}; send what W&B had by then with "
                f"`{_sync_command(self._folder)}`"
            )


@rank_zero_only
def _open_wandb(mode: Mode, folder: Path, **described: Any) -> _WandbCurves | None:
    """Start or continue the W&B run of ``folder``: online, else offline, else None."""
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
    # W&B reads these when its service starts, and warns if they differ for a later run.
    os.environ.setdefault("WANDB_CACHE_DIR", str(folder / "cache"))
    # Otherwise W&B sends error reports over the network even when offline.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    # We print the dashboard's URL ourselves; warnings and errors are still shown.
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
    """The modes to try, in order, given the user's choice and W&B's settings and credentials."""
    import wandb
    from wandb.sdk.lib import wbauth

    try:
        settings = wandb.setup().settings
        # Includes `WANDB_MODE` and `wandb offline`.
        wanted = settings.mode if mode == "auto" else mode
        # Unlike `wandb.login`, this uses no network and writes no file.
        credentials = wbauth.authenticate_session(
            host=settings.base_url, source="showtell", prompt=False, update_session=False
        )
    except Exception:  # such as a malformed key: going online reports what is wrong
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
            disable_git=True,  # the commit is our source's, not the working folder's
            console="off",  # every update of a progress bar would be logged
            quiet=True,
        ),
        **{"id": run_id, **described, **fixed_by_sweep},
    )


def _run_id(folder: Path) -> tuple[str, bool]:
    """The W&B run id of a run folder, and whether an earlier process has used it."""
    path = folder / "run-id"
    if path.exists():
        return path.read_text(encoding="utf-8"), True
    # The agent of a W&B sweep has already chosen the id.
    run_id = os.environ["WANDB_RUN_ID"] if _SWEEP_AGENT in os.environ else secrets.token_hex(8)
    write_atomically(path, run_id.encode())
    return run_id, False


def _check_room(folder: Path) -> None:
    """Raise OSError if the disk is nearly full, while W&B can still close its file."""
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
    """An upright thumbnail; None if the file is gone, which stored features allow."""
    try:
        with Image.open(file) as photograph:
            photograph.draft("RGB", (2 * _PICTURE_SIDE, 2 * _PICTURE_SIDE))
            upright = ImageOps.exif_transpose(photograph).convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    upright.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE))
    return upright


def _define_axes(run: wandb.Run) -> None:
    """Plot curves over training steps or epochs instead of the number of log calls."""
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
    """Wait until an artifact is uploaded, as long as the server responds."""
    from wandb.sdk.artifacts.exceptions import WaitTimeoutError

    deadline = monotonic() + _UPLOAD_SECONDS
    while not run.offline and monotonic() < deadline and _answers(run.settings.base_url):
        with suppress(WaitTimeoutError):
            artifact.wait(timeout=_UPLOAD_LOOK_SECONDS)
            return


def _answers(url: str) -> bool:
    """Whether a server responds at all, with any HTTP status or an unverified certificate."""
    try:
        with urllib.request.urlopen(url, timeout=_ANSWER_SECONDS):
            return True
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:  # W&B may be able to verify the certificate
        return isinstance(error.reason, ssl.SSLError)
    except (OSError, ValueError):
        return False


def _sync_command(folder: Path) -> str:
    """The command that sends the runs in ``folder`` later, also those that began online."""
    return f"wandb sync --include-online {shlex.quote(str(folder))}/*run-*"


@contextmanager
def _staged_in(folder: Path) -> Iterator[None]:
    """Make W&B stage pictures and artifacts in ``folder`` instead of the user's home."""
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
    """Tear down W&B's service; it may be dead, and would complain at exit."""
    import wandb

    # If the service crashed, teardown exits Python with its status.
    with suppress(Exception, SystemExit):
        wandb.teardown()


def _reason(error: Exception) -> str:
    """The first line of an error: W&B's messages may be a page long."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
