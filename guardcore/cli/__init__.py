"""The command line, one file a group of commands; `app` is the program."""

from guardcore.cli.commands import app as app
