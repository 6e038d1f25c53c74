# SPDX-License-Identifier: MIT
"""Chat templates render as transformers renders them."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from gguf_tools.errors import LutraError
from lutra.runtime.template import ChatTemplate

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
MESSAGES = [{"role": "user", "content": 'café <b> & "x"'}, {"role": "assistant", "content": "yes"}]

# Template and what becomes of MESSAGES.
TEMPLATES = [
    (
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
        'café <b> & "x"yes',
    ),
    ("{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}", "21"),
    ("{%- generation -%}  a  {%- endgeneration -%}  b", "ab"),
    ("{{ messages[0] | tojson }}", '{"role": "user", "content": "café <b> & \\"x\\""}'),
    ("{{ messages[0].content | tojson(ensure_ascii=True) }}", '"caf\\u00e9 <b> & \\"x\\""'),
    ("{{ messages[0].content | tojson(ensure_ascii=False) }}", '"café <b> & \\"x\\""'),
    ("{{ {'b': 1, 'a': [2]} | tojson(indent=2) }}", '{\n  "b": 1,\n  "a": [\n    2\n  ]\n}'),
    ("{{ {'b': 1, 'a': 2} | tojson(separators=(',', ':'), sort_keys=True) }}", '{"a":2,"b":1}'),
    ("{{ none | tojson }}", "null"),
    ("{% if tools is not none %}{{ tools | tojson }}{% else %}no{% endif %}", "no"),
    ("{% if tools is defined and documents is defined %}{{ tools }}{{ documents }}{% endif %}", "NoneNone"),
    ("{% if documents is none %}none{% endif %}", "none"),
    ("{{ bos_token }}{{ eos_token }}", "<s></s>"),
    ("{% if pad_token is defined %}a{% else %}b{% endif %}{{ pad_token }}", "b"),
    ("{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.role }}{% endfor %}", "user"),
    ("  {% if true %}\nx\n  {% endif %}\ny", "x\ny"),
    (
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
        "2",
    ),
    ("{{ add_generation_prompt }}", "True"),
    ("{{ enable_thinking is defined }}{{ dict(a=1).a }}{{ messages[0].get('tool_calls') }}", "False1None"),
    ("{{ strftime_now('%Y') }}", str(datetime.now().year)),
    ("{% macro f(x) %}{{ x }}!{% endmacro %}{{ f(messages[1].content) }}", "yes!"),
    ("{{ messages[0].content is string }}{{ messages is sequence }}", "TrueTrue"),
]


@pytest.mark.parametrize(("template", "expected"), TEMPLATES)
def test_what_templates_use(template, expected):
    assert ChatTemplate(template, Path("m.gguf"), SPECIAL).render(MESSAGES) == expected


@pytest.mark.parametrize(
    ("template", "variable"),
    [
        ("{% if enable_thinking is false %}no{% else %}yes{% endif %}", "enable_thinking"),
        ("{%- if not thinking is defined %}{% set thinking = true %}{% endif %}"
         "{{ 'yes' if thinking else 'no' }}", "thinking"),
        ("{% set thinking = 1 %}yes", None),
        ("yes", None),
    ],
)  # fmt: skip
def test_thinking(template, variable):
    chat = ChatTemplate(template, Path("m.gguf"))
    assert chat.thinking_variable == variable
    assert chat.render(MESSAGES) == chat.render(MESSAGES, thinking=True) == "yes"
    assert chat.render(MESSAGES, thinking=False) == ("no" if variable else "yes")


def test_the_time_that_a_template_is_told():
    chat = ChatTemplate("{{ strftime_now('%Y-%m-%d') }}", Path("m.gguf"))
    assert chat.render(MESSAGES, now=datetime(2001, 2, 3)) == "2001-02-03"


@pytest.mark.torch
@pytest.mark.parametrize("template", [template for template, _ in TEMPLATES])
def test_the_same_as_transformers(template):
    from transformers.utils.chat_template_utils import render_jinja_template

    (expected,), _ = render_jinja_template(
        conversations=[MESSAGES], chat_template=template, add_generation_prompt=True, **SPECIAL
    )
    assert ChatTemplate(template, Path("m.gguf"), SPECIAL).render(MESSAGES) == expected


@pytest.mark.parametrize(
    "template",
    [
        "{% generation %}",
        "{{ raise_exception('no system') }}",
        "{{ messages[9].content.x }}",
        "{{ ().__class__.__bases__ }}",
        "{{ messages.append(1) }}",
        "{{ tojson | tojson }}",
        "{{ 1 / 0 }}",
        "{% for %}",
    ],
)
def test_a_template_that_fails_is_one_line(template):
    with pytest.raises(LutraError, match=r"m\.gguf: the chat template in the file fails: ") as error:
        ChatTemplate(template, Path("m.gguf"), SPECIAL).render(MESSAGES)
    assert "\n" not in str(error.value)
