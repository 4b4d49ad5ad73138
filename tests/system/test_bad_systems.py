"""SDEs and integrators with a mistake get one clear sentence."""

import pytest
from valid import INTEGRATOR_TOML, MINE, SDE, SDE_TOML, Refused


@pytest.mark.parametrize("scheme", ["expint", "expint_shared", "nag", "obabo", "baoab", "ubu", "quicsort"])
def test_schemes_of_blocks_refuse_a_plain_sde(refused: Refused, scheme: str) -> None:
    sentence = refused("--integrator", scheme, files={"problem.toml": SDE + "h = 0.1"})
    for fragment in (f"'{scheme}'", "blocks", "These can: euler_maruyama"):
        assert fragment in sentence


@pytest.mark.parametrize(
    ("code", "fragments"),
    [
        ("Mine = 3", ["mine.py:Mine", "drift"]),
        (MINE.partition("    def diffusion")[0], ["mine.py:Mine", "no diffusion"]),
        (MINE.replace("def drift", "def drifting"), ["mine.py:Mine", "no drift"]),
        (MINE.replace("return -x", "return x.new_zeros(5)"), ["Mine.drift", "(5,)", "(1, 3, 2)"]),
        (MINE.replace("return -x", "return x[None, None]"), ["Mine.drift", "(1, 1, 1, 3, 2)", "(1, 3, 2)"]),
        (MINE.replace("return -x", "return None"), ["Mine.drift", "NoneType"]),
        (MINE.replace("return -x", "raise ValueError('boom')"), ["Mine.drift", "ValueError", "boom"]),
        (MINE.replace("self, t, x", "x"), ["Mine.drift", "TypeError"]),
        (MINE.replace("return 1.0", "return x.new_zeros(7)"), ["Mine.diffusion", "(7,)", "(1, 3, 2)"]),
        (MINE.replace("return 1.0", "return 'loud'"), ["Mine.diffusion", "str"]),
        (MINE + "    def __init__(self, rate):\n        pass\n", ["'system.rate' is missing"]),
        (MINE + "    def __init__(self):\n        1 / 0\n", ["Mine", "ZeroDivisionError"]),
    ],
)
def test_sde_with_a_mistake(refused: Refused, code: str, fragments: list[str]) -> None:
    sentence = refused(files={"problem.toml": SDE_TOML, "mine.py": code})
    for fragment in fragments:
        assert fragment in sentence


@pytest.mark.parametrize(
    ("code", "fragments"),
    [
        ("Mine = 3", ["mine.py:Mine", "sdeflow.Integrator"]),
        ("class Mine: pass", ["mine.py:Mine", "sdeflow.Integrator"]),
        ("import sdeflow\nclass Mine(sdeflow.Integrator): pass", ["Mine", "step"]),
        (
            "import sdeflow\nclass Mine(sdeflow.Integrator):\n"
            "    def __init__(self, order): pass\n    def step(self, *_): pass",
            ["Mine", "order"],
        ),
    ],
)
def test_integrator_that_is_not_one(refused: Refused, code: str, fragments: list[str]) -> None:
    sentence = refused(files={"problem.toml": INTEGRATOR_TOML, "mine.py": code})
    for fragment in fragments:
        assert fragment in sentence
