"""Executors for the tests of clusters: what a factory of an owner's own would give."""

from __future__ import annotations

import contextlib
import multiprocessing
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from typing import Any

import psutil


def two_processes() -> Executor:
    """Processes of their own, without anything of the peer's in them."""
    return ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))


def one_process_of_four_slots() -> tuple[Executor, int]:
    """A pair, as a factory may give it; one process only, so calls follow each other."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")), 4


def descendants(pids: Iterable[int]) -> set[int]:
    """Every process that these have started, directly or not."""
    found: set[int] = set()
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            found |= {child.pid for child in psutil.Process(pid).children(recursive=True)}
    return found


class ByHand(Executor):
    """Keeps what it is given; tests say what becomes of it."""

    def __init__(self) -> None:
        self.given: list[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]] = []
        self.is_shut = False
        self.came = threading.Event()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.given.append((future, fn, args))
        self.came.set()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.is_shut = True
