"""The benchmark's models by JAX and by Diffrax, for tests/benchmarks/speed.py; needs the `bench` extra.

jax        the exponential integrator in one jitted scan: the toy model with a gradient in theta and then one
           in X, as `expint` has it; the decoder on minibatches, with both from one backward pass, as
           `expint_shared` has it
diffrax    its Euler on the whole system with its fastest Brownian path: one force evaluation and half of the
           noise; the toy model's forces are analytic, the decoder sees the same minibatch at every step

A state z is (theta, m, X, U), theta a number or a flat vector. Motions are h, eta and gamma by block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from torch.nn.utils import parameters_to_vector

from sdeflow.problems.decoder import Decoder
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.system.flow import Flow, kinetic_flow

CHUNK, EPOCHS = 50, 4
"""Steps, or epochs of minibatches, in one compiled call."""

Motions = Mapping[str, Mapping[str, float]]


class Peer(NamedTuple):
    """advance(z, key) is the state after `steps` steps from z, compiled."""

    advance: Callable[[Any, Any], Any]
    z: Any
    steps: int

    def take(self) -> Callable[[int], int]:
        """Takes steps in whole calls, at least one, and gives how many."""
        at = [self.z, jax.random.key(0)]

        def take(count: int) -> int:
            calls = max(1, count // self.steps)
            for _ in range(calls):
                at[1], key = jax.random.split(at[1])
                at[0] = self.advance(at[0], key)
            jax.block_until_ready(at[0])
            return calls * self.steps

        return take


def start(theta: Any, shape: tuple[int, ...], motions: Motions) -> Any:
    x, u = np.random.default_rng(0).standard_normal((2, *shape), dtype=np.float32)
    return theta, jnp.zeros_like(theta), jnp.asarray(x), jnp.asarray(u) / motions["x"]["eta"] ** 0.5


def flows(motions: Motions) -> tuple[Flow, Flow]:
    """Of theta and of X."""
    return kinetic_flow(**motions["theta"]), kinetic_flow(**motions["x"])


def exponential(c: Flow, q: Any, p: Any, f: Any, xi: Any = (0.0, 0.0)) -> Any:
    """q + free p + push f + Q and w p + kick f + P, with Q and P made of two standard normals."""
    return (
        q + c.free * p + c.push * f + c.q1 * xi[0] + c.q2 * xi[1],
        c.w * p + c.kick * f + c.p1 * xi[0] + c.p2 * xi[1],
    )


def euler(forces: Callable[[Any, Any], Any], z: Any, motions: Motions) -> Peer:
    """Diffrax's Euler with forces(theta, x); time is counted in steps, so that CHUNK of them are exact."""
    of_theta, of_x = motions["theta"], motions["x"]
    nothing = jnp.zeros_like(z[0])

    def kinetic(motion: Mapping[str, float], p: Any, f: Any) -> Any:
        h, eta, gamma = motion["h"], motion["eta"], motion["gamma"]
        return h * eta * p, h * (f - gamma * eta * p)

    def drift(t: Any, z: Any, args: Any) -> Any:
        theta, m, x, u = z
        f_theta, f_x = forces(theta, x)
        return *kinetic(of_theta, m, f_theta), *kinetic(of_x, u, f_x)

    def diffusion(t: Any, z: Any, args: Any) -> Any:
        return math.sqrt(2 * of_x["gamma"] * of_x["h"])

    class OnU(diffrax.ControlTerm):  # noise on u alone
        def prod(self, vf: Any, control: Any) -> Any:
            return nothing, nothing, jnp.zeros_like(control), vf * control

    @jax.jit
    def advance(z: Any, key: Any) -> Any:
        path = diffrax.UnsafeBrownianPath(shape=z[3].shape, key=key)
        saved = diffrax.diffeqsolve(
            diffrax.MultiTerm(diffrax.ODETerm(drift), OnU(diffusion, path)),
            diffrax.Euler(),
            t0=0.0,
            t1=float(CHUNK),
            dt0=1.0,
            y0=z,
            saveat=diffrax.SaveAt(t1=True),
            adjoint=diffrax.DirectAdjoint(),
            max_steps=CHUNK,
        ).ys
        return jax.tree.map(lambda v: v[-1], saved)

    return Peer(advance, z, CHUNK)


# The toy model -------------------------------------------------------------------------------------


def toy_scan(model: Hierarchical, particles: int, motions: Motions, replicas: int | None = None) -> Peer:
    """X and U [D, N], or with an axis of replicas before; theta [] or [R]."""
    of_theta, of_x = flows(motions)
    y = jnp.asarray(model.data.float().numpy())

    def log_joint(theta: Any, x: Any) -> Any:
        return -((x - theta) ** 2 + (y - x) ** 2).sum() / 2

    def step(z: Any, key: Any) -> tuple[Any, None]:
        theta, m, x, u = z
        f = jax.grad(log_joint, 0)(theta + of_theta.free * m, x) / particles
        theta, m = exponential(of_theta, theta, m, f)
        f = jax.grad(log_joint, 1)(theta, x)
        x, u = exponential(of_x, x, u, f, jax.random.normal(key, (2, *x.shape)))
        return (theta, m, x, u), None

    def advance(z: Any, key: Any) -> Any:
        return jax.lax.scan(step, z, jax.random.split(key, CHUNK))[0]

    def advance_all(z: Any, key: Any) -> Any:
        return jax.vmap(advance)(z, jax.random.split(key, replicas))

    axes = () if replicas is None else (replicas,)
    z = start(jnp.zeros(axes), (*axes, len(y), particles), motions)
    return Peer(jax.jit(advance if replicas is None else advance_all), z, CHUNK)


def toy_euler(model: Hierarchical, particles: int, motions: Motions) -> Peer:
    y = jnp.asarray(model.data.float().numpy())

    def forces(theta: Any, x: Any) -> Any:
        return (x - theta).sum() / particles, theta - x + (y - x)

    return euler(forces, start(jnp.zeros(()), (len(y), particles), motions), motions)


# The decoder ---------------------------------------------------------------------------------------


def perceptron(parts: Sequence[Any], x: Any) -> Any:
    """Images [n, 64] of latents [n, d]."""
    for i, (weight, bias) in enumerate(zip(parts[::2], parts[1::2], strict=True)):
        x = (jax.nn.leaky_relu(x) if i else x) @ weight.T + bias
    return x


def convolutional(parts: Sequence[Any], x: Any) -> Any:
    """Images [n, pixels] of latents [n, d] by the decoder of sdeflow.problems.networks, channels last within.

    Transposed convolutions are products of matrices whose results are added where they overlap, as XLA takes
    five times as long for convolutions of spread-out images, and six times with the channels first.
    """
    first, *doubling, last = parts
    first = first.transpose(0, 2, 3, 1)
    image = (x @ first.reshape(len(first), -1)).reshape(len(x), *first.shape[1:])
    for weight in doubling:
        image = doubled(jax.nn.leaky_relu(image), weight)
    layout = ("NHWC", "HWIO", "NHWC")
    kernel, sides = last.transpose(2, 3, 1, 0), [(1, 1), (1, 1)]
    image = jax.lax.conv_general_dilated(
        jax.nn.leaky_relu(image), kernel, (1, 1), sides, dimension_numbers=layout
    )
    return jnp.tanh(image).transpose(0, 3, 1, 2).reshape(len(x), -1)


def doubled(image: Any, weight: Any) -> Any:
    """Transposed convolution of [n, s, s, c] by [c, o, 4, 4], stride 2, padding 1: [n, 2 s, 2 s, o]."""
    n, side, _, channels = image.shape
    flat = image.reshape(-1, channels) @ weight.transpose(0, 2, 3, 1).reshape(channels, -1)
    # each side of a kernel is two pairs of pixels, and pair a of pixel i falls on pair i + a of the result
    pairs = flat.reshape(n, side, side, 2, 2, 2, 2, -1)
    whole, colours = 2 * side + 2, pairs.shape[-1]
    rest = ((0, 0), (0, 0), (0, 0))
    added = sum(
        jnp.pad(pairs[:, :, :, a, :, b], ((0, 0), (a, 1 - a), (b, 1 - b), *rest))
        for a in (0, 1)
        for b in (0, 1)
    )
    return added.transpose(0, 1, 3, 2, 4, 5).reshape(n, whole, whole, colours)[:, 1:-1, 1:-1]


def decoder_forces(
    model: Any, batch: int, particles: int, decode: Callable[[Sequence[Any], Any], Any] = perceptron
) -> Callable[[Any, Any, Any], Any]:
    """Both forces at theta [p], x [b, N d], y [b, pixels] from one backward pass, theta's for all the data.

    A datum's particles lie in one row, since XLA is slow at drawing normals whose last axis is as short as d.
    """
    shapes = [tuple(value.shape) for value in model.network.parameters()]
    ends = np.cumsum([math.prod(shape) for shape in shapes])[:-1]

    def log_joint(theta: Any, x: Any, y: Any) -> Any:
        parts = [part.reshape(shape) for part, shape in zip(jnp.split(theta, ends), shapes, strict=True)]
        image = decode(parts, x.reshape(len(x) * particles, -1)).reshape(len(x), particles, -1)
        return -((x**2).sum() + ((y[:, None] - image) ** 2).sum() / model.sigma**2) / 2

    per_particle = len(model.data) / batch / particles

    def forces(theta: Any, x: Any, y: Any) -> Any:
        of_theta, of_x = jax.grad(log_joint, (0, 1))(theta, x, y)
        return per_particle * of_theta, of_x

    return forces


def decoder_start(model: Any, data: int, particles: int, motions: Motions) -> Any:
    theta = parameters_to_vector(model.network.parameters()).detach().numpy()
    return start(jnp.asarray(theta), (data, particles * math.prod(model.latent_shape)), motions)


def minibatch_step(forces: Callable[[Any, Any, Any], Any], y: Any, motions: Motions) -> Any:
    """A step of z with X and U [D, N d], as a scan has it: step(z, (key, index of the batch))."""
    of_theta, of_x = flows(motions)

    def step(z: Any, at: Any) -> tuple[Any, None]:
        key, index = at
        theta, m, X, U = z
        x, u = X[index], U[index]
        f_theta, f_x = forces(theta + of_theta.free * m, x, y[index])
        theta, m = exponential(of_theta, theta, m, f_theta)
        x, u = exponential(of_x, x, u, f_x, jax.random.normal(key, (2, *x.shape)))
        return (theta, m, X.at[index].set(x), U.at[index].set(u)), None

    return step


def decoder_scan(model: Decoder, batch: int, particles: int, motions: Motions) -> Peer:
    """The batches of an epoch are cut from a permutation before the scan."""
    y = jnp.asarray(model.data.float().numpy())
    step = minibatch_step(decoder_forces(model, batch, particles), y, motions)
    per_epoch = len(y) // batch

    def epoch(key: Any) -> Any:
        return jax.random.permutation(key, len(y))[: per_epoch * batch].reshape(per_epoch, batch)

    @jax.jit
    def advance(z: Any, key: Any) -> Any:
        of_order, of_noise = jax.random.split(key)
        index = jax.vmap(epoch)(jax.random.split(of_order, EPOCHS)).reshape(-1, batch)
        return jax.lax.scan(step, z, (jax.random.split(of_noise, len(index)), index))[0]

    return Peer(advance, decoder_start(model, len(y), particles, motions), EPOCHS * per_epoch)


def convolutional_step(model: Any, batch: int, particles: int, motions: Motions) -> Peer:
    """One step a call, which takes long enough; its batch is the beginning of a permutation."""
    y = jnp.asarray(model.data.float().numpy())
    step = minibatch_step(decoder_forces(model, batch, particles, convolutional), y, motions)

    @jax.jit
    def advance(z: Any, key: Any) -> Any:
        of_order, of_noise = jax.random.split(key)
        return step(z, (of_noise, jax.random.permutation(of_order, len(y))[:batch]))[0]

    return Peer(advance, decoder_start(model, len(y), particles, motions), 1)


def decoder_euler(model: Decoder, batch: int, particles: int, motions: Motions) -> Peer:
    """X and U [b, N d], of the first b data alone."""
    forces, y = decoder_forces(model, batch, particles), jnp.asarray(model.data[:batch].float().numpy())
    z = decoder_start(model, batch, particles, motions)
    return euler(lambda theta, x: forces(theta, x, y), z, motions)
