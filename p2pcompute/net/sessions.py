"""All sessions of one peer with others: a machine that takes datagrams and gives datagrams.

Rules, in the order in which a datagram meets them: its size; the rate of its address; for a sealed one its session, the rate of
strangers together where its peer is elsewhere, its counter, its seal; for a handshake its network and version, the rate of strangers
together where it is none of a peer and no answer to ours, its cookie, the rate of handshakes, and only then
certificates and signatures; for a sealed one, once it has opened, the rate of its peer. Whatever fails is counted and answered with silence, except that a HELLO gets a cookie, and that a sealed
datagram of no known session gets a hint. A hint proves nothing, so it ends nothing: it begins a handshake, and the session in doubt
is used until the new one is up.

Both peers may begin at once: both handshakes may finish, and both sides then use the same of the two
(`session_table.py`). Whoever answers sends nothing before the other side's first sealed datagram has opened. A session follows its
peer to another address once the peer has answered there (`session_questions.py`).

No clock (`now`: monotonic seconds, never going back), no sockets, no dice but the entropy that was passed. Refuses to know what payloads mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from p2pcompute.model import limits
from p2pcompute.model.errors import BusyError, LinkClosedError, PeerError, UsageError
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Address
from p2pcompute.model.seams import Entropy
from p2pcompute.net.attempts import Attempts, Timers
from p2pcompute.net.cookies import Cookies
from p2pcompute.net.datagram_rates import DatagramRates
from p2pcompute.net.gate import Gate
from p2pcompute.net.handshakes import Attempt, Handshaker, Stage
from p2pcompute.net.refusals import Refusals
from p2pcompute.net.session_addresses import can_be_sent_to
from p2pcompute.net.session_events import (
    Admit,
    DatagramIdentity,
    Delivered,
    Effect,
    SessionInfo,
    SessionSettings,
    SessionUp,
    Transmit,
    Why,
)
from p2pcompute.net.session_questions import Questions
from p2pcompute.net.session_table import Entry, Session, SessionTable
from p2pcompute.net.session_trust import Judge
from p2pcompute.wire.datagram import (
    DATAGRAM_BYTES_MIN,
    GENERATION_MAX,
    SEALED_BYTES_MIN,
    SEALED_HEAD,
    TAG_BYTES,
    VERSION,
    Accept,
    Cookie,
    Hello,
    Kind,
    Proof,
    Unknown,
    decode_handshake,
    write_cookie,
    write_unknown,
)
from p2pcompute.wire.session import OWN_CHANNEL, QUESTION, check_payload, digest

_SEALED = int(Kind.SEALED)
_NOTHING: tuple[Effect, ...] = ()
#: Hints to one address a second; a peer that restarted has that many sessions with one address at the most.
_HINTS_PER_SECOND_PER_ADDRESS = 2
#: Cookies that one address of an attempt answers.
_COOKIES_ANSWERED_MAX = 4
#: Answers of one address that are refused before nothing more is expected of it.
_ANSWERS_REFUSED_MAX = 4


class Sessions:
    """See the module. Every call returns what is to be done about it, in order."""

    def __init__(self, identity: DatagramIdentity, entropy: Entropy, settings: SessionSettings | None = None) -> None:
        self._identity = identity
        self._entropy = entropy
        self._settings = settings or SessionSettings()
        self._handshaker = Handshaker(identity, entropy)
        self._cookies = Cookies(entropy)
        self._rates = DatagramRates()
        self._hints = Gate(_HINTS_PER_SECOND_PER_ADDRESS, limits.NEAR_RATE_FACTOR)
        #: Every session.
        self.table = SessionTable(self._settings)
        #: Handshakes of ours.
        self._attempts = Attempts(
            self._handshaker.tag, entropy, self._settings, lambda index: index in self.table.by_index
        )
        #: When handshakes of ours, and first datagrams of sessions, are repeated.
        self._timers = Timers()
        #: Whether the keys of sessions work, and their peers are where they seem to be.
        self._questions = Questions(self.table, self._timers, entropy, self._settings)
        #: When ended sessions are looked for next; None while there are none at all.
        self._sweep_at: float | None = None
        #: Judges peers again after trust has changed.
        self._judge = Judge(self.table, identity.admit, self._settings)
        self._refusals = Refusals()
        self._count = self._refusals.count
        self._blame = self._refusals.blame
        self._refuse = self._refusals.refuse
        #: What was refused or lost, by reason (`Why`).
        self.counts: Mapping[str, int] = self._refusals.counts

    # --- sending --------------------------------------------------------------------------------------------------------

    def send(
        self, peer: PeerId, addresses: Sequence[Address], channel: int, payload: bytes, now: float
    ) -> Sequence[Effect]:
        """Send `payload` to `peer` on `channel` (1 to 255), after a handshake at one of `addresses` where there is no session.

        It may be lost, as any datagram. Raises UsageError where it is too large or the channel is none.
        """
        check_payload(channel, payload)
        entry = self.table.peers.get(peer)
        if entry is None:
            return self._send_later(peer, addresses, channel, payload, now)
        if entry.epoch != self.table.epoch:
            refused = self._drop_refused(entry, now)
            if refused is not None:
                return refused
        session = entry.best
        effects: list[Effect] = [session.seal(channel, payload, now)]
        self.table.peers.move_to_end(peer)
        if now >= session.refresh_at or session.sealer.counter >= self._settings.rekey_datagrams:
            effects += self._refresh(entry, addresses, now)
        elif session.unanswered_since is not None and now - session.unanswered_since >= self._settings.ask_s:
            effects += self._doubt(entry, addresses, now)
        return effects

    def greet(self, address: Address, now: float) -> Sequence[Effect]:
        """Begin a handshake with whoever listens at `address`. Raises UsageError where it is a name or nobody can be there."""
        if not can_be_sent_to(address):
            raise UsageError(
                f"no datagram can be sent to {address}: give a numeric address of one machine and its port"
            )
        if address in self._attempts.greetings:
            return _NOTHING
        attempt = self._attempts.begin(address, now)
        if attempt is None:
            return self._count(Why.BUSY)
        self._attempts.aim(attempt, (address,), now)
        return self._drive(attempt, now)

    def _send_later(
        self, peer: PeerId, addresses: Sequence[Address], channel: int, payload: bytes, now: float
    ) -> Sequence[Effect]:
        attempt = self._attempts.of_peer.get(peer)
        not_before = now
        if attempt is None:
            half_open = self.table.half_open_with(peer)
            if half_open is not None:
                # It has begun itself: its handshake is likely to be done before one of ours could be.
                addresses = (half_open.address, *addresses)
                not_before = max(now, half_open.since + self._settings.patience_s)
            if not any(can_be_sent_to(address) for address in addresses):
                return self._count(Why.NO_ADDRESS)
            attempt = self._attempts.begin(peer, now)
            if attempt is None:
                return self._count(Why.BUSY)
        if not attempt.hold(channel, payload, now):
            self._count(Why.HELD)
        self._attempts.aim(attempt, addresses, not_before)
        return self._drive(attempt, now)

    def _refresh(self, entry: Entry, addresses: Sequence[Address], now: float) -> Sequence[Effect]:
        """Begin a handshake for a further session with a peer that has one."""
        peer = entry.peer
        if peer in self._attempts.of_peer or now - entry.refreshed_at < self._settings.refresh_pause_s:
            return _NOTHING
        attempt = self._attempts.begin(peer, now)
        if attempt is None:
            return self._count(Why.BUSY)
        entry.refreshed_at = now
        self._attempts.aim(attempt, (entry.best.address, *addresses), now)
        return self._drive(attempt, now)

    def _doubt(self, entry: Entry, addresses: Sequence[Address], now: float) -> Sequence[Effect]:
        """Nothing has come back for a while: ask, then agree anew.

        Only the silence after the asking counts: traffic that goes one way, and an answer after which there was nothing more to
        say for minutes, wait for nothing.
        """
        session = entry.best
        if session.asked_at is None:
            session.asked_at = now
            return [session.seal(OWN_CHANNEL, QUESTION, now)]
        if now - session.asked_at >= self._settings.answer_s:
            return self._refresh(entry, addresses, now)
        return _NOTHING

    # --- handshakes of ours ---------------------------------------------------------------------------------------------

    def _drive(self, attempt: Attempt, now: float) -> Sequence[Effect]:
        late = attempt.give_up_late(now)
        if late:
            self._count(Why.LATE, late)
        effects: list[Effect] = [Transmit(data, address) for data, address in attempt.advance(now)]
        if not attempt.is_over:
            self._timers.arm(attempt)
            return effects
        self._attempts.end(attempt)
        self._count(Why.LATE, len(attempt.held))
        address = attempt.candidates[-1].address
        if attempt.candidates[-1].refused:
            return effects  # somebody did, and was refused with a reason of its own
        return effects + self._refuse(
            Why.UNANSWERED,
            address,
            LinkClosedError(f"nobody at {address} answered with datagrams of this network"),
            now,
        )

    def _cookie(self, said: Cookie, source: Address, now: float) -> Sequence[Effect]:
        attempt, candidate = self._attempts.by_index.get(said.receiver, (None, None))
        if attempt is None or candidate is None or candidate.stage not in (Stage.HELLO, Stage.PROOF):
            return self._blame(Why.STALE, source, now)
        is_known = candidate.stage is Stage.PROOF and candidate.cookie == said.cookie
        if is_known or candidate.cookies >= _COOKIES_ANSWERED_MAX or attempt.is_proving_elsewhere(candidate, now):
            return self._blame(Why.STALE, source, now)
        candidate.answered(now)
        generation = self.table.generation(attempt.expected) if attempt.expected is not None else 0
        proof = self._handshaker.prove(attempt.ephemeral, candidate.index, said.cookie, generation)
        attempt.prove(candidate, proof, said.cookie, now)
        return self._drive(attempt, now)

    def _accept(self, said: Accept, data: bytes, source: Address, now: float) -> Sequence[Effect]:
        attempt, candidate = self._attempts.by_index.get(said.receiver, (None, None))
        if attempt is None or candidate is None or candidate.stage is not Stage.PROOF:
            return self._blame(Why.STALE, source, now)
        candidate.answered(now)
        try:
            shown, keys = self._handshaker.judge_accept(
                said, data, candidate.datagram, attempt.ephemeral, self._identity.admit, attempt.expected
            )
        except PeerError as error:
            effects = self._refuse(Why.ADMISSION, source, error, now)
            candidate.refused += 1
            # Who wrote it and is not wanted will not change. Anything else may be a forgery, the true answer still under way.
            is_final = self._handshaker.is_genuine(said, candidate.datagram)
            if is_final or candidate.refused >= _ANSWERS_REFUSED_MAX:
                attempt.fail(candidate, now)
            return [*effects, *self._drive(attempt, now)]
        session = Session(
            index=candidate.index, remote=said.sender, keys=keys, initiated=True, generation=said.generation,
            own=self._identity.peer, shown=shown, address=candidate.address, now=now,
        )  # fmt: skip
        session.rtt_s = candidate.rtt_s
        self._attempts.end(attempt)
        effects = self._use(session, now)
        effects += self._send_held(attempt, session.peer, now)
        # Held payloads may have gone on another session: this one is confirmed in any case.
        return [*effects, *self._questions.confirm(session, now)]

    # --- handshakes of others -------------------------------------------------------------------------------------------

    def _hello(self, said: Hello, source: Address, now: float) -> Sequence[Effect]:
        cookie = self._cookies.bake(source, said.ephemeral, now)
        return [Transmit(write_cookie(self._handshaker.tag, said.sender, cookie), source)]

    def _proof(self, said: Proof, data: bytes, source: Address, now: float) -> Sequence[Effect]:
        if not self._cookies.holds(said.cookie, source, said.ephemeral, now):
            told = self._blame(Why.COOKIE, source, now)
            return [*told, *self._hello(Hello(said.sender, said.ephemeral), source, now)]
        proof_digest = digest(data)
        known = self.table.by_proof.get(proof_digest)
        if known is not None:
            if known.is_confirmed:
                return self._blame(Why.REPLAY, source, now)
            known.accept_repeated = True
            return [Transmit(known.accept, source)]
        if not self._rates.admits_handshake(source.host, now, is_known=self.table.is_at(source)):
            return self._refuse(Why.HANDSHAKES, source, BusyError(f"too many handshakes from {source.host}"), now)
        try:
            shown = self._handshaker.judge_proof(said, self._identity.admit)
            newest = max(said.generation, self.table.generation(shown.admission.peer))
            index, generation = self._attempts.draw_index(), min(newest + 1, GENERATION_MAX)
            accept, keys = self._handshaker.accept(said, proof_digest, index, generation)
        except PeerError as error:
            return self._refuse(Why.ADMISSION, source, error, now)
        session = Session(
            index=index, remote=said.sender, keys=keys, initiated=False, generation=generation, own=self._identity.peer,
            shown=shown, address=source, now=now,
        )  # fmt: skip
        session.proof_digest = proof_digest
        session.accept = accept
        self.table.add_half_open(session)
        self._look_after_sessions(now)
        return [Transmit(accept, source)]

    # --- sessions -------------------------------------------------------------------------------------------------------

    def _use(self, session: Session, now: float) -> list[Effect]:
        """A session is up: send on the best one from now on, and what has waited for one."""
        peer = session.peer
        session.refresh_at = (
            session.since + self._settings.rekey_s + (0 if session.initiated else self._settings.rekey_s / 60)
        )
        self._count(Why.EVICTED, len(self.table.add(session)))
        self._look_after_sessions(now)
        effects: list[Effect] = [SessionUp(peer, session.address, session.shown.admission)]
        attempt = self._attempts.of_peer.get(peer)
        if attempt is not None:
            self._attempts.end(attempt)
            effects += self._send_held(attempt, peer, now)
        return effects

    def _send_held(self, attempt: Attempt, peer: PeerId, now: float) -> list[Effect]:
        best = self.table.peers[peer].best
        return [best.seal(channel, payload, now) for _, channel, payload in attempt.held]

    def _sealed(self, data: bytes, source: Address, now: float) -> Sequence[Effect]:
        if len(data) < SEALED_BYTES_MIN:
            return self._blame(Why.SIZE, source, now)
        _, index, counter = SEALED_HEAD.unpack_from(data)
        session = self.table.by_index.get(index)
        if session is None:
            return self._sealed_for_nobody(index, counter, source, now)
        is_elsewhere = source is not session.address and source != session.address
        if is_elsewhere and not self._rates.admits_strange(source.host, now):
            return self._blame(Why.RATE, source, now)
        opener = session.opener
        if not opener.is_fresh(counter):
            session.replayed += 1
            return self._blame(Why.REPLAY, source, now)
        newest = opener.newest
        plain = opener.open(data, counter)
        if plain is None:
            session.unsealed += 1
            return self._blame(Why.SEAL, source, now)
        session.heard_at = now
        session.unanswered_since = None
        session.asked_at = None
        session.bytes_in += len(data)
        entry = session.entry
        effects: list[Effect] = []
        if entry is None or not session.is_confirmed:
            effects += self._first_opened(session, now)
            entry = self.table.peers[session.peer]
        if entry.epoch != self.table.epoch:
            refused = self._drop_refused(entry, now)
            if refused is not None:
                return refused
        self.table.peers.move_to_end(entry.peer)
        if not entry.rate.take(now):
            return effects + self._refuse(Why.RATE, source, BusyError(f"too many datagrams from {source.host}"), now)
        if is_elsewhere:
            effects += self._questions.heard_elsewhere(session, source, len(data), counter > newest, now)
        elif counter > newest:
            session.trial = None  # it speaks from where it was
        channel = plain[0]
        if channel != OWN_CHANNEL:
            effects.append(Delivered(entry.peer, channel, plain[1:], session.address))
        else:
            effects += self._questions.heard_own(session, plain[1:], source)
        return effects

    def _first_opened(self, session: Session, now: float) -> list[Effect]:
        session.is_confirmed = True
        session.due, session.armed_at = float("inf"), None
        if session.initiated:
            return []
        if not session.accept_repeated:
            session.rtt_s = now - session.since
        session.accept = b""
        session.since = now
        return self._use(session, now)

    def _sealed_for_nobody(self, index: int, counter: int, source: Address, now: float) -> Sequence[Effect]:
        told = self._blame(Why.UNKNOWN, source, now)
        if not self._rates.admits_strange(source.host, now) or not self._hints.admits(source.host, now):
            self._count(Why.RATE)
            return told
        return [*told, Transmit(write_unknown(self._handshaker.tag, index, counter), source)]

    def _unknown(self, said: Unknown, source: Address, now: float) -> Sequence[Effect]:
        session = self.table.by_remote.get((said.receiver, source))
        if session is None or session.entry is None:
            return self._blame(Why.STALE, source, now)
        sent = session.sealer.counter
        if not sent - limits.REPLAY_WINDOW <= said.counter < sent or session.entry.best is not session:
            return self._blame(Why.STALE, source, now)
        return self._refresh(session.entry, (), now)

    def drop(self, peer: PeerId) -> None:
        """Forget `peer`: its sessions, and handshakes with it. A later handshake of a revoked peer is refused by its admission."""
        self.table.remove_peer(peer)
        attempt = self._attempts.of_peer.get(peer)
        if attempt is not None:
            self._attempts.end(attempt)

    def session(self, peer: PeerId) -> SessionInfo | None:
        """The session in use with `peer`."""
        entry = self.table.peers.get(peer)
        return None if entry is None else entry.best.info()

    # --- trust ----------------------------------------------------------------------------------------------------------

    def recheck(self, admit: Admit, now: float) -> None:
        """Trust has changed: judge every peer again with `admit`, whoever is used at once, the others a few at a time."""
        self._judge.begin(admit, now)

    def _drop_refused(self, entry: Entry, now: float) -> Sequence[Effect] | None:
        """None where `entry` still holds; else its peer is dropped, and this is to be done."""
        error = self._judge.objection(entry)
        if error is None:
            return None
        address = entry.best.address
        self.drop(entry.peer)
        return self._refuse(Why.ADMISSION, address, error, now)

    # --- the way in -----------------------------------------------------------------------------------------------------

    def receive(self, data: bytes, source: Address, now: float) -> Sequence[Effect]:
        """A datagram came from `source`. Nothing that it holds raises an error."""
        if not DATAGRAM_BYTES_MIN <= len(data) <= limits.DATAGRAM_BYTES_MAX:
            return self._blame(Why.SIZE, source, now)
        if not self._rates.admits(source.host, now):
            return self._refuse(Why.RATE, source, BusyError(f"too many datagrams from {source.host}"), now)
        if data[0] == _SEALED:
            return self._sealed(data, source, now)
        if data[2 : 2 + TAG_BYTES] != self._handshaker.tag:
            return self._blame(Why.FOREIGN, source, now)
        if data[1] != VERSION:
            return self._blame(Why.VERSION, source, now)
        try:
            said = decode_handshake(data)
        except PeerError:
            return self._blame(Why.MALFORMED, source, now)
        if not self._is_expected(said, source) and not self._rates.admits_strange(source.host, now):
            return self._blame(Why.RATE, source, now)
        match said:
            case Hello():
                return self._hello(said, source, now)
            case Cookie():
                return self._cookie(said, source, now)
            case Proof():
                return self._proof(said, data, source, now)
            case Accept():
                return self._accept(said, data, source, now)
            case Unknown():
                return self._unknown(said, source, now)

    def _is_expected(self, said: Hello | Cookie | Proof | Accept | Unknown, source: Address) -> bool:
        """Whether it comes from where a peer is, or from where an answer to `said`'s receiver is awaited."""
        if isinstance(said, Cookie | Accept):
            _, candidate = self._attempts.by_index.get(said.receiver, (None, None))
            return candidate is not None and candidate.address == source
        return self.table.is_at(source)

    # --- time -----------------------------------------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """When `tick` wants to be called next; it may find nothing to do then."""
        soonest = self._timers.soonest
        for other in (self._sweep_at, self._judge.due):
            if other is not None and (soonest is None or other < soonest):
                soonest = other
        return soonest

    def tick(self, now: float, now_wall: float) -> Sequence[Effect]:
        """Repeat what was not answered, forget what has ended, and whose membership has. `now_wall`: seconds since 1970."""
        effects: list[Effect] = []
        for owner in self._timers.expired(now):
            if isinstance(owner, Attempt):
                effects += self._drive(owner, now)
            elif self.table.by_index.get(owner.index) is owner:
                effects += self._questions.again(owner, now)
        if self._judge.due is not None and now >= self._judge.due:
            for entry in self._judge.next_few(now):
                effects += self._drop_refused(entry, now) or ()
        if self._sweep_at is not None and now >= self._sweep_at:
            self.table.expire(now)
            self._judge.doubt_ended(now, now_wall)
            self._sweep_at = now + self._settings.sweep_s if self.table.by_index else None
        return effects

    def _look_after_sessions(self, now: float) -> None:
        if self._sweep_at is None:
            self._sweep_at = now + self._settings.sweep_s

    def check_invariants(self) -> None:
        """Raise AssertionError where the tables disagree. For tests."""
        self.table.check_invariants()
        self._attempts.check_invariants()
