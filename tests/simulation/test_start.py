"""Runs that begin where another ended, or from tensors by name.

Oracles: a run in one piece, of a system without noise; the same system with its start given to it by hand; a
run of its own with the same seed, for what begins anew; the run that was not interrupted.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from commands import Cli, command
from pieces import toy
from safetensors.torch import load_file
from small import MOTION, Net, Ramp, assert_same, system_of
from torch import Tensor

import sdeflow
from sdeflow import Average, Batch, BlockSystem, Evaluate, Grid, Save, SDESystem, Start, simulate
from sdeflow.errors import SdeflowError
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.problems.linear_energy import LinearEnergy
from sdeflow.system import kinetic

EVERYTHING = Save(every=2, data="all", particles="all", checkpoint=0.0)
OPTIONS: dict[str, Any] = {"steps": 6, "save": EVERYTHING, "dtype": "float64", "engine": "eager"}


def energy(name: str = "kinetic_ebipla") -> BlockSystem:
    motion = {**MOTION, "h": 0.01}
    return getattr(sdeflow, name)(LinearEnergy(), particles=3, prior_particles=4, alpha=motion, x=motion)


def begun(system: Any, start: Any, scheme: str = "expint", **options: Any) -> xr.Dataset:
    return simulate(system, scheme, **OPTIONS | {"seed": 7} | options, start=start)


def old(tmp_path: Path, system: Any = None, scheme: str = "expint", **options: Any) -> Path:
    """A run in the folder 'old'."""
    simulate(system or toy(), scheme, **OPTIONS | options, out=tmp_path / "old")
    return tmp_path / "old"


def first(run: xr.Dataset, name: str) -> np.ndarray:
    return run[name].isel(time=0).to_numpy()


def last(run: Path | xr.Dataset, name: str) -> np.ndarray:
    return (sdeflow.open_run(run) if isinstance(run, Path) else run)[name].isel(time=-1).to_numpy()


still = sdeflow.SystemDeclaration("still", theta=kinetic("0"), x=kinetic("0"), source="")


@pytest.mark.parametrize("scheme", ["expint", "baoab", "ubu"])
def test_a_run_without_noise_goes_on_as_in_one_piece(scheme: str, tmp_path: Path) -> None:
    """Six steps and six more from there, under momenta: the last state of twelve, to the bit."""
    whole = simulate(toy(still), scheme, **OPTIONS | {"steps": 12})
    run = begun(toy(still), old(tmp_path, toy(still), scheme), scheme)
    for name in ("theta", "m", "X", "U"):
        np.testing.assert_array_equal(last(run, name), last(whole, name))
        assert not np.array_equal(first(run, name), last(run, name))
    assert run.step.values.tolist() == [0, 2, 4, 6]
    assert (run.attrs["start_step"], run.attrs["start_anew"]) == (6, "")


def by_hand(system: BlockSystem, start: Path) -> BlockSystem:
    """The system with the positions that a run has left as its own start; momenta are as it draws them."""
    positions = {b.position: torch.from_numpy(last(start, b.position)) for b in system.blocks}
    return BlockSystem(system.blocks, system.force_field, h=system.h, start=positions)


@pytest.mark.parametrize(
    ("before", "after", "anew"),
    [
        (sdeflow.mpgd, sdeflow.pgd, ""),
        (sdeflow.pgd, sdeflow.mpgd, "m, U"),
        (sdeflow.mpgd, sdeflow.mpgd_x, ""),
        (sdeflow.mpgd, sdeflow.kiplmc, "m"),
        (sdeflow.kiplmc, sdeflow.mpgd, "m"),
        (sdeflow.mpgd_x, sdeflow.mpgd, "m"),
    ],
)
def test_momenta_are_kept_where_their_law_is_the_same(
    before: Any, after: Any, anew: str, tmp_path: Path
) -> None:
    """Positions as they were; momenta as they were, or to the bit those of a run of its own."""
    run = begun(toy(after), old(tmp_path, toy(before)))
    own = simulate(toy(after), "expint", **OPTIONS | {"seed": 7})
    assert run.attrs["start_anew"] == anew
    for name in ("theta", "X"):
        np.testing.assert_array_equal(first(run, name), last(tmp_path / "old", name))
    for name in {"m", "U"} & {*run.data_vars}:
        expected = first(own, name) if name in anew.split(", ") else last(tmp_path / "old", name)
        np.testing.assert_array_equal(first(run, name), expected)
    if after is sdeflow.mpgd and "m" in anew:
        assert not first(run, "m").any()  # N(0, 0)


def test_another_inverse_mass_is_another_law(tmp_path: Path) -> None:
    """eta of theta: m, at T = 0, is 0 anew; all else, friction too, may be other and U stays."""
    start = old(tmp_path)
    run = begun(toy(eta=21.0, gamma=0.9, h=2e-3), start)
    assert run.attrs["start_anew"] == "m"
    assert not first(run, "m").any()
    np.testing.assert_array_equal(first(run, "U"), last(start, "U"))
    assert last(start, "m").any()


@pytest.mark.parametrize(
    ("auto", "options"),
    [
        ((), {"batch": Batch(2)}),
        ((), {"replicas": 2}),
        (("h", "eta", "gamma"), {}),
        (("h", "eta", "gamma"), {"batch": Batch(2)}),
        (("h", "gamma"), {"replicas": 2}),
    ],
    ids=str,
)
def test_it_is_the_run_of_the_start_given_by_hand(
    auto: tuple[str, ...], options: dict[str, Any], tmp_path: Path
) -> None:
    """Where momenta begin anew, the whole run to the bit; a warm-up measures at the new start too."""
    start = old(tmp_path, sdeflow.pgd(Curved(), particles=3, theta={"h": 0.01}, x={"h": 0.05}), steps=30)
    motion = {"h": 0.01, "eta": 2.0, "gamma": 0.5} | dict.fromkeys(auto, "auto")
    system = sdeflow.mpgd(Curved(), particles=3, theta=motion, x=motion)
    run = begun(system, start, "expint", steps=24, **options)
    assert_same(run, begun(by_hand(system, start), None, "expint", steps=24, **options))
    if auto and "batch" not in options:
        own = begun(system, None, "expint", steps=0, **options)
        assert abs(float(first(run, "h_x").max()) / float(first(own, "h_x").max()) - 1) > 0.1


class Curved(Hierarchical):
    """The toy model with x^4/4 in place of x^2/2 in its likelihood, so that curvature depends on x."""

    score_x = score_theta = None

    def __init__(self) -> None:
        super().__init__(data=6, theta_true=2.0)

    def log_joint(self, theta: Any, x: Tensor, y: Tensor) -> Tensor:
        return -((y[:, None] - x) ** 4).sum(-1) / 4 - ((x - theta["theta"]) ** 2).sum(-1) / 2


# Names and shapes ----------------------------------------------------------------------------------


class Pair(sdeflow.Model):
    """y_i ~ N(w x_i + b, 1), x_i ~ N(c, 1): parameters in any order, and some left out."""

    latent_shape = (2,)

    def __init__(self, names: tuple[str, ...], wide: int = 2) -> None:
        self.data = torch.linspace(-1, 1, 8, dtype=torch.float64).view(4, 2)
        self.names, self.wide = names, wide

    def init_theta(self, generator: torch.Generator) -> dict[str, Tensor]:
        return {name: torch.randn(self.wide, generator=generator) for name in self.names}

    def log_joint(self, theta: Any, x: Tensor, y: Tensor) -> Tensor:
        total = sum(value.sum() for value in theta.values())
        return -((y[:, None] - x * total) ** 2).sum(-1) / 2 - x.square().sum(-1) / 2


def pair(*names: str, wide: int = 2, **theta: Any) -> BlockSystem:
    return sdeflow.mpgd(Pair(names, wide), particles=3, theta=MOTION | theta, x=MOTION)


def test_parameters_are_matched_by_name(tmp_path: Path) -> None:
    """In another order, one left out and one new; each with its momentum, the new as in a run of its own."""
    system = pair("net.w", "net.b", "old.c")
    start = old(tmp_path, system)
    fresh = pair("prior.d", "net.b", "net.w")
    run = begun(fresh, Start(str(start), without=["theta.prior", "theta.old"]))
    own = begun(fresh, None)
    state = load_file(start / "final.safetensors")
    for variable in ("theta", "m"):
        d, b, w = first(run, variable).reshape(3, 2)
        np.testing.assert_array_equal(w, state[f"{variable}.net.w"])
        np.testing.assert_array_equal(b, state[f"{variable}.net.b"])
        np.testing.assert_array_equal(d, first(own, variable)[:2])
    assert float(state["m.net.w"].abs().min()) > 0
    assert run.attrs["start_anew"] == "theta.prior, m.prior"


@pytest.mark.parametrize(
    ("system", "start", "sentence"),
    [
        (pair("w", "c"), {}, "'theta.c' is not there, expected [2]"),
        (pair("w", "c"), {}, "--set start.without='[\"theta.c\", \"theta.b\"]'"),
        (pair("w"), {}, "'theta.b' is there, expected nothing of the name"),
        (pair("w", "b", wide=3), {}, "'theta.w' is [2], expected [3], 'theta.b' is [2]"),
        (pair("w", "b", wide=3), {}, "--set start.without=theta"),
        (pair("w", "b", "c.d", "c.e"), {}, "--set start.without=theta.c"),
        (pair("w", "b"), {"without": ["theta.bb"]}, "no 'theta.bb' in the state: did you mean 'theta.b'?"),
        (pair("w", "b"), {"without": 3}, "a name or a list of them was expected"),
        (pair("w", "b"), {"replica": 1}, "replica must lie in 0..0, given 1"),
        (pair("w", "b"), {"replica": -1}, "start.replica must be at least 0"),
        (toy(), {}, "'X' is [4, 3, 2], expected [6, 3, 1]"),
        (system_of(Net()), {}, "--set start.without='[\"theta\", \"X\"]'"),
    ],
)  # fmt: skip
def test_what_does_not_match_is_told(system: Any, start: Any, sentence: str, tmp_path: Path) -> None:
    """By name, with what was found and what was expected; nothing is written."""
    folder = old(tmp_path, pair("w", "b"))
    with pytest.raises(SdeflowError) as error:
        begun(system, Start(str(folder), **start), out=tmp_path / "new")
    assert sentence in str(error.value)
    assert not (tmp_path / "new").exists()


def test_particles_may_begin_anew(tmp_path: Path) -> None:
    """Of other data: theta from the run, X and U as in a run of its own."""
    start = old(tmp_path)
    more = sdeflow.mpgd(Hierarchical(data=9), particles=3, theta=MOTION, x=MOTION)
    run, own = begun(more, Start(str(start), without="X")), begun(more, None)
    np.testing.assert_array_equal(first(run, "theta"), last(start, "theta"))
    for name in ("X", "U"):
        np.testing.assert_array_equal(first(run, name), first(own, name))


# Replicas ------------------------------------------------------------------------------------------


def test_replicas_begin_from_their_own_or_all_from_one(tmp_path: Path) -> None:
    start = old(tmp_path, replicas=3)
    own = begun(toy(), start, replicas=3)
    np.testing.assert_array_equal(first(own, "U"), last(start, "U"))
    one = begun(toy(), Start(str(start), replica=2), replicas=2)
    alone = begun(toy(), Start(str(start), replica=2))
    for name in ("theta", "m", "X", "U"):
        for r in range(2):
            np.testing.assert_array_equal(first(one, name)[r], last(start, name)[2])
        np.testing.assert_array_equal(first(alone, name), last(start, name)[2])
    assert not np.array_equal(one.X[-1, 0], one.X[-1, 1])  # they part by their noise
    with pytest.raises(SdeflowError, match=r"'theta.theta' is \[3\], expected \[2\].*--replicas 3, or"):
        begun(toy(), start, replicas=2)


def test_replicas_are_no_entries_of_a_parameter(tmp_path: Path) -> None:
    """Two replicas of one number are not the two numbers of a vector."""
    start = old(tmp_path, toy(), replicas=2)
    two = Pair(("theta",))
    two.latent_shape = (1,)
    with pytest.raises(SdeflowError, match=r"'theta\.theta' is \[\], expected \[2\]"):
        begun(sdeflow.mpgd(two, particles=3, theta=MOTION, x=MOTION), start, replicas=2)


def test_the_points_of_a_grid_have_laws_of_their_own(tmp_path: Path) -> None:
    """Momenta stay at points of the same eta, and are drawn anew at others."""
    start = old(tmp_path, grid=Grid(eta=(2.0, 5.0)), replicas=2)
    grid = Grid(eta=(2.0, 7.0))
    run, own = (begun(toy(), s, grid=grid, replicas=2) for s in (start, None))
    for name in ("m", "U"):
        np.testing.assert_array_equal(first(run, name)[:2], last(start, name)[:2])
        np.testing.assert_array_equal(first(run, name)[2:], first(own, name)[2:])
    assert run.attrs["start_anew"] == "m, U"


# What else there is in a state ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("system", "options"),
    [
        (lambda: energy(), {}),
        (lambda: energy("ebipla"), {}),
        (lambda: system_of(Net()), {"replicas": 2}),
        (lambda: SDESystem(Ramp(), h=0.1, paths=3), {"scheme": "euler_maruyama"}),
        (toy, {"batch": Batch(2, "substeps", 2), "average": Average(0.9), "evaluate": Evaluate(2, 2)}),
        (toy, {"dtype": "float32"}),
        (lambda: toy(precondition="rmsprop"), {}),
        (lambda: toy(sdeflow.pgd, optimizer="adam", h=0.01), {}),
        (lambda: sdeflow.vi(Net(), particles=2, theta={"h": 0.01}, encoder_hidden=[4]),
         {"scheme": "alternating"}),
    ],
)  # fmt: skip
def test_every_system_begins_where_it_was(
    system: Callable[[], Any], options: dict[str, Any], tmp_path: Path
) -> None:
    """Of each variable the last is the first; memory of optimizers, averages and their like begin anew."""
    options = dict(options)
    scheme = options.pop("scheme", "expint")
    start = old(tmp_path, system(), scheme, **options)
    run = begun(system(), start, scheme, **options)
    own = begun(system(), None, scheme, **options)
    for name in system().axes:
        np.testing.assert_array_equal(first(run, name), last(start, name))
        assert not np.array_equal(first(run, name), first(own, name)) or not first(run, name).any()
    if "average_theta" in run:
        np.testing.assert_array_equal(first(run, "average_theta"), first(run, "theta"))
    for memory in ("theta_rms", "theta_step"):
        if memory in sdeflow.load(start).state:
            assert memory in run.attrs["start_anew"].split(", ")


# Resuming ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stopped", "auto"), [(0, False), (3, False), (3, True)])
def test_it_resumes_to_the_bit_without_the_other_run(
    stopped: int, auto: bool, tmp_path: Path, stop_before: Callable[[int | None], None]
) -> None:
    start = old(tmp_path)
    system = toy(h="auto", eta="auto", gamma="auto") if auto else toy()
    whole = begun(system, start, steps=22)
    out: dict[str, Any] = {"out": tmp_path / "new", "resume": True, "steps": 22}
    stop_before(stopped)
    with pytest.raises(KeyboardInterrupt):
        begun(system, start, **out)
    stop_before(None)
    shutil.rmtree(start)
    run = begun(system, start, **out)
    assert_same(run, whole)
    for key in ("start_run", "start_step", "start_checksum", "start_anew"):
        assert run.attrs[key] == whole.attrs[key]
    with pytest.raises(SdeflowError, match=r"start was .*old"):
        begun(system, None, **out)


def test_the_command_resumes_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli, stop_before: Callable[[int | None], None]
) -> None:
    monkeypatch.chdir(tmp_path)
    few = ["--set", "model.data=4", "--set", "system.particles=3", "--steps", 20, "--quiet"]
    assert command("run", "hierarchical", *few, "--out", "old") == 0
    again = ["run", "hierarchical", *few, "--seed", 5, "--from", "old", "--set", "system.x.gamma=0.3"]
    assert command(*again, "--out", "whole") == 0
    stop_before(7)
    assert command(*again) == 130
    stop_before(None)
    shutil.rmtree("old")
    new = Path("runs/hierarchical-expint-s5-from-old")
    assert command("resume", new, "--quiet") == 0
    with xr.open_dataset("whole/trajectory.nc") as a, xr.open_dataset(new / "trajectory.nc") as b:
        assert_same(a, b)
        assert b.attrs["start_run"] == str(tmp_path / "old")
    assert f'run = "{tmp_path / "old"}"' in (new / "config.toml").read_text()
    assert "begins from" in (new / "run.log").read_text()
    cli("list")
    assert cli(*again, "--out", "third").err.startswith(f"sdeflow: {tmp_path / 'old'} has no final")


def test_where_it_is_from_is_recorded(tmp_path: Path) -> None:
    import hashlib

    start = old(tmp_path)
    run = begun(toy(), start)
    assert run.attrs["start_run"] == str(start)
    digest = hashlib.sha256((start / "final.safetensors").read_bytes()).hexdigest()
    assert run.attrs["start_checksum"] == digest
    assert not any(key.startswith("start_") for key in begun(toy(), None).attrs)


# Parts of a state, and trajectories ----------------------------------------------------------------


def test_tensors_take_the_place_of_a_part(tmp_path: Path) -> None:
    own = begun(system_of(Net()), None, replicas=2)
    bias = np.array([0.25, -0.5])
    x = torch.arange(2 * 5 * 4 * 6, dtype=torch.float64).view(2, 5, 4, 6) / 100
    run = begun(system_of(Net()), {"theta.bias": bias, "X": x}, replicas=2)
    np.testing.assert_array_equal(first(run, "theta")[:, -2:], [bias, bias])
    np.testing.assert_array_equal(first(run, "X"), x)
    np.testing.assert_array_equal(first(run, "theta")[:, :-2], first(own, "theta")[:, :-2])
    np.testing.assert_array_equal(first(run, "U"), first(own, "U"))
    momentum = begun(system_of(Net()), {"U": x[0]}, replicas=2)
    np.testing.assert_array_equal(first(momentum, "U"), torch.stack([x[0], x[0]]))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"theta.thet": 1.0}, "no 'theta.thet' in the state: did you mean 'theta.theta'?"),
        ({"X": torch.zeros(2)}, "'X' is [2], expected [1, 6, 3, 1], replicas first"),
        ({"X": "here"}, "start['X'] fails with"),
        ({"theta.theta": float("nan")}, "not finite"),
        (3, "given int"),
        ({"m": {}}, "start['m'] fails"),
    ],
)
def test_tensors_that_do_not_fit_are_told(given: Any, sentence: str) -> None:
    with pytest.raises(SdeflowError) as error:
        begun(toy(), given)
    assert sentence in str(error.value)


def test_a_momentum_needs_the_unit_that_eta_gives() -> None:
    system = toy(h="auto", eta="auto", gamma="auto")
    with pytest.raises(SdeflowError, match=r"system\.theta\.eta is 'auto': give eta"):
        begun(system, {"m.theta": 0.1})


def test_a_trajectory_is_a_start_where_it_is_whole(tmp_path: Path) -> None:
    """The same numbers as from its folder; of a cut one, of the last snapshot that is left."""
    start = old(tmp_path, system_of(Net()), replicas=2)
    with sdeflow.open_run(start) as trajectory:
        trajectory.load()
    run = begun(system_of(Net()), trajectory, replicas=2)
    assert_same(run, begun(system_of(Net()), start, replicas=2))
    assert (run.attrs["start_step"], run.attrs["start_anew"]) == (6, "")
    unknown = begun(
        system_of(Net()), trajectory.assign_attrs(momenta="{}"), replicas=2
    )  # as of an older sdeflow
    assert unknown.attrs["start_anew"] == "m, U"
    cut = begun(system_of(Net()), trajectory.isel(time=slice(0, 2)), replicas=2)
    np.testing.assert_array_equal(first(cut, "U"), trajectory.U[1])
    assert cut.attrs["start_step"] == 2


@pytest.mark.parametrize(
    ("save", "sentence"),
    [
        (Save(data=2, particles="all"), "a part of X along 'datum' alone: give the folder"),
        (Save(data="all", particles=[1]), "a part of X along 'particle' alone"),
        (Save(data="all", particles="all", theta_max=0), "'theta.theta' is not there, expected []"),
    ],
)
def test_a_trajectory_that_is_not_whole_is_told(save: Save, sentence: str) -> None:
    run = simulate(toy(), steps=4, save=save)
    with pytest.raises(SdeflowError) as error:
        begun(toy(), run)
    assert sentence in str(error.value)
    assert "Save(data='all'" in str(error.value)


def test_the_law_of_a_momentum_is_that_of_the_snapshot() -> None:
    """Where a warm-up has changed eta: by the number at the snapshot, not by the last."""
    run = simulate(toy(h="auto", eta="auto", gamma="auto"), "expint", **OPTIONS | {"steps": 60})
    eta = run.eta_theta.values
    system = toy(eta=float(eta[0]))
    at = {True: run.isel(time=slice(0, 1)), False: run.isel(time=slice(0, None))}
    for same, trajectory in at.items():
        anew = begun(system, trajectory).attrs["start_anew"].split(", ")
        assert ("m" in anew) is not same
    assert eta[0] != eta[-1]


# Two stages ----------------------------------------------------------------------------------------


def test_a_learned_prior_after_a_fixed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    """Images: the decoder and particles go on, a mixture's parameters are new, by a flag that is told."""

    def load(name: str, split: str = "train") -> tuple[Any, Any]:
        rng = np.random.default_rng(0)
        return rng.integers(0, 256, (30, 1, 28, 28), np.uint8), np.zeros(30, np.uint8)

    monkeypatch.setattr("sdeflow.data.images.load_images", load)
    monkeypatch.chdir(tmp_path)
    Path("images.toml").write_text("""
model = { use = "images", dataset = "mnist", decoder = "mlp", hidden = [8], latent = 4, pseudo_points = 0 }
batch = { size = 10 }
run = { steps = 6, integrator = "expint" }
[system]
use = "mpgd"
particles = 2
theta = { h = 1e-4, eta = 50.0, gamma = 0.9, precondition = "rmsprop" }
x = { h = 1e-4, eta = 50.0, gamma = 0.9 }
[variants.mixture]
model.pseudo_points = 3
start = { run = "first", without = "theta.prior" }
""")
    assert command("run", "images.toml", "--out", "first", "--quiet") == 0
    mixture = ["--set", "model.pseudo_points=3", "--steps", 0, "--quiet"]
    told = cli("run", "images.toml", *mixture, "--from", "first", "--out", "refused")
    assert told.code == 2
    assert "'theta.prior." in told.err
    assert "is not there, expected" in told.err
    assert "--set start.without=theta.prior" in told.err
    assert not Path("refused").exists()
    assert command("run", "images.toml", "--variant", "mixture", "--steps", 0, "--quiet", "--out", "b") == 0
    assert command("run", "images.toml", *mixture, "--out", "own") == 0
    before, after, own = (load_file(f"{run}/final.safetensors") for run in ("first", "b", "own"))
    prior = {name for name in after if ".prior." in name}
    assert {name.partition(".")[0] for name in prior} == {"theta", "m"}
    for name, value in after.items():
        if name in prior or "rms" in name:
            assert torch.equal(value, own[name]), name
        elif name != "visited":
            assert torch.equal(value, before[name]), name
            assert not torch.equal(value, own[name]), name
    assert command("run", "images.toml", "--variant", "mixture", "--quiet", "--out", "third") == 0


# The command line ----------------------------------------------------------------------------------


def test_what_cannot_be_begun_from_is_told(tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "nothing has no final.safetensors" in refused("--from", "nothing")
    simulate(toy(), steps=4, out=tmp_path / "old", save=EVERYTHING)
    assert "'X' is [6, 3, 1], expected [3, 2, 1]" in refused("--from", "old")
    assert "begins from: give another --out" in refused("--from", "old", "--out", "old", "--overwrite")
    assert "no 'nosuch' in the state" in refused("--from", "old", "--set", "start.without=nosuch")
    assert "unknown key 'start.rum'" in refused("--set", "start.rum=1")
    (tmp_path / "old" / "trajectory.nc").unlink()
    assert "has not ended: sdeflow resume" in refused("--from", "old")


def test_a_run_that_diverged_is_no_start(tmp_path: Path) -> None:
    wild = sdeflow.pgd(Hierarchical(data=6, theta_true=2.0), particles=3, theta={"h": 1e3}, x={"h": 1e3})
    with pytest.warns(sdeflow.errors.DivergenceWarning):
        simulate(wild, "euler_maruyama", steps=400, out=tmp_path / "old", save=Save(every=400))
    with pytest.raises(SdeflowError, match=r"not finite.*: begin from what has not diverged"):
        begun(toy(), tmp_path / "old")


def test_show_tells_of_it(tmp_path: Path, cli: Cli) -> None:
    told = cli("show", "hierarchical", "--set", f"start.run={tmp_path}").out
    assert "begins from" in told
    assert str(tmp_path) in told.replace("\n", "").replace(" ", "") or tmp_path.name in told
