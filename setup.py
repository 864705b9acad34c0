"""The parts of the build that pyproject.toml cannot say: models/ at the top level is imported as tkpy.models."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["tkpy", "tkpy.*"]), "tkpy.models"],
    package_dir={"tkpy": "tkpy", "tkpy.models": "models"},
    package_data={"tkpy": ["data/*", "py.typed"]},
)
