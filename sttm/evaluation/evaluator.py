"""Asks the questions about one video under every reducer. The video is read and vision-encoded only once."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sttm.engine.answer import Continuation, answer
from sttm.engine.context import positions_of, require_room_for_questions
from sttm.engine.likelihood import score_options
from sttm.engine.prefill import prefill, require_possible
from sttm.engine.ready_video import ReadyVideo, ready
from sttm.engine.sampling import SamplingConfig
from sttm.errors import VideoError
from sttm.evaluation.questions import Question, RowError, VideoQuestions
from sttm.evaluation.reducers import Reducer
from sttm.evaluation.scoring import Verdict, judge
from sttm.models.base import Prompt
from sttm.models.checkpoint import Checkpoint
from sttm.models.language_model import LanguageModel
from sttm.models.video_inputs import VideoInputs
from sttm.store.kv.file import decode_kv, encode_kv

REPLY_TOKENS = 16  # of the longest reply, unless the settings say more: one letter, or a few words
_ROWS_AT_ONCE = 64  # questions, or options of questions, in one batch; all share the keys of the video


@dataclass(frozen=True)
class Outcome:
    """One video under one reducer.

    Attributes:
        replies: the reply to each question: generated text, or the likeliest option for `likelihood`.
        verdicts: whether each reply is right. Both are in the order of `VideoOutcome.asked`.
        tokens_before: visual tokens that enter the merge.
        tokens_after: visual tokens that leave it.
        over_target: visual tokens kept beyond the budget.
        prefill_s: seconds of the prefill, merge included; without the vision tower, which runs once for all reducers.
        ttft_s: seconds from the finished cache to the first token of one question. Where the cache was encoded, they
            include decoding it.
        kv_bytes: bytes of the cache in memory, or of the file that it was encoded to.
    """

    replies: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    tokens_before: int
    tokens_after: int
    over_target: int
    prefill_s: float
    ttft_s: float
    kv_bytes: int


@dataclass(frozen=True)
class VideoOutcome:
    """One video under all reducers.

    Attributes:
        name: what messages call the video.
        asked: the questions that could be asked.
        outcomes: one for each reducer, in the order of the reducers; empty if nothing could be asked.
        errors: the questions that could not be asked.
    """

    name: str
    asked: tuple[Question, ...]
    outcomes: tuple[Outcome, ...]
    errors: tuple[RowError, ...] = ()


class Evaluator:
    """Holds one model on one device.

    A question counts for all reducers or for none: it is asked only if it fits behind the full video.

    Args:
        checkpoint: any supported model.
        reducers: what to compare.
        sampling: how replies are generated; by default the likeliest tokens, at most `REPLY_TOKENS`.
        device: torch's name of the device for the model.

    Raises:
        ConfigError: the settings of a reducer do not go with the model.
        ModelError: the checkpoint cannot be used.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        reducers: Sequence[Reducer],
        sampling: SamplingConfig | None = None,
        device: str = "cpu",
    ) -> None:
        self._reducers, self._device = tuple(reducers), torch.device(device)
        for reducer in self._reducers:
            require_possible(checkpoint.config.get_text_config(), reducer.merge, reducer.prefill)
        self._family = checkpoint.family()
        self._model = checkpoint.load_model(device)
        self._language_model = LanguageModel.of(self._model)
        self._stop = self._family.stop_ids(checkpoint.generation_config)
        self._control = [token for token in self._family.tokenizer.get_added_vocab() if token.strip()]
        self._sampling = sampling or SamplingConfig(max_tokens=REPLY_TOKENS)

    def preprocess(self, video: VideoQuestions) -> VideoInputs:
        """Read and resize a video. This needs neither the weights nor the device.

        Raises:
            SttmError: the video cannot be read.
            ValueError: the model's processor refuses its frames.
        """
        clip = video.read()
        return self._family.preprocess(clip.pixels, clip.seconds)

    def run(self, video: VideoQuestions, inputs: VideoInputs) -> VideoOutcome:
        """Answer and judge all questions of a video under every reducer."""
        asked, errors = self._askable(video)
        if not asked:
            return VideoOutcome(video.name, (), (), errors)
        prompt = self._family.prompt(self._model, inputs)
        try:
            asked, too_long = self._fitting(video, asked, prompt)
        except VideoError as error:
            return VideoOutcome(video.name, (), (), errors + _all_refused(video, asked, error))
        ids = [self._family.question_ids(question.prompt) for question in asked]
        errors += too_long
        if not asked:
            return VideoOutcome(video.name, (), (), errors)
        outcomes = tuple(self._reduce(prompt, reducer, asked, ids) for reducer in self._reducers)
        return VideoOutcome(video.name, asked, outcomes, errors)

    def _askable(self, video: VideoQuestions) -> tuple[tuple[Question, ...], tuple[RowError, ...]]:
        """Questions without the control tokens of the model, which would steer it, and errors for the others."""
        asked, errors = [], []
        for question in video.questions:
            text = "\n".join((question.prompt, *question.options))
            control = [token for token in self._control if token in text]
            if control:
                errors.append(RowError(question.row, video.name, f"it holds the model's control token {control[0]!r}"))
            else:
                asked.append(question)
        return tuple(asked), tuple(errors)

    def _fitting(
        self, video: VideoQuestions, asked: tuple[Question, ...], prompt: Prompt
    ) -> tuple[tuple[Question, ...], tuple[RowError, ...]]:
        """Questions that fit, with their answers, behind the video in the model's positions; errors for the others.

        Raises:
            VideoError: the video leaves no room for any question.
        """
        config, start = self._language_model.text.config, prompt.next_position
        if any(reducer.prefill.position_rule == "reassigned" for reducer in self._reducers):
            start = max(start, len(prompt.ids))  # reassigned positions count every token, M-RoPE fewer
        require_room_for_questions(config, len(prompt.ids), start, "lower video.max_frames")
        room = positions_of(config) - start
        fitting, errors = [], []
        for question in asked:
            tokens = len(self._family.question_ids(question.prompt)) + self._answer_tokens(question)
            if tokens > room:
                cause = (
                    f"it takes {tokens} tokens with its answer, and the video leaves {room} of the model's positions"
                )
                errors.append(RowError(question.row, video.name, cause))
            else:
                fitting.append(question)
        return tuple(fitting), tuple(errors)

    def _answer_tokens(self, question: Question) -> int:
        if question.scoring == "likelihood":
            return max(len(self._option_ids(option)) for option in question.options)
        return self._sampling.max_tokens

    def _reduce(self, prompt: Prompt, reducer: Reducer, asked: tuple[Question, ...], ids: list[list[int]]) -> Outcome:
        _wait(self._device)
        started = time.perf_counter()
        result = prefill(self._language_model, prompt, reducer.merge, reducer.prefill)
        _wait(self._device)
        prefilled = time.perf_counter()
        cache, data = result.cache, None
        if reducer.kv_scheme is not None:
            data = encode_kv(cache, reducer.kv_scheme).data
        stored = time.perf_counter()
        video = ready(self._language_model, cache if data is None else decode_kv(data, device=self._device))
        Continuation(self._language_model, video, ids[:1], room=0).start().argmax(-1).tolist()
        first_token = time.perf_counter()
        replies, verdicts = self._answer(video, asked, ids)
        return Outcome(
            replies=replies,
            verdicts=verdicts,
            tokens_before=len(prompt.visual),
            tokens_after=len(result.merged),
            over_target=result.merged.over_target,
            prefill_s=prefilled - started,
            ttft_s=first_token - stored,
            kv_bytes=cache.size_bytes if data is None else len(data),
        )

    def _answer(
        self, video: ReadyVideo, asked: tuple[Question, ...], ids: list[list[int]]
    ) -> tuple[tuple[str, ...], tuple[Verdict, ...]]:
        replies, verdicts = [""] * len(asked), [Verdict(False, False)] * len(asked)
        generated = [i for i, question in enumerate(asked) if question.scoring != "likelihood"]
        for at in range(0, len(generated), _ROWS_AT_ONCE):
            batch = generated[at : at + _ROWS_AT_ONCE]
            tokens = answer(self._language_model, video, [ids[i] for i in batch], self._stop, self._sampling)
            for i, row in zip(batch, tokens, strict=True):
                text = self._family.tokenizer.decode(row, skip_special_tokens=True)
                replies[i] = _before_stop(text, self._sampling.stop).strip()
                verdicts[i] = judge(asked[i], replies[i])
        chosen = [i for i, question in enumerate(asked) if question.scoring == "likelihood"]
        options = [[self._option_ids(option) for option in asked[i].options] for i in chosen]
        scores = score_options(self._language_model, video, [ids[i] for i in chosen], options, _ROWS_AT_ONCE)
        for i, score in zip(chosen, scores, strict=True):
            likeliest = int(score.argmax())
            replies[i] = asked[i].options[likeliest]
            verdicts[i] = Verdict(likeliest == asked[i].right)
        return tuple(replies), tuple(verdicts)

    def _option_ids(self, option: str) -> list[int]:
        """An option as a whole answer: its tokens and the token that ends the turn."""
        tokenizer = self._family.tokenizer
        return [*tokenizer(option, add_special_tokens=False)["input_ids"], int(tokenizer.eos_token_id)]


def _before_stop(text: str, stops: Sequence[str]) -> str:
    """The text up to the first of the stop texts."""
    for stop in stops:
        text = text.partition(stop)[0] if stop else text
    return text


def _all_refused(video: VideoQuestions, asked: Sequence[Question], error: VideoError) -> tuple[RowError, ...]:
    return tuple(RowError(question.row, video.name, str(error)) for question in asked)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
