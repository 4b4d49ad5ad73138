from __future__ import annotations

from sdeflow.integrators.ghvb import GHVB, NEXT


class HeavyBall(GHVB):
    """Polyak's heavy ball on Adams-Bashforth of order r, for systems without noise.

        x_{n+1} = x_n + (1 - beta) (x_n - x_{n-1}) + h beta sum_{k<r} b_k f_{n-k},    f_n = drift(t_n, x_n)

    with b_k the weights of Adams-Bashforth: v' = (1 - beta) v + beta (its direction), x' = x + h v'. It bears
    larger steps than `ghvb` and is of order 1 for every beta below 1. At r = 1 the two are one. The first
    r - 1 steps are of Runge-Kutta; one evaluation of the drift a step.

    order   r, 1 to 4
    beta    of the new direction, in (0, 1]; momentum is 1 - beta

    Raises ValueError for others.
    """

    name = "heavy_ball"
    strong_order, weak_order, evaluations = 1.0, 1.0, 1
    source = "Polyak 1964; Wizadwongsa et al. 2023, arXiv:2307.11118"

    def __init__(self, order: int = 1, beta: float = 0.5) -> None:
        super().__init__(order, beta)
        self.strong_order = self.weak_order = float(order) if beta == 1 else 1.0
        self.weights = [beta * b for b in NEXT[order - 1]]
