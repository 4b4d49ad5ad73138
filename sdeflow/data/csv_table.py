"""A CSV of numbers, and where it holds something else."""

from __future__ import annotations

import csv
import warnings
from math import isfinite
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sdeflow.errors import SdeflowError

FINITE = "leave such rows out, or give read finite=False for a model that knows missing values"
"""What to do about NaN and infinity."""


def csv_table(path: Path, header: bool | None, finite: bool) -> NDArray[np.float64]:
    """The numbers of a CSV, float64 [rows, columns]; raises SdeflowError for others, by line and column."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            delimiter = next((sign for sign in ",;\t" if sign in first), ",")
            file.seek(0)
            names = next(csv.reader(file, delimiter=delimiter), [])
            numbers = [_number(cell) is not None for cell in names]
            if header is None and any(numbers) and not all(numbers):
                i = numbers.index(False)
                raise SdeflowError(
                    f"{path}, line 1: column {i + 1} is {names[i]!r} and no number, though others of that "
                    "line are: mend it, or say whether the line holds names, read(..., header=True) or False"
                )
            named = not any(numbers) if header is None else header
            if not named:
                file.seek(0)
            try:
                with warnings.catch_warnings():  # of a file without rows, which is refused below
                    warnings.simplefilter("ignore")
                    table = np.loadtxt(file, delimiter=delimiter, quotechar='"', comments=None, ndmin=2)
            except ValueError as error:
                raise _wrong_cell(path, delimiter, names if named else [], finite) or SdeflowError(
                    f"{path}: {error}"
                ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SdeflowError(f"{path} cannot be read as text: {error}") from None
    if not table.size:
        raise SdeflowError(f"{path} holds no numbers: rows of them were expected")
    if finite and not np.isfinite(table).all():
        raise _wrong_cell(path, delimiter, names if named else [], finite) or SdeflowError(
            f"{path} holds numbers that are not finite"
        )
    return table


def _number(cell: str) -> float | None:
    try:
        return None if "_" in cell else float(cell)
    except ValueError:
        return None


def _wrong_cell(path: Path, delimiter: str, names: list[str], finite: bool) -> SdeflowError | None:
    """The first thing that is wrong in a CSV, by its line and column; None where none is found."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, delimiter=delimiter)
        columns = len(names)
        for i, row in enumerate(rows):
            if not row or (names and i == 0):
                continue
            columns = columns or len(row)
            at = f"{path}, line {rows.line_num}"
            if len(row) != columns:
                return SdeflowError(
                    f"{at} has {len(row)} cells, and those before it {columns}: mend that line"
                )
            for k, cell in enumerate(row):
                column = f"column {k + 1}" + (f" ({names[k]})" if names else "")
                number = _number(cell)
                if number is None:
                    given = f"is {cell!r}" if cell.strip() else "is empty"
                    return SdeflowError(f"{at}: {column} {given}, and a number was expected")
                if finite and not isfinite(number):
                    return SdeflowError(f"{at}: {column} is {number:g}: {FINITE}")
    return None
