"""The command line. Each command imports what it needs when it runs, so that ``--help`` is immediate."""

from __future__ import annotations

import errno
import sys
import warnings
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
from flowrl.cli.report import report
from flowrl.cli.rewards import rewards, test_reward
from flowrl.cli.sample import sample
from flowrl.cli.train import train
from flowrl.errors import UserError, first_line, is_out_of_memory, printable, shorten
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
    "report": report,
    "doctor": doctor,
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
            code = app(standalone_mode=False)
        except UserError as error:
            _fail(str(error))
        except usage_error as error:
            if not error.format_message():  # no command was named, and typer has shown the help
                sys.exit(2)
            _fail(error.format_message())
        except (typer.Abort, KeyboardInterrupt) as stopped:
            print(": ".join(["interrupted", *map(str, stopped.args)]), file=sys.stderr)
            sys.exit(130)
        except (OSError, MemoryError, RuntimeError) as error:
            limit = limited(error)
            if limit is None:
                raise
            _fail(limit)
        else:
            sys.exit(code if isinstance(code, int) else 0)


DISK = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG, errno.ENOTDIR)
DISK += (errno.EISDIR, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ESTALE)
"""What the system says of a file that is the user's to mend, and not a bug of ours."""


def limited(error: OSError | MemoryError | RuntimeError) -> str | None:
    """The sentence for a file that the system refuses, and for memory that ran out; None for any other error."""
    if isinstance(error, OSError) and error.errno in DISK and error.filename:
        return f"{shorten(str(error.filename), 200)}: {error.strerror}"
    if isinstance(error, MemoryError):
        return "out of memory; use a smaller model or a machine with more"
    if is_out_of_memory(error):
        return f"out of memory; use a smaller model, fewer samples at once, or another device ({first_line(error)})"
    return None


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
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True).print(Text(printable(f"error: {message}"), style="red"), soft_wrap=True)
    sys.exit(2)
