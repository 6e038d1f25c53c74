# SPDX-License-Identifier: MIT
"""``lutra chat``: a conversation with a model, or one question and its answer."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from gguf_tools.errors import LutraError
from gguf_tools.sources.hub import local_gguf
from lutra.cli.arguments import positive
from lutra.console import warn
from lutra.runtime.model import Model, Sampler
from lutra.runtime.template import Message

ROOM = 32  # tokens of context that an answer must have left
TERMINAL_LINE = 4095  # bytes of a line, at most, where the terminal edits it

EPILOG = """\
Type a message and Enter. Ctrl-C stops an answer; Ctrl-D or /exit ends the program.
With -p only the answer goes to standard output, and temperature 0 makes it the same every time.

examples:
  lutra chat tiny-chat-cb4.gguf
  lutra chat org/model-GGUF:cb4
  lutra chat tiny-chat-cb4.gguf -p "What is the capital of France?"
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    add = parser.add_argument
    add("file", metavar="FILE", type=Path, help="GGUF file of a chat model, or ORG/MODEL[:TYPE] of the hub")
    add("-p", "--prompt", help="answer this and end")
    add("-n", type=positive, metavar="N", help="tokens per answer at most (default: until it ends)")
    add("--temp", type=float, metavar="X", help="temperature, 0: greedy (default: 0 with -p, else 0.7)")
    add("--system", metavar="S", help="system message")
    add("--threads", type=positive, metavar="N", help="default: the fast physical cores")
    add("--ctx", type=positive, metavar="N", help="context in tokens (default: the model's, at most 4096)")
    add("--seed", type=int, metavar="N", help="seed of the sampling (default: random)")
    add("--verbose", action="store_true", help="show llama.cpp's log")


def run(args: argparse.Namespace) -> int:
    """Answer ``-p`` or talk until the end of the input."""
    if args.prompt is not None and not args.prompt.strip():
        raise LutraError("the prompt is empty; write a question after -p")
    temperature = args.temp if args.temp is not None else (0.7 if args.prompt is None else 0.0)
    with (
        Model(local_gguf(args.file), threads=args.threads, n_ctx=args.ctx, verbose=args.verbose) as model,
        Sampler(temperature, args.seed) as sampler,
    ):
        chat = Chat(model, sampler, args.system, args.n)
        if args.prompt is not None:
            for text in chat.answer(args.prompt):
                print(text, end="", flush=True)
            print()
            return 0
        edited = edit_lines()
        while (message := read_message(edited)) is not None:
            if message:
                chat.show_answer(message)
    return 0


def edit_lines() -> bool:
    """Arrow keys, and lines of any length, on a terminal that can; whether it does."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    try:
        import readline  # noqa: F401  (input() uses it)
    except ImportError:
        return False
    return True


def read_message(edited: bool = False) -> str | None:
    """The next line of the user; None at the end. Ctrl-C starts a new line."""
    try:
        message = input("> " if sys.stdin.isatty() else "")
        if sys.stdin.isatty() and not edited and len(message.encode(errors="replace")) >= TERMINAL_LINE:
            warn(f"the terminal passes on {TERMINAL_LINE} bytes of a line; the rest of this one is lost")
        message = message.strip()
    except EOFError:
        return None
    except KeyboardInterrupt:
        print("\n(Ctrl-D or /exit ends)", file=sys.stderr)
        return ""
    return None if message == "/exit" else message


class Chat:
    """A conversation: the messages so far and the model that continues them."""

    def __init__(self, model: Model, sampler: Sampler, system: str | None, limit: int | None) -> None:
        self._model = model
        self._sampler = sampler
        self._limit = limit
        self._template = model.template
        self._system: list[Message] = [{"role": "system", "content": system}] if system else []
        self._turns: list[Message] = []
        self._tokens = 0  # of the last answer

    def answer(self, message: str) -> Iterator[str]:
        """Stream the answer to ``message``, which becomes part of the conversation."""
        self._turns.append({"role": "user", "content": message})
        prompt = self._prompt()
        said = ""
        self._tokens = 0
        tokens = self._model.generate(prompt, self._sampler, self._limit)
        try:
            for text in self._model.text(self._counted(tokens)):
                said += text
                yield text
        except LutraError:
            self._turns.pop()
            raise
        finally:
            if self._turns and self._turns[-1]["role"] == "user":  # what was said before Ctrl-C stays said
                self._turns.append({"role": "assistant", "content": said})

    def show_answer(self, message: str) -> None:
        """Print the answer as it comes; Ctrl-C cuts it short. Then its speed, on a terminal."""
        started = time.monotonic()
        try:
            for text in self.answer(message):
                print(text, end="", flush=True)
            print()
        except KeyboardInterrupt:
            print(" [stopped]")
        except LutraError as error:
            print(f"lutra: error: {error}", file=sys.stderr)
            return
        if sys.stderr.isatty():
            seconds = time.monotonic() - started
            print(f"({self._tokens} tokens, {self._tokens / seconds:.1f} per second)", file=sys.stderr)

    def _counted(self, tokens: Iterator[int]) -> Iterator[int]:
        for token in tokens:
            self._tokens += 1
            yield token

    def _prompt(self) -> list[int]:
        """Tokens of the conversation; the oldest turns are dropped when the context is too small."""
        dropped = 0
        while True:
            prompt = self._model.tokenize(self._template.render(self._system + self._turns))
            if len(prompt) + ROOM <= self._model.n_ctx or len(self._turns) == 1:
                break
            del self._turns[:2]
            dropped += 1
        if dropped:
            warn(f"the context is full: the {dropped} oldest turns were dropped; see --ctx")
        return prompt
