"""The sessions of a peer: found by their index, by their peer and by the handshake that made them; bounded and forgotten.

Both ends of a pair of peers may hold several sessions for a while: two that were begun at the same time, or one and its successor. They
send on the same one without a word about it, because sessions are ordered by what both know of them: the generation that
the handshake agreed on, then whether the peer with the lower id began, then the session's id. Refuses to know:
datagrams, rates, when anything is repeated.
"""

from __future__ import annotations

from collections import Counter, OrderedDict

from p2pcompute.model import limits
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Address
from p2pcompute.net.datagram_rates import Bucket
from p2pcompute.net.handshakes import Shown
from p2pcompute.net.session_events import SessionInfo, SessionSettings, Transmit
from p2pcompute.wire.session import Opener, Sealer, SessionKeys

#: What orders the sessions of one pair, the same on both sides; the greatest is the one in use.
Order = tuple[int, bool, bytes]


class Trial:
    """One address at which a peer may be (`session_questions.py`)."""

    __slots__ = ("_room_bytes", "_tries_max", "address", "since", "token", "tries")

    def __init__(self, address: Address, token: bytes, tries_max: int, now: float) -> None:
        #: Where datagrams of the peer came from.
        self.address = address
        #: What an answer from there must hold.
        self.token = token
        #: When the first one came, monotonic seconds.
        self.since = now
        #: How often the peer was asked there; at most `_tries_max`.
        self.tries = 0
        self._tries_max = tries_max
        #: What may still be sent there.
        self._room_bytes = 0

    @property
    def is_over(self) -> bool:
        """Whether the peer was asked as often as it is, and did not answer: nothing more is sent there."""
        return self.tries >= self._tries_max

    def heard(self, size_bytes: int) -> None:
        """So much has come from there."""
        self._room_bytes += limits.UNPROVEN_ADDRESS_FACTOR * size_bytes

    def takes(self, size_bytes: int) -> bool:
        """Whether so much may be sent there; it is counted then."""
        if size_bytes > self._room_bytes:
            return False
        self._room_bytes -= size_bytes
        return True


class Session:
    """One session. Half open while its first sealed datagram has not come; only the responder's side is that."""

    __slots__ = (
        "accept", "accept_repeated", "address", "armed_at", "asked_at", "bytes_in", "bytes_out", "due", "entry", "heard_at", "index", "initiated",
        "is_confirmed", "opener", "order", "proof_digest", "refresh_at", "remote", "replayed", "rtt_s", "sealer", "shown", "since",
        "trial", "tries", "unanswered_since", "unsealed",
    )  # fmt: skip

    def __init__(
        self, *, index: int, remote: int, keys: SessionKeys, initiated: bool, generation: int, own: PeerId, shown: Shown,
        address: Address, now: float,
    ) -> None:  # fmt: skip
        send_key, receive_key = keys.from_initiator, keys.from_responder
        if not initiated:
            send_key, receive_key = receive_key, send_key
        #: Our number for it, and theirs.
        self.index = index
        self.remote = remote
        self.sealer = Sealer(send_key, remote)
        self.opener = Opener(receive_key)
        #: Whether we began.
        self.initiated = initiated
        self.order: Order = (generation, initiated == (own < shown.admission.peer), keys.id)
        #: Who is there, as the handshake proved.
        self.shown = shown
        #: The row of its peer, None while half open.
        self.entry: Entry | None = None
        #: Where its peer has shown to be; datagrams go there.
        self.address = address
        #: Another address from which its peer was heard last, while it has not answered there.
        self.trial: Trial | None = None
        #: When the handshake was done, monotonic seconds.
        self.since = now
        #: When its peer was last heard.
        self.heard_at = now
        #: When the first of our datagrams was sent that nothing has come back since, None where none was.
        self.unanswered_since: float | None = None
        #: When its peer was asked since then whether it still has the session, None where it was not.
        self.asked_at: float | None = None
        #: Whether a datagram of its peer opened: both sides have the keys then.
        self.is_confirmed = False
        #: From when on its use makes a handshake for the next one.
        self.refresh_at = now
        #: The PROOF that made it and, while half open, the ACCEPT to repeat.
        self.proof_digest = b""
        self.accept = b""
        self.accept_repeated = False
        #: Next repetition of the confirming datagram, or of the question of a trial; how many of the former were sent, and for
        #: which `due` a timer is set.
        self.due = float("inf")
        self.tries = 0
        self.armed_at: float | None = None
        #: For `SessionInfo`.
        self.rtt_s: float | None = None
        self.bytes_in = 0
        self.bytes_out = 0
        self.replayed = 0
        self.unsealed = 0

    @property
    def peer(self) -> PeerId:
        """Who is at its other end."""
        return self.shown.admission.peer

    def seal(self, channel: int, payload: bytes, now: float) -> Transmit:
        """`payload` on its way to the peer."""
        data = self.sealer.seal(channel, payload)
        self.bytes_out += len(data)
        if self.unanswered_since is None:
            self.unanswered_since = now
        trial = self.trial
        # Most likely the peer has moved: what there is room for goes there, so that it misses nothing meanwhile.
        if trial is not None and not trial.is_over and trial.takes(len(data)):
            return Transmit(data, trial.address)
        return Transmit(data, self.address)

    def info(self) -> SessionInfo:
        """A snapshot."""
        return SessionInfo(
            self.peer, self.address, self.since, self.heard_at, self.rtt_s, self.bytes_in, self.bytes_out, self.replayed,
            self.unsealed, self.order[0], self.shown.admission,
        )  # fmt: skip


class Entry:
    """One peer with which there are sessions."""

    __slots__ = ("best", "epoch", "peer", "rate", "refreshed_at", "sessions")

    def __init__(self, peer: PeerId, epoch: int, now: float) -> None:
        self.peer = peer
        #: In falling order, never empty outside of the table, at most `limits.SESSIONS_PER_PEER_MAX`.
        self.sessions: list[Session] = []
        #: The first of them: the one in use.
        self.best: Session
        #: Of the trust under which its peer was last judged.
        self.epoch = epoch
        #: What its peer may send, from wherever.
        self.rate = Bucket(limits.DATAGRAMS_PER_SECOND_PER_PEER, now)
        #: When a handshake for a fresh session was last begun.
        self.refreshed_at = float("-inf")


class SessionTable:
    """See the module."""

    def __init__(self, settings: SessionSettings) -> None:
        self._settings = settings
        #: Every session, half open ones included, by our index.
        self.by_index: dict[int, Session] = {}
        #: Every usable session by their index and where they are: what a hint names.
        self.by_remote: dict[tuple[int, Address], Session] = {}
        #: How many of `by_remote` are at each address.
        self._at: Counter[Address] = Counter()
        #: Sessions that others began, by the PROOF that made them.
        self.by_proof: dict[bytes, Session] = {}
        #: Peers with a usable session, the longest unused first.
        self.peers: OrderedDict[PeerId, Entry] = OrderedDict()
        #: Sessions that others began and have not confirmed, oldest first, at most `limits.HALF_OPEN_MAX`.
        self.half_open: OrderedDict[int, Session] = OrderedDict()
        #: Rises when trust changes; entries of an earlier one are judged again before they are used.
        self.epoch = 0

    def add_half_open(self, session: Session) -> None:
        """A handshake of another that we have answered."""
        self.by_index[session.index] = session
        self.by_proof[session.proof_digest] = session
        self.half_open[session.index] = session
        while len(self.half_open) > limits.HALF_OPEN_MAX:
            self.remove(next(iter(self.half_open.values())))

    def half_open_with(self, peer: PeerId) -> Session | None:
        """The newest half open session with `peer`."""
        return next((each for each in reversed(self.half_open.values()) if each.peer == peer), None)

    def generation(self, peer: PeerId) -> int:
        """That of the newest session with `peer`, 0 where there is none."""
        entry = self.peers.get(peer)
        return 0 if entry is None else entry.best.order[0]

    def add(self, session: Session) -> list[PeerId]:
        """`session` may be used from now on; the peers whose sessions had to go for it."""
        peer = session.peer
        self.half_open.pop(session.index, None)
        self.by_index[session.index] = session
        self._place(session)
        entry = self.peers.get(peer)
        if entry is None:
            entry = self.peers[peer] = Entry(peer, self.epoch, session.since)
        entry.epoch = self.epoch
        session.entry = entry
        entry.sessions.append(session)
        entry.sessions.sort(key=lambda each: each.order, reverse=True)
        entry.best = entry.sessions[0]
        for surplus in entry.sessions[limits.SESSIONS_PER_PEER_MAX :]:
            self.remove(surplus)
        self.peers.move_to_end(peer)
        evicted = []
        while len(self.by_index) - len(self.half_open) > self._settings.sessions_max and len(self.peers) > 1:
            longest_unused = next(iter(self.peers))
            self.remove_peer(longest_unused)
            evicted.append(longest_unused)
        return evicted

    def move(self, session: Session, address: Address) -> None:
        """Its peer is at `address` now."""
        self._unplace(session)
        session.address = address
        if session.entry is not None:
            self._place(session)

    def is_at(self, address: Address) -> bool:
        """Whether a peer with a usable session is at `address`."""
        return address in self._at

    def _place(self, session: Session) -> None:
        key = (session.remote, session.address)
        if key not in self.by_remote:
            self._at[session.address] += 1
        self.by_remote[key] = session

    def _unplace(self, session: Session) -> None:
        if self.by_remote.get((session.remote, session.address)) is session:
            del self.by_remote[session.remote, session.address]
            self._at[session.address] -= 1
            if not self._at[session.address]:
                del self._at[session.address]

    def remove(self, session: Session) -> None:
        """Forget `session`, and its peer where it was the last one."""
        del self.by_index[session.index]
        self.half_open.pop(session.index, None)
        self.by_proof.pop(session.proof_digest, None)
        self._unplace(session)
        entry = session.entry
        if entry is None:
            return
        entry.sessions.remove(session)
        if entry.sessions:
            entry.best = entry.sessions[0]
        else:
            del self.peers[entry.peer]

    def remove_peer(self, peer: PeerId) -> None:
        """Forget every session with `peer`."""
        entry = self.peers.get(peer)
        for session in list(entry.sessions) if entry is not None else []:
            self.remove(session)
        for session in [each for each in self.half_open.values() if each.peer == peer]:
            self.remove(session)

    def expire(self, now: float) -> None:
        """Forget what has ended by `now`."""
        settings = self._settings
        for session in list(self.by_index.values()):
            age_s = now - session.since
            if session.entry is None:
                ended = age_s >= settings.half_open_s
            else:
                ended = age_s >= settings.end_s or now - session.heard_at >= settings.silence_s
            if ended:
                self.remove(session)

    def check_invariants(self) -> None:
        """Raise AssertionError where the tables disagree. For tests."""
        usable = [session for entry in self.peers.values() for session in entry.sessions]
        assert sorted(self.by_index) == sorted([each.index for each in usable] + list(self.half_open))
        for entry in self.peers.values():
            assert entry.sessions
            assert len(entry.sessions) <= limits.SESSIONS_PER_PEER_MAX
            assert entry.best is max(entry.sessions, key=lambda each: each.order)
            assert all(each.entry is entry and each.peer == entry.peer for each in entry.sessions)
        assert set(self.by_remote.values()) <= set(usable)
        assert all(key == (each.remote, each.address) for key, each in self.by_remote.items())
        assert self._at == Counter(address for _, address in self.by_remote)
        assert all(each is self.by_index[each.index] for each in self.by_proof.values())
        assert len(self.half_open) <= limits.HALF_OPEN_MAX
        assert all(each.entry is None and not each.initiated for each in self.half_open.values())
        assert len(usable) <= max(self._settings.sessions_max, limits.SESSIONS_PER_PEER_MAX)
