"""What a stage of a transformer costs: FLOPs of its layers, bytes of its boundary and its weights.

For timing: of a model too large to be trained here, sizes are all that the simulator needs.
"""

from __future__ import annotations

from dataclasses import dataclass

from fl.checks import at_least, positive


@dataclass(frozen=True)
class StageWork:
    """What a stage costs.

    Attributes:
        forward_flops: of a micro-batch.
        backward_flops: likewise, with the forward pass done again where activations are not kept.
        boundary_bytes: activations of a micro-batch that a stage sends on; as many bytes of
            gradients come back.
        gradient_bytes: that its peers average once a step.
        state_bytes: weights and moments, which a peer that comes to the stage downloads.

    Raises:
        ConfigError: a number is not positive.
    """

    forward_flops: float
    backward_flops: float
    boundary_bytes: int
    gradient_bytes: int
    state_bytes: int

    def __post_init__(self) -> None:
        for name in ("forward_flops", "backward_flops"):
            positive(name, getattr(self, name))
        for name in ("boundary_bytes", "gradient_bytes", "state_bytes"):
            at_least(name, getattr(self, name), 1)


@dataclass(frozen=True)
class TransformerStage:
    """Layers of a transformer of width h on sequences of s tokens.

    A layer has 12 h^2 weights in its matrices (4 h^2 of attention, 8 h^2 of the feed-forward part),
    a multiply and an add each per token, and 4 s h FLOPs per token for the scores of attention and
    what they weigh. So the forward pass of a token takes

        layers (24 h^2 + 4 s h)   FLOPs, and sends on   h   numbers,

    whose ratio grows with h: the square-cube law of arXiv:2301.11913. The backward pass takes twice
    as many FLOPs, and one forward pass more with activation checkpointing, without which a peer
    that is given a backward pass would have to be the one that did the forward pass.

    Attributes:
        width: h.
        sequence: s, tokens.
        layers: of the stage.
        micro_batch: sequences in a micro-batch.
        boundary_bits: of a number that is sent from stage to stage.
        gradient_bits: of a number of the gradient when peers average it.
        shared: one set of weights for all layers of the stage, as in ALBERT.
        checkpointed: the backward pass does the forward pass again.

    Raises:
        ConfigError: a number is below 1.
    """

    width: int
    sequence: int
    layers: int = 1
    micro_batch: int = 1
    boundary_bits: int = 8
    gradient_bits: int = 16
    shared: bool = False
    checkpointed: bool = True

    def __post_init__(self) -> None:
        for name in (
            "width",
            "sequence",
            "layers",
            "micro_batch",
            "boundary_bits",
            "gradient_bits",
        ):
            at_least(name, getattr(self, name), 1)

    @property
    def parameters(self) -> int:
        """Numbers in the stage's matrices."""
        return 12 * self.width**2 * (1 if self.shared else self.layers)

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch."""
        return self.micro_batch * self.sequence

    @property
    def work(self) -> StageWork:
        """What the stage costs: weights and two moments are float32."""
        h, s = self.width, self.sequence
        forward = float(self.tokens * self.layers * (24 * h * h + 4 * s * h))
        return StageWork(
            forward_flops=forward,
            backward_flops=forward * (3 if self.checkpointed else 2),
            boundary_bytes=-(-self.tokens * h * self.boundary_bits // 8),
            gradient_bytes=-(-self.parameters * self.gradient_bits // 8),
            state_bytes=3 * 4 * self.parameters,
        )
