"""What the software between a strategy and its clients takes: a table of terms.

A fleet says what devices and links can do. A deployment takes longer: somebody looks for messages
only every so often, a process is started for each, calls go back and forth, models are serialised.
This table has a row for each such term, all 0 if the software is ideal. Of a message with S_down
bytes and its reply with S_up, to and from a client whose latency is l, it makes

    server     send_s + send_s_per_byte S_down                              server_send
    node       until its next look, every poll_s + 2 l                      client_poll
    download   trips_down (2 l + call_s), then S_down + framing_bytes       down_calls
    device     until the app's starter looks, every task_poll_s             task_poll
               (or, if the app has started, for the objects: object_retry_s)
               start_s, or first_start_s for the client's first message     start
               decode_s_per_byte S_down                                     decode
               (step_s + step_s_per_parameter d) for each local step        steps
               what a hot device takes longer                               throttle
               encode_s_per_byte S_up                                       encode
    node       until it looks for the reply, every reply_poll_s             reply_poll
    upload     trips_up (2 l + call_s), then S_up + framing_bytes           up_calls
    server     until it looks for replies, every server_poll_s              server_poll
               receive_s + receive_s_per_byte S_up                          server_receive
               aggregate_s_per_parameter d                                  aggregate
               evaluate_s + FLOPs / server_flops for each evaluation        server_evaluate

with d the numbers in the message's arrays. The names on the right are the trace's events, whose
values are s. The server is one process: what it does, it does for one message after the other.

With `lanes`, a message of k objects takes ceil(k / lanes) round trips more: each record, each array
and each chunk of an array's bytes is an object, and fetched by itself. Of a reply that
is planned and not there yet, the objects are taken to be as many as of its message if that was to
`train`, and 3 otherwise. A connection that was idle for
more than keep_alive_s is opened again before the upload, in connect_trips round trips.

With `starts_ahead` the task is there once the first round trip has told the node of a message, and
its app starts while the message's objects come: what of waiting and start is over by then takes no
time. An app that has started and misses an object looks again after object_retry_s, then after
twice as long each time, at most object_retry_most_s.

What the processor does for start, decode, encode and steps takes `reference_flops` over the
device's FLOP/s as long, if that is given: then one table is for fast and slow devices.

With `together` the clients' nodes were started at one moment, as those of a deployment on one
machine are, and look in one phase; otherwise each has phases of its own.

Heat. A device that has computed long slows down, and recovers: h goes to 1 with time constant
heat_s while it computes, to 0 while it does not, and its speed is 1 - (1 - sustained) h. So W s of
work take the t for which

    sustained t + (1 - sustained) (1 - h) heat_s (1 - exp(-t / heat_s)) = W.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from fl.checks import at_least, boolean, not_negative, positive, read_if
from fl.errors import ConfigError
from fl.randomness import normal_of

_MOST_SIGMA = 20.0  # so that exp(sigma z - sigma**2 / 2) is above 0 for every z that is drawn


@read_if(lambda a: a["lanes"] is not None, "chunk_bytes", only="there are objects with {at}lanes")
@read_if(
    lambda a: a["keep_alive_s"] is not None,
    "connect_trips",
    only="connections stay open without {at}keep_alive_s",
)
@read_if(
    lambda a: a["starts_ahead"],
    "object_retry_s",
    "object_retry_most_s",
    only="an app waits for objects with {at}starts_ahead=true",
)
@read_if(lambda a: a["sustained"] < 1, "heat_s", only="devices stay fast with {at}sustained=1")
@dataclass(frozen=True)
class Runtime:
    """What software takes on the way of a message and its reply; the default is an ideal one.

    Attributes:
        poll_s: between two looks of an idle client's node for a message, s.
        task_poll_s: between two looks for a task to start, s; the phase is drawn for each.
        reply_poll_s: between two looks of the node for the reply, from when it has the message, s.
        server_poll_s: between two looks of a strategy of `fl` for replies, s.
        exchange_poll_s: likewise of `send_and_receive` in somebody else's app, s.
        trips_down: round trips before a message's bytes flow; half of one is the latency alone.
        trips_up: likewise before a reply's.
        call_s: what both ends do for each round trip, s.
        framing_bytes: that travel with each message and reply beside their payload.
        lanes: objects on their way at once; None: a message is one, and goes with the last trip.
        chunk_bytes: of an array that are one object.
        keep_alive_s: after which a connection without traffic is closed, s; None: never.
        connect_trips: round trips to open one: 1 for TCP, 2 with TLS 1.3, 3 with TLS 1.2.
        start_s: from a task to its app's first line, s: interpreter, imports, the app itself.
        first_start_s: likewise for a client's first message; None: the same.
        start_sigma: of the log-normal factor, of mean 1, on each start.
        starts_ahead: the app starts while its message's objects come, not after them.
        object_retry_s: with that, until an app looks again for an object that is not there, s.
        object_retry_most_s: the most of that, which doubles with each look, s.
        decode_s_per_byte: of a message at the client, s: hashes, copies, from bytes to tensors.
        encode_s_per_byte: of a reply, s: from tensors to bytes.
        step_s: of each local step, beside its FLOPs, s.
        step_s_per_parameter: likewise for each number of the model: what is moved to and from
            memory, whatever the batch.
        reference_flops: FLOP/s of the device on which start, decode, encode and step were
            measured; None: they are the same on all devices.
        sustained: speed of a hot device over that of a cold one, in (0, 1].
        heat_s: time constant of getting hot and cold, s.
        send_s: of the server for each message, s.
        send_s_per_byte: for each byte of what is sent; what several messages of one push share is
            serialised once.
        receive_s: of the server for each reply, s.
        receive_s_per_byte: for each byte of a reply, s.
        aggregate_s_per_parameter: for each number of the model, for each reply to `train`, s.
        evaluate_s: for each evaluation on the server, s.
        server_flops: FLOP/s of the server when it evaluates; None: it takes no time.
        server_work_w: power of the server while it does one of these, W.
        server_idle_w: and the rest of the time.
        relayed: what clients send each other goes through the server, as messages.
        together: all nodes look for messages and tasks in the same phase, which is drawn.

    Raises:
        ConfigError: a number is out of its range.
    """

    poll_s: float = 0.0
    task_poll_s: float = 0.0
    reply_poll_s: float = 0.0
    server_poll_s: float = 0.0
    exchange_poll_s: float = 0.0
    trips_down: float = 0.5
    trips_up: float = 0.5
    call_s: float = 0.0
    framing_bytes: int = 0
    lanes: int | None = None
    chunk_bytes: int = 5 * 2**20
    keep_alive_s: float | None = None
    connect_trips: float = 1.0
    start_s: float = 0.0
    first_start_s: float | None = None
    start_sigma: float = 0.0
    starts_ahead: bool = False
    object_retry_s: float = 0.0
    object_retry_most_s: float = 10.0
    decode_s_per_byte: float = 0.0
    encode_s_per_byte: float = 0.0
    step_s: float = 0.0
    step_s_per_parameter: float = 0.0
    reference_flops: float | None = None
    sustained: float = 1.0
    heat_s: float = 120.0
    send_s: float = 0.0
    send_s_per_byte: float = 0.0
    receive_s: float = 0.0
    receive_s_per_byte: float = 0.0
    aggregate_s_per_parameter: float = 0.0
    evaluate_s: float = 0.0
    server_flops: float | None = None
    server_work_w: float = 0.0
    server_idle_w: float = 0.0
    relayed: bool = False
    together: bool = False

    def __post_init__(self) -> None:
        boolean("relayed", self.relayed)
        boolean("together", self.together)
        boolean("starts_ahead", self.starts_ahead)
        at_least("framing_bytes", self.framing_bytes, 0)
        at_least("chunk_bytes", self.chunk_bytes, 1)
        if self.lanes is not None:
            at_least("lanes", self.lanes, 1)
        positive("heat_s", self.heat_s)
        for name in ("reference_flops", "server_flops"):
            if getattr(self, name) is not None:
                positive(name, getattr(self, name))
        own = {
            "relayed",
            "together",
            "starts_ahead",
            "lanes",
            "chunk_bytes",
            "heat_s",
            "reference_flops",
            "server_flops",
        }
        for name in [field.name for field in fields(self) if field.name not in own]:
            value = getattr(self, name)
            if value is not None or name not in ("keep_alive_s", "first_start_s"):
                not_negative(name, value)
        if not 0 < self.sustained <= 1:
            raise ConfigError(
                f"sustained is {self.sustained}; it is the speed of a hot device over that of a "
                "cold one: above 0 and at most 1"
            )
        if self.start_sigma > _MOST_SIGMA:
            raise ConfigError(
                f"start_sigma is {self.start_sigma}; it must be at most {_MOST_SIGMA}"
            )

    @property
    def ideal(self) -> bool:
        """Whether nothing takes time but what devices compute and links carry."""
        return self == Runtime()

    @property
    def answer_s(self) -> float:
        """The mean time from a message to its answer, s, where nothing else takes any."""
        looks = (self.poll_s, self.task_poll_s, self.reply_poll_s, self.server_poll_s)
        calls = self.call_s * (self.trips_down + self.trips_up)
        return sum(looks) / 2 + self.start_s + calls + self.send_s + self.receive_s

    def seconds_to_start(self, key: int, dispatch: int) -> float:
        """Returns how long it takes to start the app for a task, on the device of reference, s.

        Args:
            key: the `client_key` of (seed, "app-start", client), from whose numbers the factor is.
            dispatch: the client's running task number.
        """
        seconds = self.start_s
        if dispatch == 0 and self.first_start_s is not None:
            seconds = self.first_start_s
        sigma = self.start_sigma
        if sigma > 0:
            seconds *= math.exp(sigma * normal_of(key, dispatch) - sigma * sigma / 2)
        return seconds

    def found_after(self, missing_s: float) -> float:
        """Returns when an app finds what comes `missing_s` after it has first looked for it, s."""
        looks, every = 0.0, self.object_retry_s
        if every == 0:
            return missing_s
        while looks < missing_s:
            if every >= self.object_retry_most_s:
                return looks + every * math.ceil((missing_s - looks) / every)
            looks += every
            every = min(2 * every, self.object_retry_most_s)
        return looks

    def trips(self, trips: float, objects: int) -> float:
        """Returns the round trips of a message before its bytes flow.

        Args:
            trips: of any message.
            objects: that it has.
        """
        return trips if self.lanes is None else trips - (-objects // self.lanes)

    def heated(self, work_s: float, heat: float) -> tuple[float, float]:
        """Returns how long work takes on a device that is hot by `heat`, s, and its heat after it.

        Args:
            work_s: what it takes on a cold one, s.
            heat: in [0, 1].
        """
        sustained, tau = self.sustained, self.heat_s
        lead = (1 - sustained) * (1 - heat) * tau
        # Newton's method on a concave, increasing function comes from below, and stays there.
        seconds = work_s
        for _ in range(50):
            cooled = math.exp(-seconds / tau)
            missing = work_s - sustained * seconds - lead * (1 - cooled)
            step = missing / (sustained + lead * cooled / tau)
            if not step > 1e-12 * seconds:
                break
            seconds += step
        return seconds, 1 - (1 - heat) * math.exp(-seconds / tau)

    def cooled(self, heat: float, idle_s: float) -> float:
        """Returns a device's heat after it has rested for so many s."""
        return heat * math.exp(-idle_s / self.heat_s)
