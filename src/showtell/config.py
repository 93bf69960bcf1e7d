"""Composes configurations and checks them against the code they configure, without importing it.

Each group of ``conf/`` names the class or function it configures in ``_target_`` and gives all its
arguments. Signatures are parsed from source files, so a misspelt key or a wrong type is reported in
a fraction of a second, and only public names of this package can be called.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from showtell.errors import UserError

PACKAGE_FOLDER = Path(__file__).parent
TARGET = "_target_"
WORDS = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "text"}

# Overrides that say where a data set is.
PLACES_OF_DATA = ("data.root=", "data.file=", "data.images=")
# What may be overridden with `resume`: how long and where the training runs and where its data are,
# but not what is trained.
CHANGEABLE_ON_RESUME = (
    *("trainer.max_epochs=", "trainer.accelerator=", "trainer.devices=", "trainer.num_nodes="),
    *("trainer.precision=", "trainer.profiler="),
    *("callbacks.patience=", "callbacks.checkpoint_every_steps=", "callbacks.progress_refresh="),
    *("tracking.", "features.", "data.skip_rejected=", *PLACES_OF_DATA),
)

# Arguments that the program passes to a group's target in addition to those of its YAML file. See
# also `PACKAGES`: a configuration or a run folder can call nothing outside these packages.
INJECTED: dict[str, frozenset[str]] = {
    "data": frozenset(),
    "encoder": frozenset(),
    "text": frozenset(),
    "model": frozenset({"vocabulary_size", "feature_size", "vector_width"}),
    "decoding": frozenset({"word_ids", "expected"}),
    "objective": frozenset(),
    "optim": frozenset(),
    "trainer": frozenset(),
    "tracking": frozenset({"run_folder", "config", "origin"}),
    "callbacks": frozenset(),
}
# The options outside the groups, with their type annotations.
PLAIN = {
    "name": "str | None",
    "seed": "int",
    "resume": "str | None",
    "start_from": "str | None",
    "views": "str",
    "output.root": "str",
    "output.folder": "str | None",
    "features.root": "str",
    "features.batch_size": "int",
    "search.study": "str | None",
    "search.trial": "int | None",
}
# Random generators accept only such seeds; larger batches of images would not fit any memory.
RANGES = {"seed": (0, 2**32 - 1), "features.batch_size": (1, 2**16)}
# Options added later -> the value that reproduces runs without them.
ADDED_DEFAULTS = {
    "views": "original",
    "optim.averaging": 0.0,
    "optim.encoder_lr": None,
    "decoding.repeatable": None,
    "decoding.word_reward": 0.0,
    "decoding.pool": False,
    "decoding.guidance": 0.0,
}
PACKAGES: dict[str, str] = {
    "data": "showtell.data.",
    "encoder": "showtell.vision.",
    "text": "showtell.text.",
    "model": "showtell.models.",
    "decoding": "showtell.decoding.",
    "objective": "showtell.training.",
    "optim": "showtell.training.",
    "trainer": "showtell.training.",
    "tracking": "showtell.tracking.",
    "callbacks": "showtell.training.",
}


def config_folder() -> Path:
    """``conf/`` of the checkout, or its copy inside an installed package."""
    packaged = PACKAGE_FOLDER / "conf"
    return packaged if packaged.is_dir() else PACKAGE_FOLDER.parents[1] / "conf"


def choices_of(group: str) -> dict[str, dict[str, Any]]:
    """Each CHOICE of ``GROUP=CHOICE`` -> its node, neither interpolated nor checked."""
    files = sorted((config_folder() / group).glob("*.yaml"))
    return {file.stem: _read_choice(file) for file in files}


def _read_choice(file: Path) -> dict[str, Any]:
    """A file of a group, merged over the files of the same group in its defaults list."""
    node = OmegaConf.to_container(OmegaConf.load(file))
    assert isinstance(node, dict)
    bases = [base for base in node.pop("defaults", []) if base != "_self_"]
    above = [_read_choice(file.with_name(f"{base}.yaml")) for base in bases]
    merged = OmegaConf.to_container(OmegaConf.merge(*above, node))
    assert isinstance(merged, dict)
    return {str(key): value for key, value in merged.items()}


def compose(overrides: Sequence[str]) -> dict[str, Any]:
    """The checked configuration of ``python train.py OVERRIDES``.

    Raises:
        UserError: it cannot be composed, or a value is wrong.
    """
    return resolve(compose_unchecked(overrides))


def compose_unchecked(overrides: Sequence[str]) -> DictConfig:
    """The configuration as composed by Hydra.

    Raises:
        UserError: the overrides cannot be composed.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    is_running = GlobalHydra.instance().is_initialized()
    folder = str(config_folder())
    try:
        with nullcontext() if is_running else initialize_config_dir(folder, version_base="1.3"):
            return compose("config", overrides=list(overrides))
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(explain(error)) from error


def overview(overrides: Sequence[str]) -> str:
    """The text of ``python train.py --help``: all groups, their choices and the configuration.

    Raises:
        UserError: the overrides cannot be composed.
    """
    files = sorted(config_folder().rglob("*/*.yaml"))
    choices: dict[str, list[str]] = {}
    for file in files:
        group = file.parent.relative_to(config_folder()).as_posix()
        choices.setdefault(group, []).append(file.stem)
    return "\n".join(
        [
            "usage: python train.py [GROUP=CHOICE ...] [KEY=VALUE ...]",
            "       python train.py -m KEY=VALUE,VALUE ...   trains one run for each",
            "       python train.py resume=RUN               goes on with a run",
            "\nGROUP=CHOICE, each a file of conf/:",
            *(f"  {group}: {', '.join(names)}" for group, names in choices.items()),
            "\nKEY=VALUE, as in optim.lr=1e-4:\n",
            OmegaConf.to_yaml(compose_unchecked(overrides)),
            "`python train.py --hydra-help` lists the options of Hydra itself.",
        ]
    )


def sweep_name(command: Sequence[str]) -> str:
    """A folder name for a sweep, the same for any order and notation of its overrides."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides([str(override) for override in command])
    # Where a sweep is stored does not matter.
    content = sorted(
        (override.get_key_element(), _canonical(override.value()))
        for override in parsed
        if override.key_or_group != "output.root"
    )
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:8]
    swept = sorted(o.key_or_group for o in parsed if o.is_sweep_override())
    # What a search varies is in its own file; then its choices make the name.
    chosen = [str(o.value()) for o in parsed if o.key_or_group in ("sweep", "model")]
    told = "-".join(swept or sorted(chosen))
    return "_".join(["sweep", told.replace("/", ".")[:80], digest])


def _canonical(value: object) -> str:
    """The canonical text of a value in Hydra's grammar."""
    from hydra.core.override_parser.types import ChoiceSweep, QuotedString

    match value:
        case ChoiceSweep():
            return "choice " + ",".join(sorted({_canonical(each) for each in value.list}))
        case QuotedString():
            return value.text
        case bool():
            return str(value)
        case int() | float():
            return repr(float(value))
    return str(value)


def explain(error: Exception) -> str:
    """What Hydra or OmegaConf found wrong with the overrides, as one sentence for the user."""
    from hydra.errors import MissingConfigException, OverrideParseException

    cause = error.__cause__
    if isinstance(error, MissingConfigException) and error.options:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        return f"{group}={choice}: there is no such choice{_suggest(choice, error.options)}"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be understood; write KEY=VALUE, in quotes if need be"
    if isinstance(cause, OmegaConfBaseException) and isinstance(cause.parent_node, DictConfig):
        path, _, key = str(cause.full_key).rpartition(".")
        known = [str(k) for k in cause.parent_node if k not in (TARGET, "hydra")]
        return check_keys([key], known, f"{path}." if path else "")[0]
    return " ".join(str(error).split())


def resolve(composed: DictConfig, *, saved: bool = False) -> dict[str, Any]:
    """A composed configuration as plain, checked values.

    One that was ``saved`` in a run folder is not interpolated: ``${oc.env:...}`` in somebody else's
    file would read this user's environment. Nor is it checked for contradictory options, which
    matter only in training: an ensemble may use another search than its members.

    Raises:
        UserError: lists everything that is wrong.
    """
    try:
        config = OmegaConf.to_container(composed, resolve=not saved, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise UserError(f"{error.full_key}: missing; give it a value") from error
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    assert isinstance(config, dict)
    plain = {str(key): value for key, value in config.items()}
    check(plain, saved=saved)
    return plain


def saved_config(path: Path, overrides: Sequence[str], allowed: Sequence[str]) -> dict[str, Any]:
    """A run's ``config.yaml`` with ``overrides``, each beginning with one of ``allowed``; checked.

    Raises:
        UserError: the file is missing or damaged, or an override is not allowed.
    """
    saved = _read_saved(path)
    for override in overrides:
        if not override.startswith(tuple(allowed)):
            open_keys = ", ".join(p.removesuffix("=") + "*" * p.endswith(".") for p in allowed)
            raise UserError(f"{override}: {path} fixes this; only {open_keys} may be changed")
    OmegaConf.set_struct(saved, True)
    for override in overrides:
        try:
            saved.merge_with_dotlist([override])
        except YAMLError as error:
            raise UserError(f"{override}: this value needs quotes within: KEY='VALUE'") from error
        except (OmegaConfBaseException, ValueError) as error:
            key = override.partition("=")[0]
            raise UserError(f"{override}: {path} has no option {key}") from error
    return resolve(saved, saved=True)


def _read_saved(path: Path) -> DictConfig:
    """A run's ``config.yaml``, completed with options that were added later."""
    try:
        saved = OmegaConf.load(path)
    except FileNotFoundError as error:
        raise UserError(
            f"{path.parent} is not a run folder: it has no {path.name}; give the folder that "
            "`python train.py` printed after `run:`"
        ) from error
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read ({reason}); restore it from a copy") from error
    if not isinstance(saved, DictConfig):
        raise UserError(f"{path} holds no configuration; restore it from a copy")
    plain = OmegaConf.to_container(saved)
    assert isinstance(plain, dict)
    saved = OmegaConf.create(with_added_defaults({str(key): value for key, value in plain.items()}))
    try:
        resolve(saved, saved=True)
    except UserError as error:
        raise UserError(
            f"{path} was written by another version of showtell, whose commit is in run.json "
            f"beside it: use that one, or train anew ({error})"
        ) from error
    return saved


def quoted(text: str) -> str:
    """Text quoted as the value of an override, whatever characters it contains."""
    # Hydra reads a backslash as itself, but before a quote or at the end.
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text)
    return f"'{escaped}'"


def with_added_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration saved by any version, completed with the options in `ADDED_DEFAULTS`."""
    whole = dict(config)
    for path, value in ADDED_DEFAULTS.items():
        group, _, key = path.rpartition(".")
        if not group:
            whole.setdefault(key, value)
        elif key in _options_of(whole.get(group)):
            whole[group] = {**whole[group], key: whole[group].get(key, value)}
    return whole


def _options_of(node: object) -> Collection[str]:
    """What the target of ``node`` takes; nothing where it is none of ours any more."""
    if not isinstance(node, Mapping) or TARGET not in node:
        return ()
    module, _, name = str(node[TARGET]).rpartition(".")
    return _signature(module, name) or ()


@dataclass(frozen=True, slots=True)
class Parameter:
    """One argument of a target: its annotation, and whether it is required."""

    annotation: ast.expr | None
    required: bool


def build(group: str, node: Mapping[str, Any], **injected: Any) -> Any:
    """Call the target of ``node`` with its other keys and ``injected`` as keyword arguments.

    Nested nodes are built first.

    Raises:
        UserError: a target is not a public name of the group's package.
    """
    arguments = {
        key: build(group, value) if _is_node(value) else value
        for key, value in node.items()
        if key != TARGET
    }
    return target_of(group, node)(**arguments, **injected)


def target_of(group: str, node: Mapping[str, Any]) -> Any:
    """The function or class that ``node`` configures."""
    module_name, name = _locate(group, str(node.get(TARGET)))
    target = getattr(importlib.import_module(module_name), name, None)
    if getattr(target, "__module__", None) != module_name:
        raise UserError(f"{group}.{TARGET}: there is no {name} in {module_name}")
    return target


def check_node(group: str, node: Mapping[str, Any], path: str | None = None) -> list[str]:
    """Unknown, missing and mistyped keys of a group, a sentence each.

    ``path`` is the path of ``node`` in the configuration, the group itself by default.
    """
    path = path or group
    try:
        module_name, name = _locate(group, str(node.get(TARGET)))
    except UserError as error:
        return [str(error)]
    signature = _signature(module_name, name)
    if signature is None:
        return [f"{path}.{TARGET}: there is no {name} in {module_name}"]
    known = {key: signature[key] for key in signature if key not in INJECTED[group]}
    given = {key: value for key, value in node.items() if key != TARGET}
    problems = check_keys(given, known, f"{path}.")
    for key, value in given.items():
        if _is_node(value):
            problems += check_node(group, value, f"{path}.{key}")
        elif key in known and not _fits(value, known[key].annotation, module_name):
            wanted = _wanted(known[key].annotation, module_name)
            problems.append(f"{path}.{key}={_shown(value)}: must be {wanted}")
    missing = [key for key in known if known[key].required and key not in given]
    return problems + [f"{path}.{key}: missing; give it a value" for key in missing]


def check_keys(found: Iterable[str], known: Iterable[str], where: str) -> list[str]:
    """A sentence for each key in ``found`` that is not in ``known``."""
    known = list(known)
    return [
        f"{where}{key}: there is no such option{_suggest(key, known)}"
        for key in found
        if key not in known
    ]


def check(config: Mapping[str, Any], *, saved: bool = False) -> None:
    """Check a whole resolved configuration; see `resolve`.

    Raises:
        UserError: all problems together, one per line.
    """
    known = [*INJECTED, *(path.partition(".")[0] for path in PLAIN)]
    problems = check_keys(config, list(dict.fromkeys(known)), "")
    for group in INJECTED:
        node = config.get(group)
        if isinstance(node, Mapping):
            problems += check_node(group, node)
        else:
            problems.append(f"{group}: nothing is chosen; pick one of conf/{group}/")
    problems += _check_plain(config)
    if not problems:
        problems = [
            f"trainer.{option}={config['trainer'][option]}: must be at least 1"
            for option in ("devices", "num_nodes")
            if config["trainer"][option] < 1
        ]
    if not (problems or saved):
        problems = _contradictions(config)
    if problems:
        raise UserError("\n       ".join(problems))


def _check_plain(config: Mapping[str, Any]) -> list[str]:
    problems = check_keys(config.get("output") or {}, ["root", "folder"], "output.")
    problems += check_keys(config.get("features") or {}, ["root", "batch_size"], "features.")
    problems += check_keys(config.get("search") or {}, ["study", "trial"], "search.")
    for path, annotation in PLAIN.items():
        value: Any = config
        for key in path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        wanted = ast.parse(annotation, mode="eval").body
        if not _fits(value, wanted, __name__):
            problems.append(f"{path}={_shown(value)}: must be {_wanted(wanted, __name__)}")
        elif path in RANGES and not (RANGES[path][0] <= value <= RANGES[path][1]):
            problems.append(f"{path}={value}: must lie in {RANGES[path][0]}..{RANGES[path][1]}")
    return problems


def _contradictions_of_learning(config: Mapping[str, Any]) -> Iterator[str]:
    """Options that do not work with fine-tuning the encoder."""
    views = config["trainer"]["views"]
    if views != "original":
        yield (
            f"trainer.views={views} has no effect with optim.encoder_lr: an encoder that learns is "
            "shown random parts of each picture; leave one of the two out"
        )
    if "candidates" in config["decoding"]:
        yield (
            "decoding=reranked is fitted to features that stay what they are: leave "
            "optim.encoder_lr out, or train with another decoding and take `showtell ensemble RUN "
            "--search decoding=reranked` in the end"
        )
    if config["objective"].get("expected_weight"):
        yield (
            "objective.expected_weight is fitted to features that stay what they are: leave "
            "optim.encoder_lr out, or expected_weight"
        )
    if not config["encoder"][TARGET].endswith(".efficientnet_lite"):
        yield (
            "optim.encoder_lr trains the upper stages of encoder=efficientnet_lite0, "
            "efficientnet_lite1 or efficientnet_lite2 alone: choose one of them"
        )


def _contradictions(config: Mapping[str, Any]) -> list[str]:
    """Options that contradict each other or would silently have no effect."""
    problems = []
    text, model, decoding, optim = (config[g] for g in ("text", "model", "decoding", "optim"))
    if text["train_vectors"] != "thaw" and text["thaw_epoch"] is not None:
        problems.append(
            f"text.thaw_epoch={text['thaw_epoch']} has no effect while text.train_vectors="
            f"{text['train_vectors']}; set text.train_vectors=thaw or text.thaw_epoch=null"
        )
    if config["objective"][TARGET].endswith(".SelfCritical") and config["start_from"] is None:
        problems.append(
            "training on rewards needs start_from=RUN: it improves on captions that are good "
            "already; train with objective=cross_entropy first"
        )
    if text["train_vectors"] == "thaw" and text["thaw_epoch"] is None:
        problems.append("text.train_vectors=thaw needs text.thaw_epoch, the epoch it begins at")
    if text["train_vectors"] != "train" and text["vectors"] is None:
        problems.append(
            "text.vectors=null starts from random vectors, which only learn with "
            "text.train_vectors=train"
        )
    if "embedding_width" not in model:
        problems.append("model.embedding_width: missing; null keeps the width of the word vectors")
    if optim["schedule"] == "constant" and optim["final_lr_fraction"] != 1:
        problems.append(
            f"optim.final_lr_fraction={optim['final_lr_fraction']} has no effect with "
            "optim.schedule=constant; set it to 1"
        )
    if optim["encoder_lr"] is not None:
        problems += _contradictions_of_learning(config)
    is_greedy = decoding.get("beam_size") == 1 and "candidates" not in decoding
    if is_greedy and decoding.get("length_penalty"):
        problems.append(
            "decoding.length_penalty has no effect on greedy search; use decoding.beam_size>1 "
            "or decoding.length_penalty=0"
        )
    return problems


def _is_node(value: object) -> bool:
    return isinstance(value, Mapping) and TARGET in value


def _shown(value: object) -> str:
    """A value in YAML notation."""
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)


def _locate(group: str, target: str) -> tuple[str, str]:
    """The module and the name of a target, checked to be of the group's package and in `conf/`."""
    module_name, _, name = target.rpartition(".")
    inside = (module_name + ".").startswith(PACKAGES[group])
    if not inside or not name.isidentifier() or name.startswith("_") or ".." in target:
        raise UserError(
            f"{group}.{TARGET}={target!r}: must be a public name below {PACKAGES[group][:-1]}"
        )
    if target not in _targets(group):
        raise UserError(f"{group}.{TARGET}={target}: no file of conf/{group}/ names it")
    return module_name, name


@cache
def _targets(group: str) -> frozenset[str]:
    """The targets in ``conf/<group>/``, the only ones allowed for a group.

    Other functions of its package write files, download or start processes. Configurations and run
    folders, whose targets are called, may come from elsewhere.
    """
    texts = [path.read_text("utf-8") for path in (config_folder() / group).glob("*.yaml")]
    target = re.compile(rf"^ *{TARGET}: *(\S+)", re.MULTILINE)
    return frozenset(name for text in texts for name in target.findall(text))


@cache
def _source(module_name: str) -> ast.Module | None:
    path = PACKAGE_FOLDER.joinpath(*module_name.split(".")[1:])
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return ast.parse(candidate.read_text(encoding="utf-8"))
    return None


@cache
def _signature(module_name: str, name: str) -> dict[str, Parameter] | None:
    """The arguments of a function or class of this package, parsed without importing it."""
    module = _source(module_name)
    for node in module.body if module else ():
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return _arguments(node.args)
        if isinstance(node, ast.ClassDef) and node.name == name:
            return _class_arguments(node)
    return None


def _class_arguments(node: ast.ClassDef) -> dict[str, Parameter]:
    for member in node.body:
        if isinstance(member, ast.FunctionDef) and member.name == "__init__":
            return _arguments(member.args)
    return {
        field.target.id: Parameter(field.annotation, field.value is None)
        for field in node.body
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and not ast.unparse(field.annotation).startswith("ClassVar")
    }


def _arguments(arguments: ast.arguments) -> dict[str, Parameter]:
    plain = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (len(plain) - len(arguments.defaults))
    pairs = [*zip(plain, [*defaults, *arguments.defaults], strict=True)]
    pairs += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    return {a.arg: Parameter(a.annotation, d is None) for a, d in pairs if a.arg != "self"}


def _fits(value: object, annotation: ast.expr | None, module_name: str) -> bool:
    """Whether a value from YAML has the annotated type; unknown annotations fit anything."""
    match annotation:
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _fits(value, left, module_name) or _fits(value, right, module_name)
        case ast.Constant(value=None):
            return value is None
        case ast.Name(id=name):
            return _fits_name(value, name, module_name)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=choices):
            options = choices.elts if isinstance(choices, ast.Tuple) else [choices]
            return value in [ast.literal_eval(option) for option in options]
        case ast.Subscript(value=ast.Name(id="list" | "Sequence" | "tuple"), slice=item):
            element = item.elts[0] if isinstance(item, ast.Tuple) else item
            return isinstance(value, list) and all(_fits(v, element, module_name) for v in value)
    return True


def _fits_name(value: object, name: str, module_name: str) -> bool:
    match name:
        case "bool":
            return isinstance(value, bool)
        case "int":
            return isinstance(value, int) and not isinstance(value, bool)
        case "float":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "str":
            return isinstance(value, str)
    alias = _alias(module_name, name)
    return alias is None or _fits(value, alias, module_name)


def _wanted(annotation: ast.expr | None, module_name: str) -> str:
    """An annotation described for somebody who writes YAML."""
    match annotation:
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return f"{_wanted(left, module_name)} or {_wanted(right, module_name)}"
        case ast.Constant(value=None):
            return "null"
        case ast.Name(id=name) if name in WORDS:
            return WORDS[name]
        case ast.Name(id=name) if alias := _alias(module_name, name):
            return _wanted(alias, module_name)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=choices):
            options = choices.elts if isinstance(choices, ast.Tuple) else [choices]
            return "one of " + ", ".join(_shown(ast.literal_eval(option)) for option in options)
        case ast.Subscript(value=ast.Name(id="list" | "Sequence" | "tuple")):
            return f"a list like {ast.unparse(annotation)}"
    return ast.unparse(annotation) if annotation else "anything"


def _alias(module_name: str, name: str) -> ast.expr | None:
    """The right-hand side of ``name = ...`` in the module: a type alias such as a Literal."""
    module = _source(module_name)
    for node in module.body if module else ():
        if isinstance(node, ast.Assign) and name in [ast.unparse(t) for t in node.targets]:
            return node.value
    return None


def _suggest(key: str, known: Iterable[str]) -> str:
    known = sorted(known)
    close = get_close_matches(key, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(known)}"
