"""The reward server: scores for trainers on other machines (``use: http://host:port/NAME``)."""

from __future__ import annotations

from pathlib import Path

from flowrl.clients import require


def serve(config: Path, host: str, port: int, token_file: Path | None) -> None:
    """Score for others until interrupted. Raises `UserError` before listening if anything does not fit."""
    for package in ("fastapi", "uvicorn"):
        require(package, "server", "reward-server")
    from flowrl.remote.server import run

    run(config, host, port, token_file)
