"""BibTeX for what a run used: references.bib has all references, and texts name them by authors and year.

A scheme, a published system and a data set have such a text in `source`, a model in its docstring.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from sdeflow.config import catalogue
from sdeflow.config.schema import Config, load_config
from sdeflow.data.datasets import DATASETS
from sdeflow.errors import SdeflowError, did_you_mean
from sdeflow.system.published import Declaration
from sdeflow.system.rule import RMSProp
from sdeflow.terminal import shown
from sdeflow.trajectory.layout import CONFIG

OWN = "sdeflow"
"""The key of what is cited in any case."""


class Reference(NamedTuple):
    """An entry of references.bib: its BibTeX, and by what a text names it."""

    key: str
    bibtex: str
    surname: str
    year: str
    eprint: str

    def named_in(self, text: str) -> bool:
        """Whether a text has the first author, maybe others, and the year; or the number on arXiv."""
        others = r"(?:, [\w-]+| et al\.)*"
        by_name = re.search(rf"\b{re.escape(self.surname)}{others} {self.year}\b", " ".join(text.split()))
        return bool(by_name or (self.eprint and self.eprint in text))


class Use(NamedTuple):
    """Something that was used, and the text that says where it comes from."""

    name: str
    source: str


@cache
def references() -> list[Reference]:
    """All entries of references.bib."""
    text = (files("sdeflow") / "references.bib").read_text(encoding="utf-8")
    return [
        _reference(entry.strip()) for entry in re.split(r"^(?=@)", text, flags=re.MULTILINE) if entry.strip()
    ]


def bibtex(names: list[str]) -> str:
    """BibTeX for what names of the catalogue, TOML files and run folders use, and for sdeflow itself.

    Raises SdeflowError for what is none of those.
    """
    users: dict[str, list[str]] = {}
    unknown: list[str] = []
    for use in dict.fromkeys(use for name in names for use in _uses(name)):
        found = [reference.key for reference in references() if reference.named_in(use.source)]
        for key in found:
            users.setdefault(key, []).append(use.name)
        if not found:
            told = use.source if use.source and "\n" not in use.source else "no reference is known"
            unknown.append(_comment(shown(f"{use.name}: {told}")))
    parts = [f"{_comment(', '.join(users[r.key]))}{r.bibtex}" for r in references() if r.key in users]
    parts += [r.bibtex for r in references() if r.key == OWN]
    return "".join(unknown) + "\n\n".join(parts)


def _reference(entry: str) -> Reference:
    fields = dict(re.findall(r"^  (\w+) = \{(.*)\},?$", entry, flags=re.MULTILINE))
    surname = fields["author"].replace(r"{\i}", "i").partition(",")[0].split()[-1]
    key = entry.partition("{")[2].partition(",")[0]
    return Reference(key, entry, surname, fields["year"], fields.get("eprint", ""))


def _comment(text: str) -> str:
    """A line that BibTeX passes over: anything that begins no entry."""
    return f"% {text.replace('@', ' at ')}\n"


def _uses(name: str) -> Iterator[Use]:
    """What a name stands for; raises SdeflowError for none."""
    path = Path(name).expanduser()
    if path.is_dir():
        yield from _of_folder(path)
    elif path.suffix == ".toml":
        yield from _of_config(load_config(catalogue.problem_file(name)))
    else:
        groups = {group: catalogue.entries(group) for group in catalogue.GROUPS}
        problems = catalogue.problem_files()
        if name in problems:
            yield from _of_config(load_config(problems[name]))
        for group, entries in groups.items():
            if name in entries:
                yield _use(group, name)
        known = {*problems, *(n for entries in groups.values() for n in entries)}
        if name not in known:
            raise SdeflowError(
                f"'{name}' is no integrator, system, optimizer, model or problem, and no run folder: "
                f"{did_you_mean(name, known)}"
            )


def _of_folder(folder: Path) -> Iterator[Use]:
    if (folder / CONFIG).is_file():
        yield from _of_config(load_config(folder / CONFIG))
        return
    from sdeflow.trajectory.opening import open_run

    with open_run(folder) as run:  # from Python, which does not tell its model
        yield _use("integrators", str(run.attrs["integrator"]))
        yield from _of_noise(str(run.attrs["noise_source"]))


def _of_config(config: Config) -> Iterator[Use]:
    if config.run.integrator != "auto":
        yield _use("integrators", _name(config.run.integrator))
    yield _use("systems", config.system.use)
    if any(isinstance(b, Mapping) and b.get("precondition") for b in config.system.arguments.values()):
        yield Use(RMSProp.name, RMSProp.source)
    for block in config.system.arguments.values():
        if isinstance(block, Mapping) and (given := block.get("optimizer")):
            yield _use("optimizers", _name(given))
    if config.model is not None:
        yield _use("models", config.model.use)
        if config.model.energy_prior is not None:
            yield Use("energy_prior", _docstring("sdeflow.model.energy_prior:EnergyPrior"))
        for value in config.model.arguments.values():
            if isinstance(value, str) and value in DATASETS:
                yield Use(value, DATASETS[value].source)
    yield from _of_noise(config.run.noise)


def _name(given: str | Mapping[str, Any]) -> str:
    """The name in a name, or in a table of it and options."""
    return given if isinstance(given, str) else given["name"]


def _of_noise(source: str) -> Iterator[Use]:
    if source == "philox":
        yield Use("philox", "Salmon, Moraes, Dror, Shaw 2011")


def _use(group: catalogue.Group, name: str) -> Use:
    """What a name of the catalogue says of its source. No file of a user is run, and no model loaded."""
    known = catalogue.entries(group)
    spec = name if ".py:" in name else known[name].value if name in known else ""
    if ".py:" in name or group == "models":
        return Use(name, _docstring(spec))
    try:
        found = catalogue.find(group, name)
    except SdeflowError:  # of a scheme from Python, or of a package that is not here
        return Use(name, "")
    told = group in ("integrators", "optimizers") or isinstance(found, Declaration)
    return Use(name, found.source if told else _docstring(spec))


def _docstring(spec: str) -> str:
    """The docstring of 'module:Name' or 'file.py:Name', read without running it; '' for none."""
    where, _, name = spec.rpartition(":")
    module = None if where.endswith(".py") else find_spec(where)
    file = Path(where if module is None else module.origin or "")
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return ""
    kinds = (ast.ClassDef, ast.FunctionDef)
    documented = (node for node in tree.body if isinstance(node, kinds) and node.name == name)
    return next((ast.get_docstring(node) or "" for node in documented), "")
