"""``python -m entropy_rft``, and what ``accelerate launch -m entropy_rft`` runs."""

from entropy_rft.cli.main import main

raise SystemExit(main())
