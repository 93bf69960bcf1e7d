"""Runs a function in two processes that train together, forked from this one, within a second."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from showtell.training import ranks

PROCESSES = 2


def in_two(function: Callable[[], Any]) -> list[Any]:
    """What ``function`` returns, or name and text of its exception, in each process, by rank."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    ends = [fork.Pipe(duplex=False) for _ in range(PROCESSES)]
    processes = [
        fork.Process(target=_member, args=(rank, port, function, writer))
        for rank, (_, writer) in enumerate(ends)
    ]
    for process in processes:
        process.start()
    try:
        return [reader.recv() if reader.poll(60) else "no answer" for reader, _ in ends]
    finally:
        for process in processes:
            process.kill()
            process.join()


def _member(rank: int, port: int, function: Callable[[], Any], writer: Connection) -> None:
    # What torchrun would set.
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(PROCESSES)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "1"}
    try:
        with ranks.joined_process_group(PROCESSES, on_gpus=False):
            writer.send(function())
    except Exception as error:
        writer.send(f"{type(error).__name__}: {error}")
