"""The benchmark's peers take the steps that they are named after.

Oracle: sdeflow's forces and integrators at the same state. Without friction a kinetic block has no noise, so
that the numbers themselves can be compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sdeflow import mpgd
from sdeflow.config.catalogue import integrator_named
from sdeflow.config.run import Run
from sdeflow.config.schema import RunSection
from sdeflow.model.forces import ModelForces
from sdeflow.model.model import Model
from sdeflow.problems.decoder import Decoder
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.simulation.prepare import prepare

jax = pytest.importorskip("jax")
pytest.importorskip("diffrax")

FREE = {block: {"h": h, "eta": 5.0, "gamma": 0.0} for block, h in (("theta", 1e-3), ("x", 0.02))}


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    import speed_jax

    return speed_jax


def assert_same_path(peer: Any, model: Model, particles: int, integrator: str) -> None:
    """One call of the peer, from sdeflow's start, against as many steps of sdeflow."""
    system = mpgd(model, particles=particles, **FREE)
    prepared = prepare(Run.declare(system, integrator, RunSection(steps=1, device="cpu")))
    z, names = prepared.state, ("theta", "m", "X", "U")
    start = [z[name].numpy().reshape(like.shape) for name, like in zip(names, peer.z, strict=True)]
    theirs = peer.advance(tuple(start), jax.random.key(0))
    with torch.no_grad():
        for n in range(peer.steps):
            z = prepared.stepper(z, n)
    for name, before, after in zip(names, start, theirs, strict=True):
        assert np.abs(after - before).max() > 1e-3
        ours = z[name].numpy().reshape(after.shape)
        np.testing.assert_allclose(after, ours, rtol=0, atol=2e-5 * np.abs(ours).max(), err_msg=name)


@pytest.fixture
def accuracy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The benchmark of errors, with JAX in float64."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    import accuracy

    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield accuracy
    jax.config.update("jax_enable_x64", before)


def test_quicsort_is_that_of_diffrax(accuracy: Any) -> None:
    """On one path with W, H and K, after 32 steps of two wells on two clocks and under two frictions.

    To 1e-12: Diffrax's coefficients lose (k h)^-2 roundoffs, a thousand here.
    """
    shared = accuracy.SharedPaths(accuracy.WELLS["coupled wells"], finest=6, coarsest=5, batches=2, paths=4)
    ours = shared.end(integrator_named("quicsort"), 5)
    assert (ours - 0.5).abs().min() > 1e-3
    torch.testing.assert_close(ours, accuracy.end_by_diffrax(shared, "QUICSORT", 5), rtol=0, atol=1e-12)


def test_toy_model_by_jax_and_diffrax(peers: Any) -> None:
    model = Hierarchical(data=7, theta_true=2.0)
    assert_same_path(peers.toy_scan(model, 5, FREE), model, 5, "expint")
    assert_same_path(peers.toy_euler(model, 5, FREE), model, 5, "euler_maruyama")


def test_decoder_by_jax_and_diffrax(peers: Any) -> None:
    """With all data in a batch, in whatever order."""
    model = Decoder(images=12)
    assert_same_path(peers.decoder_scan(model, 12, 3, FREE), model, 3, "expint_shared")
    assert_same_path(peers.decoder_euler(model, 12, 3, FREE), model, 3, "euler_maruyama")


def test_forces_of_a_minibatch(peers: Any) -> None:
    model, index = Decoder(images=30).to(torch.float32, torch.device("cpu")), torch.tensor([[2, 3, 11, 29]])
    theta, _, x, _ = peers.decoder_start(model, 4, 5, FREE)
    z = {"theta": torch.tensor(np.asarray(theta))[None], "X": torch.tensor(np.asarray(x)).view(1, 4, 5, 8)}
    ours = ModelForces(model, 5).minibatch(index)(0.0, z, ("theta", "x"))
    theirs = peers.decoder_forces(model, 4, 5)(theta, x, model.data[index[0]].numpy())
    for name, force in zip(("theta", "x"), theirs, strict=True):
        expected = ours[name].numpy().reshape(force.shape)
        np.testing.assert_allclose(force, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


def test_forces_of_a_convolutional_decoder(peers: Any) -> None:
    import speed

    model = speed.made_up_images(images=150, width=2).to(torch.float32, torch.device("cpu"))
    index = torch.tensor([[2, 3, 11, 29]])
    theta, _, x, _ = peers.decoder_start(model, 4, 5, FREE)
    z = {"theta": torch.tensor(np.asarray(theta))[None], "X": torch.tensor(np.asarray(x)).view(1, 4, 5, 64)}
    ours = ModelForces(model, 5).minibatch(index)(0.0, z, ("theta", "x"))
    forces = jax.jit(peers.decoder_forces(model, 4, 5, peers.convolutional))
    theirs = forces(theta, x, model.data[index[0]].numpy())
    for name, force in zip(("theta", "x"), theirs, strict=True):
        expected = ours[name].numpy().reshape(force.shape)
        np.testing.assert_allclose(force, expected, rtol=0, atol=5e-6 * np.abs(expected).max())
    peer = peers.convolutional_step(model, 4, 5, speed.IMAGES)
    assert all(np.isfinite(value).all() for value in peer.advance(peer.z, jax.random.key(0)))


def test_an_epoch_visits_a_datum_once(peers: Any) -> None:
    """Steps so short that forces hardly count: a datum has flown as often as there were epochs."""
    swift = {block: {"h": 1e-6, "eta": 1e6, "gamma": 0.0} for block in ("theta", "x")}
    peer = peers.decoder_scan(Decoder(images=13), 4, 3, swift)
    theta, m, x, _ = peer.z
    flown = peer.advance((theta, m, x, np.ones_like(x)), jax.random.key(0))[2] - x
    times = np.asarray(flown.mean(1)).round()
    assert peer.steps == peers.EPOCHS * 3
    assert times.sum() == peer.steps * 4
    assert times.max() == peers.EPOCHS
    np.testing.assert_allclose(flown, np.broadcast_to(times[:, None], flown.shape), atol=0.05)


def test_replicas_differ_and_stay_finite(peers: Any) -> None:
    noisy = {block: {"h": 1e-3, "eta": 100.0, "gamma": 1.0} for block in ("theta", "x")}
    peer = peers.toy_scan(Hierarchical(data=7), 5, noisy, replicas=3)
    theta, _, x, _ = peer.advance(peer.z, jax.random.key(0))
    assert theta.shape == (3,)
    assert x.shape == (3, 7, 5)
    assert np.isfinite(x).all()
    assert len(np.unique(theta)) == 3
