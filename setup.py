"""What pyproject.toml cannot say: the small trained pipelines of ``data/models`` travel inside the wheel."""

from pathlib import Path
from shutil import copytree

from setuptools import setup
from setuptools.command.build_py import build_py

TRAINED = ("tiny-sd", "tiny-sd-clip")


class BuildWithModels(build_py):
    """Copies the packages, and the trained models beside them (see ``salun_core.paths.models_folder``)."""

    def run(self) -> None:
        """Build; an editable installation finds the models where they lie."""
        super().run()
        if not self.editable_mode:
            for name in TRAINED:
                copytree(
                    Path("data/models") / name,
                    Path(self.build_lib) / "salun_core" / "shipped" / "data" / "models" / name,
                    dirs_exist_ok=True,
                )


setup(cmdclass={"build_py": BuildWithModels})
