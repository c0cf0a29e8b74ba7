"""Every limit of the product, with its unit in its name and the reason for its value beside it."""

from __future__ import annotations

# --- frames and links -------------------------------------------------------------------------------------------------
#: A frame's payload. TLS throughput falls to a third with frames of 16 MiB; a chunk of 256 KiB and its header fit.
FRAME_BYTES_MAX = 1 << 20
#: What one chunk of a stream carries: large enough for throughput, small enough that control waits for little.
CHUNK_BYTES = 256 * 1024
#: Unacknowledged bytes of one stream: the bandwidth-delay product of 1 Gbit/s and 30 ms, rounded up.
STREAM_WINDOW_BYTES = 4 << 20
#: Streams that one side may have open on a link: a few bulk transfers saturate any link, more only cost memory.
STREAMS_OPEN_MAX = 64
#: Control frames that wait for a slow peer before its link is closed: nobody honest lets 16 MiB of them pile up.
CONTROL_QUEUE_BYTES_MAX = 16 << 20
#: Bulk is handed to the transport only while it holds less than this, so control never queues behind more.
BULK_BUFFER_BYTES = 512 * 1024
#: One heartbeat a link: below the 30 s after which common NATs forget a mapping.
HEARTBEAT_INTERVAL_S = 20.0
#: A link on which nothing arrived for so long is dead: two heartbeats and a round trip.
LINK_SILENCE_MAX_S = 45.0
#: A link that has said goodbye, or heard it, for so long hangs: its carrier should have hung up within two seconds.
LINK_LEAVING_MAX_S = 5.0
#: TLS handshake and Hello together; a slow satellite link needs 3 s.
HANDSHAKE_TIMEOUT_S = 10.0
#: Half-open handshakes at a time, and new ones a second from one address: a flood costs this much and no more.
HALF_OPEN_MAX = 64
HANDSHAKES_PER_SECOND_PER_ADDRESS = 10
#: Half-open connections of one address, on this site ten times as many: what it may begin in a second, less than a handshake may last,
#: so that nobody fills the table alone. Through one relay as many as it may join to one peer: of two relays one may lie.
HALF_OPEN_PER_ADDRESS_MAX = 8
HALF_OPEN_PER_RELAY_MAX = 16
#: Links kept open; a few dozen carry gossip and jobs, further peers are dialled on demand.
LINKS_MAX = 48
#: A link that has been up for so long and is still of no use may be closed where there are too many: gossip has had its turns.
LINK_IDLE_AFTER_S = 60.0
#: Links that a peer of a larger network wants: 13 chosen ones and as many more for jobs; the rest of `LINKS_MAX` is for others.
LINKS_WANTED = 24
#: A connection attempt.
DIAL_TIMEOUT_S = 5.0

# --- decoding ---------------------------------------------------------------------------------------------------------
#: Nesting of a message; ours need 5.
DECODE_DEPTH_MAX = 12
#: Members of one list or map inside a message.
DECODE_ITEMS_MAX = 65_536
#: Short texts: names, reasons, labels.
TEXT_CHARS_MAX = 256
#: One label of a peer: a name and a value; thirty of them still leave room in a record.
LABEL_CHARS_MAX = 128
#: The name of an engine, and how many a peer may have; five exist.
ENGINE_CHARS_MAX = 32
ENGINES_MAX = 16
#: One grant: the longest is an address with a host name of 253 characters.
GRANT_CHARS_MAX = 280
#: Grants of one peer, or that one program asks for; a dozen folders are many.
GRANTS_MAX = 32
#: One number of what a task used, microseconds, bytes or units of fuel: more than any machine does in a year, and sums fit into 64 bits.
USAGE_MAX = 1 << 50
#: Origins whose use of this peer is added up one by one; of those before them the sum is kept.
ACCOUNTS_KEPT = 4_096
#: Usages of results that no word on whether they count has come for yet: some batches from every peer.
USAGES_HELD_MAX = 1 << 14
#: Windows of one schedule: a few for each day of the week.
SCHEDULE_WINDOWS_MAX = 32
#: Reasons why a peer lends less, in its record; four exist.
YIELDS_MAX = 8
#: Tracebacks and error messages that come back from a peer.
TRACEBACK_CHARS_MAX = 20_000
#: A signed record; about 600 bytes are used, the rest is room for unknown fields of later versions.
RECORD_BYTES_MAX = 8_192
#: A certificate; ours have about 500 bytes.
CERTIFICATE_BYTES_MAX = 4_096
#: An invitation token as text; ours have about 1,200 characters.
TOKEN_CHARS_MAX = 8_192
#: Network names and labels of invitations: what X.509 allows a common name, in bytes of UTF-8.
NAME_BYTES_MAX = 64
#: Owners of one network trusted at a time: the old and the new one while a network changes hands.
OWNERS_MAX = 2
#: Owners that one network may have had one after the other; each costs 100 bytes in the newest one's certificate.
SUCCESSIONS_MAX = 8
#: Records in one message.
RECORDS_PER_MESSAGE_MAX = 64
#: Revoked invitations and peers in one list.
REVOCATIONS_MAX = 4_096

# --- membership -------------------------------------------------------------------------------------------------------
#: Peers that one peer book remembers; beyond it the longest-dead are forgotten first.
PEERS_MAX = 20_000
#: A record not renewed for so long is forgotten.
RECORD_EXPIRY_S = 3_600.0
#: An incarnation this far ahead of our wall clock is refused.
INCARNATION_AHEAD_MAX_S = 300.0
#: Addresses in one record: interfaces of an ordinary laptop, both families.
ADDRESSES_MAX = 16
#: Host addresses of which each pure function of them remembers its answer: those of thousands of peers, about a megabyte.
HOSTS_PARSED_MAX = 8_192
#: Addresses that the joining machine tries to reach at the same time.
DIALS_AT_ONCE_MAX = 8
#: Addresses that the joining machine remembers.
CANDIDATES_MAX = 1_024
#: Long-lived peers of different networks whose addresses are kept whatever else is forgotten: more than one flood can hide.
ANCHORS_MIN = 4
#: Peers for whose sake views are exchanged out of turn whose last time is remembered: those of a large office.
EXCHANGES_REMEMBERED_MAX = 4_096

# --- troubles ---------------------------------------------------------------------------------------------------------
#: Addresses and peers whose troubles are remembered for people: more than anybody reads, 1 KiB each.
TROUBLES_MAX = 1_024
#: Messages of membership a second over one link: a cold start among thousands takes a tenth of it; 5 % of a core.
LINK_GOSSIP_PER_SECOND = 1_000.0
#: A trouble that has not come again for so long is forgotten.
TROUBLE_KEPT_S = 3_600.0
#: The same trouble is said in the log again after so long, with how often it came meanwhile.
TROUBLE_SAID_AGAIN_S = 60.0
#: Lines about troubles a second, all together, and as many at once: forged addresses must not fill a disk.
TROUBLE_LINES_PER_SECOND = 4.0
#: What no honest peer sends may come this often a second from one address before it is held against it: networks duplicate
#: datagrams, restarts leave old ones under way.
NONSENSE_FORGIVEN_PER_SECOND = 8.0
#: And so much of it at once.
NONSENSE_TOLERATED = 32.0
#: Then its address is told again after so long, with how much it was.
NONSENSE_TOLD_AGAIN_S = 10.0

# --- datagrams --------------------------------------------------------------------------------------------------------
#: A UDP datagram with everything in it: fits the 1,280 bytes that every IPv6 path carries, with room for tunnels.
DATAGRAM_BYTES_MAX = 1_200
#: What a sealed datagram carries: the rest is its header (13) and its tag (16).
DATAGRAM_PAYLOAD_BYTES_MAX = 1_168
#: Sessions cached: one for each peer that a large network makes this one talk to, about 1 KiB each.
SESSIONS_MAX = 4_096
#: Certificates of one peer before they are deflated; an admin's guest with the longest labels shows 1,300 bytes.
PAPERS_BYTES_MAX = 4_096
#: Counters behind the newest whose datagrams are still taken: what 1 Gbit/s reorders within 10 ms.
REPLAY_WINDOW = 2_048
#: Sessions of one peer that are kept: the one in use, the one before it, and one of two that were begun at the same time.
SESSIONS_PER_PEER_MAX = 3
#: Age and datagrams after which a session gets fresh keys: an hour as TLS tickets, and far below what the cipher bears.
SESSION_REKEY_S = 3_600.0
SESSION_DATAGRAMS_MAX = 1 << 48
#: A session is not used beyond this age, whether or not fresh keys could be agreed on.
SESSION_END_S = 3_900.0
#: A session from which nothing was heard for so long is forgotten. Two of a thousand peers probe each other every ten minutes in the mean, now
#: and then after twice as long; a session that has ended by then is a handshake, which costs as much as nine probes.
SESSION_SILENCE_MAX_S = 1_800.0
#: Handshakes of our own under way: all that a peer meets in its first second in a large network.
HANDSHAKES_OWN_MAX = 256
#: Handshakes of others that are checked a second, near and far each: certificates cost 0.5 ms, so 10 % of a core.
HANDSHAKES_PER_SECOND = 200
#: Payloads of one peer held while its handshake runs, and for how long: later they would be stale news.
PAYLOADS_HELD_MAX = 8
PAYLOAD_HELD_S = 3.0
#: A secret makes cookies for so long, and is remembered for as long again.
COOKIE_SECRET_S = 120.0
#: Datagrams a second from one address: thirty busy peers behind one router send half as many.
DATAGRAMS_PER_SECOND_PER_ADDRESS = 2_000
#: Datagrams a second that belong to no session at its known address, near and far each: 5 % of a core.
STRANGE_DATAGRAMS_PER_SECOND = 5_000
#: Datagrams a second of one peer, from whatever addresses: a hundred times what gossip and the address book of a busy peer are.
DATAGRAMS_PER_SECOND_PER_PEER = 2_000
#: What is sent to an address for each byte that came from there, until who claims to be there has shown it (RFC 9000, 8.1).
UNPROVEN_ADDRESS_FACTOR = 3
#: How much more of all that addresses of our own site may send: a laboratory or a campus behind one address.
NEAR_RATE_FACTOR = 10
#: Addresses whose datagrams are counted; the longest quiet one is forgotten, since the bounds above hold all together.
ADDRESSES_COUNTED_MAX = 4_096
#: Refusals told a second, all addresses together: what a person could still read.
REFUSALS_TOLD_PER_SECOND = 16
#: A signed rumour; the largest, a suspicion, has about 150 bytes.
RUMOUR_BYTES_MAX = 256
#: Rumours in one datagram.
RUMOURS_PER_MESSAGE_MAX = 48
#: Buckets of a digest: at 1,000 peers one differing bucket is told in one datagram.
DIGEST_BUCKETS = 64
#: Rows of versions, or wanted peers, in one message over a link; a datagram holds about 24.
VERSIONS_PER_MESSAGE_MAX = 2_048
#: The smallest rumour, an announcement.
RUMOUR_BYTES_MIN = 25
#: Rumours that wait to be passed on: one about each of a thousand peers, as in a cold start, and room beside.
RUMOURS_QUEUED_MAX = 2_048
#: Rumours whose signatures are remembered as checked: those that go round a busy network within a few seconds.
RUMOURS_REMEMBERED_MAX = 1_024
#: Records that are asked for and have not come: a cold start among thousands; more are asked for in the next exchange.
WANTS_MAX = 4_096
#: Of them, how many on the word of one peer: all that a newcomer's first acquaintance in a network of 2,000 tells it.
WANTS_PER_SOURCE_MAX = 2_048
#: Strangers, whom only others have told of, that count as peers for each one that was met: so a network of a thousand is taken for one
#: of hundreds by who has just joined it, and a thousand invented peers make waits, which grow with the logarithm, less than twice as long.
STRANGERS_COUNTED_PER_PEER = 8
#: Records that one peer announced and nobody sent before it is not believed any more, and how fast one of them is forgiven.
BROKEN_PROMISES_MAX = 256.0
BROKEN_PROMISES_FORGIVEN_PER_SECOND = 1.0
#: Records asked for in one datagram: the answer is as many datagrams, and a socket's buffer holds them.
WANTS_PER_DATAGRAM_MAX = 32
#: Bytes of records a second, and at once, that one peer gets by asking in datagrams. Its address is proven, so it floods nobody else;
#: padding each request to a third of the answer instead would cost every honest one 300 bytes. An honest peer asks for 32
#: records of up to 1,200 bytes five times a second where it has no link: nobody who keeps to that is ever refused.
WANTED_BYTES_PER_SECOND_PER_PEER = 256 * 1024.0
#: Records that are put together from pieces at a time: 8 KiB each.
PARTIALS_MAX = 64
#: A record whose pieces have not all come within this is given up.
PARTIAL_S = 5.0
#: Probes made for others at a time: one from each of a few hundred peers in the same second.
PROBES_FOR_OTHERS_MAX = 256
#: A probe for another peer waits at most so long: nobody's time is up later.
PROBE_FOR_OTHER_S_MAX = 30.0
#: A round trip stretches the wait for a probe up to this: WAN's value, beyond it a peer is useless anyway.
PROBE_TIMEOUT_S_MAX = 3.0
#: Questions about suspects that wait for their answer: one of each link about each of a few hundred peers that went at once.
ANSWERS_HELD_MAX = 16_384
#: Accusations of one peer heard a second: it makes one probe a second, and may lose several links in one moment.
ACCUSATIONS_PER_SECOND = 8.0
#: Accusations that were proven wrong and are held against a peer before it is no longer listened to.
FALSE_ACCUSATIONS_MAX = 10
#: One of them is forgiven so often, seconds: a peer short of CPU time is wrong a few times a minute, a liar always.
FALSE_ACCUSATION_FORGIVEN_S = 10.0
#: Relays that one peer names: one may die, a third helps nobody.
RELAYS_MAX = 2
#: Edges of one record that count: 6 near, 6 spread, 2 on the ring, and room for another selection.
EDGES_MAX = 16
#: Peers up to which every pair without a measured edge gets an estimate; beyond, each peer gets a few (2,016 pairs at 64).
ESTIMATES_PEERS_MAX = 64
#: Peers whose last round trips the network coordinate remembers: as many as have sessions, 200 bytes each.
COORDINATE_PEERS_MAX = 4_096

# --- address book (DHT) -----------------------------------------------------------------------------------------------
#: A signed pointer with everything in it, which is what a holder keeps: fits a datagram beside the headers around it.
POINTER_BYTES_MAX = 1_000
#: The label of a pointer's name: an id and a few characters.
POINTER_LABEL_BYTES_MAX = 64
#: The longest life of a pointer: who is away for a day is not at the old address.
POINTER_LIFETIME_MAX_S = 86_400
#: Clocks of laptops are wrong by minutes: a pointer is taken this long past its end, and so far from the future.
POINTER_SKEW_MAX_S = 600.0
#: Contacts in one reply, and in one bucket (k); 20 of IPv4 have 780 bytes, 20 of IPv6 1,020.
DHT_CONTACTS_PER_REPLY_MAX = 20
#: Contacts in the table of one family: more than a lookup in the largest network can use.
DHT_CONTACTS_MAX = 4_096
#: Contacts of one /24 (IPv6: /48) in one reply and one bucket, and in the table: who owns one network is one voice. In
#: ranges that are not routed the same figures hold for an invitation, where others want the place.
DHT_SAME_NETWORK_PER_BUCKET_MAX = 2
DHT_SAME_NETWORK_PER_TABLE_MAX = 10
#: A request is padded to this, so that the largest reply is less than three times as large.
DHT_REQUEST_BYTES = 400
#: What a reply may have for each byte of its request: nobody gains by using a peer as an amplifier.
DHT_REPLY_FACTOR_MAX = 3
#: Requests that one address may send a second, and as many at once; in private ranges an invitation, which may be a cluster.
DHT_REQUESTS_PER_SECOND_PER_ADDRESS = 100
#: Stores among them, each of which may cost a signature check: 20 of them are 0.3 % of a core.
DHT_STORES_PER_SECOND_PER_ADDRESS = 20
#: How many times as much an invitation may send from private, link-local and loopback addresses.
DHT_PRIVATE_ADDRESS_FACTOR = 5
#: Calls that wait for an answer at a time: twenty lookups at once.
DHT_CALLS_MAX = 512
#: Waiting for an answer: four times the smoothed round trip within these bounds; a second before anything is known (RFC 6298).
DHT_TIMEOUT_MIN_S = 0.3
DHT_TIMEOUT_MAX_S = 3.0
DHT_TIMEOUT_FIRST_S = 1.0
#: Tries of one call: one lost datagram says nothing.
DHT_TRIES = 2
#: Failed calls in a row after which a contact leaves the table.
DHT_FAILURES_MAX = 3
#: A contact that did not answer is left alone for so long, twice as long each further time, up to the bound.
DHT_DEAD_FIRST_S = 5.0
DHT_DEAD_MAX_S = 600.0
#: Dead addresses that are remembered; beyond it the oldest are forgotten, which costs one more try.
DHT_DEAD_REMEMBERED_MAX = 4_096
#: Lookup: time in all, disjoint paths (S/Kademlia, 2007), requests in flight on each (Kademlia's alpha), contacts looked at on each.
DHT_LOOKUP_DEADLINE_S = 8.0
DHT_LOOKUP_PATHS = 3
DHT_ALPHA = 3
DHT_CANDIDATES_PER_PATH_MAX = 256
#: Contacts told by one responder that may be dead before the rest of what it told is passed over.
DHT_DEAD_TOLD_MAX = 3
#: A get ends when holders of so many voices have answered, or when after the first as long again as it took has gone by, within
#: these bounds (seconds): the newest of them wins.
DHT_VALUES_WANTED = 3
DHT_VALUE_GRACE_S = 0.15
DHT_VALUE_GRACE_MAX_S = 1.0
#: Pointers that a peer keeps for others, of one owner, and brought by peers of one invitation where others want the place.
DHT_RECORDS_MAX = 4_096
DHT_RECORDS_PER_OWNER_MAX = 64
DHT_RECORDS_PER_INVITATION_MAX = 512
#: Pointers that this peer publishes itself; others would take no more from it.
DHT_PUBLISHED_MAX = DHT_RECORDS_PER_OWNER_MAX
#: Contacts that wait to be asked whether they are there, those of one network among them, and those asked at a time.
DHT_HINTS_MAX = 256
DHT_HINTS_PER_NETWORK_MAX = 16
#: One that has answered is not asked again for so long, though no table had room for it.
DHT_HINT_PAUSE_S = 20.0
DHT_CHECKS_AT_ONCE = 8
#: Contacts remembered across restarts.
DHT_ANCHORS = 4
#: Buckets without a lookup for so long get one.
DHT_REFRESH_INTERVAL_S = 600.0
#: The contact that was quiet longest is asked this often whether it is there: 20 contacts are known to be up every 10 minutes.
DHT_CHECK_INTERVAL_S = 30.0
#: Offenders whose doings are counted by name.
DHT_OFFENDERS_MAX = 256

# --- relays and dial-back ---------------------------------------------------------------------------------------------
#: How long a relay keeps a peer reachable without being asked again: an hour, so that a peer that left is soon forgotten.
RELAY_RESERVATION_S = 3_600.0
#: Peers that one relay keeps reachable: each costs a link, and a few of them with traffic fill an upstream of 100 Mbit/s.
RELAY_RESERVATIONS_MAX = 32
#: Circuits of one relay, to one reserved peer and by one asker: eight askers share what there is, none can take it all.
RELAY_CIRCUITS_MAX = 64
RELAY_CIRCUITS_PER_TARGET_MAX = 16
RELAY_CIRCUITS_PER_ASKER_MAX = 8
#: Circuits that one asker may begin in a second, after as many at once as it may have: who opens and closes only troubles targets.
RELAY_OPENS_PER_SECOND_PER_ASKER = 2
#: Share of reservations, of circuits, and of circuits to one peer that peers of one invitation have together: its holder makes as many ids as he
#: likes. Not less than three quarters, since a laboratory may run fifty machines under one invitation, and many a network has no other; the
#: rest, 8 reservations, 16 circuits and 4 to each peer, is always left to others.
RELAY_INVITATION_SHARE = 0.75
#: What passes a circuit in each direction: enough for tasks and results, too little to make a relay a way to move data sets.
RELAY_BYTES_PER_SECOND = 1 << 20
#: What may pass at once after a pause: a quarter of a second's worth, so that a handshake and small messages never wait.
RELAY_BURST_BYTES = 256 * 1024
#: Bytes in one message of a circuit: two TLS records, 30 ms at the rate of a circuit, which is what others may have to wait.
CIRCUIT_DATA_BYTES_MAX = 32 * 1024
#: A message counts for at least so much at a relay's rate: its frame, its seal and its turn cost as much as these bytes, however little is in it.
CIRCUIT_DATA_COUNTED_BYTES_MIN = 256
#: What a relay, and an end, takes on a circuit before it grants more: the rate of a circuit times a round trip of 250 ms.
CIRCUIT_WINDOW_BYTES = 256 * 1024
#: The largest grant that is believed: room for later versions with faster circuits.
CIRCUIT_GRANT_BYTES_MAX = 16 << 20
#: Bulk on a relayed link is handed on only while less than this waits: with a chunk and the relay's window control waits for half a second.
RELAYED_BULK_BUFFER_BYTES = 64 * 1024
#: A circuit on which nothing moves for so long is closed: twice the silence after which the link inside it is dead.
CIRCUIT_SILENCE_MAX_S = 90.0
#: How long what one side sent before it closed may take to reach the other: a full window at the rate of a circuit, and patience.
CIRCUIT_DRAIN_S = 5.0
#: How long an offered circuit may wait for the target's word, and a reservation for the relay's.
CIRCUIT_ANSWER_TIMEOUT_S = 8.0
#: Peers whose relayed bytes are counted: far more than ever have a circuit; the longest unused are forgotten first.
RELAY_METERED_MAX = 4_096
#: Addresses in one request to be dialled: one of each family.
DIAL_BACK_ADDRESSES_MAX = 2
#: One try of a dial-back; a path that needs longer is none that one wants to depend on.
DIAL_BACK_TIMEOUT_S = 3.0
#: Between two dial-backs, or two reversed dials, for one peer, and in the mean between two that come through one: each learns what it needs,
#: and nobody can scan with our address.
DIAL_BACK_INTERVAL_S = 10.0
#: Reversed dials, and dial-backs, that run at a time; of reversed ones so many at once may come through one peer after a pause.
DIAL_BACKS_AT_ONCE_MAX = 8
#: How long a peer that was asked to dial may take before it is reached through the relay instead: a wish, its way on, and a handshake over a
#: slow line. What it dials later is taken all the same, in the relayed link's place.
REVERSAL_PATIENCE_S = 4.0
#: How often a peer finds out anew how it can be reached while nothing changes: routers and firewalls are changed by people.
REACH_RECHECK_INTERVAL_S = 1_800.0
#: Dial-backs asked for in one check: two that agree settle it, and three more outvote two that lie, fail or do not answer.
DIAL_BACKS_ASKED_MAX = 5
#: Peers remembered as possible relays of this one: two are needed, the rest is choice.
RELAY_CANDIDATES_MAX = 256
#: How long a router is asked to forward a port; renewed at half, so that a port of a peer that died is closed after two hours.
PORT_MAPPING_LEASE_S = 7_200.0
#: An answer of a router, in bytes: descriptions of its services have up to 40 KiB.
ROUTER_ANSWER_BYTES_MAX = 256 * 1024

# --- LAN beacon -------------------------------------------------------------------------------------------------------
BEACON_PORT = 9877
BEACON_BYTES_MAX = 300
BEACON_INTERVAL_S = 30.0
BEACON_FORGET_S = 90.0
BEACONS_PER_SECOND_PER_ADDRESS = 5
#: Peers whose beacons are remembered, and addresses whose beacons are counted: a large office; more are strangers at play.
BEACON_PEERS_MAX = 4_096
#: Signatures of beacons checked a second, from all addresses together: 2 % of a core, whatever is sent to the port.
BEACON_SIGNATURES_PER_SECOND = 200
#: Age of a beacon's time that is still taken: clocks of laptops are wrong by minutes, replays are harmless hints.
BEACON_SKEW_MAX_S = 600.0

# --- ports ------------------------------------------------------------------------------------------------------------
PEER_PORT = 9876
#: Ports tried from `PEER_PORT` on (9877 is the beacon's and 9878 the console's, both are passed over).
PORTS_TRIED = 64

# --- jobs -------------------------------------------------------------------------------------------------------------
#: Arguments and results up to this travel inside their message, larger ones as blobs on a stream.
INLINE_BYTES_MAX = 64 * 1024
#: A signed delegation with its manifest and its origin's papers: three certificates at their limit make 12 KiB, both documents have
#: 500 bytes, the rest is room for unknown fields of later versions. Ours have about 2,200 bytes.
DELEGATION_BYTES_MAX = 16_384
#: Clocks of laptops are wrong by minutes: manifests and delegations are taken this long past their end, as pointers are.
DELEGATION_SKEW_MAX_S = 600.0
#: Delegations of one coordinator that are checked a second, and as many at once: each costs 1 ms, so 6 % of a core; a coordinator
#: that comes back offers all its jobs at once.
DELEGATIONS_PER_SECOND_PER_PEER = 64.0
#: Delegated jobs whose epochs a lending peer remembers, 300 bytes each; the longest unused are forgotten first.
FENCES_MAX = 4_096
#: Pages of 8,192 task numbers, 1 KiB each, in which the tasks of one delegated share may lie: 134 million tasks in a row; more
#: scattered ones are given back.
SHARE_TASK_PAGES_MAX = 16_384
#: Payload bytes in one Tasks or Results message; several such frames fit into one transport buffer.
BATCH_BYTES_MAX = 256 * 1024
#: Tasks in one lease batch or results message.
BATCH_TASKS_MAX = 512
#: One argument list or one result; larger data goes through `put`.
VALUE_BYTES_MAX = 1 << 30
#: A program (code bundle with its data): sources of a project, not its data sets.
PROGRAM_BYTES_MAX = 64 << 20
#: Inputs taken from an iterator ahead of what peers can hold: keeps a million tasks in bounded memory.
INPUTS_AHEAD = 4_096
#: Further attempts after an attempt that died with its worker, peer or link.
RETRIES_DEFAULT = 3
RETRIES_MAX = 100
#: Distinct peers whose workers a task may kill before it is called the culprit.
CULPRIT_PEERS = 3
#: Jobs that one origin keeps in memory after they have ended, for `job show` and `job result`.
ENDED_JOBS_KEPT = 64
#: Conditions that one job may put on its peers: more than there are names, few enough to be checked for every peer.
REQUIREMENTS_MAX = 64
#: Price of a peer per hour, in whatever currency: more than any machine costs in any of them.
COST_PER_HOUR_MAX = 1e9
#: Open jobs at one origin.
JOBS_OPEN_MAX = 1_024
#: Jobs that one origin may have open at one lending peer.
JOBS_PER_ORIGIN_MAX = 64
#: Jobs that one coordinator may have open at one lending peer, its own and shares of others': those of four busy origins.
JOBS_PER_COORDINATOR_MAX = 256
#: Tasks that one origin may have queued at one lending peer, whatever credit it claims.
TASKS_QUEUED_PER_ORIGIN_MAX = 65_536
#: Work handed out in one lease batch: long enough to hide a round trip, short enough to bind late.
BATCH_TARGET_S = 0.03
#: Peers of one community for which a coordinator dispatches: 32 KiB in a message; in a larger one, the most capable.
SHARE_MEMBERS_MAX = 1_024
#: Data that all tasks of a share need: handles that an origin looks for in a job, and its program's.
SHARE_BLOBS_MAX = 32
#: Tasks that one partial aggregate names: as many as one origin may have queued at one peer.
PARTIAL_TASKS_MAX = 65_536
#: Tasks that a coordinator holds merged before it hands them over: submitters read inputs only twice `INPUTS_AHEAD` beyond what they have
#: answers for, and with seven other communities that is used up by what lies merged there (measured: a fifth of a long job's time).
MERGED_TASKS_MAX = INPUTS_AHEAD // 4
#: Arguments of one origin that lie in a coordinator's memory: an eighth of what a full queue of the largest could be; what is
#: beyond is given back, as by a lender that has no room.
SHARE_ARGUMENT_BYTES_MAX = 512 << 20
#: Partial values merged by one reduction task.
REDUCE_FAN_IN = 16

# --- what is learned from jobs ---------------------------------------------------------------------------------------
#: Over how long a peer's rates and mean times are taken: long enough for rare functions, and yesterday is forgotten.
PERFORMANCE_WINDOW_S = 3_600.0
#: Functions that windows and learners remember, the last used ones: what one person runs in a week; 256 KiB a model.
PERFORMANCE_FUNCTIONS_MAX = 64
#: Peers of one function that are remembered: more than have links; 10 KiB each at most.
PERFORMANCE_PEERS_MAX = 64
#: Peers of one function with columns of their own in its model: two each and 12 common ones fill 128, to which the
#: learner rounds up.
LEARNED_PEERS_MAX = 56
#: Rows of the performance database: a week of a record a second would be three times as much; 200 bytes each, so 40 MB.
PERFORMANCE_ROWS_MAX = 200_000
#: Age after which a row is dropped: four times what the longest report looks at.
PERFORMANCE_AGE_MAX_S = 28 * 86_400.0
#: Features of one record; ours have 13.
PERFORMANCE_FEATURES_MAX = 32
#: Rows that a question about percentiles, or a restart, looks at, the latest: a fraction of a second of work.
PERFORMANCE_ROWS_READ_MAX = 50_000
#: Records read back at a start, the latest: what smart_adaptive needs to know a few functions at a few peers; 80 ms of work.
PERFORMANCE_REPLAYED = 2_000
#: Records that wait for a slow disk, 300 bytes each; the oldest are lost first.
PERFORMANCE_PENDING_MAX = 10_000
#: Results that the request cache holds in all, and one of them: what a laptop can spare, and beyond what travels inline.
CACHE_BYTES_MAX = 64 << 20
CACHE_ENTRY_BYTES_MAX = 1 << 20
#: Results in the request cache: with their keys and times 300 bytes each beside the results.
CACHE_ENTRIES_MAX = 10_000
#: How long a cached result is used where the submitter asked for caching and said nothing else.
CACHE_TTL_S = 300.0
#: The longest that a submitter may ask for: a peer runs for weeks, and whoever caches for longer has a file in mind.
CACHE_TTL_MAX_S = 86_400.0

# --- workers ----------------------------------------------------------------------------------------------------------
#: stdout and stderr kept and passed on for one task; the rest is dropped and said so.
TASK_OUTPUT_BYTES_MAX = 64 * 1024
#: Progress reports passed on, per task and second.
PROGRESS_PER_SECOND = 5.0
#: Threads of one worker and all processes that it starts: far above what libraries make for the cores that a worker has, far below what hurts
#: a machine. Held by a control group where there is one, else looked at now and then.
WORKER_THREADS_MAX = 512
#: Scratch folder of a worker in a sandbox. It lies in memory, where no quota of a disk is needed: large against what Python and its libraries
#: put there, small against the memory of a machine that lends; what needs more asks for a folder of the owner's.
SCRATCH_BYTES = 256 << 20
#: A worker is replaced after so many tasks: leaks of other people's code end here.
TASKS_PER_WORKER_MAX = 100_000
#: A worker process must say that it is ready within this.
WORKER_START_TIMEOUT_S = 20.0
#: Between the polite signal and SIGKILL.
WORKER_KILL_GRACE_S = 0.5
#: Address space of one worker where the peer's owner set nothing, as a share of this machine's memory.
WORKER_MEMORY_SHARE = 0.5

# --- commands ---------------------------------------------------------------------------------------------------------
#: Words of one command line, and characters of one: what the system itself takes, with room for the environment.
COMMAND_WORDS_MAX = 1_024
COMMAND_WORD_CHARS_MAX = 65_536
#: Copies of stdout and of stderr, each, that come back with the answer; a command with more to say writes a file.
COMMAND_OUTPUT_BYTES_MAX = 16 << 20
#: Variables that a program sets for its commands.
COMMAND_VARIABLES_MAX = 256
#: Files that go into one task or come out of it; whoever has more packs them.
TASK_FILES_MAX = 4_096
#: Bytes of all files of one task that come back: half of what one value may have, so that the answer surely travels.
TASK_FILES_BYTES_MAX = 500 << 20
#: Characters of the path of one of them: far above what any system's folders nest.
TASK_PATH_CHARS_MAX = 1_024

# --- clusters ---------------------------------------------------------------------------------------------------------
#: Handles that the tasks of one program may use at a cluster, all together; each of its processes keeps what they lead to.
CLUSTER_HANDLES_MAX = 256
#: One call or answer: its largest values with room for the program beside them; executors copy it more than once.
CLUSTER_CALL_BYTES_MAX = 2 * VALUE_BYTES_MAX + PROGRAM_BYTES_MAX
#: Programs and data behind handles that one process of a cluster keeps for the next call.
CLUSTER_KEPT_BYTES_MAX = 512 << 20
#: Programs up to this travel with each call: less than asking which processes have them.
CLUSTER_INLINE_BYTES_MAX = 16 * 1024
#: How often one call is sent again because another process got it that lacks something; then everything goes along.
CLUSTER_MISSES_MAX = 3
#: How often the size of a cluster is looked at: it grows and shrinks within a minute, and a look is a message.
CLUSTER_LOOK_S = 2.0
#: How long a cluster may take to answer whoever connects, or asks how large it is.
CLUSTER_CONNECT_TIMEOUT_S = 10.0
#: The first pause before an unreachable cluster is tried again, doubled each time up to the last.
CLUSTER_RETRY_FIRST_S = 0.5
CLUSTER_RETRY_LAST_S = 30.0
#: A process on a cluster's worker that serves one program of one submitter ends after so long without a call.
CLUSTER_IDLE_S = 60.0

# --- containers ------------------------------------------------------------------------------------
#: stdout, and stderr, that one task gives back as part of its result; of more, the beginning and the end.
TASK_RESULT_OUTPUT_BYTES_MAX = 4 << 20
#: Unpacked bytes for each packed one of a ZIP program: text and tables reach 20, source 5; only bombs are beyond it.
ZIP_RATIO_MAX = 200
#: The name of an image with its registry and digest.
IMAGE_CHARS_MAX = 512
#: Processes of one container: a pool of workers on every core and room beside; a fork bomb ends here.
CONTAINER_PROCESSES_MAX = 256
#: What a task in a container may write to its folder, its input included: as much as may come out of it, and as much again for work.
CONTAINER_SCRATCH_BYTES_MAX = 1 << 30
#: `/tmp` of a container, in memory that counts as the container's own.
CONTAINER_TMP_BYTES_MAX = 64 << 20
#: A container engine answers a question within this, or counts as hanging.
CONTAINER_ENGINE_TIMEOUT_S = 30.0
#: At the start of a peer: an engine that does not answer within this is not offered.
CONTAINER_PROBE_TIMEOUT_S = 10.0
#: Pulling one image, all tries together: 10 GB at 50 Mbit/s.
IMAGE_PULL_TIMEOUT_S = 1_800.0
#: Tries of one pull: registries are away for seconds, not for minutes.
IMAGE_PULL_TRIES = 3
#: What a task leaves (its container, its folder) is removed so long after its end: people may look, and the next task need not wait.
CLEANUP_DELAY_S = 5.0
#: Ended containers that wait for this; beyond, the oldest go at once.
CLEANUP_WAITING_MAX = 32

#: A result archive is kept so long: till the next day, when somebody asks what came of yesterday's task.
ARCHIVE_KEPT_S = 86_400.0
#: All that are kept: a few of the largest.
ARCHIVES_BYTES_MAX = 2 << 30
#: How often a peer looks for older ones.
ARCHIVE_SWEEP_INTERVAL_S = 3_600.0

# --- blobs ------------------------------------------------------------------------------------------------------------
#: Blobs held in memory by one peer before they are spilled to disk.
BLOB_MEMORY_BYTES_MAX = 256 << 20
#: Blobs on disk.
BLOB_DISK_BYTES_MAX = 8 << 30

# --- control socket ---------------------------------------------------------------------------------------------------
#: Calls that one client of the control socket may have open.
CONTROL_CALLS_MAX = 256
#: Values of one call that may wait at either end of the control socket until they are taken: hides the hand-over, no more.
CONTROL_WINDOW = 16
#: One message of the control socket, whose both ends belong to one user: the largest value and what is around it.
CONTROL_MESSAGE_BYTES_MAX = VALUE_BYTES_MAX + FRAME_BYTES_MAX

# --- topology ---------------------------------------------------------------------------------------------------------
#: Peers up to which matrices are dense: LAPACK takes 40 ms for 500 and no SciPy; above, Lanczos is faster.
DENSE_PEERS_MAX = 500
#: Peers up to which LAPACK solves for the flow between them: it takes 0.1 ms, and OpenBLAS starts no threads of its own for so few.
SOLVED_AT_ONCE_MAX = 64
#: Restarts of Lanczos before shift and invert takes over: ordinary networks need 5 to 40, long thin ones thousands.
LANCZOS_RESTARTS_MAX = 120
#: Vectors of one repeated eigenvalue that are told apart above that size: only perfect stars have more, and they cost memory.
REPEATED_VECTORS_MAX = 32
#: Vectors of the normalised Laplacian from which a large network is cut: each round finds up to so many communities.
CUTTING_VECTORS = 16
#: Steps of conjugate gradients before a factorisation takes over: ordinary networks need 30 to 100.
GRADIENT_STEPS_MAX = 2_000
#: Stand-ins named for each community: three coordinators that die within one election are no accident.
STAND_INS = 3
