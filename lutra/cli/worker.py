# SPDX-License-Identifier: MIT
"""``lutra worker``: lend this machine to a model that runs on several (ggml's RPC server)."""

from __future__ import annotations

import argparse
import socket

from gguf_tools.errors import LutraError
from lutra.cli.arguments import positive
from lutra.console import warn
from lutra.runtime import kernels
from lutra.runtime.threads import checked_threads
from lutra.runtime.tools import run_tool
from lutra.runtime.workers import HOST, PORT

EPILOG = f"""\
Another machine's 'lutra chat FILE --rpc HOST:PORT,...' sends some of the model's layers here, and this
machine computes them. It needs no copy of the file. One program at a time is served.

Nobody else can connect unless --host is an address of this machine (0.0.0.0: all of them). The protocol has
no password and no encryption: whoever reaches the port can do with this process what he likes. Use it in a
network of your own.

examples:
  lutra worker
  lutra worker --host 192.168.1.12 --port {PORT}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    add = parser.add_argument
    add("--host", default=HOST, metavar="A", help=f"address of this machine to listen on (default: {HOST})")
    add("--port", type=positive, default=PORT, metavar="N", help=f"default: {PORT}")
    add("--threads", type=positive, metavar="N", help="default: the fast physical cores")
    add(
        "--cache",
        action="store_true",
        help="keep large tensors on disk, for the next time (~/.cache/llama.cpp/rpc)",
    )


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted."""
    host = listening(args.host, args.port)
    threads = checked_threads(args.threads)
    chosen = kernels.sets()["chosen"]
    if not host.startswith("127."):
        warn("no password, no encryption: whoever reaches this port can use this process; see --help")
    print(
        f"worker on {host}:{args.port}, {threads} threads, kernels: {', '.join(chosen)}; Ctrl-C ends it",
        flush=True,
    )
    options = ["--host", host, "--port", str(args.port), "--threads", str(threads)]
    try:
        run_tool("ggml-rpc-server", options + ["--cache"] * args.cache, report)
    except (KeyboardInterrupt, SystemExit):  # Ctrl-C and kill are how it ends
        return 0
    raise LutraError(f"the worker on {host}:{args.port} ended; start it again")


def listening(host: str, port: int) -> str:
    """The IPv4 address of ``host``. Raises LutraError when nothing can listen there."""
    try:
        address = socket.gethostbyname(host)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise LutraError(f"{host}:{port}: {reason}; see --host and --port") from None
    return address


def report(output: str) -> None:
    """Say who comes and goes, of all that the server prints."""
    for line in output.splitlines():
        if line.startswith("Accepted client"):
            print("connected", flush=True)
        elif line.startswith("Client connection closed"):
            print("disconnected", flush=True)
