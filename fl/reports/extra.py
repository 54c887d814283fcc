"""What summary.json has under `extra`, which depends on what a run consists of."""

from __future__ import annotations

EXTRA: dict[str, tuple[str, dict[str, str]]] = {
    "executor": ("where clients were computed: `serial` or `ray`", {}),
    "moved": ("true where clients were computed in this process first, and then by Ray", {}),
    "batches": ("how many groups of tasks were computed together", {}),
    "max_batch": ("tasks in one of them, at most", {}),
    "actors": ("of Ray", {}),
    "actor_deaths": ("how many of them died and were replaced", {}),
    "batching": (
        "whether tasks of a group train as one program",
        {
            "mode": "`client.batching`",
            "together": "what was chosen",
            "why": "why not, where it cannot be",
            "alone_s": "host seconds of a trial one by one, where it was measured",
            "together_s": "and of the same as one program",
            "repeat_with": "what makes the same choice again",
        },
    ),
    "data_sha256": ("of examples and partitions; of several tasks, of each", {}),
    "initial_model_sha256": ("of the model that `initial_model` names", {}),
    "frozen_sha256": ("of parameters that no client changes, and that are in no model file", {}),
    "trained": ("false where clients do not train (`client.train=false`)", {}),
    "byzantine": ("numbers of the Byzantine clients", {}),
    "central": ("metrics after `central_epochs` epochs on all data in one place", {}),
    "metrics": (
        "names of metrics that are not as they were reported",
        {
            "renamed": "to what they are called in metrics.csv",
            "refused": "and why they are not in it",
            "more_renamed": "further ones",
            "more_refused": "likewise",
        },
    ),
    "client_errors": ("kinds of exceptions in ClientApps: text, count, where the first was", {}),
    "more_errors": ("further ones, of kinds that are not listed", {}),
    "journal_stopped": ("why the journal ends before the run, so that it cannot be resumed", {}),
    "changed_code": ("after how many answers the user's code became another, and its hashes", {}),
    "time_shares": (
        "where a runtime's time goes, of `runtime=flower` and others that are not ideal",
        {
            "clients": "of the time between messages and replies, the share of each term",
            "server": "of the run's time, the share of each of the server's",
        },
    ),
    "server": (
        "the server's own machine, if the runtime says what it takes",
        {"busy_s": "virtual s at work", "energy_j": "J, working and idle"},
    ),
    "batteries": (
        "clients' batteries at the end (`battery=...`)",
        {
            "batteries": "how many there are",
            "mean_charge": "in [0, 1], over clients with one",
            "least_charge": "the lowest of them",
            "low": "how many clients take no task because of it",
        },
    ),
    "hierarchy": (
        "machines between clients and server, all rounds together unless said otherwise",
        {
            "machines": "how many there are",
            "machines_used": "how many had something to add, mean over rounds",
            "completion_s": "from the end of a round to its sum, mean over rounds, virtual s",
            "cold_starts": "processes that were started",
            "warm_starts": "processes that were alive and took a part",
            "failures": "aggregators that died",
            "lost_updates": "updates that were in no sum because of that",
            "bytes_between": "sent from machine to machine",
            "bytes_within": "handed on within a machine",
            "busy_s": "processes adding and starting, virtual s",
            "moving_s": "encoding, copying and decoding, virtual s",
            "waiting_s": "processes alive without work, virtual s",
            "cpu_s": "processor time of all of this, s",
            "energy_j": "J, idle power included",
        },
    ),
    "checkpointing": (
        "checkpoints and failures of a job (`fleet/checkpointing=...`)",
        {
            "job_s": "the job's own time, virtual s",
            "interval_s": "between checkpoints",
            "checkpoints": "taken",
            "failures": "of the job",
            "stalled_s": "virtual s in which it stood still for them",
            "lost_s": "virtual s of work that was done again",
            "restarting_s": "virtual s of restarts",
            "young_s": "the interval that would be best by Young's formula",
            "daly_s": "by Daly's",
            "exact_s": "by the exact optimum",
        },
    ),
}
"""What each key says, and each of the keys below it."""
