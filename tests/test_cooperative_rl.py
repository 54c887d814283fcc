"""The rule of experiments/cooperative_rl against brute force, and how often it talks at most."""

from __future__ import annotations

import itertools
import math
import runpy
from pathlib import Path

import numpy as np
import pytest

LSVI = runpy.run_path(str(Path(__file__).parents[1] / "experiments" / "cooperative_rl" / "lsvi.py"))
AsyncLSVI, Data, LinearMDP, play = (LSVI[n] for n in ("AsyncLSVI", "Data", "LinearMDP", "play"))


RIDGE = 0.01


def mdp_of(seed=0, *, states=6, actions=3, p=3, horizon=3):
    rng = np.random.default_rng(seed)
    return LinearMDP.drawn(rng, states=states, actions=actions, p=p, horizon=horizon)


def played(alpha, agents, *, beta=0.5, episodes=200, mdp=None, shared=True):
    rng = np.random.default_rng(1)
    active = rng.integers(agents, size=episodes)
    return play(AsyncLSVI(alpha, beta, RIDGE), mdp or mdp_of(), active, rng, shared=shared)


def test_the_best_value_is_that_of_the_best_policy_of_all():
    mdp = mdp_of(states=2, actions=2, horizon=2)
    assert np.allclose((mdp.phi @ mdp.mu).sum(2), 1)
    policies = itertools.product(range(2), repeat=4)
    values = [mdp.values(np.array(policy).reshape(2, 2))[0] for policy in policies]
    np.testing.assert_allclose(np.max(values, axis=0), mdp.values()[0])


def test_sums_are_as_good_as_the_transitions_themselves():
    """Q by regressions on the transitions, one by one, as LSVI-UCB has them."""
    mdp, rng, beta, ridge = mdp_of(), np.random.default_rng(2), 0.3, 1.0
    data, seen = Data.none(3, 3, 6), []
    for _ in range(20):
        states, actions = mdp.episode(rng.integers(3, size=(3, 6)), rng)
        data = data.with_episode(mdp, states, actions)
        seen.append((states, actions))
    agent = AsyncLSVI(0.0, beta, ridge).learnt(mdp, data)
    after = np.zeros(6)
    for h in (2, 1, 0):
        x = np.array([mdp.phi[s[h], a[h]] for s, a in seen])
        y = np.array([mdp.theta[h] @ mdp.phi[s[h], a[h]] + after[s[h + 1]] for s, a in seen])
        gram = ridge * np.eye(3) + x.T @ x
        np.testing.assert_allclose(agent.gram[h], gram)
        q = np.empty((6, 3))
        for s, a in itertools.product(range(6), range(3)):
            phi = mdp.phi[s, a]
            bonus = beta * math.sqrt(phi @ np.linalg.solve(gram, phi))
            q[s, a] = min(phi @ np.linalg.solve(gram, x.T @ y) + bonus, 3 - h)
        assert (agent.policy[h] == q.argmax(1)).all()
        after = q.max(1)


def test_with_alpha_zero_agents_talk_after_every_episode():
    for agents in (1, 4):
        assert played(0.0, agents, episodes=40).talks.sum() == 40


def test_regret_is_what_the_policy_that_is_played_is_worth_less():
    mdp, first = mdp_of(), AsyncLSVI(0.0, 0.5, RIDGE).init(mdp_of())[0]
    worth = mdp.values()[0, 0] - mdp.values(first.policy)[0, 0]
    assert played(0.0, 1, episodes=1).regret[0] == pytest.approx(worth)


def test_agents_that_never_talk_never_learn():
    never = played(math.inf, 4)
    assert never.talks.sum() == never.numbers == 0
    assert (never.regret == never.regret[0]).all()


def test_one_agent_is_the_same_alone():
    shared, alone = played(0.5, 1), played(0.5, 1, shared=False)
    assert (shared.regret == alone.regret).all()
    assert (shared.triggers == alone.triggers).all()


@pytest.mark.parametrize("agents", [1, 4])
@pytest.mark.parametrize("alpha", [1 / 16, 1.0])
def test_agents_talk_no_more_than_determinants_can_grow(agents, alpha):
    episodes, mdp = 400, mdp_of()
    of = played(alpha, agents, episodes=episodes, mdp=mdp)
    p = mdp.phi.shape[-1]
    each = p * math.log(1 + episodes / (RIDGE * p)) / math.log(1 + alpha)
    assert of.triggers.max() <= each
    rule = AsyncLSVI(alpha, 0.5, RIDGE)
    assert 0 < of.talks.sum() <= rule.most_triggers(episodes, mdp.horizon, p, agents)
    assert of.talks.sum() < episodes


def test_what_is_sent_is_counted_by_hand():
    """H p^2 and H (2 p + 1) an episode up, H (p^2 + p) down, for each time that one talks."""
    always = played(0.0, 1, episodes=10)
    assert always.numbers == 10 * 3 * (3 * 3 + (2 * 3 + 1) + (3 * 3 + 3))


def test_a_bandit_is_the_horizon_of_one():
    mdp = mdp_of(horizon=1)
    of = played(0.0, 2, mdp=mdp, beta=0.5)
    assert of.regret[-50:].mean() < 0.05 * max(of.regret[0], 0.1)


def test_regret_grows_more_slowly_than_episodes():
    mdp = mdp_of(3, states=10, actions=5, p=4, horizon=4)
    of = played(1 / 4, 2, episodes=400, mdp=mdp)
    quarters = of.regret.reshape(4, 100).sum(1)
    assert quarters[-1] < 0.5 * quarters[0]
