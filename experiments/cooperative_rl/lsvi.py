"""Agents that learn one linear Markov decision process, and seldom talk: the rule, by itself.

Min, He, Wang, Gu: Cooperative Multi-Agent Reinforcement Learning: Asynchronous Communication and
Linear Function Approximation, ICML 2023, arXiv:2305.06446. No code was found; the trigger is the
paper's abstract's and public summaries', the rest is LSVI-UCB (Jin, Yang, Wang, Jordan, COLT 2020,
arXiv:1907.05388). p is the dimension of the features, H the horizon.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class LinearMDP:
    """P(s' | s, a) = <phi(s, a), mu(s')>, r_h(s, a) = <phi(s, a), theta_h>; begins in state 0.

    Attributes:
        phi: features, shape (S, A, p), each a point of the simplex.
        mu: p distributions over the states, shape (p, S).
        theta: rewards of the p corners in each step, in [0, 1], shape (H, p).
    """

    phi: Floats
    mu: Floats
    theta: Floats

    @classmethod
    def drawn(
        cls, rng: np.random.Generator, *, states: int, actions: int, p: int, horizon: int
    ) -> LinearMDP:
        """Returns one whose corners lead to few states, and of which few are rewarded."""
        phi = rng.dirichlet(np.full(p, 0.3), size=(states, actions))
        mu = rng.dirichlet(np.full(states, 0.3), size=p)
        theta = np.where(rng.random((horizon, p)) < 1.5 / p, 1.0, 0.1 * rng.random((horizon, p)))
        return cls(phi, mu, theta)

    @property
    def horizon(self) -> int:
        """H."""
        return len(self.theta)

    def values(self, policy: Ints | None = None) -> Floats:
        """Returns the value of each state in each step, shape (H + 1, S), by the Bellman equation.

        Args:
            policy: the action of each step and state, shape (H, S); None takes the best.
        """
        V = np.zeros((self.horizon + 1, len(self.phi)))
        for h in reversed(range(self.horizon)):
            Q = self.phi @ (self.theta[h] + self.mu @ V[h + 1])
            V[h] = Q.max(1) if policy is None else Q[np.arange(len(Q)), policy[h]]
        return V

    def episode(self, policy: Ints, rng: np.random.Generator) -> tuple[Ints, Ints]:
        """Returns the states, shape (H + 1,), and the actions, shape (H,), of an episode."""
        states, actions = [0], []
        for h in range(self.horizon):
            a = int(policy[h, states[-1]])
            actions.append(a)
            states.append(int(rng.choice(len(self.phi), p=self.phi[states[-1], a] @ self.mu)))
        return np.array(states), np.array(actions)


class Data(NamedTuple):
    """What regressions need of the transitions (phi, r, s') of each step h, as sums.

    Attributes:
        gram: of phi phi^T, shape (H, p, p).
        rewards: of phi r, shape (H, p).
        successors: of phi, by s', shape (H, p, S).
    """

    gram: Floats
    rewards: Floats
    successors: Floats

    @classmethod
    def none(cls, horizon: int, p: int, states: int) -> Data:
        """Returns the sums of no transition."""
        shapes = (horizon, p, p), (horizon, p), (horizon, p, states)
        return cls(*(np.zeros(shape) for shape in shapes))

    def plus(self, other: Data) -> Data:
        """Returns the sums of both."""
        return Data(*(a + b for a, b in zip(self, other, strict=True)))

    def with_episode(self, mdp: LinearMDP, states: Ints, actions: Ints) -> Data:
        """Returns the sums with the transitions of an episode."""
        gram, rewards, successors = (x.copy() for x in self)
        for h, a in enumerate(actions):
            phi = mdp.phi[states[h], a]
            gram[h] += np.outer(phi, phi)
            rewards[h] += phi * (phi @ mdp.theta[h])
            successors[h, :, states[h + 1]] += phi
        return Data(gram, rewards, successors)


class Agent(NamedTuple):
    """What an agent has.

    Attributes:
        policy: the action of each step and state that it plays, shape (H, S).
        gram: Lam, of the data that the policy was made of, with the ridge, shape (H, p, p).
        new: what it has seen since.
    """

    policy: Ints
    gram: Floats
    new: Data


@dataclass(frozen=True)
class AsyncLSVI:
    """LSVI-UCB of M agents, of which one is active in an episode, and a server.

        The active agent plays its policy, and adds the episode to its new data, dLam their gram.
        If det(Lam_h + dLam_h) > (1 + alpha) det(Lam_h) in some step h, it sends them to the server,
        which adds them to all that it has, and for h = H, ..., 1
            w_h <- Lam_h^-1 sum phi (r + max_a Q_{h+1}(s', a))
            Q_h <- min(<phi, w_h> + beta sqrt(phi^T Lam_h^-1 phi), H - h + 1)
        and returns Q and Lam to that agent alone, which plays argmax_a Q_h from then on.

    With alpha 0 it talks after every episode, and plays what all have seen. Policies come from the
    server alone, so that with an infinite alpha nobody would ever learn.

    Attributes:
        alpha: at least 0.
        beta: scale of the bonus, at least 0.
        ridge: lambda, above 0.
    """

    alpha: float
    beta: float
    ridge: float = 1.0

    def init(self, mdp: LinearMDP) -> tuple[Agent, Data]:
        """Returns an agent, and the server's data, before the first episode."""
        none = Data.none(mdp.horizon, mdp.phi.shape[-1], len(mdp.phi))
        return self.learnt(mdp, none), none

    def learnt(self, mdp: LinearMDP, data: Data) -> Agent:
        """Returns an agent with a policy made of these data, and nothing new."""
        H, p, S = data.successors.shape
        gram = data.gram + self.ridge * np.eye(p)
        inverse = np.linalg.inv(gram)
        policy, V = np.zeros((H, S), dtype=np.int64), np.zeros(S)
        for h in reversed(range(H)):
            w = inverse[h] @ (data.rewards[h] + data.successors[h] @ V)
            bonus = np.sqrt(np.einsum("sap,pq,saq->sa", mdp.phi, inverse[h], mdp.phi))
            Q = np.minimum(mdp.phi @ w + self.beta * bonus, H - h)
            policy[h], V = Q.argmax(1), Q.max(1)
        return Agent(policy, gram, Data.none(H, p, S))

    def triggered(self, agent: Agent) -> NDArray[np.bool_]:
        """Returns in which steps the new data are reason enough to talk, shape (H,)."""
        before = np.linalg.slogdet(agent.gram).logabsdet
        now = np.linalg.slogdet(agent.gram + agent.new.gram).logabsdet
        # What is 0 but for rounding must not count, nor must it count against alpha = 0.
        triggered: NDArray[np.bool_] = now - before > math.log1p(self.alpha) + 1e-12
        return triggered

    def most_triggers(self, episodes: int, horizon: int, p: int, agents: int) -> float:
        """Returns a bound on the times that agents talk, whatever happens.

        det(Lam_h) of the server is at most (1 + K / (ridge p))^p ridge^p, for features of norm 1.
        Until it has doubled, an agent's second trigger and each that follows adds to it alpha times
        what it was in the beginning, as the determinant is supermodular: so there are at most
        1 / alpha of them, the one that doubles it, and one first trigger of each agent. With
        alpha = 1 / M^2 that is the paper's O(p H M^2 log K).
        """
        doublings = p * math.log2(1 + episodes / (self.ridge * p)) + 1
        return horizon * doublings * (agents + 1 + (1 / self.alpha if self.alpha else math.inf))


class Played(NamedTuple):
    """What came of the episodes.

    Attributes:
        regret: V*(0) - V^policy(0) of each episode's policy, exactly, shape (K,).
        triggers: how often each agent talked because of each step, shape (M, H).
        talks: how often each talked, shape (M,).
        numbers: that were sent up and down, in all.
    """

    regret: Floats
    triggers: Ints
    talks: Ints
    numbers: int


def play(
    rule: AsyncLSVI, mdp: LinearMDP, active: Ints, rng: np.random.Generator, *, shared: bool = True
) -> Played:
    """Returns what came of episodes.

    Args:
        rule: of all agents.
        mdp: what they play.
        active: the agent of each episode, shape (K,).
        rng: draws transitions.
        shared: False: what an agent has seen is for itself alone; then nothing counts as sent.
    """
    agents = int(active.max()) + 1
    H, p = mdp.theta.shape
    best = float(mdp.values()[0, 0])
    first, none = rule.init(mdp)
    team, known = [first] * agents, [none] * (1 if shared else agents)
    worth = [best - float(mdp.values(first.policy)[0, 0])] * agents
    regret, triggers = np.zeros(len(active)), np.zeros((agents, H), dtype=np.int64)
    talks, numbers = np.zeros(agents, dtype=np.int64), 0
    unsent = [0] * agents
    for k, m in enumerate(active):
        regret[k] = worth[m]
        agent = team[m]
        new = agent.new.with_episode(mdp, *mdp.episode(agent.policy, rng))
        agent, unsent[m] = agent._replace(new=new), unsent[m] + 1
        because = rule.triggered(agent)
        if because.any():
            of = 0 if shared else m
            known[of] = known[of].plus(agent.new)
            agent = rule.learnt(mdp, known[of])
            worth[m] = best - float(mdp.values(agent.policy)[0, 0])
            triggers[m] += because
            talks[m] += 1
            numbers += H * p * p + unsent[m] * H * (2 * p + 1) + H * (p * p + p)
            unsent[m] = 0
        team[m] = agent
    return Played(regret, triggers, talks, numbers if shared else 0)
