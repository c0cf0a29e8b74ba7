"""The control socket: calls, feeds, notices, back-pressure, errors, hang-ups, and who may knock."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from p2pcompute.model import limits
from p2pcompute.model.errors import (
    AdmissionError,
    AdmissionReason,
    BusyError,
    JobCancelledError,
    NoSuchPeerError,
    NotRunningError,
    NotSerializableError,
    P2PComputeError,
    ProtocolError,
    TaskFailedError,
    TaskTimeoutError,
    UnknownNameError,
    WorkerDiedError,
)
from p2pcompute.net.control import ControlCall, ControlClient, ControlServer, Handler
from p2pcompute.net.control_faults import error_of, fault_of
from p2pcompute.net.control_frames import (
    HEADER,
    Credit,
    FrameParser,
    Intake,
    Window,
    encode_credit,
    encode_message,
)
from p2pcompute.wire.messages import Answer, Call, Fault, Feed, Hangup, Ping

WAIT_S = 10.0


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - conditions of many kinds
            await asyncio.sleep(0.002)


async def echo(call: ControlCall) -> object:
    """The handler of most tests."""
    match call.method:
        case "echo":
            return call.arguments
        case "sum":
            return sum([value async for value in call.feed()])
        case "count":
            for number in range(call.arguments["to"]):
                await call.notice(number)
            return "counted"
        case "fail":
            raise UnknownNameError("aggregation", "sun", ["sum", "max"])
        case "defect":
            raise KeyError("nothing of ours")
        case "unpackable":
            return object()
        case "sleep":
            await asyncio.Event().wait()
        case _:
            raise UnknownNameError("method", call.method, ["echo"])
    return None


def with_client(path: Path, test: Callable[[ControlClient], Any], handler: Handler = echo, **how: bool) -> None:
    async def main() -> None:
        async with (
            asyncio.timeout(WAIT_S * 2),
            ControlServer(path, handler, **how),
            await ControlClient.connect(path, **how) as client,
        ):
            await test(client)

    asyncio.run(main())


@pytest.mark.parametrize("loopback", [False, True])
def test_a_call_is_answered_over_both_transports(tmp_path: Path, loopback: bool) -> None:
    async def test(client: ControlClient) -> None:
        assert await client.call("echo", x=1, data=b"\x00\xff", deep=[{"a": None}]) == {
            "x": 1,
            "data": b"\x00\xff",
            "deep": [{"a": None}],
        }

    with_client(tmp_path / "socket", test, loopback=loopback)
    assert list(tmp_path.iterdir()) == [], "socket and secret are removed"


@pytest.mark.parametrize("loopback", [False, True])
def test_socket_and_secret_are_private(tmp_path: Path, loopback: bool) -> None:
    async def main() -> None:
        path = tmp_path / "socket"
        async with ControlServer(path, echo, loopback=loopback):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert stat.S_ISSOCK(path.stat().st_mode) is not loopback

    asyncio.run(main())


def test_values_far_larger_than_a_frame_of_a_link(tmp_path: Path) -> None:
    async def test(client: ControlClient) -> None:
        data = os.urandom(1 << 20) * 5
        assert (await client.call("echo", data=data))["data"] == data

    with_client(tmp_path / "socket", test)


def test_notices_come_in_order_and_more_of_them_than_a_window(tmp_path: Path) -> None:
    async def test(client: ControlClient) -> None:
        heard: list[int] = []
        assert await client.call("count", on_notice=heard.append, to=1_000) == "counted"
        assert heard == list(range(1_000))

    with_client(tmp_path / "socket", test)


def test_a_feed_longer_than_a_window(tmp_path: Path) -> None:
    async def numbers() -> AsyncIterator[int]:
        for number in range(2_000):
            yield number

    async def test(client: ControlClient) -> None:
        assert await client.call("sum", feed=numbers()) == 1_999_000

    with_client(tmp_path / "socket", test)


def test_a_slow_consumer_holds_back_the_producer_and_nobody_else(tmp_path: Path) -> None:
    told: list[int] = []
    taken: list[int] = []
    go_on = asyncio.Event()

    async def handler(call: ControlCall) -> object:
        if call.method == "flood":
            for number in range(500):
                await call.notice(number)
                told.append(number)
            return "done"
        if call.method == "slow":
            async for number in call.feed():
                taken.append(number)
                await go_on.wait()
            return len(taken)
        return "quick"

    async def test(client: ControlClient) -> None:
        async def numbers() -> AsyncIterator[int]:
            for number in range(500):
                fed.append(number)
                yield number

        async def lazily(_: object) -> None:
            await go_on.wait()

        fed: list[int] = []
        async with asyncio.TaskGroup() as group:
            flood = group.create_task(client.call("flood", on_notice=lazily))
            slow = group.create_task(client.call("slow", feed=numbers()))
            await until(lambda: len(told) >= limits.CONTROL_WINDOW and len(fed) > limits.CONTROL_WINDOW)
            for _ in range(50):
                assert await client.call("quick") == "quick", "another call is not held up"
            assert len(told) == limits.CONTROL_WINDOW
            assert len(fed) == limits.CONTROL_WINDOW + 1
            go_on.set()
        assert flood.result() == "done"
        assert slow.result() == 500

    with_client(tmp_path / "socket", test, handler)


def test_notice_now_is_dropped_where_the_client_is_behind(tmp_path: Path) -> None:
    told: list[bool] = []

    async def handler(call: ControlCall) -> object:
        told.extend(call.notice_now(number) for number in range(100))
        return None

    async def test(client: ControlClient) -> None:
        heard: list[int] = []
        await client.call("progress", on_notice=heard.append)
        assert heard == list(range(limits.CONTROL_WINDOW))
        assert told == [True] * limits.CONTROL_WINDOW + [False] * (100 - limits.CONTROL_WINDOW)

    with_client(tmp_path / "socket", test, handler)


def test_an_error_of_the_handler_is_raised_at_the_client(tmp_path: Path) -> None:
    async def test(client: ControlClient) -> None:
        with pytest.raises(UnknownNameError, match="did you mean 'sum'") as caught:
            await client.call("fail")
        assert caught.value.nearest == "sum"
        with pytest.raises(P2PComputeError, match="defect of p2pcompute"):
            await client.call("defect")
        with pytest.raises(NotSerializableError):
            await client.call("unpackable")
        with pytest.raises(NotSerializableError):
            await client.call("echo", value=object())
        assert await client.call("echo", x=1) == {"x": 1}, "the connection goes on"

    with_client(tmp_path / "socket", test)


def test_a_feed_that_raises_cancels_the_call_with_its_own_error(tmp_path: Path) -> None:
    cancelled = asyncio.Event()

    async def handler(call: ControlCall) -> object:
        try:
            return [value async for value in call.feed()]
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def broken() -> AsyncIterator[int]:
        yield 1
        raise ValueError("the input file vanished")

    async def test(client: ControlClient) -> None:
        with pytest.raises(ValueError, match="vanished"):
            await client.call("collect", feed=broken())
        async with asyncio.timeout(WAIT_S):
            await cancelled.wait()

    with_client(tmp_path / "socket", test, handler)


@pytest.mark.parametrize("how", ["cancel", "close", "vanish"])
def test_a_call_is_cancelled_when_its_client_hangs_up_or_is_gone(tmp_path: Path, how: str) -> None:
    async def main() -> None:
        started, cancelled = asyncio.Event(), asyncio.Event()

        async def handler(call: ControlCall) -> object:
            started.set()
            try:
                # Unread feeds wait: a lost connection is noticed all the same.
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise
            return None

        async def endless() -> AsyncIterator[int]:
            while True:
                yield 1

        async with asyncio.timeout(WAIT_S), ControlServer(tmp_path / "socket", handler):
            client = await ControlClient.connect(tmp_path / "socket")
            async with asyncio.TaskGroup() as group:
                call = group.create_task(_swallow(client.call("wait", feed=endless())))
                await started.wait()
                if how == "cancel":
                    call.cancel()
                elif how == "close":
                    await client.close()
                else:
                    client._protocol.abort()
                await cancelled.wait()
            await client.close()

    asyncio.run(main())


async def _swallow(call: Any) -> None:
    with pytest.raises((NotRunningError, asyncio.CancelledError)):
        await call


def test_a_hang_up_right_behind_its_call_leaves_nothing_open(tmp_path: Path) -> None:
    async def main() -> None:
        server = ControlServer(tmp_path / "socket", echo)
        async with asyncio.timeout(WAIT_S), server:
            reader, writer = await asyncio.open_unix_connection(tmp_path / "socket")
            for number in (1, 2, 3):
                writer.write(encode_message(Call(number, "sleep", {})) + encode_message(Hangup(number)))
            writer.write(encode_message(Call(4, "echo", {"x": 2})))
            assert FrameParser().feed(await reader.read(1 << 16)) == [Answer(4, {"x": 2})]
            await until(lambda: all(not connection._calls for connection in server._connections))
            writer.close()
            await writer.wait_closed()

    asyncio.run(main())


def test_leaving_the_server_cancels_calls_and_tells_clients(tmp_path: Path) -> None:
    async def main() -> None:
        async with asyncio.timeout(WAIT_S):
            async with ControlServer(tmp_path / "socket", echo):
                client = await ControlClient.connect(tmp_path / "socket")
                async with asyncio.TaskGroup() as group:
                    call = group.create_task(_refused(client.call("sleep"), "this peer is stopping"))
                    await client.call("echo")
                    await _leave(tmp_path, call, group)
            await client.close()

    async def _leave(path: Path, call: asyncio.Task[None], group: asyncio.TaskGroup) -> None:
        server = ControlServer(path / "other", echo)
        async with server:
            other = await ControlClient.connect(path / "other")
            pending = group.create_task(_refused(other.call("sleep"), "this peer is stopping"))
            await other.call("echo")
        await pending
        with pytest.raises(NotRunningError):
            await other.call("echo")
        await other.close()
        call.cancel()

    async def _refused(call: Any, text: str) -> None:
        with pytest.raises(NotRunningError, match=text):
            await call

    asyncio.run(main())


def test_too_many_open_calls_are_refused_on_both_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CONTROL_CALLS_MAX", 2)

    async def main() -> None:
        async with asyncio.timeout(WAIT_S), ControlServer(tmp_path / "socket", echo):
            async with await ControlClient.connect(tmp_path / "socket") as client, asyncio.TaskGroup() as group:
                calls = [group.create_task(client.call("sleep")) for _ in range(2)]
                await until(lambda: len(client._exchanges) == 2)
                with pytest.raises(BusyError, match="2 calls are open"):
                    await client.call("echo")
                for call in calls:
                    call.cancel()
            reader, writer = await asyncio.open_unix_connection(tmp_path / "socket")
            for number in (1, 2, 3):
                writer.write(encode_message(Call(number, "sleep", {})))
            (refusal,) = FrameParser().feed(await reader.read(1 << 16))
            assert isinstance(refusal, Fault)
            assert (refusal.call, refusal.error) == (3, "BusyError")
            writer.close()
            await writer.wait_closed()

    asyncio.run(main())


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        HEADER.pack(limits.CONTROL_MESSAGE_BYTES_MAX + 1, 0, 0),
        HEADER.pack(3, 0, 0) + b"\xc1\xc1\xc1",
        HEADER.pack(2, 1, 1) + b"xx",
        encode_message(Answer(1, None)),
        encode_message(Call(1, "sleep", {})) * 2,
        encode_message(Call(1, "sleep", {})) + encode_message(Feed(1, 0)) * (limits.CONTROL_WINDOW + 1),
        encode_message(Call(1, "sleep", {})) + encode_credit(Credit(1, 1)),
        encode_message(Call(1, "sleep", {})) + encode_message(Feed(1, 0, end=True)) + encode_message(Feed(1, 0)),
    ],
)
def test_what_no_client_sends_closes_that_connection_alone(tmp_path: Path, data: bytes) -> None:
    async def main() -> None:
        path = tmp_path / "socket"
        async with (
            asyncio.timeout(WAIT_S),
            ControlServer(path, echo),
            await ControlClient.connect(path) as good,
        ):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(data)
            farewell = await reader.read()
            assert b"protocol" in farewell
            writer.close()
            await writer.wait_closed()
            assert await good.call("echo", x=1) == {"x": 1}

    asyncio.run(main())


def test_a_message_in_single_bytes(tmp_path: Path) -> None:
    parser = FrameParser()
    items = [
        item for byte in encode_message(Ping(7)) + encode_credit(Credit(3, 4)) for item in parser.feed(bytes([byte]))
    ]
    assert items == [Ping(7), Credit(3, 4)]


def test_nobody_there_says_what_to_do(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(NotRunningError, match="p2pcompute up"):
            await ControlClient.connect(tmp_path / "missing")
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(tmp_path / "stale"))
        with pytest.raises(NotRunningError, match="p2pcompute up"):
            await ControlClient.connect(tmp_path / "stale")
        async with ControlServer(tmp_path / "stale", echo), await ControlClient.connect(tmp_path / "stale") as client:
            assert await client.call("echo") == {}, "the socket of a killed peer is taken over"
        (tmp_path / "damaged").write_text("no port")
        with pytest.raises(NotRunningError, match="damaged"):
            await ControlClient.connect(tmp_path / "damaged", loopback=True)

    asyncio.run(main())


def test_leaving_does_not_remove_the_socket_of_a_successor(tmp_path: Path) -> None:
    async def main() -> None:
        async with ControlServer(tmp_path / "socket", echo):
            (tmp_path / "socket").unlink()
            (tmp_path / "socket").write_text("a successor's")
        assert (tmp_path / "socket").read_text() == "a successor's"

    asyncio.run(main())


def test_a_foreign_user_is_not_let_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(struct, "unpack", lambda form, data: (1, os.getuid() + 4_711, 1))

    async def main() -> None:
        async with asyncio.timeout(WAIT_S), ControlServer(tmp_path / "socket", echo):
            client = await ControlClient.connect(tmp_path / "socket")
            with pytest.raises(NotRunningError):
                await client.call("echo")
            await client.close()

    asyncio.run(main())


def test_loopback_without_the_secret_is_not_let_in(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "socket"
        async with asyncio.timeout(WAIT_S), ControlServer(path, echo, loopback=True):
            port = int(path.read_text().split()[0])
            for prefix in (b"x" * 32, b""):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(prefix + encode_message(Call(1, "echo", {"padding": "x" * 64})))
                try:
                    assert await reader.read() == b""
                except ConnectionResetError:
                    pass
                writer.close()
                with_suppressed = writer.wait_closed()
                try:
                    await with_suppressed
                except ConnectionResetError:
                    pass

    asyncio.run(main())


@pytest.mark.parametrize(
    "error",
    [
        AdmissionError(AdmissionReason.EXPIRED, "it ended yesterday", "10.0.0.1:9876"),
        TaskFailedError("division by zero", "job", 3, remote_traceback="Traceback …", peer="kitchen"),
        TaskTimeoutError("took too long", "job", 1),
        WorkerDiedError("died", "job", 2, history=("kitchen: killed", "attic: killed")),
        JobCancelledError("cancelled", "job"),
        NoSuchPeerError("nobody"),
        UnknownNameError("option", "tmeout", ["timeout"]),
    ],
)
def test_every_kind_of_error_arrives_as_it_was(error: P2PComputeError) -> None:
    (fault,) = FrameParser().feed(encode_message(fault_of(1, error)))
    assert isinstance(fault, Fault)
    arrived = error_of(fault)
    assert type(arrived) is type(error)
    assert str(arrived) == str(error)
    assert vars(arrived) == vars(error)
    assert arrived.exit_code == error.exit_code


def test_faults_of_unknown_classes_and_groups() -> None:
    assert type(error_of(Fault(1, "LaterError", "text", {"exit_code": 3}))) is P2PComputeError
    group = ExceptionGroup("", [ExceptionGroup("", [NoSuchPeerError("inner")])])
    assert fault_of(1, group).error == "NoSuchPeerError"
    assert "defect" in fault_of(1, ExceptionGroup("", [KeyError(1), KeyError(2)])).text
    assert len(fault_of(1, NoSuchPeerError("x" * 100_000)).text) == limits.TRACEBACK_CHARS_MAX
    broken = error_of(Fault(1, "AdmissionError", "text", {"reason": "no such reason", "__class__": "x", "1": 2}))
    assert isinstance(broken, AdmissionError)
    assert broken.reason is AdmissionReason.NOT_ALLOWED


def test_windows_and_intakes_hold_to_their_limits() -> None:
    async def main() -> None:
        window = Window()
        for _ in range(limits.CONTROL_WINDOW):
            await window.take()
        assert not window.take_now()
        window.add(1)
        assert window.take_now()
        with pytest.raises(ProtocolError):
            window.add(limits.CONTROL_WINDOW + 1)
        granted: list[int] = []
        intake = Intake(granted.append)
        for number in range(limits.CONTROL_WINDOW):
            intake.put(number)
        with pytest.raises(ProtocolError, match="granted"):
            intake.put(0)
        intake.end(NoSuchPeerError("the end"))
        seen: list[int] = []

        async def read() -> None:
            async for value in intake.values():
                seen.append(value)  # noqa: PERF401 - what came before the error counts

        with pytest.raises(NoSuchPeerError, match="the end"):
            await read()
        assert seen == list(range(limits.CONTROL_WINDOW))
        assert sum(granted) == limits.CONTROL_WINDOW

    asyncio.run(main())


def test_the_header_is_that_of_links() -> None:
    assert encode_message(Ping(1))[:9] == struct.pack("!IBI", len(encode_message(Ping(1))) - 9, 0, 0)


def test_a_handler_hears_once_when_its_client_is_gone_and_not_when_another_is(tmp_path: Path) -> None:
    async def main() -> None:
        gone: list[object] = []
        clients: list[object] = []

        async def handler(call: ControlCall) -> None:
            clients.append(call.client)
            call.when_client_gone(lambda: gone.append(call.arguments["name"]))

        path = tmp_path / "socket"
        async with asyncio.timeout(WAIT_S), ControlServer(path, handler):
            async with await ControlClient.connect(path) as first:
                await first.call("hold", name="a")
                await first.call("hold", name="b")
                async with await ControlClient.connect(path) as second:
                    await second.call("hold", name="c")
                await until(lambda: gone == ["c"])
                assert clients[0] is clients[1]
                assert clients[0] is not clients[2]
            await until(lambda: gone == ["c", "a", "b"])
        assert gone == ["c", "a", "b"]

    asyncio.run(main())
