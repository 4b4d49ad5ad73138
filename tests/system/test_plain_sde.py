"""Plain SDEs of several variables, with a law of the start and a final time.

Oracles: Euler-Maruyama by hand with the same increments; normals drawn by hand from the same key; one run in
one piece.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import command
from support import doubles
from torch import Tensor

import sdeflow
from sdeflow import Save, SDESystem, simulate
from sdeflow.errors import RunError, SdeflowError
from sdeflow.noise.source import TorchNoise
from sdeflow.seeds import generator
from sdeflow.system.increments import NoiseSpec

ALL = Save(every=1, particles="all")


class Oscillator:
    """dX = U dt, dU = (t - X - U) dt + 0.3 dW, from X ~ N(2, 1) in two coordinates and U = 0."""

    final_time = 1.0

    def drift(self, t: float, z: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"X": z["U"], "U": t - z["X"] - z["U"]}

    def diffusion(self, t: float, z: dict[str, Tensor]) -> dict[str, float]:
        return {"U": 0.3}

    def start(self, generator: torch.Generator, paths: int) -> dict[str, Tensor]:
        x = 2 + torch.randn(paths, 2, generator=generator, dtype=torch.float64)
        return {"X": x, "U": torch.zeros_like(x)}

    def observables(self, t: float, z: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            "energy": (z["X"].square() + z["U"].square()).mean((1, 2)) / 2,
            "now": z["X"].new_full((len(z["X"]),), t),
        }


OSCILLATOR = """
import torch

class Oscillator:
    final_time = 1.0

    def drift(self, t, z):
        return {"X": z["U"], "U": t - z["X"] - z["U"]}

    def diffusion(self, t, z):
        return {"U": 0.3}

    def start(self, generator, paths):
        x = 2 + torch.randn(paths, 2, generator=generator, dtype=torch.float64)
        return {"X": x, "U": torch.zeros_like(x)}
"""


def end(system: SDESystem, **options: Any) -> Any:
    """A short run in float64, of all paths at all steps."""
    return simulate(system, "euler_maruyama", **{"steps": 4, "dtype": "float64", "save": ALL, **options})


def drawn(seed: int, paths: int = 3) -> Tensor:
    """The start of the oscillator by hand."""
    return 2 + torch.randn(paths, 2, generator=generator(seed, "start"), dtype=torch.float64)


def test_two_variables_move_as_by_hand() -> None:
    system = SDESystem(Oscillator(), h=0.25, paths=3)
    assert [c.variable for c in system.channels] == ["U"]  # no noise is drawn for X
    run = end(system, seed=5, noise="torch", engine="eager")
    assert run.X.dims == run.U.dims == ("time", "particle", "latent")
    noise = TorchNoise(system.channels, NoiseSpec("W", 1, 0.25), doubles([5]))
    x, u = drawn(5).numpy(), np.zeros((3, 2))
    for n in range(5):
        np.testing.assert_allclose(run.X[n], x, rtol=1e-13)
        np.testing.assert_allclose(run.U[n], u, rtol=1e-13, atol=1e-15)
        np.testing.assert_allclose(run.energy[n], (x**2 + u**2).mean() / 2, rtol=1e-13)
        (part,) = noise(n)
        kick = 0.3 * part["U"]["W"][0].numpy()
        x, u = x + 0.25 * u, u + 0.25 * (0.25 * n - x - u) + kick
    np.testing.assert_array_equal(run.now, run.time)


def test_the_start_is_drawn_from_its_law_by_the_seed() -> None:
    """To the bit in float64, rounded in float32; replicas are the runs of their seeds."""
    run = end(SDESystem(Oscillator(), paths=3), seed=7, replicas=2)
    for i in range(2):
        np.testing.assert_array_equal(run.X[0, i], drawn(7 + i))
        alone = end(SDESystem(Oscillator(), paths=3), seed=7 + i)
        np.testing.assert_array_equal(run.U[-1, i], alone.U[-1])
    assert not (run.X[0, 0] == run.X[0, 1]).any()
    single = end(SDESystem(Oscillator(), paths=3), seed=7, dtype="float32")
    np.testing.assert_array_equal(single.X[0], drawn(7).float())


def test_a_start_that_is_given_comes_before_the_law() -> None:
    run = end(SDESystem(Oscillator(), paths=3, start={"X": [1.0, -1.0], "U": [0.5, 0.0]}))
    np.testing.assert_array_equal(run.X[0], [[1.0, -1.0]] * 3)
    np.testing.assert_array_equal(run.U[0], [[0.5, 0.0]] * 3)


def test_a_law_of_one_variable_and_tensors_that_it_holds() -> None:
    """They stay float64 for the start where the run is not; drift and diffusion see the run's dtype."""

    class Held:
        def __init__(self) -> None:
            self.at = torch.linspace(0, 1, 6, dtype=torch.float64).view(3, 2)

        def start(self, generator: torch.Generator, paths: int) -> Tensor:
            return self.at

        def drift(self, t: float, x: Tensor) -> Tensor:
            assert self.at.dtype == x.dtype
            return self.at - x

        def diffusion(self, t: float, x: Tensor) -> float:
            return 0.0

    run = end(SDESystem(Held(), h=0.1, paths=3), dtype="float32")
    np.testing.assert_array_equal(run.X[-1], Held().at.float())


def test_variables_of_different_lengths() -> None:
    class Two(Oscillator):
        def drift(self, t: float, z: dict[str, Tensor]) -> dict[str, Any]:
            return {"X": -z["X"], "angle": z["X"].sum(-1, keepdim=True)}

        def diffusion(self, t: float, z: dict[str, Tensor]) -> dict[str, float]:
            return {"angle": 0.1, "X": 0.2}

        observables = None

    run = end(SDESystem(Two(), paths=3, start={"X": [1.0, 2.0], "angle": [0.0]}))
    assert run.X.dims[-1] == "latent"
    assert run.angle.dims[-1] == "angle_latent"
    assert run.angle.shape == (5, 3, 1)


@pytest.mark.parametrize("engine", ["eager", "fused"])
def test_a_cut_run_goes_on_to_the_bit(tmp_path: Path, engine: str) -> None:
    """Which has the steps of the run that was begun, of which its h is made."""
    options: dict[str, Any] = {"seed": 3, "steps": 8, "engine": engine}
    if engine == "fused":
        options["noise"] = "philox"
    whole = end(SDESystem(Oscillator(), paths=3), **options)
    taken = 0

    def stop(snapshot: object) -> None:
        nonlocal taken
        taken += 1
        if taken == 4:
            raise KeyboardInterrupt

    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        end(SDESystem(Oscillator(), paths=3), **options, out=out, callbacks=stop)
    pieces = end(SDESystem(Oscillator(), paths=3), **options, out=out, resume=True)
    for name in ("X", "U", "time"):
        np.testing.assert_array_equal(pieces[name], whole[name])
    with pytest.raises(SdeflowError, match=r"go to time 1\.125.*final time 1: take 8 steps at most"):
        end(SDESystem(Oscillator(), paths=3), **options | {"steps": 9}, out=out, resume=True)


def test_the_step_is_the_final_time_over_the_steps() -> None:
    run = end(SDESystem(Oscillator()), steps=3)
    np.testing.assert_allclose(run.time, [0, 1 / 3, 2 / 3, 1], rtol=1e-15)


@pytest.mark.parametrize(("h", "steps", "most"), [(0.3, 4, 3), (0.1, 11, 10), (0.5, 5000, 2)])
def test_no_run_goes_beyond_the_final_time(h: float, steps: int, most: int) -> None:
    end(SDESystem(Oscillator(), h=h), steps=most)
    with pytest.raises(
        SdeflowError, match=rf"{steps:,} steps of h = {h}.*Oscillator ends.*time 1: take {most} steps at most"
    ):
        end(SDESystem(Oscillator(), h=h), steps=steps)


def test_from_a_file(tmp_path: Path) -> None:
    """h from the steps, the start from the law or by variable; a run that is resumed further is refused."""
    (tmp_path / "oscillator.py").write_text(OSCILLATOR)
    toml = tmp_path / "oscillator.toml"
    toml.write_text(
        "[system]\nuse = 'oscillator.py:Oscillator'\npaths = 3\n"
        "[run]\nintegrator = 'euler_maruyama'\nsteps = 4\nseed = 5\ndtype = 'float64'\n[save]\nevery = 1\n"
    )
    assert command("run", str(toml), "--quiet", "--out", str(tmp_path / "run")) == 0
    assert command("resume", str(tmp_path / "run"), "-q", "--steps", "1") == 2
    run = sdeflow.open_run(tmp_path / "run")
    np.testing.assert_array_equal(run.X, end(SDESystem(Oscillator(), paths=3), seed=5).X)
    given = ["--set", "system.start={X = [1.0], U = [0.5]}", "--set", "system.h=0.1"]
    assert command("run", str(toml), "--quiet", "--out", str(tmp_path / "given"), *given) == 0
    np.testing.assert_array_equal(sdeflow.open_run(tmp_path / "given").U[0], [[0.5]] * 3)


class Mistaken(Oscillator):
    """An oscillator with one part put in the place of its own."""

    def __init__(self, **parts: Any) -> None:
        vars(self).update(parts)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"start": lambda g, n: {"X": torch.zeros(n, 1)}}, r"X as torch.float32, expected.*torch.float64"),
        ({"start": lambda g, n: {"X": [[0.0]] * n}}, r"X as list, expected a tensor"),
        ({"start": lambda g, n: {"X": torch.zeros(n + 1, 2).double()}}, r"\(4, 2\), expected 3 paths"),
        ({"start": lambda g, n: {"X": torch.zeros(n).double()}}, r"\(3,\), expected 3 paths"),
        ({"start": lambda g, n: {"loss": torch.zeros(n, 1).double()}}, "'loss', a name that the trajectory"),
        ({"start": lambda g, n: {}}, "gives no variable"),
        ({"start": lambda g: None}, "Mistaken.start fails with TypeError"),
        ({"drift": lambda t, z: z["X"]}, "Mistaken.drift gives Tensor, expected a dict of X, U"),
        ({"drift": lambda t, z: {"X": z["U"]}}, "gives X, expected X, U"),
        ({"drift": lambda t, z: {"X": z["U"], "U": torch.ones(5)}}, r"\['U'\] gives shape \(5,\), expected"),
        ({"drift": lambda t, z: {"X": None, "U": 0.0}}, r"\['X'\] gives NoneType"),
        ({"diffusion": lambda t, z: 0.3}, "diffusion gives float, expected a dict of some of X, U"),
        ({"diffusion": lambda t, z: {"Y": 0.3}}, "diffusion gives Y, expected"),
        ({"final_time": -1.0}, "Mistaken.final_time must be positive"),
        ({"final_time": None}, "h is missing: give it, or Mistaken a final_time"),
        ({"observables": lambda t, z: {"mean": z["X"].mean()}}, r"\['mean'\] gives \(\), expected a scalar"),
        ({"observables": lambda t, z: {"U": z["X"].mean((1, 2))}}, r"\['U'\] has a name"),
    ],
)
def test_a_mistake_is_a_sentence(parts: dict[str, Any], words: str) -> None:
    with pytest.raises(SdeflowError, match=words):
        end(SDESystem(Mistaken(**parts), paths=3))


def test_noise_that_comes_later_is_told_of() -> None:
    """And not left out: where it enters is seen at the start."""
    late = Mistaken(diffusion=lambda t, z: {"U": 0.3} | ({"X": 1.0} if t > 0.3 else {}))
    with pytest.raises(RunError, match=r"gives U, X at time 0\.5 and U at the start: give the same"):
        end(SDESystem(late, paths=3))


@pytest.mark.parametrize("start", [[], {}, {"X": []}, {"X": ["a"]}, "0", {"m": [0.0]}])
def test_a_start_of_another_form_is_refused(start: Any) -> None:
    with pytest.raises(SdeflowError, match="start"):
        SDESystem(Oscillator(), start=start)


# Without noise ---------------------------------------------------------------------------------------


class Decay:
    """x' = -x."""

    diffusion = None

    def drift(self, t: float, x: Tensor) -> Tensor:
        return -x


class Falls(Oscillator):
    """The oscillator without its noise."""

    diffusion = None  # type: ignore[assignment]


@pytest.mark.parametrize("scheme", ["euler_maruyama", "torchsde:srk", "ghvb"])
def test_an_sde_whose_diffusion_is_none_is_an_ode(scheme: str) -> None:
    """No channel, no draws, and a decay as it should be; Euler's to the bit."""
    system = SDESystem(Decay(), h=0.125, paths=2, start=[1.0, 2.0])
    assert (list(system.channels), system.diffusion(0.0, {"X": torch.ones(1, 2, 2)})) == ([], {})
    run = simulate(system, scheme, steps=8, dtype="float64", save=ALL)
    expected = (1 - 0.125) ** 8 if scheme == "euler_maruyama" else np.exp(-1)
    tolerance = 1e-15 if scheme == "euler_maruyama" else 0.02
    np.testing.assert_allclose(run.X[-1], expected * np.array([[1.0, 2.0]] * 2), rtol=tolerance)
    falls = simulate(SDESystem(Falls(), h=0.25, paths=3), scheme, steps=4, save=ALL)
    assert falls.attrs["retcode"] == "success"


def test_a_forgotten_diffusion_is_still_told() -> None:
    class Forgot:
        def drift(self, t: float, x: Tensor) -> Tensor:
            return -x

    with pytest.raises(SdeflowError, match=r"Forgot has no diffusion.t, x.: .* an ODE diffusion = None"):
        SDESystem(Forgot(), h=0.1)
