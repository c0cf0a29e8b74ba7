"""The failure detector: whom this peer suspects, and whom it believes dead (SWIM with Lifeguard, every accusation signed).

Rules:

- A probe that failed suspects its peer, and this peer says so, signed, while fewer than enough others do. Who is probed only
  because others accuse it is not suspect before the own probe failed, too: false accusations change nothing here.
- A suspect that says anything itself, answers a probe, or signs a record with a higher incarnation, is alive. The suspect is
  shown the accusation with the next probe, and refutes it.
- A suspect whose time is up (`suspicion.py`) is dead; one of the first version not while a link to it is up over which
  something came within `limits.LINK_SILENCE_MAX_S`; a peer that never answered this one, only if enough others accuse it.
- This peer accuses nobody who was out of its reach from the start: peers behind NAT are judged by those that can reach them. Whom
  it has never heard itself, it gives up without a word to others: who invents peers would else have everybody accuse them.
- Who says that a dead peer lives makes this one probe it again.
- Who accuses too often is not heard, who is contradicted by own probes again and again is ignored and reported.

Refuses to know: sockets, how rumours travel, peers of the first protocol version but for the case against them (`hearsay.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from p2pcompute.membership.agenda import Agenda
from p2pcompute.membership.book_events import Misbehaved, PeerSuspected
from p2pcompute.membership.common import Common
from p2pcompute.membership.machine import earliest
from p2pcompute.membership.prober import Prober
from p2pcompute.membership.probing import Probe, Stage
from p2pcompute.membership.raising import Raising
from p2pcompute.membership.suspicion import Accusers, Case, confirmations_wanted, suspicion_min_s, suspicion_s
from p2pcompute.membership.table import GONE, Row
from p2pcompute.membership.voice import Voice
from p2pcompute.model import limits
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import PeerStatus, Reach
from p2pcompute.wire.gossip import Rumours, Suspicion, sign_suspicion

#: Checks of a suspect are spread over this share of the least time that it has: enough are left to repeat one that was lost.
_CHECK_SHARE = 0.25
#: After an own probe has failed a suspect has at least this share of the least time.
_LAST_CALL_SHARE = 0.5
#: Accusations that were refuted, of a peer that has not answered since, after which this peer is no judge of it.
_REFUTED_MAX = 3
#: Dead peers that others say are alive are probed one in so many seconds.
_REVIVE_GAP_S = 0.05
#: After so many seconds in which it was in time this peer takes an accusation of itself for wrong.
_LAG_FORGOTTEN_S = 10.0
#: What a peer said before it left arrives within so many seconds.
_FAREWELL_S = 10.0
#: Accusers of this peer that are sent its refutation themselves.
_REFUTED_TO_MAX = 8


class Pulls(Protocol):
    """What the detector asks about records that are under way."""

    def is_wanted(self, peer: PeerId) -> bool:
        """Whether a newer record of `peer` is announced and asked for."""


class Detector:
    """See the module. `ask`: makes an inquiry about a peer of the first version."""

    def __init__(
        self, common: Common, voice: Voice, raising: Raising, pulls: Pulls, ask: Callable[[Row, float], None]
    ) -> None:
        self._common = common
        self._voice = voice
        self._raising = raising
        self._pulls = pulls
        self._ask = ask
        #: Probes.
        self.prober = Prober(common, voice, self)
        #: Cases by suspect.
        self._cases: dict[PeerId, Case] = {}
        #: When the time of each suspect is up.
        self._verdicts: Agenda[PeerId] = Agenda()
        #: When peers are probed out of turn.
        self._checks: Agenda[PeerId] = Agenda()
        #: Who accuses how well.
        self._accusers = Accusers()
        #: When each dead peer that is said to be alive was last probed; of dead peers only.
        self._revived_at: dict[PeerId, float] = {}
        #: No dead peer is probed before this.
        self._revive_from = 0.0
        #: When this peer last came late, monotonic seconds.
        self._lagged_at = -_LAG_FORGOTTEN_S
        #: Who accused this peer since its last record; at most `_REFUTED_TO_MAX`.
        self.accused_by: dict[PeerId, None] = {}

    # --- signs of life ------------------------------------------------------------------------------------------------

    def heard(self, row: Row, now: float) -> None:
        """The peer itself said something just now."""
        is_first = row.heard_at is None
        row.heard_at = now
        if is_first:
            self._common.table.changed(row)
            self._common.table.touch(row)
        if not row.signed.record.leaving:
            self._lives(row, now)

    def answered(self, row: Row, probe: Probe, now: float, *, is_direct: bool) -> None:
        """A probe of the peer was answered."""
        case = self._cases.get(row.peer)
        if is_direct:
            # Through others it may be reached by luck, and the next time not.
            row.answered_at, row.refuted = now, 0
        if case is not None and is_direct and probe.stage is Stage.DIRECT and probe.sent_at >= case.opened_at:
            # It answers at once: who says that it does not is wrong, or was for a moment.
            for accuser in case.accusers.values():
                self._contradicted(accuser, now)
        self.heard(row, now)

    def record_renewed(self, row: Row, incarnation: int, now: float) -> None:
        """The peer signed a record with a higher incarnation than `incarnation`, the one before."""
        case = self._cases.get(row.peer)
        if case is not None and case.incarnation < row.signed.record.incarnation:
            if self._common.own.peer in case.accusers.values() or row.answered_at is None:
                row.refuted += 1
            self._lives(row, now)

    def _lives(self, row: Row, now: float) -> None:
        case = self._cases.get(row.peer)
        if case is not None and case.incarnation == row.signed.record.incarnation and row.gossips:
            wire = None if case.is_shown else case.evidence
            if wire is not None:
                # Others may not hear it, and wait for what it says about that.
                self._voice.send(row.peer, Rumours((wire,)), self._voice.way(row.peer, now))
        self._close(row.peer)
        if row.status is PeerStatus.DEAD:
            # Who believes it dead, too, will probe it.
            self._voice.announce(row.signed.record)
        # Who said goodbye on its link and has signed no farewell may be back; what it said just before may still arrive.
        is_back = row.status is PeerStatus.LEFT and now - row.since >= _FAREWELL_S
        if row.status in (PeerStatus.DEAD, PeerStatus.SUSPECT) or is_back:
            self._common.table.set_alive(row, now, self._common.effects)

    def says_alive(self, row: Row, now: float) -> None:
        """Somebody says that the peer, which is dead here, lives, and shows nothing new of it: probe it, now and then."""
        last_at = self._revived_at.get(row.peer)
        settings = self._common.settings
        if not row.gossips or (last_at is not None and now - last_at < settings.revive_interval_s):
            return
        self._revived_at[row.peer] = now
        self._revive_from = max(self._revive_from, now) + _REVIVE_GAP_S
        self._checks.set(row.peer, self._revive_from)

    # --- signs of death -----------------------------------------------------------------------------------------------

    def link_lost(self, row: Row, now: float) -> None:
        """The link to the peer broke: probe it now, not when it has its turn."""
        self.prober.forget(row.peer)
        self.prober.probe(row, now, is_check=True)

    def check(self, row: Row, now: float) -> None:
        """Somebody wants to know whether the peer is there."""
        self.prober.probe(row, now, is_check=True)

    def failed(self, row: Row, probe: Probe, now: float) -> None:
        """A probe of the peer was answered by nobody."""
        if row.status in GONE:
            return
        case = self._cases.get(row.peer)
        is_judge = self._is_judge(row, now)
        if case is None and not is_judge:
            return
        self._own_failed(row, self._open(row, now) if case is None else case, now, is_judge=is_judge)

    def denied(self, row: Row, now: float) -> None:
        """Nobody linked hears the peer, which is of the first version and accused."""
        case = self._cases.get(row.peer)
        if case is not None and row.status not in GONE:
            self._own_failed(row, case, now, is_judge=False)

    def concluded(self, row: Row) -> None:
        """This peer found the peer, of the first version, dead by asking around: say so to those that gossip."""
        if self._common.table.gossips:
            self._accuse(row)

    def _is_judge(self, row: Row, now: float) -> bool:
        if row.refuted >= _REFUTED_MAX:
            return False
        if row.answered_at is not None:
            return True
        # It never answered: perhaps it cannot be reached from here, and lives.
        return row.refuted == 0 and row.signed.record.reach is not Reach.PRIVATE and self._voice.datagrams_work(now)

    def _own_failed(self, row: Row, case: Case, now: float, *, is_judge: bool) -> None:
        own = self._common.own.peer
        if not case.own_failed:
            case.own_failed, case.own_failed_at = True, now
            for accuser in case.accusers.values():
                self._accusers.was_right(accuser, now)
            first = next(iter(case.accusers.values()), own)
            self._common.table.set_suspect(row, now)
            self._common.effects.append(PeerSuspected(row.peer, first))
        # It may have become one since the first probe that failed.
        if is_judge and own not in case.accusers.values():
            if row.is_met and len(case.accusers) <= self._wanted():
                case.evidence = self._accuse(row) or case.evidence
            case.accuse(own, own)
        self._appoint(row.peer, case, now)
        self._check_later(row.peer, now)

    def _accuse(self, row: Row) -> bytes | None:
        if self._common.signer is None:
            return None
        wire = sign_suspicion(row.peer, row.signed.record.incarnation, self._common.signer)
        self._voice.tell(_subject(row.peer, self._common.own.peer), wire)
        return wire

    # --- accusations of others ----------------------------------------------------------------------------------------

    def accused(self, said: Suspicion, wire: bytes, now: float) -> None:
        """A signed accusation was heard, for the first time."""
        accuser = self._common.table.rows.get(said.accuser)
        if accuser is None or accuser.status in GONE or said.accuser in self._common.banned:
            return
        if not self._accusers.may_accuse(said.accuser, now):
            return
        if said.suspect == self._common.own.peer:
            self._self_accused(said, now)
            return
        row = self._common.table.rows.get(said.suspect)
        if row is None or row.status in GONE or said.incarnation < row.signed.record.incarnation:
            return
        if row.linked and not row.gossips:
            return
        case = self._cases.get(row.peer)
        if said.incarnation == row.signed.record.incarnation:
            case = self._open(row, now) if case is None else case
            voices = len(case.accusers)
            if case.accuse(said.accuser, accuser.invitation or said.accuser):
                case.evidence = wire
                self._appoint(row.peer, case, now)
                if voices <= self._wanted():
                    self._voice.tell(_subject(said.suspect, said.accuser), wire)
        # A later life than the one that is known here may be down as well; whose record is not here is only probed.
        if case is None or not case.own_failed:
            self._check_soon(row, now)

    def _self_accused(self, said: Suspicion, now: float) -> None:
        if said.incarnation != self._common.own.incarnation or self._common.own.leaving:
            return
        # Who is short of CPU time is rightly accused. Who is not may count how often the same peer is wrong.
        if now - self._lagged_at > _LAG_FORGOTTEN_S:
            self._contradicted(said.accuser, now)
        self._common.awareness.add(1)
        if len(self.accused_by) < _REFUTED_TO_MAX:
            self.accused_by[said.accuser] = None
        self._raising.refute()

    def _contradicted(self, accuser: PeerId, now: float) -> None:
        if accuser != self._common.own.peer and self._accusers.was_wrong(accuser, now):
            reason = "it accuses peers that answer, again and again; its accusations are ignored for now"
            self._common.effects.append(Misbehaved(accuser, reason))

    def _check_soon(self, row: Row, now: float) -> None:
        if not row.gossips:
            if row.inquiry is None:
                self._ask(row, now)
        elif self._checks.at(row.peer) is None and not self.prober.is_probing(row.peer):
            self._checks.set(row.peer, now + self._common.rng.uniform(0.0, _CHECK_SHARE * self._min_s()))

    def _check_later(self, peer: PeerId, now: float) -> None:
        row = self._common.gossip_row(peer)
        if row is not None and self._checks.at(peer) is None:
            self._checks.set(peer, now + self._common.rng.uniform(0.5, 1.5) * _CHECK_SHARE * self._min_s())

    # --- cases --------------------------------------------------------------------------------------------------------

    def show_evidence(self, peer: PeerId) -> bytes | None:
        """The newest accusation of `peer`, which is sent to itself now."""
        case = self._cases.get(peer)
        if case is None or case.evidence is None:
            return None
        case.is_shown = True
        return case.evidence

    def _open(self, row: Row, now: float) -> Case:
        case = self._cases[row.peer] = Case(now, row.signed.record.incarnation)
        self._appoint(row.peer, case, now)
        return case

    def _close(self, peer: PeerId) -> None:
        case = self._cases.pop(peer, None)
        if case is not None:
            self._verdicts.set(peer, None)
            for accuser in case.accusers.values():
                self._voice.queue.remove(_subject(peer, accuser))
        self._checks.set(peer, None)

    def _wanted(self) -> int:
        return confirmations_wanted(self._common.settings.suspicion_confirmations, self._common.peers)

    def _min_s(self) -> float:
        settings = self._common.settings
        return suspicion_min_s(settings.suspicion_mult, self._common.peers, settings.probe_interval_s)

    def _appoint(self, peer: PeerId, case: Case, now: float) -> None:
        self._verdicts.set(peer, self._verdict_at(case, now))

    def _verdict_at(self, case: Case, now: float) -> float:
        min_s = self._min_s()
        max_s = min_s * self._common.settings.suspicion_max_mult
        given_s = suspicion_s(case.confirmations, self._wanted(), min_s, max_s)
        if now - self._lagged_at <= _LAG_FORGOTTEN_S:
            # Who lacks CPU time asks more rarely and hears late: it gives others more time, too.
            given_s *= 1 + self._common.awareness.score / 2
        verdict_at = case.opened_at + given_s
        # Whose own probe took long has to probe once more: meanwhile the suspect may have spoken up.
        return max(verdict_at, case.own_failed_at + _LAST_CALL_SHARE * min_s) if case.own_failed else verdict_at

    def _time_is_up(self, peer: PeerId, now: float) -> None:
        row, case = self._common.table.rows[peer], self._cases[peer]
        interval_s = self._common.settings.probe_interval_s
        if not case.own_failed:
            if not row.gossips and row.inquiry is None:
                self._close(peer)  # somebody heard it
                return
            if row.gossips:
                self.prober.probe(row, now, is_check=True)
            ends_at = self.prober.ends_at(peer) if row.gossips else row.inquiry and row.inquiry.until
            self._verdicts.set(peer, max(ends_at or now, now) + interval_s)
            return
        until = max(self._verdict_at(case, now), self._vouched_until(row, case, now))
        if until > now:
            self._verdicts.set(peer, until)
        elif not self._is_enough(row, case):
            # Nobody who could know says so: it is as alive as before.
            self._close(peer)
            self._common.table.set_alive(row, now, self._common.effects)
        else:
            self.gone(row)
            self._common.table.set_dead(row, now, _reason(case), self._common.effects)

    def _vouched_until(self, row: Row, case: Case, now: float) -> float:
        """Until when the verdict waits although the time is up."""
        until = now
        heard_at = self._common.links.get(row.peer)
        if heard_at is not None and not row.gossips:
            # A peer of the first version says nothing on its link but heartbeats. One that gossips was probed over it, too.
            until = heard_at + limits.LINK_SILENCE_MAX_S
        # A newer record is announced: perhaps it refutes. Who only announces cannot hold a verdict up for ever.
        settings = self._common.settings
        latest = case.opened_at + self._min_s() * settings.suspicion_max_mult
        if self._pulls.is_wanted(row.peer) and now < latest:
            until = max(until, now + settings.want_patience_s)
        return until

    def _is_enough(self, row: Row, case: Case) -> bool:
        if self._common.own.peer in case.accusers.values():
            return True
        record = row.signed.record
        near = {edge.peer for edge in record.edges} | {relay.peer for relay in record.relays}
        # Who is linked to it, as it says itself, knows best, and there may be only two of them.
        confirmations = case.confirmations + sum(accuser in near for accuser in case.accusers.values())
        # Of the first version two are enough: few that gossip know it.
        return confirmations >= (self._wanted() if row.gossips else 1)

    # --- time ---------------------------------------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """When something is due."""
        return earliest(self.prober.deadline(), self._verdicts.earliest(), self._checks.earliest())

    def due(self, now: float) -> None:
        """Do what is due."""
        self.prober.due(now)
        while (peer := self._checks.pop(now)) is not None:
            row = self._common.gossip_row(peer)
            if row is not None and row.status is not PeerStatus.LEFT:
                self.prober.probe(row, now, is_check=True)
        while (peer := self._verdicts.pop(now)) is not None:
            self._time_is_up(peer, now)

    def lagged(self, lag_s: float, now: float) -> None:
        """This peer came late: no verdict before what it missed has been read."""
        self._lagged_at = now
        self.prober.lagged(lag_s, now)
        settings = self._common.settings
        latest = self._min_s() * settings.suspicion_max_mult
        for peer, case in self._cases.items():
            at = self._verdicts.at(peer)
            if at is not None and at <= now < case.opened_at + latest:
                self._verdicts.set(peer, now + 2 * settings.probe_interval_s)

    def woke(self, slept_s: float, now: float) -> None:
        """This machine slept: every suspect has its time anew."""
        self.prober.woke(now)
        for peer, case in self._cases.items():
            case.opened_at = case.own_failed_at = now
            self._appoint(peer, case, now)
        self._checks.postpone(slept_s)

    def forget(self, peer: PeerId) -> None:
        """`peer` is gone from the book, or does not gossip any more."""
        self._close(peer)
        self.prober.forget(peer)
        self.prober.coordinates.forget(peer)
        self._accusers.forget(peer)
        self._revived_at.pop(peer, None)

    def gone(self, row: Row) -> None:
        """The peer is dead or has left, for another reason than a verdict of this detector."""
        self._close(row.peer)
        self.prober.forget(row.peer)

    def has_case(self, peer: PeerId) -> bool:
        """Whether something is held against `peer`."""
        return peer in self._cases

    def check_invariants(self) -> None:
        """Raises AssertionError where the state contradicts its own rules."""
        self.prober.check_invariants()
        assert set(self._verdicts.keys) == set(self._cases)
        assert len(self.accused_by) <= _REFUTED_TO_MAX
        for peer, case in self._cases.items():
            row = self._common.table.rows[peer]
            assert row.status not in GONE
            assert case.own_failed == (row.status is PeerStatus.SUSPECT) or row.inquiry is not None
            assert len(set(case.accusers.values())) == len(case.accusers)
        for peer in self._checks.keys:
            assert peer in self._common.table.rows
        for peer in self._revived_at:
            assert peer in self._common.table.rows


def _subject(suspect: PeerId, accuser: PeerId) -> tuple[str, PeerId, PeerId]:
    return ("suspicion", suspect, accuser)


def _reason(case: Case) -> str:
    others = len(case.accusers) - 1
    voices = (
        "nobody else was heard to accuse it"
        if others <= 0
        else f"{others} other{'s' * (others > 1)} could not reach it"
    )
    return f"it answered neither directly nor through others and did not speak up in time; {voices}"
