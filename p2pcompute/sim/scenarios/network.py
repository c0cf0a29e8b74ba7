"""Scenarios of the network alone: what the laboratory promises to those that run peers in it."""

from __future__ import annotations

import asyncio
from typing import Final

from p2pcompute.model.peer import Address
from p2pcompute.net.datagrams import DatagramPort
from p2pcompute.sim.conditions import Conditions, Line
from p2pcompute.sim.hosts import SimHost
from p2pcompute.sim.lab import ExpectationError, Lab

_PORT: Final = 9876
_HOSTS: Final = 20


class _Echo:
    """Answers what begins with "?", counts what begins with "!"."""

    def __init__(self, host: SimHost) -> None:
        self.host = host
        self.port: DatagramPort | None = None
        self.answers: list[bytes] = []

    async def start(self) -> None:
        self.port = await self.host.open_datagrams(None, _PORT, self._received)

    def ask(self, number: int, to: SimHost) -> None:
        if self.port is not None:
            self.port.send(b"?%d" % number, Address(to.address, _PORT))

    def _received(self, data: bytes, source: Address) -> None:
        if data.startswith(b"?") and self.port is not None:
            self.port.send(b"!" + data[1:], source)
        else:
            self.answers.append(data)


async def _echoes(lab: Lab, count: int) -> list[_Echo]:
    hosts = [lab.network.add_host(f"10.0.{number // 250}.{number % 250 + 1}") for number in range(count)]
    echoes = [_Echo(host) for host in hosts]
    for echo in echoes:
        with echo.host.here():
            await echo.start()
    return echoes


async def datagrams_under_faults(lab: Lab) -> None:
    """Twenty hosts ask each other over a bad network; about as many answers come as its losses leave."""
    lab.network.set_conditions(Conditions(latency_s=0.02, jitter_s=0.03, loss=0.1, duplicate=0.02, reorder=0.05))
    echoes = await _echoes(lab, _HOSTS)
    lab.network.set_line(echoes[0].host, Line.wifi())
    lab.network.starve(echoes[1].host, run_s=(0.1, 0.5), stall_s=(0.2, 1.0))
    rng = lab.dice.of("scenario")
    asked = 0
    for number in range(400):
        for echo in echoes:
            echo.ask(number, echoes[rng.randrange(0, _HOSTS)].host)
            asked += 1
        await asyncio.sleep(0.01)
    lab.network.feed(echoes[1].host)
    await asyncio.sleep(3.0)
    answered = sum(len(echo.answers) for echo in echoes)
    lab.note("answered", answered, asked)
    # Both ways: 0.9 x 0.9 arrive, 2 % twice each way; a twentieth of the questions is to oneself and loses nothing.
    if not 0.75 < answered / asked < 0.95:
        raise ExpectationError(f"{answered} answers to {asked} questions")


async def echo_across_a_partition(lab: Lab) -> None:
    """Two halves do not hear each other while they are parted, and do when it has healed; one way stays open in a one-way partition."""
    echoes = await _echoes(lab, 4)
    hosts = [echo.host for echo in echoes]
    parted = lab.network.partition(hosts[:2], hosts[2:])
    echoes[0].ask(1, hosts[2])
    echoes[0].ask(2, hosts[1])
    await asyncio.sleep(1.0)
    if echoes[0].answers != [b"!2"]:
        raise ExpectationError(f"across a partition came {echoes[0].answers}")
    lab.network.heal(parted)
    lab.network.block(hosts[2:], hosts[:2])
    echoes[0].ask(3, hosts[2])
    await asyncio.sleep(1.0)
    if hosts[2].datagrams_in != 1 or echoes[0].answers != [b"!2"]:
        raise ExpectationError("a one-way partition let the answer through, or stopped the question")
    lab.network.heal()
    echoes[0].ask(4, hosts[2])
    await lab.until(lambda: echoes[0].answers == [b"!2", b"!4"], "the healed network carries answers", 1.0)
