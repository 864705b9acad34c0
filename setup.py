"""The parts of the build that pyproject.toml cannot say: models/ at the top level is imported as tkpy.models;
tkpy._C is built by CMake with the host's C++ compiler (no CUDA needed); where there is an nvcc, cmake/kernels.cmake
compiles the kernels into tkpy/kernels, and where there is none, tkpy/kernels/toolchain.json says so."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


def run(*command: object) -> None:
    subprocess.run([str(part) for part in command], check=True)


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        # TKPY_BUILD_DIR keeps the objects (and libemulator.a) from one build to the next.
        build = Path(os.environ.get("TKPY_BUILD_DIR") or self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        run("cmake", *generator, "-S", ROOT, "-B", build, f"-DPython_EXECUTABLE={sys.executable}")
        run("cmake", "--build", build, "--target", "_C", "tkpy_kernels", "--parallel", "2")
        target = Path(self.get_ext_fullpath(ext.name)).resolve()  # <site>/tkpy/_C...
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(next(build.glob("_C*")), target)
        shutil.rmtree(target.parent / "kernels", ignore_errors=True)  # of an earlier build, with another nvcc
        run("cmake", "--install", build, "--prefix", target.parents[1], "--component", "kernels")

    def copy_extensions_to_source(self) -> None:
        """Editable installs: what was built goes beside the sources."""
        super().copy_extensions_to_source()
        built = Path(self.build_lib).resolve() / "tkpy" / "kernels"
        if built != ROOT / "tkpy" / "kernels":
            shutil.rmtree(ROOT / "tkpy" / "kernels", ignore_errors=True)
            shutil.copytree(built, ROOT / "tkpy" / "kernels")


setup(
    packages=[*find_packages(include=["tkpy", "tkpy.*"]), "tkpy.models"],
    package_dir={"tkpy": "tkpy", "tkpy.models": "models"},
    package_data={"tkpy": ["data/*", "py.typed"]},
    ext_modules=[Extension("tkpy._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
