"""What goes with what: the table of what is refused.

A part by itself refuses arguments that make no sense. Here are the choices that make none together,
by what the parts say they are (`fl.strategies.Traits`), each with a reason and a remedy.
docs/compatibility.md prints them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fl.clients import (
    AnchorSampling,
    CodedGradient,
    Descent,
    Direction,
    Gradient,
    LocalOptimizer,
    Projected,
)
from fl.compression import Participation, Receivers, Shapes, check_broadcast
from fl.runs.combination import Combination
from fl.simulation.world.hierarchies import Edge
from fl.strategies import Exchange


@dataclass(frozen=True)
class Refusal:
    """Choices that do not go together.

    {strategy}, {uplink}, {downlink}, {attack}, {rule}, {correction}, {hierarchy}, {client},
    {aggregator}, {edges}, {lacking}, {needed}, {projections} and {forgotten} in the texts stand
    for what is chosen, {fitting} and {home} for what could be.

    Attributes:
        what: the choices, for the page.
        when: whether they are made.
        given: key and value.
        why: the reason.
        instead: the remedy.
    """

    what: str
    when: Callable[[Combination], bool]
    given: str
    why: str
    instead: str

    def message(self, choice: Combination) -> str:
        """Returns what a user is told."""
        kinds = {
            name: type(getattr(choice, name)).__name__
            for name in ("uplink", "downlink", "attack", "rule", "correction", "hierarchy")
        }
        return f"{self.given}, but {self.why}: {self.instead}".format(
            strategy=choice.strategy.name,
            client=choice.client,
            lacking=choice.lacking,
            fitting=choice.fitting if choice.lacking else "",
            home=choice.home,
            forgotten=choice.forgotten,
            needed=getattr(choice.traits.client_rule, "__name__", ""),
            edges=choice.traits.edges,
            aggregator=choice.traits.aggregator,
            projections=choice.projections or "none",
            **kinds,
        )

    def __str__(self) -> str:
        """Returns what the page says."""
        why = self.why.format(
            strategy="the strategy",
            correction="the correction",
            aggregator="the aggregator",
            forgotten="moments",
            lacking="...",
            needed="that rule",
            edges="so many",
            projections="others",
        )
        instead = self.instead.format(
            edges="...",
            fitting="leave client/correction as the strategy chooses it",
            home="the strategy that it is for",
        )
        return f"**{self.what}.** {why[0].upper()}{why[1:]}: {instead}."


_COMPRESSED = "compressor or downlink is set"

REFUSALS = (
    Refusal(
        "Several models and a strategy of one",
        lambda c: c.tasks and not c.traits.several_models,
        "tasks is set",
        "{strategy} trains one model",
        "use strategy=fedast or strategy=sync_st, or leave tasks out",
    ),
    Refusal(
        "Machines that add updates up, and aggregators that look at each of them",
        lambda c: c.hierarchy is not None and c.traits.aggregator != "",
        "hierarchy is {hierarchy}",
        "its machines hand on sums of what clients send, and {aggregator} looks at each update by "
        "itself",
        "leave hierarchy out, or use aggregator=mean and a strategy such as fedavg or fedadam",
    ),
    Refusal(
        "Machines that add updates up, and strategies that look at more than a weighted mean",
        lambda c: c.hierarchy is not None and not (c.traits.sums or c.traits.aggregator),
        "hierarchy is {hierarchy}",
        "its machines hand on sums of what clients send, and {strategy} is made of more than the "
        "weighted mean of a round's updates",
        "leave hierarchy out, or use a strategy such as fedavg or fedadam",
    ),
    Refusal(
        "Edge servers with models of their own, and other hierarchies",
        lambda c: (
            c.traits.edges > 0
            and c.hierarchy is not None
            and not (isinstance(c.hierarchy, Edge) and c.hierarchy.edges == c.traits.edges)
        ),
        "hierarchy is {hierarchy}",
        "{strategy} is for {edges} edge servers",
        "use hierarchy=edge with as many, hierarchy.edges={edges}",
    ),
    Refusal(
        "One model and a strategy of several",
        lambda c: c.traits.several_models and not c.tasks,
        "tasks is null",
        "{strategy} trains several models",
        "choose one, tasks=NAME",
    ),
    Refusal(
        "Compressors and strategies that pass time alone",
        lambda c: (c.uplink is not None or c.downlink is not None) and not c.traits.learns,
        _COMPRESSED,
        "{strategy} sends bytes that nobody holds, as many as its configuration says",
        "leave both out, and say how many bits a number takes: strategy.stage.boundary_bits",
    ),
    Refusal(
        "Attacks on updates and strategies that pass time alone",
        lambda c: c.attack is not None and not c.traits.learns,
        "attack is {attack}",
        "nothing is trained by {strategy}, so that there are no updates to forge",
        "leave attack out, or use another strategy",
    ),
    Refusal(
        "Compressors and a method that is one",
        lambda c: (
            c.traits.sends == "payload"
            and (c.downlink is not None or (c.uplink is not None and not c.sends_tensors))
        ),
        _COMPRESSED,
        "{strategy} compresses what there is to send itself, both ways, and all replicas take the "
        "step of the same bytes",
        "leave compressor and downlink out; with strategy=onebit_adam a compressor may carry the "
        "gradients of the warm-up",
    ),
    Refusal(
        "A downlink without a server",
        lambda c: c.downlink is not None and c.traits.meets == "peers" and c.traits.learns,
        "downlink is {downlink}",
        "with {strategy} nodes send to each other, and nobody to all",
        "leave downlink out, and choose compressor=... for what nodes send",
    ),
    Refusal(
        "A downlink of several models",
        lambda c: (
            c.downlink is not None
            and c.traits.meets == "server"
            and c.traits.sends == "model"
            and not c.traits.downlink
        ),
        "downlink is {downlink}",
        "clients of {strategy} are sent different models, several, or parts of one, and a "
        "compressed downlink is one broadcast to all",
        "leave downlink out, and choose compressor=... for what clients send",
    ),
    Refusal(
        "A downlink in a ring",
        lambda c: c.downlink is not None and c.traits.meets == "ring",
        "downlink is {downlink}",
        "workers of {strategy} meet in an all-reduce, with the same bytes both ways",
        "choose compressor=..., which compresses outer gradients, and leave downlink out",
    ),
    Refusal(
        "A downlink between stages",
        lambda c: c.downlink is not None and c.traits.meets == "stages",
        "downlink is {downlink}",
        "machines of {strategy} send activations and their gradients to each other, both ways",
        "choose compressor=..., which compresses these, and leave downlink out",
    ),
    Refusal(
        "Attacks on updates between stages",
        lambda c: c.attack is not None and c.traits.meets == "stages",
        "attack is {attack}",
        "it forges updates of the whole model, and machines of {strategy} send activations and "
        "the gradient of a stage",
        "use an attack on data, such as label_flip, or strategy=data_parallel",
    ),
    Refusal(
        "Client rules between stages",
        lambda c: (
            c.traits.meets == "stages" and c.rule is not None and not isinstance(c.rule, Gradient)
        ),
        "client.rule is {rule}",
        "machines of {strategy} give the gradient of their stage at its present parameters, and "
        "step together",
        "use client=gradient, and strategy.rule.optimizer for the step",
    ),
    Refusal(
        "Local layers, adapters and stages",
        lambda c: (c.keeps or c.adapted) and c.traits.meets == "stages",
        "client.local_layers or adapter is set",
        "a machine of {strategy} holds whole layers, and trains all that it holds",
        "leave both out, or use a strategy whose clients have the whole model, such as fedavg",
    ),
    Refusal(
        "Compressors that need every client in every round",
        lambda c: (
            c.uplink is not None
            and c.uplink.participation is Participation.FULL
            and c.strategy.cohort(c.num_clients) < c.num_clients
        ),
        "compressor is {uplink}",
        "it needs every client in every round, and {strategy} does not ask all at once",
        "set strategy.fraction_train=1 in a strategy with rounds, or use compressor=ef21, diana or "
        "ef_topk",
    ),
    Refusal(
        "Strategies that step by gradients and clients whose steps have no direction of their own",
        lambda c: (
            c.rule is not None
            and c.steps_by_gradients
            and not isinstance(c.rule, Gradient | Direction | Descent | CodedGradient)
        ),
        "client.rule is {rule}",
        "{strategy} steps by the mean of what clients send, and the mean of its steps, which are "
        "no multiples of gradients, vanishes elsewhere than that of gradients",
        "use client=gradient, sam or momentum, or another strategy",
    ),
    Refusal(
        "Strategies that step by gradients and corrections of them",
        lambda c: c.steps_by_gradients and c.correction is not None,
        "client.correction is {correction}",
        "it is about local steps away from the received model, and clients of {strategy} take none",
        "leave client/correction out, or use another strategy",
    ),
    Refusal(
        "Clients that send gradients and strategies that combine models",
        lambda c: (
            isinstance(c.rule, Gradient | Direction | CodedGradient) and not c.steps_by_gradients
        ),
        "client.rule is {rule}",
        "it trains nothing, and {strategy} combines trained models",
        "use it with strategy=data_parallel, dedloc, gradient_tracking, d2, extra, beer, "
        "onebit_adam, demo or just_one_byte, or another client",
    ),
    Refusal(
        "Vectors beside the model that only one end knows",
        lambda c: (
            bool(c.lacking)
            and c.steps_by_gradients == isinstance(c.rule, Gradient | Direction | CodedGradient)
        ),
        "{client}",
        "of it and {strategy} only one knows the vector {lacking!r}",
        "{fitting}, or choose {home}",
    ),
    Refusal(
        "Compressors and combinations that the server decodes",
        lambda c: c.uplink is not None and c.traits.combinations,
        "compressor is {uplink}",
        "what a compressor changes of a combination is multiplied when {strategy} decodes it, and "
        "what several workers send of one chunk does not cancel any more",
        "leave compressor out",
    ),
    Refusal(
        "A downlink and combinations that the server decodes",
        lambda c: c.downlink is not None and c.traits.combinations,
        "downlink is {downlink}",
        "workers of {strategy} that hold the same chunk must compute its gradient at the very same "
        "model, and a compressed downlink leaves those that missed a message with another",
        "leave downlink out",
    ),
    Refusal(
        "Attacks on updates and combinations that the server decodes",
        lambda c: c.attack is not None and c.traits.combinations,
        "attack is {attack}",
        "a forged combination spoils the whole sum that {strategy} decodes, and no aggregator sees "
        "the gradients that it is made of",
        "use strategy=backup_workers, or another whose clients send gradients of their own",
    ),
    Refusal(
        "Compressors and parts that lack single weights",
        lambda c: c.uplink is not None and bool(c.traits.partial) and not c.sends_tensors,
        "compressor is {uplink}",
        "parts of {strategy} lack single weights and travel as a list of the others",
        "leave compressor out, or use parts that lack units, such as "
        "strategy.sub_models.extraction.of=units",
    ),
    Refusal(
        "Compressors that remember and parts that change",
        lambda c: c.uplink is not None and c.traits.partial == "changes" and c.remembers,
        "compressor is {uplink}",
        "it remembers what of a client's last update did not travel, and the next one of "
        "{strategy} is of other units",
        "use a compressor that remembers nothing, such as qsgd, or strategy=heterofl with "
        "strategy/capacity=fixed, whose parts stay",
    ),
    Refusal(
        "Compressors that need every client and parts of the model",
        lambda c: (
            c.uplink is not None
            and bool(c.traits.partial)
            and c.uplink.participation is Participation.FULL
        ),
        "compressor is {uplink}",
        "it takes one vector of all clients, and those of {strategy} have several lengths",
        "use compressor=ef_topk or qsgd",
    ),
    Refusal(
        "Forged updates, compressors and parts of the model",
        lambda c: c.uplink is not None and c.attack is not None and bool(c.traits.partial),
        "attack is {attack} and compressor is {uplink}",
        "a forged update would be compressed as the whole model, an honest one of {strategy} as a "
        "part of it",
        "leave one of them out",
    ),
    Refusal(
        "Clients that remember and parts that change",
        lambda c: c.traits.partial == "changes" and c.client_remembers and not c.own_model,
        "{client}",
        "it keeps something of its model from task to task, and clients of {strategy} have another "
        "part of the model each time",
        "use client=sgd, or strategy=heterofl with strategy/capacity=fixed, whose parts stay",
    ),
    Refusal(
        "Clients with a model of their own and parts of the model",
        lambda c: bool(c.traits.partial) and c.own_model,
        "{client}",
        "its own model would be of a part of the model, and what clients of {strategy} predict "
        "with is evaluated as the whole",
        "use client=sgd without a correction, or a strategy whose clients have the whole model, "
        "such as fedavg",
    ),
    Refusal(
        "Local layers and parts of the model",
        lambda c: bool(c.traits.partial) and c.keeps,
        "client.local_layers is set",
        "{strategy} cuts parts out of the whole model, and does not know layers that stay with the "
        "clients",
        "leave client/local_layers out, or use a strategy whose clients have the whole model, such "
        "as fedavg",
    ),
    Refusal(
        "Local layers and models that clients merge",
        lambda c: bool(c.traits.merges) and c.keeps,
        "client.local_layers is set",
        "nodes of {strategy} match the units of whole models, and layers that stay with them come "
        "from nobody",
        "leave client/local_layers out, or use strategy=dfedavg",
    ),
    Refusal(
        "Adapters and parts of the model",
        lambda c: bool(c.traits.partial) and c.adapted and not c.traits.of_adapters,
        "adapter is set",
        "{strategy} cuts parts out of the whole model, of which an adapter freezes most",
        "leave adapter out, or use strategy=flexlora, or another whose clients have the whole "
        "model, such as fedavg",
    ),
    Refusal(
        "Servers that are for one client rule, and clients with another",
        lambda c: c.rule is not None and c.another_rule,
        "client.rule is {rule}",
        "the server of {strategy} is for clients with {needed}, and makes something else of what "
        "others send",
        "leave client as the strategy chooses it, or use strategy=fedavg",
    ),
    Refusal(
        "Compressors and models that clients merge",
        lambda c: c.uplink is not None and bool(c.traits.merges),
        "compressor is {uplink}",
        "nodes of {strategy} merge the models of others with their own when they next train, and "
        "with what a compressor leaves of them no mean of all would be kept",
        "leave compressor out, or use strategy=beer or strategy=dfedavg",
    ),
    Refusal(
        "Compressors and messages that are handed on",
        lambda c: (
            c.uplink is not None
            and not c.sends_tensors
            and c.traits.meets == "peers"
            and not c.traits.merges
            and c.traits.learns
        ),
        "compressor is {uplink}",
        "what nodes of {strategy} send is handed on, and what a compressor leaves out of it would "
        "be missing ever after",
        "leave compressor out, or use strategy=beer or strategy=dfedavg",
    ),
    Refusal(
        "Compressors where nothing is sent",
        lambda c: c.uplink is not None and c.traits.alone,
        "compressor is {uplink}",
        "with this topology nodes of {strategy} hear nobody, so that nothing is sent",
        "leave compressor out, or choose another topology, such as topology=ring",
    ),
    Refusal(
        "Attacks on updates where nothing is sent",
        lambda c: c.attack is not None and c.traits.alone,
        "attack is {attack}",
        "with this topology nodes of {strategy} hear nobody, so that nothing is sent",
        "use an attack on data, such as label_flip, or choose another topology, such as "
        "topology=ring",
    ),
    Refusal(
        "Corrections that count on the length of steps, and optimizers that choose it themselves",
        lambda c: (
            c.correction is not None
            and c.correction.counts_on_length
            and isinstance(c.rule, LocalOptimizer)
            and c.rule.rescales
        ),
        "client.rule is {rule}",
        "its steps are as long for a small gradient as for a large one, and {correction} counts on "
        "their length",
        "use client=sgd, or another strategy",
    ),
    Refusal(
        "Clients that forget between tasks that are one training",
        lambda c: (c.traits.continues or c.steps_by_gradients) and bool(c.forgotten),
        "client.rule is {rule}",
        "it forgets its {forgotten} after every task, and workers of {strategy} go on from "
        "where they were",
        "leave client.rule.keep_moments or keep_state at null, and use client=momentum, whose "
        "momentum is kept",
    ),
    Refusal(
        "Clients that decide when to contact the server, and strategies that decide it for them",
        lambda c: (
            c.contacts
            and (c.traits.meets != "server" or c.steps_by_gradients or c.traits.interrupts)
        ),
        "client.contact is set",
        "in {strategy} another than the client says how much local work there is between two "
        "exchanges",
        "leave client/contact out, or use another strategy, for example cdfl or fedasync",
    ),
    Refusal(
        "Estimates of gradients and stages",
        lambda c: c.estimator is not None and c.traits.meets == "stages",
        "client.estimator is set",
        "machines of {strategy} pass the gradient of their stage on to the one before",
        "leave client/estimator out, or use another strategy",
    ),
    Refusal(
        "Gradients charged as projections, and strategies that do not project them",
        lambda c: isinstance(c.estimator, Projected) and c.projections != c.estimator.samples,
        "client.estimator is Projected",
        "it stands for as many projections as clients send, and {strategy} has them send "
        "{projections}",
        "set client.estimator.samples to that with strategy=just_one_byte, and use "
        "client/estimator=two_point elsewhere",
    ),
    Refusal(
        "Local layers and strategies that step by gradients",
        lambda c: c.keeps and c.steps_by_gradients,
        "client.local_layers is set",
        "clients of {strategy} send gradients and step by nothing, so that what stays with them "
        "would never learn",
        "leave client/local_layers out, or use another strategy",
    ),
    Refusal(
        "Local layers and clients that must not move in some tasks",
        lambda c: c.keeps and isinstance(c.correction, AnchorSampling),
        "client.local_layers is set",
        "an anchor of {strategy} sends the gradient at the model that it received, which its own "
        "layers are no part of",
        "leave client/local_layers out, or use another strategy",
    ),
)


def refusals(choice: Combination) -> Iterator[str]:
    """Yields why choices do not go together."""
    return (refusal.message(choice) for refusal in REFUSALS if refusal.when(choice))


def check_model(choice: Combination, exchange: Exchange) -> None:
    """Checks that compressors can work with the clients' model.

    Raises:
        ConfigError: it cannot.
    """
    if choice.layout is None:
        return
    if choice.downlink is not None:
        check_broadcast(choice.downlink, Shapes.of(choice.layout))
        if choice.traits.compressed_carries:
            check_broadcast(choice.downlink, Shapes.trained(choice.layout))
    meets_layers = choice.traits.meets == "stages"  # activations are compressed, no model
    if choice.uplink is not None and choice.traits.compressors != "none" and not meets_layers:
        shapes = Shapes.trained(choice.layout)
        choice.uplink.init(shapes)
        vectors = 1 + len(choice.traits.compressed_needs)
        Receivers(choice.uplink, shapes, exchange.num_clients, exchange.max_bytes, vectors)
