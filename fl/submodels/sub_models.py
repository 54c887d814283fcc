"""What a strategy with rounds is told of partial models."""

from __future__ import annotations

from dataclasses import dataclass

from fl.checks import is_a
from fl.errors import ConfigError
from fl.submodels.capacity import Capacity
from fl.submodels.extraction import Extraction


@dataclass(frozen=True)
class SubModels:
    """Clients train parts of the model, and each number is the mean over those that hold it.

        y_{i,0} = the part m_i of x_t;   C(j) = {i : m_i has j}
        x_{t+1}[j] = x_t[j] + mean over C(j) of (y_i[j] - x_t[j]);   x_t[j] if C(j) is empty

    Attributes:
        extraction: says which part of the model a client of some level gets.
        capacity: says what level a client has.
        weighted: weigh clients by their examples; the papers' code weighs all the same.
        scaled: in training, divide what a layer returns by the share of its units that is there,
            HeteroFL's "scaler", so that the next layer is given numbers of the usual size.
        masked_loss: a client's loss counts the logits of classes of which it has no example as 0,
            and the last layer's row and bias of a class are the mean over the clients that have it.
        static_batch_norm: layers that normalise over batches keep no statistics in training. Those
            that they need otherwise are taken of the server's model, on all clients' examples, for
            each evaluation.

    Raises:
        ConfigError: an argument is of another kind, or a level is none of the extraction's.
    """

    extraction: Extraction
    capacity: Capacity
    weighted: bool = False
    scaled: bool = False
    masked_loss: bool = False
    static_batch_norm: bool = False

    def __post_init__(self) -> None:
        for name, kind in (("extraction", Extraction), ("capacity", Capacity)):
            is_a(name, getattr(self, name), kind)
        for name in ("weighted", "scaled", "masked_loss", "static_batch_norm"):
            is_a(name, getattr(self, name), bool)
        for level in self.capacity.levels:
            try:
                self.extraction.check_level(level)
            except ConfigError as error:
                levels = list(self.capacity.levels)
                raise ConfigError(f"capacity.levels is {levels}: {error}") from None
        if self.scaled and (self.extraction.of_adapters or not self.extraction.slices):
            raise ConfigError(
                "scaled is true, and the extraction leaves out no units of layers, by whose share "
                "it would divide: leave it out"
            )

    @property
    def stays(self) -> bool:
        """Whether a client has the same part in all rounds."""
        return self.extraction.stays and self.capacity.stays

    @property
    def slices(self) -> bool:
        """Whether parts are smaller tensors."""
        return self.extraction.slices
