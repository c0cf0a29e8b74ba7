"""The networks of this user on this machine, and which one is the current one.

Owns <data>/networks: one folder a network, named as people name it, and the file `current`. A network that was made
here has `owner` (the authority's key) beside `invitation.token`, this user's own invitation; one that was joined has the token alone; an
open one has `open`, whose content is its name. What an owner has issued and revoked stands in `issued/` and
`revocations`. A folder appears whole, under a lock: two peers that start at the same instant on a fresh machine make one private
network, not two. Nothing that cannot be read is ever overwritten.

Refuses to know who is linked: an owner's news reach other peers through `node/admission.py`.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from p2pcompute.model.errors import (
    AdmissionError,
    CorruptFileError,
    P2PComputeError,
    ResourceError,
    UnknownNameError,
    UsageError,
)
from p2pcompute.model.ids import NetworkId
from p2pcompute.model.seams import Clock, Entropy
from p2pcompute.node.config import NETWORK_NAME
from p2pcompute.node.folders import Folders, locked_file
from p2pcompute.node.local_network import (
    INVITATION_FILE,
    OPEN_FILE,
    OWNER_FILE,
    LocalNetwork,
    issue_own,
    read_invitation,
)
from p2pcompute.storage.files import make_private_folder, read_if_there, write_atomically
from p2pcompute.wire.authority import Authority, open_network
from p2pcompute.wire.invitation import Invitation

__all__ = ["Joined", "LocalNetwork", "NetworkSummary", "Networks"]

PRIVATE = "private"
_CURRENT = "current"
_LOCK = "lock"
#: Other names tried for a network whose own name is taken here.
_NAMES_TRIED = 1_000


@dataclass(frozen=True, slots=True)
class NetworkSummary:
    """One line of `p2pcompute network list`. `kind`: "owned", "joined" or "open"; `problem`: why it cannot be used."""

    name: str
    kind: str
    network: str
    current: bool
    roles: tuple[str, ...]
    expires_wall: float | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Joined:
    """The network that a token led to. `renamed`: its own name was taken here by another network; `known`: it was here already."""

    network: LocalNetwork
    renamed: bool
    known: bool


class Networks:
    """The networks of one user. All calls block for small files; use at start and from the command line."""

    def __init__(self, folders: Folders, clock: Clock, entropy: Entropy) -> None:
        self._root = folders.networks
        self._clock = clock
        self._entropy = entropy

    # --- looking --------------------------------------------------------------------------------------------------------

    def get(self, name: str | None = None) -> LocalNetwork:
        """The network called `name`, or the default one. Raises UnknownNameError, CorruptFileError, AdmissionError."""
        if name is None:
            return self.default()
        if name not in self._names():
            raise UnknownNameError("network", name, self._names())
        return self._load(name)

    def default(self) -> LocalNetwork:
        """The current network; on a fresh machine a private one of this user, made now."""
        with self._locked():
            current = self._current()
            if current is not None:
                return self._load(current)
            if PRIVATE not in self._names():
                self._add(PRIVATE, self._owned(Authority.create(PRIVATE, self._entropy, self._clock.wall())))
            return self._load(PRIVATE)

    def current_name(self) -> str | None:
        """The name of the network that a peer would take part in now; None before the first start."""
        current = self._current()
        return current if current is not None else (PRIVATE if PRIVATE in self._names() else None)

    def summaries(self) -> list[NetworkSummary]:
        """Every network, by name; one that cannot be used says why."""
        current = self.current_name()
        return [self._summary(name, name == current) for name in self._names()]

    def _summary(self, name: str, current: bool) -> NetworkSummary:
        folder = self._root / name
        kind = "owned" if (folder / OWNER_FILE).exists() else "open" if (folder / OPEN_FILE).exists() else "joined"
        try:
            invitation = self._load(name).invitation
        except P2PComputeError as error:
            return NetworkSummary(name, kind, "", current, (), None, str(error))
        roles = tuple(sorted(role.value for role in invitation.roles))
        return NetworkSummary(name, kind, invitation.network.hex(), current, roles, invitation.expires_wall)

    # --- making ---------------------------------------------------------------------------------------------------------

    def create(self, name: str) -> LocalNetwork:
        """Make a network that this user owns, and make it the current one. Raises UsageError where the name is taken."""
        return self._create(name, lambda: self._owned(Authority.create(name, self._entropy, self._clock.wall())))

    def open(self, name: str) -> LocalNetwork:
        """Take part in the open network called `name`, to which everybody who knows the name belongs; makes it current."""
        folder = self._root / name
        if (folder / OPEN_FILE).exists():
            self.select(name)
            return self._load(name)
        return self._create(name, lambda: self._opened(name))

    def _create(self, name: str, make: Callable[[], dict[str, bytes]]) -> LocalNetwork:
        _check_name(name)
        with self._locked():
            if name in self._names():
                raise UsageError(
                    f"there is a network called {name!r} here already: choose another name, or use that one with "
                    f"`p2pcompute network use {name}`"
                )
            self._add(name, make())
            self._set_current(name)
            return self._load(name)

    def select(self, name: str) -> None:
        """Make `name` the current network. Raises UnknownNameError."""
        with self._locked():
            if name not in self._names():
                raise UnknownNameError("network", name, self._names())
            self._set_current(name)

    def join(self, token: str) -> Joined:
        """Keep the membership that `token` gives and make its network the current one.

        A network of another owner with the same name stays as it is: this one gets another name. A network that is
        here already takes over the new token; the old one is kept beside it. Raises AdmissionError, UsageError.
        """
        invitation = Invitation.from_token(token, self._clock.wall())
        content = invitation.token().encode() + b"\n"
        with self._locked():
            known = self._find(invitation.network)
            if known is not None:
                return self._rejoin(known, invitation, content)
            wanted = _as_name(invitation.network_name)
            name = self._free_name(wanted)
            self._add(name, {INVITATION_FILE: content})
            self._set_current(name)
            return Joined(self._load(name), renamed=name != wanted, known=False)

    def _rejoin(self, name: str, invitation: Invitation, content: bytes) -> Joined:
        folder = self._root / name
        if (folder / OWNER_FILE).exists():
            raise UsageError(f"this network is {name!r}, and you are its owner here: you need no invitation to it")
        old = read_if_there(folder / INVITATION_FILE)
        if old is not None and old != content:
            write_atomically(folder / f"{INVITATION_FILE}.before-{invitation.id.hex()[:8]}", old)
        write_atomically(folder / INVITATION_FILE, content)
        self._set_current(name)
        return Joined(self._load(name), renamed=False, known=True)

    # --- the owner's key ------------------------------------------------------------------------------------------------

    def export_owner(self, name: str | None, passphrase: str) -> bytes:
        """The owner of a network, encrypted, to be kept elsewhere. Raises UsageError where this user does not own it."""
        return self.get(name).owner().export(passphrase, self._entropy)

    def import_owner(self, data: bytes, passphrase: str, name: str | None = None) -> LocalNetwork:
        """Become the owner that `export_owner` wrote, under `name` or the network's own name.

        Raises UsageError for a wrong passphrase, CorruptFileError for what is no export.
        """
        authority = Authority.import_(data, passphrase)
        with self._locked():
            known = self._find(authority.network)
            if known is not None:
                folder = self._root / known
                if (folder / OWNER_FILE).exists():
                    raise UsageError(f"this is the owner of {known!r}, which is here already: nothing was changed")
                write_atomically(folder / OWNER_FILE, authority.to_bytes())
                return self._load(known)
            if name is not None:
                _check_name(name)
                if name in self._names():
                    raise UsageError(
                        f"there is a network called {name!r} here already: choose another name with --name"
                    )
            chosen = name or self._free_name(_as_name(authority.name))
            self._add(chosen, self._owned(authority))
            if self._current() is None:
                # On a fresh machine the next `up` must not make another network beside the one that was rescued.
                self._set_current(chosen)
            return self._load(chosen)

    # --- files ----------------------------------------------------------------------------------------------------------

    def _owned(self, authority: Authority) -> dict[str, bytes]:
        invitation = issue_own(authority, self._clock.wall(), self._entropy)
        return {OWNER_FILE: authority.to_bytes(), INVITATION_FILE: invitation.token().encode() + b"\n"}

    def _opened(self, name: str) -> dict[str, bytes]:
        invitation = issue_own(open_network(name), self._clock.wall(), self._entropy)
        return {OPEN_FILE: name.encode() + b"\n", INVITATION_FILE: invitation.token().encode() + b"\n"}

    def _load(self, name: str) -> LocalNetwork:
        return LocalNetwork.load(name, self._root / name, self._clock, self._entropy)

    def _names(self) -> list[str]:
        try:
            entries = list(self._root.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ResourceError(f"cannot read {self._root}: {error.strerror}") from error
        return sorted(entry.name for entry in entries if NETWORK_NAME.fullmatch(entry.name) and entry.is_dir())

    def _find(self, network: NetworkId) -> str | None:
        for name in self._names():
            with contextlib.suppress(CorruptFileError, AdmissionError):
                if read_invitation(self._root / name, 0.0, any_time=True).network == network:
                    return name
        return None

    def _current(self) -> str | None:
        path = self._root / _CURRENT
        content = read_if_there(path)
        if content is None:
            return None
        name = content.decode("utf-8", "replace").strip()
        if name not in self._names():
            raise CorruptFileError(
                f"{path} names the network {name[:64]!r}, which is not here: choose one with `p2pcompute network use NAME`"
                f" ({', '.join(self._names()) or 'there is none'})"
            )
        return name

    def _set_current(self, name: str) -> None:
        write_atomically(self._root / _CURRENT, name.encode() + b"\n")

    def _add(self, name: str, files: dict[str, bytes]) -> None:
        """Make the folder of a network with everything in it, in one step."""
        temporary = make_private_folder(self._root / f".{name}.{self._entropy.bytes(6).hex()}")
        try:
            for file, content in files.items():
                write_atomically(temporary / file, content)
            temporary.rename(self._root / name)
        except OSError as error:
            raise ResourceError(f"cannot make {self._root / name}: {error.strerror}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)  # gone already where the renaming worked

    def _free_name(self, wanted: str) -> str:
        taken = set(self._names())
        names: Iterable[str] = (wanted, *(f"{wanted[:58]}-{number}" for number in range(2, _NAMES_TRIED)))
        for name in names:
            if name not in taken:
                return name
        raise UsageError(f"there are {_NAMES_TRIED} networks called {wanted!r} here: remove some from {self._root}")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        make_private_folder(self._root)
        with locked_file(self._root / _LOCK):
            yield


def _check_name(name: str) -> None:
    if NETWORK_NAME.fullmatch(name) is None or name in (_CURRENT, _LOCK):
        raise UsageError(
            f"a network cannot be called {name!r} here: use up to 64 letters, digits, dots, dashes and underscores, "
            "a letter or digit first"
        )


def _as_name(text: str) -> str:
    """What a network whose owner called it `text` is called here."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:64]
    return name if name and name not in (_CURRENT, _LOCK) else "network"
