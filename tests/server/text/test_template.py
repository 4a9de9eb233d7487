"""Chat templates render as transformers renders them, and in a sandbox."""

from __future__ import annotations

import msgspec
import pytest

from loraplex.server.api.conversation import ChatMessage
from loraplex.server.api.prompt import render
from loraplex.server.errors import BundleInvalid, InvalidRequest
from loraplex.server.model import Model
from loraplex.server.text.template import ChatTemplate

LLAMA_2 = """{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}
{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}
{% set system_message = false %}{% endif %}{% for message in loop_messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}
{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + message['content'].strip() + ' [/INST]' }}
{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"""
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
CONVERSATION = [
    {"role": "user", "content": "Hello <b>&"},
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": "Bye"},
]


@pytest.mark.parametrize(
    "source",
    [
        LLAMA_2,
        "{%- for m in messages %}\n  {%- if m.role == 'system' %}{% continue %}{% endif %}\n"
        "{{ m | tojson }}\n{% endfor %}",
        "{{ messages[0].content }}{% if add_generation_prompt %}<a>{% endif %}{% if tools %}t{% endif %}",
        "{% for m in messages %}{% generation %}{{ m.content }}{% if loop.last %}!{% endif %}{% endgeneration %}"
        "{% endfor %}",
    ],
)
def test_rendering_equals_transformers(source: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    (expected,), _ = render_jinja_template(
        conversations=[CONVERSATION], chat_template=source, add_generation_prompt=True, **SPECIAL
    )
    assert ChatTemplate(source, SPECIAL).render(CONVERSATION) == expected


def test_a_template_may_refuse_messages() -> None:
    template = ChatTemplate(LLAMA_2, SPECIAL)
    with pytest.raises(InvalidRequest, match="must alternate") as refusal:
        template.render([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])
    assert refusal.value.param == "messages"


@pytest.mark.parametrize(
    "source",
    [
        "{% for %}",
        "{{ nothing.at.all }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception('never') }}",
    ],
)
def test_a_template_that_cannot_work_fails_when_it_is_loaded(source: str) -> None:
    with pytest.raises(BundleInvalid, match="chat template"):
        ChatTemplate(source, {})


async def test_a_template_gets_the_names_that_messages_have() -> None:
    """Of those who speak; a result has the name of the function that was called."""
    source = "{# tools: <tool_call> #}{% for m in messages %}{{ m.name or '-' }}:{{ m.content }};{% endfor %}"
    model = Model("m", None, ChatTemplate(source, {}), (), 0, "m", "")
    call = {"id": "1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
    given = [
        {"role": "system", "content": "Be brief"},
        {"role": "user", "name": "Ann", "content": "Time?"},
        {"role": "assistant", "name": "Bob", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "Noon"},
    ]
    messages = msgspec.convert(given, list[ChatMessage])
    assert await render(model, messages) == "-:Be brief;Ann:Time?;Bob:;clock:Noon;"
