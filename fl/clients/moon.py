"""A contrast of representations: those of the server's model are near, the client's last far.

Li, He, Song: Model-Contrastive Federated Learning (MOON), CVPR 2021, arXiv:2103.16257, Algorithm 1,
equation 3; authors' code QinbinLi/MOON.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, softplus

from fl.checks import not_negative, positive
from fl.clients.correction import Correction
from fl.clients.rule import Batch, Finished, Received, Scalar, State
from fl.models.features import head_of


@dataclass(frozen=True)
class ModelContrast(Correction):
    """The gradient of f_i(w) + mu l_con(w), x the received model and v the client's last one.

        l_con = -log( exp(cos(z, z_x) / T) / (exp(cos(z, z_x) / T) + exp(cos(z, z_v) / T)) )

    averaged over the batch; z, z_x, z_v are the features of its examples under w, x and v. v is
    what the client sent in its last task, x in its first: then l_con is log 2 and moves nothing.
    With mu = 0 the optimizer is what it is without, bit for bit. The server is FedAvg's.

    Features are the input of the model's last linear layer; the paper puts a projection of two
    layers before it, which is a model's own business. With dropout the three passes draw apart. The
    loss a client reports is f_i alone.

    Attributes:
        mu: weight of the contrast, at least 0; the paper tunes it in {0.1, 1, 5, 10}.
        temperature: T, above 0.
        clip_first: clip the batch's gradient alone and correct the result.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    mu: float = 1.0
    temperature: float = 0.5
    clip_first: bool = False

    def __post_init__(self) -> None:
        not_negative("mu", self.mu)
        positive("temperature", self.temperature)

    @property
    def gradients_per_step(self) -> float:
        """Two forward passes, a third of a gradient each; the sum's gradient is taken at once."""
        return 2 / 3

    @property
    def differentiates(self) -> bool:
        """Of the features."""
        return True

    def vectors(self, is_plain: bool) -> int:
        """Returns 2, for the received model and the last one."""
        return 2

    def check_model(self, model: nn.Module) -> None:
        """Raises ConfigError if the model has no features before its last layer."""
        head_of(model)

    def first_memory(self, w: Tensor) -> dict[str, Tensor]:
        """Returns the received model."""
        return {"last": w}

    def correct(
        self, g: Tensor, w: Tensor, state: State, received: Received, batch: Batch, lr: Scalar
    ) -> tuple[Tensor, State]:
        """Returns g + mu times the gradient of l_con at w."""
        if self.mu == 0.0:
            return g, state
        z_x, z_v = batch.features(received.w), batch.features(received.memory["last"])

        def contrast(z: Tensor) -> Tensor:
            near, far = (cosine_similarity(z, other, dim=-1) for other in (z_x, z_v))
            losses = softplus((far - near) / self.temperature)
            return losses if losses.ndim == 1 else losses.mean(dim=1)

        return torch.add(g, batch.features_grad(contrast, w), alpha=self.mu), state

    def finish(self, w: Tensor, state: State, received: Received) -> Finished:
        """Returns the model, which the client keeps as well."""
        return Finished(w, {}, {"last": w})
