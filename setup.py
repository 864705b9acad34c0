"""The parts of the build that pyproject.toml cannot say: models/ at the top level is imported as tkpy.models, and
tkpy._C is built by CMake with the host's C++ compiler (no CUDA needed)."""

import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        source = Path(__file__).parent.resolve()
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        subprocess.run(
            ["cmake", *generator, "-S", source, "-B", build, f"-DPython_EXECUTABLE={sys.executable}"], check=True
        )
        subprocess.run(["cmake", "--build", build, "--target", "_C", "--parallel", "2"], check=True)
        built = next(build.glob("_C*"))
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(built, target)


setup(
    packages=[*find_packages(include=["tkpy", "tkpy.*"]), "tkpy.models"],
    package_dir={"tkpy": "tkpy", "tkpy.models": "models"},
    package_data={"tkpy": ["data/*", "py.typed"]},
    ext_modules=[Extension("tkpy._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
