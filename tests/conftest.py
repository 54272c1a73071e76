"""What all tests share."""

import signal

# Under nohup, or as a background job of a shell without job control, these are ignored, and so would they be in the
# runs that tests start and send them to. A handler is not passed on to those.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda number, frame: None)
