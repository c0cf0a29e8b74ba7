"""What the two ends of a session ask each other about it: whether the keys work, and whether a peer is where its datagrams come from.

Anybody who can write a false source may put somebody else's address over a datagram of his own, or of a peer's whose datagrams he
sees: what is sealed says who speaks, never from where. So an address is tried first, as QUIC does it (RFC 9000, 8.2 and 9.3): it is
sent a question with a token that only who is there can know, and meanwhile at most three times what came from there. A newer
datagram from where the peer was ends a trial. Refuses to know: handshakes, seals that do not open, rates.
"""

from __future__ import annotations

from collections.abc import Sequence

from p2pcompute.model.peer import Address
from p2pcompute.model.seams import Entropy
from p2pcompute.net.attempts import Timers
from p2pcompute.net.session_events import SessionSettings, Transmit
from p2pcompute.net.session_table import Session, SessionTable, Trial
from p2pcompute.wire.session import ANSWER, OWN_CHANNEL, QUESTION

#: Of a token: nobody guesses one of 2^64 within the seconds of a trial.
TOKEN_BYTES = 8


class Questions:
    """See the module. Calls return what is to be sent."""

    def __init__(self, table: SessionTable, timers: Timers, entropy: Entropy, settings: SessionSettings) -> None:
        self._table = table
        #: When questions are asked again.
        self._timers = timers
        self._entropy = entropy
        self._settings = settings

    def heard_elsewhere(
        self, session: Session, source: Address, size_bytes: int, is_newest: bool, now: float
    ) -> Sequence[Transmit]:
        """A datagram of `session` came from `source`, where its peer has not shown to be; `is_newest`: nothing newer has come yet."""
        trial = session.trial
        is_tried = trial is not None and trial.address == source
        if trial is not None and is_tried and (not trial.is_over or now - trial.since < self._settings.trial_s):
            trial.heard(size_bytes)
            return ()
        if not is_newest:
            return ()  # a late one, sent before the peer came to where it is
        token = self._entropy.bytes(TOKEN_BYTES)
        trial = session.trial = Trial(source, token, self._settings.tries_max, now)
        trial.heard(size_bytes)
        return self._ask_there(session, trial, now)

    def again(self, session: Session, now: float) -> Sequence[Transmit]:
        """A question that `session` was armed for is due again, unless it was answered."""
        if session.trial is not None and not session.trial.is_over:
            return self._ask_there(session, session.trial, now)
        return self.confirm(session, now)

    def confirm(self, session: Session, now: float) -> Sequence[Transmit]:
        """Say that our keys work, and again after growing pauses until something opens."""
        if session.is_confirmed or session.tries >= self._settings.tries_max:
            session.due, session.armed_at = float("inf"), None
            return ()
        session.due = now + self._settings.retry_s * 2**session.tries
        session.tries += 1
        self._timers.arm(session)
        return (session.seal(OWN_CHANNEL, QUESTION, now),)

    def _ask_there(self, session: Session, trial: Trial, now: float) -> Sequence[Transmit]:
        """Ask the peer of `session` whether it is where it is tried."""
        session.due = now + self._settings.retry_s * 2**trial.tries
        self._timers.arm(session)
        trial.tries += 1
        question = session.sealer.seal(OWN_CHANNEL, QUESTION + trial.token)
        if not trial.takes(len(question)):
            return ()  # more may come from there until the next time
        session.bytes_out += len(question)
        return (Transmit(question, trial.address),)

    def heard_own(self, session: Session, said: bytes, source: Address) -> Sequence[Transmit]:
        """The peer of `session` said something about the session itself."""
        trial = session.trial
        if said.startswith(QUESTION):
            # To where the question came from, and no longer than it: whoever asks may be trying that very way.
            answer = session.sealer.seal(OWN_CHANNEL, ANSWER + said[len(QUESTION) :][:TOKEN_BYTES])
            session.bytes_out += len(answer)
            return (Transmit(answer, source),)
        if trial is not None and source == trial.address and said == ANSWER + trial.token:
            self._table.move(session, source)
            session.trial = None
        return ()
