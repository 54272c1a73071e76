"""The command line. Each command imports what it needs when it runs, so that ``--help`` is immediate."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from flowrl.cli.algorithms import algorithms
from flowrl.cli.checkpoints import checkpoints
from flowrl.cli.compare import compare
from flowrl.cli.config import show_config
from flowrl.cli.doctor import doctor
from flowrl.cli.eval import evaluate
from flowrl.cli.export import export
from flowrl.cli.judge import judge
from flowrl.cli.push import push
from flowrl.cli.report import report
from flowrl.cli.reproduce import reproduce
from flowrl.cli.rewards import rewards, test_reward
from flowrl.cli.sample import sample
from flowrl.cli.train import train
from flowrl.cli.tune import tune
from flowrl.cli.watch import watch
from flowrl.errors import UserError, limit_of, printable
from flowrl.launcher import forget, is_first, launch, watch_the_start
from flowrl.remote.command import reward_server
from flowrl.runtime.streams import survive_closed_streams
from flowrl.version import __version__

app = typer.Typer(
    name="flowrl",
    help="Fine-tune generative models with reinforcement learning.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
COMMANDS = {
    "train": train,
    "config": show_config,
    "eval": evaluate,
    "sample": sample,
    "export": export,
    "push": push,
    "report": report,
    "reproduce": reproduce,
    "watch": watch,
    "judge": judge,
    "doctor": doctor,
    "tune": tune,
    "algorithms": algorithms,
    "checkpoints": checkpoints,
    "rewards": rewards,
    "test-reward": test_reward,
    "compare": compare,
    "reward-server": reward_server,
}
for _name, _command in COMMANDS.items():
    app.command(_name)(_command)


def main() -> None:
    """Entry point: a user's mistake, or a machine's limit, is one sentence and exit code 2; a bug keeps its
    traceback."""
    warnings.formatwarning = _warned
    usage_error: Any = typer.BadParameter.__bases__[0].__bases__[0]  # click's, wherever this typer keeps it
    with survive_closed_streams():
        try:
            _leave_to_rank_0(sys.argv[1:])
            code = app(standalone_mode=False)
        except UserError as error:
            _fail(str(error))
        except usage_error as error:
            if not error.format_message():  # no command was named, and typer has shown the help
                sys.exit(2)
            _fail(error.format_message())
        except (typer.Abort, KeyboardInterrupt) as stopped:
            if _speaks():
                print(": ".join(["interrupted", *map(str, stopped.args)]), file=sys.stderr)
            sys.exit(130)
        except (OSError, MemoryError, RuntimeError) as error:
            limit = limit_of(error)
            if limit is None:
                raise
            _fail(limit)
        else:
            sys.exit(code if isinstance(code, int) else 0)


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=lambda wanted: _tell_version(wanted), help="Print the version.")
    ] = False,
) -> None: ...


def _tell_version(wanted: bool) -> None:
    if wanted:
        print(f"flowrl {__version__}")
        raise typer.Exit


def _warned(message: Warning | str, category: type[Warning], file: str, line: int, code: str | None = None) -> str:
    """Our own warnings are sentences for users; those of libraries keep their place in the code."""
    where = "" if category is UserWarning and "flowrl" in Path(file).parts else f"{file}:{line}: {category.__name__}: "
    return f"warning: {where}{printable(str(message))}\n"


def _fail(message: str) -> None:
    if _speaks():
        from flowrl.runtime.display import print_error

        print_error(message)
    else:
        time.sleep(1.0)  # once a process has ended a launcher ends the others, and rank 0 is about to say it
    sys.exit(2)


def _speaks() -> bool:
    """Whether this process is the one of its launcher's that talks to the terminal."""
    try:
        return is_first()
    except UserError:
        return True


def _leave_to_rank_0(words: Sequence[str]) -> None:
    """Only training runs in several processes. Of any other command the others end here, and rank 0 says so."""
    command = next((word for word in words if not word.startswith("-")), "")
    asks = bool({"--help", "--version", "--dry-run"} & set(words))
    if command == "train" and not asks:
        watch_the_start()
        return
    if not _speaks():
        sys.exit(0)
    with suppress(UserError):
        found = launch()
        if found is not None and command and not asks:
            print(f"flowrl {command} runs in one process: rank 0 of {found.size} does it alone", file=sys.stderr)
    forget()
