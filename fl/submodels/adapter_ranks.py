"""Adapters of unequal ranks: each client trains the first ranks of every low-rank adapter.

Bai, Chen, Qian, Yao, Li, "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks
and Client Resources" (FlexLoRA), arXiv:2402.11505 (NeurIPS 2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import nn

from fl.errors import ConfigError
from fl.models.adapters import LowRank
from fl.submodels.heterofl import HeteroFL
from fl.submodels.units import Place, Units
from fl.vectors.layout import Layout


@dataclass(frozen=True)
class AdapterRanks(HeteroFL):
    """Ranks 0, ..., ceil(share r) - 1 of each adapter: as many rows of A and columns of B.

    With FlexLoRA they are those of the largest singular values. What a client keeps of its part is
    of no use in the next round, as its ranks are others' then.
    """

    stays: ClassVar[bool] = False
    of_adapters: ClassVar[bool] = True

    def units(
        self, model: nn.Module, layout: Layout, input_shape: tuple[int, ...], *, tokens: bool
    ) -> tuple[Units, ...]:
        """Returns the ranks of each adapter.

        Raises:
            ConfigError: the model has no adapters of low rank, or clients do not train A.
        """
        found = []
        for name, module in model.named_modules():
            if not isinstance(module, LowRank):
                continue
            A, B = (f"{name}.{factor}".removeprefix(".") for factor in "AB")
            if A not in layout.names:
                raise ConfigError(
                    f"{A!r} is frozen, and an adapter's ranks are rows of A and columns of B: use "
                    "adapter=lora"
                )
            rank = np.arange(len(module.A))
            found.append(Units(name, len(rank), (Place(A, 0, rank), Place(B, 1, rank))))
        if not found:
            raise ConfigError(
                "extraction is AdapterRanks, and the model has no adapters of low rank: use "
                "adapter=lora"
            )
        return tuple(found)
