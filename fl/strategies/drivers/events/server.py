"""What a method sees and may do: the server's model in versions, its clients, and their updates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fl.aggregation import check_result
from fl.clients.app.choosing import SMOOTHING_KEY, chosen_model, mixed, model_key, shares_of
from fl.clients.app.masks import masks_record, read_classes, read_moved
from fl.errors import ConfigError, NoStep
from fl.flower.carried import carried, median_carried
from fl.flower.grid_view import Control
from fl.flower.records import from_record, layout_of, record_vector, to_record, vector_record
from fl.randomness import generator
from fl.selection import sample
from fl.strategies.clusters import Clusters, Mixture
from fl.strategies.drivers.exchange import Exchange
from fl.strategies.drivers.forging import Forging
from fl.strategies.drivers.rounds.cluster_models import ClusterModels
from fl.strategies.drivers.tasks import Task, Tasks
from fl.submodels import (
    CLASSES_KEY,
    MASKS_KEY,
    OWN_CLASSES_KEY,
    SubModel,
    Units,
    positions_of,
)
from fl.vectors.rows import Row, as_tensor, mean

_MOST_CONTENTS = 16  # of a version, where clients are sent models of their own


@dataclass(frozen=True, slots=True, eq=False)
class Sent:
    """What a task began with.

    Attributes:
        version: of the server's model.
        w: the model that was sent, shape (d,), float32; the first, if there were several.
        config: what the message said beside the model.
        part: what of it was sent; None is all.
        models: those among which the client chooses, k of shape (d,); empty if there was one.
        model: which of the method's models `w` is.
    """

    version: int
    w: Row
    config: Mapping[str, Any]
    part: SubModel | None = None
    models: tuple[Row, ...] = ()
    model: int = 0

    @property
    def mixes(self) -> bool:
        """Whether the client mixes those models, instead of choosing one."""
        return bool(self.models) and SMOOTHING_KEY in self.config


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """A client's answer.

    Attributes:
        task: what was asked.
        x: the model the client made, shape (d,), float32, read-only.
        metrics: what it reported.
        received_s: when the answer arrived, s.
        statistics: entries of the model that are not in the row.
        extras: vectors that came beside the model, shape (p,) each, by name.
        model: which of the method's models the client has trained from, where there are several.
        own_start: what it has mixed of them, shape (d,); None if it was sent what it began with.
        mixture: their shares in that, as the client found them; None likewise.
        part: what of the model it holds; None is all.
    """

    task: Task[Sent]
    x: Row
    metrics: Mapping[str, Any]
    received_s: float
    statistics: Mapping[str, Array]
    extras: Mapping[str, Row] = field(default_factory=dict)
    model: int = 0
    own_start: Row | None = None
    mixture: Mixture | None = None
    part: SubModel | None = None

    @property
    def node(self) -> int:
        """Flower id of the client."""
        return self.task.node

    @property
    def version(self) -> int:
        """Version of the server's model that the client began with."""
        return self.task.memo.version

    @property
    def config(self) -> Mapping[str, Any]:
        """What the message said beside the model."""
        return self.task.memo.config

    @property
    def seconds(self) -> float:
        """From sending the message to receiving the answer, s."""
        return self.received_s - self.task.sent_s

    @property
    def sent_s(self) -> float:
        """When the client was sent the model, s."""
        return self.task.sent_s

    @property
    def start(self) -> Row:
        """The model that the client was sent, or has chosen or mixed of those, shape (d,)."""
        if self.own_start is not None:
            return self.own_start
        sent = self.task.memo
        return sent.models[self.model] if sent.models else sent.w

    @property
    def delta(self) -> Row:
        """The client's change: x minus the model that it began with, shape (d,)."""
        with np.errstate(over="ignore"):  # seen in what is made of it
            return np.asarray(self.x - self.start)


class GlobalModel:
    """The server's model, in versions.

    Args:
        arrays: the initial model, version 0.

    Attributes:
        layout: of the model.
        clusters: of a method with several models, of which clients use one or a mixture.
        classes: where the last layer has a row for each, if clients' losses are of their own.
    """

    lasting = ("_w", "_version", "_carried")
    clusters: Clusters | None = None
    classes = Units("classes", 0, ())

    def __init__(self, arrays: ArrayRecord) -> None:
        self.layout = layout_of(arrays)
        self._w: Row = from_record(self.layout, arrays)
        self._version = 0
        self._carried = carried(self.layout, arrays)

    @property
    def w(self) -> Row:
        """The model, shape (d,), float32, read-only; a new array for every version."""
        return self._w

    @property
    def version(self) -> int:
        """How often the model has changed."""
        return self._version

    def record(self) -> ArrayRecord:
        """Returns the model for a message."""
        return self.record_of(self.w)

    def evaluated(self) -> ArrayRecord:
        """Returns the model for an evaluation: with those of the clusters, if there are some."""
        if self.clusters is None:
            return self.record()
        return ClusterModels.of(self.layout, self.w, self._carried, self.clusters)

    def record_of(self, w: Row, part: SubModel | None = None) -> ArrayRecord:
        """Returns a model of the same form for a message, shape (d,), or a part of it."""
        if part is not None:
            return to_record(part.layout, part.of(w), self._carried)
        return to_record(self.layout, w, self._carried)

    def read(
        self,
        task: Task[Sent],
        reply: RecordDict,
        key: str,
        now: float,
        needs: Sequence[str] = (),
        p: int = 0,
    ) -> Update:
        """Returns the update in a reply.

        Of a client that was sent a part of the model, all else is as it was sent. One that was sent
        single numbers of tensors may return as many others, with their places. A model's record
        without arrays says that the model is the one that was sent, a vector's that it is 0:
        neither travels.

        Args:
            task: what was asked.
            reply: its content.
            key: name of the model's record.
            now: time in s.
            needs: names of records with a vector beside the model.
            p: length of those vectors.

        Raises:
            ConfigError: the reply holds no finite model of the right form, or lacks a vector.
        """
        record = reply.get(key)
        if not isinstance(record, ArrayRecord):
            raise ConfigError(f"the reply has no ArrayRecord '{key}', only {sorted(reply)}")
        metrics: Mapping[str, Any] = next(iter(reply.metric_records.values()), {})
        extras = {name: _vector(reply, name, p) for name in needs}
        sent = task.memo
        model, start, mixture = sent.model, sent.w, None
        if sent.mixes:
            mixture = shares_of(metrics, len(sent.models))
            start = mixed(self.layout, sent.models, mixture)
        elif sent.models:
            model = chosen_model(metrics, len(sent.models))
            start = sent.models[model]
        own = None if mixture is None else start
        if not len(record):
            return Update(
                task, start, metrics, now, self._carried, extras, model, own, mixture, sent.part
            )
        part = sent.part
        if part is not None and MASKS_KEY in reply:
            part = read_moved(self.layout, part, reply[MASKS_KEY])
        layout = self.layout if part is None else part.layout
        row = from_record(layout, record)
        if part is not None:
            row = part.put(sent.w, row)
        if OWN_CLASSES_KEY in sent.config:
            has = read_classes(reply.get(CLASSES_KEY), self.classes.width)
            whole = SubModel(self.layout, np.arange(self.layout.size)) if part is None else part
            part = whole.without(positions_of(self.layout, self.classes, ~has))
            row = part.put(sent.w, part.of(row))
        statistics = carried(layout, record)
        return Update(task, row, metrics, now, statistics, extras, model, own, mixture, part)

    def staleness(self, task: Task[Sent]) -> int:
        """Returns the versions since the one that a task began with."""
        return self.version - task.memo.version

    def become(
        self, w: Row, contributors: Sequence[Update], *, of_one_version: bool = False
    ) -> None:
        """Makes `w` the next version.

        Statistics of normalisation layers are no directions: where contributors began with
        different versions, they become the plain mean of theirs, however stale. Entries outside the
        row become the median of theirs.

        Args:
            w: shape (d,).
            contributors: of what it was made.
            of_one_version: they all began with the present version, so that the statistics in `w`
                are what the method made of theirs.

        Raises:
            NotFinite: the model would not be finite; then nothing has changed.
        """
        w = np.ascontiguousarray(w, dtype=np.float32)
        if contributors and self.layout.statistics and not of_one_version:
            w = w.copy()
            for entry in self.layout.statistics:
                place = slice(entry.offset, entry.offset + entry.size)
                w[place] = mean(np.stack([u.x[place] for u in contributors]))
        w = self.layout.rounded(w)
        check_result("the server", w)
        if contributors and self.layout.carried:
            self._carried = median_carried(self.layout, [u.statistics for u in contributors])
        self._w = w
        self._version += 1

    def stay(self) -> None:
        """Makes the model as it is the next version."""
        self._version += 1


class Server:
    """What a method sees and may do: the model, the clients, messages.

    Args:
        model: the model.
        tasks: what is in flight.
        config: sent with every message.
        seed: root of the draws.
        keys: names of the records with the model and the configuration.
        exchange: what comes between.
        name: of the model, where there are several.

    Attributes:
        num_rounds: versions of the model after which the run ends.
        forging: forges updates of this model; None if nobody does.
    """

    lasting = ("_draws",)

    def __init__(
        self,
        model: GlobalModel,
        tasks: Tasks[Sent],
        config: Mapping[str, Any],
        seed: int,
        keys: tuple[str, str],
        exchange: Exchange,
        name: str = "",
    ) -> None:
        self.name = name
        self.exchange = exchange
        self.forging: Forging | None = exchange.forging(name)
        self.model = model
        self.tasks = tasks
        self.seed = seed
        self.num_rounds = 0
        self.evaluate: Callable[[], MetricRecord | None] = lambda: None
        self._config = dict(config)
        self._keys = keys
        self._draws = 0
        self._contents: dict[Any, tuple[RecordDict, Sent]] = {}
        self._contents_of = -1

    @property
    def w(self) -> Row:
        """The model, shape (d,), float32, read-only."""
        return self.model.w

    @property
    def version(self) -> int:
        """How often the model has changed."""
        return self.model.version

    @property
    def control(self) -> Control:
        """Of the grid."""
        return self.tasks.control

    @property
    def now(self) -> float:
        """Time in s."""
        return self.tasks.now()

    @property
    def config(self) -> Mapping[str, Any]:
        """What every message says beside the model."""
        return self._config

    def of(self, model: GlobalModel, name: str) -> Server:
        """Returns a server of another model, with the same clients, tasks and configuration."""
        return Server(model, self.tasks, self._config, self.seed, self._keys, self.exchange, name)

    def staleness(self, update: Update) -> int:
        """Returns the server versions since the one the update began with."""
        return self.model.staleness(update.task)

    def rng(self) -> np.random.Generator:
        """Returns a generator of (seed, "clients", how many times it was asked for before)."""
        self._draws += 1
        return generator(self.seed, "clients", self._draws - 1)

    def sample(self, nodes: Sequence[int], k: int, *, replace: bool = False) -> list[int]:
        """Returns k of the nodes, uniformly; without replacement all of them if there are fewer.

        The generator is that of `rng`.
        """
        if replace:
            return [nodes[i] for i in self.rng().choice(len(nodes), size=k).tolist()]
        return sample(self.rng(), nodes, k)

    def send(
        self,
        nodes: Sequence[int],
        config: Mapping[str, Any] | None = None,
        *,
        old: tuple[int, Row] | None = None,
        kind: str = "",
        extras: Mapping[str, Row] | None = None,
        part: SubModel | None = None,
        places: bool = True,
        models: Sequence[Row] = (),
        model: int = 0,
    ) -> list[Task[Sent]]:
        """Sends a model to clients, and returns their tasks.

        Args:
            nodes: Flower ids.
            config: what the messages say beside the model, added to the run's configuration; lists
                as tuples.
            old: version and values of another model to send than the current one.
            kind: what sort of work it is, if there are several that take different times.
            extras: vectors that the messages carry beside the model, shape (p,) each, by name.
            part: what of the model is sent; None is all.
            places: say of which single numbers of tensors it is; the clients may know.
            models: those among which each client chooses, instead of a single one.
            model: which of the method's models it is, where each client is sent one of several.
        """
        if not nodes:
            return []
        version, w = (self.version, models[0] if models else self.w) if old is None else old
        choice = tuple(models) if len(models) > 1 else ()
        sent = Sent(version, w, dict(config or {}), part, choice, model)
        content = self._content(sent, extras or {}, places=places)
        return self.tasks.send(content, list(nodes), sent, kind)

    def step(
        self,
        w: Row,
        contributors: Sequence[Update],
        *,
        of_one_version: bool = False,
        polled: bool = False,
        clusters: Clusters | None = None,
    ) -> bool:
        """Makes `w` the next version of the model, or what there is if `w` is not finite.

        Args:
            w: shape (d,).
            contributors: the updates it was made of; their staleness is counted and reported now.
            of_one_version: see `GlobalModel.become`.
            polled: whether the server asked for the updates; then it is no staleness, see
                `fl.flower.grid_view.Control.applied`.
            clusters: the next models of a method with several.

        Returns:
            Whether the step was taken. If not, what a method has made of it for later, as a
            momentum, is to be forgotten.
        """
        stale = [self.staleness(update) for update in contributors]
        try:
            self.model.become(w, contributors, of_one_version=of_one_version)
        except NoStep as error:
            for update in contributors:
                self.discard(update)
            self.stay(error)
            return False
        self.model.clusters = clusters
        if len(stale) > 1 and not any(stale) and not polled:
            names = [update.task.message_id for update in contributors]
            self.control.applied_at_once(names, [update.metrics for update in contributors])
        else:
            for update, age in zip(contributors, stale, strict=True):
                name = update.task.message_id
                self.control.applied(name, age, update.metrics, polled=polled)
        self.control.stepped(self.version, model=self.name)
        self.evaluate()
        return True

    def stay(self, why: NoStep) -> None:
        """Makes the model as it is the next version, and reports why."""
        self.model.stay()
        self.control.stepped(self.version, why, model=self.name)
        self.evaluate()

    def content(
        self, config: Mapping[str, Any], extras: Mapping[str, Row] | None = None
    ) -> RecordDict:
        """Returns what `send` would send to clients of one model, the server's."""
        sent = Sent(self.version, self.w, dict(config))
        return self._content(sent, extras or {}, places=True)

    def reject(self, update: Update) -> None:
        """Reports that an update is none that can be used: a fault."""
        self.control.rejected(update.task.message_id)

    def discard(self, update: Update) -> None:
        """Reports that an update will not be used."""
        self.control.discarded(update.task.message_id, self.staleness(update))

    def _content(self, sent: Sent, extras: Mapping[str, Row], *, places: bool) -> RecordDict:
        """Returns the message's content; the same object for equal ones, so it is shared."""
        if self._contents_of != self.version:
            self._contents, self._contents_of = {}, self.version
        told = tuple(sorted(sent.config.items()))
        models = sent.models or (sent.w,)
        beside_key = ((name, id(x)) for name, x in extras.items())
        key = (*map(id, models), id(sent.part), places, sent.version, told, *beside_key)
        known = self._contents.get(key)
        if known is not None:
            return known[0]
        arrays_key, config_key = self._keys
        records: dict[str, Any] = {
            model_key(arrays_key, j): self.model.record_of(w, sent.part)
            for j, w in enumerate(models)
        }
        said = {k: list(v) if isinstance(v, tuple) else v for k, v in sent.config.items()}
        config = {**self._config, **said, "server-round": sent.version + 1}
        beside = {name: vector_record(as_tensor(x)) for name, x in extras.items()}
        records[config_key] = ConfigRecord(config)
        if sent.part is not None and sent.part.bitmaps and places:
            records[MASKS_KEY] = masks_record(sent.part.bitmaps)
        content = RecordDict({**records, **beside})
        if len(self._contents) >= _MOST_CONTENTS:
            del self._contents[next(iter(self._contents))]
        self._contents[key] = content, sent  # kept: of what is gone the id may be another's
        return content


def _vector(reply: RecordDict, name: str, p: int) -> Row:
    record = reply.get(name)
    if not isinstance(record, ArrayRecord):
        raise ConfigError(
            f"the reply has no record {name!r}, only {sorted(reply)}: use the client rule "
            "that sends it"
        )
    if not len(record):
        return np.zeros(p, np.float32)
    row: Row = record_vector(record, p, f"record {name!r}").numpy()
    return row
