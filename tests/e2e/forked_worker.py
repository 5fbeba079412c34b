"""A run of a study as a child of the server that it is forked from, and not of the study: see test_reproduce.py."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from studies.methods.worker import main

if __name__ == "__main__":
    job = Path(sys.argv[1])
    job.write_text(json.dumps({**json.loads(job.read_text()), "parent": os.getppid()}))
    raise SystemExit(main())
