"""The configuration of a peer: one frozen dataclass, read in one place, validated once.

For every value there is one precedence: command-line flag, then environment variable P2PCOMPUTE_<NAME>, then
configuration file (TOML), then default. A key that is not known, in any of them, is an error that names the place and
the nearest valid key: a misspelt key that is silently ignored is worse than a peer that does not start. The file is
only ever read.

Refuses to know what the values do; who runs a peer reads them.
"""

from __future__ import annotations

import math
import os
import re
import socket
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from p2pcompute.jobs.schedule import ALWAYS, Schedule
from p2pcompute.model import limits
from p2pcompute.model.engine import Engine, grants_of
from p2pcompute.model.errors import ConfigError, UnknownNameError, UsageError
from p2pcompute.model.ids import parse_peer_id
from p2pcompute.model.peer import Address
from p2pcompute.model.requirement import TIER_DEFAULT, TIERS

ENVIRONMENT_PREFIX = "P2PCOMPUTE_"
#: Variables with our prefix that are no configuration keys: the folder of everything, and the passphrase of an export.
ENVIRONMENT_OTHER = frozenset({"P2PCOMPUTE_HOME", "P2PCOMPUTE_PASSPHRASE"})
CONFIG_FILE = "config.toml"
BOOTSTRAP_FILE = "bootstrap.txt"
LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
LOG_FORMATS = ("console", "json")
#: What an owner may ask for; WebAssembly is an engine of its own.
ISOLATIONS_ASKED = ("auto", "process", "restricted", "sandbox")
TIMINGS = ("auto", "lan", "wan", "test")
LABELS_MAX = 32
NETWORK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def own_name() -> str:
    """The name of this machine: what a peer is called that is given no name."""
    return socket.gethostname().partition(".")[0][: limits.TEXT_CHARS_MAX] or "peer"


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of the owner's that programs may ask for by `name`."""

    name: str
    path: Path
    writable: bool = False

    @property
    def grant(self) -> str:
        """As programs ask for it and records offer it."""
        return f"folder:{self.name}:rw" if self.writable else f"folder:{self.name}"

    @classmethod
    def parse(cls, text: str) -> Folder:
        """`NAME=PATH` or `NAME=PATH:rw`. Raises UsageError."""
        name, equals, path = text.partition("=")
        writable = path.endswith(":rw")
        place = Path(path.removesuffix(":rw")).expanduser()
        if not equals or not place.is_absolute():
            raise UsageError(f"{text!r} is no folder: write NAME=PATH or NAME=PATH:rw with an absolute path")
        folder = cls(name.strip(), place, writable)
        grants_of([folder.grant])
        return folder


@dataclass(frozen=True, slots=True)
class PeerConfig:
    """Everything that can be said about a peer before it starts; `load_config` makes one."""

    #: What people see in tables; needs not be unique. Default: the name of this machine.
    name: str = field(default_factory=own_name)
    #: Name of the network to take part in; None: the current one of this user.
    network: str | None = None
    #: TCP port for other peers; the next free one is taken where it is in use; 0: any free one.
    port: int = limits.PEER_PORT
    #: Address to listen at; None: every interface of this machine.
    host: str | None = None
    #: Tasks that are run for others at a time; 0 lends nothing; None: as many as there are usable cores.
    slots: int | None = None
    #: Bytes of address space that one worker process may use; None: `limits.WORKER_MEMORY_SHARE` of this machine's.
    memory_bytes: int | None = None
    #: Addresses of peers to try at the start, `host:port`.
    bootstrap: tuple[Address, ...] = ()
    #: Whether peers are looked for, and this one announced, by broadcast and multicast on the local network.
    lan: bool = True
    #: UDP port of those announcements; peers find each other only when they use the same.
    beacon_port: int = limits.BEACON_PORT
    #: How fast gossip runs and how patient it is: "auto" (a local network's pace, more time for peers that are far away),
    #: "lan", "wan", or "test" (ten times as fast).
    timing: str = "auto"
    #: Whether a router may be asked to forward a port to this peer, where others cannot dial it.
    map_ports: bool = True
    #: Whether this peer, where others can dial it, may be the relay of peers that nobody can dial.
    relay: bool = True
    #: Free texts that this peer's record carries, for choosing among peers.
    labels: tuple[str, ...] = ()
    #: What one task costs for an hour here, in the currency that the network's people use; submitters see it.
    cost_per_hour: float = 0.0
    #: What this peer's owner promises of it: "basic", "standard" or "premium".
    performance_tier: str = TIER_DEFAULT
    #: How other people's code is held here: "auto" (as well as this machine can); "restricted" or "sandbox": so well at least, or the peer
    #: does not start; "process": in plain processes, which see what this user sees, for submitters who are trusted with that.
    isolation: str = "auto"
    #: Engines that are offered, of those that work here; empty: all of them.
    engines: tuple[str, ...] = ()
    #: A component of the WebAssembly Python that was made elsewhere, by the same version of the product; None: it is made here.
    wasm_python: Path | None = None
    #: A cluster whose slots are lent instead of this machine's: "dask://host:port", "ray://host:port", or "module:factory" of any executor.
    cluster: str | None = None
    #: What programs are granted that ask for it: "network", "network:HOST:PORT", "gpu", "processes".
    grants: tuple[str, ...] = ()
    #: Folders that programs are granted that ask for them, `NAME=PATH`, or `NAME=PATH:rw` where they may write.
    folders: tuple[Folder, ...] = ()
    #: Images that may be pulled where a program needs them: names, "*" in them for any letters, "always" for all; empty or "never": none.
    pull_images: tuple[str, ...] = ()
    #: The socket of dockerd or podman; None: DOCKER_HOST, else the usual places.
    container_socket: Path | None = None
    #: Whom the owner trusts with containers, commands and grants: ids of peers, or of invitations as `invite --json` shows them.
    trusted: tuple[bytes, ...] = ()
    #: Part of the machine's cores, above 0 to 1, that programs other than this peer's may use before it lends fewer slots; None: all.
    yield_to_load: float | None = None
    #: Slots that are lent while the machine runs on its battery; None: all.
    on_battery: int | None = 0
    #: When slots are lent, in local time, such as "mon-fri 18:00-08:00" or "sat-sun"; empty: always.
    schedule: Schedule = ALWAYS
    #: Seconds that tasks of others go on for when slots are taken back, before they are tried elsewhere.
    yield_grace_s: float = 60.0
    #: Slots kept for jobs of priority 8 and 9 by those who are trusted to ask for that.
    reserved_slots: int = 0
    #: Number of the instance folder to use, from 1; None: the first one that no running peer uses.
    instance: int | None = None
    #: Least severe log line that is written to stderr.
    log_level: str = "warning"
    #: "console" for people, "json" for one JSON object a line.
    log_format: str = "console"

    @classmethod
    def test(cls, **changes: Any) -> PeerConfig:
        """A peer on loopback that announces nothing, takes any free port and leaves this machine's container engine alone: for tests."""
        return replace(
            cls(name="test", host="127.0.0.1", port=0, lan=False, container_socket=Path(os.devnull)), **changes
        )

    @classmethod
    def lan_only(cls, **changes: Any) -> PeerConfig:
        """The defaults: peers of the local network find each other."""
        return replace(cls(), **changes)

    @classmethod
    def wan_only(cls, bootstrap: tuple[Address, ...], **changes: Any) -> PeerConfig:
        """A peer that announces nothing on the local network and is told where others are."""
        return replace(cls(lan=False, bootstrap=bootstrap), **changes)


def load_config(flags: Mapping[str, object], environ: Mapping[str, str], file: Path | None) -> PeerConfig:
    """The configuration from all places. `flags`: by field name, None where a flag was not given.

    `file` may be missing; a `bootstrap.txt` beside it and the list that comes with the program add addresses after
    those that were given. Raises ConfigError.
    """
    values: dict[str, Any] = {}
    if file is not None:
        values.update(_from_file(file))
    values.update(_from_environment(environ))
    values.update(_from_flags(flags))
    config = PeerConfig(**values)
    listed = _listed_addresses(file)
    return replace(config, bootstrap=tuple(dict.fromkeys((*config.bootstrap, *listed))))


def config_keys() -> tuple[str, ...]:
    """The name of every configuration key."""
    return tuple(member.name for member in fields(PeerConfig))


def parse_size(text: str) -> int:
    """Bytes from "1073741824", "512MB" or "2 GiB" (both units are powers of 1024). Raises ValueError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError("write a number of bytes, or one with a unit such as 512MB or 2GiB")
    return int(float(match[1]) * 1024 ** _POWERS[match[2].lower()])


# --- the places -------------------------------------------------------------------------------------------------------


def _from_flags(flags: Mapping[str, object]) -> dict[str, Any]:
    return {key: _parsed(key, value, f"--{key.replace('_', '-')}") for key, value in flags.items() if value is not None}


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for variable in sorted(environ):
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable in ENVIRONMENT_OTHER or environ[variable] == "":
            continue
        key = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        values[key] = _parsed(key, environ[variable], f"environment variable {variable}")
    return values


def _from_file(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"cannot read the configuration file {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8 text: repair it, or move it away to start with the defaults") from error
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"{file} is not valid TOML: {error}: repair it, or move it away; it was not changed"
        ) from error
    return {key: _parsed(key, value, f"{file}:{key}") for key, value in document.items()}


def _listed_addresses(file: Path | None) -> tuple[Address, ...]:
    from p2pcompute.net.bootstrap_list import parse_bootstrap_list

    texts: list[tuple[str, str]] = []
    if file is not None:
        beside = file.with_name(BOOTSTRAP_FILE)
        try:
            texts.append((str(beside), beside.read_text(encoding="utf-8")))
        except FileNotFoundError:
            pass
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the list of addresses {beside}: {error}") from error
    texts.append(("the program's own bootstrap list", _packaged_list()))
    addresses: list[Address] = []
    for place, text in texts:
        try:
            addresses.extend(parse_bootstrap_list(text))
        except UsageError as error:
            raise ConfigError(f"{place}: {error}") from error
    return tuple(addresses)


def _packaged_list() -> str:
    from importlib import resources

    try:
        return resources.files("bootstrap").joinpath("peers.txt").read_text(encoding="utf-8")
    except (ModuleNotFoundError, FileNotFoundError, NotADirectoryError):
        return ""  # the list is a convenience; a stripped installation has none


# --- the values -------------------------------------------------------------------------------------------------------


def _parsed(key: str, value: object, place: str) -> Any:
    parser = _PARSERS.get(key)
    if parser is None:
        raise ConfigError(f"{place}: {UnknownNameError('configuration key', key, _PARSERS)}")
    try:
        return parser(value)
    except (ValueError, UsageError) as error:
        raise ConfigError(f"{place} is {value!r}: {error}") from error


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("write a text")
    if len(value) > limits.TEXT_CHARS_MAX or not value.isprintable():
        raise ValueError(f"write at most {limits.TEXT_CHARS_MAX} printable characters")
    return value.strip()


def _network(value: object) -> str:
    if not isinstance(value, str) or NETWORK_NAME.fullmatch(value) is None:
        raise ValueError("the name of a network has up to 64 letters, digits, dots, dashes and underscores")
    return value


def _whole(low: int, high: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
            value = int(value)
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"write a whole number from {low} to {high}")
        return value

    return parse


def _cost(value: object) -> float:
    try:
        cost = float(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else math.nan
    except ValueError:
        cost = math.nan
    if not 0 <= cost <= limits.COST_PER_HOUR_MAX:
        raise ValueError("write what an hour of one task costs, as a number from 0 up such as 2.5")
    return cost


def _truth(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in ("1", "true", "yes", "on"):
        return True
    if isinstance(value, str) and value.strip().lower() in ("0", "false", "no", "off"):
        return False
    raise ValueError("write true or false")


def _size(value: object) -> int:
    size = parse_size(value) if isinstance(value, str) else value
    if type(size) is not int or not 32 << 20 <= size < 1 << 60:
        raise ValueError("a Python worker needs at least 32 MiB; write for example 512MB or 2GiB")
    return size


def _members(value: object) -> list[str]:
    if isinstance(value, str):
        return [member.strip() for member in value.split(",") if member.strip()]
    if isinstance(value, (list, tuple)):
        return [member for whole in value for member in _members(str(whole))]
    raise ValueError("write a list, or texts with commas between them")


def _addresses(value: object) -> tuple[Address, ...]:
    return tuple(dict.fromkeys(Address.parse(member, limits.PEER_PORT) for member in _members(value)))


def _labels(value: object) -> tuple[str, ...]:
    labels = tuple(dict.fromkeys(_text(member) for member in _members(value)))
    if len(labels) > LABELS_MAX:
        raise ValueError(f"at most {LABELS_MAX} labels")
    if any(len(label) > limits.LABEL_CHARS_MAX for label in labels):
        raise ValueError(f"a label has at most {limits.LABEL_CHARS_MAX} characters")
    return labels


def _engines(value: object) -> tuple[str, ...]:
    valid = tuple(Engine)
    named = dict.fromkeys(member.lower() for member in _members(value))
    for name in named:
        if name not in valid:
            raise ValueError(f"{name!r} is no engine: write some of {', '.join(valid)}")
    return tuple(engine.value for engine in valid if engine in named)


def _cluster(value: object) -> str:
    from p2pcompute.execution.cluster.clusters import opener_of

    text = _text(value)
    opener_of(text)
    return text


def _grants(value: object) -> tuple[str, ...]:
    grants = grants_of(_members(value))
    if any(grant.startswith("folder:") for grant in grants):
        raise ValueError('name folders and where they are with folders = ["NAME=PATH"]')
    return grants


def _file(value: object) -> Path:
    place = Path(str(value)).expanduser()
    if not place.is_absolute():
        raise ValueError("write an absolute path")
    return place


def _folders(value: object) -> tuple[Folder, ...]:
    found = [Folder.parse(member) for member in _members(value)]
    if len({folder.name for folder in found}) != len(found):
        raise ValueError("two folders have one name")
    return tuple(found)


def _images(value: object) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(_members(value)))
    match [name.lower() for name in names]:
        case [] | ["never"]:
            return ()
        case ["always"]:
            return ("*",)
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9*?][A-Za-z0-9._/:@*?-]{0,511}", name):
            raise ValueError(
                f"{name!r} is no name of an image: write never, always, or names such as python:3.12-slim or ghcr.io/lab/*"
            )
    return names


def _socket(value: object) -> Path:
    place = Path(str(value).removeprefix("unix://")).expanduser()
    if not place.is_absolute():
        raise ValueError("write the absolute path of a Unix socket, such as /var/run/docker.sock")
    return place


def _trusted(value: object) -> tuple[bytes, ...]:
    found = []
    for member in _members(value):
        if re.fullmatch(r"[0-9a-fA-F]{64}", member):
            found.append(bytes.fromhex(member))
        else:
            found.append(bytes(parse_peer_id(member)))
    return tuple(dict.fromkeys(found))


def _load_share(value: object) -> float | None:
    if isinstance(value, str) and value.strip().lower() == "never":
        return None
    percent = isinstance(value, str) and value.strip().endswith("%")
    try:
        share = float(str(value).strip().removesuffix("%")) / (100 if percent else 1)
    except ValueError:
        share = math.nan
    if isinstance(value, bool) or not 0 < share <= 1:
        raise ValueError("write a part of the machine's cores above 0 to 1 such as 0.25 or 25%, or never")
    return share


def _on_battery(value: object) -> int | None:
    word = value.strip().lower() if isinstance(value, str) else ""
    return None if word == "run" else 0 if word == "pause" else _slots_on_battery(value)


def _slots_on_battery(value: object) -> int:
    try:
        return _whole(0, 4_096)(value)
    except ValueError as error:
        raise ValueError("write pause, run, or how many slots are lent on battery") from error


def _schedule(value: object) -> Schedule:
    return value if isinstance(value, Schedule) else Schedule.parse(_members(value))


def _grace(value: object) -> float:
    try:
        grace_s = float(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else math.nan
    except ValueError:
        grace_s = math.nan
    if not 0 <= grace_s <= 86_400:
        raise ValueError("write seconds from 0 to 86400")
    return grace_s


def _one_of(valid: tuple[str, ...]) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if not isinstance(value, str) or value.lower() not in valid:
            raise ValueError(f"write one of {', '.join(valid)}")
        return value.lower()

    return parse


_PARSERS: dict[str, Callable[[object], Any]] = {
    "name": _text,
    "network": _network,
    "port": _whole(0, 65_535),
    "host": _text,
    "slots": _whole(0, 4_096),
    "memory_bytes": _size,
    "bootstrap": _addresses,
    "lan": _truth,
    "beacon_port": _whole(1, 65_535),
    "timing": _one_of(TIMINGS),
    "map_ports": _truth,
    "relay": _truth,
    "labels": _labels,
    "cost_per_hour": _cost,
    "performance_tier": _one_of(TIERS),
    "isolation": _one_of(ISOLATIONS_ASKED),
    "engines": _engines,
    "wasm_python": _file,
    "cluster": _cluster,
    "grants": _grants,
    "folders": _folders,
    "pull_images": _images,
    "container_socket": _socket,
    "trusted": _trusted,
    "yield_to_load": _load_share,
    "on_battery": _on_battery,
    "schedule": _schedule,
    "yield_grace_s": _grace,
    "reserved_slots": _whole(0, 4_096),
    "instance": _whole(1, 9_999),
    "log_level": _one_of(LOG_LEVELS),
    "log_format": _one_of(LOG_FORMATS),
}
assert set(_PARSERS) == set(config_keys()), "every configuration key has a parser"


def config_with(config: PeerConfig | None, changes: dict[str, Any]) -> PeerConfig:
    """`config`, or the default one, with single values replaced. Raises UsageError for an unknown name."""
    base = config or PeerConfig()
    known = {member.name for member in fields(base)}
    for name in changes:
        if name not in known:
            raise UnknownNameError("configuration key", name, known)
    return replace(base, **changes)
