"""Models cut into stages that several machines hold."""

from fl.stages.block_placement import BlockPlacement, Held, Servers, server_throughput
from fl.stages.block_routing import Ban, Bans, Leg, ShortestTime, random_route
from fl.stages.cut import Cut, Ends, PipelineStage, Span
from fl.stages.micro_batch import MicroBatch, Pass
from fl.stages.nic_placement import Machines, NicAware, Placed
from fl.stages.rebalancing import Move, Rebalancing, pipeline_rate
from fl.stages.stage_work import StageWork, TransformerStage
from fl.stages.wiring import Candidate, Candidates, StochasticWiring

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
