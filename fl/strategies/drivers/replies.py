"""What is read from a client's reply, on any strategy: its model, its weight, its metrics."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

from fl.aggregation import weight_of
from fl.errors import ConfigError

_MOST = 1e300  # that a metric may be, so that sums and squares are finite

Form = tuple[tuple[str, str, int], ...]


def model_in(reply: Message, key: str) -> ArrayRecord:
    """Returns the record of a reply's model.

    Raises:
        ConfigError: there is none.
    """
    record = reply.content.get(key)
    if not isinstance(record, ArrayRecord):
        raise ConfigError(f"the reply has no ArrayRecord '{key}'")
    return record


def weight_in(content: RecordDict, key: str) -> object:
    """Returns what a client says that its reply weighs, whatever it is; None if it says nothing."""
    for record in content.values():
        if isinstance(record, MetricRecord) and key in record:
            return record[key]
    return None


def not_reported(metrics: Mapping[str, object], names: Iterable[str]) -> str | None:
    """Returns the first of the names under which metrics have no finite number; None if all do."""
    for name in names:
        value = metrics.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _MOST:
            return name
    return None


def any_not_finite(metrics: Mapping[str, object]) -> bool:
    """Returns whether metrics have a NaN or an infinity."""
    return any(isinstance(x, float) and not math.isfinite(x) for x in metrics.values())


def alike(contents: Sequence[RecordDict], weight_key: str) -> list[RecordDict]:
    """Returns the contents whose metrics have the most common form: names, and lengths of lists.

    What a client says of itself is no more to be trusted than its model: other names, lists of
    another length, or a number that is no float would stop the function that averages. Only finite
    numbers are of any form, with a weight among them.

    Args:
        contents: of replies.
        weight_key: metric that weights the average.
    """
    forms = [_form(content, weight_key) for content in contents]
    found = Counter(form for form in forms if form is not None).most_common(1)
    return [c for c, form in zip(contents, forms, strict=True) if found and form == found[0][0]]


def averageable(contents: Sequence[RecordDict], weight_key: str) -> list[RecordDict]:
    """Returns the contents that Flower can average the metrics of: those alike, if any weighs."""
    chosen = alike(contents, weight_key)
    return chosen if any(weight_of(weight_in(c, weight_key)) for c in chosen) else []


def _form(content: RecordDict, weight_key: str) -> Form | None:
    """Returns names and lengths (-1 for a number) of a client's metrics; None if they are unusable.

    The weight is looked for in the first record, as Flower does.
    """
    records = content.metric_records
    first: Mapping[str, object] = next(iter(records.values()), {})
    if weight_of(first.get(weight_key)) is None:
        return None
    form: list[tuple[str, str, int]] = []
    for record_name, record in sorted(records.items()):
        for name, value in sorted(record.items()):
            numbers = value if isinstance(value, list) else [value]
            largest = sys.float_info.max
            if not all(-largest <= number <= largest for number in numbers):  # NaN is not, either
                return None
            form.append((record_name, name, len(value) if isinstance(value, list) else -1))
    return tuple(form)
