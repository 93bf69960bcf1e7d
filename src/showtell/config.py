"""A configuration checked against the code it configures, before any of that code is imported.

Each group of ``conf/`` names the class or function it configures in ``_target_`` and gives all
its arguments. The signature is read from the source file, so a misspelt key or a wrong type is
reported in a fraction of a second, and only names of this package can ever be called.
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

# Where a data set lies.
PLACES_OF_DATA = ("data.root=", "data.file=", "data.images=")
# What `resume` may change: how long and where the training runs and where its data lie, not what
# is trained.
CHANGEABLE_ON_RESUME = (
    *("trainer.max_epochs=", "trainer.accelerator=", "trainer.devices=", "trainer.num_nodes="),
    *("trainer.precision=", "trainer.profiler="),
    *("callbacks.patience=", "callbacks.checkpoint_every_steps=", "callbacks.progress_refresh="),
    *("tracking.", "features.", "data.skip_rejected=", *PLACES_OF_DATA),
)

# What the program passes to a target beside the arguments of its YAML file, and where a group's
# targets may live: nothing in a configuration or in a run folder can call anything else.
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
# The options outside the groups, as they would be annotated.
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
# The random generators take no other seeds; more images a pass would not fit any memory.
RANGES = {"seed": (0, 2**32 - 1), "features.batch_size": (1, 2**16)}
# Options that came after the first runs were kept, and what these did.
LATER = {
    "views": "original",
    "optim.averaging": 0.0,
    "optim.encoder_lr": None,
    "decoding.repeatable": None,
    "decoding.word_reward": 0.0,
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
    """Each CHOICE of ``GROUP=CHOICE`` -> the node it stands for; not interpolated, not checked."""
    files = sorted((config_folder() / group).glob("*.yaml"))
    return {file.stem: _read_choice(file) for file in files}


def _read_choice(file: Path) -> dict[str, Any]:
    """A file of a group, merged into those of its group that its defaults name."""
    node = OmegaConf.to_container(OmegaConf.load(file))
    assert isinstance(node, dict)
    bases = [base for base in node.pop("defaults", []) if base != "_self_"]
    above = [_read_choice(file.with_name(f"{base}.yaml")) for base in bases]
    merged = OmegaConf.to_container(OmegaConf.merge(*above, node))
    assert isinstance(merged, dict)
    return {str(key): value for key, value in merged.items()}


def compose(overrides: Sequence[str]) -> dict[str, Any]:
    """The configuration that ``python train.py OVERRIDES`` would have, checked."""
    return resolve(compose_unchecked(overrides))


def compose_unchecked(overrides: Sequence[str]) -> DictConfig:
    """The configuration as Hydra composes it."""
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
    """What can be chosen and set, for ``python train.py --help``: the groups, the configuration.

    Raises:
        UserError: when the overrides cannot be composed.
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
    """The folder of a sweep by its overrides, in whatever order and notation they were given."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides([str(override) for override in command])
    # Where the sweep is does not change what it is.
    content = sorted(
        (override.get_key_element(), _canonical(override.value()))
        for override in parsed
        if override.key_or_group != "output.root"
    )
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:8]
    swept = sorted(o.key_or_group for o in parsed if o.is_sweep_override())
    # A search finds what it varies in a file of its own: then its choices are its name.
    chosen = [str(o.value()) for o in parsed if o.key_or_group in ("sweep", "model")]
    told = "-".join(swept or sorted(chosen))
    return "_".join(["sweep", told.replace("/", ".")[:80], digest])


def _canonical(value: object) -> str:
    """A value of Hydra's grammar, with one text for all ways to write it."""
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
    """What Hydra or OmegaConf found wrong with the overrides, in one sentence for the user."""
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

    One that was ``saved`` in a run folder is not interpolated: ``${oc.env:...}`` in a file from
    elsewhere would read this user's environment. Nor need its options go together in a training:
    that is past, and an ensemble may search in another way than its members were trained with.

    Raises:
        UserError: all that is wrong with it, before any work.
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
    """A run's own ``config.yaml`` with ``overrides`` of the ``allowed`` prefixes, checked.

    Raises:
        UserError: when the file is missing or damaged, or an override is not allowed.
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
    """A run's own ``config.yaml``, with what later versions added to it."""
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
    saved = OmegaConf.create(completed({str(key): value for key, value in plain.items()}))
    try:
        resolve(saved, saved=True)
    except UserError as error:
        raise UserError(
            f"{path} was written by another version of showtell, whose commit is in run.json "
            f"beside it: use that one, or train anew ({error})"
        ) from error
    return saved


def quoted(text: str) -> str:
    """Text as the value of an override, whatever characters it has."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration that was saved by any version, with the options that came `LATER`."""
    whole = dict(config)
    for path, value in LATER.items():
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
    """One argument of a target: its annotation as written, and whether it must be given."""

    annotation: ast.expr | None
    required: bool


def build(group: str, node: Mapping[str, Any], **injected: Any) -> Any:
    """Call the target of ``node`` with its other keys and ``injected`` as keyword arguments.

    Raises:
        UserError: when the target is not a public name of the group's own package.
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
    """What is wrong with one group: unknown, missing and mistyped keys, a sentence each.

    ``path`` is where a node inside the group stands; the group itself by default.
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
    """A sentence for each key of ``found`` that is not ``known``."""
    known = list(known)
    return [
        f"{where}{key}: there is no such option{_suggest(key, known)}"
        for key in found
        if key not in known
    ]


def check(config: Mapping[str, Any], *, saved: bool = False) -> None:
    """Check a whole resolved configuration; see `resolve`.

    Raises:
        UserError: all problems together, one a line.
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
    """What does not go with an encoder that learns too."""
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
    """Options that would silently have no effect."""
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
    """A value as the user wrote it."""
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)


def _locate(group: str, target: str) -> tuple[str, str]:
    """Module and public name of a target below the group's package."""
    module_name, _, name = target.rpartition(".")
    inside = (module_name + ".").startswith(PACKAGES[group])
    if not inside or not name.isidentifier() or name.startswith("_") or ".." in target:
        raise UserError(
            f"{group}.{TARGET}={target!r}: must be a public name below {PACKAGES[group][:-1]}"
        )
    if group == "data" and target not in _data_targets():
        raise UserError(f"{group}.{TARGET}={target}: no file of conf/data/ names it")
    return module_name, name


@cache
def _data_targets() -> frozenset[str]:
    """The targets of ``conf/data/``; other functions of that package write files.

    A run folder from elsewhere may name a target too, and reports and evaluations build its data.
    """
    texts = [path.read_text("utf-8") for path in (config_folder() / "data").glob("*.yaml")]
    return frozenset(name for text in texts for name in re.findall(rf"{TARGET}: *(\S+)", text))


@cache
def _source(module_name: str) -> ast.Module | None:
    path = PACKAGE_FOLDER.joinpath(*module_name.split(".")[1:])
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return ast.parse(candidate.read_text(encoding="utf-8"))
    return None


@cache
def _signature(module_name: str, name: str) -> dict[str, Parameter] | None:
    """The arguments of a function or class of this package, read without importing it."""
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
    """Whether ``value``, as YAML gives it, is of the annotated type; unknown types fit."""
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
    """An annotated type in the words of someone who writes YAML."""
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
    """The right-hand side of ``name = ...`` in the module, for types such as a Literal."""
    module = _source(module_name)
    for node in module.body if module else ():
        if isinstance(node, ast.Assign) and name in [ast.unparse(t) for t in node.targets]:
            return node.value
    return None


def _suggest(key: str, known: Iterable[str]) -> str:
    known = sorted(known)
    close = get_close_matches(key, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(known)}"
