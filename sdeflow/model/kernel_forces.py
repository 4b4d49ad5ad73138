"""Forces on particles that a kernel combines from the scores of all particles of a datum."""

from __future__ import annotations

from collections.abc import Sequence
from math import log

from torch import Tensor

from sdeflow.model.forces import ModelForces
from sdeflow.model.kernels import Kernel, Linear
from sdeflow.model.model import Model, ParameterLayout
from sdeflow.state import State

KEPT_VARIANCE = {
    (10, 1): 0.77,
    (10, 2): 0.59,
    (10, 10): 0.22,
    (10, 50): 0.043,
    (50, 1): 0.94,
    (50, 2): 0.87,
    (50, 10): 0.27,
    (50, 50): 0.077,
    (100, 1): 0.96,
    (100, 2): 0.92,
    (100, 10): 0.42,
    (100, 50): 0.090,
}
"""Variance of a coordinate where N particles come to rest, by (N, d), of the rbf kernel of median bandwidth
under the normal law N(0, I_d): the force is below 2e-4 there, and where d is 10 or 50 another start, or more
steps, move it by at most 0.01 (but for the last, which was run once)."""


class KernelForces(ModelForces):
    """Forces of a model whose particles a kernel moves together, those of a datum among themselves:

        force on theta   as in `ModelForces`
        force on x_il    phi_il = (1/N) sum_j [ k(x_ij, x_il) s_ij + grad_1 k(x_ij, x_il) ]

    with the scores s_ij = grad_x l_i(theta, x_ij). No potential has these forces. A datum has a kernel of its
    own, as its latents have a posterior of their own; published is one kernel for all latents at once.
    """

    def __init__(
        self, model: Model, particles: int, kernel: Kernel, *, _layout: ParameterLayout | None = None
    ) -> None:
        super().__init__(model, particles, _layout=_layout)
        self.kernel = kernel
        self.about = f"f_x combines the scores of a datum's particles by the {kernel}"
        self.warning = collapse(kernel, particles, self.latent)

    def of_model(self, model: Model) -> KernelForces:
        own = KernelForces(model, self.n_particles, self.kernel, _layout=self.parameters)
        return own.in_bf16(self.bf16)

    def __call__(self, t: float, z: State, names: Sequence[str]) -> dict[str, Tensor]:
        forces = super().__call__(t, z, names)
        if "x" in forces:
            forces["x"] = self.kernel.force(z["X"], forces["x"])
        return forces


def collapse(kernel: Kernel, n: int, d: int) -> str:
    """How little N particles spread where they are fewer than a latent's coordinates; '' elsewhere."""
    if n >= d:
        return ""
    if isinstance(kernel, Linear):
        found = f"they lie in a plane of {n - 1} dimensions, in which alone they have a variance"
    else:
        near = min(KEPT_VARIANCE, key=lambda at: abs(log(at[0] / n)) + abs(log(at[1] / d)))
        found = (
            f"at N = {near[0]} and d = {near[1]}, of a normal law and with the median bandwidth, "
            f"{KEPT_VARIANCE[near]:g} of the variance is left"
        )
    return (
        f"N = {n} particles under the {kernel} collapse in d = {d} dimensions: {found}, and what parameters "
        "learn of a variance is wrong: take more particles, or a system with noise such as pgd"
    )
