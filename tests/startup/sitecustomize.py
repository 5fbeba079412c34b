"""Python runs this first in every process that the tests start: the garbage collector stays out of imports and exits.

torch, transformers and TRL are 5,000 modules. While they are imported Python collects 1,500 times and finds nothing,
and at the exit once more, over all of them: 5 of the 13 seconds of a process which does nothing else. The command line
does the same for users (entropy_rft/cli/collector.py); the launchers and libraries that tests start do not.
"""

import atexit
import gc

gc.set_threshold(50_000, 20, 20)
atexit.register(gc.freeze)
