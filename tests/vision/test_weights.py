"""Weights files: what is refused, and what is said."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from showtell.errors import UserError
from showtell.vision import weights
from showtell.vision.weights import (
    check_name_digest,
    digest,
    exact_file,
    facts_of,
    fit_weights,
    in_network_order,
    is_published,
    load_state,
    published_file,
)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def test_pth_and_safetensors_give_one_digest(tmp_path: Path) -> None:
    original = network()
    torch.save(original.state_dict(), tmp_path / "a.pth")
    save_file(original.state_dict(), tmp_path / "a.safetensors")
    digests = set()
    for name in ("a.pth", "a.safetensors"):
        copy = network()
        fit_weights(copy, load_state(tmp_path / name), tmp_path / name, "tiny")
        digests.add(digest(copy))
    assert digests == {digest(original)}


def test_digest_sees_values_names_and_shapes_but_no_step_counter() -> None:
    original = network()
    same = network()
    same.load_state_dict(original.state_dict())
    same[1].num_batches_tracked += 7
    assert digest(same) == digest(original)
    same[1].running_mean[2] += 1e-3
    assert digest(same) != digest(original)
    assert digest(nn.Linear(2, 3)) != digest(nn.Linear(3, 2))


def test_an_exact_file_is_half_as_large_only_where_nothing_is_lost(tmp_path: Path) -> None:
    original = network()
    with torch.no_grad():
        original[0].weight.copy_(original[0].weight.half())
        original[0].bias[0] = 1 / 3
    file = tmp_path / "exact.safetensors"
    file.write_bytes(exact_file(original.to(memory_format=torch.channels_last)))
    state = load_state(file)
    assert (state["0.weight"].dtype, state["0.bias"].dtype) == (torch.float16, torch.float32)
    copy = network()
    fit_weights(copy, state, file, "tiny")
    assert digest(copy) == digest(original)


def test_old_files_without_step_counters_fit(tmp_path: Path) -> None:
    state = network().state_dict()
    del state["1.num_batches_tracked"]
    fit_weights(network(), state, tmp_path / "old.pth", "tiny")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("0.bias"), "lacks 0.bias"),
        (lambda state: state.update({"2.weight": torch.zeros(1)}), "has 2.weight, which the"),
        (lambda state: state.update({"0.bias": torch.zeros(5)}), r"0.bias of shape \(5,\)"),
    ],
)
def test_weights_of_another_network_are_refused(change, message: str) -> None:
    state = network().state_dict()
    change(state)
    with pytest.raises(UserError, match=message):
        fit_weights(network(), state, Path("other.pth"), "tiny")


def test_tensors_under_other_names_are_taken_by_order() -> None:
    ours = network()
    theirs = {
        f"port.{number}.{name.split('.')[-1]}": tensor
        for number, (name, tensor) in enumerate(ours.state_dict().items())
    }
    assert list(in_network_order(ours, theirs, Path("p.pth"), "tiny")) == list(ours.state_dict())
    swapped = dict(sorted(theirs.items(), key=lambda item: item[0], reverse=True))
    with pytest.raises(UserError, match="not the weights of tiny"):
        in_network_order(ours, swapped, Path("p.pth"), "tiny")
    with pytest.raises(UserError, match="not the weights of tiny"):
        in_network_order(ours, {}, Path("p.pth"), "tiny")


class Trap:
    def __reduce__(self):
        return (Path("sprung").touch, ())


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_file_that_would_run_code_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Trap()}, tmp_path / "trap.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Trap()))
    for name in ("trap.pth", "plain.pth"):
        with pytest.raises(UserError, match="cannot be loaded safely"):
            load_state(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


def test_facts_of_a_file_that_cannot_be_read_name_it(tmp_path: Path) -> None:
    file = tmp_path / "noise.safetensors"
    for content in (None, b"", b"noise" * 100):
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(UserError, match=r"noise\.safetensors cannot be read .*; restore it"):
            facts_of(file)


@pytest.mark.parametrize("name", ["noise.pth", "noise.safetensors"])
def test_damaged_files_are_refused(tmp_path: Path, name: str) -> None:
    for content in (b"", b"noise" * 100):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="cannot be loaded safely"):
            load_state(tmp_path / name)


def test_other_content_and_missing_files_are_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "weight": torch.zeros(1)}, tmp_path / "checkpoint.pth")
    with pytest.raises(UserError, match="not a dictionary of named tensors"):
        load_state(tmp_path / "checkpoint.pth")
    with pytest.raises(UserError, match="no such weights file"):
        load_state(tmp_path / "absent.pth")


def test_the_digits_in_a_name_are_checked(tmp_path: Path) -> None:
    content = b"weights"
    digits = hashlib.sha256(content).hexdigest()[:8]
    for name in (f"net-{digits}.pth", "net.pth", "net-large.pth"):
        (tmp_path / name).write_bytes(content)
        check_name_digest(tmp_path / name, remedy="fetch it again")
    (tmp_path / "net-0cc3c7bd.pth").write_bytes(content)
    with pytest.raises(UserError, match="not 0cc3c7bd as its name says; fetch it again"):
        check_name_digest(tmp_path / "net-0cc3c7bd.pth", remedy="fetch it again")


def test_a_date_in_a_name_is_no_promise(tmp_path: Path) -> None:
    content = b"weights"
    digits = hashlib.sha256(content).hexdigest()[:8]
    for name, expected in ((f"net-{digits}.pth", True), ("tuned-20261129.pth", False)):
        (tmp_path / name).write_bytes(content)
        assert is_published(tmp_path / name) is expected
    assert is_published(Path("gone-0cc3c7bd.pth"))  # it can be fetched again
    assert not is_published(Path("gone.pth"))


def test_a_torn_file_in_torch_hubs_folder_is_not_trusted(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / "inception_v3_google-0cc3c7bd.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"half a download")
    with pytest.raises(UserError, match="its SHA-256 begins"):
        published_file(f"http://127.0.0.1:9/{file.name}", "inception_v3")


def test_a_download_that_is_not_what_its_name_says_is_not_kept(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    source = tmp_path / "net-0cc3c7bd.pth"
    source.write_bytes(b"something else")
    with pytest.raises(UserError, match=f"its SHA-256 begins.*fetch {source.as_uri()} again"):
        published_file(source.as_uri(), "net")
    assert not list((tmp_path / "home" / "hub" / "checkpoints").iterdir())


def test_a_download_is_checked_and_kept(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    content = b"published"
    source = tmp_path / f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    source.write_bytes(content)
    file = published_file(source.as_uri(), "net")
    source.unlink()
    assert published_file(source.as_uri(), "net").read_bytes() == content
    assert [path.name for path in file.parent.iterdir()] == [source.name]


def test_without_network_the_remedies_are_named(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(weights, "DOWNLOAD_TIMEOUT_SECONDS", 0.5)
    url = "http://127.0.0.1:9/inception_v3_google-0cc3c7bd.pth"  # port 9: nobody listens
    with pytest.raises(UserError) as caught:
        published_file(url, "inception_v3")
    place = tmp_path / "hub" / "checkpoints" / "inception_v3_google-0cc3c7bd.pth"
    for part in (url, str(place), "TORCH_HOME", "encoder.weights", "encoder=efficientnet_lite2"):
        assert part in str(caught.value)
    assert not list(place.parent.iterdir())
