"""Entry point of `python -m retbench`."""

from retbench.cli import app

app()
