"""`entropy-rft serve`: the router, in front of any server with OpenAI's or Anthropic's protocol."""

from __future__ import annotations

import argparse
from typing import Any

from entropy_rft.cli.flags import path
from entropy_rft.errors import UserValueError

# The settings that have one value; the others are for the file and the environment. A test compares them with
# RouterSettings, which is not imported here: the help of every verb must not wait for pydantic.
FLAGS: dict[str, str] = {
    "host": "address to listen on (default: 127.0.0.1)",
    "port": "0 chooses a free one (default: 8000)",
    "probe": "directory of a probe, or embedded",
    "model": "model whose tokenizer and hidden states are used (default: the probe's base model)",
    "force_probe": "use the probe with another model than its own: true or false",
    "served_model_name": "the backends' name of the model; replaces a request's",
    "strategies": "YAML file of strategies (default: the probe's)",
    "placement": "of an instruction: system, or user_end, the end of the last user message (default: the probe's)",
    "backends": "addresses, separated by commas (default: the embedded model answers)",
    "affinity": "conversation: its turns go to one backend; none: fewest outstanding requests (default: none)",
    "mode": "route, or shadow: decide and measure, but change no request (default: route)",
    "rollout": "share of the conversations that get strategies (default: 1)",
    "rollout_salt": "another text chooses other conversations (default: empty)",
    "min_confidence": "below it the probe's choice is Normal (default: 0.5)",
    "max_tokens": "budget of an answer where a client gives none (default: the backends' context length)",
    "client_max_tokens": "meaning of a client's limit: override or budget (default: override)",
    "client_reasoning_effort": "override: a client's is passed on; difficulty: it chooses one (default: override)",
    "keep_difficulty": "whether an agent's turn keeps its highest difficulty (default: true)",
    "ready_needs_features": "whether /ready is 503 while the feature source is down (default: true)",
    "reload": "load probe and strategies again: signal (SIGHUP), watch (also changed files) or off (default: signal)",
    "tracing": "OpenTelemetry spans, configured by OTEL_ variables; needs the extra otel (default: false)",
    "cors_origins": "origins of web pages that may call, separated by commas (default: none)",
    "log_prompts": "write each request's messages to the log (default: false)",
    "log_requests": "write a line for each request (default: false)",
    "log_format": "json or text (default: json)",
    "log_level": "debug, info, warning or error (default: info)",
    "request_id_header": "(default: x-request-id)",
    "workers": "processes that answer requests (default: 1)",
    "drain_s": "seconds that requests in progress may take after SIGTERM (default: 300)",
    "drain_delay_s": "seconds that new requests are still accepted after SIGTERM (default: 0)",
}


def add_parser(subparsers: Any) -> None:
    """Register the verb."""
    parser = subparsers.add_parser(
        "serve",
        help="route each question to the strategy for its difficulty: --config router.yaml",
        description=(
            "Serve OpenAI's and Anthropic's protocols in front of one or several backends: a probe estimates each "
            "question's difficulty, and the request gets its strategy. Without configuration the embedded model "
            "answers. The environment (ENTROPY_RFT_ROUTER_PORT, ENTROPY_RFT_ROUTER_LIMITS__MAX_BODY_BYTES, ...) "
            "overrides the file, and flags override both."
        ),
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", type=path, metavar="FILE", help="YAML of the settings, such as recipes/router/router.yaml"
    )
    parser.add_argument("--check", action="store_true", help="check the configuration, and exit")
    for name, text in FLAGS.items():
        parser.add_argument(f"--{name}", metavar="VALUE", help=text)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve, or only check.

    Raises:
        ValueError: a setting is wrong, something that it names cannot be loaded, or a package is missing; one line.
    """
    try:
        from entropy_rft.router.reloading import Reading
        from entropy_rft.router.serve import check, serve
        from entropy_rft.router.settings import load_settings
    except ImportError as error:
        raise UserValueError(f'the router needs {error.name}: pip install "entropy_rft[router]"') from error

    overrides = {name: value for name in FLAGS if (value := getattr(args, name)) is not None}
    settings = load_settings(args.config, overrides)
    if not args.check:
        return serve(settings, Reading(lambda: load_settings(args.config, overrides), args.config))
    check(settings)
    print("the configuration is valid")
    return 0
