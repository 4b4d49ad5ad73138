"""The toy model by JAX and by Diffrax, for tests/benchmarks/speed.py; needs the `bench` extra.

jax        the exponential integrator with both gradients by jax.grad, in one jitted scan
diffrax    its Euler on the whole system with analytic forces and its fastest Brownian path: one force
           evaluation and half of the noise
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from sdeflow.flow import kinetic_flow

CHUNK = 50
"""Steps in one compiled call."""

Steps = Callable[[int], int]


def whole_chunks(chunk: Callable[[Any, Any], Any], state: Any) -> Steps:
    """Takes steps in calls of CHUNK, at least one, and gives how many."""
    at = [state, jax.random.key(0)]

    def take(count: int) -> int:
        calls = max(1, count // CHUNK)
        for _ in range(calls):
            at[1], key = jax.random.split(at[1])
            at[0] = chunk(at[0], key)
        jax.block_until_ready(at[0])
        return calls * CHUNK

    return take


def start(data: int, particles: int, eta: float) -> tuple[Any, ...]:
    g = np.random.default_rng(0)
    x, u = g.standard_normal((2, data, particles), dtype=np.float32)
    return jnp.zeros(()), jnp.zeros(()), jnp.asarray(x), jnp.asarray(u) / eta**0.5


def scan(y: Any, particles: int, eta: float, gamma: float, h: dict[str, dict[str, float]]) -> Steps:
    of_theta, of_x = (kinetic_flow(gamma, eta, h[block]["h"]) for block in ("theta", "x"))
    y = jnp.asarray(y)

    def log_joint(theta: Any, x: Any) -> Any:
        return -((x - theta) ** 2 + (y - x) ** 2).sum() / 2

    def step(z: Any, key: Any) -> tuple[Any, None]:
        theta, m, x, u = z
        theta = theta + of_theta.free * m
        f = jax.grad(log_joint, 0)(theta, x) / particles
        theta, m = theta + of_theta.push * f, of_theta.w * m + of_theta.kick * f
        f = jax.grad(log_joint, 1)(theta, x)
        xi = jax.random.normal(key, (2, *x.shape))
        x = x + of_x.free * u + of_x.push * f + of_x.q1 * xi[0] + of_x.q2 * xi[1]
        u = of_x.w * u + of_x.kick * f + of_x.p1 * xi[0] + of_x.p2 * xi[1]
        return (theta, m, x, u), None

    @jax.jit
    def chunk(z: Any, key: Any) -> Any:
        return jax.lax.scan(step, z, jax.random.split(key, CHUNK))[0]

    return whole_chunks(chunk, start(len(y), particles, eta))


def euler(y: Any, particles: int, eta: float, gamma: float, h: dict[str, dict[str, float]]) -> Steps:
    dt, rate, y = h["theta"]["h"], h["x"]["h"] / h["theta"]["h"], jnp.asarray(y)

    def drift(t: Any, z: Any, args: Any) -> Any:
        theta, m, x, u = z
        f_theta = (x - theta).sum() / particles
        f_x = theta - x + (y - x)
        return eta * m, f_theta - gamma * eta * m, rate * eta * u, rate * (f_x - gamma * eta * u)

    def diffusion(t: Any, z: Any, args: Any) -> Any:
        return (2 * gamma * rate) ** 0.5

    class OnU(diffrax.ControlTerm):  # noise on u alone
        def prod(self, vf: Any, control: Any) -> Any:
            zero = jnp.zeros(())
            return zero, zero, jnp.zeros_like(control), vf * control

    @jax.jit
    def chunk(z: Any, key: Any) -> Any:
        path = diffrax.UnsafeBrownianPath(shape=z[3].shape, key=key)
        terms = diffrax.MultiTerm(diffrax.ODETerm(drift), OnU(diffusion, path))
        return diffrax.diffeqsolve(
            terms,
            diffrax.Euler(),
            0.0,
            CHUNK * dt,
            dt,
            z,
            saveat=diffrax.SaveAt(t1=True),
            adjoint=diffrax.DirectAdjoint(),
            max_steps=CHUNK + 2,
        ).ys

    def one(z: Any, key: Any) -> Any:
        return jax.tree.map(lambda v: v[-1], chunk(z, key))

    return whole_chunks(one, start(len(y), particles, eta))
