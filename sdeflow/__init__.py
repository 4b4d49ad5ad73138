"""sdeflow: interacting-particle SDE systems for training latent-variable models.

Declare a model (a log-joint) and a system (blocks of parameters and particles), pick an integrator,
`simulate`, and get an xarray Dataset. Names below are imported on first use, so that the command
line answers before torch is loaded.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

# In a checkout the sub-packages integrators, problems and analysis lie beside this folder, not in it.
if not (Path(__file__).parent / "integrators").is_dir():
    __path__.append(str(Path(__file__).parent.parent))

__version__ = "0.1.0"

_HOME = {
    "Batch": "sdeflow.batch",
    "Block": "sdeflow.block",
    "BlockSystem": "sdeflow.system",
    "EnergyModel": "sdeflow.energy_model",
    "EnergySystemDeclaration": "sdeflow.systems",
    "Evaluate": "sdeflow.held_out",
    "Grid": "sdeflow.grid",
    "Integrator": "sdeflow.integrator",
    "Model": "sdeflow.model",
    "Motion": "sdeflow.systems",
    "Save": "sdeflow.record",
    "SDESystem": "sdeflow.sde",
    "SdeflowError": "sdeflow.errors",
    "SystemDeclaration": "sdeflow.systems",
    "ebipla": "sdeflow.systems",
    "ipla": "sdeflow.systems",
    "kinetic_ebipla": "sdeflow.systems",
    "kiplmc": "sdeflow.systems",
    "mpgd": "sdeflow.systems",
    "mpgd_theta": "sdeflow.systems",
    "mpgd_x": "sdeflow.systems",
    "open_run": "sdeflow.folder",
    "pgd": "sdeflow.systems",
    "resume": "sdeflow.problem",
    "simulate": "sdeflow.simulation",
}
__all__ = sorted([*_HOME, "__version__"])

if TYPE_CHECKING:
    from sdeflow.batch import Batch as Batch
    from sdeflow.block import Block as Block
    from sdeflow.energy_model import EnergyModel as EnergyModel
    from sdeflow.errors import SdeflowError as SdeflowError
    from sdeflow.folder import open_run as open_run
    from sdeflow.grid import Grid as Grid
    from sdeflow.held_out import Evaluate as Evaluate
    from sdeflow.integrator import Integrator as Integrator
    from sdeflow.model import Model as Model
    from sdeflow.problem import resume as resume
    from sdeflow.record import Save as Save
    from sdeflow.sde import SDESystem as SDESystem
    from sdeflow.simulation import simulate as simulate
    from sdeflow.system import BlockSystem as BlockSystem
    from sdeflow.systems import EnergySystemDeclaration as EnergySystemDeclaration
    from sdeflow.systems import Motion as Motion
    from sdeflow.systems import SystemDeclaration as SystemDeclaration
    from sdeflow.systems import ebipla as ebipla
    from sdeflow.systems import ipla as ipla
    from sdeflow.systems import kinetic_ebipla as kinetic_ebipla
    from sdeflow.systems import kiplmc as kiplmc
    from sdeflow.systems import mpgd as mpgd
    from sdeflow.systems import mpgd_theta as mpgd_theta
    from sdeflow.systems import mpgd_x as mpgd_x
    from sdeflow.systems import pgd as pgd


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'sdeflow' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
