"""Where the training of a pipeline is: who holds which stage, a step, and what is lost and found.

`fl.strategies.drivers.stages.pipeline` is the strategy; `PipelineRun` sends what is to be sent.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fl.errors import ConfigError, NoStep, SimulationError
from fl.randomness import uniform
from fl.strategies.drivers.stages.pipeline_run import Passage, PipelineRun, Place, StageGradient
from fl.strategies.pipeline_rule import StageState
from fl.vectors.layout import FLOAT_BYTES
from fl.vectors.rows import Row, mean

if TYPE_CHECKING:
    from fl.strategies.drivers.stages.pipeline import Pipeline

log = logging.getLogger("fl")

_MOST_TRIES = 1000  # of steps, since the last one that had not been taken before


class StageTraining:
    """Where a run of `Pipeline` is.

    Attributes:
        states: of the stages.
        step: steps taken, t.
        draw: returns a stage of another initial model, given how many were drawn before.
    """

    def __init__(self, driver: Pipeline, run: PipelineRun, states: Sequence[StageState]) -> None:
        self.driver = driver
        self.run = run
        self.states = list(states)
        self.step = 0
        self.draw: Any = None
        self._draws = 0
        self._tries = 0
        self._saved = (0, list(states))
        self._begun = False
        self._heads: dict[int, int] = {}  # whose turn it is, by pipeline
        self._turned = 0  # the step before which it was passed on last
        self._furthest = 0  # the most steps that were ever taken,
        self._since = 0  # and how many were tried since

    @property
    def _recovery(self) -> Any:
        return self.driver.rule.recovery

    # ---- a step ----------------------------------------------------------------------------------

    def advance(self) -> None:
        """Tries to take a step; a checkpoint may take it back by several."""
        run, driver, began = self.run, self.driver, self.run.now
        self._strike()
        complete = self._staffed()
        if not complete:
            run.wait(run.now + run.tasks.pause_s(driver.retry_s))
            return
        self._check_progress()
        ready_s = self._supplied(complete)
        there = run.hold(complete, self.step, [s.w for s in self.states], ready_s)
        back = run.micro_batches(there, self.step)
        gradients = run.gradients(list(back), self.step)
        if not gradients:
            run.facts["repeated_steps"] += 1
            if run.now == began:  # or it would be tried for ever at one instant
                run.wait(run.now + driver.retry_s)
            return
        run.wait(self._reduced(list(gradients)))
        why_not = self._stepped(gradients)
        run.tasks.control.stepped(run.version, why_not)
        if why_not is None:
            run.failures.clear()
        self._applied(back, gradients)
        self.step += 1
        run.whole &= {(p, i) for p in gradients for i in range(driver.num_stages)}
        self._save(min(gradients))

    def _check_progress(self) -> None:
        """Ends a run in which stages are lost faster than steps are taken."""
        self._since += 1
        if self.step > self._furthest:
            self._furthest, self._since = self.step, 0
        if self._since > _MOST_TRIES:
            raise SimulationError(
                f"{self._since} steps were tried since step {self._furthest} was reached, and "
                "stages were lost before the next one was: lower strategy.drop or the fleet's "
                "faults, set strategy.rule.recovery.every lower, or use "
                "strategy/recovery=checkfree_plus"
            )

    def _strike(self) -> None:
        """Loses machines by chance."""
        driver, run = self.driver, self.run
        self._tries += 1
        if not driver.drop:
            return
        for (p, i), node in sorted(run.at.items()):
            number = p * driver.num_stages + i
            if i and uniform(driver.seed, "lost stage", number, self._tries) < driver.drop:
                run.whole.discard((p, i))
                run.facts["lost_machines"] += 1
                run.tasks.control.absent(node, run.version)

    def _reduced(self, pipelines: Sequence[int]) -> float:
        """Has the machines of each stage all-reduce; returns when the last has, s."""
        run, driver = self.run, self.driver
        end = run.now
        if len(pipelines) > 1:
            for i, size in enumerate(run.sizes):
                nodes = [run.at[p, i] for p in pipelines]
                sizes = [FLOAT_BYTES * size] * len(nodes)
                end = max(end, run.tasks.peers.collect(nodes, sizes, driver.allreduce).finish_s)
        return end

    def _stepped(self, gradients: Mapping[int, Sequence[StageGradient]]) -> NoStep | None:
        """Steps all stages; returns why not, if one cannot."""
        after = []
        try:
            for i, state in enumerate(self.states):
                g = mean(np.stack([own[i].g for own in gradients.values()]).astype(np.float64))
                after.append(self.driver.rule.step(state, g))
        except NoStep as error:
            return error
        self.states = after
        return None

    def _applied(
        self,
        back: Mapping[int, Sequence[Passage]],
        gradients: Mapping[int, Sequence[StageGradient]],
    ) -> None:
        """Reports what has entered the model; the last machine of a route knows the loss."""
        last = self.run.cut.spans[-1].stage
        for p, own in gradients.items():
            losses = [m.loss for m in back[p] if m.loss is not None]
            told = {"train-loss": sum(losses) / len(losses)} if losses else {}
            for i, given in enumerate(own):
                metrics = told if i == last else {}
                self.run.tasks.control.applied(given.message_id, 0, metrics)

    # ---- machines --------------------------------------------------------------------------------

    def _staffed(self) -> list[int]:
        """Gives every place a machine, as far as there are some; returns pipelines without gaps."""
        run, driver = self.run, self.driver
        there = run.tasks.prompt()
        for place, node in list(run.at.items()):
            if node not in there:
                run.lose(place, "it is away")
        used = set(run.at.values())
        spare = sorted(
            (node for node in there if node not in used),
            key=lambda node: (run.failed.get(node, 0), node),
        )
        last = max(run.tasks.peers.nodes(), default=0) if driver.server else None
        complete = []
        for p in range(driver.pipelines):
            for i in range(driver.num_stages):
                if (p, i) in run.at:
                    continue
                if last is not None:
                    own = [n for n in spare if (n == last) == (i == driver.num_stages - 1)]
                else:
                    own = spare
                fitting = [n for n in own if i or n not in run.idle_heads]
                if not fitting:
                    break
                node = fitting[0]
                if i == 0:
                    node = next((n for n in fitting if n >= self._heads.get(p, 0)), node)
                spare.remove(node)
                run.at[p, i] = node
                if not self._begun:
                    run.whole.add((p, i))  # all know the initial model
            else:
                complete.append(p)
        self._begun = self._begun or bool(complete)
        return complete

    def _supplied(self, complete: Sequence[int]) -> dict[Place, float]:
        """Gets machines that lack their stage what they need; returns when they have it, s."""
        run, driver, recovery = self.run, self.driver, self._recovery
        ready_s: dict[Place, float] = {}
        stages = range(driver.num_stages)
        has = {i: [p for p in range(driver.pipelines) if (p, i) in run.whole] for i in stages}
        lost = [i for i in stages if not has[i]]
        vectors = [1 + len(state.moments) for state in self.states]
        sources: dict[int, Sequence[int]] = {}
        if lost:
            middle = run.cut.middle
            sources = {i: recovery.sources(i, lost, middle) for i in lost}
            if recovery.rolls_back():
                saved_step, saved = self._saved
                run.facts["repeated_steps"] += self.step - saved_step
                self.step, self.states = saved_step, list(saved)
            self.states = driver.rule.recover(self.states, lost, middle, self._drawn)
            run.facts["recovered_stages"] += len(lost)
            log.info("stages %s are recovered before step %d", lost, self.step)
        for p in complete:
            for i in stages:
                if (p, i) in run.whole:
                    continue
                if i in sources:
                    number = vectors[i] if recovery.sends_moments() else 1
                    givers = [(p, j) for j in sources[i]]
                else:
                    number, givers = vectors[i], [(has[i][0], i)]
                size = FLOAT_BYTES * run.sizes[i] * number
                ends = [run.carry(run.at[giver], run.at[p, i], size) for giver in givers]
                ready_s[p, i] = max(ends, default=run.now)
        if driver.turn_steps is not None:
            self._turn(complete, ready_s, FLOAT_BYTES * run.sizes[0] * vectors[0])
        return ready_s

    def _turn(self, complete: Sequence[int], ready_s: dict[Place, float], size: int) -> None:
        """Hands first stages on to the next clients, if it is time."""
        run, every = self.run, self.driver.turn_steps or 1
        due = self.step > self._turned and self.step % every == 0
        if due:
            self._turned = self.step
        server = max(run.tasks.peers.nodes()) if self.driver.server else None
        for p in complete:
            before = run.at[p, 0]
            if not due or self._heads.get(p) != before:  # the present one has just begun
                self._heads[p] = before
                continue
            taken = {*run.at.values(), *run.idle_heads, server}
            others = [node for node in sorted(run.tasks.prompt()) if node not in taken]
            after = next((n for n in others if n > before), others[0] if others else None)
            if after is not None:
                run.at[p, 0] = self._heads[p] = after
                ready_s[p, 0] = run.carry(before, after, size)

    def _drawn(self, i: int) -> Row:
        self._draws += 1
        if self.draw is None:
            raise ConfigError("recovery redraws a lost stage, and nobody can draw a model")
        row: Row = self.draw(self._draws, i)
        return row

    def _save(self, p: int) -> None:
        """Sends copies to where a recovery will want them."""
        run, recovery = self.run, self._recovery
        if recovery.shares_ends:
            run.carry(run.at[p, 0], run.at[p, run.cut.middle[0]], FLOAT_BYTES * run.sizes[0])
        if recovery.every is None or self.step % recovery.every:
            return
        self._saved = (self.step, list(self.states))
        last = self.driver.num_stages - 1
        ends = [
            run.carry(
                run.at[p, i],
                run.at[p, i + 1 if i == 0 else i - 1],
                FLOAT_BYTES * run.sizes[i] * (1 + len(self.states[i].moments)),
            )
            for i in range(last + 1)
        ]
        run.wait(max(ends))
