"""The ``showtell`` command as a user meets it: what it prints, and what it says to a mistake."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Smoke
from PIL import Image

from showtell import cli
from showtell.runs import BEST_WEIGHTS

pytestmark = pytest.mark.usefixtures("without_java")
NO_PICTURE = "none.jpg"
TOO_LONG = "n" * 300 + ".jpg"


class Answer:
    """What a command printed, and its status."""

    def __init__(self, status: object, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err


@pytest.fixture
def showtell(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    def run(*arguments: object) -> Answer:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
        return Answer(ended.value.code, *capsys.readouterr())

    return run


@pytest.fixture
def copied(smoke: Smoke, tmp_path: Path) -> Path:
    return shutil.copytree(smoke.folder, tmp_path / "copied")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with every kind of picture that must be read, and with what must be skipped."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    picture = Image.linear_gradient("L").convert("RGB").resize((90, 60))
    for name in ("plain.jpg", "plain.png", "plain.webp"):
        picture.save(folder / name)
    picture.convert("L").save(folder / "grey.jpg")
    picture.convert("CMYK").save(folder / "cmyk.jpg")
    turned = Image.Exif()
    turned[0x0112] = 6
    picture.save(folder / "turned.jpg", exif=turned)
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("no picture")
    (folder / "torn.jpg").write_bytes((folder / "plain.jpg").read_bytes()[:400])
    (folder / "notes.txt").write_text("not even called a picture")
    return folder


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["evaluate"], "the following arguments are required: RUN\n"),
        (["evaluate", "run", "--split", "train"], "invalid choice: 'train'"),
        (["compare"], "the following arguments are required: RUN\n"),
        (["compare", "run", "--split", "train"], "invalid choice: 'train'"),
        (["caption", "run"], "required: IMAGE_OR_FOLDER"),
        (["caption", "run", "a.jpg", "--beam-size", "0"], "0 is not a whole number above 0"),
        (["caption", "run", "a.jpg", "--beam", "x"], "x is not a whole number above 0"),
        (["caption", "run", "a.jpg", "--samples", "0"], "0 is not a whole number above 0"),
        (["ensemble", "run"], "the following arguments are required: --output"),
        (["caption", "run", "a.jpg", "--best"], "unrecognized arguments: --best"),
    ],
)
def test_a_wrong_command_line_shows_the_right_one(
    showtell: Callable[..., Answer], arguments: list[str], sentence: str
) -> None:
    answer = showtell(*arguments)
    assert answer.status == 2
    assert answer.err.startswith("usage: showtell")
    assert sentence in answer.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("doctor data.root=none", "none is not a folder: set data.root to the folder"),
        ("doctor data=table data.file=none.csv", "none.csv is not a file: set data.file"),
        ("doctor data=table", "data.file: missing; give it a value"),
        ("doctor data=flickr", "data=flickr: there is no such choice; did you mean flickr8k?"),
        ("doctor data.rot=x", "data.rot: there is no such option; did you mean root?"),
        ("doctor data.root", "data.root: cannot be understood; write KEY=VALUE"),
        ("features data.root=none", "none is not a folder"),
        ("evaluate none", "none is not a run folder: it has no config.yaml"),
        ("caption none a.jpg", "none is not a run folder: it has no run.json; give the folder"),
        ("caption none a.jpg --top-p 0.5", "--top-p has no effect without --samples N"),
        ("caption none a.jpg --samples 2 --beam-size 3", "--beam-size has no effect on captions"),
        ("ensemble none --output both", "none is not a run folder"),
        ("ensemble none --output both --search seed=1", "--search seed=1: give decoding=CHOICE"),
        ("ensemble none --output both --search decoding.beam_size=7", "of which search?"),
        ("features +decoding.word_ids=[1]", "decoding.word_ids: there is no such option"),
        ("report none", "none is neither a run nor a sweep"),
        ("compare none", "none holds no run: it has no run.json, and no folder in it has; give"),
        ("compare none --output table.txt", "table.txt is neither Markdown nor CSV: name a file"),
    ],
)
def test_a_mistake_is_answered_with_one_sentence(
    showtell: Callable[..., Answer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = showtell(*arguments.split())
    assert (answer.status, answer.out) == (1, "")
    assert answer.err.startswith("error: ")
    assert sentence in answer.err
    assert answer.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def change(**changes: Any) -> Callable[[bytes], bytes]:
    """An edit of the entries of a JSON file; a dict changes entries of an entry."""

    def edit(content: bytes) -> bytes:
        record = json.loads(content)
        for key, value in changes.items():
            record[key] = {**record[key], **value} if isinstance(value, dict) else value
        return json.dumps(record).encode()

    return edit


def become(content: bytes) -> Callable[[bytes], bytes]:
    return lambda _: content


@pytest.mark.parametrize(
    ("name", "edit", "sentence"),
    [
        ("run.json", become(b"{"), "run.json cannot be read (Expecting"),
        ("run.json", become(b"\xff\xfe"), "run.json cannot be read ('utf-8'"),
        ("run.json", become(b"[]"), "run.json does not describe a run"),
        ("run.json", change(format=99), "run.json has format 99, this showtell reads format 1"),
        ("run.json", change(model=None), "run.json does not say its model"),
        ("run.json", change(model={"_target_": "os.mkdir"}), "below showtell.models"),
        ("run.json", change(decoding={"_target_": "torch.load"}), "below showtell.decoding"),
        ("run.json", change(model={"sise": 3}), "model.sise: there is no such option"),
        ("run.json", change(model_sizes={"feature_size": "x"}), "no model that can be built"),
        ("run.json", change(model_sizes={"feature_size": 7}), "does not fit run.json beside it"),
        ("run.json", change(model_sizes={"vocabulary_size": 7}), "run.json speaks of 7"),
        ("run.json", change(encoder={"identity": {}}), "run.json describes no encoder"),
        ("run.json", change(encoder={"weights": "gone.pth"}), "gone.pth: there is no such"),
        ("vocabulary.json", become(b"{"), "vocabulary.json is not a vocabulary"),
        ("vocabulary.json", change(words=["a"], counts=[1]), "vocabulary.json holds 5 tokens"),
        (str(BEST_WEIGHTS), become(b"torn"), "best.safetensors does not fit run.json"),
        (str(BEST_WEIGHTS), None, "best.safetensors is missing"),
        ("vocabulary.json", None, "vocabulary.json"),
        ("run.json", None, "is not a run folder"),
    ],
)
def test_a_damaged_or_foreign_run_is_named_and_runs_nothing(
    showtell: Callable[..., Answer],
    copied: Path,
    tmp_path: Path,
    name: str,
    edit: Callable[[bytes], bytes] | None,
    sentence: str,
) -> None:
    file = copied / name
    if edit is None:
        file.unlink()
    else:
        file.write_bytes(edit(file.read_bytes()))
    before = {str(f) for f in tmp_path.rglob("*")}
    answer = showtell("caption", copied, NO_PICTURE)
    assert (answer.status, answer.out) == (1, "")
    assert sentence in answer.err
    assert answer.err.count("\n") == 1
    assert {str(f) for f in tmp_path.rglob("*")} == before


def test_good_pictures_are_captioned_and_bad_ones_named(
    showtell: Callable[..., Answer], smoke: Smoke, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "bare").mkdir()
    output = tmp_path / "captions.json"
    bad = (tmp_path / "bare", NO_PICTURE, TOO_LONG)
    asked = (pictures, *bad, "--output", output, "--beam-size", 2)
    answer = showtell("caption", smoke.folder, *asked)
    assert answer.status == 1
    for name in ("empty.jpg", "text.jpg", "torn.jpg", "bare", NO_PICTURE, TOO_LONG):
        assert sum(name in line for line in answer.err.splitlines()) == 1, name
    assert answer.err.endswith("skipped 6, captioned 6\n")
    names = ["cmyk.jpg", "grey.jpg", "plain.jpg", "plain.png", "plain.webp", "turned.jpg"]
    rows = json.loads(output.read_text())
    assert [row["image_id"] for row in rows] == names
    printed = [f"{pictures / row['image_id']}\t{row['caption']}" for row in rows]
    assert answer.out.splitlines() == printed


def test_pictures_of_one_name_are_told_apart(
    showtell: Callable[..., Answer], smoke: Smoke, pictures: Path, tmp_path: Path
) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shutil.copy(pictures / "plain.png", tmp_path / folder)
    output = tmp_path / "captions.json"
    answer = showtell("caption", smoke.folder, tmp_path / "a", tmp_path / "b", "--output", output)
    assert answer.status == 0
    ids = [row["image_id"] for row in json.loads(output.read_text())]
    assert ids == [str(tmp_path / folder / "plain.png") for folder in ("a", "b")]


def test_several_captions_are_drawn_of_each_picture(
    showtell: Callable[..., Answer], smoke: Smoke, pictures: Path, tmp_path: Path
) -> None:
    shown = (pictures / "grey.jpg", pictures / "plain.png")
    output = tmp_path / "captions.json"
    drawn = showtell("caption", smoke.folder, *shown, "--samples", 3, "--output", output)
    assert drawn.status == 0
    lines = drawn.out.splitlines()
    assert [line.partition("\t")[0] for line in lines] == [str(p) for p in shown for _ in range(3)]
    assert [row["caption"] for row in json.loads(output.read_text())] == [
        line.partition("\t")[2] for line in lines
    ]
    again = showtell("caption", smoke.folder, *shown, "--samples", 2)
    assert again.out.splitlines() == lines[:2] + lines[3:5]


def test_captions_that_cannot_be_written_were_printed(
    showtell: Callable[..., Answer], smoke: Smoke, pictures: Path
) -> None:
    answer = showtell("caption", smoke.folder, pictures / "grey.jpg", "--output", pictures)
    assert answer.status == 1
    assert f"{pictures} is a folder: name a file" in answer.err
    assert "grey.jpg\t" in answer.out


def test_a_run_is_evaluated_where_its_data_moved(
    showtell: Callable[..., Answer], smoke: Smoke, copied: Path, tmp_path: Path
) -> None:
    moved = [f"data.root={tmp_path / 'data'}", f"features.root={tmp_path / 'features'}"]
    answer = showtell("evaluate", copied, moved[0], "--split", "test", moved[1])
    assert answer.status == 0
    assert "scores x 100" in answer.out
    assert answer.out.endswith(f"scores: {copied / 'scores-test.json'}\n")
    assert json.loads((copied / "scores-test.json").read_text())["images"] == 4
    assert len(json.loads((copied / "captions-test.json").read_text())) == 4
    assert (tmp_path / "features").is_dir()


def test_an_evaluation_changes_nothing_of_the_run(
    showtell: Callable[..., Answer], smoke: Smoke
) -> None:
    answer = showtell("evaluate", smoke.folder, "optim.lr=1")
    assert answer.status == 1
    assert "fixes this; only data.root, data.file" in answer.err


def test_the_doctor_tells_by_its_status(
    showtell: Callable[..., Answer], smoke: Smoke, tmp_path: Path
) -> None:
    data = [o for o in smoke.overrides if o.startswith("data.")]
    findings = tmp_path / "findings.json"
    answer = showtell("doctor", "data=scenes", *data, "--json", findings)
    assert (answer.status, answer.err) == (0, "")
    assert "healthy" in answer.out
    assert json.loads(findings.read_text())
    answer = showtell("doctor", "data=scenes", *data, "--json", tmp_path)
    assert answer.status == 1
    assert f"{tmp_path} is a folder: name a file" in answer.err
    table = tmp_path / "table.csv"
    table.write_text("image,caption\nabsent.jpg,a dog\n")
    answer = showtell("doctor", "data=table", f"data.file={table}")
    assert answer.status == 1
    assert "none of the 1 images" in answer.err


def test_features_fill_the_store_and_name_it(
    showtell: Callable[..., Answer], smoke: Smoke, tmp_path: Path
) -> None:
    answer = showtell("features", *smoke.overrides, f"features.root={tmp_path / 'features'}")
    assert answer.status == 0
    folder = answer.out.strip().removeprefix("features: ")
    assert Path(folder).is_relative_to(tmp_path / "features")
    assert Path(folder).is_dir()


def test_a_report_is_one_page(
    showtell: Callable[..., Answer], smoke: Smoke, tmp_path: Path
) -> None:
    answer = showtell("report", smoke.folder, "--output", tmp_path / "page.html")
    assert (answer.status, answer.out) == (0, f"report: {tmp_path / 'page.html'}\n")
    assert "<html" in (tmp_path / "page.html").read_text()


FRESH = """
import sys
import showtell
assert not {"torch", "lightning", "hydra", "timm"} & set(sys.modules), "importing is slow"
from showtell import load_run
captions = load_run(sys.argv[1]).caption([sys.argv[2], sys.argv[2]], beam_size=2)
assert captions[0] == captions[1] and isinstance(captions[0], str)
unneeded = {"lightning", "hydra", "timm", "torchvision", "wandb", "openvino", "transformers"}
assert not unneeded & set(sys.modules), "captioning needs no trainer and no other encoders"
"""


def test_a_moved_run_captions_in_a_fresh_process_without_data_or_conf(
    copied: Path, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (copied / "config.yaml").unlink()
    moved = copied.rename(tmp_path / "elsewhere" / "run")
    command = [sys.executable, "-c", FRESH, str(moved), str(pictures / "cmyk.jpg")]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run(command, check=True, cwd=tmp_path / "elsewhere", env=environment)
