"""Models cut into stages that several machines hold."""

from fl.stages.cut import Cut, Ends, PipelineStage, Span

__all__ = ["Cut", "Ends", "PipelineStage", "Span"]
