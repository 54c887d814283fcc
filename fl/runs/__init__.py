"""The life of a run: from a configuration to its parts, through it, and on after a kill."""
