"""The judge's side of the network: any OpenAI-compatible endpoint through the `openai` client, which retries with back-off.

The key comes from the environment and goes nowhere but into the request: texts that leave this module are rid of it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from vera.config import Strict
from vera.errors import ConfigError, JudgeError

HIDDEN = "[key]"
SECRET_LENGTH = 16  # a shorter key is taken for a stand-in


class JudgeSettings(Strict):
    """conf/judge.yaml says what each key is."""

    version: int = Field(ge=1)
    model: str = Field(min_length=1)
    base_url: str
    key_env: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    prompts: Literal["auto", "official", "own"]
    orders: Literal["both", "first"]
    temperature: float | None = Field(ge=0)
    max_tokens: int | None = Field(ge=1)
    attempts: int = Field(ge=1)
    concurrency: int = Field(ge=1)
    retries: int = Field(ge=0)
    timeout_seconds: float = Field(gt=0)

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


def read_key(settings: JudgeSettings) -> str:
    """The key from the environment variable `key_env`. Raises ConfigError without showing it."""
    key = os.environ.get(settings.key_env, "").strip()
    if not key:
        raise ConfigError(f"set {settings.key_env} to the endpoint's key (any word where the endpoint asks for none)")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigError(f"{settings.key_env} holds characters that no key has")
    return key


class Endpoint:
    """One judge. `ask` may be called from several threads."""

    def __init__(self, settings: JudgeSettings, key: str):
        try:
            import openai
        except ImportError:
            raise ConfigError("judging needs the openai client: pip install -c constraints.txt -e '.[judge]'") from None
        self.settings, self._key, self._openai = settings, key, openai
        self._client = openai.OpenAI(
            base_url=settings.base_url, api_key=key, max_retries=settings.retries, timeout=settings.timeout_seconds
        )

    def ask(self, messages: list[dict[str, str]]) -> Reply:
        """One completion. 408, 409, 429, 5xx, timeouts and lost connections are tried `retries` times more.

        Raises JudgeError, in one line without the key, when that does not help.
        """
        openai, settings = self._openai, self.settings
        sampling = {"temperature": settings.temperature, "max_tokens": settings.max_tokens}
        try:
            reply = self._client.chat.completions.create(
                model=settings.model, messages=messages, **{k: v for k, v in sampling.items() if v is not None}
            )
            choice = reply.choices[0]
            usage = reply.usage
            return Reply(
                text=self._verbatim(choice.message.content or ""),
                finish=self.clean(choice.finish_reason) if choice.finish_reason else None,
                model=self.clean(reply.model) if reply.model else None,
                prompt_tokens=usage.prompt_tokens if usage else None,
                completion_tokens=usage.completion_tokens if usage else None,
            )
        except openai.APITimeoutError:
            problem = f"did not answer within {settings.timeout_seconds:g} s, asked {settings.retries + 1} times"
        except openai.APIConnectionError as error:
            problem = f"cannot be reached ({self.clean(str(error.__cause__ or error))})"
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            problem = f"refuses the key in {settings.key_env} (HTTP {error.status_code})"
        except openai.APIStatusError as error:
            problem = f"answers HTTP {error.status_code}: {self._message(error)}"
        except (openai.OpenAIError, AttributeError, IndexError, KeyError, TypeError, ValueError):
            problem = "answers with something that is no chat completion; is judge.base_url right?"
        raise JudgeError(f"the judge at {settings.base_url} {problem}")

    def clean(self, text: str) -> str:
        """The text without the key."""
        return text.replace(self._key, HIDDEN)

    def _verbatim(self, verdict: str) -> str:
        """A verdict without the key, should the endpoint repeat it. A stand-in like "none" may be one of its own words."""
        return self.clean(verdict) if len(self._key) >= SECRET_LENGTH else verdict

    def _message(self, error) -> str:
        body = error.body if isinstance(error.body, dict) else {}
        text = str(body.get("message") or error.message)
        return self.clean(" ".join(text.split()))[:200]
