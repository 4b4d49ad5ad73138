"""W_2 between particles and the posterior at the MLE, along a trajectory of the toy hierarchical model."""

from __future__ import annotations

import numpy as np
import xarray as xr

from sdeflow.errors import SdeflowError
from sdeflow.problems.hierarchical import Hierarchical


def posterior_w2(dataset: xr.Dataset, model: Hierarchical) -> xr.DataArray:
    """W_2(q_t, posterior at theta*), (time[, replica]), of all data together, by the clouds' moments.

        W_2^2 = sum over data and coordinates of (mean - m)^2 + (std - sqrt v)^2

    with m = v (y + theta*/s^2), v = 1/(1 + 1/s^2): exact for clouds that are products of Gaussians, and what
    `gaussian_w2` gives for diagonal covariances. N particles leave a floor of about sqrt(3 v D d/(2 N)): the
    noise of their mean, v/N, and of their standard deviation, v/(2 N). While clouds are far off W_2 is the
    distance of their means, which decays at the state's rate.

    Raises SdeflowError where not all data of the model were saved.
    """
    if "X" not in dataset or dataset["X"].sizes["datum"] != len(model.data):
        raise SdeflowError(
            f"the particles of all {len(model.data)} data are needed: save with Save(data='all')"
        )
    v = 1 / (1 + 1 / model.variance)
    y = xr.DataArray(model.data.numpy(), dims=("datum", "latent"))
    x = dataset["X"].astype(np.float64).reset_coords(drop=True)
    target = v * (y + float(model.data.mean()) / model.variance)
    shift = x.mean("particle") - target.assign_coords({d: x[d] for d in ("datum", "latent") if d in x.coords})
    spread = x.std("particle", ddof=1) - v**0.5
    squares: xr.DataArray = (shift**2 + spread**2).sum(("datum", "latent"), skipna=False)
    steps = {name: dataset[name] for name in ("step",) if name in dataset.coords}
    return (squares**0.5).rename("posterior_w2").assign_coords(steps)
