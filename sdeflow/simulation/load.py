"""What a run has learned, by name, and the model that it is of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from sdeflow.errors import SdeflowError
from sdeflow.model.model import Model
from sdeflow.state import parameters_of
from sdeflow.system.average import AVERAGE
from sdeflow.trajectory.layout import CONFIG, FINAL
from sdeflow.trajectory.stored import stored

if TYPE_CHECKING:
    from sdeflow.config.run import Run


@dataclass(frozen=True, eq=False)
class Loaded:
    """The end of a run, of one replica.

    theta      the parameters by the names that the model gives them: what `load_state_dict` takes of the
               module that `init_theta` gives. Of an energy model they begin with 'alpha.' or 'beta.'
    average    their average, in float64; None where none was kept
    particles  X [D, N, d], so that particles[i] are those of datum i (of amortised inference the normals);
               None without any
    state      all that there is by name, as in final.safetensors
    step       the steps that it took
    """

    run: Path
    theta: dict[str, Tensor]
    average: dict[str, Tensor] | None
    particles: Tensor | None
    state: dict[str, Tensor]
    step: int

    @cached_property
    def model(self) -> Model:
        """The model, built from the run's config.toml.

        Raises SdeflowError for a run from Python, which has none, a system without a model, and a model whose
        parameters are others now.
        """
        forces = built_of(self.run).system.model_forces
        if forces is None:
            raise SdeflowError(f"{self.run} is of a system without a model")
        expected: dict[str, tuple[int, ...]] = {}
        for dim, layout in forces.layouts.items():
            prefix = "" if dim == "param" else f"{dim.removesuffix('_param')}."
            expected |= {prefix + name: shape for name, shape in layout.shapes.items()}
        refuse_changed(self.run, expected, self.theta)
        return forces.model


def load(run: str | Path, replica: int = 0) -> Loaded:
    """The parameters, their average and the particles at the end of the run in a folder, by name.

    Raises SdeflowError for what is no run folder or has not ended, and for a replica that it does not have or
    that diverged; RunError for a file that cannot be read.
    """
    end = stored(Path(run))
    state = end.of(replica)
    average = parameters_of({k.removeprefix(AVERAGE): v for k, v in state.items() if k.startswith(AVERAGE)})
    return Loaded(
        Path(run), parameters_of(state), average or None, state.get("X"), state, int(end.about["steps_taken"])
    )


def built_of(run: Path) -> Run:
    """The run of a folder, built anew from its configuration; raises SdeflowError where it has none."""
    from sdeflow.config.build import build
    from sdeflow.config.schema import load_config

    if not (run / CONFIG).is_file():
        raise SdeflowError(
            f"{run} has no {CONFIG}, which says what its model is: give the folder of a run that 'sdeflow "
            "run' has written, or of one from Python take what sdeflow.load gives by name"
        )
    return build(load_config(run / CONFIG))


def refuse_changed(run: Path, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, Tensor]) -> None:
    """Raises SdeflowError where a run has not stored what its model has now, by name and shape."""
    for name, shape in expected.items():
        held = tuple(found[name].shape) if name in found else "nothing"
        if held != shape:
            raise SdeflowError(
                f"the model of {run} has changed: {FINAL} holds {held} for '{name}', and it has {shape} "
                "now; give back the code and the data that it was run with"
            )
