# SPDX-License-Identifier: MIT
"""``lutra serve``: a model for a browser and for the programs that speak the usual protocols."""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import os
import re
import secrets
import socket
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from gguf_tools.errors import LutraError
from gguf_tools.sources.hub import local_gguf
from lutra.cli.arguments import add_cache_types, add_forced, add_rpc, force, positive
from lutra.console import mib, say, warn
from lutra.runtime.context import Context, choose_context
from lutra.runtime.page import write_page
from lutra.runtime.probe import require_loadable
from lutra.runtime.server import require_port, running
from lutra.runtime.threads import checked_threads
from lutra.runtime.workers import tool_arguments

PASSES_ON = True  # what follows -- goes to llama-server

_ERROR = re.compile(r"[\d.]+ E \w+ +(?:\w+: )?(.*)")  # in llama-server's log
_TIMEOUT = 120  # seconds without a byte after which a connection is given up

EPILOG = """\
Serves a page to chat in, and OpenAI's (chat completions, responses) and Anthropic's (messages) protocols.
Only this machine can reach it, unless --host says otherwise. Ctrl-C or SIGTERM stops it.
Options after -- go to llama-server; llama-server's --help lists them.

examples:
  lutra serve tiny-chat-cb4.gguf
  lutra serve org/model-GGUF:cb4 --port 9000
  lutra serve model-cb4.gguf --host 0.0.0.0 --api-key SECRET --ctk q8_0 --ctv q8_0
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    add = parser.add_argument
    own = "this machine only"
    fits = "the model's, at most 32768, as memory allows"
    add("file", metavar="FILE", type=Path, help="GGUF file, or ORG/MODEL[:TYPE] of the hub")
    add(
        "--host",
        default="127.0.0.1",
        metavar="H",
        help=f"where to listen, 0.0.0.0: everywhere (default: {own})",
    )
    add("--port", type=_port, default=8080, metavar="N", help="0 takes one that is free (default: 8080)")
    add("--api-key", metavar="KEY", help="what clients must send (default: LLAMA_API_KEY, or none)")
    add("--ctx", type=positive, metavar="N", help=f"context of a conversation in tokens (default: {fits})")
    add_cache_types(add)
    add("--parallel", type=positive, default=4, metavar="N", help="conversations at once (default: 4)")
    add("--threads", type=positive, metavar="N", help="default: the fast physical cores")
    add_forced(add)
    add_rpc(add)
    add("--verbose", action="store_true", help="show llama-server's log")


def run(args: argparse.Namespace) -> int:
    """Serve until a signal comes, which is success."""
    force(planes=args.planes, layers=args.layers)
    key = os.environ.get("LLAMA_API_KEY") if args.api_key is None else args.api_key
    if args.api_key is not None and (not key or not key.isprintable() or key != key.strip()):
        raise LutraError("the API key is empty, or has spaces around it; give another one with --api-key")
    require_port(args.host, args.port)
    file = require_loadable(local_gguf(args.file))
    threads = checked_threads(args.threads)
    context = choose_context(file, args.parallel, args.ctx, (args.ctk, args.ctv))
    if not key and not _is_own(args.host):
        warn(
            "everybody who reaches this machine can use the model; "
            f"ask for a key, for example --api-key {secrets.token_urlsafe(12)}"
        )
    if context.nbytes > context.free - context.weights:
        warn(f"the context takes {_gib(context.nbytes)} of {_gib(context.free)}; see --ctx and --parallel")
    if sys.stderr.isatty():
        say(f"loading {file.name}")
    with tempfile.TemporaryDirectory(prefix="lutra-page-") as page:
        write_page(Path(page))
        arguments = [
            *("--model", str(file), "--alias", file.stem, "--path", page),
            *("--host", args.host, "--port", str(args.port), "--timeout", str(_TIMEOUT)),
            *("--threads", str(threads), "--parallel", str(args.parallel), "--kv-unified"),
            *("--ctx-size", str(context.total), "--kv-unified-per-slot", str(context.tokens)),
            *("--cache-ram", str(context.cache >> 20), "--fit", "off"),
            *("--cache-type-k", args.ctk, "--cache-type-v", args.ctv),
            "--no-repack",  # weights stay where they are in the file
            *tool_arguments(file, args.rpc),
            *("--cors-origins", "localhost"),  # other sites in the browser must not use the model
            *args.passed_on,
        ]
        try:
            with running(arguments, key, _show_log if args.verbose else _show_errors) as (address, wait):
                print(_summary(file, threads, args.parallel, context))
                print(_clients(_reachable(address), file.stem, bool(key)), flush=True)
                wait()
        except (KeyboardInterrupt, SystemExit):
            say("stopped")
    return 0


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"'{text}' is no port; they go from 0 to 65535")
    return int(text)


def _is_own(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _reachable(address: str) -> str:
    """``address`` as a client has to write it, where the server listens everywhere."""
    parts = urlsplit(address)
    if parts.hostname not in ("0.0.0.0", "::"):
        return address
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(("192.0.2.1", 9))  # sends nothing, but chooses our address on the way out
        return f"{parts.scheme}://{probe.getsockname()[0]}:{parts.port}"
    return f"{parts.scheme}://127.0.0.1:{parts.port}"


def _show_log(line: str) -> None:
    print(line, file=sys.stderr)


def _show_errors(line: str) -> None:
    if found := _ERROR.match(line):
        say(f"llama-server: {found[1]}")


def _summary(file: Path, threads: int, conversations: int, context: Context) -> str:
    return f"""\
{file.name}: {threads} threads, {conversations} conversations at once with {context.tokens:,} tokens each
({context.total:,} in all: {mib(context.nbytes)} of {_gib(context.free)} free memory)"""


def _clients(address: str, model: str, has_key: bool) -> str:
    key = "KEY" if has_key else "none"
    return f"""
  to chat           {address}
  OpenAI client     OPENAI_BASE_URL={address}/v1 OPENAI_API_KEY={key}
  Anthropic client  ANTHROPIC_BASE_URL={address} ANTHROPIC_AUTH_TOKEN={key}
  coding agent      aider --model openai/{model} --openai-api-base {address}/v1 --openai-api-key {key}

Ctrl-C stops it."""


def _gib(nbytes: int) -> str:
    return f"{nbytes / 2**30:.1f} GiB"
