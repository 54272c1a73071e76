"""``flowrl config``: every key of a config, its value and what it means."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from flowrl.cli.options import ConfigFile, Overrides
from flowrl.cli.printing import print_table, say


def show_config(
    config: ConfigFile,
    overrides: Overrides = None,
    as_yaml: Annotated[bool, typer.Option("--yaml", help="Print the resolved config as YAML.")] = False,
) -> None:
    """Show every key with its value and meaning. Example: `flowrl config configs/quickstart.yaml --yaml`"""
    from flowrl.config import Config
    from flowrl.startup.preflight import check_run

    loaded = Config.load(config, overrides or [])
    loaded = check_run(loaded).config
    if as_yaml:
        say(loaded.to_yaml().rstrip("\n"))
        return
    from flowrl.commands.config import algorithm_lines
    from flowrl.config.listing import config_lines, config_table

    options = algorithm_lines(loaded.algorithm)
    if sys.stdout.isatty():
        rows = [[line.key, line.value, line.origin, line.meaning] for line in config_lines(loaded, options)]
        print_table(["key", "value", "from", "meaning"], rows)
    else:
        say(config_table(loaded, options))
