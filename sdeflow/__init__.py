"""sdeflow: interacting-particle SDE systems for training latent-variable models.

Declare a model (a log-joint) and a system (blocks of parameters and particles), pick an integrator,
`simulate`, and get an xarray Dataset. Names below are imported on first use, so that the command
line answers before torch is loaded.
"""

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

_BESIDE = str(Path(__file__).parent / "beside")


class _Beside:
    """Finds, for an entry of __path__, the sub-packages that a checkout has beside this folder, not in it.

    The folder above as an entry would make sub-packages of all that is in it: tests, and sdeflow itself.
    """

    names = ("integrators", "problems", "analysis")

    def __init__(self, entry: str) -> None:
        if entry != _BESIDE:
            raise ImportError(entry)  # as a hook of sys.path_hooks says that an entry is not its own

    def find_spec(self, name: str, target: object = None) -> ModuleSpec | None:
        above = str(Path(__file__).parent.parent)
        return PathFinder.find_spec(name, [above]) if name.rpartition(".")[2] in self.names else None

    def iter_modules(self, prefix: str = "") -> list[tuple[str, bool]]:
        return [(prefix + name, True) for name in self.names]


if not (Path(__file__).parent / "integrators").is_dir():  # where it is, they are installed
    sys.path_hooks.append(_Beside)
    __path__.append(_BESIDE)

__version__ = "0.2.0"

_HOME = {
    name: module
    for module, names in {
        "sdeflow.callbacks": "Callback CSV EarlyStopping Snapshot TensorBoard WandB",
        "sdeflow.errors": "SdeflowError",
        "sdeflow.model.energy": "EnergyModel",
        "sdeflow.model.model": "Model",
        "sdeflow.options": "Average Batch Evaluate Parallel Save Tune",
        "sdeflow.simulation.load": "load",
        "sdeflow.simulation.resume": "resume",
        "sdeflow.simulation.simulate": "simulate",
        "sdeflow.sweep.opening": "open_sweep",
        "sdeflow.system.block": "Block",
        "sdeflow.system.cbo": "cbo consensus_hopping kinetic_cbo",
        "sdeflow.system.grid": "Grid",
        "sdeflow.system.integrator": "Integrator",
        "sdeflow.system.motion": "Motion",
        "sdeflow.system.published": "EnergySystemDeclaration SystemDeclaration "
        "abp ebipla ipla kinetic_ebipla kiplmc mpgd mpgd_theta mpgd_x pgd short_run soul vi",
        "sdeflow.system.rule": "Optimizer",
        "sdeflow.system.schedule": "Schedule",
        "sdeflow.system.sde": "SDESystem",
        "sdeflow.system.start": "Start",
        "sdeflow.system.stein": "KernelDeclaration coin_em momentum_svgd_em svgd_em",
        "sdeflow.system.system": "BlockSystem",
        "sdeflow.trajectory.opening": "open_run",
    }.items()
    for name in names.split()
}
__all__ = sorted([*_HOME, "__version__"])

if TYPE_CHECKING:
    from sdeflow.callbacks import CSV as CSV
    from sdeflow.callbacks import Callback as Callback
    from sdeflow.callbacks import EarlyStopping as EarlyStopping
    from sdeflow.callbacks import Snapshot as Snapshot
    from sdeflow.callbacks import TensorBoard as TensorBoard
    from sdeflow.callbacks import WandB as WandB
    from sdeflow.errors import SdeflowError as SdeflowError
    from sdeflow.model.energy import EnergyModel as EnergyModel
    from sdeflow.model.model import Model as Model
    from sdeflow.options import Average as Average
    from sdeflow.options import Batch as Batch
    from sdeflow.options import Evaluate as Evaluate
    from sdeflow.options import Parallel as Parallel
    from sdeflow.options import Save as Save
    from sdeflow.options import Tune as Tune
    from sdeflow.simulation.load import load as load
    from sdeflow.simulation.resume import resume as resume
    from sdeflow.simulation.simulate import simulate as simulate
    from sdeflow.sweep.opening import open_sweep as open_sweep
    from sdeflow.system.block import Block as Block
    from sdeflow.system.cbo import cbo as cbo
    from sdeflow.system.cbo import consensus_hopping as consensus_hopping
    from sdeflow.system.cbo import kinetic_cbo as kinetic_cbo
    from sdeflow.system.grid import Grid as Grid
    from sdeflow.system.integrator import Integrator as Integrator
    from sdeflow.system.motion import Motion as Motion
    from sdeflow.system.published import EnergySystemDeclaration as EnergySystemDeclaration
    from sdeflow.system.published import SystemDeclaration as SystemDeclaration
    from sdeflow.system.published import abp as abp
    from sdeflow.system.published import ebipla as ebipla
    from sdeflow.system.published import ipla as ipla
    from sdeflow.system.published import kinetic_ebipla as kinetic_ebipla
    from sdeflow.system.published import kiplmc as kiplmc
    from sdeflow.system.published import mpgd as mpgd
    from sdeflow.system.published import mpgd_theta as mpgd_theta
    from sdeflow.system.published import mpgd_x as mpgd_x
    from sdeflow.system.published import pgd as pgd
    from sdeflow.system.published import short_run as short_run
    from sdeflow.system.published import soul as soul
    from sdeflow.system.published import vi as vi
    from sdeflow.system.rule import Optimizer as Optimizer
    from sdeflow.system.schedule import Schedule as Schedule
    from sdeflow.system.sde import SDESystem as SDESystem
    from sdeflow.system.start import Start as Start
    from sdeflow.system.stein import KernelDeclaration as KernelDeclaration
    from sdeflow.system.stein import coin_em as coin_em
    from sdeflow.system.stein import momentum_svgd_em as momentum_svgd_em
    from sdeflow.system.stein import svgd_em as svgd_em
    from sdeflow.system.system import BlockSystem as BlockSystem
    from sdeflow.trajectory.opening import open_run as open_run


def __getattr__(name: str) -> Any:
    if name in _HOME:
        found = getattr(import_module(_HOME[name]), name)
        _give_accessor()
        return found
    raise AttributeError(f"module 'sdeflow' has no attribute {name!r}")


def _give_accessor() -> None:
    """Gives every xarray.Dataset its `.sdeflow`, where xarray is there.

    Where it comes later it finds the accessor by itself, at the first file that it opens: it loads what is
    declared as an entry point in `xarray.backends`.
    """
    if "xarray" in sys.modules:
        import_module("sdeflow.analysis.accessor")


_give_accessor()


def __dir__() -> list[str]:
    return __all__
