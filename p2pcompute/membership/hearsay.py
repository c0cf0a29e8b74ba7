"""Peers of the first protocol version, which do not gossip: records pushed over links, and questions about suspects.

Such a peer with a link is alive. A link lost without a goodbye makes a suspect: linked peers are asked, and the peer is dead when
none of them hears it; at once where there is nobody to ask. Alive by hearsay after that, it is asked about again until it is linked or
dead. One that never had a link here lives as long as its record is renewed.

For their sake questions about any peer are answered, also about one that gossips and was probed meanwhile. A peer that does not
gossip itself treats all others by these rules.
"""

from __future__ import annotations

from collections.abc import Callable

from p2pcompute.membership.book_events import AnswerSuspect, AskSuspect, SuspectAnswered, SuspectAsked
from p2pcompute.membership.common import Common
from p2pcompute.membership.machine import earliest
from p2pcompute.membership.spreading import Spreading
from p2pcompute.membership.suspicion import Inquiry, Verdict
from p2pcompute.membership.table import GONE, Row
from p2pcompute.model import limits
from p2pcompute.model.ids import PeerId

#: Told when an inquiry has found nobody who hears its peer.
Concluded = Callable[[Row, float], None]


class Hearsay:
    """See the module. `denied`: an inquiry about an accused peer; `died`: one about a peer whose link was lost."""

    def __init__(self, common: Common, spreading: Spreading, denied: Concluded, died: Concluded) -> None:
        self._common = common
        self._spreading = spreading
        self._denied = denied
        self._died = died
        #: Answers that are held back, by (who asked, about whom): when they are due.
        self._held: dict[tuple[PeerId, PeerId], float] = {}
        #: Peers that are asked about, and some that were until lately.
        self._asked_about: dict[PeerId, None] = {}
        #: Peers that are asked about and may have nobody left to wait for.
        self._bereft: dict[PeerId, None] = {}
        #: When one link is told what it may have missed; None while no link is pushed to.
        self._repair_at: float | None = None
        #: The link that was told last; at first this peer itself.
        self._repaired: PeerId = common.own.peer

    # --- links --------------------------------------------------------------------------------------------------------

    def link_lost(self, peer: PeerId) -> None:
        """There is no link to `peer` any more: it answers nothing and is answered nothing; who asked about it is, at once."""
        held, self._held = self._held, {}
        for (source, suspect), at in held.items():
            if suspect == peer:
                self._common.effects.append(AnswerSuspect(source, suspect, None))
            elif source != peer:
                self._held[source, suspect] = at
        for suspect in list(self._asked_about):
            row = self._common.table.rows.get(suspect)
            if row is None or row.inquiry is None:
                del self._asked_about[suspect]
            elif peer in row.inquiry.open:
                row.inquiry.open.discard(peer)
                self._bereft[suspect] = None

    def forget(self, peer: PeerId) -> None:
        """Nothing is asked or answered about `peer` any more."""
        self._asked_about.pop(peer, None)
        self._held = {key: at for key, at in self._held.items() if peer not in key}

    # --- questions ----------------------------------------------------------------------------------------------------

    def suspect(self, row: Row, now: float) -> None:
        """The link to the peer broke without a word."""
        self._common.table.set_suspect(row, now)
        self.inquire(row, now)

    def inquire(self, row: Row, now: float, *, is_check: bool = False) -> None:
        """Ask all linked peers whether they hear the peer; `is_check`: because others accuse it."""
        asked = tuple(other for other in sorted(self._common.links) if other != row.peer)
        row.recheck_at = None
        row.inquiry = Inquiry(now + self._common.settings.suspect_s, set(asked), is_check=is_check)
        self._asked_about[row.peer] = None
        self._common.table.touch(row)
        if asked:
            self._common.effects.append(AskSuspect(asked, row.peer))
        else:
            self._conclude(row, now)

    def answered(self, event: SuspectAnswered, now: float) -> None:
        """A linked peer says when it heard a suspect."""
        row = self._common.table.rows.get(event.peer)
        if row is not None and row.inquiry is not None:
            row.inquiry.answer(event.source, event.heard_s, self._common.settings.heard_max_s)
            self._conclude(row, now)

    def _conclude(self, row: Row, now: float) -> None:
        assert row.inquiry is not None, "only what is asked about is concluded"
        verdict, is_check = row.inquiry.verdict(now), row.inquiry.is_check
        common = self._common
        if verdict is Verdict.ALIVE:
            common.table.set_alive(row, now, common.effects)
            row.renewed_at = now
            row.recheck_at = now + common.settings.recheck_s
            common.table.touch(row)
        elif verdict is Verdict.DEAD and is_check:
            row.inquiry = None
            common.table.touch(row)
            self._denied(row, now)
        elif verdict is Verdict.DEAD:
            common.table.set_dead(row, now, "its link was lost and nobody hears it", common.effects)
            self._died(row, now)

    # --- answers ------------------------------------------------------------------------------------------------------

    def asked(self, event: SuspectAsked, now: float) -> bool:
        """A linked peer asks; whether it is about a peer that gossips and should be probed, to have an answer when it is due."""
        common, key = self._common, (event.source, event.peer)
        if event.peer == common.own.peer:
            common.effects.append(AnswerSuspect(*key, 0.0))
            return False
        is_gossiping = common.gossip_row(event.peer) is not None
        if event.peer not in common.links and not is_gossiping:
            common.effects.append(AnswerSuspect(*key, None))
            return False
        if len(self._held) < limits.ANSWERS_HELD_MAX:
            self._held.setdefault(key, now + common.settings.hold_answer_s)
        return is_gossiping

    def _heard_s(self, peer: PeerId, now: float) -> float | None:
        heard_at = self._common.links.get(peer)
        if heard_at is not None:
            return min(now - heard_at, limits.LINK_SILENCE_MAX_S)
        row = self._common.gossip_row(peer)
        hold_s = self._common.settings.hold_answer_s
        # What was heard before the question may be older than the peer's end.
        if row is None or row.heard_at is None or now - row.heard_at > hold_s:
            return None
        return now - row.heard_at

    # --- time ---------------------------------------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """When something is due that is not a row's."""
        return earliest(min(self._held.values(), default=None), self._repair_at)

    def row_due(self, row: Row, now: float) -> None:
        """The deadline of a row has come that is neither gone nor silent for too long."""
        if row.inquiry is not None:
            self._conclude(row, now)
        else:
            self.inquire(row, now)

    def due(self, now: float) -> None:
        """Conclude, answer and repair what is due."""
        # A witness that went away may have been the last one that was waited for.
        while self._bereft:
            row = self._common.table.rows.get(self._bereft.popitem()[0])
            if row is not None and row.inquiry is not None and row.status not in GONE:
                self._conclude(row, now)
        for source, peer in [key for key, at in self._held.items() if at <= now]:
            del self._held[source, peer]
            self._common.effects.append(AnswerSuspect(source, peer, self._heard_s(peer, now)))
        settings = self._common.settings
        if not self._spreading.links:
            self._repair_at = None
        elif self._repair_at is None:
            self._repair_at = now + settings.repair_interval_s
        elif self._repair_at <= now:
            self._repair_at = now + settings.repair_interval_s * self._common.rng.uniform(0.8, 1.2)
            # In a circle that begins at the own id, so that peers with equal neighbours do not all turn to the same one.
            links = self._spreading.links
            self._repaired = next((link for link in links if link > self._repaired), links[0])
            # One message and no more: what is left over has its turn in the next round.
            size = settings.records_per_message
            self._common.effects += self._spreading.missing(self._repaired, self._common.table.worth_telling(), size)

    def check_invariants(self) -> None:
        """Raises AssertionError where the state contradicts its own rules."""
        assert (self._repair_at is None) == (not self._spreading.links)
        assert not self._bereft
        for peer, row in self._common.table.rows.items():
            assert row.inquiry is None or peer in self._asked_about
        for source, _ in self._held:
            assert source in self._common.links
