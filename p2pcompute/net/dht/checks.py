"""Who might be a contact: hints wait here, few of one network, until the peer has been asked and has answered from there."""

from __future__ import annotations

from collections import Counter, OrderedDict

from p2pcompute.model import limits
from p2pcompute.model.ids import PeerId
from p2pcompute.model.peer import Address
from p2pcompute.net.dht.contacts import Contact, InvitationOf


class Hints:
    """Contacts that wait to be asked, first come first served."""

    def __init__(self, invitation_of: InvitationOf) -> None:
        #: Counts voices.
        self._invitation_of = invitation_of
        #: By peer and address, in order of arrival; at most `limits.DHT_HINTS_MAX`.
        self._waiting: OrderedDict[tuple[PeerId, Address], tuple[Contact, str]] = OrderedDict()
        #: Waiting ones by voice; at most `limits.DHT_HINTS_PER_NETWORK_MAX` each; no zeros.
        self._by_voice: Counter[str] = Counter()
        #: When those that answered lately did so, monotonic seconds, the longest ago first; at most `limits.DHT_HINTS_MAX`.
        self._answered: OrderedDict[tuple[PeerId, Address], float] = OrderedDict()

    def answered(self, contact: Contact, now: float) -> None:
        """`contact` was asked and is there: it need not be asked again for a while, whether there was room for it or not."""
        self._answered.pop((contact.peer, contact.address), None)
        self._answered[contact.peer, contact.address] = now
        while len(self._answered) > limits.DHT_HINTS_MAX:
            self._answered.popitem(last=False)

    def is_fresh(self, contact: Contact, now: float) -> bool:
        """Whether it answered less than `limits.DHT_HINT_PAUSE_S` ago."""
        at = self._answered.get((contact.peer, contact.address))
        return at is not None and now < at + limits.DHT_HINT_PAUSE_S

    @property
    def is_full(self) -> bool:
        """Whether nobody more can wait."""
        return len(self._waiting) >= limits.DHT_HINTS_MAX

    def add(self, contact: Contact) -> bool:
        """Let `contact` wait; False where it waits already or its network, or the queue, is full."""
        key = (contact.peer, contact.address)
        voice = contact.voice(self._invitation_of)
        if key in self._waiting or self.is_full or self._by_voice[voice] >= limits.DHT_HINTS_PER_NETWORK_MAX:
            return False
        self._waiting[key] = (contact, voice)
        self._by_voice[voice] += 1
        return True

    def take(self) -> Contact | None:
        """The one that waited longest, if any."""
        if not self._waiting:
            return None
        _, (contact, voice) = self._waiting.popitem(last=False)
        self._by_voice[voice] -= 1
        if not self._by_voice[voice]:
            del self._by_voice[voice]
        return contact

    def __len__(self) -> int:
        return len(self._waiting)
