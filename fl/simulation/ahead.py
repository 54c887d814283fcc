"""Requests that are answered ahead of their time, before anybody needs to know the result.

What a client's request leaves in its state, its next one finds: only the first of a client can be
answered ahead, and the next has the turn when that is done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

from flwr.app import RecordDict
from flwr.common.constant import ErrorCode

from fl.execution.contract import CohortRequest, Payload, Request, Result
from fl.execution.executor import Executor
from fl.execution.speech import Line
from fl.simulation.kernel.dispatch import Dispatch
from fl.simulation.kernel.trace import Event, Trace

FREED = Payload(RecordDict(), 0)
"""Stands for a payload that is not needed any more, so that a model is not kept alive."""


class Ahead:
    """Gives requests to an executor in waves, and keeps the clients' states between them.

    Args:
        executor: started.
        trace: where a reply that nobody can send is recorded.
        now: returns virtual time in s.
        on_said: called with each line that clients have said in other processes.
        without_draws: entered when the executor is asked for something.
    """

    lasting = ("_states",)

    def __init__(
        self,
        executor: Executor,
        trace: Trace,
        now: Callable[[], float],
        on_said: Callable[[Line], None] | None,
        without_draws: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._executor = executor
        self._trace = trace
        self._now = now
        self._on_said = on_said
        self._without_draws = without_draws
        self._states: dict[int, RecordDict] = {}  # only of clients that keep a state
        self._waiting: dict[Dispatch, None] = {}  # may be answered, not submitted yet; in order
        self._open: dict[int, list[Dispatch]] = {}  # those whose work is not done, by client

    @property
    def at_rest(self) -> bool:
        """Whether nothing is to be answered."""
        return not (self._waiting or self._open)

    # ---- whose turn it is ------------------------------------------------------------------------

    def add(self, dispatch: Dispatch) -> None:
        """Takes a dispatch, whose turn it is if it is its client's only one."""
        of_client = self._open.setdefault(dispatch.client, [])
        of_client.append(dispatch)
        if len(of_client) == 1:
            self._admit(dispatch)

    def _admit(self, dispatch: Dispatch) -> None:
        """Lets a request be answered: no other of its client will change the client's state."""
        faults = dispatch.faults
        stops = faults.dropout_at is not None or faults.crash_at is not None
        lost = faults.lose_upload and dispatch.reply_bytes is not None
        known = dispatch.plan is not None and dispatch.plan.flops_of is None
        if faults.lose_download or lost or (known and stops):
            return  # its duration is known or does not matter, and its result is never needed
        dispatch.request.state = self._states.get(dispatch.client)
        self._waiting[dispatch] = None

    def begin(self, dispatch: Dispatch) -> None:
        """Gives one that its device starts now the turn, in case it has overtaken another."""
        of_client = self._open[dispatch.client]
        if of_client[0] is not dispatch:
            self._recall(of_client[0])
            of_client.remove(dispatch)
            of_client.insert(0, dispatch)
            self._admit(dispatch)

    def _recall(self, dispatch: Dispatch) -> None:
        """Undoes `_admit`; what would have been done with an older state is not used."""
        self._waiting.pop(dispatch, None)
        if dispatch.submitted:
            with self._without_draws():
                self._executor.discard(dispatch.request)
            dispatch.request = replace(dispatch.request)  # to the executor, a new one
            dispatch.submitted = False

    def finish(self, dispatch: Dispatch) -> None:
        """Passes the turn on when work is done, or will not be."""
        of_client = self._open.get(dispatch.client, [])
        if dispatch not in of_client:
            return  # it was done before
        first = of_client[0] is dispatch
        of_client.remove(dispatch)
        if not of_client:
            del self._open[dispatch.client]
        elif first:
            self._admit(of_client[0])

    # ---- results ---------------------------------------------------------------------------------

    def submit(self) -> None:
        """Hands all requests that may be answered to the executor, as one wave."""
        wave, self._waiting = self._waiting, {}
        for dispatch in wave:
            dispatch.submitted = True
        if wave:
            with self._without_draws():
                self._executor.submit([dispatch.request for dispatch in wave])

    def result(self, dispatch: Dispatch) -> Result:
        """Returns what came of a request; waits for it."""
        if dispatch.result is None:
            if not dispatch.submitted:
                self.submit()
            with self._without_draws():
                result = self._executor.result(dispatch.request)
            if self._on_said is not None:
                for line in result.said:
                    self._on_said(line)
            if result.content is not None and not isinstance(result.content, RecordDict):
                self._trace.record(self._now(), Event.REJECTED, dispatch.client, dispatch.number)
                kind = type(result.content).__name__
                reason = f"the reply's content is {kind}, not a RecordDict"
                result.content, result.error = None, (ErrorCode.UNKNOWN, reason)
            dispatch.result = result
        return dispatch.result

    def keep_state(self, dispatch: Dispatch) -> Result:
        """Makes what the client keeps its state, and passes the turn on; returns the result."""
        result = self.result(dispatch)
        if result.state is None:
            self.lose_state(dispatch.client)
        else:
            self._states[dispatch.client] = result.state
        self.finish(dispatch)
        return result

    def do_later(self, dispatch: Dispatch) -> None:
        """Passes the turn on although the work, of which the client keeps nothing, may not be done.

        It is done when somebody reads the reply.
        """
        if not dispatch.submitted and len(self._open.get(dispatch.client, ())) > 1:
            self.submit()  # the client's next request belongs to a later wave
        self.finish(dispatch)

    def lose_state(self, client: int) -> None:
        """Forgets what a client has kept."""
        self._states.pop(client, None)

    def drop(self, dispatch: Dispatch) -> None:
        """Forgets the work of one whose reply nobody will read."""
        dispatch.unread = False
        if dispatch.submitted and dispatch.result is None:
            with self._without_draws():
                self._executor.discard(dispatch.request)
        else:
            self._waiting.pop(dispatch, None)
            self.free(dispatch)

    @property
    def max_batch(self) -> int:
        """The most clients that the executor has train together."""
        return self._executor.max_batch

    def together(
        self, wave: Sequence[CohortRequest], asked: Sequence[CohortRequest]
    ) -> list[Result]:
        """Returns what came of those of a wave that are asked for, in their order.

        Args:
            wave: of clients that keep nothing, and are at nothing else.
            asked: some of it; nobody will need the others.
        """
        with self._without_draws():
            self._executor.submit(wave)
            results = [self._executor.result(request) for request in asked]
            for request in dict.fromkeys(wave).keys() - dict.fromkeys(asked).keys():
                self._executor.discard(request)
        return results

    def said(self, results: Sequence[Result]) -> None:
        """Passes on what clients have said."""
        if self._on_said is not None:
            for result in results:
                for line in result.said:
                    self._on_said(line)

    def aside(self, requests: Sequence[Request]) -> list[Result]:
        """Returns what clients answer to requests of which the run knows nothing.

        Each finds the state that its client has now, in virtual time, whatever work of the client
        is done ahead; what it leaves in that is forgotten.
        """
        for request in requests:
            request.state = self._states.get(request.client)
        with self._without_draws():
            return self._executor.aside(requests)

    def free(self, dispatch: Dispatch) -> None:
        """Lets go of the models that came and went."""
        dispatch.result, dispatch.request.payload = None, FREED
