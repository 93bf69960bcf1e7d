from __future__ import annotations

import gc
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from full_disk import STEPS
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from wandb_reading import Recorded, read_records, wandb_file

from showtell import tracking
from showtell.errors import UserError
from showtell.tracking import CaptionRow, CsvCurves, Tracker

CLOSED_PORT = "http://127.0.0.1:9"
KEY = "0123456789" * 4
ROW = CaptionRow(Path("gone.jpg"), "a cat", ["a cat"], {})


@pytest.fixture(autouse=True)
def no_wandb_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No credentials, no network: W&B's server is a port where nobody listens."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DATA_DIR", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", CLOSED_PORT)
    # The tracker sets these two where they are unset, for the whole process.
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    yield
    tracking._abandon_service()


def make_tracker(folder: Path, mode: tracking.Mode = "offline", **changes: Any) -> Tracker:
    folder.mkdir(exist_ok=True)
    described: dict[str, Any] = {
        "project": "captions",
        "group": "a-sweep",
        "tags": ["fast"],
        "config": {"optim": {"lr": 0.001}, "seed": 1},
        "origin": {"commit": "c0ffee", "data": {"name": "flickr8k"}, "encoder": "lite2-1234"},
    }
    return Tracker(mode=mode, run_folder=folder, **{**described, **changes})


def log(tracker: Tracker, step: int, **metrics: float) -> None:
    """Log as Lightning does."""
    for logger in tracker.loggers:
        logger.log_metrics({**metrics, "epoch": 0}, step=step)


def csv_lines(folder: Path) -> list[str]:
    return (folder / "metrics.csv").read_text().splitlines()


# --- a W&B run as a whole, without network


def test_offline_run_holds_everything_and_its_failure(tmp_path: Path) -> None:
    folder = tmp_path / "my-run"
    picture = tmp_path / "dog.jpg"
    Image.new("RGB", (8, 8), "red").save(picture)
    rows = [
        CaptionRow(picture, "a red dog", ["a dog", "some dog"], {"BLEU-4": 0.5}),
        CaptionRow(tmp_path / "gone.jpg", "a cat", ["a cat"], {}),
    ]
    with pytest.raises(ZeroDivisionError), make_tracker(folder) as tracker:
        log(tracker, 9, **{"train/loss": 2.5})
        log(tracker, 19, **{"train/loss": 1.5, "val/BLEU-4": 0.25})
        tracker.log_captions("val/captions", rows, step=19, epoch=1)
        tracker.summarize({"best/BLEU-4": 0.25})
        raise ZeroDivisionError

    recorded = Recorded(folder)
    assert recorded.run.project == "captions"
    assert recorded.run.display_name == "my-run"
    assert recorded.run.run_group == "a-sweep"
    assert recorded.run.job_type == "train"
    assert list(recorded.run.tags) == ["fast"]
    assert recorded.run.git.commit == "c0ffee"
    assert recorded.config["optim"] == {"lr": 0.001}
    assert recorded.config["origin"]["data"] == {"name": "flickr8k"}
    assert recorded.config["origin"]["encoder"] == "lite2-1234"
    assert recorded.curve("train/loss") == [(9, 2.5), (19, 1.5)]
    assert recorded.curve("val/BLEU-4") == [(19, 0.25)]
    assert recorded.summary["best/BLEU-4"] == 0.25
    assert recorded.exit_codes == {1}

    ((step, path),) = recorded.curve("val/captions/path")
    assert step == 19
    table = json.loads((wandb_file(folder).parent / "files" / path).read_text())
    assert table["columns"] == ["image", "caption", "references", "BLEU-4"]
    assert table["data"] == [
        ["Image", "a red dog", "a dog\nsome dog", 0.5],
        [None, "a cat", "a cat", None],
    ]
    (files,) = recorded.artifacts.values()
    (shown,) = [file for name, file in files.items() if name.endswith(".jpg")]
    assert shown.is_relative_to(folder)
    with Image.open(shown) as small:
        assert small.size == (8, 8)
        assert small.getpixel((4, 4))[0] > 250  # type: ignore[index]
    assert csv_lines(folder) == [
        "epoch,step,train/loss,val/BLEU-4",
        "0,9,2.5,",
        "0,19,1.5,0.25",
    ]


def test_curves_have_the_axis_they_are_measured_on(tmp_path: Path) -> None:
    with make_tracker(tmp_path / "run") as tracker:
        log(tracker, 9, **{"train/step_loss": 2.5})
    axes = Recorded(tmp_path / "run").axes
    assert axes["*"] == "step"
    assert axes["val/*"] == axes["train/loss"] == "epoch"


def test_pictures_of_a_table_are_small_and_upright(tmp_path: Path) -> None:
    sideways = Image.new("RGB", (1200, 600), "blue")
    exif = sideways.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    sideways.save(tmp_path / "dog.jpg", exif=exif)
    (tmp_path / "torn.jpg").write_bytes((tmp_path / "dog.jpg").read_bytes()[:300])
    rows = [CaptionRow(tmp_path / name, "a", ["b"], {}) for name in ("dog.jpg", "torn.jpg")]
    with make_tracker(tmp_path / "run") as tracker:
        for epoch in range(3):
            tracker.log_captions("val/captions", rows, step=10 * epoch + 9, epoch=epoch)
    recorded = Recorded(tmp_path / "run")
    assert [step for step, _ in recorded.curve("val/captions/path")] == [9, 19, 29]
    assert [point["epoch"] for point in recorded.points] == [0, 1, 2]
    (files,) = recorded.artifacts.values()
    (shown,) = [file for name, file in files.items() if name.endswith(".jpg")]
    with Image.open(shown) as small:
        assert small.size == (112, 224)


def test_captioner_is_an_artifact_of_copies(tmp_path: Path) -> None:
    weights, record = tmp_path / "best.safetensors", tmp_path / "run.json"
    weights.write_bytes(b"weights")
    record.write_text("running")
    with make_tracker(tmp_path / "run") as tracker:
        tracker.log_captioner({"checkpoints/best.safetensors": weights, "run.json": record})
        record.write_text("finished")
    recorded = Recorded(tmp_path / "run")
    (name,) = recorded.artifacts
    assert name == f"captioner-{recorded.run.run_id}"
    assert set(recorded.aliases[name]) == {"latest", "best"}
    contents = {path: file.read_bytes() for path, file in recorded.artifacts[name].items()}
    assert contents == {"checkpoints/best.safetensors": b"weights", "run.json": b"running"}
    assert all(file.is_relative_to(tmp_path / "run") for file in recorded.artifacts[name].values())


def has_measured(folder: Path) -> bool:
    """Whether the file that W&B is writing tells of the machine."""
    records = read_records(wandb_file(folder))
    return any(record.WhichOneof("record_type") == "stats" for record in records)


def test_the_machine_is_measured(tmp_path: Path) -> None:
    with make_tracker(tmp_path / "run") as tracker:
        log(tracker, 0, **{"train/loss": 1.0})
        give_up_at = time.monotonic() + 30  # W&B's process measures when it gets to it
        while not has_measured(tmp_path / "run") and time.monotonic() < give_up_at:
            time.sleep(0.1)
    assert {"memory_percent", "proc.memory.rssMB"} <= Recorded(tmp_path / "run").measured


def test_finished_run_is_marked_so_once(tmp_path: Path) -> None:
    tracker = make_tracker(tmp_path / "run", origin={})
    tracker.finish(exit_code=0)
    tracker.finish(exit_code=1)
    recorded = Recorded(tmp_path / "run")
    assert recorded.exit_codes == {0}
    assert recorded.config["origin"]["commit"] == "unknown"


def test_two_runs_of_one_process_are_two_runs(tmp_path: Path) -> None:
    for name in ("one", "two"):
        with make_tracker(tmp_path / name) as tracker:
            log(tracker, 0, **{"train/loss": float(len(name))})
    one, two = Recorded(tmp_path / "one"), Recorded(tmp_path / "two")
    assert one.run.run_id != two.run.run_id
    assert len(one.curve("train/loss")) == len(two.curve("train/loss")) == 1


def test_resumed_folder_continues_its_wandb_run(tmp_path: Path) -> None:
    identities = set()
    for step in (0, 1):
        with make_tracker(tmp_path / "run") as tracker:
            log(tracker, step, **{"train/loss": 1.0})
        identities.add(Recorded(tmp_path / "run").run.run_id)
    assert len(identities) == 1
    assert csv_lines(tmp_path / "run")[1:] == ["0,0,1.0", "0,1,1.0"]


def test_everything_stays_in_the_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_CACHE_DIR")
    picture = tmp_path / "dog.png"
    Image.new("L", (4, 4)).save(picture)
    try:
        with make_tracker(tmp_path / "run") as tracker:
            rows = [CaptionRow(picture, "a", ["b"], {})]
            tracker.log_captions("val/captions", rows, step=0, epoch=0)
            tracker.log_captioner({"picture": picture})
    finally:
        os.environ.pop("WANDB_CACHE_DIR")
    assert list((tmp_path / "home").iterdir()) == []
    assert "WANDB_DATA_DIR" not in os.environ


def test_disabled_and_other_ranks_write_no_wandb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with make_tracker(tmp_path / "disabled", mode="disabled") as tracker:
        log(tracker, 0, **{"train/loss": 1.0})
        tracker.log_captions("val/captions", [ROW], step=0, epoch=0)
        tracker.log_captioner({"run.json": tmp_path / "none"})
        tracker.summarize({"best/BLEU-4": 1.0})
    assert csv_lines(tmp_path / "disabled")[1:] == ["0,0,1.0"]
    assert [path.name for path in (tmp_path / "disabled").iterdir()] == ["metrics.csv"]

    monkeypatch.setattr(rank_zero_only, "rank", 1)
    with make_tracker(tmp_path / "second-rank") as tracker:
        log(tracker, 0, **{"train/loss": 1.0})
        tracker.rewind(0)
    assert list((tmp_path / "second-rank").iterdir()) == []


# --- which mode


@pytest.mark.parametrize(
    ("mode", "key", "environment", "attempts"),
    [
        ("offline", KEY, {}, ("offline",)),
        ("auto", None, {}, ("offline",)),
        ("auto", KEY, {}, ("online", "offline")),
        ("auto", KEY, {"WANDB_MODE": "offline"}, ("offline",)),
        ("auto", KEY, {"WANDB_MODE": "disabled"}, ()),
        ("online", KEY, {"WANDB_MODE": "offline"}, ("online", "offline")),
    ],
)
def test_attempts(
    monkeypatch: pytest.MonkeyPatch,
    mode: tracking.Mode,
    key: str | None,
    environment: dict[str, str],
    attempts: tuple[str, ...],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if key is not None:
        monkeypatch.setenv("WANDB_API_KEY", key)
    gc.collect()  # a file that another test left open would warn in the midst of it
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tuple(tracking._attempts(mode)) == attempts


def test_key_in_netrc_counts_as_logged_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine wandb.example\n  login user\n  password {KEY}\n")
    monkeypatch.setenv("NETRC", str(netrc))
    assert tuple(tracking._attempts("auto")) == ("offline",)  # it is for another server
    tracking._abandon_service()
    monkeypatch.setenv("WANDB_BASE_URL", "http://wandb.example")
    assert tuple(tracking._attempts("auto")) == ("online", "offline")


# --- trouble: never more than one warning, and the curves are in the CSV


@contextmanager
def one_warning(match: str) -> Iterator[None]:
    with pytest.warns(UserWarning, match=match) as caught:
        yield
    assert len([w for w in caught if "W&B" in str(w.message)]) == 1


def train_and_finish(tracker: Tracker, folder: Path) -> None:
    for step in range(3):
        log(tracker, step, **{"train/loss": 1.0 / (step + 1)})
    tracker.log_captions("val/captions", [ROW], step=2, epoch=0)
    tracker.summarize({"best/BLEU-4": 0.5})
    tracker.finish(exit_code=0)
    assert len(csv_lines(folder)) == 4


def test_dead_network_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(tracking, "_INIT_SECONDS", 1.0)
    with one_warning("cannot start online .*stays offline: send it with `wandb sync"):
        tracker = make_tracker(tmp_path / "run", mode="online")
        train_and_finish(tracker, tmp_path / "run")
    recorded = Recorded(tmp_path / "run")
    assert recorded.run.telemetry.feature.offline
    assert len(recorded.curve("train/loss")) == 3


def test_a_server_that_never_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(tracking, "_INIT_SECONDS", 1.0)
    monkeypatch.setattr(tracking, "_ANSWER_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("WANDB_BASE_URL", url)
        assert not tracking._answers(url)
        with one_warning("cannot start online .*stays offline: send it with `wandb sync"):
            tracker = make_tracker(tmp_path / "run", mode="online")
            train_and_finish(tracker, tmp_path / "run")
    assert len(Recorded(tmp_path / "run").curve("train/loss")) == 3


def test_no_room_for_wandbs_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "wandb").write_text("in the way")
    with one_warning("W&B cannot start .*metrics.csv alone"):
        tracker = make_tracker(folder)
        train_and_finish(tracker, folder)


def test_online_without_credentials_stays_offline(tmp_path: Path) -> None:
    with one_warning("not logged in"):
        tracker = make_tracker(tmp_path / "run", mode="online")
    train_and_finish(tracker, tmp_path / "run")
    assert len(Recorded(tmp_path / "run").curve("train/loss")) == 3


def test_malformed_key_stays_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "too short")
    with one_warning("cannot start online .*WANDB_API_KEY invalid"):
        tracker = make_tracker(tmp_path / "run", mode="auto")
    train_and_finish(tracker, tmp_path / "run")
    assert len(Recorded(tmp_path / "run").curve("train/loss")) == 3


def test_no_wandb_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    def no_process(**_settings: Any) -> None:
        raise OSError("Exec format error: wandb-core\nand a page of advice")

    monkeypatch.setattr(wandb, "init", no_process)
    with one_warning(
        r"cannot start offline \(Exec format error: wandb-core\); .*metrics.csv alone"
    ):
        tracker = make_tracker(tmp_path / "run")
        train_and_finish(tracker, tmp_path / "run")
    assert len(tracker.loggers) == 1


def children() -> set[int]:
    listed = subprocess.run(
        ["ps", "-o", "pid=,comm=", "--ppid", str(os.getpid())], capture_output=True, text=True
    )
    lines = [line.split(maxsplit=1) for line in listed.stdout.splitlines()]
    return {int(pid) for pid, command in lines if command.startswith("wandb-core")}


def test_a_crash_of_wandbs_process_does_not_end_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    with monkeypatch.context() as patch:
        patch.setattr(wandb, "teardown", lambda: sys.exit(2))  # as it does after a crash
        tracking._abandon_service()


def test_wandb_process_killed_in_the_middle(tmp_path: Path) -> None:
    tracker = make_tracker(tmp_path / "run")
    (helper,) = children()
    os.kill(helper, signal.SIGKILL)
    os.waitid(os.P_PID, helper, os.WEXITED | os.WNOWAIT)
    with one_warning("W&B failed .*switched off; nothing else is lost"):
        train_and_finish(tracker, tmp_path / "run")
    # The next run of this process is not affected.
    with make_tracker(tmp_path / "next") as tracker:
        log(tracker, 0, **{"train/loss": 1.0})
    assert len(Recorded(tmp_path / "next").curve("train/loss")) == 1


class Server:
    """A W&B server of a few lines on this machine, which knows how to begin a run."""

    def __init__(self, status: int) -> None:
        self.status = status
        self.requests: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                outer.requests.append(self.path)
                answer = json.dumps(outer.answer(body)).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def answer(self, body: bytes) -> dict[str, Any]:
        if self.status != 200:
            return {"errors": [{"message": "user is not logged in"}]}
        if b"upsertBucket" in body:
            project = {"id": "b", "name": "captions", "entity": {"id": "e", "name": "me"}}
            bucket = {"id": "a", "name": "r", "config": "{}", "project": project}
            return {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}
        if b"viewer" in body and b"upload" not in body.lower():
            return {"data": {"viewer": {"id": "v", "username": "me", "entity": "me"}}}
        return {"errors": [{"message": "this server knows nothing else"}]}

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Server]]:
    servers: list[Server] = []

    def start(status: int) -> Server:
        servers.append(Server(status))
        monkeypatch.setenv("WANDB_BASE_URL", servers[-1].url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def test_wrong_key(tmp_path: Path, serve: Callable[[int], Server]) -> None:
    server = serve(401)
    with one_warning("cannot start online"):
        tracker = make_tracker(tmp_path / "run", mode="auto")
        train_and_finish(tracker, tmp_path / "run")
    assert server.requests
    assert Recorded(tmp_path / "run").run.telemetry.feature.offline


def would_sync(warned: str) -> str:
    """What W&B would send, were the command of a warning typed."""
    command = warned.partition("`")[2].partition("`")[0].replace("sync", "sync --dry-run", 1)
    wandb = Path(sys.executable).with_name("wandb")
    told = subprocess.run(
        ["bash", "-c", command.replace("wandb", str(wandb), 1)], capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr
    return told.stdout + told.stderr


@pytest.mark.slow  # the command line of W&B takes seconds to start
def test_network_dies_in_the_middle(
    tmp_path: Path, serve: Callable[[int], Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "_FINISH_SECONDS", 1.0)
    server = serve(200)
    tracker = make_tracker(tmp_path / "run", mode="auto")
    assert any(path == "/graphql" for path in server.requests)
    server.stop()
    with pytest.warns(UserWarning, match="did not take the captions of step 2") as caught:
        train_and_finish(tracker, tmp_path / "run")
    (told,) = [str(warning.message) for warning in caught if "W&B" in str(warning.message)]
    tracking._abandon_service()
    assert wandb_file(tmp_path / "run").name in would_sync(told)
    recorded = Recorded(tmp_path / "run")
    assert not recorded.run.telemetry.feature.offline
    # On disk, for `wandb sync`.
    assert len(recorded.curve("train/loss")) == 3
    assert recorded.summary["best/BLEU-4"] == 0.5
    assert recorded.exit_codes == {0}


@pytest.mark.slow
def test_full_disk_of_wandb_alone(tmp_path: Path) -> None:
    own_disks = ["unshare", "--map-root-user", "--mount"]
    if subprocess.run([*own_disks, "true"], capture_output=True).returncode:
        pytest.skip("this system gives no user a mount namespace")
    folder = tmp_path / "run"
    program = Path(__file__).with_name("full_disk.py")
    subprocess.run([*own_disks, sys.executable, str(program), str(folder)], check=True)
    told = json.loads((folder / "told.json").read_text())
    (full,) = told["full"]
    assert "W&B failed (no room is left in " in full
    assert "wandb sync" in full
    (full_at_the_start,) = told["full at the start"]
    assert "W&B cannot start (no room is left in " in full_at_the_start
    assert len(csv_lines(folder)) == 1 + STEPS + 1
    written = []
    for name in ("first", "second"):  # whole, to the last record: what `wandb sync` sends
        (file,) = (folder / name).glob("offline-run-*/*.wandb")
        records = read_records(file)
        assert records[-1].WhichOneof("record_type") in ("exit", "final", "stats", "telemetry")
        assert any(record.WhichOneof("record_type") == "exit" for record in records)
        written.append(sum(record.WhichOneof("record_type") == "history" for record in records))
    assert 1000 < written[0] < STEPS
    assert written[1] == 1
    assert file.name in would_sync(f"`wandb sync {shlex.quote(str(folder))}/first/offline-run-*`")


def test_offline_asks_nothing_of_the_network(
    tmp_path: Path, serve: Callable[[int], Server]
) -> None:
    server = serve(200)
    train_and_finish(make_tracker(tmp_path / "run"), tmp_path / "run")
    tracking._abandon_service()
    assert server.requests == []


# --- the CSV


def curves(folder: Path) -> CsvCurves:
    return CsvCurves(folder / "metrics.csv")


def test_rows_are_merged_and_columns_grow(tmp_path: Path) -> None:
    csv = curves(tmp_path)
    csv.log_metrics({"train/loss": 0.1, "epoch": 0}, step=0)
    csv.log_metrics({"train/loss": float("nan"), "epoch": 0}, step=1)
    csv.log_metrics({"val/BLEU-4": 0.5, "epoch": 0}, step=1)
    csv.log_metrics({"val/loss, smoothed": 1e-9, "epoch": 1}, step=2)
    assert csv_lines(tmp_path) == [
        'epoch,step,train/loss,val/BLEU-4,"val/loss, smoothed"',
        "0,0,0.1,,",
        "0,1,nan,0.5,",
        "1,2,,,1e-09",
    ]
    assert [path.name for path in tmp_path.glob("*") if path.is_file()] == ["metrics.csv"]


def test_file_is_complete_after_every_call(tmp_path: Path) -> None:
    csv = curves(tmp_path)
    for step in range(50):
        csv.log_metrics({"train/loss": 1 / (step + 1)}, step=step)
        lines = csv_lines(tmp_path)
        assert len(lines) == step + 2
        assert float(lines[-1].split(",")[2]) == 1 / (step + 1)


def test_rewound_file_equals_that_of_an_unbroken_run(tmp_path: Path) -> None:
    def run(csv: CsvCurves, steps: range) -> None:
        for step in steps:
            csv.log_metrics({"train/loss": step / 7, "epoch": step // 4}, step=step)
            if step % 4 == 3:
                csv.log_metrics({"val/BLEU-4": step / 3, "epoch": step // 4}, step=step)

    (tmp_path / "unbroken").mkdir()
    (tmp_path / "broken").mkdir()
    run(curves(tmp_path / "unbroken"), range(20))
    for steps_of_checkpoint, killed_at in ((0, 5), (2, 9), (8, 9), (8, 12), (12, 12)):
        resumed = curves(tmp_path / "broken")
        resumed.rewind(steps_of_checkpoint)
        run(resumed, range(steps_of_checkpoint, killed_at))
    resumed = curves(tmp_path / "broken")
    resumed.rewind(12)
    run(resumed, range(12, 20))
    assert csv_lines(tmp_path / "broken") == csv_lines(tmp_path / "unbroken")


def test_half_a_line_left_by_a_kill_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,step,train/loss\n0,0,0.5\n0,1,0.2")
    curves(tmp_path).log_metrics({"train/loss": 0.25, "epoch": 0}, step=1)
    assert csv_lines(tmp_path) == ["epoch,step,train/loss", "0,0,0.5", "0,1,0.25"]


@pytest.mark.parametrize("row", ["0,x,0.5", "0,1,0.5,7", "0"])
def test_damaged_file_is_named(tmp_path: Path, row: str) -> None:
    (tmp_path / "metrics.csv").write_text(f"epoch,step,train/loss\n0,0,0.5\n{row}\n")
    with pytest.raises(UserError, match=r"metrics.csv:3 is not a row of metrics"):
        curves(tmp_path)


def test_unwritable_file_stops_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    csv = CsvCurves(tmp_path / "file" / "metrics.csv")
    with pytest.raises(UserError, match=r"metrics.csv cannot be written .*permission"):
        csv.log_metrics({"train/loss": 1.0}, step=0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_full_disk_stops_with_a_remedy(tmp_path: Path) -> None:
    csv = curves(tmp_path)
    csv.log_metrics({"train/loss": 1.0}, step=0)
    csv.path = Path("/dev/full")
    with pytest.raises(UserError, match=r"No space left on device"):
        csv.log_metrics({"train/loss": 1.0}, step=1)


class Line(LightningModule):
    """The smallest training: one weight, one curve a step, one score an epoch."""

    def __init__(self, dies_at: int | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self._dies_at = dies_at

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if self.global_step == self._dies_at:
            raise KeyboardInterrupt
        loss = (self.weight * batch).square().mean()
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val/score", self.weight.sum())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(folder: Path, *, dies_at: int | None = None, resume: bool = False) -> None:
    last = folder / "last.ckpt"
    saver = ModelCheckpoint(dirpath=folder, every_n_train_steps=3, save_last=True, save_top_k=0)
    tracker = make_tracker(folder, mode="disabled")
    trainer = Trainer(
        accelerator="cpu",
        logger=tracker.loggers,
        log_every_n_steps=1,
        max_epochs=3,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[saver],
    )
    if resume:
        tracker.rewind(torch.load(last, weights_only=True)["global_step"])
    # Equal batches, so that the position in the epoch does not matter.
    loader: DataLoader[Any] = DataLoader([torch.ones(1)] * 4)  # type: ignore[arg-type]
    trainer.fit(Line(dies_at), loader, loader, ckpt_path=last if resume else None)


@pytest.mark.filterwarnings("ignore:.*")
@pytest.mark.parametrize("dies_at", [4, 5, 8, 10])
def test_lightning_training_resumed_writes_the_unbroken_csv(tmp_path: Path, dies_at: int) -> None:
    fit(tmp_path / "unbroken")
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(tmp_path / "broken", dies_at=dies_at)
    fit(tmp_path / "broken", resume=True)
    unbroken = csv_lines(tmp_path / "unbroken")
    assert len(unbroken) == 13
    assert unbroken[0] == "epoch,step,train/loss,val/score"
    assert csv_lines(tmp_path / "broken") == unbroken
