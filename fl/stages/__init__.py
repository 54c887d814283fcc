"""Models cut into stages that several machines hold."""

from fl.stages.progress import Pass, Progress
from fl.stages.rebalancing import Move, Rebalancing, pipeline_rate
from fl.stages.stage_work import StageWork, TransformerStage
from fl.stages.wiring import Candidate, Candidates, StochasticWiring

__all__ = [
    "Candidate",
    "Candidates",
    "Move",
    "Pass",
    "Progress",
    "Rebalancing",
    "StageWork",
    "StochasticWiring",
    "TransformerStage",
    "pipeline_rate",
]
