"""What all tests share."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

# Under nohup, or as a background job of a shell without job control, these are ignored, and so would they be in the
# runs that tests start and send them to. A handler is not passed on to those.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda number, frame: None)


@pytest.fixture(scope="session", autouse=True)
def lean_processes() -> Iterator[None]:
    """Processes start without what tests of whole runs do not need (`tests/lean`)."""
    with pytest.MonkeyPatch.context() as patch:  # not where xdist starts its workers, which need everything
        paths = [str(Path(__file__).with_name("lean")), os.environ.get("PYTHONPATH")]
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        yield
