"""UPnP-IGD: finding the router's service for port mappings, and using it, with the library async-upnp-client.

The search is our own: one datagram, and answers of which only the router's count. A router's description is XML that names further addresses to
fetch; every request stays at the router itself, follows no redirection and reads a bounded answer, so that no device on the LAN can send
this peer to other doors. What the library raises on a router's nonsense is of many kinds; all of it leaves here as ProtocolError.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from p2pcompute.model import limits
from p2pcompute.model.errors import P2PComputeError, ProtocolError, ResourceError
from p2pcompute.net.portmap_router import Forwarded, Transport, numeric_host

if TYPE_CHECKING:
    from async_upnp_client.client import UpnpRequester, UpnpService

SSDP_PORT = 1900
SSDP_GROUP = "239.255.255.250"
#: A device of version 2 answers to a search for version 1.
SEARCH_TARGET = "urn:schemas-upnp-org:device:InternetGatewayDevice:1"
#: Pauses after each search.
SEARCH_TRIES_S = (0.5, 1.0, 1.5)
#: One request to the router; its description and those of its services take several.
REQUEST_TIMEOUT_S = 4.0
#: Services that forward ports, best first.
SERVICES = (
    "urn:schemas-upnp-org:service:WANIPConnection:2",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
)
#: What its owner sees in the router's list.
DESCRIPTION = "p2pcompute"
#: A search answer; common ones have 400 bytes.
_SEARCH_ANSWER_BYTES_MAX = 4_096
_ANSWERS_MAX = 16

_TAKEN = (718, 729)
_NO_SUCH_ENTRY = 714
_ONLY_PERMANENT = 725


def search_request(host: str) -> bytes:
    """The datagram that asks at `host` (the group, or one router) for routers that forward ports."""
    lines = (
        "M-SEARCH * HTTP/1.1",
        f"HOST: {host}:{SSDP_PORT}",
        'MAN: "ssdp:discover"',
        "MX: 1",
        f"ST: {SEARCH_TARGET}",
    )
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def decode_search_answer(data: bytes, router_host: str) -> str:
    """The address of the description in a search answer, which must be at `router_host`. Raises ProtocolError."""
    if len(data) > _SEARCH_ANSWER_BYTES_MAX:
        raise ProtocolError(f"an SSDP answer of {len(data)} bytes")
    lines = data.decode("utf-8", errors="replace").replace("\r\n", "\n").split("\n")
    if not lines[0].startswith("HTTP/1.1 200"):
        raise ProtocolError("an SSDP datagram that is no answer")
    for line in lines[1:]:
        name, _, value = line.partition(":")
        if name.strip().lower() == "location":
            return _checked_url(value.strip(), router_host)
    raise ProtocolError("an SSDP answer without a location")


async def find_upnp(router_host: str, own_host: str, port: int, *, search_port: int = SSDP_PORT) -> UpnpRouter:
    """The router at `router_host` as a UPnP device; `own_host`, `port`: where it is to forward to.

    Raises ResourceError where it does not answer or forwards nothing, ProtocolError where it answers nonsense.
    """
    location = await _search(router_host, own_host, search_port)
    requester = bounded_requester(router_host)
    log = logging.getLogger("async_upnp_client")
    if not log.handlers:
        # A router's nonsense comes back as an error in words; it is not to be printed, too.
        log.addHandler(logging.NullHandler())
    from async_upnp_client.client_factory import UpnpFactory

    async with _library("its description"):
        device = await UpnpFactory(requester, non_strict=True).async_create_device(location)
        found = {service.service_type: service for service in device.all_services}
    for service_type in SERVICES:
        if service_type in found:
            return UpnpRouter(router_host, own_host, port, found[service_type])
    raise ResourceError(f"the router at {router_host} speaks UPnP, but forwards no ports by it")


class UpnpRouter:
    """See `Router`. Built by `find_upnp`."""

    protocol = "UPnP"

    def __init__(self, host: str, own_host: str, port: int, service: UpnpService) -> None:
        #: The router.
        self._host = host
        #: This peer, as the router sees it.
        self._own_host = own_host
        self._port = port
        #: What forwards.
        self._service = service

    async def external_host(self) -> str:
        """See `Router`."""
        answer = await self._call("GetExternalIPAddress")
        named = str(answer.get("NewExternalIPAddress") or "")
        if not named:
            raise ResourceError(f"the router at {self._host} refuses by UPnP: it has no address outside at the moment")
        return numeric_host(named, self.protocol)

    async def forward(self, transport: Transport, external_port: int, lifetime_s: float) -> Forwarded | None:
        """See `Router`."""
        try:
            await self._add(transport, external_port, round(lifetime_s))
        except _RefusedError as refused:
            if refused.code in _TAKEN:
                return None
            if refused.code != _ONLY_PERMANENT:
                raise
            await self._add(transport, external_port, 0)
            return Forwarded(external_port, float("inf"))
        return Forwarded(external_port, lifetime_s)

    async def unforward(self, transport: Transport, external_port: int) -> None:
        """See `Router`."""
        with contextlib.suppress(_NoSuchEntryError):
            await self._call(
                "DeletePortMapping", NewRemoteHost="", NewExternalPort=external_port, NewProtocol=str(transport)
            )

    async def is_intact(self, external_port: int) -> bool:
        """Whether the router's table still has this peer at the port."""
        try:
            entry = await self._call(
                "GetSpecificPortMappingEntry", NewRemoteHost="", NewExternalPort=external_port, NewProtocol="TCP"
            )
        except _NoSuchEntryError:
            return False
        return str(entry.get("NewInternalClient")) == self._own_host and entry.get("NewInternalPort") == self._port

    def close(self) -> None:
        """Nothing is kept open between requests."""

    async def _add(self, transport: Transport, external_port: int, lifetime_s: int) -> None:
        await self._call(
            "AddPortMapping",
            NewRemoteHost="",
            NewExternalPort=external_port,
            NewProtocol=str(transport),
            NewInternalPort=self._port,
            NewInternalClient=self._own_host,
            NewEnabled=True,
            NewPortMappingDescription=DESCRIPTION,
            NewLeaseDuration=lifetime_s,
        )

    async def _call(self, action: str, **arguments: Any) -> Mapping[str, Any]:
        async with _library(action):
            return await self._service.action(action).async_call(**arguments)


class _RefusedError(ResourceError):
    """The router refuses an action. `code`: as in the UPnP specification of the service."""

    def __init__(self, action: str, code: int | None, text: str) -> None:
        super().__init__(f"the router refuses {action} by UPnP: {text[:200] or 'no reason given'} ({code})")
        self.code = code


class _NoSuchEntryError(_RefusedError):
    """The router's table has no such line."""


@contextlib.asynccontextmanager
async def _library(what: str) -> AsyncIterator[None]:
    """Maps what the library raises. It follows what a router says into parsers and dictionaries of many kinds, so all of it is caught."""
    from async_upnp_client.exceptions import UpnpActionError, UpnpCommunicationError

    try:
        yield
    except UpnpActionError as error:
        kind = _NoSuchEntryError if error.error_code == _NO_SUCH_ENTRY else _RefusedError
        raise kind(what, error.error_code, str(error.error_desc or "")) from error
    except UpnpCommunicationError as error:
        raise ResourceError(f"the router does not answer {what} by UPnP: {error}"[:300]) from error
    except P2PComputeError:
        raise
    except Exception as error:
        raise ProtocolError(
            f"the router answers {what} with nonsense: {type(error).__name__}: {error}"[:300]
        ) from error


def bounded_requester(router_host: str) -> UpnpRequester:
    """What fetches for the library: from `router_host` alone, without redirections, bounded in bytes and time."""
    import aiohttp
    from async_upnp_client.client import UpnpRequester
    from async_upnp_client.const import HttpRequest, HttpResponse
    from async_upnp_client.exceptions import UpnpConnectionError

    class Requester(UpnpRequester):
        """See `bounded_requester`."""

        async def async_http_request(self, http_request: HttpRequest) -> HttpResponse:
            """One request. Raises what the library expects, or ProtocolError."""
            url = _checked_url(http_request.url, router_host)
            timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
            try:
                async with (
                    aiohttp.ClientSession(timeout=timeout) as session,
                    session.request(
                        http_request.method,
                        url,
                        headers=dict(http_request.headers),
                        data=http_request.body,
                        allow_redirects=False,
                    ) as response,
                ):
                    body = await _bounded_body(response.content)
                    return HttpResponse(response.status, response.headers, body.decode("utf-8", errors="replace"))
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                raise UpnpConnectionError(f"{type(error).__name__}: {error}") from error

    return Requester()


async def _bounded_body(content: Any) -> bytes:
    body = bytearray()
    async for chunk in content.iter_chunked(16_384):
        body += chunk
        if len(body) > limits.ROUTER_ANSWER_BYTES_MAX:
            raise ProtocolError(f"the router answers with more than {limits.ROUTER_ANSWER_BYTES_MAX} bytes")
    return bytes(body)


def _checked_url(url: str, router_host: str) -> str:
    """`url`, if it is plain HTTP at the router itself. Raises ProtocolError."""
    try:
        parts = urlsplit(url)
        is_there = parts.scheme == "http" and parts.hostname == router_host and parts.username is None
        is_there = is_there and (parts.port is None or parts.port > 0)
    except ValueError:
        is_there = False
    if not is_there:
        raise ProtocolError(f"the router at {router_host} names {url[:100]!r}, which is not at the router")
    return url


# --- search -----------------------------------------------------------------------------------------------------------


async def _search(router_host: str, own_host: str, search_port: int) -> str:
    """The address of the router's description. Raises ResourceError where it does not answer."""
    loop = asyncio.get_running_loop()
    try:
        transport, ear = await loop.create_datagram_endpoint(
            lambda: _SearchEar(router_host), sock=_search_socket(own_host)
        )
    except OSError as error:
        raise ResourceError(f"no search for a UPnP router from {own_host}: {error}") from error
    try:
        for wait_s in SEARCH_TRIES_S:
            # Not every router listens at its own address, and not every switch passes multicast on.
            transport.sendto(search_request(router_host), (router_host, search_port))
            transport.sendto(search_request(SSDP_GROUP), (SSDP_GROUP, search_port))
            try:
                async with asyncio.timeout(wait_s):
                    return await ear.locations.get()
            except TimeoutError:
                continue
    finally:
        transport.close()
    raise ResourceError(f"the router at {router_host} does not answer UPnP")


class _SearchEar(asyncio.DatagramProtocol):
    """Keeps the descriptions that the router names; whoever else answers is not asked."""

    def __init__(self, router_host: str) -> None:
        self._router_host = router_host
        #: Found so far.
        self.locations: asyncio.Queue[str] = asyncio.Queue(_ANSWERS_MAX)

    def datagram_received(self, data: bytes, addr: tuple[object, ...]) -> None:
        """Keep what the router answers."""
        if addr[0] != self._router_host or self.locations.full():
            return
        try:
            self.locations.put_nowait(decode_search_answer(data, self._router_host))
        except ProtocolError:
            return  # a search that gets nothing better ends as one without an answer

    def error_received(self, exc: Exception) -> None:
        """Nobody listens at the router's own address; the group may still answer."""


def _search_socket(own_host: str) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        made.setblocking(False)
        made.bind((own_host, 0))
        made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(own_host))
        made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 2)
    except OSError:
        made.close()
        raise
    return made
