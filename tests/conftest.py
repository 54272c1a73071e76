"""What all tests share."""

import signal

# A shell without job control starts its background jobs with SIGINT ignored, and what pytest starts would inherit it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
