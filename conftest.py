"""Plain `pytest --nbval notebooks` works from any folder: pyproject.toml holds pytest's options, and the
kernels that nbval starts inherit the environment that is prepared here."""

from tests.notebook_tool import prepare_environment

prepare_environment()
