"""Asks one video's questions under every reducer. The video is read and vision-encoded once for all of them."""

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
from sttm.models.base import Prompt, VideoInputs
from sttm.models.checkpoint import Checkpoint
from sttm.models.language_model import LanguageModel
from sttm.store.kv.file import decode_kv, encode_kv

_ROWS_AT_ONCE = 64  # questions, or options of questions; the video's keys are not copied for them


@dataclass(frozen=True)
class Outcome:
    """What one reducer made of one video.

    Attributes:
        replies: the text generated for each question; for `likelihood`, the likeliest option.
        verdicts: of each question, in the order of `VideoQuestions.questions`.
        tokens_before, tokens_after: visual tokens; over_target: how many more than the budget were kept.
        prefill_s: prefill alone, merge included; the vision tower is the same for all reducers.
        ttft_s: from the finished cache (decoding included, where it was encoded) to one question's first token.
        kv_bytes: of the live cache, or of the encoded file.
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
        asked: the questions that could be asked.
        outcomes: one a reducer, in their order.
        errors: questions that could not.
    """

    name: str
    asked: tuple[Question, ...]
    outcomes: tuple[Outcome, ...]
    errors: tuple[RowError, ...] = ()


class Evaluator:
    """Holds one model on one device.

    A question counts for all reducers or none: it is asked only if it fits behind the full video.

    Args:
        checkpoint: any supported model.
        reducers: what to compare.
        max_tokens: longest reply.
        device: where the model goes.

    Raises:
        ConfigError: a reducer's settings do not go with the model.
        ModelError: the checkpoint cannot be used.
    """

    def __init__(
        self, checkpoint: Checkpoint, reducers: Sequence[Reducer], max_tokens: int = 16, device: str = "cpu"
    ) -> None:
        self._reducers, self._device = tuple(reducers), torch.device(device)
        for reducer in self._reducers:
            require_possible(checkpoint.config.get_text_config(), reducer.merge, reducer.prefill)
        self._family = checkpoint.family()
        self._model = checkpoint.load_model(device)
        self._language_model = LanguageModel.of(self._model)
        self._stop = self._family.stop_ids(checkpoint.generation_config)
        self._control = [token for token in self._family.tokenizer.get_added_vocab() if token.strip()]
        self._sampling = SamplingConfig(max_tokens=max_tokens)

    def preprocess(self, video: VideoQuestions) -> VideoInputs:
        """Read and resize a video: the part that needs neither weights nor the device.

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
        """Questions whose text cannot steer the model by control tokens, and errors for the rest."""
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
        """Questions that end, answer included, within the model's positions, and errors for the rest.

        Raises:
            VideoError: the video leaves no room for any.
        """
        config, start = self._language_model.text.config, prompt.next_position
        if any(reducer.prefill.position_rule == "reassigned" for reducer in self._reducers):
            start = max(start, len(prompt.ids))  # more than M-RoPE's own
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
                replies[i] = self._family.tokenizer.decode(row, skip_special_tokens=True).strip()
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
        """An option as a whole answer: its tokens and the end of the turn."""
        tokenizer = self._family.tokenizer
        return [*tokenizer(option, add_special_tokens=False)["input_ids"], int(tokenizer.eos_token_id)]


def _all_refused(video: VideoQuestions, asked: Sequence[Question], error: VideoError) -> tuple[RowError, ...]:
    return tuple(RowError(question.row, video.name, str(error)) for question in asked)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
