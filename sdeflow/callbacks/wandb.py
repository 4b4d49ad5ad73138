"""What a run observes, for Weights & Biases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sdeflow.callbacks.callback import About
from sdeflow.callbacks.log import Log, Row, scalars
from sdeflow.errors import SdeflowError


@dataclass(eq=False)
class WandB(Log):
    """What is observed, for Weights & Biases.

    A metric for each observable, by name, of several replicas 'loss/0', 'loss/1', ...; NaN is left out.
    Where a run in a folder is resumed, so is that of W&B, and rows that it has are not sent again. Needs
    `pip install "sdeflow[wandb]"`.

    project, name, id   of the run at W&B; without an id one that goes with the run folder
    options             more arguments of wandb.init by name, such as entity or mode
    """

    project: str | None = None
    name: str | None = None
    id: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def begin(self, run: About) -> None:
        super().begin(run)
        try:
            import wandb
        except ImportError as error:
            raise SdeflowError(
                f'WandB needs a package that is not here ({error}): pip install "sdeflow[wandb]"'
            ) from error
        self._wandb: Any = wandb
        self._there: Any = None

    def write(self, rows: Sequence[Row]) -> None:
        if self._there is None:
            self._there = self._wandb.init(
                project=self.project,
                name=self.name,
                id=self.id or self._run.identity or None,
                resume="allow",
                config=dict(self._run.attributes),
                **self.options,
            )
        for row in rows:
            if row.step >= self._there.step:  # what a run that was killed has sent already
                self._there.log({"time": row.time, **dict(scalars(row))}, step=row.step)

    def end(self, retcode: str) -> None:
        super().end(retcode)
        if self._there is not None:
            self._there.finish(exit_code=int(retcode == "failed"))
