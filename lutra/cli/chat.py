# SPDX-License-Identifier: MIT
"""``lutra chat``: a conversation with a model, or one question and its answer."""

from __future__ import annotations

import argparse
import os
import stat
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from gguf_tools.errors import LutraError
from gguf_tools.sources.hub import local_gguf
from lutra.cli.arguments import add_cache_types, add_forced, add_rpc, force, parsed, positive
from lutra.cli.chat_input import messages
from lutra.cli.chat_screen import Screen, is_terminal
from lutra.runtime.probe import trying
from lutra.runtime.sampling import Sampling

if TYPE_CHECKING:
    from lutra.runtime.conversation import Conversation
    from lutra.runtime.model import Model

EPILOG = """\
Type a message and Enter. A message of several lines is pasted, or put between two lines of \"\"\".
Ctrl-C stops an answer; at the prompt it clears the line, and twice leaves, as Ctrl-D and /exit do.
/help lists the commands: /regen, /set, /read FILE, /save NAME, /load NAME and others.

With -p only the answer goes to standard output. It is the same every time: --temp is 0 then, or what the
file recommends with --seed 1. Text that is piped in goes along; '-p -' asks just that.

examples:
  lutra chat tiny-chat-cb4.gguf
  lutra chat org/model-GGUF:cb4 --session letters
  lutra chat tiny-chat-cb4.gguf -p "What is the capital of France?"
  lutra chat tiny-chat-cb4.gguf -p "Summarize this." < notes.txt
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    add = parser.add_argument
    add("file", metavar="FILE", type=Path, help="GGUF file of a chat model, or ORG/MODEL[:TYPE] of the hub")
    add("-p", "--prompt", help="answer this and end; -: standard input")
    add("-n", type=positive, metavar="N", help="tokens per answer at most (default: until it ends)")
    add("--system", metavar="S", help="system message")
    add("--session", metavar="NAME", help="continue the conversation NAME, or begin it; saved at the end")
    add(
        "--think",
        action=argparse.BooleanOptionalAction,
        help="have the model think before it answers, or not",
    )
    add("--hide-thinking", action="store_true", help="do not show what it thinks")
    add("--no-history", action="store_true", help="do not keep what is typed for the next time")
    add("--threads", type=positive, metavar="N", help="default: the fast physical cores")
    add(
        "--ctx",
        type=positive,
        metavar="N",
        help="context in tokens (default: the model's, to 4096)",
    )
    add_cache_types(add)
    add("--seed", type=int, metavar="N", help="seed of the sampling (default: random, with -p 1)")
    add_forced(add)
    add_rpc(add)
    add("--verbose", action="store_true", help="show llama.cpp's log")
    group = parser.add_argument_group(
        "sampling (default: what the file recommends, else what is in brackets)"
    )
    for setting in fields(Sampling):
        usual = f"{setting.default:g}" + ("; with -p 0" if setting.name == "temp" else "")
        group.add_argument(
            f"--{setting.name.replace('_', '-')}",
            type=parsed(_setting(setting.name)),
            metavar="X" if setting.type == "float" else "N",
            help=f"{setting.metadata['text']} ({usual})",
        )


def _setting(name: str) -> Callable[[str], str]:
    """A check of a setting of the sampling; the text stays as it is."""

    def checked(text: str) -> str:
        Sampling().with_texts({name: text})
        return text

    return checked


def run(args: argparse.Namespace) -> int:
    """Answer ``-p`` or talk until the end of the input."""
    force(planes=args.planes, layers=args.layers)
    question = None if args.prompt is None else read_question(args.prompt)
    path = local_gguf(args.file)
    with trying(path):  # in another process; all this takes as long
        from lutra.cli.chat_talk import Talk
        from lutra.runtime import template  # noqa: F401
        from lutra.runtime.model import Model
        from lutra.runtime.native import llama

        llama()
        if question is None and is_terminal():
            import prompt_toolkit  # noqa: F401
    with Model(
        path,
        threads=args.threads,
        n_ctx=args.ctx,
        cache_types=(args.ctk, args.ctv),
        verbose=args.verbose,
        probe=False,
        workers=args.rpc,
    ) as model:
        talk = Talk(_conversation(args, model), Screen(not args.hide_thinking))
        if args.session:
            talk.resume(args.session, args.system)
        try:
            if question:
                talk.ask(question)
            else:
                talk.go_on(messages(talk.completions, history=not args.no_history))
        finally:
            if args.session:
                talk.keep(args.session)
    return 0


def _conversation(args: argparse.Namespace, model: Model) -> Conversation:
    from lutra.runtime.conversation import Conversation

    if args.think is not None and not model.template.thinking_variable:
        raise LutraError(f"{model.path}: its template cannot turn thinking on or off; leave the option out")
    asked = args.prompt is not None
    given = {s.name: text for s in fields(Sampling) if (text := getattr(args, s.name)) is not None}
    usual = Sampling(temp=0) if asked else Sampling()
    return Conversation(
        model,
        Sampling.of_file(model.value, usual).with_texts(given),
        system=args.system,
        limit=args.n,
        seed=1 if asked and args.seed is None else args.seed,
        thinking=args.think,
    )


def read_question(prompt: str) -> str:
    """What to ask: ``prompt`` and what is piped in. Raises LutraError where that is nothing."""
    piped = sys.stdin.read() if prompt == "-" or _is_piped() else ""
    question = piped if prompt == "-" else f"{prompt}\n\n{piped}" if piped.strip() else prompt
    if not question.strip():
        raise LutraError("the prompt is empty; write a question after -p")
    return question.strip("\n")


def _is_piped() -> bool:
    """Whether standard input is a file or a pipe, and so meant to be read."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)
