"""A step is a pure function of the state, and steps in pieces are the steps."""

from typing import Any

import pytest
import torch
from small import Autograd, D, system_of
from support import accepted_pairs, doubles
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sdeflow.config.catalogue import integrator_named
from sdeflow.engine.step import EagerSteps, advance
from sdeflow.noise.source import TorchNoise
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.system.system import initial_state


@pytest.mark.parametrize(("integrator", "name"), accepted_pairs())
def test_pieces_of_a_run_make_the_run(integrator: str, name: str) -> None:
    """advance in pieces of 1, 4 and 2 steps, each with a noise source of its own, is advance by 7."""
    system, scheme = system_of(Hierarchical(data=D), name), integrator_named(integrator)
    z = initial_state(system, doubles(range(2)))
    z |= scheme.init(system, z)
    pieces = z

    def noise() -> TorchNoise:
        return TorchNoise(system.channels, scheme.noise_spec(system.h), doubles(range(2)))

    for first, steps in ((0, 1), (1, 4), (5, 2)):
        pieces = advance(EagerSteps(system, scheme, noise()), pieces, first, steps)
    for variable, value in advance(EagerSteps(system, scheme, noise()), z, 0, 7).items():
        assert torch.equal(pieces[variable], value), variable


class Hostless(TorchDispatchMode):
    """Lets no operation draw a random number or look at a value on the host."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert torch.Tag.nondeterministic_seeded not in function.tags, f"{function} draws"
        assert torch.Tag.data_dependent_output not in function.tags, f"{function} looks at a value"
        return function(*args, **(kwargs or {}))


def prepared(integrator: str, system: Any) -> tuple[Any, dict[str, Tensor], Any]:
    """A scheme, a state of two replicas that it has taken a step on, and the noise of the next step."""
    scheme = integrator_named(integrator)
    system = system.to(torch.float64, torch.device("cpu"))
    z = initial_state(system, doubles(range(2)))
    with torch.no_grad():
        z |= scheme.init(system, z)
    noise = TorchNoise(system.channels, scheme.noise_spec(system.h), doubles(range(2)))
    return scheme, advance(EagerSteps(system, scheme, noise), z, 0, 1), noise(1)


@pytest.mark.parametrize("model", [Hierarchical, Autograd])
@pytest.mark.parametrize(("integrator", "name"), accepted_pairs())
def test_a_step_is_pure(integrator: str, name: str, model: type[Hierarchical]) -> None:
    """It draws nothing, looks at no value, and leaves what it was given as it was."""
    system = system_of(model(data=D), name)
    scheme, z, noise = prepared(integrator, system)
    given = [*z.values(), *(v for part in noise for increments in part.values() for v in increments.values())]
    before = [(v.clone(), v._version) for v in given]
    keys = set(z)
    with torch.no_grad(), Hostless():
        new = scheme.step(system, system.h, z, system.h, noise)
    assert set(z) == set(new) == keys
    for value, (copy, version) in zip(given, before, strict=True):
        assert torch.equal(value, copy)
        assert value._version == version  # not even changed and changed back
    storage = {v.untyped_storage().data_ptr() for v in given}
    for variable, value in new.items():
        assert value.shape == z[variable].shape
        assert value.dtype == torch.float64
        assert value.untyped_storage().data_ptr() not in storage, variable
        assert not value.requires_grad
    with torch.no_grad():
        again = scheme.step(system, system.h, z, system.h, noise)
    assert all(torch.equal(again[variable], value) for variable, value in new.items())


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own
@pytest.mark.parametrize(("integrator", "name"), accepted_pairs())
def test_a_step_can_be_differentiated(integrator: str, name: str) -> None:
    """On the toy model a step is affine, so its derivative along v is step(z + v) - step(z), to roundoff."""
    system = system_of(Hierarchical(data=D), name)
    scheme, z, noise = prepared(integrator, system)
    g = torch.Generator().manual_seed(0)
    v = {k: torch.randn(a.shape, generator=g, dtype=torch.float64) for k, a in z.items()}

    def step(state: dict[str, Tensor]) -> dict[str, Tensor]:
        return scheme.step(system, system.h, state, system.h, noise)

    new, derivative = torch.func.jvp(step, (z,), (v,))
    moved = step({k: z[k] + v[k] for k in z})
    for variable in z:
        torch.testing.assert_close(
            derivative[variable], moved[variable] - new[variable], rtol=1e-9, atol=1e-9
        )
