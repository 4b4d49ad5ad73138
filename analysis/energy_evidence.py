"""The log marginal likelihood under an energy-based prior, whose constant is estimated too.

    log p_theta(y_i) = log integral exp( log p_beta(y_i | x) - U_alpha(x) ) dx - log Z(alpha)

Both integrals are evidences, the second that of the prior as a model without observations, and both are
found by annealed importance sampling (`sdeflow.analysis.evidence`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sdeflow.analysis.entropy import Estimate
from sdeflow.analysis.evidence import Evidence, Gaussian, annealed
from sdeflow.errors import SdeflowError
from sdeflow.model.energy import ALPHA, EnergyModel, Prior, part


class EnergyEvidence(NamedTuple):
    """Evidence without the prior's constant, and log Z(alpha) with its error, which all data share."""

    joint: Evidence
    log_z: Estimate

    @property
    def value(self) -> NDArray[np.float64]:
        """log p_theta(y_i), [D]."""
        return self.joint.value - self.log_z.value

    @property
    def mean(self) -> Estimate:
        """The mean over data: the errors of the data are independent, that of log Z is common."""
        own = float(np.sqrt((self.joint.error**2).sum())) / len(self.joint.error)
        return Estimate(float(self.value.mean()), float(np.hypot(own, self.log_z.error)))


def energy_evidence(
    model: EnergyModel,
    theta: Mapping[str, Tensor],
    reference: Gaussian,
    prior_reference: Gaussian,
    *,
    data: Sequence[int] | None = None,
    **options: Any,
) -> EnergyEvidence:
    """log p_theta(y_i) of each datum.

    theta            by name, 'alpha.NAME' and 'beta.NAME'
    reference        where the annealing of the posteriors starts, for example `fitted` to the particles X
    prior_reference  where that of the prior starts, `fitted` to Z[None]; one latent
    options          of `annealed`: chains, temperatures, leapfrog, power, pilot, seed

    Where the prior has modes that the chains do not travel between, log Z comes out too low, and the evidence
    too high: look at the effective sample size, and at what more temperatures change. Raises as `annealed`.
    """
    if not isinstance(model, EnergyModel):
        raise SdeflowError(f"an EnergyModel was expected, given {type(model).__name__}: take `annealed`")
    joint = annealed(model, theta, reference, data=data, **options)
    constant = annealed(Prior(model), part(theta, ALPHA), prior_reference, **options)
    return EnergyEvidence(joint, constant.total)
