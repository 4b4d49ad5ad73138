"""The methods that are compared, each a system, a scheme and how theta moves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Table = dict[str, Any]


@dataclass(frozen=True)
class Method:
    """A way to train.

    label        its name in tables and folders
    system       and the scheme that moves it
    optimizer    moves theta in place of gradient descent, by `rate`
    plain        theta has no preconditioner, as its noise or its scheme allows none
    energy       whether the prior is an energy, which the setting's variant for such declares
    over         tables that it changes besides
    """

    label: str
    system: str
    scheme: str
    optimizer: Any = None
    rate: float = 1e-3
    plain: bool = False
    energy: bool = False
    over: Table = field(default_factory=dict)


def _by(optimizer: str, rate: float = 1e-3) -> Method:
    return Method(f"pgd, {optimizer}", "pgd", "euler_maruyama", optimizer, rate)


REFERENCE, PLAIN = "pgd", "pgd, no preconditioner"
"""The label of the method that others are compared to, in pairs, and of the same without a preconditioner."""

CATCH_UP: Table = {"batch": {"catch_up": "srock", "cap": 20}}

# Without momenta expint_shared is Euler-Maruyama, and it takes a preconditioner.

METHODS = (
    Method(REFERENCE, "pgd", "expint_shared"),
    *(
        Method(f"mpgd, {scheme}", "mpgd", scheme)
        for scheme in ("expint", "expint_shared", "nag", "expint_nc")
    ),
    Method("mpgd, baoab", "mpgd", "baoab", plain=True),
    Method("mpgd-theta", "mpgd-theta", "expint_shared"),
    Method("mpgd-x", "mpgd-x", "expint_shared"),
    Method("pgd, srock", "pgd", "expint_shared", over=CATCH_UP),
    Method("mpgd, srock", "mpgd", "expint_shared", over=CATCH_UP),
    Method("ipla", "ipla", "euler_maruyama", plain=True),
    Method("kiplmc", "kiplmc", "expint_shared", plain=True),
    Method(PLAIN, "pgd", "euler_maruyama", plain=True),
    _by("adam"),
    _by("adamw"),
    _by("rmsprop"),
    _by("adagrad", 1e-2),
    _by("lion", 1e-4),
    _by("adabelief"),
    _by("adan"),
    Method("short_run", "short_run", "alternating"),
    Method("abp", "abp", "alternating"),
    Method("soul", "soul", "alternating"),
    Method("vi", "vi", "alternating", "adam"),
    Method("ebipla", "ebipla", "euler_maruyama", plain=True, energy=True),
    Method("kinetic_ebipla", "kinetic_ebipla", "expint_shared", plain=True, energy=True),
)

SHORT = (
    *(
        "pgd",
        "mpgd, expint",
        "mpgd, expint_shared",
        "pgd, srock",
        "mpgd, srock",
        "pgd, adam",
        "vi",
        "short_run",
    ),
    "kinetic_ebipla",
)
"""Labels of those that are run on the larger problems unless others are asked for."""
