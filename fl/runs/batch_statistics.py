"""Statistics of batch normalisation that clients do not keep: taken for each evaluation instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from flwr.app import ArrayRecord
from torch import Tensor

from fl.flower.carried import carried, carried_tensors
from fl.flower.records import from_record, model_record
from fl.models.batch_statistics import take_statistics
from fl.randomness import global_generators
from fl.runs.experiment import Experiment
from fl.strategies import Rounds
from fl.submodels import SubModels
from fl.vectors.rows import as_tensor


def completing(experiment: Experiment) -> Callable[[ArrayRecord], ArrayRecord]:
    """Returns the function that makes of the server's model the one to be evaluated and kept.

    With `sub_models.static_batch_norm` that is the model with statistics of all clients' training
    examples, in the batches of an epoch. A measurement, as evaluation is: it takes no virtual time
    and no bytes. Otherwise it is the model as it is.
    """
    strategy = experiment.strategy
    parts = strategy.sub_models if isinstance(strategy, Rounds) else None
    if not (isinstance(parts, SubModels) and parts.static_batch_norm):
        return lambda arrays: arrays
    app, data, layout = experiment.app, experiment.data, experiment.app.layout
    latest: list[tuple[ArrayRecord, ArrayRecord]] = []

    def batches() -> Iterator[Tensor]:
        for p in range(data.num_partitions):
            rows = data.partitions[p]
            size = app.batch_size or max(len(rows), 1)
            for start in range(0, len(rows), size):
                if start == 0 or start + size <= len(rows) or not app.drop_last:
                    yield data.tensors(data.train, rows[start : start + size])[0]

    def complete(arrays: ArrayRecord) -> ArrayRecord:
        if latest and latest[0][0] is arrays:
            return latest[0][1]
        model = experiment.model()
        row = as_tensor(from_record(layout, arrays, finite=False))
        layout.load(model, row, carried_tensors(carried(layout, arrays)))
        with global_generators(0, "batch statistics"):  # dropout draws
            take_statistics(model, batches())
        latest[:] = [(arrays, model_record(layout, model))]
        return latest[0][1]

    return complete
