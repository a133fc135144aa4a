"""`reconcile`, and `python -m reconciler`."""

import signal

# Until the command line is loaded there is nothing to tidy up: Ctrl-C ends it at once, without a traceback.
signal.signal(signal.SIGINT, signal.SIG_DFL)

from reconciler.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
