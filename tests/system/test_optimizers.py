"""Parameters that an optimizer moves.

Oracles: torch.optim and pytorch-optimizer on the same gradients; constants by hand; pgd and Nesterov's map; a
run in one piece; torch's optimizers in a loop of this file.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from pieces import STEPS, WHOLE, toy
from small import assert_same
from support import declared, doubles
from torch import Tensor

import sdeflow
from sdeflow import Batch, Save, simulate
from sdeflow.config.catalogue import entries, integrator_named
from sdeflow.engine.engine import Engine
from sdeflow.engine.minibatch import MiniBatches
from sdeflow.errors import SdeflowError
from sdeflow.model.forces import ModelForces
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.simulation.memory import state_bytes
from sdeflow.simulation.prepare import prepare
from sdeflow.system.block import Block
from sdeflow.system.optimizer_names import optimizer_named
from sdeflow.system.system import BlockSystem, initial_state
from sdeflow.system.torch_optimizer import TorchOptimizer

OWN = tuple(entries("optimizers"))
OF_TORCH = (
    "adadelta",
    "adafactor",
    "adamax",
    "nadam",
    "radam",
    "rprop",
    "torch:adam",
    "torch:sgd",
    "torch:asgd",
)
needs_package = pytest.mark.skipif(
    find_spec("pytorch_optimizer") is None, reason="pytorch-optimizer is not installed"
)
P, H = 37, 0.02


def steps_of(rule: Any, gradients: Tensor, start: Tensor, h: float = H) -> Tensor:
    """The positions of a rule on gradients [n, p], after each."""
    block = Block("theta", "theta", (len(start),), ("param",), temperature=0.0, role="parameters", rule=rule)
    memory = {slot: value[None] for slot, value in rule.start(block).items()}
    q, found = start[None], []
    for g in gradients:
        before = {slot: value.clone() for slot, value in memory.items()}
        q_before, held = q.clone(), q
        q, new = rule(q, -g[None], memory, h)
        assert held.equal(q_before)
        assert all(memory[slot].equal(before[slot]) for slot in before), "nothing is changed in place"
        assert new.keys() == memory.keys() == {*rule.slots(block)}
        memory = new
        found.append(q[0])
    return torch.stack(found)


def steps_by(kind: Callable[..., Any], gradients: Tensor, start: Tensor, **options: Any) -> Tensor:
    """The positions of an optimizer of torch's kind."""
    p = start.clone().requires_grad_()
    optimizer, found = kind([p], lr=H, **options), []
    for g in gradients:
        p.grad = g.clone()
        optimizer.step()
        found.append(p.detach().clone())
    return torch.stack(found)


def noisy_gradients(n: int = 100) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    start = torch.randn(P, generator=g, dtype=torch.float64)
    return start, 10 ** torch.randn(n, 1, generator=g, dtype=torch.float64) * torch.randn(
        n, P, generator=g, dtype=torch.float64
    )


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("sgd", "SGD", {}),
        ("sgd", "SGD", {"momentum": 0.9}),
        ("sgd", "SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
        ("adam", "Adam", {}),
        ("adam", "Adam", {"betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.1}),
        ("adamw", "AdamW", {}),
        ("adamw", "AdamW", {"betas": (0.8, 0.95), "weight_decay": 0.3}),
        ("rmsprop", "RMSprop", {}),
        ("rmsprop", "RMSprop", {"alpha": 0.9, "momentum": 0.9, "weight_decay": 0.1}),
        ("adagrad", "Adagrad", {}),
        ("adagrad", "Adagrad", {"eps": 1e-3, "weight_decay": 0.1}),
    ],
)
def test_ours_are_torchs_to_the_bit(name: str, kind: str, options: dict[str, Any]) -> None:
    start, gradients = noisy_gradients()
    expected = steps_by(getattr(torch.optim, kind), gradients, start, **options)
    assert steps_of(optimizer_named({"name": name, **options}), gradients, start).equal(expected)
    in_torch = optimizer_named({"name": f"torch:{kind.lower()}", **options})
    assert steps_of(in_torch, gradients, start).equal(expected)


@needs_package
@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("lion", "Lion", {}),
        ("lion", "Lion", {"betas": (0.8, 0.95), "weight_decay": 0.3}),
        ("adabelief", "AdaBelief", {}),
        ("adabelief", "AdaBelief", {"betas": (0.8, 0.95), "eps": 1e-8, "weight_decay": 0.3}),
        ("adan", "Adan", {}),
        ("adan", "Adan", {"betas": (0.9, 0.8, 0.95), "weight_decay": 0.3}),
    ],
)
def test_ours_are_the_packages_to_the_bit(name: str, kind: str, options: dict[str, Any]) -> None:
    import pytorch_optimizer

    start, gradients = noisy_gradients()
    expected = steps_by(getattr(pytorch_optimizer, kind), gradients, start, **options)
    assert steps_of(optimizer_named({"name": name, **options}), gradients, start).equal(expected)


@pytest.mark.parametrize("name", OF_TORCH)
def test_torchs_live_in_our_state(name: str) -> None:
    """One that is made anew for each step is one that lasts."""
    start, gradients = noisy_gradients(30)
    rule = optimizer_named(name)
    assert isinstance(rule, TorchOptimizer)
    assert steps_of(rule, gradients, start).equal(steps_by(rule.kind, gradients, start))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("adam", (-1, -2, -3)),
        ("adan", (-1, -2, -3)),
        ("lion", (-1, -2, -3)),
        ("adagrad", (-1, -1 - 2**-0.5, -1 - 2**-0.5 - 3**-0.5)),
        ("rmsprop", (-10, -10 - (1 - 0.99**2) ** -0.5, -10 - (1 - 0.99**2) ** -0.5 - (1 - 0.99**3) ** -0.5)),
        ("adabelief", (-1.111111, -2.279116, -3.504700)),
        ({"name": "sgd", "momentum": 0.5}, (-2, -5, -8.5)),
        ({"name": "sgd", "momentum": 0.5, "nesterov": True}, (-3, -6.5, -10.25)),
    ],
)
def test_a_constant_gradient(name: Any, expected: tuple[float, ...]) -> None:
    """Displacements over h under g = 2. AdaBelief's s is (0.9 g)^2 (1 - b2) at first, and so on."""
    gradients = torch.full((3, 1), 2.0, dtype=torch.float64)
    found = steps_of(optimizer_named(name), gradients, torch.zeros(1, dtype=torch.float64), h=1.0)
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-6)


# In a system -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["euler_maruyama", "expint", "expint_nc", "expint_nc2", "expint_shared"])
@pytest.mark.parametrize("options", [{}, {"batch": Batch(2, "one_step", 3)}, {"replicas": 3}], ids=str)
def test_sgd_is_pgd_to_the_bit(scheme: str, options: dict[str, Any]) -> None:
    plain = simulate(toy(sdeflow.pgd), scheme, **WHOLE, **options)
    assert_same(simulate(toy(sdeflow.pgd, optimizer="sgd"), scheme, **WHOLE, **options), plain)


@pytest.mark.parametrize("declaration", [sdeflow.abp, sdeflow.soul, sdeflow.short_run, sdeflow.pgd])
def test_sgd_after_inner_steps_is_gradient_descent_to_the_bit(declaration: Any) -> None:
    plain = simulate(toy(declaration), "alternating", batch=Batch(2), **WHOLE)
    assert_same(simulate(toy(declaration, optimizer="sgd"), "alternating", batch=Batch(2), **WHOLE), plain)


def test_inner_steps_leave_one_step_to_the_optimizer() -> None:
    """Theta moves once a step, and so by Adam's h at first."""
    run = simulate(toy(sdeflow.abp, optimizer="adam", h=0.01), steps=1, dtype="float64", save=Save(every=1))
    assert run.attrs["integrator"] == "alternating"
    assert abs(run.theta[1].item() - run.theta[0].item()) == pytest.approx(0.01, rel=1e-6)


class Bowl(sdeflow.Model):
    """l = -(theta - 1)' A (theta - 1)/2 - x^2/2, A = diag(1, 5): parameters that see no particles."""

    latent_shape = (1,)
    curvature = torch.tensor([1.0, 5.0], dtype=torch.float64)

    def __init__(self, data: int = 1) -> None:
        self.data = torch.zeros(data, 1)

    def init_theta(self, generator: torch.Generator) -> dict[str, Tensor]:
        return {"a": torch.tensor([3.0, -2.0])}

    def log_joint(self, theta: Any, x: Tensor, y: Tensor) -> Tensor:
        of_theta = (self.curvature.to(x) * (theta["a"] - 1).square()).sum() / 2
        return -of_theta - x.square().sum(-1) / 2


def test_sgd_with_momentum_is_a_heavy_ball_and_nesterovs_is_nag() -> None:
    """Of nag, v' = mu v + h^2 eta f(theta + mu v), theta' = theta + v', phi = theta + mu v is Nesterov's sgd.

    phi' = phi + h^2 eta f(phi) + mu v', so its learning rate is h^2 eta, its momentum mu = 1 - h gamma eta.
    Without Nesterov's it is Polyak's: theta'' - theta' = mu (theta' - theta) + lr f(theta').
    """
    h, eta, gamma = 0.1, 4.0, 1.0
    mu, lr = 1 - h * gamma * eta, h**2 * eta
    options: dict[str, Any] = {"steps": 40, "dtype": "float64", "save": Save(every=1)}

    def by(momentum: dict[str, Any]) -> Any:
        theta = {"h": lr, "optimizer": {"name": "sgd", "momentum": mu, **momentum}}
        return simulate(
            sdeflow.pgd(Bowl(), particles=1, theta=theta, x={"h": 0.1}), "expint", **options
        ).theta.values

    kinetic = {"h": h, "eta": eta, "gamma": gamma}
    nag = simulate(sdeflow.mpgd_theta(Bowl(), particles=1, theta=kinetic, x={"h": 0.1}), "nag", **options)
    start = nag.theta.values[0] + mu * h * eta * nag.m.values[0]
    np.testing.assert_allclose(by({"nesterov": True})[0], start, rtol=1e-15)  # m = 0 at T = 0
    np.testing.assert_allclose(by({"nesterov": True}), nag.theta + mu * h * eta * nag.m, rtol=1e-12)
    theta = by({})
    force = -Bowl.curvature.numpy() * (theta - 1)
    np.testing.assert_allclose(
        theta[2:] - theta[1:-1], mu * np.diff(theta, axis=0)[:-1] + lr * force[1:-1], atol=1e-14
    )
    np.testing.assert_allclose(theta[1] - theta[0], lr * force[0], rtol=1e-14)


@pytest.mark.parametrize("name", [*OWN, "nadam"])
def test_a_replica_is_a_run_with_its_seed(name: str) -> None:
    both = simulate(toy(sdeflow.pgd, optimizer=name), "expint", seed=5, replicas=3, **WHOLE)
    one = simulate(toy(sdeflow.pgd, optimizer=name), "expint", seed=7, **WHOLE)
    for variable in ("theta", "X"):
        np.testing.assert_array_equal(both[variable].isel(replica=2), one[variable])


def resumed(
    stop_before: Any, folder: Any, name: Any, scheme: str = "expint", system: Any = None, **options: Any
) -> None:
    """Asserts that a run which is stopped three times is the one in one piece, to its last state."""
    made = system or (lambda: toy(sdeflow.mpgd_x, optimizer=name))
    options = WHOLE | options
    whole = simulate(made(), scheme, out=folder / "whole", **options)
    for n in (1, 4, 9):
        stop_before(n)
        with pytest.raises(KeyboardInterrupt):
            simulate(made(), scheme, out=folder / "run", resume=True, **options)
    stop_before(None)
    pieces = simulate(made(), scheme, out=folder / "run", resume=True, **options)
    assert_same(pieces, whole)
    assert pieces.attrs["steps_taken"] == STEPS
    assert "resumed at step" in pieces.attrs["history"]


@pytest.mark.parametrize("name", [*OWN, {"name": "sgd", "momentum": 0.9}, *OF_TORCH], ids=str)
def test_a_run_in_pieces_is_the_run(stop_before: Any, tmp_path: Any, name: Any) -> None:
    resumed(stop_before, tmp_path, name)


@pytest.mark.parametrize("name", ["adam", "nadam"])
def test_a_run_of_two_networks_in_pieces(stop_before: Any, tmp_path: Any, name: str) -> None:
    """The encoder of vi is a part of theta, which the optimizer sees by its tensors."""

    def system() -> BlockSystem:
        theta = {"h": 1e-3, "optimizer": name}
        return sdeflow.vi(Hierarchical(data=6), particles=3, theta=theta, encoder_hidden=(4,))

    resumed(stop_before, tmp_path, name, "alternating", system, batch=Batch(2))


@pytest.mark.parametrize("name", ["adan", "nadam"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_run_in_pieces_by_minibatches_of_replicas(
    stop_before: Any, tmp_path: Any, name: str, dtype: str
) -> None:
    batch = Batch(2, "substeps", 3)
    resumed(stop_before, tmp_path, name, "euler_maruyama", dtype=dtype, batch=batch, replicas=2)


def test_minibatches_go_on_with_the_memory() -> None:
    """Parameters that see no particles have the same gradient in every batch, D/b of a part."""
    theta = {"h": 0.1, "optimizer": "adam"}
    system = sdeflow.pgd(Bowl(6), particles=2, theta=theta, x={"h": 0.1})
    run = simulate(system, "expint", steps=30, batch=Batch(2), dtype="float64", save=Save(every=1))
    p = torch.tensor([3.0, -2.0], dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([p], lr=0.1)
    for n in range(31):
        np.testing.assert_allclose(run.theta[n], p.detach(), rtol=1e-12)
        p.grad = 6 * Bowl.curvature * (p.detach() - 1)
        adam.step()


def test_particles_have_memories_that_go_with_them_into_a_batch() -> None:
    """Each datum's adam counts the steps that the datum took, and is torch's of as many."""
    forces = ModelForces(Bowl(6), 2)
    blocks = [
        Block(
            "theta",
            "theta",
            (2,),
            ("param",),
            temperature=0.0,
            role="parameters",
            rule=optimizer_named("adam"),
        ),
        Block(
            "x",
            "X",
            (6, 2, 1),
            ("datum", "particle", "latent"),
            temperature=0.0,
            rule=optimizer_named("adam"),
        ),
    ]
    system, replicas = BlockSystem(blocks, forces, h=0.1), doubles((0, 1))
    batches = MiniBatches(system, integrator_named("expint"), Batch(4, "one_step", 5), replicas, Engine())
    start = initial_state(system, replicas)
    z, taken = batches.start(start), torch.zeros(2, 6, dtype=torch.long)
    with torch.no_grad():
        for n in range(5):
            taken.scatter_add_(1, batches.index(n), torch.ones(2, 4, dtype=torch.long))
            z = batches(z, n)
    assert z["X_step"].view(2, 6).equal(taken)
    assert taken.unique().numel() > 1
    assert z["theta_step"].flatten().tolist() == [5, 5]
    for r in range(2):
        for i in range(6):
            p = start["X"][r, i].clone().requires_grad_()
            adam = torch.optim.Adam([p], lr=0.1)
            for _ in range(int(taken[r, i])):
                p.grad = p.detach().clone()
                adam.step()
            torch.testing.assert_close(z["X"][r, i], p.detach(), rtol=1e-12, atol=0)


def test_adam_learns_the_parameters() -> None:
    """theta goes to the toy model's MLE, the data's mean, within adam's step and the particles' noise.

    Its stationary error is that of the mean of 100 x 10 particles, 0.03, and adam's own, some h.
    """
    model = Hierarchical(data=100, theta_true=1.0)
    theta = {"h": 0.01, "optimizer": "adam"}
    run = simulate(sdeflow.pgd(model, particles=10, theta=theta, x={"h": 0.2}), "expint_shared", steps=1500)
    assert run.theta[-1].item() == pytest.approx(float(model.data.mean()), abs=0.1)


@pytest.mark.slow  # torch compiles for some 20 s
@pytest.mark.parametrize("options", [{}, {"batch": Batch(4)}], ids=str)
@pytest.mark.parametrize("name", OWN)
def test_engines_agree(name: str, options: dict[str, Any]) -> None:
    options = {"steps": 20, "save": Save(every=4), "dtype": "float64", "noise": "philox", **options}
    eager, *others = (
        simulate(toy(sdeflow.mpgd_x, optimizer=name), "expint", engine=engine, replicas=2, **options)
        for engine in ("eager", "fused", "compiled")
    )
    for other in others:
        np.testing.assert_allclose(other.theta, eager.theta, rtol=1e-12)
        np.testing.assert_allclose(other.X, eager.X, rtol=1e-10, atol=1e-12)


def test_particles_may_choose_their_steps_beside_an_optimizer() -> None:
    system = sdeflow.pgd(Hierarchical(data=12), particles=5, theta={"h": 1e-2, "optimizer": "adam"})
    run = simulate(system, steps=100, save=Save(every=50))
    assert run.h_theta.values == pytest.approx(1e-2)
    assert 0.1 < float(run.h_x[-1]) < 1  # of curvature 2


@pytest.mark.parametrize("name", ["adan", "nadam"])
def test_memory_is_counted(name: str) -> None:
    run = declared(toy(sdeflow.pgd, optimizer=name), "expint", steps=1, dtype="float64")
    assert state_bytes(run) == sum(v.numel() * v.element_size() for v in prepare(run).state.values())


# What is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "sentence"),
    [
        ("adma", "unknown optimizer 'adma': did you mean 'adam"),
        ("torch:lion", "unknown optimizer 'torch:lion': "),
        ("torch:adan", "unknown optimizer 'torch:adan': did you mean"),
        (
            {"name": "adam", "beta": [0.9, 0.99]},
            "optimizer 'adam': unknown option 'beta': did you mean 'betas'?",
        ),
        (
            {"name": "nadam", "momentum_deca": 1},
            "unknown option 'momentum_deca': did you mean 'momentum_decay'?",
        ),
        ({"name": "adam", "lr": 1e-3}, "takes no lr: the learning rate is the block's h, so give h = 0.001"),
        ({"name": "adam", "betas": [0.9]}, "optimizer 'adam': betas must be 2 numbers, given [0.9]"),
        ({"name": "adam", "betas": [0.9, 1.0]}, "optimizer 'adam': beta 2 must be in [0, 1), given 1.0"),
        ({"name": "adam", "eps": "small"}, "optimizer 'adam': eps must be a number, given 'small'"),
        ({"name": "lion", "weight_decay": -1}, "weight_decay must be finite and not negative, given -1"),
        ({"name": "sgd", "nesterov": True}, "optimizer 'sgd': nesterov needs a momentum"),
        ({"name": "nadam", "betas": [2, 2]}, "optimizer 'nadam' fails with ValueError: Invalid beta"),
        ({"betas": [0.9, 0.99]}, "an optimizer is a name, or a table as {name = 'adam'"),
        ("lbfgs", "optimizer 'lbfgs' needs a closure, which no system has"),
        ("sparseadam", "optimizer 'sparseadam' fails with RuntimeError: SparseAdam does not support dense"),
        pytest.param(
            "torch:muon",
            "optimizer 'torch:muon' fails with ValueError: Muon only supports 2D parameters",
            marks=pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="before torch 2.9"),
        ),
    ],
    ids=str,
)
def test_an_optimizer_that_cannot_be_had(optimizer: Any, sentence: str) -> None:
    with pytest.raises(SdeflowError) as found:
        toy(sdeflow.pgd, optimizer=optimizer)
    assert sentence in str(found.value)
    assert "\n" not in str(found.value)


def test_what_an_optimizer_does_not_go_with() -> None:
    with pytest.raises(
        SdeflowError, match=r"block 'theta': optimizer 'adam' moves parameters without noise.*pgd"
    ):
        toy(sdeflow.ipla, optimizer="adam")
    with pytest.raises(
        SdeflowError, match=r"block 'theta': optimizer 'adam' moves parameters without a momentum"
    ):
        toy(sdeflow.mpgd, optimizer="adam")
    with pytest.raises(SdeflowError, match=r"block 'theta': precondition is .* leave either out"):
        toy(sdeflow.pgd, optimizer="adam", precondition="rmsprop")
    with pytest.raises(
        SdeflowError, match=r"h is the learning rate of the optimizer 'lion'.*example 0\.0001"
    ):
        toy(sdeflow.pgd, optimizer="lion", h="auto")
    with pytest.raises(
        SdeflowError, match="engine 'compiled' takes optimizers of our own alone, given 'nadam'"
    ):
        simulate(toy(sdeflow.pgd, optimizer="nadam"), "expint", steps=1, engine="compiled")
    with pytest.raises(
        SdeflowError, match=r"moves by the optimizer 'adam'. These can: alternating, euler_maruyama, expint"
    ):
        simulate(toy(sdeflow.pgd, optimizer="adam"), "torchsde:euler", steps=1)
    with pytest.raises(SdeflowError, match="a momentum in every block; without one: theta"):
        simulate(toy(sdeflow.mpgd_x, optimizer="adam"), "baoab", steps=1)
    system = toy(sdeflow.pgd, optimizer="adam")
    with pytest.raises(SdeflowError, match="block 'theta' has no drift: the optimizer 'adam' moves it"):
        system.drift(0.0, initial_state(system, doubles()))
    with pytest.raises(SdeflowError, match="optimizer 'nadam' moves parameters alone"):
        Block("x", "X", (3, 1), ("datum", "latent"), temperature=0.0, rule=optimizer_named("nadam"))


class Loose(torch.optim.SGD):
    """One that does by itself what its kind says."""

    kind = "none"

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        (p,) = self.param_groups[0]["params"]
        self.seen = getattr(self, "seen", 0) + 1
        if self.kind == "hidden":
            p.grad = p.grad * self.seen
        elif self.kind == "torch":
            torch.rand(1)
        elif self.kind == "numpy":
            np.random.rand()  # noqa: NPY002
        elif self.kind == "object":
            self.state[p]["thing"] = object()
        elif self.kind == "grows":
            self.state[p][f"at {self.state[p].get('n', 0)}"] = 1.0
            self.state[p]["n"] = self.state[p].get("n", 0) + 1
        return super().step(closure)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("hidden", "keeps something beside its state, so a run could not be resumed"),
        ("torch", "draws random numbers of its own"),
        ("numpy", "draws random numbers of its own"),
        ("object", "keeps a object, which a run cannot store"),
        ("grows", "keeps other things later than after its first step"),
    ],
)
def test_an_optimizer_whose_state_cannot_be_ours(kind: str, sentence: str) -> None:
    rule = TorchOptimizer("loose", type(f"Of{kind}", (Loose,), {"kind": kind}))
    with pytest.raises(SdeflowError, match=sentence):
        toy(sdeflow.pgd, optimizer=rule)


def test_named_tensors_are_what_it_was_given() -> None:
    """Norms are of one tensor of one replica, and a state has the shapes of these."""
    seen = []

    class Seeing(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:  # type: ignore[override]
            seen.append([tuple(p.shape) for p in self.param_groups[0]["params"]])
            return super().step(closure)

    rule = TorchOptimizer("seeing", Seeing, (("momentum", 0.9),)).fitted([(2, 3), (), (4,)])
    block = Block("theta", "theta", (11,), ("param",), temperature=0.0, role="parameters", rule=rule)
    shapes = {slot: tuple(value.shape) for slot, value in rule.start(block).items() if "buffer" in slot}
    assert list(shapes.values()) == [(2, 3), (1,), (4,)]
    assert seen[-1] == [(2, 3), (), (4,)]
    _, gradients = noisy_gradients(20)
    start = torch.arange(11, dtype=torch.float64)
    expected = steps_by(torch.optim.SGD, gradients[:, :11], start, momentum=0.9)
    assert steps_of(rule, gradients[:, :11], start).equal(expected)


# A package more -------------------------------------------------------------------------------------------


@needs_package
@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["adamp", "adopt", "ademamix", "muon", "prodigy", "schedulefreeadamw", "shampoo", "soap"]
)
def test_a_run_in_pieces_by_the_package(stop_before: Any, tmp_path: Any, name: str) -> None:
    resumed(stop_before, tmp_path, name)


@needs_package
@pytest.mark.slow
def test_the_packages_that_are_taken_are_those_that_last() -> None:
    """On tensors of two shapes, each that is not refused: made anew for every step it is one that lasts."""
    import pytorch_optimizer

    start, gradients = noisy_gradients(12)
    shapes, taken = [(6, 5), (7,)], []
    for name in pytorch_optimizer.get_supported_optimizers():
        try:
            rule = optimizer_named(f"pytorch_optimizer:{name}").fitted(shapes)
            found = steps_of(rule, gradients, start)
        except SdeflowError:
            continue
        if "adamw_lr" in optimizer_signature(rule):
            continue  # its groups are told by us
        parts = [
            part.view(s).clone().requires_grad_()
            for part, s in zip(start.split([30, 7]), shapes, strict=True)
        ]
        lasting = rule.kind(parts, lr=H)
        for n, g in enumerate(gradients):
            for p, part in zip(parts, g.split([30, 7]), strict=True):
                p.grad = part.view(p.shape).clone()
            lasting.step()
            now = torch.cat([p.detach().reshape(-1) for p in parts])
            assert torch.equal(now.nan_to_num(), found[n].nan_to_num()), name
        taken.append(name)
    assert {"adamp", "adopt", "lamb", "soap", "schedulefreeadamw", "shampoo", "came"} <= {*taken}
    assert not {"kron", "lbfgs", "gravity", "conda"} & {*taken}
    assert len(taken) > 80


def optimizer_signature(rule: Any) -> list[str]:
    import inspect

    return list(inspect.signature(rule.kind).parameters)
