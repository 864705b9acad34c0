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


# cmake and ninja as Python packages lie beside the interpreter, which need not be on PATH.
TOOLS = os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])


def run(*command: object) -> None:
    program = shutil.which(str(command[0]), path=TOOLS)
    if program is None:
        raise SystemExit(f"tkpy is built by {command[0]}, which is not here: pip install {command[0]}")
    subprocess.run([program, *map(str, command[1:])], check=True, env={**os.environ, "PATH": TOOLS})


def replace_file(source: Path, target: Path) -> None:
    """A copy under another name, then a rename: a running Python keeps the library that it has mapped."""
    part = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copy2(source, part)
    os.replace(part, target)


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        # TKPY_BUILD_DIR keeps the objects (and libemulator.a) from one build to the next.
        build = Path(os.environ.get("TKPY_BUILD_DIR") or self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        ninja = shutil.which("ninja", path=TOOLS)  # said each time: the last one may have lived in an isolated build
        generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
        run("cmake", *generator, "-S", ROOT, "-B", build, f"-DPython_EXECUTABLE={sys.executable}")
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or os.cpu_count() or 1
        run("cmake", "--build", build, "--target", "_C", "tkpy_kernels", "--parallel", jobs)
        target = Path(self.get_ext_fullpath(ext.name)).resolve()  # <site>/tkpy/_C...
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_file(build / target.name, target)
        shutil.rmtree(target.parent / "kernels", ignore_errors=True)  # of an earlier build, with another nvcc
        run("cmake", "--install", build, "--prefix", target.parents[1], "--component", "kernels")
        if not (self.inplace or self.editable_mode):  # beside the sources the images stay as they are
            run(sys.executable, ROOT / "cmake/pack_kernels.py", target.parent / "kernels")

    def copy_extensions_to_source(self) -> None:
        """Editable installs: what was built goes beside the sources."""
        built = Path(self.build_lib).resolve() / "tkpy"
        for library in built.glob("_C*"):
            replace_file(library, ROOT / "tkpy" / library.name)
        kernels = built / "kernels"
        if kernels != ROOT / "tkpy" / "kernels":
            shutil.rmtree(ROOT / "tkpy" / "kernels", ignore_errors=True)
            shutil.copytree(kernels, ROOT / "tkpy" / "kernels")


setup(
    packages=[*find_packages(include=["tkpy", "tkpy.*"]), "tkpy.models"],
    package_dir={"tkpy": "tkpy", "tkpy.models": "models"},
    package_data={"tkpy": ["data/*", "bench/published/*.json", "py.typed"]},
    ext_modules=[Extension("tkpy._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
