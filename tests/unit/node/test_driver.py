"""The pump: order, re-entrance, and the one timer."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from p2pcompute.node.driver import Pump
from p2pcompute.node.seams import SystemClock


@dataclass(frozen=True)
class Say:
    text: str


@dataclass(frozen=True)
class Tick:
    pass


class Echo:
    """Says what it hears; wants a tick at `due`."""

    def __init__(self) -> None:
        self.heard: list[object] = []
        self.due: float | None = None

    def handle(self, event: Say | Tick, now: float) -> list[Say]:
        self.heard.append(event)
        if isinstance(event, Tick):
            self.due = None
            return [Say("tick")]
        return [Say(f"{event.text}!")] if not event.text.endswith("!") else []

    def deadline(self) -> float | None:
        return self.due


def test_feeding_from_a_handler_waits_for_its_turn() -> None:
    async def main() -> None:
        machine, said = Echo(), []
        drains: list[int] = []

        def perform(effect: Say) -> None:
            said.append(effect.text)
            if effect.text == "a!":
                pump.feed(Say("b"))
                assert said == ["a!"], "the machine was entered while it was being pumped"

        pump: Pump[Say | Tick, Say] = Pump(
            machine, {Say: perform}, Tick(), SystemClock(), lambda: drains.append(len(said))
        )
        pump.feed(Say("a"))
        assert said == ["a!", "b!"]
        assert drains == [2]

    asyncio.run(main())


def test_the_deadline_becomes_a_tick_and_stop_ends_it() -> None:
    async def main() -> None:
        machine, clock = Echo(), SystemClock()
        ticked = asyncio.Event()
        pump: Pump[Say | Tick, Say] = Pump(
            machine, {Say: lambda effect: ticked.set() if effect.text == "tick" else None}, Tick(), clock
        )
        machine.due = clock.monotonic() + 0.01
        pump.feed(Say("x"))
        async with asyncio.timeout(10):
            await ticked.wait()
        machine.due = clock.monotonic()
        pump.stop()
        pump.feed(Say("late"))
        assert Say("late") not in machine.heard

    asyncio.run(main())


def test_an_effect_without_a_handler_is_not_swallowed() -> None:
    async def main() -> None:
        pump: Pump[Say | Tick, Say] = Pump(Echo(), {}, Tick(), SystemClock())
        with pytest.raises(KeyError):
            pump.feed(Say("a"))
        pump.stop()

    asyncio.run(main())


def test_an_effect_that_fails_is_told_and_loses_no_other() -> None:
    async def main() -> None:
        bugs: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: bugs.append(context))
        done: list[str] = []

        class Both(Echo):
            def handle(self, event: Say | Tick, now: float) -> list[Say]:
                return [Say("breaks"), Say("is done")]

        def perform(effect: Say) -> None:
            if effect.text == "breaks":
                raise RuntimeError("a handler with a bug")
            done.append(effect.text)

        pump: Pump[Say | Tick, Say] = Pump(Both(), {Say: perform}, Tick(), SystemClock())
        pump.feed(Say("a"))
        assert done == ["is done"]
        assert [str(bug["exception"]) for bug in bugs] == ["a handler with a bug"]
        pump.stop()

    asyncio.run(main())
