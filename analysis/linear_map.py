"""The derivative of a function of a state, by products with vectors, and its eigenvalues."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdeflow.errors import SdeflowError
from sdeflow.state import State

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]
Spectrum = NDArray[np.complex128]

DENSE_BELOW, MATRIX_BELOW = 150, 1500
"""Dimensions up to which all eigenvalues are computed, and up to which the matrix is written down."""

_DIFFERENCE, _CHECKS = 1e-3, (1e-6, 1e-5)
_TINY = 2.0**-200
"""A power of two, so that a linear function of a vector times it has the same digits; another function has a
term of second order, which is smaller by as much again."""


class LinearMap:
    """The derivative of a function of the state at z, [1, ...] by name, by products with vectors.

    origin   whether z is 0 and the function is 0 there: then its values at tiny vectors are products with
             the derivative, which lose nothing by rounding, and replicas take several at once
    """

    def __init__(self, function: Callable[[State], State], z: State, *, origin: bool = False) -> None:
        self._function = function
        self._z = z
        self.size = sum(value.numel() for value in z.values())
        self._origin = origin
        self._differentiable = True
        if origin:
            return
        with warnings.catch_warnings():  # torch's forward mode loads code of its own that it calls deprecated
            warnings.filterwarnings("ignore", r".torch\.jit\.\w+. is deprecated")
            v = random_direction(self.size)
            try:
                found = unpacked(self.product(v).detach(), z)
                self._differentiable = is_derivative(self._moved, z, unpacked(v, z), found)
            except RuntimeError:  # a solver that takes gradients in its own way
                self._differentiable = False

    def product(self, v: Tensor) -> Tensor:
        """The derivative in direction v, [size]: in forward mode, or by differences where that is wrong."""
        if self._origin:
            return self._at_once(v[None])[0]
        direction = unpacked(v, self._z)
        if self._differentiable:
            return packed(torch.func.jvp(self._moved, (self._z,), (direction,))[1])
        return packed(_difference(self._moved, self._z, direction, _DIFFERENCE))

    def products(self, directions: Tensor) -> Tensor:
        """The derivatives in all of some directions [k, size], likewise [k, size]."""
        if self._origin:
            return self._at_once(directions)
        try:
            return torch.func.vmap(self.product, chunk_size=256)(directions).detach()
        except RuntimeError:  # a step that vmap cannot batch: one direction after the other
            return torch.stack([self.product(v) for v in directions]).detach()

    def matrix(self) -> Matrix:
        """The whole of it, [size, size]."""
        return self.products(torch.eye(self.size, dtype=torch.float64)).T.numpy()

    def eigenvalues(self, which: Literal["LM", "LR"] = "LM", k: int = 4) -> Spectrum:
        """The k eigenvalues of largest modulus (LM) or real part (LR); all of them in few dimensions.

        Raises SdeflowError where Arnoldi's iteration does not settle.
        """
        if self.size <= DENSE_BELOW:
            values = np.linalg.eigvals(self.matrix())
        else:
            import scipy.sparse.linalg

            whole = self.matrix() if self.size <= MATRIX_BELOW else self._operator()
            start = np.random.default_rng(0).standard_normal(self.size)
            try:
                values = scipy.sparse.linalg.eigs(
                    whole, k=k, which=which, v0=start, ncv=40, maxiter=2000, return_eigenvectors=False
                )
            except scipy.sparse.linalg.ArpackError as error:  # many equal eigenvalues, say
                if self.size > MATRIX_BELOW:
                    raise SdeflowError("Arnoldi's iteration for the one-step map does not settle") from error
                values = np.linalg.eigvals(whole)
        order = np.argsort(-(np.abs(values) if which == "LM" else values.real))
        return values[order].astype(np.complex128)

    def _at_once(self, directions: Tensor) -> Tensor:
        count = len(directions)
        parts = (_TINY * directions).split([value.numel() for value in self._z.values()], dim=1)
        at = {name: v.view(count, *self._z[name].shape[1:]) for name, v in zip(self._z, parts, strict=True)}
        with torch.no_grad():
            moved = self._moved(at)
        rows = [v.expand(count, *v.shape[1:]).reshape(count, -1) for v in moved.values()]
        return torch.cat(rows, dim=1) / _TINY

    def _moved(self, z: State) -> State:
        result = self._function(z)
        return {name: result[name] for name in self._z}

    def _operator(self) -> Any:
        def product(v: Vector) -> Vector:
            return self.product(torch.from_numpy(np.ascontiguousarray(np.ravel(v)))).numpy()

        from scipy.sparse.linalg import LinearOperator

        return LinearOperator((self.size, self.size), matvec=product, dtype=np.float64)


def is_derivative(function: Callable[[State], State], z: State, direction: State, product: State) -> bool:
    """Whether a product with the derivative of a function at z is one, as far as differences can tell.

    It is not where the function leaves the graph (no_grad, detach, numpy), which torch takes as a constant.
    It is told by differences of two sizes, which then agree with each other and not with the product: where
    they do not agree, by rounding or by kinks, they say nothing.
    """
    fine, coarse = (_difference(function, z, direction, step) for step in _CHECKS)
    for name, found in product.items():
        gap, unsure = (float((v[name] - fine[name]).abs().max()) for v in (product, coarse))
        if gap > 1e-5 * float(torch.maximum(found.abs(), fine[name].abs()).max()) and gap > 2 * unsure:
            return False
    return True


def random_direction(size: int) -> Tensor:
    """A vector [size] in which no part of a derivative vanishes, the same each time."""
    return torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _difference(function: Callable[[State], State], z: State, direction: State, step: float) -> State:
    """The central difference of a function at z."""
    with torch.no_grad():
        ahead, behind = (
            function({name: value + s * direction[name] for name, value in z.items()}) for s in (step, -step)
        )
    return {name: (value - behind[name]) / (2 * step) for name, value in ahead.items()}


def packed(z: Mapping[str, Tensor]) -> Tensor:
    """The variables of a state, one after the other, [size]."""
    return torch.cat([value.reshape(-1) for value in z.values()])


def unpacked(v: Tensor, like: Mapping[str, Tensor]) -> State:
    """A state of the given shapes from its numbers."""
    parts = v.split([value.numel() for value in like.values()])
    return {name: part.view(like[name].shape) for name, part in zip(like, parts, strict=True)}
