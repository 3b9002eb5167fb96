"""Chat templates: those of ChatML and Llama 3 with images, and those that come with a model.

A model's template is not trusted. Jinja's sandbox keeps it from files and code;
:mod:`.limited_fork` from hanging and from filling the memory, wherever it is not one of the two
here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from inspect import signature
from traceback import walk_tb
from typing import Any

from transformers import processing_utils, tokenization_utils_base
from transformers.utils.chat_template_utils import render_jinja_template

from ..errors import AlignVLMError, ConfigError
from .limited_fork import TooMuchWork, in_limited_fork

_CONTENT = (
    "{%- macro content(message) -%}"
    "{%- if message['content'] is string -%}{{ message['content'] }}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{ image_token }}{{ '\\n' }}"
    "{%- elif part['type'] == 'text' -%}{{ part['text'] }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{%- endmacro -%}"
)
CHATML = (
    "{%- set image_token = 'IMAGE_TOKEN' -%}" + _CONTENT + "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{ content(message) + '<|im_end|>' }}{%- endgeneration -%}{{ '\\n' }}"
    "{%- else -%}{{ content(message) + '<|im_end|>\\n' }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
LLAMA3 = (
    "{%- set image_token = 'IMAGE_TOKEN' -%}" + _CONTENT + "{{ '<|begin_of_text|>' }}"
    "{%- for message in messages -%}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{ content(message) + '<|eot_id|>' }}{%- endgeneration -%}"
    "{%- else -%}{{ content(message) + '<|eot_id|>' }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif -%}"
)
OURS = [
    re.compile(re.escape(template).replace("IMAGE_TOKEN", r"[^'\\]+"))
    for template in (CHATML, LLAMA3)
]
"""Their work is that of writing the messages down; the token is a string within quotes."""
RENDERED = (
    "{%- for own, text in messages[-1]['rendered'] -%}{%- if own -%}"
    "{%- generation -%}{{ text }}{%- endgeneration -%}{%- else -%}{{ text }}{%- endif -%}"
    "{%- endfor -%}"
)
"""Writes what another template has written, with its marks."""
TEMPLATE = "<template>"
"""What jinja calls a template that comes from no file."""
CANNOT = "the model's chat template cannot be used"


def is_ours(template: Any) -> bool:
    """Whether a template is one of :data:`OURS`, which need not be watched."""
    return isinstance(template, str) and any(own.fullmatch(template) for own in OURS)


def chat_template_for(tokenizer: Any, image_token: str) -> str:
    """A chat template in the language model's format, with images and ``{% generation %}`` marks.

    Raises:
        ConfigError: the format is not known; pass ``chat_template`` by hand.
    """
    vocabulary = tokenizer.get_vocab()
    if "<|im_start|>" in vocabulary:
        return CHATML.replace("IMAGE_TOKEN", image_token)
    if "<|start_header_id|>" in vocabulary:
        return LLAMA3.replace("IMAGE_TOKEN", image_token)
    raise ConfigError(
        "the tokenizer's chat format is neither ChatML nor Llama 3; give a chat_template with "
        "{% generation %} marks around the assistant's text"
    )


def apply_template(apply: Callable[..., Any], conversation: Any, template: Any, **keys: Any) -> Any:
    """A conversation, or several, as a chat template writes them.

    Args:
        apply: ``apply_chat_template`` of a processor or tokenizer of transformers.
        template: which one that will be.
        keys: for ``apply``.

    Raises:
        ConfigError: the template fails, or does too much.
    """
    if not is_ours(template):
        conversation, keys = _written(apply, conversation, str(template), keys)
    try:
        return apply(conversation, **keys)
    except AlignVLMError:
        raise
    except Exception as error:
        frames = walk_tb(error.__traceback__)
        # jinja writes the template's own lines into the traceback
        inside = any(frame.f_code.co_filename.startswith(TEMPLATE) for frame, _ in frames)
        if not inside and not type(error).__module__.startswith("jinja2"):
            raise
        line = (str(error).strip().splitlines() or [repr(error)])[0]
        raise ConfigError(f"{CANNOT}: {line}") from None


def _written(
    apply: Callable[..., Any], conversation: Any, template: str, keys: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """The conversation and keys with which ``apply`` gives what a template of a stranger would:
    a copy of this process renders it, and :data:`RENDERED` repeats that.

    Raises:
        ConfigError: see :func:`apply_template`.
    """
    try:
        written = in_limited_fork(lambda: _pieces(apply, conversation, keys))
    except TooMuchWork:
        raise ConfigError(f"{CANNOT}: it takes too much time or memory") from None
    except RuntimeError as error:
        raise ConfigError(f"{CANNOT}: {error}") from None
    batched = not isinstance(conversation[0], dict)
    chats = conversation if batched else [conversation]
    chats = [
        [*getattr(chat, "messages", chat), {"role": "", "content": [], "rendered": pieces}]
        for chat, pieces in zip(chats, written, strict=True)
    ]
    taken = signature(apply).parameters
    # what the template alone was given is used up; what is left is the processor's
    keys = {key: value for key, value in keys.items() if key in taken or key not in template}
    keys |= {"chat_template": RENDERED, "continue_final_message": False}
    return (chats if batched else chats[0]), keys


def _pieces(
    apply: Callable[..., Any], conversation: Any, keys: dict[str, Any]
) -> list[list[tuple[bool, str]]]:
    """In a copy of the process: what the template writes for each conversation, cut where
    ``{% generation %}`` begins and ends."""

    found: list[Any] = []

    def render(**given: Any) -> Any:
        found[:] = render_jinja_template(**given)
        return found

    processing_utils.render_jinja_template = render  # type: ignore[assignment]
    tokenization_utils_base.render_jinja_template = render  # type: ignore[assignment]
    apply(conversation, **{**keys, "tokenize": False})
    texts, spans = found
    return [_cut(text, own) for text, own in zip(texts, spans or [[]] * len(texts), strict=True)]


def _cut(text: str, spans: list[tuple[int, int]]) -> list[tuple[bool, str]]:
    pieces, at = [], 0
    for start, end in spans:
        start = max(start, at)
        end = max(start, end)
        pieces += [(False, text[at:start]), (True, text[start:end])]
        at = end
    return [*pieces, (False, text[at:])]
