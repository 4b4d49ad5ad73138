"""Optimizers as pure functions, each in the order of operations that torch's own has, so that bits are equal.

Everywhere g = -f is the gradient, h the learning rate, and x^ = x / (1 - beta^n) after n steps, which makes
up for a mean's start at 0. `weight_decay` adds weight_decay q to g, but where it is said to be decoupled:
then it shrinks q by itself. Betas are shares a step, as published: with another h a memory is as long in
steps, and so another one in time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdeflow.errors import SdeflowError, expect_number, is_number
from sdeflow.system.rule import Memory, Optimizer

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SGD(Optimizer):
    """Gradient descent, with a heavy ball's momentum or Nesterov's.

        v = mu v + g,    q -= h v,    with Nesterov's q -= h (g + mu v)

    Without momentum it is the Euler step of pgd's theta, to the bit.

    momentum       mu
    nesterov       whether the momentum is Nesterov's
    weight_decay   adds so many q to g
    """

    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    name = "sgd"
    source = "Robbins, Monro 1951; Polyak 1964; Sutskever, Martens, Dahl, Hinton 2013"
    equations = ("v ← μ v − {f}", "{q} ← {q} − h v")
    usual = 1e-2
    kept = ("momentum_buffer",)

    def __post_init__(self) -> None:
        _shares(self, momentum=self.momentum)
        _not_negative(self, "weight_decay")
        if not isinstance(self.nesterov, bool):
            raise SdeflowError(f"optimizer 'sgd': nesterov must be true or false, given {self.nesterov!r}")
        if self.nesterov and not self.momentum:
            raise SdeflowError("optimizer 'sgd': nesterov needs a momentum, such as momentum = 0.9")

    def __call__(self, q: Tensor, f: Tensor, memory: Memory, h: float) -> tuple[Tensor, Memory]:
        g = _gradient(q, f, self.weight_decay)
        v = memory["momentum_buffer"]
        if self.momentum:
            v = (self.momentum * v).add(g)
            g = g.add(v, alpha=self.momentum) if self.nesterov else v
        return q.add(g, alpha=-h), {"momentum_buffer": v}


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam: a mean of the gradient over the root of a mean of its square.

    m = b1 m + (1-b1) g,    v = b2 v + (1-b2) g^2
    q -= h m^ / (sqrt(v^) + eps),    m^ = m / (1 - b1^n),    v^ = v / (1 - b2^n)

    betas          b1 and b2, what is left of each mean a step
    eps            keeps the root from 0
    weight_decay   adds so many q to g
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0

    name = "adam"
    source = "Kingma, Ba 2015"
    equations = (
        "m ← β₁ m − (1−β₁) {f}",
        "v ← β₂ v + (1−β₂) {f}²",
        "{q} ← {q} − h m̂ / (√v̂ + ε)",
    )
    kept, counts = ("exp_avg", "exp_avg_sq"), True

    def __post_init__(self) -> None:
        _betas(self, 2)
        _not_negative(self, "eps", "weight_decay")

    def __call__(self, q: Tensor, f: Tensor, memory: Memory, h: float) -> tuple[Tensor, Memory]:
        return self._move(q, _gradient(q, f, self.weight_decay), memory, h)

    def _move(self, q: Tensor, g: Tensor, memory: Memory, h: float) -> tuple[Tensor, Memory]:
        b1, b2 = self.betas
        n = memory["step"] + 1
        m = memory["exp_avg"].lerp(g, 1 - b1)
        v = (memory["exp_avg_sq"] * b2).addcmul(g, g, value=1 - b2)
        left = _left(b2, n)
        root = left.pow(left.new_full(left.shape, 0.5))  # as torch has it: not always sqrt's last bit
        below = v.sqrt() / root.to(v.dtype) + self.eps
        return _divided(q, h, _left(b1, n), m, below), {"exp_avg": m, "exp_avg_sq": v, "step": n}


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay: q (1 - h weight_decay) takes the place of q.

    weight_decay   shrinks q by itself
    """

    weight_decay: float = 1e-2

    name = "adamw"
    source = "Loshchilov, Hutter 2019, arXiv:1711.05101"
    equations = (*Adam.equations[:2], "{q} ← (1−hλ) {q} − h m̂ / (√v̂ + ε)")

    def __call__(self, q: Tensor, f: Tensor, memory: Memory, h: float) -> tuple[Tensor, Memory]:
        return self._move(_shrunk(q, h * self.weight_decay), -f, memory, h)


@dataclass(frozen=True)
class RMSPropOptimizer(Optimizer):
    """RMSProp: v = alpha v + (1-alpha) g^2,    q -= h g / (sqrt(v) + eps).

    Beside the preconditioner of that name, which has sqrt(v + 1e-8) with v = 1 at the start and goes with a
    block's own momentum. Here momentum is b = momentum b + g / (sqrt(v) + eps), q -= h b.

    alpha          what is left of the mean a step
    eps            keeps the root from 0
    momentum       what is left of b a step
    weight_decay   adds so many q to g
    """

    alpha: float = 0.99
    eps: float = 1e-8
    momentum: float = 0.0
    weight_decay: float = 0.0

    name = "rmsprop"
    source = "Tieleman, Hinton 2012"
    equations = ("v ← α v + (1−α) {f}²", "{q} ← {q} + h {f} / (√v + ε)")
    usual = 1e-2
    kept = ("square_avg", "momentum_buffer")

    def __post_init__(self) -> None:
        _shares(self, alpha=self.alpha, momentum=self.momentum)
        _not_negative(self, "eps", "weight_decay")

    def __call__(self, q: Tensor, f: Tensor, memory: Memory, h: float) -> tuple[Tensor, Memory]:
        g = _gradient(q, f, self.weight_decay)
        v = (self.alpha * memory["square_avg"]).addcmul(g, g, value=1 - self.alpha)
        below, b = v.sqrt() + self.eps, memory["momentum_buffer"]
        if self.momentum:
            b = (self.momentum * b).addcdiv(g, below)
            q = q.add(b, alpha=-h)
        else:
            q = q.addcdiv(g, below, value=-h)
        return q, {"square_avg": v, "momentum_buffer": b}


@dataclass(frozen=True)
class Adagrad(Optimizer):
    """Adagrad: s = s + g^2,    q -= h g / (sqrt(s) + eps).

    eps            keeps the root from 0
    weight_decay   adds so many q to g
    """

    eps: float = 1e-10
    weight_decay: float = 0.0

    name = "adagrad"
    source = "Duchi, Hazan, Singer 2011"
    equations = ("s ← s + {f}²", "{q} ← {q} + h {f} / (√s + ε)")
    usual = 1e-2
    kept = ("sum",)

    def __post_init__(self) -> None:
        _not_negative(self, "eps", "weight_decay")

    def __call__(self, q: Tensor, f: Tensor, memory: Memory, h: float) -> tuple[Tensor, Memory]:
        g = _gradient(q, f, self.weight_decay)
        s = memory["sum"].addcmul(g, g)
        return q.addcdiv(g, s.sqrt() + self.eps, value=-h), {"sum": s}


@dataclass(frozen=True)
class Lion(Optimizer):
    """Lion: q -= h sign(b1 m + (1-b1) g),    m = b2 m + (1-b2) g; weight decay is decoupled.

    Every coordinate moves by h in every step, so it ends in a cycle of that size and not at a point.

    betas          b1 and b2, what is left of m in the sign, and in the next m
    weight_decay   shrinks q by itself
    """

    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0

    name = "lion"
    source = "Chen et al. 2023, arXiv:2302.06675"
    equations = ("{q} ← {q} − h sign(β₁ m − (1−β₁) {f})", "m ← β₂ m − (1−β₂) {f}")
    usual = 1e-4
    kept = ("exp_avg",)

    def __post_init__(self) -> None:
        _betas(self, 2)
        _not_negative(self, "weight_decay")

    def __call__(self, q: Tensor, f: Tensor, memory: Memory, h: float) -> tuple[Tensor, Memory]:
        b1, b2 = self.betas
        g, m = -f, memory["exp_avg"]
        moved = _shrunk(q, h * self.weight_decay).add(m.lerp(g, 1 - b1).sign(), alpha=-h)
        return moved, {"exp_avg": m.lerp(g, 1 - b2)}


@dataclass(frozen=True)
class AdaBelief(Optimizer):
    """AdaBelief: Adam, whose second mean is of (g - m)^2; weight decay is decoupled.

    m = b1 m + (1-b1) g,    s = b2 s + (1-b2) (g-m)^2 + eps,    q -= h m^ / (sqrt(s^) + eps)

    betas          b1 and b2, what is left of each mean a step
    eps            keeps the root from 0
    weight_decay   shrinks q by itself
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-16
    weight_decay: float = 0.0

    name = "adabelief"
    source = "Zhuang et al. 2020, arXiv:2010.07468"
    equations = (
        "m ← β₁ m − (1−β₁) {f}",
        "s ← β₂ s + (1−β₂) ({f} + m)² + ε",
        "{q} ← {q} − h m̂ / (√ŝ + ε)",
    )
    kept, counts = ("exp_avg", "exp_avg_var"), True

    def __post_init__(self) -> None:
        _betas(self, 2)
        _not_negative(self, "eps", "weight_decay")

    def __call__(self, q: Tensor, f: Tensor, memory: Memory, h: float) -> tuple[Tensor, Memory]:
        b1, b2 = self.betas
        g, n = -f, memory["step"] + 1
        m = memory["exp_avg"].lerp(g, 1 - b1)
        apart = g - m
        s = (memory["exp_avg_var"] * b2).addcmul(apart, apart, value=1 - b2) + self.eps
        below = s.sqrt() / _left(b2, n).sqrt().to(s.dtype) + self.eps
        q = _shrunk(q, h * self.weight_decay)
        return _divided(q, h, _left(b1, n), m, below), {"exp_avg": m, "exp_avg_var": s, "step": n}


@dataclass(frozen=True)
class Adan(Optimizer):
    """Adan: Adam with means of the gradient, of its change since the last step, and of both squared.

        m = b1 m + (1-b1) g,    d = b2 d + (1-b2) (g - g_),    n = b3 n + (1-b3) (g + b2 (g - g_))^2
        q = (q - h (m^ + b2 d^) / (sqrt(n^) + eps)) / (1 + h weight_decay)

    with g_ the gradient before, and g itself at first.

    betas          b1, b2 and b3, what is left of each mean a step
    eps            keeps the root from 0
    weight_decay   shrinks q by itself
    """

    betas: tuple[float, float, float] = (0.98, 0.92, 0.99)
    eps: float = 1e-8
    weight_decay: float = 0.0

    name = "adan"
    source = "Xie et al. 2024, arXiv:2208.06677"
    equations = (
        "m ← β₁ m − (1−β₁) {f}",
        "δ = {f}₋ − {f},  d ← β₂ d + (1−β₂) δ",
        "n ← β₃ n + (1−β₃) (β₂ δ − {f})²",
        "{q} ← {q} − h (m̂ + β₂ d̂) / (√n̂ + ε)",
    )
    kept, counts = ("exp_avg", "exp_avg_diff", "exp_avg_sq", "gradient"), True

    def __post_init__(self) -> None:
        _betas(self, 3)
        _not_negative(self, "eps", "weight_decay")

    def __call__(self, q: Tensor, f: Tensor, memory: Memory, h: float) -> tuple[Tensor, Memory]:
        b1, b2, b3 = self.betas
        g, step = -f, memory["step"] + 1
        change = (g - memory["gradient"]) * (step > 1)
        m = memory["exp_avg"].lerp(g, 1 - b1)
        d = memory["exp_avg_diff"].lerp(change, 1 - b2)
        both = change * b2 + g
        n = (memory["exp_avg_sq"] * b3).addcmul(both, both, value=1 - b3)
        below = n.sqrt() / _left(b3, step).sqrt().to(n.dtype) + self.eps
        q = _divided(q, h, _left(b1, step), m, below)
        q = _divided(q, h * b2, _left(b2, step), d, below)
        if self.weight_decay:
            q = q / (1 + h * self.weight_decay)
        return q, {"exp_avg": m, "exp_avg_diff": d, "exp_avg_sq": n, "gradient": g, "step": step}


def _gradient(q: Tensor, f: Tensor, weight_decay: float) -> Tensor:
    return (-f).add(q, alpha=weight_decay) if weight_decay else -f


def _shrunk(q: Tensor, share: float) -> Tensor:
    return q * (1 - share) if share else q


def _left(beta: float, n: Tensor) -> Tensor:
    """1 - beta^n in float64: what n steps have made of the weight 1 that a mean should have."""
    return 1 - n.double().fill_(beta).pow(n.double())


def _divided(q: Tensor, h: float, left: Tensor, above: Tensor, below: Tensor) -> Tensor:
    """q - (h / left) above / below."""
    size = left.new_full(left.shape, -h) / left  # a number over a tensor would be times its reciprocal
    return q + size.to(q.dtype) * above / below


def _betas(rule: Optimizer, count: int) -> None:
    """Checks an optimizer's betas and makes a tuple of them."""
    given = getattr(rule, "betas")  # noqa: B009 (of those that have them)
    if not isinstance(given, list | tuple) or len(given) != count:
        raise SdeflowError(f"optimizer '{rule.name}': betas must be {count} numbers, given {given!r}")
    object.__setattr__(rule, "betas", tuple(given))
    _shares(rule, **{f"beta {i}": beta for i, beta in enumerate(given, 1)})


def _shares(rule: Optimizer, **values: float) -> None:
    for name, value in values.items():
        if not is_number(value) or not 0 <= value < 1:
            raise SdeflowError(f"optimizer '{rule.name}': {name} must be in [0, 1), given {value!r}")


def _not_negative(rule: Optimizer, *names: str) -> None:
    for name in names:
        value = expect_number(f"optimizer '{rule.name}': {name}", getattr(rule, name))
        if not 0 <= value < float("inf"):
            raise SdeflowError(
                f"optimizer '{rule.name}': {name} must be finite and not negative, given {value!r}"
            )
