"""Runs that differ by luck are one row; a row is named by the overrides that tell it apart."""

from __future__ import annotations

from typing import Any

import pytest
from made_up_runs import composed

from showtell.comparison.settings import command_of, common_part, key_of, names_of, settings_of

RECORD: dict[str, Any] = {
    "data": {"images": {"train": 6000, "val": 1000}},
    "encoder": {"identity": {"weights": "12345678" * 8}},
    "text": {"vectors": "kumo-6b-50d", "vectors_sha256": "87654321" * 8},
}


def settings(*overrides: str, **record: Any) -> dict[str, str]:
    return settings_of(composed(*overrides), {**RECORD, **record})


@pytest.mark.parametrize(
    "override",
    [
        *("seed=7", "name=mine", "output.root=elsewhere", "output.folder=here"),
        *("features.root=elsewhere", "features.batch_size=8", "tracking=offline"),
        *("data.root=elsewhere", "data.skip_rejected=true", "encoder.weights=elsewhere.pth"),
        *("trainer.accelerator=gpu", "trainer.profiler=simple", "text.vectors=elsewhere.txt"),
        *("callbacks.progress_refresh=0", "callbacks.checkpoint_every_steps=5"),
    ],
)
def test_what_changes_no_score_makes_no_row(override: str) -> None:
    assert key_of(settings(override)) == key_of(settings())


@pytest.mark.parametrize(
    "override",
    [
        *("optim.lr=2e-3", "model=merge_glove", "model.hidden_size=256", "encoder.size=1"),
        *("decoding=greedy", "callbacks.patience=4", "trainer.precision=32-true"),
        *("text.min_count=3", "trainer.limit_images=100", "data.split_seed=1"),
        "optim.averaging=0.9",
    ],
)
def test_what_changes_scores_makes_a_row(override: str) -> None:
    encoder = "encoder=efficientnet_lite0"
    assert key_of(settings(encoder, override)) != key_of(settings(encoder))


@pytest.mark.parametrize("option", ["decoding.repeatable", "optim.encoder_lr", "views"])
def test_runs_from_before_an_option_are_as_those_that_do_not_use_it(option: str) -> None:
    config = composed("decoding=beam5")
    group, _, key = option.rpartition(".")
    node = {k: v for k, v in (config[group] if group else config).items() if k != key}
    before = {**config, group: node} if group else node
    started = [{"start": {"config": each}} for each in (before, config)]
    assert settings_of(before, {**RECORD, **started[0]}) == settings_of(
        config, {**RECORD, **started[1]}
    )


def test_the_command_of_a_run_from_before_an_option_does_without_it() -> None:
    config = composed("decoding=reranked")
    later = ("repeatable", "word_reward", "pool", "guidance")
    decoding = {k: v for k, v in config["decoding"].items() if k not in later}
    command = command_of({**config, "decoding": decoding})
    assert "decoding=reranked decoding.repeatable=null decoding.word_reward=0" in command
    assert "decoding.guidance=0" in command
    assert "pool" not in command  # one model has nothing to pool


def test_whether_candidates_are_pooled_counts_for_several_models_only() -> None:
    before = composed("decoding=reranked")
    before["decoding"] = {k: v for k, v in before["decoding"].items() if k != "pool"}
    configs = (before, composed("decoding=reranked", "decoding.pool=false"))
    configs += (composed("decoding=reranked"),)
    model = {"_target_": "showtell.decoding.ensemble.Ensemble", "members": ["a", "b"]}
    for members in ([], ["a"]):
        start = [{"start": {"config": config}} for config in configs]
        alone = {"members": members} if members else {}
        records = [{**RECORD, "model": configs[0]["model"], **alone, **each} for each in start]
        found = [settings_of(*each) for each in zip(configs, records, strict=True)]
        assert found[0] == found[1] == found[2]
        assert "pool" not in common_part(found)
    together = {**RECORD, "model": model, "members": ["a", "b"]}
    found = [settings_of(config, together) for config in configs]
    assert found[0] == found[1]
    assert names_of(found[1:]) == [("decoding.pool=false",), ("decoding.pool=true",)]
    single = settings_of(configs[1], {**RECORD, "model": configs[0]["model"]})
    assert [any("pool" in word for word in name) for name in names_of([single, found[1]])] == [
        False,
        True,
    ]


def test_an_encoder_that_learned_counts_by_what_it_began_with() -> None:
    def learned(began_with: str, kept: str) -> dict[str, str]:
        encoder = {"identity": {"weights": kept * 64}, "began_with": began_with * 64}
        return settings("optim.encoder_lr=1e-4", encoder=encoder)

    assert key_of(learned("1", "a")) == key_of(learned("1", "b"))
    assert key_of(learned("1", "a")) != key_of(learned("2", "a"))


def test_several_views_of_a_picture_make_a_row_of_their_own() -> None:
    views = "original+mirrored"
    config = composed(f"views={views}")
    both = [settings(), settings_of(config, {**RECORD, "views": views})]
    assert names_of(both) == [("views=original",), (f"views={views}",)]
    assert f"views={views}" in command_of(config).split()
    assert "views" not in command_of(composed())


@pytest.mark.parametrize(
    "record",
    [
        {"encoder": {"identity": {"weights": "other" * 8}}},
        {"text": {"vectors": "kumo-6b-50d", "vectors_sha256": "other" * 8}},
        {"data": {"images": {"train": 5999, "val": 1000}}},
    ],
)
def test_other_content_of_the_files_makes_a_row_that_says_so(record: dict[str, Any]) -> None:
    both = [settings(), settings(**record)]
    assert key_of(both[0]) != key_of(both[1])
    first, second = names_of(both)
    assert first != second
    assert first[0] == second[0] == "model=lstm_glove"


def names(*configurations: tuple[str, ...]) -> list[str]:
    return [" ".join(name) for name in names_of([settings(*each) for each in configurations])]


def test_rows_are_named_by_choices_and_values_as_one_types_them() -> None:
    assert names(("model=lstm_glove",), ("model=merge_glove",)) == [
        "model=lstm_glove",
        "model=merge_glove",
    ]
    assert names((), ("optim.lr=0.002",)) == ["optim.lr=0.001", "optim.lr=0.002"]
    assert names(("encoder=efficientnet_lite0",), ("encoder=efficientnet_lite2",)) == [
        "encoder=efficientnet_lite0",
        "encoder=efficientnet_lite2",
    ]
    assert names(("decoding=beam3",), ("decoding=beam5",), ("decoding.beam_size=7",)) == [
        "decoding=beam3 decoding.beam_size=3",
        "decoding=beam5 decoding.beam_size=5",
        "decoding=beam3 decoding.beam_size=7",
    ]


def test_an_option_that_only_one_model_has_is_named_there_alone() -> None:
    assert names(("model.dense_size=128",), ("model.dense_size=256",), ("model=merge_glove",)) == [
        "model=lstm_glove model.dense_size=128",
        "model=lstm_glove model.dense_size=256",
        "model=merge_glove",
    ]


def test_a_single_row_is_named_by_its_model() -> None:
    assert names(("model=merge_glove", "optim.lr=1")) == ["model=merge_glove"]


def test_a_model_that_is_not_ours_any_more_is_named_by_its_class() -> None:
    old = settings() | {"model._target_": "showtell.models.gru.GRUDecoder"}
    assert names_of([settings(), old])[1][0] == "model=GRUDecoder"


def test_what_all_rows_share_is_told_once() -> None:
    both = [settings("optim.lr=0.1", each) for each in ("model=lstm_glove", "model=merge_glove")]
    assert common_part(both) == (
        "data=flickr8k encoder=inception_v3 text=glove50 decoding=beam3 objective=cross_entropy "
        "optim=adamw optim.lr=0.1 trainer=default callbacks=default"
    )


def test_values_are_written_one_way_and_cannot_move_a_cursor() -> None:
    flat = settings_of(
        {
            "other": {"lr": 1.0, "steps": 1, "flag": True, "none": None, "list": [0.5, 2.0]},
            "model": {"kind": "a\x1b[2Jb"},
        },
        RECORD,
    )
    assert {key: value for key, value in flat.items() if "." in key} == {
        "other.lr": "1",
        "other.steps": "1",
        "other.flag": "true",
        "other.none": "null",
        "other.list": "[0.5,2]",
        "model.kind": "a?[2Jb",
    }


def test_a_group_of_somebody_else_reads_no_file() -> None:
    flat = {"../../etc._target_": "x", "model._target_": "showtell.models.lstm.LSTMDecoder"}
    assert names_of([flat])[0][0].startswith("model=")
