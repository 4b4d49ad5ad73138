"""Curvature by differences of forces.

Oracles: the Hessian of the potential in theta and x / sqrt(N), by torch.func from the model's log-joint,
and its dense eigenvalues; theorems on Lanczos' iteration; matrices written out for the Gaussian energy model.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import pytest
import torch
from small import FLOAT64, Autograd
from support import doubles
from torch import Tensor

import sdeflow
from sdeflow import Block, BlockSystem
from sdeflow.problems.decoder import Decoder
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.problems.linear_energy import LinearEnergy
from sdeflow.problems.ppca import PPCA
from sdeflow.state import State
from sdeflow.system.rule import RMSProp
from sdeflow.system.system import initial_state
from sdeflow.tuning import curvature
from sdeflow.tuning.curvature import LEAST_MEAN, OPPOSED, Curvature, lanczos

N = 3
MODELS = {
    "hierarchical": lambda: Hierarchical(data=4, latent=2, scale=0.7),
    "autograd": lambda: Autograd(data=4, scale=0.7),
    "decoder": lambda: Decoder(latent=2, hidden=(2,), images=2),
    "ppca": lambda: PPCA(data=6, latent=2),
}
LINEAR = ("hierarchical", "autograd")


def system_of(name: str, replicas: int = 1, **theta: Any) -> tuple[BlockSystem, State]:
    """A system in float64, and the state at its start."""
    system = sdeflow.mpgd(MODELS[name](), particles=N, theta=theta).to(**FLOAT64)
    z = initial_state(system, doubles(range(replicas)))
    if name == "decoder":  # whose images are 64 pixels
        z["theta"] = 0.3 * z["theta"]
    return system, z


def hessian(system: BlockSystem, z: State, replica: int = 0, data: Tensor | None = None) -> Tensor:
    """Of V(theta, x^), with the data `data` and D/b times as much each, [p + n, p + n]."""
    forces: Any = system.force_field
    theta, x = z["theta"][replica], z["X"][replica]
    y = forces.model.data if data is None else forces.model.data[data]
    weight = len(forces.model.data) / len(y) / N

    def potential(q: Tensor) -> Tensor:
        latents = (q[len(theta) :] / sqrt(weight)).view(*x.shape[:2], *forces.model.latent_shape)
        return -weight * forces.model.log_joint(forces.parameters.views(q[: len(theta)]), latents, y).sum()

    jacobian = torch.func.jacrev  # forward mode loads code that torch itself calls deprecated
    return jacobian(jacobian(potential))(torch.cat([theta, x.flatten() * sqrt(weight)]))


def dense(c: Curvature, z: State, names: dict[str, str]) -> Tensor:
    """The matrix of products on blocks of one replica, whose positions are `names`, column by column."""
    sizes = {b: z[q][0].numel() for b, q in names.items()}
    columns = []
    for e in torch.eye(sum(sizes.values()), dtype=torch.float64):
        parts = zip(names.items(), e.split(list(sizes.values())), strict=True)
        product = c.product({b: part.view_as(z[q]) for (b, q), part in parts})
        columns.append(torch.cat([product[b].flatten() for b in names]))
    return torch.stack(columns, 1)


BOTH = {"theta": "theta", "x": "X"}


@pytest.mark.parametrize("name", MODELS)
def test_products_are_those_of_the_potentials_hessian(name: str) -> None:
    """To rounding where forces are linear; else to the error of a difference, and symmetric."""
    system, z = system_of(name)
    expected = hessian(system, z)
    found = dense(Curvature(system, z), z, BOTH)
    largest = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=(1e-9 if name in LINEAR else 1e-3) * largest)
    p = z["theta"].numel()
    for names, part in (({"theta": "theta"}, slice(p)), ({"x": "X"}, slice(p, None))):
        torch.testing.assert_close(
            dense(Curvature(system, z), z, names), found[part, part], rtol=0, atol=1e-3 * largest
        )


def test_a_smaller_difference_is_as_much_nearer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of a difference of forces is of first order."""
    system, z = system_of("ppca")
    expected, errors = hessian(system, z), []
    for step in (1e-3, 1e-5):
        monkeypatch.setattr(curvature, "STEP", {torch.float64: step})
        errors.append(float((dense(Curvature(system, z), z, BOTH) - expected).abs().max()))
    assert errors[1] == pytest.approx(errors[0] / 100, rel=0.2)


def largest_of(c: Curvature, name: str, most: int = 12) -> float:
    return float(lanczos(c.of_block(name, {}), c.start([name]), most).values[-1])


@pytest.mark.parametrize("name", MODELS)
def test_the_largest_curvature_of_each_block(name: str) -> None:
    """By 12 products, against all eigenvalues of the Hessian's diagonal blocks."""
    system, z = system_of(name)
    exact, p = hessian(system, z), z["theta"].numel()
    c = Curvature(system, z)
    for block, part in (("theta", exact[:p, :p]), ("x", exact[p:, p:])):
        assert largest_of(c, block) == pytest.approx(float(torch.linalg.eigvalsh(part)[-1]), rel=1e-3)
    assert c.evaluations <= 1 + 2 * 12


def test_replicas_are_pooled() -> None:
    """Parts of one large system: the largest curvature is the largest over them, which differ."""
    system, z = system_of("ppca", replicas=3)
    each = [torch.linalg.eigvalsh(hessian(system, z, r)[:13, :13])[-1] for r in range(3)]
    assert z["theta"].shape == (3, 13)
    assert max(each) > 1.02 * min(each)
    assert largest_of(Curvature(system, z), "theta", 30) == pytest.approx(float(max(each)), rel=1e-3)


def test_a_preconditioned_block_sees_its_own_forces() -> None:
    """D^-1/2 J D^-1/2 with D = sqrt(v + 1e-8) of RMSProp's mean square v, symmetric with x beside it."""
    system, z = system_of("hierarchical", precondition="rmsprop")
    z["theta_rms"] = torch.full((1, 1), 7.0, dtype=torch.float64)
    expected = hessian(system, z)
    root = (7.0 + RMSProp.floor) ** -0.25
    expected[0] *= root
    expected[:, 0] *= root
    torch.testing.assert_close(dense(Curvature(system, z), z, BOTH), expected, rtol=0, atol=1e-8)


def test_a_minibatch_stands_for_all_data() -> None:
    """Its theta sees D/b times its own data's curvature, and with x^ = x sqrt(D/(b N)) J is symmetric."""
    system, z = system_of("ppca")
    index = torch.tensor([[1, 4]])
    part = system.minibatch(index)
    of_part = z | {name: z[name][:, index[0]] for name in ("X", "U")}
    expected = hessian(system, of_part, data=index[0])
    found = dense(Curvature(part, of_part), of_part, BOTH)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3 * float(expected.abs().max()))
    torch.testing.assert_close(found, found.mT, rtol=0, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("name", LINEAR)
def test_the_joint_curvature_has_ones_and_ends_within_0_and_2(name: str) -> None:
    """J^ of a convex model, and its ends by Lanczos from the forces, against dense eigenvalues."""
    system, z = system_of(name)
    c = Curvature(system, z)
    scale = {b: largest_of(c, b) ** -0.5 for b in BOTH}
    exact = hessian(system, z)
    root = torch.cat([torch.full((z[q].numel(),), scale[b], dtype=torch.float64) for b, q in BOTH.items()])
    joint = root[:, None] * exact * root
    values = torch.linalg.eigvalsh(joint)
    for part in (joint[:1, :1], joint[1:, 1:]):
        assert float(torch.linalg.eigvalsh(part)[-1]) == pytest.approx(1, rel=1e-6)
    assert 0 < float(values[0]) < float(values[-1]) <= 2

    def product(v: dict[str, Tensor]) -> dict[str, Tensor]:
        return {b: scale[b] * w for b, w in c.product({b: scale[b] * u for b, u in v.items()}).items()}

    found = lanczos(product, {b: scale[b] * f for b, f in c.force().items()}, 12).values
    assert [float(found[0]), float(found[-1])] == pytest.approx(
        [float(values[0]), float(values[-1])], rel=1e-6
    )


def test_forces_are_those_on_theta_and_x_hat() -> None:
    """Minus the gradient of V, whose Hessian times a displacement from the minimum they are."""
    system, z = system_of("hierarchical")
    f = Curvature(system, z).force()
    q = torch.cat([z["theta"].flatten(), z["X"].flatten() / sqrt(N)])
    y = system.force_field.definition.data  # type: ignore[attr-defined]
    best = torch.cat(
        [
            y.mean()[None],
            ((y + y.mean() / 0.49) / (1 + 1 / 0.49))[:, None].expand(4, N, 2).flatten() / sqrt(N),
        ]
    )
    expected = -hessian(system, z) @ (q - best)
    torch.testing.assert_close(torch.cat([f["theta"].flatten(), f["x"].flatten()]), expected)


def test_the_mean_curvature() -> None:
    """Of x under the toy model all curvatures are alike, 1 + 1/s^2; for ppca's theta one sample of it."""
    system, z = system_of("hierarchical")
    assert Curvature(system, z).mean("x") == pytest.approx(1 + 1 / 0.49, rel=1e-9)
    system, z = system_of("ppca")
    v = Curvature(system, z).start(["theta"])["theta"].flatten()
    part = hessian(system, z)[:13, :13]
    assert Curvature(system, z).mean("theta") == pytest.approx(float(v @ part @ v / (v @ v)), rel=1e-3)


# Energy models ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [False, True])
def test_opposed_parameters_feel_what_particles_leave_of_them(offset: bool) -> None:
    """With U = |x - alpha|^2 / 2 the particles Z, all of curvature 1, follow alpha, and the Schur complement

    J_aa - J_az J_za / 1 = (D - D) + D = D: what the posterior particles alone do. They come OPPOSED times."""
    data, particles = 6, 4
    system = sdeflow.kinetic_ebipla(
        LinearEnergy(data=data, latent=2, offset=offset), particles=N, prior_particles=particles
    ).to(**FLOAT64)
    z = initial_state(system, doubles())
    c = Curvature(system, z)
    eye, across = torch.eye(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64).repeat(particles, 1)
    az, za = data / sqrt(particles) * across.T, -across / sqrt(particles)
    names = {"alpha": "alpha", "z": "Z"}
    expected = torch.cat([torch.cat([0 * eye, az], 1), torch.cat([za, torch.eye(8, dtype=torch.float64)], 1)])
    torch.testing.assert_close(dense(c, z, names), expected, rtol=0, atol=1e-8)
    assert c.mean("z") == pytest.approx(1, rel=1e-8)
    schur = 0 * eye - az @ za
    torch.testing.assert_close(schur, data * eye)
    product = c.of_block("alpha", {"z": 1.0})
    v = torch.tensor([[0.3, -2.0]], dtype=torch.float64)
    torch.testing.assert_close(product({"alpha": v})["alpha"], OPPOSED * v @ schur, rtol=1e-7, atol=0)
    if offset:
        assert largest_of(c, "beta") == pytest.approx(data, rel=1e-8)
    assert largest_of(c, "x") == pytest.approx(3.0 if offset else 2.0, rel=1e-8)


def test_opposing_particles_of_no_mean_curvature_count_as_stiff_a_little(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    system = sdeflow.kinetic_ebipla(LinearEnergy(data=3), particles=N, prior_particles=4).to(**FLOAT64)
    c = Curvature(system, initial_state(system, doubles()))
    monkeypatch.setattr(c, "mean", lambda name: -5.0)
    v = {"alpha": torch.ones(1, 1, dtype=torch.float64)}
    found = float(c.of_block("alpha", {"z": 2.0})(v)["alpha"])
    assert found == pytest.approx(OPPOSED * 3 / (LEAST_MEAN * 2.0), rel=1e-7)


# Lanczos' iteration ----------------------------------------------------------------------------------


def matrix(values: list[float]) -> Tensor:
    """Symmetric, of these eigenvalues."""
    g = torch.Generator().manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=g, dtype=torch.float64))
    return q @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ q.T


VALUES = [-3.0, -1.0, 0.0, 0.5, 2.0, 2.1, 7.0, 40.0]


def krylov(a: Tensor, start: Tensor, most: int, **options: Any) -> Any:
    """Lanczos on a matrix whose vectors come in two parts."""

    def product(v: dict[str, Tensor]) -> dict[str, Tensor]:
        w = a @ torch.cat([v["a"].flatten(), v["b"].flatten()])
        return {"a": w[:3].view(1, 3), "b": w[3:].view(1, -1, 1)}

    return lanczos(product, {"a": start[:3].view(1, 3), "b": start[3:].view(1, -1, 1)}, most, **options)


def test_all_products_give_all_eigenvalues() -> None:
    a, start = matrix(VALUES), torch.ones(8, dtype=torch.float64)
    found = krylov(a, start, 20)
    torch.testing.assert_close(found.values, torch.tensor(VALUES, dtype=torch.float64), rtol=0, atol=1e-10)
    top = torch.cat([found.top["a"].flatten(), found.top["b"].flatten()])
    assert found.top["b"].shape == (1, 5, 1)
    torch.testing.assert_close(a @ top, 40.0 * top, rtol=0, atol=1e-9)


@pytest.mark.parametrize("most", [1, 2, 4, 6])
def test_few_products_give_estimates_with_bounds(most: int) -> None:
    """Some eigenvalue lies within each bound, and the ends lie within the spectrum's."""
    a, start = matrix(VALUES), torch.ones(8, dtype=torch.float64)
    found = krylov(a, start, most)
    assert len(found.values) == most
    for value, error in zip(found.values, found.errors, strict=True):
        assert min(abs(float(value) - v) for v in VALUES) <= float(error) + 1e-10
    assert -3 <= float(found.values[0]) <= float(found.values[-1]) <= 40
    if most > 2:
        assert float(found.values[-1]) == pytest.approx(40, rel=1e-2)


def test_it_stops_where_it_is_told_or_nothing_is_new() -> None:
    a, start = matrix(VALUES), torch.ones(8, dtype=torch.float64)
    seen: list[int] = []
    found = krylov(a, start, 8, enough=lambda values, errors: seen.append(len(values)) or len(values) == 3)
    assert (len(found.values), seen) == (3, [1, 2, 3])
    assert krylov(torch.eye(8, dtype=torch.float64), start, 8).values.tolist() == pytest.approx([1.0])
    assert krylov(0 * a, start, 8).values.tolist() == [0.0]


def test_what_is_no_number_gives_none() -> None:
    a, start = matrix(VALUES), torch.ones(8, dtype=torch.float64)
    assert bool(krylov(a * torch.nan, start, 8).values.isnan().all())
    assert bool(krylov(a, 0 * start, 8).values.isnan().all())


# What need not be a model ----------------------------------------------------------------------------


def test_forces_that_are_a_function() -> None:
    """Replicas, blocks of any shape, and a block at zero, whose displacement then has a size of its own."""
    a = matrix([1.0, 4.0, 9.0])
    one = Block("one", "q", (1,), ("i",), role="parameters", temperature=0.0)
    two = Block("two", "r", (2,), ("j",), "p", eta=1.0, gamma=1.0)

    def forces(t: float, z: State, names: Any) -> State:
        whole = -torch.cat([z["q"], z["r"]], 1) @ a
        return {"one": whole[:, :1], "two": whole[:, 1:]}

    system = BlockSystem([one, two], forces, h=0.1)
    z = {name: torch.zeros(1, n, dtype=torch.float64) for name, n in (("q", 1), ("r", 2), ("p", 2))}
    torch.testing.assert_close(dense(Curvature(system, z), z, {"one": "q", "two": "r"}), a)


@pytest.mark.parametrize("kind", ["flat", "hill"])
def test_no_curvature_and_curvature_that_is_negative_alone(kind: str) -> None:
    slope = {"flat": 0.0, "hill": 2.0}[kind]
    block = Block("q", "q", (3,), ("i",), temperature=0.0)
    system = BlockSystem([block], lambda t, z, names: {"q": 1 + slope * z["q"]}, h=0.1)
    c = Curvature(system, {"q": torch.ones(1, 3, dtype=torch.float64)})
    found = lanczos(c.product, c.start(["q"]), 4)
    assert found.values.tolist() == pytest.approx([-slope], abs=1e-9)
