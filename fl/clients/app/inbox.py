"""What a client receives, read and checked: the content of a message, and what it keeps itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from flwr.app import Array, ArrayRecord, Context, RecordDict
from torch import Tensor

from fl.clients.app.batches import Chunks
from fl.clients.app.choosing import SMOOTHING_KEY, Received, model_key
from fl.clients.app.home import Home
from fl.clients.app.merging import Merging, read_merging
from fl.clients.app.message_config import read_float, read_int
from fl.clients.correction import Corrected
from fl.clients.local_optimizer import FIRST_STEP_KEY, LR_FACTOR_KEY
from fl.clients.proximal import Proximal
from fl.clients.rule import Adaptation, Role, Rule
from fl.clients.sgd import Sgd
from fl.errors import ConfigError
from fl.execution.contract import WORK_KEY
from fl.flower.carried import carried
from fl.flower.records import RecordReader, record_tensors, record_vector
from fl.submodels import OWN_CLASSES_KEY
from fl.vectors.rows import Row

ARRAYS_KEY = "arrays"
CONFIG_KEY = "config"
MEMORY_KEY = "fl.memory"  # record of the client's Context.state that holds the rule's memory
EVALUATED_KEY = "evaluate-model"
EVALUATED = ("global", "personal", "local")
"""Models that an `evaluate` message may ask for; see `TrainingApp`."""

_ASKED_FOR = {
    "proximal-mu": "proximal",
    "feddyn-alpha": "dynamic_regularization",
    "momentum-beta": "global_momentum or controlled_momentum",
    "fedamd-anchor": "anchor_sampling",
    "proxskip-p": "proxskip_shift",
}

NOTHING: Mapping[str, Any] = {}


class Inbox:
    """Reads messages for one model and rule.

    Args:
        home: says what of the model travels.
        rule: of the clients.
        needing: name of what needs the vectors beside the model.
        seconds: how long a task takes at the most, s; None has no limit.
    """

    def __init__(self, home: Home, rule: Rule, needing: str, seconds: float | None = None) -> None:
        self.home = home
        self.layout = home.sent.layout
        self.rule = rule
        self.needing = needing
        self.seconds = seconds
        self.reader = RecordReader(self.layout)

    def read(self, content: RecordDict) -> Instructions:
        """Returns what a message's content says."""
        return Instructions(self, content)

    def scalars(self, config: Mapping[str, Any]) -> dict[str, float]:
        """Returns what the rule makes of a message's configuration.

        Raises:
            ConfigError: it makes no sense, or not with this rule.
        """
        # FedProx, Flower's as well, leaves the proximal term to the client. Without it, it would be
        # FedAvg under another name, and nobody would notice.
        for key, correction in _ASKED_FOR.items():
            if config.get(key) and key not in self.rule.honours:
                raise ConfigError(
                    f"the message asks for {key} {config[key]!r}, but clients do not correct their "
                    f"gradients so: set client/correction={correction}"
                )
        if LR_FACTOR_KEY in config and LR_FACTOR_KEY not in self.rule.honours:
            raise ConfigError(
                f"the message asks for a learning rate times {config[LR_FACTOR_KEY]!r}, but "
                f"{type(self.rule).__name__} has none that a message can change: use client=sgd, "
                "for example"
            )
        return self.rule.scalars(config)


class Instructions:
    """What the content of a message says; the same for all clients of a broadcast.

    Each part is read when it is first asked for, and then kept.

    Raises:
        ConfigError: by the part that makes no sense, or not with this model and rule.
    """

    def __init__(self, inbox: Inbox, content: RecordDict) -> None:
        self._inbox = inbox
        # Flower's records are slow to search, above all for keys they do not have.
        self._records: dict[str, Any] = dict(content.items())

    @cached_property
    def _model(self) -> ArrayRecord:
        return self._model_in(ARRAYS_KEY)

    def _model_in(self, key: str) -> ArrayRecord:
        record = self._records.get(key)
        if not isinstance(record, ArrayRecord):
            raise ConfigError(
                f"the message has no ArrayRecord {key!r}, only {sorted(self._records)}: the "
                "strategy must send the model under that key"
            )
        if surplus := sorted(self._inbox.home.absent & record.keys()):
            raise ConfigError(
                f"the message has {surplus[0]!r} (of {len(surplus)} such entries), which is frozen "
                "or stays with the client: send what TrainingApp.layout names, as "
                "fl.flower.records.model_record makes it of a model"
            )
        return record

    @cached_property
    def row(self) -> Row:
        """What travels of the model, shape (d,), read-only."""
        return self._inbox.reader.row(self._model)

    @cached_property
    def is_row(self) -> bool:
        """Whether the model is its row: float32 throughout, in the order of the clients' own."""
        layout, record = self._inbox.layout, self._records.get(ARRAYS_KEY)
        if not isinstance(record, ArrayRecord) or not layout.is_plain:
            return False
        came = [(name, array.dtype) for name, array in record.items()]
        return came == [(entry.name, entry.dtype) for entry in layout.entries]

    @cached_property
    def carried(self) -> dict[str, Array]:
        """Entries of it outside the row."""
        return carried(self._inbox.layout, self._model) if self._inbox.layout.carried else {}

    @cached_property
    def num_models(self) -> int:
        """How many models there are to choose from, at least 1."""
        k = 1
        while model_key(ARRAYS_KEY, k) in self._records:
            k += 1
        return k

    @cached_property
    def models(self) -> list[Received]:
        """The models to choose from, the one in `row` first."""
        layout = self._inbox.layout
        found: list[Received] = [(self.row, self.carried)]
        for j in range(1, self.num_models):
            record = self._model_in(model_key(ARRAYS_KEY, j))
            entries = carried(layout, record) if layout.carried else {}
            found.append((self._inbox.reader.row(record), entries))
        return found

    @cached_property
    def smoothing(self) -> float | None:
        """By which smoothing the client mixes several models; None if it does not mix them.

        Raises:
            ConfigError: it is no number above 0.
        """
        smoothing = read_float(self.config, SMOOTHING_KEY, above=0.0)
        return smoothing if self.num_models > 1 else None

    @cached_property
    def merging(self) -> Merging | None:
        """How the client merges several models; None if it does not.

        Raises:
            ConfigError: the configuration says no way there is, or no weights of the models.
        """
        return read_merging(self.config, self.num_models)

    @cached_property
    def server(self) -> dict[str, Tensor]:
        """The vectors beside the model that the task needs, shape (p,) each.

        They are zero where numbers stay with the client.
        """
        vectors = {}
        for name in self.role.needs:
            record = self._records.get(name)
            if not isinstance(record, ArrayRecord):
                raise ConfigError(
                    f"{self._inbox.needing} needs the record {name!r} beside the model, the "
                    f"message has {sorted(self._records)}: use the strategy that sends "
                    "it"
                )
            vector = record_vector(record, self._inbox.layout.num_trainable, f"record {name!r}")
            vectors[name] = self._inbox.home.sent.padded(vector)
        return vectors

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration."""
        return dict(self._records.get(CONFIG_KEY, NOTHING).items())

    @cached_property
    def scalars(self) -> dict[str, float]:
        """What the rule makes of the configuration."""
        return self._inbox.scalars(self.config)

    @cached_property
    def role(self) -> Role:
        """What the rule makes of the task."""
        return self._inbox.rule.role(self.scalars)

    @cached_property
    def amount(self) -> tuple[int | None, int | None]:
        """How many epochs, or steps, the configuration asks for; one of them is None, or both."""
        return read_amount(self.config)

    @cached_property
    def batch_size(self) -> int | None:
        """How many examples a step is to have; None leaves it to the app."""
        return read_batch_size(self.config)

    @cached_property
    def chunks(self) -> Chunks | None:
        """Which chunks of the client's examples the task is of; None is all of them."""
        return read_chunks(self.config)

    @property
    def own_classes(self) -> bool:
        """Whether the loss is to be over the client's own classes."""
        return self.config.get(OWN_CLASSES_KEY) is True

    @cached_property
    def evaluated(self) -> str:
        """Which model is to be evaluated, one of `EVALUATED`.

        Raises:
            ConfigError: the configuration asks for another.
        """
        which = self.config.get(EVALUATED_KEY, EVALUATED[0])
        if which not in EVALUATED:
            raise ConfigError(
                f"the message's {EVALUATED_KEY!r} is {which!r}; it must be one of "
                f"{', '.join(EVALUATED)}"
            )
        return str(which)

    @cached_property
    def adaptations(self) -> Sequence[Adaptation]:
        """How the client trains what it would predict with: the rule's way, then as it is told."""
        both = (self._inbox.rule.adaptation, read_fine_tuning(self.config))
        return [adaptation for adaptation in both if adaptation is not None]

    @cached_property
    def limits(self) -> tuple[float | None, float | None]:
        """Its deadline and "elapsed-s", of which one is None, or both.

        The deadline is "deadline-s", or before, if the client contacts the server before.
        """
        deadline, elapsed = read_limits(self.config)
        limits = [s for s in (deadline, self._inbox.seconds) if s is not None]
        return (None, elapsed) if elapsed is not None else (min(limits, default=None), None)

    @cached_property
    def fitting_steps(self) -> int | None:
        """What the record `fl.work` says the device has time for; None without the record."""
        work = self._records.get(WORK_KEY)
        return None if work is None else read_fitting_steps(work)

    @property
    def first_step(self) -> Any:
        """How many steps of a schedule there were before, as the configuration says it."""
        return self.config.get(FIRST_STEP_KEY)

    def check(self, *, model: bool) -> None:
        """Reads everything that training takes.

        Args:
            model: the model and vectors beside it, too; otherwise they are taken to be compressed.

        Raises:
            ConfigError: a part makes no sense, or not with this model and rule.
        """
        if model:
            self.models, self.server  # noqa: B018 (read and kept)
        self.limits, self.role, self.scalars, self.amount, self.fitting_steps  # noqa: B018
        self.batch_size, self.smoothing, self.merging, self.chunks  # noqa: B018


def read_amount(config: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Returns "local-epochs" and "local-steps" of a message's configuration.

    Raises:
        ConfigError: it has both, or one that is no number of at least 1.
    """
    epochs = read_int(config, "local-epochs", least=1)
    steps = read_int(config, "local-steps", least=1)
    if epochs is not None and steps is not None:
        raise ConfigError(
            f"the message asks for local-epochs {epochs} and local-steps {steps}; send one"
        )
    return epochs, steps


def read_batch_size(config: Mapping[str, Any]) -> int | None:
    """Returns "batch-size" of a message's configuration; None without.

    Raises:
        ConfigError: it is no number of at least 1.
    """
    return read_int(config, "batch-size", least=1)


def read_chunks(config: Mapping[str, Any]) -> Chunks | None:
    """Returns "chunks" and what belongs to it in a message's configuration; None without.

    Raises:
        ConfigError: a number is out of range, or of no chunks, or there is a batch size or a number
            of epochs beside them.
    """
    of = read_int(config, "chunks", least=1)
    keys = {"first-chunk": 0, "chunk-examples": 1, "chunk-begin": 0}  # to the least
    first, take, begin = (read_int(config, key, least=least) for key, least in keys.items())
    if of is None:
        for key in keys:
            if config.get(key) is not None:
                raise ConfigError(
                    f"the message has {key} {config[key]} and no 'chunks': send their number too"
                )
        return None
    if (first or 0) >= of:
        raise ConfigError(f"the message's 'first-chunk' is {first}; it must be below chunks, {of}")
    for key in ("batch-size", "local-epochs"):
        if config.get(key) is not None:
            raise ConfigError(
                f"the message has chunks {of} and {key} {config[key]}; a chunk is a batch, and "
                "local-steps says how many: leave the other out"
            )
    return Chunks(first or 0, of, take, begin or 0)


def read_limits(config: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Returns "deadline-s" and "elapsed-s" of a message's configuration.

    Raises:
        ConfigError: it has both, or one that is out of range.
    """
    deadline = read_float(config, "deadline-s", above=0.0)
    elapsed = read_float(config, "elapsed-s", least=0.0)
    if deadline is not None and elapsed is not None:
        raise ConfigError(
            f"the message has deadline-s {deadline} and elapsed-s {elapsed}; send one of them"
        )
    return deadline, elapsed


def read_fine_tuning(config: Mapping[str, Any]) -> Adaptation | None:
    """Returns the training that a message asks for before the personal model is evaluated.

        v <- v - lr [g(v) + lambda (v - v_0)],    v_0 what the client would predict with

    so many "fine-tune-steps", or "fine-tune-epochs", with "fine-tune-lr" and "fine-tune-lambda",
    by default 0; None without steps.

    Raises:
        ConfigError: it asks for steps and for epochs, or without a learning rate, or a number is
            out of range.
    """
    steps = read_int(config, "fine-tune-steps", least=0)
    epochs = read_int(config, "fine-tune-epochs", least=0)
    lr = read_float(config, "fine-tune-lr", above=0.0)
    mu = read_float(config, "fine-tune-lambda", least=0.0) or 0.0
    if steps is not None and epochs is not None:
        raise ConfigError(
            f"the message asks for fine-tune-steps {steps} and fine-tune-epochs {epochs}; send one"
        )
    if not (steps or epochs):
        return None
    if lr is None:
        raise ConfigError(
            "the message asks for fine-tuning and has no 'fine-tune-lr': send the learning rate"
        )
    return Adaptation(Corrected(Sgd(lr), Proximal(mu)), steps or None, epochs or None)


def read_fitting_steps(work: Mapping[str, Any]) -> int:
    """Returns the steps of a record `fl.work`.

    Raises:
        ConfigError: it has none.
    """
    steps = read_int(work, "steps", least=0)
    if steps is None:
        raise ConfigError(f"the record {WORK_KEY!r} has no 'steps', only {sorted(work)}")
    return steps


def read_partition(context: Context) -> int:
    """Returns the partition-id of a client's node.

    Raises:
        ConfigError: it has none.
    """
    value = context.node_config.get("partition-id")
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(
            f"node_config['partition-id'] is {value!r}; it must be a whole number, at least 0: "
            'start the SuperNode with --node-config "partition-id=0 num-partitions=2"'
        )
    return value


def read_memory(state: RecordDict | None) -> dict[str, Tensor] | None:
    """Returns what a rule kept in a client's `Context.state`; None if it kept nothing.

    Raises:
        ConfigError: something else has taken its key.
    """
    if state is None or MEMORY_KEY not in state:
        return None
    record = state[MEMORY_KEY]
    if not isinstance(record, ArrayRecord):
        raise ConfigError(
            f"Context.state[{MEMORY_KEY!r}] is a {type(record).__name__}, not an ArrayRecord: the "
            "key belongs to the client rule, use another"
        )
    return record_tensors(record)
