"""What pyproject.toml cannot say: an editable install leaves a regular package in site-packages.

A folder named sdeflow beside a script, such as a clone, is a namespace package to Python. It wins over the
finder that setuptools makes for an editable install, which is asked after all of sys.path; a regular package
anywhere on sys.path wins over it.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext

INIT = '''"""Made by an editable install: becomes the package in the clone."""

import sys
from importlib.util import spec_from_file_location

__spec__ = spec_from_file_location(__name__, {init!r})
__loader__, __file__, __path__ = __spec__.loader, __spec__.origin, __spec__.submodule_search_locations
__loader__.exec_module(sys.modules[__name__])
'''


class BuildExt(build_ext):
    """Builds the kernel; in an editable install, adds the package that becomes the clone's."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            package = Path(self.get_finalized_command("install").install_lib, "sdeflow")
            package.mkdir(parents=True, exist_ok=True)
            init = Path(__file__).resolve().parent / "sdeflow" / "__init__.py"
            (package / "__init__.py").write_text(INIT.format(init=str(init)), encoding="utf-8")


setup(cmdclass={"build_ext": BuildExt})
