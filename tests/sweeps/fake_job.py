"""A job in place of ``train.py``: it writes what a run writes, and goes wrong when it is told."""

import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

words = dict(word.split("=", 1) for word in sys.argv[1:])
resumed = "resume" in words
folder = Path((words.get("resume") or words["output.folder"]).strip("'"))
if resumed:
    words = json.loads((folder / "words.json").read_text()) | words
else:
    folder.mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    (folder / "words.json").write_text(json.dumps(words))


def note(status: str) -> None:
    record = {"format": 1, "status": status, "result": 7 * int(words["seed"])}
    (folder / "run.json").write_text(json.dumps(record))


# Beside the sweep: who started when, who ended when, with which environment.
diary = Path(words["diary"])
diary.mkdir(exist_ok=True)
shown = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
entry = {"seed": words["seed"], "began": time.time(), "resumed": resumed, "pid": os.getpid()}
entry["environment"] = {name: os.environ.get(name) for name in shown}
page = diary / f"{words['seed']}-{time.time_ns()}-{os.getpid()}.json"


def write_page() -> None:
    part = page.with_suffix(".part")  # it may be killed at any moment
    part.write_text(json.dumps(entry))
    part.replace(page)


write_page()


def stop(*_: object) -> None:
    (folder / "checkpoints" / "last.ckpt").write_text("state")
    note("interrupted")
    sys.exit(143)


signal.signal(signal.SIGTERM, stop)
note("running")
print("working on", words["seed"])
kind = words.get("kind", "none")
if kind != "none" and Path(words.get("mended", "/nowhere")).exists():
    kind = "none"
match kind:
    case "exception":
        raise ValueError("the number is odd")
    case "exit":
        os._exit(1)
    case "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    case "nan":
        sys.exit("error: The loss is nan at step 3: lower optim.lr")
    case "hang":
        while True:
            time.sleep(60)
    case "memory":
        resource.setrlimit(resource.RLIMIT_AS, (2**28, 2**28))
        b"1" * 2**30
    case "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGABRT, signal.SIG_IGN)
        while True:
            time.sleep(60)
while len(list(diary.glob("*.json"))) < int(words.get("meet", 0)):  # others must run beside it
    time.sleep(0.01)
time.sleep(float(words.get("seconds", 0)))
note("finished")
entry["ended"] = time.time()
write_page()
