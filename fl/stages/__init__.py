"""Models cut into stages that several machines hold.

The names below are loaded when first used: a run needs few of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fl.lazy import lazily

if TYPE_CHECKING:
    from fl.stages.block_placement import BlockPlacement, Held, Servers, server_throughput
    from fl.stages.block_routing import Ban, Bans, Leg, ShortestTime, random_route
    from fl.stages.cut import Cut, Ends, PipelineStage, Span
    from fl.stages.micro_batch import MicroBatch, Pass
    from fl.stages.nic_placement import Machines, NicAware, Placed
    from fl.stages.rebalancing import Move, Rebalancing, pipeline_rate
    from fl.stages.stage_work import StageWork, TransformerStage
    from fl.stages.wiring import Candidate, Candidates, StochasticWiring

__getattr__ = lazily(
    __name__,
    {
        "Ban": "fl.stages.block_routing",
        "Bans": "fl.stages.block_routing",
        "BlockPlacement": "fl.stages.block_placement",
        "Candidate": "fl.stages.wiring",
        "Candidates": "fl.stages.wiring",
        "Cut": "fl.stages.cut",
        "Ends": "fl.stages.cut",
        "Held": "fl.stages.block_placement",
        "Leg": "fl.stages.block_routing",
        "Machines": "fl.stages.nic_placement",
        "MicroBatch": "fl.stages.micro_batch",
        "Move": "fl.stages.rebalancing",
        "NicAware": "fl.stages.nic_placement",
        "Pass": "fl.stages.micro_batch",
        "PipelineStage": "fl.stages.cut",
        "Placed": "fl.stages.nic_placement",
        "Rebalancing": "fl.stages.rebalancing",
        "Servers": "fl.stages.block_placement",
        "ShortestTime": "fl.stages.block_routing",
        "Span": "fl.stages.cut",
        "StageWork": "fl.stages.stage_work",
        "StochasticWiring": "fl.stages.wiring",
        "TransformerStage": "fl.stages.stage_work",
        "pipeline_rate": "fl.stages.rebalancing",
        "random_route": "fl.stages.block_routing",
        "server_throughput": "fl.stages.block_placement",
    },
)

__all__ = [
    "Ban",
    "Bans",
    "BlockPlacement",
    "Candidate",
    "Candidates",
    "Cut",
    "Ends",
    "Held",
    "Leg",
    "Machines",
    "MicroBatch",
    "Move",
    "NicAware",
    "Pass",
    "PipelineStage",
    "Placed",
    "Rebalancing",
    "Servers",
    "ShortestTime",
    "Span",
    "StageWork",
    "StochasticWiring",
    "TransformerStage",
    "pipeline_rate",
    "random_route",
    "server_throughput",
]
