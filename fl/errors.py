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


class NoStep(ConfigError):
    """What has come in brings no step of a model, which therefore stays as it is.

    No weight is positive, too much of it is unusable, or the step is not finite. It is no fault of
    the configuration, and the next round may bring a step: drivers record it and go on.
    """


class NotFinite(NoStep):
    """A step would make the model NaN or infinite."""


class Diverged(NotFinite):
    """Training has diverged so far that there is nothing left to do.

    A result, not a failure: the run ends with this status and its last finite model.
    """


class Enough(Exception):
    """A run has lasted long enough: why it is to end. A result as well: the last model is good."""


class SimulationError(RuntimeError):
    """A simulation that cannot go on; the message names the event, the client and virtual time."""


class DeploymentError(RuntimeError):
    """A run on a deployment failed, or processes do not start or stop as they must."""
