"""The command ``flowrl reward-server``; nothing is imported until it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def reward_server(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file with rewards, such as a run's.")],
    host: Annotated[str, typer.Option(help="Address to listen on; beyond loopback a token is needed.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 0,
    token_file: Annotated[Path | None, typer.Option(help="File with the token [default: $FLOWRL_TOKEN].")] = None,
) -> None:
    """Score for other machines. Example: `flowrl reward-server configs/quickstart.yaml --port 8770`"""
    from flowrl.remote import serve

    serve(config, host, port, token_file)
