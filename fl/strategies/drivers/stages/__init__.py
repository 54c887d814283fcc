"""Models cut into stages that machines hold: pipelines that train, and those that pass the time."""
