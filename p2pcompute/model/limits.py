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
#: TLS handshake and Hello together; a slow satellite link needs 3 s.
HANDSHAKE_TIMEOUT_S = 10.0
#: Half-open handshakes at a time, and new ones a second from one address: a flood costs this much and no more.
HALF_OPEN_MAX = 64
HANDSHAKES_PER_SECOND_PER_ADDRESS = 10
#: Links kept open; a few dozen carry gossip and jobs, further peers are dialled on demand.
LINKS_MAX = 48
#: A connection attempt.
DIAL_TIMEOUT_S = 5.0

# --- decoding ---------------------------------------------------------------------------------------------------------
#: Nesting of a message; ours need 5.
DECODE_DEPTH_MAX = 12
#: Members of one list or map inside a message.
DECODE_ITEMS_MAX = 65_536
#: Short texts: names, reasons, labels.
TEXT_CHARS_MAX = 256
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
#: Addresses that the joining machine tries to reach at the same time.
DIALS_AT_ONCE_MAX = 8
#: Addresses that the joining machine remembers.
CANDIDATES_MAX = 1_024

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
#: Open jobs at one origin.
JOBS_OPEN_MAX = 1_024
#: Jobs that one origin may have open at one lending peer.
JOBS_PER_ORIGIN_MAX = 64
#: Tasks that one origin may have queued at one lending peer, whatever credit it claims.
TASKS_QUEUED_PER_ORIGIN_MAX = 65_536
#: Work handed out in one lease batch: long enough to hide a round trip, short enough to bind late.
BATCH_TARGET_S = 0.03
#: Partial values merged by one reduction task.
REDUCE_FAN_IN = 16

# --- workers ----------------------------------------------------------------------------------------------------------
#: stdout and stderr kept and passed on for one task; the rest is dropped and said so.
TASK_OUTPUT_BYTES_MAX = 64 * 1024
#: Progress reports passed on, per task and second.
PROGRESS_PER_SECOND = 5.0
#: A worker is replaced after so many tasks: leaks of other people's code end here.
TASKS_PER_WORKER_MAX = 100_000
#: A worker process must say that it is ready within this.
WORKER_START_TIMEOUT_S = 20.0
#: Between the polite signal and SIGKILL.
WORKER_KILL_GRACE_S = 0.5
#: Address space of one worker where the peer's owner set nothing, as a share of this machine's memory.
WORKER_MEMORY_SHARE = 0.5

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
