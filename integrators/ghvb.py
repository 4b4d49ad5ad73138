from __future__ import annotations

import math

from sdeflow.system import (
    Integrator,
    Noise,
    SdeflowError,
    State,
    System,
    plus,
    refuses_memory,
    refuses_restart,
)

NEXT = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""Adams-Bashforth: the integral over the next step of the polynomial through f_n, f_{n-1}, ..., by order."""

LAST = (
    (1.0,),
    (1 / 2, 1 / 2),
    (5 / 12, 8 / 12, -1 / 12),
    (9 / 24, 19 / 24, -5 / 24, 1 / 24),
)
"""Adams-Moulton: the integral of the same polynomial over the last step, which ended at x_n."""

BEFORE, PAST = "before:", "past"
"""Prefixes of the memory in the state: x_{n-1}, and f_{n-k} as 'past1:', 'past2:', ... by variable."""


class GHVB(Integrator[System]):
    """Generalised heavy ball: Adams-Bashforth of order r with a momentum, for systems without noise.

        x_{n+1} = x_n + (1 - beta) (x_n - x_{n-1}) + h sum_{k<r} c_k f_{n-k},    f_n = drift(t_n, x_n)
        c_k = b_k - (1 - beta) a_k

    with b_k the weights of Adams-Bashforth and a_k those of Adams-Moulton over the step before: what the
    momentum repeats of that step is taken away again to order r. So the order is r for every beta in (0, 1],
    and beta = 1 is Adams-Bashforth. It is v' = (1 - beta) v + beta f, x' = x + h/beta sum_k d_k v_{n-k},
    written without v. The first r - 1 steps are those of the classical Runge-Kutta scheme of order 4. One
    evaluation of the drift a step.

    order   r, 1 to 4: 1 is Euler's scheme with a heavy ball
    beta    of the new direction, in (0, 1]; momentum is 1 - beta. The literature names a scheme r - 1 + beta

    Raises SdeflowError for others.
    """

    strong_order, weak_order, evaluations = 2.0, 2.0, 1
    increments = "W"
    needs = "any ODE"
    minibatches, schedules = False, False
    source = "Wizadwongsa et al. 2023, arXiv:2307.11118"

    def __init__(self, order: int = 2, beta: float = 0.8) -> None:
        if order not in (1, 2, 3, 4):
            raise SdeflowError(f"order must be 1, 2, 3 or 4, given {order!r}")
        if not 0 < beta <= 1:
            raise SdeflowError(f"beta must lie in (0, 1], given {beta!r}: 1 is without momentum")
        self.order, self.beta = order, beta
        self.strong_order = self.weak_order = float(order)
        pairs = zip(NEXT[order - 1], LAST[order - 1], strict=True)
        self.weights = [b - (1 - beta) * a for b, a in pairs]

    def __str__(self) -> str:
        return f"{self.name} of order {self.order}, beta {self.beta:g}"

    def refuses(self, system: System) -> str | None:
        if system.channels:
            noisy = ", ".join(dict.fromkeys(c.variable for c in system.channels))
            return f"it is for systems without noise, and noise enters {noisy}"
        for b in system.blocks:
            for key in b.auto:
                return f"it remembers steps of the same numbers, and {key} of {b.name} is 'auto'"
        return refuses_memory(system) or refuses_restart(system)

    def init(self, system: System, z: State, t: float = 0.0) -> State:
        """x_{-1} and f_{-1}, ..., f_{1-r} under which the first r - 1 steps are those of Runge-Kutta.

        A past that was never there: of Runge-Kutta's x_0, ..., x_{r-1} each step of this scheme has one force
        unknown, its oldest, and is solved for that. So a step need not know how many were taken before it.
        Past a system's final time, where no step goes, it is made of the last drift there is.
        """
        h, end = system.h, getattr(system, "final_time", None) or math.inf
        within = [t + n * h <= end * (1 + 1e-9) for n in range(self.order)]
        f = [system.drift(t, z)]
        x = [{name: z[name] for name in f[0]}]
        for n in range(self.order - 1):
            if n > 0:
                f.append(system.drift(t + n * h, z | x[n]) if within[n] else f[-1])
            ahead = (
                _runge_kutta(system, t + n * h, z | x[n], f[n], h)
                if within[n + 1]
                else {name: plus(x[n][name], (h, f[n][name])) for name in f[n]}
            )
            x.append(ahead)
        x_before = {name: plus(z[name], (-h, f[0][name])) for name in f[0]}
        past: list[State] = []
        for n in reversed(range(self.order - 1)):
            known = [*reversed(f[: n + 1]), *past]
            moved = self._moved(x[n], x[n - 1] if n > 0 else x_before, known, h)
            scale = 1 / (h * self.weights[-1])
            past.append({name: scale * (x[n + 1][name] - moved[name]) for name in moved})
        return _kept(x_before, past)

    def step(self, system: System, t: float, z: State, h: float, noise: tuple[Noise, ...]) -> State:
        f = system.drift(t, z)
        before = {name: z[BEFORE + name] for name in f}
        past = [{name: z[f"{PAST}{k}:{name}"] for name in f} for k in range(1, self.order)]
        x = {name: z[name] for name in f}
        return z | self._moved(x, before, [f, *past], h) | _kept(x, [f, *past[:-1]] if past else [])

    def _moved(self, x: State, before: State, f: list[State], h: float) -> State:
        """x_{n+1} of x_n, x_{n-1} and f_n, f_{n-1}, ..., as many as there are."""
        momentum, weights = 1 - self.beta, self.weights[: len(f)]
        return {
            name: plus(
                x[name],
                (momentum, x[name] - before[name]),
                *((h * c, one[name]) for c, one in zip(weights, f, strict=True)),
            )
            for name in x
        }


def _kept(before: State, past: list[State]) -> State:
    """The memory under the names by which the state carries it."""
    kept = {BEFORE + name: x for name, x in before.items()}
    return kept | {f"{PAST}{k}:{name}": f for k, one in enumerate(past, 1) for name, f in one.items()}


def _runge_kutta(system: System, t: float, z: State, f: State, h: float) -> State:
    """A step of the classical scheme of order 4 from z, where the drift is f."""

    def at(share: float, slope: State) -> State:
        moved = {name: plus(z[name], (share * h, slope[name])) for name in f}
        return system.drift(t + share * h, z | moved)

    second = at(0.5, f)
    third = at(0.5, second)
    last = at(1.0, third)
    return {
        name: plus(z[name], *((h / 6 * w, k[name]) for w, k in ((1, f), (2, second), (2, third), (1, last))))
        for name in f
    }
