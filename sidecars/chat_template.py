"""Chat messages → text → tokens, with the template the model file itself carries.

Message texts are data. A text may contain the very characters of a control token, such as
``<|im_start|>``; were the rendered prompt tokenised as a whole, those would become real control
tokens and the text could forge other speakers' turns. So such spots are replaced by placeholders
before the template runs, and put back as plain characters afterwards, tokenised without control
tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, cast

import jinja2
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from sidecars.token_model import ChatMessages, TemplateRefused

# Private-use characters that frame a placeholder's number; if a text holds them, they are
# replaced like control tokens.
_OPEN, _SHUT = "\U000f5a00", "\U000f5a01"
_PLACEHOLDER = re.compile(f"{_OPEN}([0-9]+){_SHUT}")

Encode = Callable[[str, bool], list[int]]
"""Text, whether control tokens are recognised → tokens."""


class ChatTemplate:
    """A model's template, ready to encode conversations.

    Args:
        template: Jinja source from the model file.
        controls: the texts of all the model's control tokens.

    Raises:
        TemplateRefused: the source is no template.
    """

    def __init__(self, template: str, *, bos: str, eos: str, controls: Iterable[str]) -> None:
        try:
            self._with_reply = Jinja2ChatFormatter(template, eos, bos, add_generation_prompt=True)
            self._without = Jinja2ChatFormatter(template, eos, bos, add_generation_prompt=False)
        # A break outside a loop, or nesting too deep, is Python's complaint and not Jinja's.
        except (jinja2.TemplateError, SyntaxError, RecursionError) as error:
            raise TemplateRefused(f"the model's chat template is broken: {error}") from error
        texts = sorted({c for c in controls if c}, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, [*texts, _OPEN, _SHUT])))

    def encode(self, messages: ChatMessages, encode: Encode, *, reply: bool) -> list[int]:
        """Tokens of a conversation.

        Raises:
            TemplateRefused: the template does not accept these messages.
        """
        literals: list[str] = []

        def hide(match: re.Match[str]) -> str:
            literals.append(match.group())
            return f"{_OPEN}{len(literals) - 1}{_SHUT}"

        safe = [
            {"role": m["role"], "content": self._special.sub(hide, m["content"])} for m in messages
        ]
        text = self._render(safe, reply=reply)
        tokens: list[int] = []
        for index, part in enumerate(_PLACEHOLDER.split(text)):
            if part:
                plain = index % 2 == 1
                tokens += encode(literals[int(part)] if plain else part, not plain)
        return tokens

    def _render(self, messages: list[dict[str, str]], *, reply: bool) -> str:
        formatter = self._with_reply if reply else self._without
        try:
            return str(formatter(messages=cast(Any, messages)).prompt)
        except (jinja2.TemplateError, ValueError, TypeError, KeyError) as error:
            merged = _without_system(messages)
            if merged is None:
                raise TemplateRefused(
                    f"the model's chat template refuses these messages: {error}"
                ) from error
            return self._render(merged, reply=reply)


def _without_system(messages: list[dict[str, str]]) -> list[dict[str, str]] | None:
    """The same with a leading system message put before the first user text, for such models."""
    if len(messages) < 2 or messages[0]["role"] != "system" or messages[1]["role"] != "user":
        return None
    text = f"{messages[0]['content']}\n\n{messages[1]['content']}"
    return [{"role": "user", "content": text}, *messages[2:]]
