"""What distances of clouds cost: seconds of one core, and how far each is from the exact W_2.

    python -m sdeflow.analysis.studies.transport --limit 60

Two clouds of n points in the plane, of N(0, I) and of N((1, 1), 2.25 I). Way by way: POT's network simplex,
the best assignment, POT's entropic coupling at a twentieth of the mean cost, and sliced W_2 by 200
directions, whose error is that of finitely many. A way is left where its next size would take longer than the
limit. Needs POT.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import process_time

import numpy as np

from sdeflow.analysis import distances
from sdeflow.analysis.distances import entropic_w2, sliced_w2, wasserstein
from sdeflow.analysis.entropy import Array
from sdeflow.analysis.studies.script import markdown, parser
from sdeflow.errors import SdeflowError

SIZES = (500, 1000, 2000, 5000, 10_000, 20_000)
GROWTH = 2.5
"""The power of n with which the exact ways' time grows, by which the next size's is foreseen."""


def _exact(pot_from: float) -> Callable[[Array, Array], tuple[float, float]]:
    def way(x: Array, y: Array) -> tuple[float, float]:
        distances.POT_FROM, before = int(pot_from), distances.POT_FROM
        try:
            return wasserstein(x, y), 0.0
        finally:
            distances.POT_FROM = before

    return way


WAYS: dict[str, Callable[[Array, Array], tuple[float, float]]] = {
    "network simplex": _exact(0),
    "assignment": _exact(10**12),
    "entropic": lambda x, y: (entropic_w2(x, y), np.nan),
    "sliced": sliced_w2,
}


def measure(sizes: Sequence[int], limit: float) -> list[dict[str, str]]:
    """A row a size: seconds, and the relative error; '' where it would take longer than the limit."""
    last: dict[str, tuple[int, float]] = {}
    for way in WAYS.values():
        way(np.eye(4), 1 - np.eye(4))  # which imports what it needs
    rows = []
    for n in sizes:
        rng = np.random.default_rng(n)
        x, y = rng.standard_normal((n, 2)), 1 + 1.5 * rng.standard_normal((n, 2))
        row, exact = {"n": f"{n:,}"}, np.nan
        for name, way in WAYS.items():
            before, seconds = last.get(name, (n, 0.0))
            row[name] = ""
            if seconds * (n / before) ** GROWTH > limit:
                continue
            begin = process_time()
            try:
                value, error = way(x, y)
            except SdeflowError:  # too many points for it
                continue
            last[name] = (n, process_time() - begin)
            exact = value if name in ("network simplex", "assignment") else exact
            off = f", {value / exact - 1:+.1%}" if name == "entropic" and np.isfinite(exact) else ""
            off = f", ± {error / value:.1%}" if name == "sliced" else off
            row[name] = f"{last[name][1]:.2g} s{off}"
        rows.append(row)
        print(row, flush=True)
    return rows


def main() -> None:
    """The script."""
    options = parser(__doc__)
    options.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="points of each cloud")
    options.add_argument("--limit", type=float, default=60.0, help="seconds that one distance may take")
    given = options.parse_args()
    print(markdown(measure(given.sizes, given.limit)))


if __name__ == "__main__":
    main()
