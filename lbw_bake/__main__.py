"""`lbw`, and `python -m lbw_bake`: the command line, which Ctrl-C ends without a word even while it is loaded."""

from __future__ import annotations

import gc
import signal


def main() -> None:
    """Load the command line and run it."""
    # A bake makes many small values and no cycles: looking for some would find none, for a tenth of its time.
    gc.set_threshold(200_000)
    interrupt = signal.getsignal(signal.SIGINT)
    if interrupt is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from .cli import main as run

    signal.signal(signal.SIGINT, interrupt)
    try:
        run()
    finally:
        gc.freeze()  # or the interpreter would look at everything once more as it ends


if __name__ == "__main__":
    main()
