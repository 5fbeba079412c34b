"""Answers in OpenAI's shape."""

from __future__ import annotations

import time
import uuid
from typing import Any

from entropy_rft.router.embedded.batch import TokenLogprobs
from entropy_rft.router.embedded.engine import Piece
from entropy_rft.router.embedded.requests import Asked


class Response:
    """Builds the answer to one request from its pieces, whole or in chunks.

    Args:
        chat: /v1/chat/completions, or else /v1/completions.
        asked: the request.
        model: what the model is called.
        tokenizer: of the model.
    """

    def __init__(self, chat: bool, asked: Asked, model: str, tokenizer: Any) -> None:
        self._chat = chat
        self._asked = asked
        self._tokenizer = tokenizer
        self._started: set[int] = set()
        self._tokens = 0
        self._text_offset: dict[int, int] = {}
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": "",
            "created": int(time.time()),
            "model": model,
        }

    @property
    def completions(self) -> int:
        """Number of completions in the answer."""
        return self._asked.generation.n * len(self._asked.generation.prompts)

    def chunks(self, piece: Piece) -> list[dict[str, Any]]:
        """The chunks of a streamed answer for one piece."""
        self._tokens += len(piece.token_ids)
        chunks = []
        if self._chat and piece.index not in self._started:
            self._started.add(piece.index)
            chunks.append(self._chunk(piece.index, {"delta": {"role": "assistant", "content": ""}}))
        if piece.text or piece.logprobs or (self._asked.return_token_ids and piece.token_ids):
            shown: dict[str, Any] = {"delta": {"content": piece.text}} if self._chat else {"text": piece.text}
            if self._asked.return_token_ids:
                shown["token_ids"] = piece.token_ids
            chunks.append(self._chunk(piece.index, shown, self._logprobs(piece)))
        if piece.finish_reason is not None:
            last: dict[str, Any] = {"delta": {}} if self._chat else {"text": ""}
            chunks.append(self._chunk(piece.index, last, reason=piece.finish_reason))
        return chunks

    def last_chunk(self) -> dict[str, Any] | None:
        """The chunk with the usage, where it was asked for."""
        if not self._asked.include_usage:
            return None
        return {**self._head, "object": self._chunk_object, "choices": [], "usage": self._usage()}

    def whole(self, pieces: list[Piece]) -> dict[str, Any]:
        """The whole answer from all pieces, in the order they came."""
        choices = []
        for index in range(self.completions):
            own = [piece for piece in pieces if piece.index == index]
            token_ids = [token for piece in own for token in piece.token_ids]
            logprobs = [found for piece in own for found in piece.logprobs]
            joined = Piece(index, "".join(piece.text for piece in own), token_ids, logprobs, own[-1].finish_reason)
            self._tokens += len(token_ids)
            choice: dict[str, Any] = {"index": index}
            if self._chat:
                choice["message"] = {"role": "assistant", "content": joined.text, "refusal": None}
            else:
                choice["text"] = joined.text
            choice |= {"logprobs": self._logprobs(joined), "finish_reason": joined.finish_reason}
            if self._asked.return_token_ids:
                choice["token_ids"] = token_ids
                choice["prompt_token_ids"] = self._asked.generation.prompts[index // self._asked.generation.n]
            choices.append(choice)
        kind = "chat.completion" if self._chat else "text_completion"
        return {**self._head, "object": kind, "choices": choices, "usage": self._usage()}

    @property
    def _chunk_object(self) -> str:
        return "chat.completion.chunk" if self._chat else "text_completion"

    def _chunk(
        self, index: int, shown: dict[str, Any], logprobs: dict[str, Any] | None = None, reason: str | None = None
    ) -> dict[str, Any]:
        choice = {"index": index, **shown, "logprobs": logprobs, "finish_reason": reason}
        chunk: dict[str, Any] = {**self._head, "object": self._chunk_object, "choices": [choice]}
        if self._asked.include_usage:
            chunk["usage"] = None
        return chunk

    def _usage(self) -> dict[str, int]:
        prompts = sum(map(len, self._asked.generation.prompts))
        return {"prompt_tokens": prompts, "completion_tokens": self._tokens, "total_tokens": prompts + self._tokens}

    def _logprobs(self, piece: Piece) -> dict[str, Any] | None:
        if self._asked.generation.top_logprobs is None:
            return None
        if self._chat:
            content = [
                {
                    **self._token(found.token_id, found.logprob),
                    "top_logprobs": [self._token(token, logprob) for token, logprob in found.top],
                }
                for found in piece.logprobs
            ]
            return {"content": content, "refusal": None}
        tokens = [self._text(found.token_id) for found in piece.logprobs]
        offset = self._text_offset.get(piece.index, 0)
        offsets = []
        for token in tokens:
            offsets.append(offset)
            offset += len(token)
        self._text_offset[piece.index] = offset
        return {
            "tokens": tokens,
            "token_logprobs": [found.logprob for found in piece.logprobs],
            "top_logprobs": [self._alternatives(found) for found in piece.logprobs],
            "text_offset": offsets,
        }

    def _alternatives(self, found: TokenLogprobs) -> dict[str, float]:
        """The likeliest tokens and the written one, in OpenAI's shape; of two with one text the likelier is kept."""
        shown = {self._text(found.token_id): found.logprob}
        for token, logprob in reversed(found.top):
            shown[self._text(token)] = logprob
        return shown

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        text = self._text(token_id)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    def _text(self, token_id: int) -> str:
        return str(self._tokenizer.decode([token_id]))


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's shape."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
