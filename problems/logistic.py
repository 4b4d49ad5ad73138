"""Bayesian logistic regression: one latent, the weights, that all observations share."""

from __future__ import annotations

from math import log, pi

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from sdeflow.errors import SdeflowError
from sdeflow.model.model import Model, Parameters


class Logistic(Model):
    """x ~ N(theta 1, v I) in R^30,  label_k | x ~ Bernoulli(sigmoid(<f_k, x>)), with scalar theta.

    The 569 observations of scikit-learn's Wisconsin breast cancer data, 30 features each, label 1 for
    malignant; no intercept. The weights x are the one latent, so D = 1. With signed features
    z_k = (2 label_k - 1) f_k the label drops out, p(label_k | x) = sigmoid(<z_k, x>), and

        log p_theta(x, y) = log N(x; theta 1, v I) + sum_k log sigmoid(<z_k, x>)
        score of x        = (theta - x)/v + sum_k sigmoid(-<z_k, x>) z_k
        score of theta    = sum_c (x_c - theta)/v

    so that the MLE is the posterior mean of the average weight, at itself. `data` holds the z_k of the
    training part, [1, n, 30]; `unseen` those of the rest, [n', 30]. Features are standardised with the
    training part's mean and standard deviation.

    variance    v, the prior's
    held_out    share of the observations that is kept from training
    split_seed  seed of the random split

    Source: Kuntz, Lim, Johansen 2023, arXiv:2204.12965 (there on the older data set with 9 features); of the
    data: Street, Wolberg, Mangasarian 1993.
    """

    def __init__(self, variance: float = 5.0, held_out: float = 0.2, split_seed: int = 0) -> None:
        if not variance > 0:
            raise SdeflowError(f"variance must be positive, given {variance}")
        if not 0 < held_out < 1:
            raise SdeflowError(f"held_out is a share between 0 and 1, given {held_out}")
        # scikit-learn takes a second to import, and no other problem should wait for it.
        from sklearn.datasets import load_breast_cancer

        bunch = load_breast_cancer()
        features = torch.from_numpy(bunch.data).double()
        sign = 1.0 - 2.0 * torch.from_numpy(bunch.target).double()  # scikit-learn's 0 is malignant
        order = torch.randperm(len(sign), generator=torch.Generator().manual_seed(split_seed))
        test, train = order.tensor_split([round(held_out * len(sign))])
        if not len(test) or not len(train):
            raise SdeflowError(f"held_out = {held_out} leaves no observation on one side of the split")
        mean, std = features[train].mean(0), features[train].std(0, correction=0)
        signed = sign[:, None] * (features - mean) / std
        self.data = signed[train][None]
        self.unseen = signed[test]
        self.latent_shape = (signed.shape[1],)
        self.variance = variance
        self._constant = -signed.shape[1] / 2 * log(2 * pi * variance)

    def log_joint(self, theta: Parameters, x: Tensor, y: Tensor) -> Tensor:
        prior = (x - theta["theta"]).square().sum(-1) / (2 * self.variance)
        return self._constant - prior + logsigmoid((x @ y.mT).to(x.dtype)).sum(-1)

    def score_x(self, theta: Parameters, x: Tensor, y: Tensor) -> Tensor:
        return (theta["theta"] - x) / self.variance + torch.sigmoid(-(x @ y.mT)) @ y

    def score_theta(self, theta: Parameters, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"theta": (x.sum() - x.numel() * theta["theta"]) / self.variance}

    def log_prior(self, theta: Parameters, x: Tensor) -> Tensor:
        """log N(x; theta 1, v I), [n] of x [n, 30]."""
        return self._constant - (x - theta["theta"]).square().sum(-1) / (2 * self.variance)

    def sample_prior(self, theta: Parameters, n: int, generator: torch.Generator) -> Tensor:
        """n vectors of weights [n, 30] from N(theta 1, v I)."""
        return theta["theta"] + self.variance**0.5 * torch.randn(n, *self.latent_shape, generator=generator)

    def sample_data(self, theta: Parameters, x: Tensor, generator: torch.Generator) -> Tensor:
        """Signed features [n, observations, 30] with labels drawn for weights x [n, 30]."""
        logit = x @ self.data[0].mT  # of keeping its sign
        kept = torch.rand(logit.shape, generator=generator, dtype=x.dtype) < logit.sigmoid()
        return torch.where(kept, 1, -1)[..., None] * self.data[0]

    def init_theta(self, generator: torch.Generator) -> Parameters:
        return {"theta": torch.zeros(())}

    def observables(self, theta: Parameters, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Of the predictive probability on the held-out part, the particles' average.

        held_out_error      share of observations whose own label gets less than one half
        held_out_log_loss   mean of minus the log of the label's probability
        """
        predictive = torch.sigmoid(x[0] @ self.unseen.mT).mean(0)
        return {
            "held_out_error": (predictive < 0.5).to(x.dtype).mean(),
            "held_out_log_loss": -predictive.log().mean(),
        }
