"""FedSoft: clients are mixtures of clusters, and train one model for all (arXiv:2112.06053)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from every_strategy import CLIENTS, ran

from fl.clients import Corrected, ProximalOwn, Received, Sgd
from fl.errors import ConfigError, NoStep
from fl.flower.identity import client_of
from fl.strategies import FedAvg, FedSoft, Updates
from fl.vectors.rows import weighted_sum

RNG = np.random.default_rng(0)


def placed(rule, theta):
    theta = np.asarray(theta, np.float32)
    return rule.init(theta[0], theta.shape[1])._replace(theta=theta)


def votes(points, theta, sigma):
    """Returns u: a point votes for the nearest model; written like the paper's estimation."""
    nearest = ((points[:, None] - theta[None]) ** 2).sum(axis=2).argmin(axis=1)
    u = np.bincount(nearest, minlength=len(theta)) / len(points)
    u = np.where(u == 0, sigma, u)
    return u / u.sum()


def brought(rule, state, own, points, **more):
    """A round of clients with f_i(w) = mean |w - p|^2 / 2 over their points, who solve theirs."""
    deltas, starts, mixtures = [], [], []
    for i, p in enumerate(points):
        told = rule.mixture_for(state, i)
        u = votes(p, state.theta, rule.sigma) if told is None else told
        m = weighted_sum(u, state.theta)
        own[i] = ((p.mean(axis=0) + rule.lam * m) / (1 + rule.lam)).astype(np.float32)
        deltas.append(own[i] - m)
        starts.append(m)
        mixtures.append(u if told is None else None)
    weights = np.array([len(p) for p in points], float)
    clients = list(range(len(points)))
    return Updates(
        np.stack(deltas),
        weights,
        starts=np.stack(starts),
        mixtures=mixtures,
        clients=clients,
        **more,
    )


def test_five_rounds_on_quadratics_are_those_of_a_plain_loop():
    """Estimation every second round, exact solutions, averages by v: written anew, in float64."""
    k, lam, tau, sigma, d = 3, 0.7, 2, 1e-3, 2
    theta = RNG.normal(size=(k, d)).astype(np.float32)
    points = [RNG.normal(size=(n, d)) + RNG.normal(size=d) for n in (4, 9, 6, 5)]
    rule = FedSoft(k, lam, tau, sigma)
    state, own, c, found = placed(rule, theta), {}, theta.astype(float), []
    for t in range(5):
        if t % tau == 0:
            u = np.stack([votes(p, c, sigma) for p in points])
        n = np.array([len(p) for p in points])
        v = u * n[:, None] / (u * n[:, None]).sum(axis=0)
        pull = lam * u.sum(axis=1)
        w = [(p.mean(axis=0) + lam * (u[i] @ c)) / (1 + pull[i]) for i, p in enumerate(points)]
        c = v.T @ np.stack(w)
        updates = brought(rule, state, own, points)
        found.append(all(u_i is not None for u_i in updates.mixtures))
        state = rule.step(state, updates)
        np.testing.assert_allclose(state.theta, c, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose([state.mixtures[i] for i in range(4)], u)
    assert found == [True, False, True, False, True]
    main = (u * n[:, None]).sum(axis=0).argmax()
    np.testing.assert_array_equal(state.w, state.theta[main])


def test_with_one_model_a_step_is_fedavgs_bit_for_bit():
    w = RNG.normal(size=5).astype(np.float32)
    ours, theirs = FedSoft(1), FedAvg()
    state, plain = ours.init(w, 5), theirs.init(w, 5)
    for _ in range(4):
        deltas, n = RNG.normal(size=(3, 5)).astype(np.float32), np.array([1.0, 2, 5])
        starts, clients = np.tile(state.w, (3, 1)), [0, 1, 2]
        updates = Updates(deltas, n, starts=starts, mixtures=[None] * 3, clients=clients)
        state, plain = ours.step(state, updates), theirs.step(plain, Updates(deltas, n))
        np.testing.assert_array_equal(state.w, plain.w)
        assert ours.mixture_for(state, 0) is None


@pytest.mark.parametrize("lam", [0.0, 0.4])
def test_the_pull_of_one_mixture_is_that_of_its_clusters_and_begins_at_the_clients_own(lam):
    """One step of SGD on f + lambda/2 sum_s u_s |w - c_s|^2 by autograd, from the last w_i."""
    c = torch.tensor(RNG.normal(size=(3, 4)))
    u = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    own, goal = torch.tensor(RNG.normal(size=(2, 4)))

    class Quadratic:
        examples = 1

        def grad(self, w):
            return w - goal, ((w - goal) ** 2).sum() / 2

    rule = Corrected(Sgd(0.1), ProximalOwn(lam))
    memory, scalars = {"own": own}, rule.scalars({"server-round": 1})
    received = Received(u @ c, {}, memory, scalars, 2)
    state, y = rule.init(received), u @ c
    v = own.clone()
    for t in range(2):
        y, state, _ = rule.step(y, state, received, Quadratic(), t)
        v = v.detach().requires_grad_()
        (((v - goal) ** 2).sum() / 2 + lam / 2 * (u * ((v - c) ** 2).sum(1)).sum()).backward()
        v = v - 0.1 * v.grad
    torch.testing.assert_close(y, v.detach())
    kept = rule.finish(y, state, received, 2).memory["own"]
    torch.testing.assert_close(kept, y)
    diverged = rule.finish(y * torch.inf, state, received, 2).memory["own"]
    torch.testing.assert_close(diverged, own)


def test_an_aggregator_without_weights_has_the_clients_that_are_mostly_of_a_cluster():
    def median(x, weights, name):
        if len(x) < 2:
            raise NoStep("too few")
        return np.median(x, axis=0)

    rule = FedSoft(3)
    state = placed(rule, [[-2.0], [2.0], [9.0]])
    u = np.array([[0.6, 0.4, 0], [0.7, 0.3, 0], [0.1, 0.9, 0], [0.2, 0.8, 0], [0, 1, 0], [0, 0, 1]])
    x = np.array([[-1], [-3], [1], [2], [30], [5]], np.float32)
    starts = (u @ state.theta).astype(np.float32)
    updates = Updates(
        x - starts,
        np.ones(6),
        combine=median,
        starts=starts,
        mixtures=list(u),
        clients=[*range(6)],
        weighs=False,
    )
    after = rule.step(state, updates)
    np.testing.assert_allclose(after.theta, [[-2], [2], [9]], rtol=1e-6)
    few = updates.some([0, 2, 5], "")
    with pytest.raises(NoStep, match="too few"):
        rule.step(state, few)


def test_who_has_no_examples_moves_nothing_and_is_asked_anew():
    rule = FedSoft(2)
    state = placed(rule, [[-1.0], [1.0]])
    half = np.full(2, 0.5)
    updates = Updates(
        np.array([[4.0], [9.0]], np.float32),
        np.array([3.0, 0.0]),
        starts=np.zeros((2, 1), np.float32),
        mixtures=[half, half],
        clients=[0, 1],
    )
    after = rule.step(state, updates)
    np.testing.assert_allclose(after.theta, [[4], [4]])
    assert rule.mixture_for(after, 1) is None
    np.testing.assert_array_equal(rule.mixture_for(after, 0), half)
    with pytest.raises(NoStep):
        rule.step(state, updates.some([1], ""))


@pytest.mark.parametrize(
    "arguments", [{"num_models": 0}, {"lam": -0.1}, {"tau": 0}, {"sigma": 0.0}], ids=str
)
def test_arguments_out_of_range_are_refused(arguments):
    ((key, value),) = arguments.items()
    with pytest.raises(ConfigError, match=f"{key}.*{value}"):
        FedSoft(**arguments)


OWN = "client/correction=proximal_own"
DATA = ["data=rotated_digits", "partition=clusters"]


def test_a_run_of_one_model_is_fedprox_with_clients_that_go_on_bit_for_bit():
    _, ours = ran("fedsoft", *DATA, "strategy.rule.num_models=1", "strategy.rule.lam=0.5")
    _, theirs = ran("fedprox", *DATA, OWN, "strategy.rule.mu=0.5")
    for name, array in theirs.arrays.items():
        np.testing.assert_array_equal(ours.arrays[name].numpy(), array.numpy())


def test_between_estimations_one_model_travels_and_every_client_is_a_mixture():
    _, run = ran("fedsoft", *DATA, "strategy.rule.num_models=3", "partition.alpha=0.5")
    _, plain = ran("fedavg", *DATA)
    sent, once = (r.summary["totals"]["bytes_down"] for r in (run, plain))
    assert sent / once == pytest.approx((3 + 1 + 3) / 3, rel=0.05)
    clusters = run.arrays.clusters
    assert {client_of(node) for node in clusters.mixtures} == set(range(CLIENTS))
    np.testing.assert_allclose([u.sum() for u in clusters.mixtures.values()], 1)
    assert {"rand_index", "cluster_accuracy_min"} <= set(run.history[-1])


def test_a_compressed_reply_is_read_against_the_mixture_that_its_client_has_made():
    """Clients whose step is tiny send what they have mixed: the clusters are means of mixtures."""
    small = ["client.rule.lr=1e-12", "num_rounds=1"]
    runs = [ran("fedsoft", *small, *more)[1] for more in ([], ["compressor=ef_topk_int8"])]
    plain, compressed = (run.arrays.clusters.models for run in runs)
    np.testing.assert_allclose(compressed, plain, atol=1e-6)
