"""What the pages say is so: links lead somewhere, commands parse, examples give what they show."""

from __future__ import annotations

import ast
import doctest
import importlib
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra._internal.utils import get_args_parser  # the one place that knows Hydra's own flags
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override

from showtell import config
from showtell.cli import _parser
from showtell.config import CHANGEABLE_ON_RESUME, INJECTED, PLAIN, compose, config_folder
from showtell.metrics.language import figure_text
from showtell.runs import RELEASED
from showtell.text.vocabulary import BEGIN, PAD

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")])
SHELL = ("", "sh", "bash", "console")
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^( *)```(\w*)([^\n]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
GROUPS = sorted({file.parent.name for file in config_folder().glob("*/*.yaml")})
CHOICES = {group: {f.stem for f in (config_folder() / group).glob("*.yaml")} for group in GROUPS}


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, its language, the file its ``title`` names, its text."""

    page: Path
    language: str
    title: str
    text: str


def blocks_of(page: Path) -> list[Block]:
    found = []
    for indent, language, info, text in FENCE.findall(page.read_text(encoding="utf-8")):
        title = re.search(r'title="([^"]+)"', info)
        lines = [line.removeprefix(indent) for line in text.splitlines()]
        found.append(Block(page, language, title[1] if title else "", "\n".join(lines) + "\n"))
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
# Files that a page shows and the project does not have: what its reader is about to write.
SHOWN = {block.title: block.text for block in BLOCKS if block.title}
SHOWN_CHOICES = {tuple(Path(t).with_suffix("").parts[1:]) for t in SHOWN if t.startswith("conf/")}


def command_lines() -> Iterator[str]:
    """What a reader may copy: the lines of shell blocks, and code within sentences and tables."""
    for block in BLOCKS:
        if block.language in SHELL:
            yield from block.text.replace("\\\n", " ").splitlines()
    for page in PAGES:
        inline = re.findall(r"`([^`\n]+)`", FENCE.sub("", page.read_text(encoding="utf-8")))
        # `showtell caption` alone is the name of a command, not a line to copy.
        yield from (code for code in inline if len(code.split()) > 2)


def commands(program: str) -> dict[str, list[str]]:
    """Each different command line that runs ``program`` with arguments -> its arguments."""
    found = {}
    for line in command_lines():
        plain = line.strip().removeprefix("$ ").removeprefix(".venv/bin/")
        if plain.startswith(f"{program} ") and "..." not in plain:
            words = shlex.split(plain, comments=True)
            found[shlex.join(words)] = words[len(program.split()) :]
    return found


TRAINING = commands("python train.py")
SHOWTELL = commands("showtell")


def test_there_are_pages_to_look_at() -> None:
    assert len(PAGES) >= 11
    assert sum(len(LINK.findall(page.read_text())) for page in PAGES) >= 12
    assert len(TRAINING) >= 30
    assert len(SHOWTELL) >= 10


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        target, _, anchor = link.partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        file = page.parent / target if target else page
        assert file.resolve().is_relative_to(ROOT), f"{link} leaves the repository"
        assert file.exists(), f"{page.name} links to {link}, which is not there"
        if anchor and file.suffix == ".md":
            assert anchor in anchors_of(file), f"{file.name} has no heading #{anchor}"


def anchors_of(page: Path) -> set[str]:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ +(.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


@pytest.fixture
def shown_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The override that lets Hydra find the YAML files the pages show, as if they were in conf/.

    Their code is known too.
    """
    for title, text in SHOWN.items():
        if title.startswith("conf/"):
            file = tmp_path / title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    written = {module_of(t): ast.parse(text) for t, text in SHOWN.items() if t.startswith("src/")}
    source = config._source
    monkeypatch.setattr(config, "_source", lambda name: written.get(name) or source(name))
    config._signature.cache_clear()
    targets = config._targets
    monkeypatch.setattr(config, "_targets", lambda group: targets(group) | shown_targets(group))
    return f"hydra.searchpath=[file://{tmp_path / 'conf'}]"


def shown_targets(group: str) -> set[str]:
    texts = [text for title, text in SHOWN.items() if title.startswith(f"conf/{group}/")]
    return {name for text in texts for name in re.findall(r"_target_: *(\S+)", text)}


def module_of(title: str) -> str:
    return ".".join(Path(title).with_suffix("").parts[1:])


@pytest.mark.parametrize("line", TRAINING)
def test_training_commands_compose(line: str, shown_files: str) -> None:
    arguments = TRAINING[line]
    options = get_args_parser().parse_args(arguments)
    overrides = OverridesParser.create().parse_overrides(options.overrides)
    swept = [o for o in overrides if o.is_sweep_override()]
    searches = any(o.get_key_element() == "sweep" for o in overrides)  # -m is implied
    assert searches or bool(swept) == options.multirun, (
        f"{line}: -m goes with values to sweep, and only so"
    )
    needed = ["data.file=captions.csv"] if "data=table" in options.overrides else []
    for job in jobs_of(overrides):
        # Where somebody's pictures lie is theirs to say: PATH/TO/flickr8k need not exist.
        compose([shown_files, *needed, *job])
        if any(o.startswith("resume=") for o in job):
            others = [o for o in job if not o.startswith("resume=")]
            assert all(o.startswith(CHANGEABLE_ON_RESUME) for o in others)


def values_of(override: Override) -> list[str]:
    """The values that are swept; the ends of an interval."""
    match override.value():
        case IntervalSweep(start=low, end=high):
            return [str(low), str(high)]
    return list(override.sweep_string_iterator())


def jobs_of(overrides: list[Override]) -> list[list[str]]:
    """Overrides of as few jobs of a sweep as show each of its values once, or of the only job."""
    choices = [
        [f"{o.get_key_element()}={value}" for value in values_of(o)]
        if o.is_sweep_override()
        else [str(o.input_line)]
        for o in overrides
    ]
    return [
        [values[min(number, len(values) - 1)] for values in choices]
        for number in range(max(map(len, choices), default=1))
    ]


@pytest.mark.parametrize("line", SHOWTELL)
def test_showtell_commands_parse(line: str) -> None:
    arguments = SHOWTELL[line]
    options, rest = _parser().parse_known_args(arguments)
    overrides = [*getattr(options, "overrides", []), *rest]
    assert not rest or hasattr(options, "overrides"), f"{line}: {rest} is not understood"
    assert all("=" in override for override in overrides)
    if arguments[0] in ("doctor", "features", "evaluate"):
        compose(overrides)


def test_make_targets_exist() -> None:
    rules = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", rules, re.MULTILINE))
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = set(re.findall(r"(?:`|^)make ([a-z][a-z-]*)", text, re.MULTILINE))
    assert {"demo", "data", "check", "test"} <= named
    assert named <= targets


def test_each_choice_named_exists() -> None:
    pattern = re.compile(rf"(?<![\w.+~/-])({'|'.join(GROUPS)})=([a-z_0-9,]+)(?![\w./])")
    named = [
        (page.name, group, choice)
        for page in PAGES
        for group, choices in pattern.findall(page.read_text(encoding="utf-8"))
        for choice in choices.split(",")
    ]
    assert len(named) >= 50
    wrong = [
        (page, group, choice)
        for page, group, choice in named
        if choice not in CHOICES[group] and (group, choice) not in SHOWN_CHOICES
    ]
    assert wrong == []


@pytest.mark.parametrize("group", GROUPS)
def test_the_table_of_groups_is_whole(group: str) -> None:
    page = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    row = re.search(rf"^\| `{group}` \|.*\|([^|]*)\|$", page, re.MULTILINE)
    assert row, f"docs/configuration.md does not speak of {group}"
    shown = re.findall(r"`(\w+)`", row[1])
    assert set(shown) == CHOICES[group]
    defaults = yaml.safe_load((config_folder() / "config.yaml").read_text())["defaults"]
    default = {k: v for entry in defaults if isinstance(entry, dict) for k, v in entry.items()}
    assert default[group] in (shown[0], None)


def test_the_lists_of_options_are_whole() -> None:
    page = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    _, beside = page.split("\nBesides the groups there are ")
    assert set(re.findall(r"`([\w.]+)`", beside.partition("\n\n")[0])) == set(PLAIN)
    _, changeable = page.split("Beside it you may change\n")
    changeable = changeable.partition("\nWhat is trained stays")[0]
    names = [prefix.rstrip(".=") for prefix in CHANGEABLE_ON_RESUME]
    assert sorted(re.findall(r"`([\w.]+)`", changeable)) == sorted(names)


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_the_released_model_has_the_scores_beside_it(page: str) -> None:
    scores = json.loads((RELEASED / "flickr8k/scores-val.json").read_text())
    metrics = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr")
    own = " ".join(f"{100 * scores[metric]:.1f}" for metric in metrics)
    shuffled = " ".join(f"{100 * scores[f'shuffled images/{metric}']:.1f}" for metric in metrics)
    rows = [
        [cell.strip(" *").split(" ")[0] for cell in line.strip("| ").split("|")[1:]]
        for line in (ROOT / page).read_text(encoding="utf-8").splitlines()
        if line.startswith("| the released model") and line.count("|") == 9
    ]
    told = [" ".join(row) for row in rows]
    assert told[0] == own
    assert told[1:] == [shuffled] * (page == "docs/results.md")


def test_the_page_of_scores_tells_of_the_released_model() -> None:
    scores = json.loads((RELEASED / "flickr8k/scores-val.json").read_text())
    page = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    assert scores["signature"] in page.replace("|\n", "|")
    table = page.partition("| | model | people |\n|---|---|---|\n")[2].partition("\n\n")[0]
    told = [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()]
    names = [name.removeprefix("captions/") for name in scores if name.startswith("captions/")]
    assert len(told) == len(names) >= 10
    for name, (label, own, people) in zip(names, told, strict=True):
        assert label.startswith(name)
        assert own == figure_text(name, scores[f"captions/{name}"])
        theirs = scores.get(f"people/{name}")
        assert people == ("" if theirs is None else figure_text(name, theirs))


def test_names_imported_on_the_pages_exist() -> None:
    sources = [b.text for b in BLOCKS if b.language == "python"]
    shells = [b.text for b in BLOCKS if b.language == "pycon"]
    examples = [e.source for text in shells for e in doctest.DocTestParser().get_examples(text)]
    nodes = [node for code in (*sources, *examples) for node in ast.walk(ast.parse(code))]
    imports = [n for n in nodes if isinstance(n, ast.ImportFrom) and n.module != "__future__"]
    assert len(imports) >= 8
    for node in imports:
        module = importlib.import_module(str(node.module))
        assert [name.name for name in node.names if not hasattr(module, name.name)] == []


@pytest.mark.parametrize("name", ["metrics", "words"])
def test_examples_give_what_they_show(name: str) -> None:
    results = doctest.testfile(str(ROOT / f"docs/{name}.md"), module_relative=False)
    assert results.attempted >= 3
    assert results.failed == 0


def test_the_model_that_the_page_adds_is_one() -> None:
    title = "src/showtell/models/bigram.py"
    node: dict[str, Any] = yaml.safe_load(SHOWN["conf/model/bigram.yaml"])
    module_name, _, class_name = node.pop("_target_").rpartition(".")
    assert module_name == module_of(title)
    names: dict[str, Any] = {"__name__": module_name}
    exec(compile(SHOWN[title], title, "exec"), names)
    sizes = dict.fromkeys(INJECTED["model"], 7)
    torch.manual_seed(0)
    decoder = names[class_name](**node, **sizes).eval()
    tokens = torch.tensor([[BEGIN, 4, 5], [BEGIN, 6, PAD]])
    lengths, image_of_row = torch.tensor([3, 2]), torch.tensor([1, 0])
    features = torch.randn(2, 7)
    scores = decoder(features, tokens, lengths, image_of_row)
    expected = []
    for row, length in enumerate(lengths.tolist()):
        state = decoder.start(features[image_of_row[row]].unsqueeze(0))
        for position in range(length):
            score, state = decoder.step(tokens[row, position].unsqueeze(0), state)
            expected.append(score[0])
    torch.testing.assert_close(scores, torch.stack(expected))
