"""A question's tokens, as the model that answers it sees them."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from entropy_rft.router.batching import FeatureError

# transformers' own tags, which plain Jinja does not have
_GENERATION = re.compile(r"{%-?\s*(end)?generation\s*-?%}")


@dataclass(frozen=True, slots=True)
class Question:
    """What a request asks: a conversation, a text, or tokens; exactly one of the three.

    Attributes:
        messages: as OpenAI's, text only.
        text: a plain prompt.
        token_ids: a prompt's tokens.
        tools: as OpenAI's; the chat template shows them to the model.
        chat_template_kwargs: further variables of the chat template, such as ``enable_thinking``.
        server: the address of the backend that is to answer, where that one is asked for the difficulty too.
    """

    messages: list[dict[str, Any]] | None = None
    text: str | None = None
    token_ids: list[int] | None = None
    tools: list[Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    server: str | None = None


class ChatTokenizer:
    """Tokenizes questions through the model's chat template, with the generation prompt, as `probe collect` does.

    Messages are converted to the form that templates expect, as in vLLM: parts of text are joined by newlines, and a
    tool call's arguments become an object.

    Args:
        tokenizer: of the model.

    Attributes:
        knows_system_role: the template shows the model what a system message says.
    """

    def __init__(self, tokenizer: Any) -> None:
        from entropy_rft.sampling import knows_system_role

        self.tokenizer = tokenizer
        self.knows_system_role = knows_system_role(tokenizer)
        self._allowed: dict[bool, frozenset[str]] = {}
        # The first call sets the tokenizer's padding and truncation, which must not happen in two threads at once. It
        # also compiles the template, which would make the first question miss its deadline.
        tokenizer(text="warm up")
        with suppress(FeatureError):
            self(Question(messages=[{"role": "user", "content": "warm up"}]))

    @classmethod
    def from_pretrained(cls, name: str) -> ChatTokenizer:
        """The tokenizer of a model: a directory, a name on the hub, ``modulo_reasoner`` or ``smollm2``.

        Raises:
            ValueError: there is none; one line.
        """
        from entropy_rft.models.sources import model_source
        from entropy_rft.models.tokenizers import load_tokenizer

        return cls(load_tokenizer(model_source(name)))

    def __call__(self, question: Question) -> list[int]:
        """The question's tokens.

        Raises:
            FeatureError: the question has no text, or the template refuses it.
        """
        from entropy_rft.sampling import encode_prompt

        if question.token_ids is not None:
            if not question.token_ids:
                raise FeatureError("the prompt has no tokens")
            return question.token_ids
        try:
            if question.messages is None:
                return encode_prompt(self.tokenizer, question.text or "")
            if self.tokenizer.chat_template is None:
                raise FeatureError("the model's tokenizer has no chat template")
            variables = self._variables(question)
            if question.tools:
                variables["tools"] = question.tools
            return encode_prompt(self.tokenizer, [_plain(message) for message in question.messages], variables)
        except FeatureError:
            raise
        except Exception as error:  # a template may raise anything
            # Without its message: it may hold the prompt, which must not reach a log.
            raise FeatureError(f"the question cannot be tokenized ({type(error).__name__})") from error

    def _variables(self, question: Question) -> dict[str, Any]:
        """The client's template variables that the template reads. A template from the client is never used."""
        given = question.chat_template_kwargs
        if not given:
            return {}
        with_tools = bool(question.tools)
        if with_tools not in self._allowed:
            self._allowed[with_tools] = self._template_variables(question.tools or None)
        return {name: value for name, value in given.items() if name in self._allowed[with_tools]}

    def _template_variables(self, tools: list[Any] | None) -> frozenset[str]:
        from jinja2 import meta
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        template = _GENERATION.sub("", self.tokenizer.get_chat_template(None, tools=tools))
        environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
        # The arguments of `apply_chat_template` (a template, `tokenize`, `truncation`) are not variables.
        reserved = {"messages", *inspect.signature(self.tokenizer.apply_chat_template).parameters}
        return frozenset(meta.find_undeclared_variables(environment.parse(template)) - reserved)


def _plain(message: Any) -> dict[str, Any]:
    """A message with a string as its content."""
    if not isinstance(message, Mapping):
        raise FeatureError("a message must be an object")
    plain = dict(message)
    content = plain.get("content")
    if content is None:
        plain["content"] = ""
    elif isinstance(content, list):
        plain["content"] = "\n".join(_text(part) for part in content)
    elif not isinstance(content, str):
        raise FeatureError("a message's content must be text or parts of text")
    calls = plain.get("tool_calls")
    if isinstance(calls, list):
        plain["tool_calls"] = [_with_arguments(call) for call in calls]
    return plain


# The parts that the dialects take for text; one without a type is text too.
_TEXTS = ("text", "input_text", "output_text", "refusal", "thinking", "reasoning")
_TEXT_FIELDS = ("text", "refusal", "thinking", "reasoning")


def _text(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and part.get("type", "text") in _TEXTS:
        text = next((part[name] for name in _TEXT_FIELDS if isinstance(part.get(name), str)), None)
        if text is not None:
            return text
    raise FeatureError("a message holds something other than text")


def _with_arguments(call: Any) -> Any:
    """Templates write the arguments as JSON: a string would be quoted twice."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except ValueError:
        return call
    return {**call, "function": {**function, "arguments": arguments}}
