"""How soon one of many peers may sign a record that can wait, so that all their records together stay within what each may send.

Every record crosses to every peer, so what it costs anybody is how many are signed in the whole network, and that anybody can hear.
Each peer keeps the account by listening: a record that replaces an older one is booked at what it costs to pass on, whoever signed it, and
what is booked falls by `budget_bytes_per_s`. What is left of the credit says at which rate each of n peers may sign, by lot:

    rate = left / (n * cost * spending time)

Where all have something to tell, the credit is spent as e^(-t / spending time) until n peers together spend what the budget brings, so the rate
comes to 1 / `traffic.update_period_s`. Where hardly anybody has, the credit is whole, and who has just joined a thousand peers is heard after
minutes instead of a third of an hour. Nothing is agreed on, and nobody's word is asked for. A member that signs records without end can
make others wait at most twice as long as their share of the budget: less than half of the steady credit never counts as left. RTCP scales
its reports with the members of a session in the same way and for the same reason (RFC 3550, 6.2); its members do not listen to how
many have something to tell.

Refuses to know: what a record says, lots (`pacing.py`).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SharedBudgetSettings:
    """What all peers together may make each one carry; the defaults are the product's."""

    #: Bytes a second that a peer may send for everybody's records.
    budget_bytes_per_s: float = 1_500.0
    #: How often a record is sent by each peer in the mean, with everything that is said about it (see `traffic.py`).
    copies: float = 1.6
    #: The credit after a quiet time: so many records of each peer, but for all together no more than so many bytes. A hundred peers have four
    #: records each, three hundred one, a thousand two for five peers.
    records_each: int = 4
    credit_bytes_max: float = 700_000.0
    #: Spending time, seconds for each 100 peers: so at most 17 kB a second at 1,000 peers, and less as the network grows.
    spending_s_per_100: float = 4.0


class SharedBudget:
    """See the module."""

    def __init__(self, settings: SharedBudgetSettings | None = None) -> None:
        #: What may be spent.
        self._settings = settings or SharedBudgetSettings()
        #: Bytes that are booked; from 0 to the whole credit.
        self._booked = 0.0
        #: When that was right, monotonic seconds.
        self._at = 0.0
        #: Peers and bytes of a record, as last told.
        self._peers = 1
        self._record_bytes = 0
        #: Records of others that had been renewed by then.
        self._renewed = 0

    def look(self, peers: int, record_bytes: int, renewed: int, now: float) -> None:
        """There are `peers`, a record has `record_bytes`, and `renewed` records of others have replaced older ones so far."""
        self._peers, self._record_bytes = max(peers, 1), record_bytes
        fallen = self._settings.budget_bytes_per_s * max(now - self._at, 0.0)
        self._booked = max(self._booked - fallen, 0.0)
        self._at = now
        count, self._renewed = max(renewed - self._renewed, 0), renewed
        self._book(count)

    def signed(self) -> None:
        """This peer has signed a record."""
        self._book(1)

    @property
    def credit_bytes(self) -> float:
        """What may be spent after a quiet time, bytes."""
        return min(self._settings.records_each * self._peers * self._record_cost_bytes, self._settings.credit_bytes_max)

    @property
    def left_bytes(self) -> float:
        """What is left of it, bytes; never less than half of what is left where all sign at the rate of the budget."""
        steady = self._settings.budget_bytes_per_s * self._spending_s
        return max(self.credit_bytes - self._booked, steady / 2)

    @property
    def rate_per_s(self) -> float:
        """How many records a second this peer may sign."""
        return self.left_bytes / (self._peers * self._record_cost_bytes * self._spending_s)

    @property
    def _record_cost_bytes(self) -> float:
        return max(self._record_bytes, 1) * self._settings.copies

    @property
    def _spending_s(self) -> float:
        return self._settings.spending_s_per_100 * self._peers / 100

    def _book(self, records: int) -> None:
        self._booked = min(self._booked + records * self._record_cost_bytes, self.credit_bytes)

    def check_invariants(self) -> None:
        """Raises AssertionError where the state contradicts its own rules."""
        assert 0.0 <= self._booked <= self._settings.credit_bytes_max
        assert self.left_bytes > 0.0
