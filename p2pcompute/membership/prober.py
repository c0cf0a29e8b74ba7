"""Probes: those that this peer makes, those that it makes for others, and the answers.

Every probe interval the next peer of the ring is probed (`probing.py`); one that was accused, or lost its link, is probed out of
turn. Strangers, of whom only others have told so far, have a turn of their own now and then. What comes of a probe is told to
`Judge`; what the outcome means is decided there (`detector.py`). A third peer's word that it heard somebody counts only with that peer's own
signature over the question: else one liar could keep the dead alive.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from p2pcompute.membership import awareness, probing
from p2pcompute.membership.agenda import Agenda
from p2pcompute.membership.book_events import Misbehaved, Way
from p2pcompute.membership.common import Common
from p2pcompute.membership.coordinates import CoordinateSpace
from p2pcompute.membership.machine import earliest
from p2pcompute.membership.probing import Probe, Stage
from p2pcompute.membership.table import Row
from p2pcompute.membership.voice import Voice
from p2pcompute.model import limits
from p2pcompute.model.ids import PEER_ID_BYTES, PeerId
from p2pcompute.wire import gossip

#: A round trip that changed by this share is worth a new view.
_NOISE = 0.1
#: A probe that is due while this peer itself was late is given more time so many times.
_GRACES_MAX = 3
#: Probe intervals between two datagrams that are tried only to learn whether they arrive.
_TRY_DATAGRAM_INTERVALS = 10
#: A stranger is probed every so many turns, beside whoever's turn it is: who are invented cost the others no turn.
_STRANGER_TURNS = 5
_FALSE_WITNESS = "it says that it heard from a peer, and has no word of that peer to show for it"
#: Peers that need no probe now and are passed over before the turn is given up.
_PASSED_OVER_MAX = 16


class Judge(Protocol):
    """Who hears what came of a probe."""

    def answered(self, row: Row, probe: Probe, now: float, *, is_direct: bool) -> None:
        """The peer answered, itself or through a third peer."""

    def failed(self, row: Row, probe: Probe, now: float) -> None:
        """It did not."""

    def show_evidence(self, peer: PeerId) -> bytes | None:
        """A signed accusation of `peer`, which is sent to itself now."""


@dataclass(frozen=True, slots=True)
class _ForOther:
    """A probe that this peer makes for another."""

    asker: PeerId
    #: The asker's number for it.
    nonce: int
    target: PeerId
    way: Way


class Prober:
    """See the module."""

    def __init__(self, common: Common, voice: Voice, judge: Judge) -> None:
        self._common = common
        self._voice = voice
        self._judge = judge
        #: Where this peer is among the others.
        self.coordinates = CoordinateSpace(common.rng)
        #: The number of the last probe; starts at random, so that answers to a former life fit nothing.
        self._nonce = common.rng.randrange(0, 1 << 48)
        #: Own probes on their way, by number.
        self._probes: dict[int, Probe] = {}
        #: Whose probe has which number: exactly those of `_probes`.
        self._nonces: dict[PeerId, int] = {}
        #: When each probe comes to its next stage.
        self._stages: Agenda[int] = Agenda()
        #: Probes for others, by this peer's number for them.
        self._for_others: dict[int, _ForOther] = {}
        #: When the asker of each is told that nothing was heard.
        self._nacks: Agenda[int] = Agenda()
        #: While datagrams are not known to arrive: when one is tried next although its peer was heard on its link.
        self._try_datagram_at = 0.0
        #: When the next peer has its turn; None while nobody is to be probed.
        self._turn_at: float | None = None
        #: Turns until a stranger has one, from 0 up.
        self._turns_left = _STRANGER_TURNS

    # --- own probes ---------------------------------------------------------------------------------------------------

    def is_probing(self, peer: PeerId) -> bool:
        """Whether a probe of `peer` is on its way."""
        return peer in self._nonces

    def ends_at(self, peer: PeerId) -> float | None:
        """When the probe of `peer` that is on its way fails at the latest."""
        nonce = self._nonces.get(peer)
        return None if nonce is None else self._probes[nonce].until

    def probe(self, row: Row, now: float, *, is_check: bool) -> None:
        """Probe the peer of `row`, which gossips, unless that is being done."""
        if row.peer in self._nonces:
            return
        direct_s, total_s = probing.probe_times_s(self._common.settings, row.rtt_s, self._common.awareness.factor)
        self._nonce += 1
        nonce = self._nonce
        self._probes[nonce] = Probe(row.peer, now, now + total_s, is_check)
        self._nonces[row.peer] = nonce
        self._stages.set(nonce, now + direct_s)
        self._say(row.peer, nonce, self._voice.ways(row.peer, now))

    def acked(self, source: PeerId, message: gossip.Ack, way: Way, now: float) -> None:
        """`source` answered a probe."""
        if way is Way.DATAGRAM:
            self._voice.answered_datagram(source, now)
        probe = self._probes.get(message.nonce)
        if probe is None:
            other = self._for_others.get(message.nonce)
            if other is not None and other.target == source and self._bears_witness(other, message):
                self._end_for_other(message.nonce)
                self._voice.send(other.asker, gossip.ViaAck(other.nonce, True, witness=message.witness), other.way)
            return
        if probe.peer != source:
            return
        row = self._common.table.rows[source]
        if probe.stage is Stage.DIRECT and not probe.is_spoiled:
            self._common.awareness.add(-1)
            self._measured(row, message, now - probe.sent_at - message.held_us / 1e6, now)
        self._end(message.nonce)
        self._judge.answered(row, probe, now, is_direct=True)

    def via_acked(self, source: PeerId, message: gossip.ViaAck, now: float) -> None:
        """A third peer says what came of its probe."""
        probe = self._probes.get(message.nonce)
        if probe is None or source not in probe.asked:
            return
        row = self._common.table.rows[probe.peer]
        own, verify = self._common.own.peer, self._common.verify
        if not message.heard:
            probe.asked[source] = True
        elif gossip.is_witness(message.witness, row.signed.public_key, own, message.nonce, verify):
            self._end(message.nonce)
            self._judge.answered(row, probe, now, is_direct=False)
        else:
            probe.asked[source] = True
            self._common.effects.append(Misbehaved(source, _FALSE_WITNESS))

    def forget(self, peer: PeerId) -> None:
        """`peer` is no longer probed: it is gone."""
        nonce = self._nonces.get(peer)
        if nonce is not None:
            self._end(nonce)

    def _say(self, peer: PeerId, nonce: int, ways: tuple[Way, ...]) -> None:
        rumours = self._voice.rumours(self._judge.show_evidence(peer))
        for way in ways:
            self._voice.send(peer, gossip.Probe(nonce, rumours), way)

    def _measured(self, row: Row, message: gossip.Ack, rtt_s: float, now: float) -> None:
        if rtt_s < 0:
            return  # it claims to have held the probe for longer than all of it took
        if message.coordinate is not None:
            self.coordinates.update(row.peer, message.coordinate, rtt_s, now)
        # What the link measured is better: nobody's event loop is in it.
        if not row.linked and (row.rtt_s is None or abs(row.rtt_s - rtt_s) > _NOISE * max(row.rtt_s, rtt_s)):
            row.rtt_s = rtt_s
            self._common.table.changed(row)

    def _end(self, nonce: int) -> None:
        probe = self._probes.pop(nonce)
        del self._nonces[probe.peer]
        self._stages.set(nonce, None)

    def _stage_over(self, nonce: int, now: float) -> None:
        probe = self._probes[nonce]
        row = self._common.table.rows[probe.peer]
        if probe.stage is Stage.DIRECT:
            probe.stage = Stage.INDIRECT
            self._stages.set(nonce, probe.until)
            self._ask_others(row, probe, nonce, now)
            if row.linked and self._voice.ways(row.peer, now) == (Way.DATAGRAM,):
                self._say(row.peer, nonce, (Way.LINK,))
            return
        self._end(nonce)
        if row.heard_at is not None and row.heard_at >= probe.sent_at:
            return  # it said something else meanwhile: the answer was lost, not its sender
        nacks = sum(probe.asked.values())
        self._common.awareness.add(awareness.failed_probe_points(len(probe.asked), nacks))
        self._judge.failed(row, probe, now)

    def _ask_others(self, row: Row, probe: Probe, nonce: int, now: float) -> None:
        wait_ms = max(int((probe.until - now) * 1000), 0)
        for third in self._thirds(row, now):
            probe.asked[third] = False
            message = gossip.ProbeVia(nonce, row.peer, min(wait_ms, 60_000), self._voice.rumours())
            self._voice.send(third, message, self._voice.way(third, now))

    def _thirds(self, row: Row, now: float) -> list[PeerId]:
        """Whom to ask: first those that the peer says it is linked to, since for some peers there is no other way."""
        count = self._common.settings.indirect_probes
        record, ring = row.signed.record, self._common.table.ring
        named = [relay.peer for relay in record.relays] + [edge.peer for edge in record.edges]
        has_datagrams = self._voice.datagrams_work(now)
        near = [
            peer
            for peer in dict.fromkeys(named)
            if peer in ring and peer != row.peer and (has_datagrams or peer in self._common.links)
        ]
        # One at least is drawn from all: those that a peer names may be its friends.
        chosen = self._common.rng.sample(near, min(count - 1, len(near)))
        others = self._voice.some(2 * count, now, but=row.peer)
        return (chosen + [peer for peer in others if peer not in chosen])[:count]

    # --- probes of others and for others ------------------------------------------------------------------------------

    def probed(self, source: PeerId, message: gossip.Probe, way: Way) -> None:
        """`source` asks whether this peer is there."""
        signer = self._common.signer
        if len(message.asker) != PEER_ID_BYTES:
            answer = gossip.Ack(message.nonce, 0, self.coordinates.own, self._voice.rumours())
        elif signer is None:
            return  # without its own word for it nobody would believe whom it answers
        else:
            witness = gossip.sign_witness(PeerId(message.asker), message.asker_nonce, signer)
            answer = gossip.Ack(message.nonce, 0, self.coordinates.own, witness=witness)
        self._voice.send(source, answer, way)

    def asked_for_other(self, source: PeerId, message: gossip.ProbeVia, way: Way, now: float) -> None:
        """`source` asks this peer to probe another."""
        target = self._common.gossip_row(PeerId(message.target))
        if target is None or len(self._for_others) >= limits.PROBES_FOR_OTHERS_MAX:
            self._voice.send(source, gossip.ViaAck(message.nonce, False, self._voice.rumours()), way)
            return
        self._nonce += 1
        nonce = self._nonce
        self._for_others[nonce] = _ForOther(source, message.nonce, target.peer, way)
        wait_s = min(message.wait_ms / 1000, limits.PROBE_FOR_OTHER_S_MAX)
        self._nacks.set(nonce, now + probing.NACK_SHARE * wait_s)
        for each in self._voice.ways(target.peer, now):
            self._voice.send(target.peer, gossip.Probe(nonce, asker=source, asker_nonce=message.nonce), each)

    def _bears_witness(self, other: _ForOther, message: gossip.Ack) -> bool:
        # Looked at here, too: who passes on what is no witness would be taken for the liar.
        row = self._common.table.rows.get(other.target)
        return row is not None and gossip.is_witness(
            message.witness, row.signed.public_key, other.asker, other.nonce, self._common.verify
        )

    def _end_for_other(self, nonce: int) -> None:
        del self._for_others[nonce]
        self._nacks.set(nonce, None)

    # --- time ---------------------------------------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """When something is due."""
        return earliest(self._turn_at, self._stages.earliest(), self._nacks.earliest())

    def due(self, now: float) -> None:
        """Take probes to their next stage, tell who asked, and probe whose turn it is."""
        while (nonce := self._nacks.pop(now)) is not None:
            other = self._for_others.pop(nonce)
            self._voice.send(other.asker, gossip.ViaAck(other.nonce, False, self._voice.rumours()), other.way)
        while (nonce := self._stages.pop(now)) is not None:
            self._stage_over(nonce, now)
        interval_s = self._common.settings.probe_interval_s
        if not self._common.table.gossipers:
            self._turn_at = None
        elif self._turn_at is None:
            self._turn_at = now + interval_s * self._common.rng.random()
        if self._turn_at is not None and self._turn_at <= now:
            self._turn_at = now + interval_s * self._common.awareness.factor
            self._take_turn(now)

    def lagged(self, lag_s: float, now: float) -> None:
        """This peer came late: what it did not hear meanwhile may lie in its own queue, so probes get a little more time."""
        more_s = max(min(lag_s, self._common.settings.probe_timeout_s), 2 * awareness.LAG_MAX_S)
        for nonce, probe in self._probes.items():
            at = self._stages.at(nonce)
            probe.is_spoiled = True
            if at is not None and at <= now and probe.graces < _GRACES_MAX:
                probe.graces += 1
                self._stages.set(nonce, now + more_s)
                probe.until = max(probe.until, now + more_s)

    def woke(self, now: float) -> None:
        """This machine slept: no probe from before means anything."""
        for nonce in list(self._probes):
            self._end(nonce)
        for nonce in list(self._for_others):
            self._end_for_other(nonce)
        if self._turn_at is not None:
            self._turn_at = now + self._common.settings.probe_interval_s * self._common.rng.random()

    def _take_turn(self, now: float) -> None:
        self._turns_left -= 1
        if self._turns_left <= 0:
            self._turns_left = _STRANGER_TURNS
            stranger = self._common.table.strangers.next()
            if stranger is not None:
                self.probe(self._common.table.rows[stranger], now, is_check=False)
        table, settings = self._common.table, self._common.settings
        for _ in range(min(_PASSED_OVER_MAX, len(table.ring))):
            peer = table.ring.next()
            assert peer is not None, "the ring is not empty"
            row = table.rows[peer]
            # A link over which something came just now is as good as an answer, but says nothing of datagrams: now and then
            # one is tried all the same, or this peer would never know that it may judge those that have no link.
            is_heard = row.linked and row.heard_at is not None and now - row.heard_at < settings.probe_interval_s
            if is_heard and now >= self._try_datagram_at and not self._voice.datagrams_work(now):
                self._try_datagram_at = now + _TRY_DATAGRAM_INTERVALS * settings.probe_interval_s
                is_heard = False
            if not is_heard and peer not in self._nonces:
                self.probe(row, now, is_check=False)
                return

    def check_invariants(self) -> None:
        """Raises AssertionError where the state contradicts its own rules."""
        assert self._nonces == {probe.peer: nonce for nonce, probe in self._probes.items()}
        assert set(self._stages.keys) == set(self._probes)
        assert set(self._nacks.keys) == set(self._for_others)
        assert len(self._for_others) <= limits.PROBES_FOR_OTHERS_MAX
        for peer in self._nonces:
            assert self._common.gossip_row(peer) is not None
