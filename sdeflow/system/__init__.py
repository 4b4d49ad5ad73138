"""Blocks on one clock: their exact flow, increments and maps; what a system and an integrator are."""

from sdeflow.state import State as State
from sdeflow.system.block import Block as Block
from sdeflow.system.increments import Noise as Noise
from sdeflow.system.integrator import Integrator as Integrator
from sdeflow.system.maps import A as A
from sdeflow.system.maps import B as B
from sdeflow.system.maps import O as O
from sdeflow.system.maps import U as U
from sdeflow.system.maps import exponential as exponential
from sdeflow.system.maps import free_flight as free_flight
from sdeflow.system.published import kinetic as kinetic
from sdeflow.system.published import overdamped as overdamped
from sdeflow.system.system import BlockSystem as BlockSystem
from sdeflow.system.system import System as System
