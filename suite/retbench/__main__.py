"""Entry point of `python -m retbench`."""

from retbench.cli import app

app(prog_name="retbench")  # the completion of the shell is installed for this name
