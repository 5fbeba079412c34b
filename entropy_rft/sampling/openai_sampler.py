"""Completions from a server that speaks OpenAI's protocol, such as vLLM's."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from entropy_rft.effort import checked_effort, template_variables
from entropy_rft.errors import UserOSError, UserValueError
from entropy_rft.retry_after import retry_after_seconds
from entropy_rft.sampling.completion import Completion, Prompt, check_settings, encode_prompt
from entropy_rft.sampling.progress import progress_bar
from entropy_rft.sampling.thinking import ThinkingTags, longest_thinking
from entropy_rft.tags import THINK_END

_RETRIED = (408, 429, 500, 502, 503, 504)
_PAUSES = (0.5, 1.0, 2.0, 4.0)  # seconds before each retry, where the server names none
MAX_WAIT_S = 600.0
"""Most seconds that one request waits in total because the server asks for it."""


class OpenAISampler:
    """Sample by ``POST URL/v1/completions``, with the interface of `TransformersSampler`.

    The prompt is tokenized here and sent as token ids, so the server's chat template is not used. Servers that support
    ``return_token_ids`` (vLLM since 0.10.2) return the completion's tokens. For other servers the text is tokenized
    again, which may give other tokens than the model wrote. The same seed gives the same completions as far as the
    server guarantees it.

    A request that fails (no connection, 408, 429, 500 and above) is sent again up to four times, after 0.5, 1, 2 and 4
    seconds. If the server says how long to wait (``Retry-After``, in seconds or as a date), the request is sent again
    after that time. The number of such retries has no limit, but their total wait must not exceed `max_wait`.

    Args:
        url: of the server, with or without ``/v1``.
        tokenizer: of the model that it serves.
        model: what the server calls that model; ``None`` takes the first one that it names.
        concurrency: requests at the same time; each asks for all samples of one prompt.
        timeout: seconds for one request.
        api_key: sent as a bearer token.
        chat_template_kwargs: further arguments of the chat template.
        think_end_token: the text that ends the thinking; a limit on the thinking is checked by it.
        vocabulary: number of tokens of the model that the completions are for; ``None`` skips the check.
        max_wait: most seconds that one request waits in total because the server asks for it (`MAX_WAIT_S`).
        transport, sleep, now: httpx's, and the clock's, for tests.

    Raises:
        ValueError: the URL is not an http address, `concurrency`, `timeout` or `max_wait` is out of range, or httpx is
            missing.
    """

    def __init__(
        self,
        url: str,
        tokenizer: Any,
        *,
        model: str | None = None,
        concurrency: int = 16,
        timeout: float = 600.0,
        api_key: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        think_end_token: str = THINK_END,
        vocabulary: int | None = None,
        max_wait: float = MAX_WAIT_S,
        transport: Any = None,
        sleep: Callable[[float], Any] | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        try:
            import httpx
        except ImportError as error:
            raise UserValueError('sampling from a URL needs httpx: pip install "entropy_rft[router]"') from error

        if not url.startswith(("http://", "https://")):
            raise UserValueError(f"url must start with http:// or https://, got {url!r}")
        if concurrency < 1:
            raise UserValueError(f"concurrency must be at least 1, got {concurrency}")
        if not timeout > 0:
            raise UserValueError(f"timeout must be above 0 seconds, got {timeout}")
        if not max_wait >= 0:
            raise UserValueError(f"max_wait must be at least 0 seconds, got {max_wait}")
        self.url = url.rstrip("/").removesuffix("/v1")
        self.tokenizer = tokenizer
        self.model = model
        self.concurrency = concurrency
        self.chat_template_kwargs = dict(chat_template_kwargs or {})
        self.think_end_token = think_end_token
        self.vocabulary = vocabulary
        self.max_wait = max_wait
        self._token_ids = True
        self._failed = threading.Event()  # set after a final failure, so that the other requests stop waiting
        self._sleep = self._failed.wait if sleep is None else sleep
        self._now = now
        self._client = httpx.Client(
            base_url=self.url,
            timeout=timeout,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            limits=httpx.Limits(max_connections=concurrency),
            transport=transport,
        )

    def sample(
        self,
        prompts: Sequence[Prompt],
        *,
        samples: int = 1,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_tokens: int = 1024,
        seed: int = 0,
        progress: bool = True,
        thinking_tokens: int | None = None,
        reasoning_effort: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        extra_body: Mapping[str, Any] | None = None,
    ) -> list[list[Completion]]:
        """Sample `samples` completions of each prompt; arguments and result as in `TransformersSampler.sample`.

        `thinking_tokens` is sent as `thinking_token_budget`, and `extra_body` as it is. The other two are variables of
        the chat template here.

        Raises:
            ValueError: an argument is out of range, a prompt cannot be encoded, a completion has a token outside the
                vocabulary, or the server ignores the limit on the thinking.
            OSError: the server cannot be reached, refuses, or sends an unexpected answer; one line.
        """
        check_settings(samples, temperature, top_p, max_tokens)
        checked_effort(thinking_tokens, reasoning_effort, chat_template_kwargs, extra_body)
        limit = {} if thinking_tokens is None else {"thinking_token_budget": thinking_tokens}
        tags = None if thinking_tokens is None else ThinkingTags(self.tokenizer, self.think_end_token)
        self._failed.clear()
        variables = {**self.chat_template_kwargs, **template_variables(reasoning_effort, chat_template_kwargs)}
        prompt_ids = [encode_prompt(self.tokenizer, prompt, variables) for prompt in prompts]
        if prompt_ids:
            self.served_model()
        drawn = 1 if temperature == 0 else samples

        def ask(index: int) -> list[Completion]:
            body = {
                "model": self.model,
                "prompt": prompt_ids[index],
                "n": drawn,
                "temperature": temperature,
                "top_p": top_p,
                "max_tokens": max_tokens,
                "seed": request_seed(seed, index),
                **limit,
                **(extra_body or {}),
            }
            choices = self._completions(body)
            if len(choices) != drawn:
                raise UserOSError(f"{self.url} gave {len(choices)} completions instead of {drawn}")
            if tags is not None and thinking_tokens is not None:
                self._check_thinking(prompt_ids[index], choices, tags, thinking_tokens)
            return [self._completion(prompt_ids[index], choice) for choice in choices]

        groups: list[list[Completion]] = []
        with progress_bar("sampling", len(prompt_ids), progress) as advance:
            pool = ThreadPoolExecutor(self.concurrency)
            try:
                for group in pool.map(ask, range(len(prompt_ids))):
                    groups.append([group[sample % drawn] for sample in range(samples)])
                    advance(1, "")
            except BaseException:
                self._failed.set()
                raise
            finally:
                pool.shutdown(cancel_futures=True)  # after a failure the other requests are not needed
        return groups

    def served_model(self) -> str:
        """What the server calls the model: the name that was given, or the first one that the server names.

        Raises:
            OSError: the server cannot be reached, or names none.
        """
        if self.model is None:
            self.model = self._first_model()
        return self.model

    def _completions(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        extended = {**body, "return_token_ids": True} if self._token_ids else body
        status, data = self._request("POST", "/v1/completions", extended)
        if status in (400, 422) and self._token_ids and "return_token_ids" in str(data):
            self._token_ids = False
            return self._completions(body)
        if status != 200:
            raise UserOSError(f"{self.url} refused with status {status}: {_message(data)}")
        choices = data.get("choices") if isinstance(data, dict) else None
        if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
            raise UserOSError(f"{self.url} answered without choices: {_message(data)}")
        return sorted(choices, key=lambda choice: choice.get("index", 0))

    def _check_thinking(
        self, prompt_ids: list[int], choices: Sequence[Mapping[str, Any]], tags: ThinkingTags, limit: int
    ) -> None:
        """Raise a ValueError if a completion has more thinking than was allowed: many servers ignore unknown fields."""
        most = max(limit + len(tags.end.ids) - 1, longest_thinking(tags, prompt_ids, []))
        for choice in choices:
            ids = choice.get("token_ids")  # a text's tokens may be others than those that the server counted
            if ids is not None and longest_thinking(tags, prompt_ids, ids) > most:
                raise UserValueError(
                    f"{self.url} ignores thinking_token_budget: start vLLM with --reasoning-parser or "
                    "--reasoning-config, or measure thinking_tokens without --url"
                )

    def _completion(self, prompt_ids: list[int], choice: dict[str, Any]) -> Completion:
        ids = choice.get("token_ids")
        if ids is None:
            ids = self.tokenizer(text=choice.get("text") or "", add_special_tokens=False)["input_ids"]
        ids = list(ids)
        if self.vocabulary is not None and ids and not 0 <= min(ids) <= max(ids) < self.vocabulary:
            wrong = next(i for i in ids if not 0 <= i < self.vocabulary)
            raise UserValueError(
                f"{self.url} answered with the token {wrong}, but the model here has {self.vocabulary} tokens: it "
                f"serves another model, {self.model!r}; give the URL of a server of the same model"
            )
        stopped = choice.get("finish_reason") == "stop"
        eos = self.tokenizer.eos_token_id
        if stopped and eos is not None and (not ids or (choice.get("token_ids") is None and ids[-1] != eos)):
            ids.append(eos)  # the text does not show it
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        return Completion(prompt_ids, ids, text, truncated=not stopped)

    def _first_model(self) -> str:
        status, data = self._request("GET", "/v1/models")
        try:
            if status != 200:
                raise UserValueError(f"status {status}")
            return str(data["data"][0]["id"])
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise UserOSError(f"{self.url} does not name its model ({error}): give it") from error

    def _request(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        import httpx

        pauses, waited = iter(_PAUSES), 0.0
        while True:
            told = None
            try:
                response = self._client.request(method, path, json=body)
            except httpx.HTTPError as error:
                failure = f"{self.url} cannot be reached: {str(error) or type(error).__name__}"
            else:
                try:
                    data = response.json()
                except ValueError:
                    data = response.text
                if response.status_code not in _RETRIED:
                    return response.status_code, data
                failure = f"{self.url} answered with status {response.status_code}: {_message(data)}"
                told = retry_after_seconds(response.headers.get("retry-after"), self._now())
            if told:
                waited += told
                if waited > self.max_wait:
                    limit = f"and asks to wait {told:g} s, {waited:g} s in all, which is more than {self.max_wait:g} s"
                    raise UserOSError(f"{' '.join(failure.split())} {limit}")
                pause: float | None = max(told, _PAUSES[0])
            else:
                pause = next(pauses, None)
            if pause is None or self._failed.is_set():
                raise UserOSError(" ".join(failure.split()))
            self._sleep(pause)


def request_seed(seed: int, prompt: int) -> int:
    """A prompt's own seed: 31 bits, which every server accepts."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{prompt}".encode(), digest_size=4).digest(), "big") >> 1


def _message(data: Any) -> str:
    """What a server says went wrong, on one line."""
    if isinstance(data, dict):
        inner = data.get("error", data)
        data = inner.get("message", inner) if isinstance(inner, dict) else inner
    return " ".join(str(data).split())[:300]
