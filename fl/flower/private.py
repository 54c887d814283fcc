"""What Flower keeps to itself and this package needs; no other module of `fl` touches it.

Each function says which private part it uses and why nothing that Flower publishes does the same.
tests/flower/test_private.py pins what is assumed here, for the versions in `CHECKED_WITH`: another
release of Flower is a change of this file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache, partial
from types import ModuleType
from typing import Any, TypeVar

from flwr.app import Array, Error, Message, Metadata, RecordDict
from flwr.app.message.recorddict import _SyncedDict
from flwr.app.message.typeddict import TypedDict
from flwr.serverapp.strategy import Strategy
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.run import Run as Run
from flwr.supercore.task_identity import TaskIdentity

CHECKED_WITH = ("1.41.0",)
"""Versions of Flower."""

Records = TypedDict
"""What Flower's records are, and the views of a `RecordDict`: a mapping that checks its items.

Public properties return one, but no public package has its name.
"""


# ---- who this process is -------------------------------------------------------------------------


def set_identity(*, run_id: int, node_id: int) -> None:
    """Makes this process a node of a run, so that `Message(...)` can be constructed.

    Flower's runtimes set `flwr.supercore.task_identity.TaskIdentity` when they start a process for
    an app; a runtime of somebody else's has no other way to say who sends.
    """
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = node_id
    TaskIdentity.task_id = node_id


def empty_run(run_id: int) -> Run:
    """Returns information on a run that nobody has submitted.

    `Grid.run` has to return a `flwr.supercore.run.Run`, which no public package has.
    """
    return Run.create_empty(run_id)


# ---- messages ------------------------------------------------------------------------------------


def give_id(message: Message, message_id: str) -> None:
    """Gives a message its id, as Flower's grids do when a message is pushed.

    `Metadata.message_id` has no setter: the id is `_message_id` in the metadata's `__dict__`.
    """
    message.metadata.__dict__["_message_id"] = message_id


def message_of(
    metadata: Metadata, *, content: RecordDict | None = None, error: Error | None = None
) -> Message:
    """Returns a message with the given metadata, which becomes its own.

    Without content and error it is to be filled, through the setter of either.

    The signatures that `Message` documents make metadata of their own, with the present as the time
    of creation, this process as the sender and no id. The undocumented one takes metadata, but
    checks all types again, for 3 us: a message is its `__dict__` of `_metadata`, `_content` and
    `_error`.
    """
    metadata.delivered_at = ""  # as the constructor does
    message: Message = Message.__new__(Message)
    message.__dict__.update(_metadata=metadata, _content=content, _error=error)
    return message


def deflated(message: Message) -> tuple[str, dict[str, bytes]]:
    """Returns a message as the objects that a deployment moves, by their hashes, and its own hash.

    A runtime of Flower does that between an app and the wire (`flwr.supercore.inflatable`); nothing
    public does the same, by which what it takes could be measured.
    """
    objects = get_all_nested_objects(message)
    return message.object_id, {name: made.deflate() for name, made in objects.items()}


def inflated(name: str, objects: dict[str, bytes]) -> Message:
    """Returns the message that such objects are.

    Args:
        name: its hash.
        objects: bytes by hash.
    """
    message = inflate_object_from_contents(name, dict(objects))  # which empties it
    if not isinstance(message, Message):
        raise TypeError(f"the objects are a {type(message).__name__}, not a message")
    return message


@contextmanager
def node_at(address: str) -> Iterator[Callable[[], object]]:
    """Registers a node at a SuperLink without TLS; yields what asks it once for a message.

    That is one call as a SuperNode makes it, signed. Flower has no public client of its fleet.
    """
    from flwr.supernode.fleet_http_connection import http_request_response

    with http_request_response(address, insecure=True) as (_, receive, *_):
        yield receive


def copied(metadata: Metadata) -> Metadata:
    """Returns a copy of metadata.

    All that `Metadata` knows is in its `__dict__`; the constructor checks it again, for 20 us a
    message, and `copy.copy` takes three times as long as this.
    """
    copied: Metadata = Metadata.__new__(Metadata)
    copied.__dict__.update(metadata.__dict__)
    return copied


def reply_metadata(sent: Metadata, source: int, now: float) -> Metadata:
    """Returns the metadata of the reply to a message, named after it.

    As `copied`, with the fields set that have no setter.

    Args:
        sent: of the message.
        source: the node that replies.
        now: when it does, s.
    """
    reply, fields = copied(sent), sent.__dict__
    reply.__dict__.update(
        _message_id=f"{fields['_message_id']}.reply",
        _src_node_id=source,
        _dst_node_id=fields["_src_node_id"],
        _reply_to_message_id=fields["_message_id"],
        _created_at=now,
        _src_task_id=fields["_dst_task_id"],
        _dst_task_id=fields["_src_task_id"],
    )
    return reply


class _Promised(Message):
    """A message that is fetched when somebody looks at more than its metadata.

    From then on it is a `Message` like any other.
    """

    def __getattribute__(self, name: str) -> Any:
        if name == "metadata":
            return object.__getattribute__(self, "__dict__")["_metadata"]
        return getattr(_fetched(self), name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(_fetched(self), name, value)


def _fetched(message: _Promised) -> Message:
    fetch: Callable[[Message], None] = object.__getattribute__(message, "__dict__").pop("fetch")
    object.__setattr__(message, "__class__", Message)
    fetch(message)
    return message


def promised(message: Message, fetch: Callable[[Message], None]) -> Message:
    """Returns the message; `fetch` fills it when somebody looks at more than its metadata.

    Flower's messages have their content from the beginning. This one changes its class, since
    what it becomes must be a `Message` and nothing else, and relies on `_metadata` in `__dict__`.
    """
    message.__dict__["fetch"] = fetch
    message.__class__ = _Promised
    return message


# ---- arrays and records --------------------------------------------------------------------------


def set_fields(array: Array, fields: dict[str, Any]) -> None:
    """Gives an array that is being made its attributes.

    `Array.__setattr__` notes every change, for the id that an array has in an object store: 3 us
    for six attributes of a new one, of which nobody has an id. The attributes are in `__dict__`,
    and an array is taken as changed until it has noted something else.
    """
    array.__dict__.update(fields)


Record = TypeVar("Record", bound=TypedDict[Any, Any])


def trusted_record(kind: type[Record], items: dict[str, Any]) -> Record:
    """Returns a Flower record holding `items`, without its check of every key and value.

    Flower takes 5 us to check three metrics, and has no constructor that does not. This is for
    items made by this package, which have the right types by construction; the dictionary becomes
    the record's own. A record keeps its items in `_data` of its `__dict__`, and nothing else there
    depends on them.
    """
    record = kind.__new__(kind)
    record.__dict__ = {**_empty_record(kind), "_data": items}
    return record


@lru_cache(maxsize=16)
def _empty_record(kind: type[Any]) -> dict[str, Any]:
    return dict(kind().__dict__)


def view_of(content: RecordDict, kind: type[Record]) -> TypedDict[str, Record]:
    """Returns the records of one kind, as `RecordDict.array_records` and the like do.

    What is changed in the view is changed in the content. It is Flower's `_SyncedDict`, filled
    without a check of every key and record. Flower's checks by a method of its own, a cycle that
    keeps a reply's model in memory until the garbage collector happens to run; this one's does not.
    """
    fields = content.__dict__
    view: _SyncedDict[Any] = _SyncedDict.__new__(_SyncedDict)
    view.__dict__.update(
        _check_key_fn=fields["_check_key_fn"],
        _check_value_fn=partial(_check_kind, kind),
        _data={key: record for key, record in fields["_data"].items() if isinstance(record, kind)},
        recorddict=content,
        allowed_type=kind,
    )
    return view


def _check_kind(kind: type[Any], record: object) -> None:
    if not isinstance(record, kind):
        raise TypeError(f"Expected `{kind.__name__}`, but received `{type(record).__name__}`.")


# ---- strategies and older servers ----------------------------------------------------------------


def state_of(strategy: Strategy) -> dict[str, Any]:
    """Returns what a strategy remembers, to be given back by `restore`.

    Flower's strategies have no method that returns their state: it is all of their attributes.
    """
    return dict(vars(strategy))


def restore(strategy: Strategy, state: dict[str, Any]) -> None:
    """Undoes what a strategy has remembered since `state_of`; see there."""
    vars(strategy).update(state)


@contextmanager
def wrapping(
    kind: type[Any],
    method: str,
    wrap: Callable[[Callable[..., Any]], Callable[..., Any]],
    *,
    subclasses: bool = False,
) -> Iterator[None]:
    """Wraps a method of one of Flower's classes in the block.

    An app calls its strategy itself, and Flower tells nobody: there is no callback for what a
    strategy is started with, and none for what it returns.

    Args:
        kind: the class.
        method: the method's name.
        wrap: from the method to what is called in its place.
        subclasses: wrap it in all subclasses as well that define it themselves, also in those that
            are only imported or made in the block.
    """
    with ExitStack() as stack:

        def replace_in(each: type[Any]) -> None:
            if method in vars(each):
                stack.enter_context(_replacing(each, method, wrap(vars(each)[method])))

        if subclasses:
            for each in _with_own(method, kind):
                replace_in(each)
            stack.enter_context(_told_of_subclasses(kind, replace_in))
        else:
            replace_in(kind)
        yield


def _with_own(method: str, kind: type[Any]) -> list[type[Any]]:
    """Returns a class and its subclasses, those that define a method themselves."""
    own = [kind] if method in vars(kind) else []
    return own + [found for child in kind.__subclasses__() for found in _with_own(method, child)]


@contextmanager
def _told_of_subclasses(kind: type[Any], told: Callable[[type[Any]], None]) -> Iterator[None]:
    """Calls a function with every subclass of a class that is made in the block."""
    own = vars(kind).get("__init_subclass__")

    def noting(cls: type[Any], /, **kwargs: Any) -> None:
        if own is None:
            super(kind, cls).__init_subclass__(**kwargs)
        else:
            own.__get__(None, cls)(**kwargs)
        told(cls)

    kind.__init_subclass__ = classmethod(noting)  # type: ignore[assignment]
    try:
        yield
    finally:
        if own is None:
            del kind.__init_subclass__
        else:
            kind.__init_subclass__ = own


@contextmanager
def _replacing(owner: Any, name: str, new: Any) -> Iterator[None]:
    old = vars(owner)[name]
    setattr(owner, name, new)
    try:
        yield
    finally:
        setattr(owner, name, old)


@contextmanager
def older_server(
    *,
    fit_clients: Callable[..., Any],
    evaluate_clients: Callable[..., Any],
    wait_for: Callable[..., bool],
) -> Iterator[None]:
    """Replaces the functions of Flower's older server that start threads, or wait for one.

    `flwr.server.Server` calls two functions of its module, and its client manager waits on a
    condition variable; neither takes another way to send or to wait.

    Args:
        fit_clients: in the place of the function in `flwr.server.server`.
        evaluate_clients: likewise.
        wait_for: in the place of `SimpleClientManager.wait_for`.
    """
    from flwr.server import SimpleClientManager, server

    with (
        _replacing(server, "fit_clients", fit_clients),
        _replacing(server, "evaluate_clients", evaluate_clients),
        _replacing(SimpleClientManager, "wait_for", wait_for),
    ):
        yield


def older_conversions() -> ModuleType:
    """Returns Flower's functions between the messages of older apps and records.

    They are `flwr.compat.common.recorddict_compat`; no public package has them.
    """
    from flwr.compat.common import recorddict_compat

    return recorddict_compat
