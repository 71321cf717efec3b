"""The judge's side of the network: any OpenAI-compatible endpoint through the `openai` client.

The key comes from the environment and goes nowhere but into the request: texts that leave this module are rid of it.
"""

from __future__ import annotations

import os
import random
import threading
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from vera.config import Strict
from vera.errors import ConfigError, JudgeError
from vera.io.files import mended
from vera.judge.verdicts import Rule

HIDDEN = "[key]"
SECRET_LENGTH = 16  # a shorter key is taken for a stand-in
STOPPING = {401, 403, 404}  # these will be the same for every item
REFUSING = {400, 413, 422}  # and these are about one item
PASSING = {408, 409, 425, 429}  # worth another try, as 5xx is
# What endpoints say in words, where an error comes without a status of its own.
IN_WORDS = {
    **dict.fromkeys(("content_filter", "content_policy_violation", "context_length_exceeded", "invalid_request_error"), 400),
    **dict.fromkeys(("invalid_api_key", "authentication_error", "permission_error"), 401),
    **dict.fromkeys(("model_not_found", "not_found_error"), 404),
}
LONGEST_PAUSE = 60.0  # seconds


class Both(Strict):
    """A figure for what is sent and one for what comes back."""

    prompt: float = Field(ge=0, allow_inf_nan=False)
    completion: float = Field(ge=0, allow_inf_nan=False)


class JudgeSettings(Strict):
    """conf/judge.yaml and conf/judging say what each key is."""

    version: int = Field(ge=1)
    model: str = Field(min_length=1)
    counts_as: str | None
    base_url: str
    key_env: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    prompts: Literal["auto", "official", "own"]
    parse: Rule
    orders: Literal["both", "first"]
    temperature: float | None = Field(ge=0, allow_inf_nan=False)
    max_tokens: int | None = Field(ge=1)
    attempts: int = Field(ge=1)
    concurrency: int = Field(ge=1)
    retries: int = Field(ge=0)
    timeout_seconds: float = Field(gt=0, allow_inf_nan=False)
    price: Both
    tokens: Both

    @field_validator("base_url")
    @classmethod
    def _plain_address(cls, value: str) -> str:
        parts = urlsplit(value)
        plain = not (parts.username or parts.password or parts.query or parts.fragment)
        if parts.scheme not in ("http", "https") or not parts.hostname or not plain:
            # A ValueError would be printed with the value, which may hold a secret.
            raise ConfigError(
                "judge.base_url must be an http or https address without user name, password and query; "
                "the key belongs in the environment"
            )
        return value.rstrip("/")


@dataclass(frozen=True)
class Reply:
    """One verdict as it came: text ("" when there was none), why it ended, the model that says it answered, tokens used."""

    text: str
    finish: str | None
    model: str | None
    prompt_tokens: int | None
    completion_tokens: int | None


class ItemError(JudgeError):
    """One item has no verdict; others may have. final: the endpoint refuses this very item, and will again."""

    def __init__(self, message: str, final: bool):
        super().__init__(message)
        self.final = final


class _Problem(Exception):
    """One try that failed: what happened, the HTTP status it stands for (None: there was no answer), and a pause to make."""

    def __init__(self, what: str, status: int | None = None, again: bool = True, pause: float | None = None):
        super().__init__(what)
        self.status, self.pause = status, pause
        self.again = again and (status is None or status in PASSING or status >= 500)


def read_key(settings: JudgeSettings) -> str:
    """The key from the environment variable `key_env`. Raises ConfigError without showing it."""
    key = os.environ.get(settings.key_env, "").strip()
    if not key:
        raise ConfigError(f"set {settings.key_env} to the endpoint's key (any word where the endpoint asks for none)")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigError(f"{settings.key_env} holds characters that no key has")
    return key


class Endpoint:
    """One judge. `ask` may be called from several threads; `leave` lets those that pause before another try give up."""

    def __init__(self, settings: JudgeSettings, key: str):
        try:
            import openai
        except ImportError:
            raise ConfigError("judging needs the openai client: pip install -c constraints.txt -e '.[judge]'") from None
        self.settings, self._key, self._openai = settings, key, openai
        self._leaving = threading.Event()
        self._client = openai.OpenAI(  # the client's own tries cannot be called off
            base_url=settings.base_url, api_key=key, max_retries=0, timeout=settings.timeout_seconds
        )

    def leave(self) -> None:
        self._leaving.set()

    def ask(self, messages: list[dict[str, str]]) -> Reply:
        """One completion. 408, 409, 425, 429, 5xx, timeouts and lost connections are tried `retries` times more, with growing
        pauses or those that the endpoint asks for.

        Raises, in one line without the key, ItemError when that does not help or the endpoint refuses what is asked, and
        JudgeError when it would refuse everything (401, 403, 404).
        """
        attempt = 0
        while True:
            try:
                return self._once(messages)
            except _Problem as problem:
                pause = min(8.0, 0.5 * 2**attempt) * random.uniform(0.75, 1.0) if problem.pause is None else problem.pause
                if problem.again and attempt < self.settings.retries and not self._leaving.wait(pause):
                    attempt += 1
                    continue
                tries = f", asked {attempt + 1} times" if problem.again else ""
                said = f"the judge at {self.settings.base_url} {problem}{tries}"
                if problem.status in STOPPING:
                    raise JudgeError(said) from None
                raise ItemError(said, problem.status in REFUSING) from None

    def _once(self, messages: list[dict[str, str]]) -> Reply:
        openai, settings = self._openai, self.settings
        sampling = {"temperature": settings.temperature, "max_tokens": settings.max_tokens}
        try:
            answer = self._client.chat.completions.create(
                model=settings.model, messages=messages, **{k: v for k, v in sampling.items() if v is not None}
            )
            return self._reply(answer)
        except openai.APITimeoutError:
            raise _Problem(f"did not answer within {settings.timeout_seconds:g} s") from None
        except openai.APIConnectionError as error:
            raise _Problem(f"cannot be reached ({self.clean(str(error.__cause__ or error))})") from None
        except openai.APIStatusError as error:
            raise self._status(error.status_code, _body(error.body), str(error.message), error.response.headers) from None
        except (openai.OpenAIError, AttributeError, IndexError, KeyError, TypeError, ValueError):
            raise _Problem("answers with something that is no chat completion; is judge.base_url right?", again=False) from None

    def _reply(self, answer: Any) -> Reply:
        choices: Any = getattr(answer, "choices", None)
        for place in (answer, choices[0] if choices else None):  # an error inside HTTP 200
            error = getattr(place, "error", None)
            if error:
                body = _body(error)
                words = (str(body.get(key)) for key in ("code", "type", "status"))
                status = next((int(w) if w.isdecimal() else IN_WORDS[w] for w in words if w.isdecimal() or w in IN_WORDS), 500)
                raise self._status(status, body, str(error), {})
        choice, usage = choices[0], answer.usage
        return Reply(
            text=self._verbatim(_text(choice.message)),
            finish=self._word(choice.finish_reason),
            model=self._word(answer.model),
            prompt_tokens=_count(usage, "prompt_tokens"),
            completion_tokens=_count(usage, "completion_tokens"),
        )

    def _status(self, status: int, body: dict[str, Any], message: str, headers: Any) -> _Problem:
        if status in (401, 403):
            return _Problem(f"refuses the key in {self.settings.key_env} (HTTP {status})", status)
        text = self.clean(" ".join(str(body.get("message") or message).split()))[:200]
        pause = None
        for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
            value = headers.get(name, "")
            if pause is None and value.replace(".", "", 1).isdecimal():
                pause = min(LONGEST_PAUSE, float(value) * unit)
        return _Problem(f"answers HTTP {status}: {text}", status, body.get("code") != "insufficient_quota", pause)

    def clean(self, text: str) -> str:
        """The text without the key, and such that it can be written."""
        return mended(text.replace(self._key, HIDDEN))

    def _word(self, value: Any) -> str | None:
        return self.clean(value) if isinstance(value, str) and value else None

    def _verbatim(self, verdict: str) -> str:
        """A verdict without the key, should the endpoint repeat it. A stand-in like "none" may be one of its own words."""
        return self.clean(verdict) if len(self._key) >= SECRET_LENGTH else mended(verdict)


def _body(error: Any) -> dict[str, Any]:
    """An error as endpoints send it: {"message": ...}, or that once more under "error"."""
    inside = error.get("error", error) if isinstance(error, dict) else error
    return inside if isinstance(inside, dict) else {"message": inside} if isinstance(inside, str) else {}


def _text(message: Any) -> str:
    """The words of a message: its content as a text or as a list of parts, those that are text (no reasoning); what a model
    says in place of an answer where there is none. Raises an error for anything else."""
    content = message.content
    if content is None:
        content = getattr(message, "refusal", None) or ""
    if isinstance(content, str):
        return content
    words = []
    for part in content if isinstance(content, list) else [content]:
        part = part if isinstance(part, (dict, str)) else part.model_dump()
        if isinstance(part, str):
            words.append(part)
        elif part.get("type", "text") in ("text", "output_text"):
            said = part["text"]
            words.append(said["value"] if isinstance(said, dict) else said)
    return "".join(words)


def _count(usage: Any, key: str) -> int | None:
    value = usage.get(key) if isinstance(usage, dict) else getattr(usage, key, None)
    return value if isinstance(value, int) and value >= 0 else None
