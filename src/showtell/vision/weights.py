"""Weights files: safe download, checksums, safe loading (no pickled code), exact matching."""

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
from showtell.quantization import dequantize_state

# Seconds without a single byte after which a download is given up: without a network the user
# learns it quickly, and a slow network only has to keep moving.
DOWNLOAD_TIMEOUT_SECONDS = 10.0
_PROMISED = re.compile(r"-([0-9a-f]{8,64})\.")  # the digest in a file's name
NO_DOWNLOAD_REMEDY = "or take encoder=efficientnet_lite2, which needs no download"


def published_file(url: str, network: str) -> Path:
    """The checked local copy of published weights in torch.hub's folder, downloaded if absent.

    Raises:
        UserError: no network, or a file whose SHA-256 does not match its name.
    """
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", maxsplit=1)[-1]
    if not file.is_file():
        _download(url, file, network)
    else:
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
        check_name_digest(part, remedy=f"fetch {url} again")
        part.replace(file)
    except OSError as error:
        raise UserError(
            f"the weights of {network} cannot be fetched from {url} ({error}); put that file at "
            f"{file} (below TORCH_HOME) or name it with encoder.weights=FILE, {NO_DOWNLOAD_REMEDY}"
        ) from None
    finally:
        part.unlink(missing_ok=True)


def check_reachable(url: str) -> None:
    """Raise OSError quickly if nothing answers at ``url``; any HTTP status counts as an answer."""
    try:
        request = urllib.request.Request(url, method="HEAD")
        urllib.request.urlopen(request, timeout=DOWNLOAD_TIMEOUT_SECONDS).close()
    except urllib.error.HTTPError:
        pass


def check_name_digest(file: Path, *, remedy: str) -> None:
    """Check the SHA-256 of a file like ``name-0cc3c7bd.pth`` against the digits in its name.

    torch.hub checks only while downloading, so it would accept a file truncated by a crash. A name
    without digits passes.

    Raises:
        UserError: the digits differ.
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
    """Whether a file has a published name, like torch.hub's ``name-0cc3c7bd.pth``.

    The eight digits could also be a date, so a file that exists must match them with its SHA-256.
    """
    promised = _PROMISED.search(file.name)
    return promised is not None and (not file.is_file() or _sha256(file).startswith(promised[1]))


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def load_state(file: Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file or a ``.pth`` state dict, by name.

    Tensors quantized by `showtell.quantization` are restored to float32.

    Raises:
        UserError: the file is missing or damaged, or holds anything but named tensors.
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
        return dequantize_state(state)
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}); restore it from a copy") from None


def round_to_half(network: nn.Module) -> None:
    """Round each weight to the nearest half-precision value, in place."""
    network.load_state_dict(_halves(network))


def half_file(network: nn.Module, facts: Mapping[str, str]) -> bytes:
    """A ``.safetensors`` file of the weights in half precision, with ``facts`` as metadata.

    After `round_to_half` it is lossless.
    """
    return save(_halves(network), metadata=dict(facts))


def exact_file(network: nn.Module) -> bytes:
    """A lossless ``.safetensors`` file; tensors exact in half precision are stored in it."""
    tensors = {name: t.cpu().contiguous() for name, t in network.state_dict().items()}
    halves = _halves(network)
    kept = {name: torch.equal(halves[name].to(t.dtype), t) for name, t in tensors.items()}
    return save({name: halves[name] if kept[name] else t for name, t in tensors.items()})


def facts_of(file: Path) -> dict[str, str]:
    """The metadata of a ``.safetensors`` file; empty for other files.

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
    """Load ``state`` into ``network``; the tensors must match exactly, none missing or extra.

    With extra tensors allowed, a deeper network of the same family would load silently.

    Raises:
        UserError: names the first tensor that is missing, extra or of another shape.
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
    """Rename tensors saved by another implementation to the names of ``network``, by order.

    Raises:
        UserError: the numbers of tensors differ, or in a pair the shape or the last part of the
            name (weight, bias, running_mean, ...).
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
    """SHA-256 over the names, types, shapes and values of the network's tensors."""
    sha = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        if not is_counter(name):
            sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            sha.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return sha.hexdigest()


def is_counter(tensor: str) -> bool:
    """Whether a tensor is batch normalisation's step counter: unused here, absent in old files."""
    return tensor.endswith("num_batches_tracked")
