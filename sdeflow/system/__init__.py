"""Blocks on one clock: their exact flow, increments and maps; what a system and an integrator are."""

from sdeflow.errors import SdeflowError as SdeflowError
from sdeflow.state import State as State
from sdeflow.state import plus as plus
from sdeflow.system.block import Block as Block
from sdeflow.system.block import Inner as Inner
from sdeflow.system.increments import Noise as Noise
from sdeflow.system.increments import NoiseSpec as NoiseSpec
from sdeflow.system.integrator import Integrator as Integrator
from sdeflow.system.integrator import kept_forces as kept_forces
from sdeflow.system.integrator import recall_forces as recall_forces
from sdeflow.system.integrator import refuses_memory as refuses_memory
from sdeflow.system.integrator import refuses_restart as refuses_restart
from sdeflow.system.maps import A as A
from sdeflow.system.maps import B as B
from sdeflow.system.maps import O as O
from sdeflow.system.maps import U as U
from sdeflow.system.maps import exponential as exponential
from sdeflow.system.maps import free_flight as free_flight
from sdeflow.system.maps import remembered as remembered
from sdeflow.system.maps import restarted as restarted
from sdeflow.system.published import kinetic as kinetic
from sdeflow.system.published import overdamped as overdamped
from sdeflow.system.system import BlockSystem as BlockSystem
from sdeflow.system.system import System as System
