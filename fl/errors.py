"""The ways a run can stop, apart from a bug.

A simulated fault (a client that drops out, a lost message, a timeout) is neither: it is an event
in the trace, and to the strategy what Flower would show it.
"""


class ConfigError(ValueError):
    """A configuration or an input that cannot mean anything sensible.

    Raised at the edge, before any training. The message gives the value, the bound it violates,
    and what would be right.
    """


class ConfigErrors(ConfigError):
    """Several of them, found in one go.

    Args:
        *problems: what each of them says.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        """Returns them in lines."""
        return "\n".join(self.problems)


class SimulationError(RuntimeError):
    """A simulation that cannot go on; the message names the event, the client and virtual time."""


class DeploymentError(RuntimeError):
    """A run on a deployment failed, or processes do not start or stop as they must."""
