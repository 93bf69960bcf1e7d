"""Every YAML composes and fits the code; what does not fit is said before anything is imported."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from showtell.config import (
    build,
    check_node,
    choices_of,
    compose,
    config_folder,
    quoted,
    saved_config,
    sweep_name,
)
from showtell.errors import UserError

CHOICES = sorted(f"{path.parent.name}={path.stem}" for path in config_folder().glob("*/*.yaml"))
NEEDED = ["data.file=captions.csv"]


def test_every_group_has_its_choices() -> None:
    groups = {choice.split("=")[0] for choice in CHOICES}
    assert groups == {
        *("data", "encoder", "text", "model", "decoding", "objective"),
        *("optim", "trainer", "tracking", "callbacks", "experiment", "debug", "sweep"),
    }
    assert len(CHOICES) >= 24


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_composes_and_fits_its_code(choice: str) -> None:
    added = {"data=table": NEEDED, "encoder=timm": ["encoder.network=resnet18"]}
    added["encoder=torchvision"] = ["encoder.network=resnet18"]
    for critical in ("objective=self_critical", "objective=expected", "experiment=self_critical"):
        added[critical] = ["start_from=RUN"]
    for name in ("critical_views", "expected_views"):
        added[f"experiment={name}"] = ["start_from=RUN", "model=attention_glove"]
    compose([choice, *added.get(choice, [])])


def test_choices_are_what_composing_them_gives() -> None:
    choices = choices_of("decoding")
    assert list(choices) == ["beam3", "beam5", "diverse", "greedy", "nucleus", "reranked"]
    for name, node in choices.items():
        assert node == compose([f"decoding={name}"])["decoding"]


@pytest.mark.parametrize("choice", CHOICES)
def test_every_file_says_first_what_it_is(choice: str) -> None:
    group, name = choice.split("=")
    lines = (config_folder() / group / f"{name}.yaml").read_text().splitlines()
    first = lines[1] if lines[0].startswith("# @package") else lines[0]
    assert first.startswith("# ")
    if group in ("experiment", "debug"):
        assert "?" in first, "an experiment states the question it asks"
        assert any(line.startswith("#   ") for line in lines), "and the command that runs it"


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("optim.lrr=1", "^optim.lrr: there is no such option; did you mean lr?$"),
        ("modle=lstm_glove", "^modle: there is no such option; did you mean model?$"),
        ("optim.lr", "^optim.lr: cannot be understood; write KEY=VALUE"),
        ("optim=3", "must be a string"),
        ("seed=1,2", "sweep over it"),
        ("features.batch_size=many", "features.batch_size=many: must be a whole number"),
        ("features.batch_size=0", "features.batch_size=0: must lie in 1..65536"),
        ("seed=-1", "seed=-1: must lie in 0..4294967295"),
        ("output.root=null", "output.root=null: must be text"),
        ("+optim.lrr=1", "optim.lrr: there is no such option; did you mean lr?"),
        ("+modle=x", "modle: there is no such option; did you mean model?"),
        ("optim.lr=fast", "optim.lr=fast: must be a number"),
        ("trainer.max_epochs=2.5", "trainer.max_epochs=2.5: must be a whole number"),
        ("data.skip_rejected=1", "data.skip_rejected=1: must be true or false"),
        ("optim.schedule=steps", "optim.schedule=steps: must be one of constant, linear, cosine"),
        ("seed=true", "seed=true: must be a whole number"),
        ("~optim.lr", "optim.lr: missing"),
        ("text.thaw_epoch=null", "text.train_vectors=thaw needs text.thaw_epoch"),
        ("text.train_vectors=freeze", "text.thaw_epoch=2 has no effect"),
        ("text.vectors=null", "text.vectors=null"),
        ("decoding.beam_size=1", "no effect on greedy"),
        ("model._target_=os.system", "must be a public name below showtell.models"),
        ("model._target_=showtell.models.lstm.nn.Linear", "no file of conf/model/ names it"),
        ("data._target_=showtell.data.scenes.files.write_scenes", "no file of conf/data/ names it"),
        ("encoder._target_=showtell.vision.weights.published_file", "no file of conf/encoder/"),
        ("trainer._target_=showtell.training.launch.launch", "no file of conf/trainer/ names it"),
        ("+encoder.preprocessing.sise=1", "encoder.preprocessing.sise: there is no such option"),
        ("+objective.measure=x", "^objective.measure: there is no such option"),
        (
            "objective=expected",
            "^training on rewards needs start_from=RUN: it improves on captions",
        ),
        (
            "encoder.preprocessing.size=big",
            "encoder.preprocessing.size=big: must be a whole number",
        ),
        (
            "model=lstm",
            "^model=lstm: there is no such choice; there are [a-z_, ]*lstm_glove, merge_glove",
        ),
        ("data=table", "^data.file: missing; give it a value$"),
        ("+output.foldr=x", "output.foldr: there is no such option; did you mean folder?"),
    ],
)
def test_what_does_not_fit_is_one_sentence(override: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence.replace("?", r"\?")):
        compose([override])


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("trainer.views=original+mirrored", "^trainer.views=original.mirrored has no effect with"),
        ("objective=expected", "^objective.expected_weight is fitted to features that stay"),
        ("encoder=joined", "^optim.encoder_lr trains .* of encoder=efficientnet_lite0, .* alone"),
    ],
)
def test_what_does_not_go_with_an_encoder_that_learns(override: str, sentence: str) -> None:
    learning = ["encoder=efficientnet_lite0", "optim.encoder_lr=1e-4", "start_from=RUN"]
    compose(learning)
    with pytest.raises(UserError, match=sentence):
        compose([*learning, override])


def test_all_problems_are_told_together() -> None:
    with pytest.raises(UserError) as caught:
        compose(["optim.lr=fast", "trainer.batch_size=1.5", "+data.rot=x"])
    assert len(str(caught.value).splitlines()) == 3


def test_nothing_outside_the_package_can_be_built() -> None:
    for target in ("torch.load", "builtins.open", "showtell.models.lstm.torch", "showtell.runs.x"):
        with pytest.raises(UserError):
            build("model", {"_target_": target})
    assert check_node("model", {"_target_": "showtell.models.lstm._Hidden"})


@pytest.mark.parametrize(
    "text", ["plain", "it's", "a\\b", "end\\", "\\'", "a\\\\'b\\\\", "[1,2]", "${x}", "a=b, c"]
)
def test_a_quoted_text_is_read_as_itself(text: str) -> None:
    (override,) = OverridesParser.create().parse_overrides([f"key={quoted(text)}"])
    assert override.value() == text


def test_a_signature_is_read_without_importing_torch() -> None:
    code = (
        "import sys; from showtell.config import compose; compose([]);"
        "assert not {'torch', 'lightning', 'timm', 'wandb'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_saved_configuration_comes_back_and_guards_what_is_fixed(tmp_path: Path) -> None:
    import yaml

    config = compose(["optim.lr=3e-4"])
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    assert saved_config(path, [], []) == config
    changed = saved_config(path, ["trainer.max_epochs=3"], ["trainer."])
    assert changed["trainer"]["max_epochs"] == 3
    with pytest.raises(UserError, match=r"only trainer\.\* may be changed"):
        saved_config(path, ["optim.lr=1"], ["trainer."])
    with pytest.raises(UserError, match="must be a whole number"):
        saved_config(path, ["trainer.max_epochs=x"], ["trainer."])
    with pytest.raises(UserError, match=r"^data\.rot=x: .*config\.yaml has no option data\.rot$"):
        saved_config(path, ["data.rot=x"], ["data."])
    with pytest.raises(UserError, match=r"^data\.root=@here: this value needs quotes within"):
        saved_config(path, ["data.root=@here"], ["data."])
    assert saved_config(path, ["data.root='@here'"], ["data."])["data"]["root"] == "@here"
    with pytest.raises(UserError, match=r"is not a run folder: it has no none\.yaml"):
        saved_config(tmp_path / "none.yaml", [], [])
    del config["trainer"]["devices"]  # as before there was more than one
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match=r"another version of showtell.*trainer\.devices: missing"):
        saved_config(path, [], [])


@pytest.mark.parametrize(
    "content", ["{", "- 1", "\0", "a: ${b", "!!python/object/apply:os.abort []"]
)
def test_a_damaged_configuration_is_named_and_runs_nothing(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match="restore it from a copy"):
        saved_config(path, [], [])


def test_a_sweep_is_named_by_what_it_holds() -> None:
    name = sweep_name(["model=lstm_glove,merge_glove", "optim.lr=1e-3,2e-3", "seed=1"])
    assert re.fullmatch(r"sweep_model-optim\.lr_[0-9a-f]{8}", name)
    same = ["seed=1", "optim.lr=0.002,0.001", "model=merge_glove,lstm_glove", "output.root=x"]
    assert sweep_name(same) == name
    for other in (["seed=2"], ["seed=1,2"], ["seed=1", "+experiment=demo"], ["seed=range(1,3)"]):
        assert sweep_name([*same[1:], *other]) != name
    search = sweep_name(["sweep=optuna", "model=lstm_glove"])
    assert re.fullmatch(r"sweep_lstm_glove-optuna_[0-9a-f]{8}", search)
    assert sweep_name(["model=lstm_glove", "sweep=optuna"]) == search
