"""Coin betting: an optimizer without a learning rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdeflow.errors import SdeflowError, expect_number
from sdeflow.system.rule import Memory, Optimizer

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Coin(Optimizer):
    """Coin betting: each coordinate bets on the sign of its force, a share of what it has won so far.

        L = max(L, |f|),  G = G + f,  A = A + |f|,  R = max(R + (q - q0) f, 0)
        q = q0 + G / max(A + L, a L) (1 + R / L)

    from q0, where it begins; a coordinate that has felt no force stays there. Its first step is 1/2 for a up
    to 2, and 1/a above, whatever the size of the force: positions stay as they are where all forces are
    multiplied by a number. It has no learning rate, and h is left aside. It is fast far away, and slow near
    the optimum, around which it may swing.

    a   how many times L the sum A counts for at least: 100 as cocob has it, 0 in coin-EM
    """

    a: float = 0.0

    name = "coin"
    source = "Orabona, Tommasi 2017, arXiv:1705.07795; Sharrock, Dodd, Nemeth 2024, arXiv:2305.14916"
    equations = (
        "L ← max(L, |{f}|),  G ← G + {f},  A ← A + |{f}|",
        "R ← max(R + ({q} − q₀) {f}, 0)",
        "{q} ← q₀ + G / max(A + L, a L) (1 + R / L)",
    )
    kept = ("origin", "largest", "sum", "total", "reward")
    stepless = True

    def __post_init__(self) -> None:
        a = expect_number("optimizer 'coin': a", self.a)
        if not 0 <= a < float("inf"):
            raise SdeflowError(f"optimizer 'coin': a must be finite and not negative, given {a!r}")

    def __call__(self, q: Tensor, f: Tensor, memory: Memory, h: float) -> tuple[Tensor, Memory]:
        origin = memory["origin"].where(memory["largest"] > 0, q)  # where no force was yet, it has not moved
        size = f.abs()
        largest = memory["largest"].maximum(size)
        total = memory["total"] + size
        net = memory["sum"] + f
        reward = (memory["reward"] + (q - origin) * f).clamp(min=0)
        felt = largest > 0
        share = net / (total + largest).maximum(self.a * largest).where(felt, 1)
        moved = origin + share * (1 + reward / largest.where(felt, 1))
        return moved, {"origin": origin, "largest": largest, "sum": net, "total": total, "reward": reward}
