"""Run a sidecar as a process: options, token, exit codes.

Exit codes: 0 stopped on request · 1 failed · 2 usage · 78 configuration or model file (starting
again would not help; the supervisor does not try).
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import threading
from collections.abc import Sequence

from brain.errors import EXIT_CONFIG, EXIT_FAILED_CHECK, ConfigError, LimbicError
from sidecars.process import ParentLine, die_with_parent, install_stack_dump, take_managed_token
from sidecars.serve import ServeOptions, SidecarServer
from sidecars.service import Service


def main(service_type: type[Service], argv: Sequence[str] | None = None) -> int:
    """Run one sidecar as a process; returns its exit code."""
    install_stack_dump()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    args = _parser(service_type).parse_args(argv)
    managed = take_managed_token()
    if managed:
        die_with_parent()
    line = ParentLine(service_type.name, managed=managed is not None)
    try:
        options = ServeOptions(
            host=args.host,
            port=_port(args, 0 if managed else service_type.default_port),
            token=managed or _token(args),
            managed=managed is not None,
            allow_hosts=frozenset(args.allow_host),
            drain_s=args.drain_s,
        )
        service = service_type.from_args(args)
        code = asyncio.run(SidecarServer(service, options, line).run())
    except LimbicError as error:
        print(f"{service_type.name}: {error}", file=sys.stderr)
        code = error.exit_code if error.exit_code == EXIT_CONFIG else EXIT_FAILED_CHECK
    sys.stderr.flush()
    if any(t.daemon and t is not threading.current_thread() for t in threading.enumerate()):
        os._exit(code)  # a model is still loading in C code; tearing the interpreter down is unsafe
    return code


def _parser(service_type: type[Service]) -> argparse.ArgumentParser:
    module = f"sidecars.{service_type.name}"
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=service_type.description,
        epilog=f"example: python -m {module} --port {service_type.default_port}",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument(
        "--port", type=int, help=f"0 picks a free one (default {service_type.default_port})"
    )
    parser.add_argument("--token", help="ask for this bearer token (visible to other processes)")
    parser.add_argument("--token-env", metavar="NAME", help="ask for the token in this variable")
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="accept this Host header"
    )
    parser.add_argument(
        "--drain-s", type=float, default=3.0, help="seconds that requests get to finish on SIGTERM"
    )
    service_type.add_arguments(parser)
    return parser


def _port(args: argparse.Namespace, default: int) -> int:
    return default if args.port is None else int(args.port)


def _token(args: argparse.Namespace) -> str | None:
    if args.token_env is None:
        return args.token or None
    token = os.environ.pop(args.token_env, "")
    if not token:
        raise ConfigError(f"--token-env {args.token_env}: that variable is not set")
    return token
