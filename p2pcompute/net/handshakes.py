"""One handshake: what is sent to which address and when, and the cryptography of both sides.

    initiator                                             responder
    HELLO   index, ephemeral                   ->         remembers nothing
                                               <-  COOKIE MAC over address and ephemeral
    PROOF   the same, cookie, papers, signature ->        checks cookie, then papers, then signature
                                               <-  ACCEPT index, ephemeral, papers, signature over all of it
    SEALED  proves the keys                     ->        uses the session from here on
                                               <-  SEALED ends the repetitions

Each of them is repeated after growing pauses until the next one arrives. A peer's addresses are tried one after the
other without waiting for each to fail (RFC 8305); each has an index of its own, so that an answer finds its address
even where it comes from another one. Refuses to know: other sessions, what is refused how often (`sessions.py`).
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass, field

from p2pcompute.model import limits
from p2pcompute.model.errors import AdmissionError, AdmissionReason, ProtocolError
from p2pcompute.model.ids import PeerId, short_peer_id
from p2pcompute.model.peer import Address
from p2pcompute.model.seams import Entropy
from p2pcompute.net.session_events import Admit, DatagramIdentity, DatagramMembership, SessionSettings
from p2pcompute.wire.certificates import read_certificate
from p2pcompute.wire.datagram import (
    Accept,
    Proof,
    datagram_tag,
    decode_papers,
    pack_papers,
    write_accept,
    write_hello,
    write_proof,
)
from p2pcompute.wire.identity import verify_signature
from p2pcompute.wire.membership import Admitted
from p2pcompute.wire.session import (
    ACCEPT_CONTEXT,
    PROOF_CONTEXT,
    Ephemeral,
    SessionKeys,
    accept_claim,
    derive_keys,
    digest,
    proof_claim,
)

_NEVER = float("inf")


class Stage(enum.Enum):
    """How far the handshake at one address is."""

    WAITING = enum.auto()
    HELLO = enum.auto()
    PROOF = enum.auto()
    FAILED = enum.auto()


@dataclass(slots=True, eq=False)
class Candidate:
    """One address of an attempt."""

    #: By which answers name it, and the session that may come of it.
    index: int
    #: Where its datagrams go.
    address: Address
    #: When the next one goes, or the stage fails.
    due: float
    stage: Stage = Stage.WAITING
    #: What is repeated in this stage.
    datagram: bytes = b""
    #: How often it was sent.
    tries: int = 0
    #: When it was sent first.
    sent_at: float = 0.0
    #: Cookies that were answered; a flood of forged ones costs so many signatures.
    cookies: int = 0
    #: The last one.
    cookie: bytes = b""
    #: Answers that were refused; a flood of forged ones costs so many certificates.
    refused: int = 0
    #: Shortest round trip that was measured on a datagram sent once (Karn and Partridge, SIGCOMM 1987).
    rtt_s: float | None = None

    def answered(self, now: float) -> None:
        """The datagram of this stage was answered."""
        if self.tries == 1:
            rtt_s = now - self.sent_at
            self.rtt_s = rtt_s if self.rtt_s is None else min(self.rtt_s, rtt_s)

    def prove(self, datagram: bytes, cookie: bytes, now: float) -> None:
        """Send `datagram`, the PROOF with `cookie`, from now on."""
        self.stage, self.datagram, self.tries, self.due = Stage.PROOF, datagram, 0, now
        self.cookies += 1
        self.cookie = cookie


@dataclass(slots=True, eq=False)
class Attempt:
    """A handshake of ours, at one or several addresses, and what waits for it."""

    #: Who should answer; None: whoever listens at the one address.
    expected: PeerId | None
    #: Of all its datagrams.
    ephemeral: Ephemeral
    tag: bytes
    settings: SessionSettings
    started_at: float
    #: In the order in which they are tried.
    candidates: list[Candidate] = field(default_factory=list)
    #: (given up at, channel, payload), oldest first, at most `limits.PAYLOADS_HELD_MAX`.
    held: deque[tuple[float, int, bytes]] = field(default_factory=deque)
    #: When `advance` wants to be called next.
    due: float = 0.0
    #: For which `due` a timer is set.
    armed_at: float | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to try."""
        return all(candidate.stage is Stage.FAILED for candidate in self.candidates)

    def add(self, index: int, address: Address, not_before: float) -> None:
        """Try `address` too, after those that are there, and not before `not_before` (monotonic seconds)."""
        waiting = [each.due for each in self.candidates if each.stage is Stage.WAITING]
        begun = [each.sent_at for each in self.candidates if each.stage in (Stage.HELLO, Stage.PROOF)]
        after = max(waiting + begun, default=None)
        due = not_before if after is None else max(not_before, after + self.settings.stagger_s)
        self.candidates.append(Candidate(index, address, due))

    def hold(self, channel: int, payload: bytes, now: float) -> bool:
        """Keep a payload until the session is up; False where the oldest one had to go for it."""
        had_room = len(self.held) < limits.PAYLOADS_HELD_MAX
        if not had_room:
            self.held.popleft()
        self.held.append((now + limits.PAYLOAD_HELD_S, channel, payload))
        return had_room

    def give_up_late(self, now: float) -> int:
        """Forget payloads that have waited too long; how many."""
        late = 0
        while self.held and self.held[0][0] <= now:
            self.held.popleft()
            late += 1
        return late

    def advance(self, now: float) -> list[tuple[bytes, Address]]:
        """What is to be sent now, and to whom; sets `due`."""
        sent = []
        for candidate in self.candidates:
            if candidate.due > now or candidate.stage is Stage.FAILED:
                continue
            if candidate.stage is Stage.WAITING:
                candidate.stage = Stage.HELLO
                candidate.datagram = write_hello(self.tag, candidate.index, self.ephemeral.public)
            if candidate.tries == self.settings.tries_max or now >= self.started_at + self.settings.handshake_s:
                self.fail(candidate, now)
                continue
            if candidate.tries == 0:
                candidate.sent_at = now
            candidate.due = now + self.settings.retry_s * 2**candidate.tries
            candidate.tries += 1
            sent.append((candidate.datagram, candidate.address))
        self._set_due()
        return sent

    def prove(self, candidate: Candidate, datagram: bytes, cookie: bytes, now: float) -> None:
        """`candidate` got its cookie: prove who we are there, and let the addresses after it wait for what comes of it."""
        candidate.prove(datagram, cookie, now)
        for each in self.candidates:
            if each.stage is Stage.WAITING:
                each.due = max(each.due, now + 2 * self.settings.retry_s)

    def is_proving_elsewhere(self, candidate: Candidate, now: float) -> bool:
        """Whether another address is about to answer: a second PROOF would only make a second session."""
        return any(
            each is not candidate and each.stage is Stage.PROOF and now < each.sent_at + self.settings.retry_s
            for each in self.candidates
        )

    def fail(self, candidate: Candidate, now: float) -> None:
        """Nothing comes of this address; the next one need not wait."""
        candidate.stage, candidate.due = Stage.FAILED, _NEVER
        following = next((each for each in self.candidates if each.stage is Stage.WAITING), None)
        if following is not None:
            following.due = min(following.due, now)
        self._set_due()

    def _set_due(self) -> None:
        late = self.held[0][0] if self.held else _NEVER
        self.due = min(late, min((each.due for each in self.candidates), default=_NEVER))


@dataclass(frozen=True, slots=True)
class Shown:
    """Who somebody proved to be, and with what, so that it can be judged again."""

    admission: Admitted
    leaf: bytes = field(repr=False)
    chain: tuple[bytes, ...] = field(repr=False)


class Handshaker:
    """The cryptography of handshakes, for one identity."""

    def __init__(self, identity: DatagramIdentity, entropy: Entropy) -> None:
        self._identity = identity
        self._entropy = entropy
        self._network = identity.membership.network
        #: Of the network; its other handshakes are dropped by it.
        self.tag = datagram_tag(self._network)
        #: The membership that `_papers` were packed from.
        self._packed: DatagramMembership | None = None
        self._papers = b""

    def prove(self, ephemeral: Ephemeral, index: int, cookie: bytes, generation: int) -> bytes:
        """Our PROOF."""
        signed = write_proof(self.tag, index, ephemeral.public, cookie, generation, self._own_papers())
        return signed + self._identity.key.sign(PROOF_CONTEXT, proof_claim(self._network, signed))

    def judge_proof(self, proof: Proof, admit: Admit) -> Shown:
        """Who sent `proof`. Raises AdmissionError, ProtocolError."""
        return self._judge(proof, PROOF_CONTEXT, proof_claim(self._network, proof.signed), admit, None)

    def accept(self, proof: Proof, proof_digest: bytes, index: int, generation: int) -> tuple[bytes, SessionKeys]:
        """Our ACCEPT to a PROOF that was judged, and the keys. Raises ProtocolError for a bad key share."""
        ephemeral = Ephemeral(self._entropy)
        shared = ephemeral.agree(proof.ephemeral)
        signed = write_accept(self.tag, proof.sender, index, ephemeral.public, generation, self._own_papers())
        claim = accept_claim(self._network, proof_digest, signed)
        datagram = signed + self._identity.key.sign(ACCEPT_CONTEXT, claim)
        return datagram, derive_keys(self._network, shared, proof_digest, digest(datagram))

    def judge_accept(
        self,
        accept: Accept,
        datagram: bytes,
        proof_datagram: bytes,
        ephemeral: Ephemeral,
        admit: Admit,
        expected: PeerId | None,
    ) -> tuple[Shown, SessionKeys]:
        """Who answered our PROOF, and the keys. Raises AdmissionError, ProtocolError."""
        proof_digest = digest(proof_datagram)
        claim = accept_claim(self._network, proof_digest, accept.signed)
        shown = self._judge(accept, ACCEPT_CONTEXT, claim, admit, expected)
        shared = ephemeral.agree(accept.ephemeral)
        return shown, derive_keys(self._network, shared, proof_digest, digest(datagram))

    def is_genuine(self, accept: Accept, proof_datagram: bytes) -> bool:
        """Whether whoever is named in an answer that was refused did write it, to this PROOF."""
        try:
            leaf = read_certificate(decode_papers(accept.papers)[0])
        except ProtocolError:
            return False
        claim = accept_claim(self._network, digest(proof_datagram), accept.signed)
        return verify_signature(leaf.public_key, ACCEPT_CONTEXT, claim, accept.signature)

    def _judge(
        self, said: Proof | Accept, context: bytes, claim: bytes, admit: Admit, expected: PeerId | None
    ) -> Shown:
        leaf, chain = decode_papers(said.papers)
        admission = admit(leaf, chain, expected)
        if not verify_signature(admission.public_key, context, claim, said.signature):
            raise AdmissionError(
                AdmissionReason.STOLEN_LEAF,
                "showed a certificate without having its key: somebody else's was copied",
                f"peer {short_peer_id(admission.peer)}",
            )
        if admission.peer == self._identity.peer:
            raise AdmissionError(AdmissionReason.SELF, "this address is this peer's own")
        return Shown(admission, leaf, chain)

    def _own_papers(self) -> bytes:
        membership = self._identity.membership
        if membership is not self._packed:
            self._papers = pack_papers(membership.leaf, membership.chain)
            self._packed = membership
        return self._papers
