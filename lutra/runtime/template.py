# SPDX-License-Identifier: MIT
"""Chat templates: messages in, prompt out, by the Jinja template of the file."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gguf_tools.errors import LutraError

if TYPE_CHECKING:
    from lutra.runtime.model import Model

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


class ChatTemplate:
    """Renders a conversation as transformers' ``apply_chat_template`` does.

    The template comes with the file, so it runs in Jinja's sandbox.
    """

    def __init__(self, source: str | None, path: Path, *, bos: str = "", eos: str = "") -> None:
        if not source:
            raise LutraError(
                f"{path}: no chat template in the file; this is not a chat model (use 'lutra eval' or bench)"
            )
        env = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        env.globals.update(
            bos_token=bos,
            eos_token=eos,
            raise_exception=_raise_exception,
            strftime_now=lambda form: datetime.now().strftime(form),
        )
        self._path = path
        try:
            self._template = env.from_string(source)
        except jinja2.TemplateError as error:
            raise self._failure(error) from None

    @classmethod
    def of(cls, model: Model) -> ChatTemplate:
        """The template in a model's file."""
        bos, eos = model.special_token("bos"), model.special_token("eos")
        return cls(model.chat_template, model.path, bos=bos, eos=eos)

    def render(self, messages: list[Message], prompt: bool = True) -> str:
        """The prompt for the assistant's next answer to ``messages``, or without ``prompt`` just those."""
        try:
            return self._template.render(messages=messages, add_generation_prompt=prompt)
        # A template is a program of the file's author: TypeError, KeyError and others may come out of it.
        except Exception as error:
            raise self._failure(error) from None

    def _failure(self, error: Exception) -> LutraError:
        return LutraError(f"{self._path}: the chat template in the file fails: {error}")
