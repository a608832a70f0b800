"""`python -m guardcore` is the command line."""

from guardcore.cli import app

app()
