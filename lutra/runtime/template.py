# SPDX-License-Identifier: MIT
"""Chat templates: messages in, prompt out, by the Jinja template of the file."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import jinja2
import jinja2.meta
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gguf_tools.errors import LutraError

if TYPE_CHECKING:
    from lutra.runtime.model import Model

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """In place of Jinja's, which is for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


class _Generation(Extension):
    """{% generation %}...{% endgeneration %}: what training looks at. Here its content is all that counts."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """A block of its own, as transformers has it: what is set in it is not seen outside."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    @staticmethod
    def _content(caller: Any) -> Any:
        return caller()


class ChatTemplate:
    """Renders a conversation as transformers' ``apply_chat_template`` does.

    ``special`` are the texts of special tokens, those that the vocabulary has: "bos_token" and the like. The
    template comes with the file, so it runs in Jinja's sandbox.
    """

    def __init__(self, source: str | None, path: Path, special: Mapping[str, str] | None = None) -> None:
        if not source:
            raise LutraError(
                f"{path}: no chat template in the file; this is not a chat model (use 'lutra eval' or bench)"
            )
        env = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
        )
        env.filters["tojson"] = _tojson
        env.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
        self._special = dict(special or {})
        self._path = path
        self._env = env
        self.source = source
        try:
            self._template = env.from_string(source)
        except jinja2.TemplateError as error:
            raise self._failure(error) from None

    @classmethod
    def of(cls, model: Model) -> ChatTemplate:
        """The template in a model's file."""
        texts = {f"{name}_token": model.special_token(name) for name in ("bos", "eos", "pad", "sep", "mask")}
        return cls(model.chat_template, model.path, {name: text for name, text in texts.items() if text})

    @functools.cached_property
    def thinking_variable(self) -> str | None:
        """The variable by which the template has the model think or not; None where there is none."""
        wanted = jinja2.meta.find_undeclared_variables(self._env.parse(self.source))
        return next((name for name in ("enable_thinking", "thinking") if name in wanted), None)

    def render(
        self,
        messages: list[Message],
        prompt: bool = True,
        *,
        thinking: bool | None = None,
        now: datetime | None = None,
    ) -> str:
        """The prompt for the assistant's next answer to ``messages``, or without ``prompt`` just those.

        ``thinking`` None leaves it to the template whether the model thinks, where it knows of that. ``now``
        is the time that a template may tell the model.
        """
        values: dict[str, Any] = dict(self._special)
        if thinking is not None and self.thinking_variable:
            values[self.thinking_variable] = thinking
        if now is not None:
            values["strftime_now"] = now.strftime
        try:
            return self._template.render(
                messages=messages, tools=None, documents=None, add_generation_prompt=prompt, **values
            )
        # A template is a program of the file's author: TypeError, KeyError and others may come out of it.
        except Exception as error:
            raise self._failure(error) from None

    def _failure(self, error: Exception) -> LutraError:
        return LutraError(f"{self._path}: the chat template in the file fails: {error}")
