"""The part of the OpenAI chat API that stored videos can serve: requests, responses and chunks.

A field that would change the answer and cannot be honoured is refused, never ignored. A field that is null counts as
left out. The service extends the API by

- a part of a message that names a video: `{"type": "video_url", "video_url": {"url": <id, URI or name>}}`, or
  `{"type": "video", "video": <id, URI or name>}`;
- `options`: texts of which the likeliest is chosen;
- `approximate`: whether several videos may be named, whose caches are then put together. `sttm.engine.compose` measures
  what that costs;
- `sttm` in the response: times and the identity of the artifact.
"""

import time
import uuid
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from jobs.serving.api_error import ApiError, invalid
from sttm.engine.sampling import SamplingConfig
from sttm.query.question import MAX_CHARS, MAX_OPTIONS, Query
from sttm.query.request import Ended

MAX_MESSAGES, MAX_PARTS, MAX_STOPS, MAX_VIDEOS = 100, 32, 4, 8
MAX_OPTION_CHARS = MAX_CHARS // MAX_OPTIONS
_GENERATION = ("max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stop")
_FINISH = {"stop": "stop", "length": "length", "cut": "stop"}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        return {name: value for name, value in data.items() if value is not None} if isinstance(data, dict) else data


class _Url(_Strict):
    url: Annotated[str, Field(min_length=1, max_length=4096)]


class _Text(_Strict):
    type: Literal["text"]
    text: str


class _VideoUrl(_Strict):
    type: Literal["video_url"]
    video_url: _Url

    @property
    def name(self) -> str:
        return self.video_url.url


class _Video(_Strict):
    type: Literal["video"]
    video: Annotated[str, Field(min_length=1, max_length=4096)]

    @property
    def name(self) -> str:
        return self.video


_Part = Annotated[_Text | _VideoUrl | _Video, Field(discriminator="type")]
_Empty = Annotated[list[Any], Field(max_length=0)]


class _Message(_Strict):
    """One message; an assistant message that a client got from a service like this can be sent back as it is."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[_Part], Field(max_length=MAX_PARTS)] | None = None
    # An answer has these fields. They are accepted where they are empty.
    annotations: _Empty | None = None
    tool_calls: _Empty | None = None

    @model_validator(mode="after")
    def _check_content(self) -> "_Message":
        if self.content is None and self.role != "assistant":
            raise ValueError("content is missing")
        return self

    @property
    def text(self) -> str:
        if not isinstance(self.content, list):
            return self.content or ""
        return "\n".join(part.text for part in self.content if isinstance(part, _Text))

    @property
    def videos(self) -> list[str]:
        if not isinstance(self.content, list):
            return []
        return [part.name for part in self.content if not isinstance(part, _Text)]


class _StreamOptions(_Strict):
    include_usage: bool = False
    include_obfuscation: bool = False


class _TextFormat(_Strict):
    type: Literal["text"]


_Zero = Annotated[float, Field(ge=0, le=0)]
_Option = Annotated[str, Field(min_length=1, max_length=MAX_OPTION_CHARS)]


class ChatRequest(_Strict):
    """The body of `/v1/chat/completions`. The default temperature is 0, the likeliest answer; OpenAI's is 1."""

    model: str
    messages: Annotated[list[_Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    stream: bool = False
    stream_options: _StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: int | None = None
    stop: str | Annotated[list[str], Field(max_length=MAX_STOPS)] | None = None
    options: Annotated[list[_Option], Field(min_length=2, max_length=MAX_OPTIONS)] | None = None
    approximate: bool | None = None
    # These are accepted only with the value that changes nothing.
    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None
    presence_penalty: _Zero | None = None
    frequency_penalty: _Zero | None = None
    response_format: _TextFormat | None = None
    # These are accepted and have no effect on the answer.
    user: str | None = None
    safety_identifier: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None

    @staticmethod
    def parse(body: bytes) -> "ChatRequest":
        """Read an untrusted body.

        Raises:
            ApiError: with status 400; the message names the field and its fault.
        """
        try:
            request = ChatRequest.model_validate_json(body)
        except ValidationError as error:
            raise invalid(error.errors(include_url=False, include_input=False, include_context=False)) from None
        if request.stream_options and not request.stream:
            raise ApiError(400, "stream_options: only with stream", "invalid_request")
        without_effect = [name for name in _GENERATION if getattr(request, name) is not None]
        if request.options and without_effect:
            message = f"{', '.join(without_effect)}: not with options, of which one is chosen and nothing generated"
            raise ApiError(400, message, "invalid_request")
        return request

    @property
    def video_names(self) -> list[str]:
        """The videos that the messages name, each once, in their order: one, or up to 8 with `approximate`.

        Raises:
            ApiError: with status 400, if the messages name another number of videos.
        """
        named = list(dict.fromkeys(name for message in self.messages for name in message.videos))
        if len(named) == 1 or (self.approximate and 1 < len(named) <= MAX_VIDEOS):
            return named
        several = f'up to {MAX_VIDEOS} with "approximate": true, which puts together caches that never saw each other'
        raise ApiError(
            400,
            f"the messages name {len(named)} videos; name exactly one: "
            f'{{"type": "video_url", "video_url": {{"url": "<id, URI or file name>"}}}}; or {several}',
            "one_video_needed",
        )

    def query(self, max_tokens: int, default_tokens: int) -> Query:
        """The turns for the model. System texts go before the first question, because the cache ends with the video.

        Args:
            max_tokens: longest answer that may be asked for.
            default_tokens: longest answer if the request names no length.

        Raises:
            ApiError: with status 400, if the answer may not be that long or the turns are out of order or too long.
        """
        asked = self.max_completion_tokens or self.max_tokens or default_tokens
        if asked > max_tokens:
            raise ApiError(400, f"max_tokens: {asked} is over this service's {max_tokens}", "max_tokens_too_large")
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        sampling = SamplingConfig(
            max_tokens=asked,
            temperature=self.temperature or 0.0,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=self.seed,
            stop=stop,
        )
        return Query(self._turns(), sampling)

    def _turns(self) -> tuple[str, ...]:
        system = [message.text for message in self.messages if message.role in ("system", "developer")]
        turns: list[str] = []
        for message in self.messages:
            if message.role not in ("user", "assistant"):
                continue
            if (message.role == "user") != (len(turns) % 2 == 0):
                if not turns or message.role == "assistant":
                    raise ApiError(400, "messages: an answer must follow a question", "turns_out_of_order")
                turns[-1] += "\n" + message.text  # Two user messages in a row count as one.
            else:
                turns.append(message.text)
        if len(turns) % 2 == 0 or not turns[-1].strip():
            raise ApiError(400, "messages: the last one must be a question of the user", "no_question")
        turns[0] = "\n\n".join(filter(None, [*system, turns[0]]))
        if (size := sum(map(len, (*turns, *(self.options or ()))))) > MAX_CHARS:
            raise ApiError(400, f"messages and options: {size} characters, over {MAX_CHARS}", "too_long")
        return tuple(turns)


class Completion:
    """Forms the response to one request, whole or chunk by chunk.

    Args:
        request: the request.
        model: the name of the model in the API.
        videos: the identities of the artifacts and the ids of their videos, in the order of the videos.
    """

    def __init__(self, request: ChatRequest, model: str, videos: dict[str, str]) -> None:
        self._request, self._videos = request, videos
        self._shows_usage = request.stream_options is not None and request.stream_options.include_usage
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def whole(self, text: str, ended: Ended) -> dict[str, Any]:
        """The response to a request that does not stream."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": _FINISH[ended.reason], "logprobs": None}
        about = {"usage": _usage(ended), "sttm": self._about(ended)}
        return {**self._head, "object": "chat.completion", "choices": [choice], **about}

    def first(self) -> dict[str, Any]:
        """The chunk that opens the answer."""
        return self._chunk({"role": "assistant", "content": ""})

    def piece(self, text: str) -> dict[str, Any]:
        """A chunk with further text."""
        return self._chunk({"content": text})

    def last(self, ended: Ended) -> list[dict[str, Any]]:
        """The chunk that ends the answer, and the chunk with the usage if the request asked for it."""
        chunks = [{**self._chunk({}, _FINISH[ended.reason]), "sttm": self._about(ended)}]
        if self._shows_usage:
            chunks.append({**self._chunk({}), "choices": [], "usage": _usage(ended)})
        return chunks

    def _chunk(self, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        usage = {"usage": None} if self._shows_usage else {}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice], **usage}

    def _about(self, ended: Ended) -> dict[str, Any]:
        times = {name: round(getattr(ended, name), 4) for name in ("load_s", "ttft_s", "total_s")}
        about = {"identity": " ".join(self._videos), "kv_tokens": ended.kv_tokens, **times}
        if len(self._videos) > 1:
            about |= {"approximate": True, "videos": list(self._videos.values())}
        if ended.choice is not None and self._request.options is not None:
            about["choice"] = ended.choice.index
            about["probabilities"] = [round(p, 6) for p in ended.choice.probabilities]
        return about


def _usage(ended: Ended) -> dict[str, Any]:
    """Token counts. The video's tokens count as cached tokens of the prompt."""
    prompt = ended.prompt_tokens + ended.kv_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": ended.completion_tokens,
        "total_tokens": prompt + ended.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": ended.kv_tokens},
    }
