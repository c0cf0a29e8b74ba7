"""The supervisor: services come back, bugs are seen, the end is bounded."""

from __future__ import annotations

import asyncio
from typing import Any

from p2pcompute.node import supervise
from p2pcompute.node.supervise import Supervisor


class Log:
    """Keeps what was logged."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def exception(self, event: str, **fields: Any) -> None:
        self.lines.append((event, fields))

    error = exception


def test_a_service_that_dies_is_started_again(monkeypatch: Any) -> None:
    monkeypatch.setattr(supervise, "PAUSE_FIRST_S", 0.001)

    async def main() -> None:
        log, lives = Log(), 0
        done = asyncio.Event()

        async def service() -> None:
            nonlocal lives
            lives += 1
            if lives < 4:
                raise ValueError("died")
            done.set()
            await asyncio.Event().wait()

        supervisor = Supervisor(log)  # type: ignore[arg-type]
        await supervisor.start()
        supervisor.service("service", service)
        async with asyncio.timeout(10):
            await done.wait()
        assert supervisor.restarts == {"service": 3}
        assert len(log.lines) == 3
        await supervisor.stop()
        await supervisor.stop()

    asyncio.run(main())


def test_a_task_that_fails_is_logged_and_harms_nobody() -> None:
    async def main() -> None:
        log = Log()
        supervisor = Supervisor(log)  # type: ignore[arg-type]
        await supervisor.start()

        async def bug() -> None:
            raise RuntimeError("bug")

        async def cleaned_up() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(True)

        ended: list[bool] = []
        failing = supervisor.task("bug", bug())
        other = supervisor.task("other", cleaned_up())
        assert failing is not None
        assert other is not None
        await asyncio.wait([failing])
        assert not other.done()
        assert log.lines[0][1]["task"] == "bug"
        await supervisor.stop()
        assert ended == [True]
        assert supervisor.task("late", cleaned_up()) is None

    asyncio.run(main())
