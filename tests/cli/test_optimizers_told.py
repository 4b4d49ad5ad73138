"""An optimizer on the command line: in the catalogue, in what a problem is, in a run's configuration."""

from pathlib import Path

import pytest
import xarray as xr
from commands import Cli

from sdeflow.config.catalogue import entries


@pytest.fixture
def cli(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    """Calls the command from a folder of its own, on a wide terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    return cli


def test_the_catalogue_has_them(cli: Cli) -> None:
    out = cli("list").out
    table = out[out.index("Optimizers") : out.index("Models")]
    assert all(f"\n{name} " in table for name in entries("optimizers"))
    assert "betas=(0.98, 0.92, 0.99), eps=1e-08, weight_decay=0.0" in table
    out = cli("list", "adabelief", "rmsprop").out
    for part in ("adabelief, optimizer", "options: betas=(0.9, 0.999)", "arXiv:2010.07468", "v = alpha v"):
        assert part in out


def test_a_block_shows_its_equations(cli: Cli) -> None:
    out = cli("show", "hierarchical", "--system", "pgd", "--set", "system.theta.optimizer=adamw").out
    for line in (
        "adamw(betas=(0.9, 0.999), eps=1e-08,",  # which a narrow terminal folds here
        "weight_decay=0.01)",
        "v ← β₂ v + (1−β₂) f_theta²",
        "theta ← (1−hλ) theta − h m̂ / (√v̂ + ε)",
        "dX = f_x dt + √(2T) dW",
    ):
        assert line in out


def test_a_run_is_told_by_its_optimizer_and_gives_the_same_again(cli: Cli) -> None:
    """From its own config.toml too; Python's defaults and a table's options are in the provenance."""
    table = 'system.theta.optimizer={name="adan", betas=[0.9, 0.8, 0.95]}'
    run = (
        "run",
        "hierarchical",
        "--system",
        "pgd",
        "--set",
        table,
        "--set",
        "model.data=4",
        "--steps",
        20,
        "-q",
    )
    assert cli(*run, "--out", "a").code == 0
    assert 'name = "adan"' in Path("a/config.toml").read_text()
    assert cli("run", "a/config.toml", "-q", "--out", "b").code == 0
    with xr.open_dataset("a/trajectory.nc") as a, xr.open_dataset("b/trajectory.nc") as b:
        assert (
            "theta: adan(betas=(0.9, 0.8, 0.95), eps=1e-08, weight_decay=0.0), h=0.0001" in a.attrs["system"]
        )
        assert a.theta.equals(b.theta)
    assert "xie2024adan" in cli("cite", "a").out
    code, _, err = cli("stability", "hierarchical", "--system", "pgd", "--set", "system.theta.optimizer=adam")
    assert code == 2
    assert err.startswith(
        "sdeflow: stability is that of blocks that move by an SDE, and the optimizer 'adam'"
    )


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("adma", "unknown optimizer 'adma': did you mean 'adam"),
        ("7", "an optimizer is a name, or a table as {name = 'adam', betas = [0.9, 0.99]}; given 7"),
        ("{name='adam', lr=0.1}", "optimizer 'adam' takes no lr: the learning rate is the block's h"),
    ],
)
def test_a_mistake_is_a_sentence(cli: Cli, given: str, sentence: str) -> None:
    code, out, err = cli(
        "run", "hierarchical", "--system", "pgd", "--set", f"system.theta.optimizer={given}", "-q"
    )
    assert (code, out) == (2, "")
    assert sentence in err
    assert err.count("\n") == 1
    assert not Path("runs").exists()
