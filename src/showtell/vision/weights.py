"""Weights files: fetched without hanging, checked, loaded without running code, fitted exactly."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from showtell.errors import UserError
from showtell.in_bytes import from_bytes

# Seconds without a single byte before a download is given up: a machine without network must hear
# of it at once, a slow network only has to keep moving.
DOWNLOAD_TIMEOUT_SECONDS = 10.0
_PROMISED = re.compile(r"-([0-9a-f]{8,64})\.")  # the digest in a name
NO_DOWNLOAD_REMEDY = "or take encoder=efficientnet_lite2, which needs no download"


def published_file(url: str, network: str) -> Path:
    """The checked local copy of published weights in torch.hub's folder, downloaded if absent.

    Raises:
        UserError: no network, or a file whose SHA-256 does not begin as its name says.
    """
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", maxsplit=1)[-1]
    if not file.is_file():
        _download(url, file, network)
    check_name_digest(file, remedy=f"delete it and fetch {url} again")
    return file


def _download(url: str, file: Path, network: str) -> None:
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with (
            urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT_SECONDS) as response,
            part.open("wb") as target,
        ):
            shutil.copyfileobj(response, target)
        part.replace(file)
    except OSError as error:
        raise UserError(
            f"the weights of {network} cannot be fetched from {url} ({error}); put that file at "
            f"{file} (below TORCH_HOME) or name it with encoder.weights=FILE, {NO_DOWNLOAD_REMEDY}"
        ) from None
    finally:
        part.unlink(missing_ok=True)


def check_reachable(url: str) -> None:
    """Raise OSError at once when nothing answers at ``url``; any HTTP answer will do."""
    try:
        request = urllib.request.Request(url, method="HEAD")
        urllib.request.urlopen(request, timeout=DOWNLOAD_TIMEOUT_SECONDS).close()
    except urllib.error.HTTPError:
        pass


def check_name_digest(file: Path, *, remedy: str) -> None:
    """Compare the SHA-256 of ``name-0cc3c7bd.pth`` with the digits in its name.

    torch.hub checks them only while downloading, so a file torn by an earlier crash would pass.
    """
    promised = _PROMISED.search(file.name)
    if promised is None:
        return
    found = _sha256(file)
    if not found.startswith(promised[1]):
        raise UserError(
            f"{file}: its SHA-256 begins {found[:8]}, not {promised[1]} as its name says; {remedy}"
        )


def is_published(file: Path) -> bool:
    """Whether anybody can fetch it, as its name tells: ``name-0cc3c7bd.pth``, as torch.hub's.

    Eight digits may also be a date, so a file that is there has to keep what its name promises.
    """
    promised = _PROMISED.search(file.name)
    return promised is not None and (not file.is_file() or _sha256(file).startswith(promised[1]))


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def load_state(file: Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file or a ``.pth`` state dict, by name.

    Those that were written in bytes are restored.

    Raises:
        UserError: no such file, damaged, or holding anything but named tensors.
    """
    if not file.is_file():
        raise UserError(f"{file}: there is no such weights file; check encoder.weights")
    try:
        if file.suffix == ".safetensors":
            state = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError, SafetensorError):
        raise UserError(
            f"{file}: these weights cannot be loaded safely; save the plain state_dict of the "
            "network as .safetensors or .pth"
        ) from None
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise UserError(f"{file}: not a dictionary of named tensors; save network.state_dict()")
    try:
        return from_bytes(state)
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}); restore it from a copy") from None


def round_to_half(network: nn.Module) -> None:
    """Give each weight the nearest value that half precision has."""
    network.load_state_dict(_halves(network))


def half_file(network: nn.Module, facts: Mapping[str, str]) -> bytes:
    """A ``.safetensors`` file of the network's weights in half precision; ``facts`` are metadata.

    Of a network that was rounded it holds the very values.
    """
    return save(_halves(network), metadata=dict(facts))


def exact_file(network: nn.Module) -> bytes:
    """A ``.safetensors`` file of the very weights of a network, where possible in half the size."""
    tensors = {name: t.cpu().contiguous() for name, t in network.state_dict().items()}
    halves = _halves(network)
    kept = {name: torch.equal(halves[name].to(t.dtype), t) for name, t in tensors.items()}
    return save({name: halves[name] if kept[name] else t for name, t in tensors.items()})


def facts_of(file: Path) -> dict[str, str]:
    """The metadata of a ``.safetensors`` file; none of another file.

    Raises:
        UserError: the file is missing or damaged.
    """
    if file.suffix != ".safetensors":
        return {}
    try:
        with safe_open(file, framework="numpy") as opened:
            return dict(opened.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read ({error}); restore it from a copy") from error


def _halves(network: nn.Module) -> dict[str, Tensor]:
    return {
        name: (tensor if is_counter(name) else tensor.half()).cpu().contiguous()
        for name, tensor in network.state_dict().items()
    }


def fit_weights(network: nn.Module, state: Mapping[str, Tensor], file: Path, name: str) -> None:
    """Load ``state`` into ``network``; every tensor must be there, and no other.

    Extra tensors are refused too: those of a deeper network of the same family would fit silently.

    Raises:
        UserError: naming the first tensor that is missing, too many, or of another shape.
    """
    wanted = network.state_dict()
    for tensor in (*wanted, *state):
        if is_counter(tensor):
            continue
        if tensor not in state:
            problem = f"lacks {tensor}"
        elif tensor not in wanted:
            problem = f"has {tensor}, which the network has not"
        elif state[tensor].shape != wanted[tensor].shape:
            shapes = f"{tuple(state[tensor].shape)}, not {tuple(wanted[tensor].shape)}"
            problem = f"has {tensor} of shape {shapes}"
        else:
            continue
        raise UserError(f"{file}: not the weights of {name}: it {problem}; name the right file")
    network.load_state_dict(state, strict=False)


def in_network_order(
    network: nn.Module, state: Mapping[str, Tensor], file: Path, name: str
) -> dict[str, Tensor]:
    """Give tensors stored under another port's names the names of ``network``, by their order.

    Raises:
        UserError: a pair whose last name (weight, bias, running_mean ...) or shape differs.
    """
    wanted = network.state_dict()
    if state.keys() == wanted.keys():
        return dict(state)
    same = len(state) == len(wanted) and all(
        ours.rpartition(".")[2] == theirs.rpartition(".")[2] and wanted[ours].shape == tensor.shape
        for ours, (theirs, tensor) in zip(wanted, state.items(), strict=True)
    )
    if not same:
        raise UserError(f"{file}: not the weights of {name}; name the right file")
    return dict(zip(wanted, state.values(), strict=True))


def digest(network: nn.Module) -> str:
    """SHA-256 of the network's tensors: names, types, shapes and values, whatever their file."""
    sha = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        if not is_counter(name):
            sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            sha.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return sha.hexdigest()


def is_counter(tensor: str) -> bool:
    """Whether it is batch normalisation's step counter, unused here and absent in old files."""
    return tensor.endswith("num_batches_tracked")
