"""One language model, the videos it has at hand, and texts in and out: what every way of asking is made of.

worker = QueryWorker.open("/data/store")
video = worker.load(worker.store.find("clip.mp4").identity)
answers = worker.start(video, [Query(("What is it?",))])
while answers.is_running:
    print(*answers.step())
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sttm.engine.answer import Continuation, Generation
from sttm.engine.compose import compose
from sttm.engine.context import require_room
from sttm.engine.likelihood import Pieces, finished, scoring
from sttm.engine.ready_video import ReadyVideo, ready
from sttm.engine.sampling import SamplingConfig
from sttm.errors import QuestionError
from sttm.kv_cache import KVCache
from sttm.models.checkpoint import Checkpoint
from sttm.models.placement import Devices, first_gpus
from sttm.query.cache_tier import CacheConfig, CacheState, CacheTier
from sttm.query.checkpoint import newest_checkpoint, require_same_model
from sttm.query.conversation import Conversation, text_ids, turns_ids
from sttm.query.disk_cache import DiskCache
from sttm.query.text_stream import TextStream
from sttm.store.kv.read_buffer import ReadBuffer
from sttm.store.store import Store

_AND = "+"  # between the identities of videos that are asked about together


@dataclass(frozen=True)
class Query:
    """What is asked about a video.

    Attributes:
        turns: question, answer, question, ...; the last is what is asked now.
        sampling: how the answer is generated, and where it ends.
    """

    turns: tuple[str, ...]
    sampling: SamplingConfig = field(default_factory=SamplingConfig)


@dataclass(frozen=True)
class Choice:
    """Which of several options a model finds likeliest, found without generating text.

    Attributes:
        index: the likeliest option.
        probabilities: p(option and end of turn | video, question) of each, normalised over the options.
        prompt_tokens: of the question.
    """

    index: int
    probabilities: tuple[float, ...]
    prompt_tokens: int


class Answers:
    """Texts of a batch of answers under way, all about one video.

    Attributes:
        prompt_tokens, completion_tokens: per row.
    """

    def __init__(
        self,
        model: Any,
        video: ReadyVideo,
        questions: Sequence[Sequence[int]],
        queries: Sequence[Query],
        tokenizer: Any,
        stop_ids: frozenset[int],
    ) -> None:
        self.prompt_tokens = [len(ids) for ids in questions]
        self.completion_tokens = [0] * len(queries)
        self._streams = [TextStream(tokenizer, query.sampling.stop) for query in queries]
        continuation = Continuation(model, video, questions, max(query.sampling.max_tokens for query in queries))
        sampling = [query.sampling for query in queries]
        self._generation = Generation(continuation, continuation.start(), stop_ids, sampling)

    @property
    def is_running(self) -> bool:
        return self._generation.is_running

    @property
    def texts(self) -> list[str]:
        """What each row has said so far."""
        return [stream.text for stream in self._streams]

    def ended(self, row: int) -> str | None:
        """None while a row runs, then `stop` (a stop token or text), `length`, or `cut`."""
        return "stop" if self._streams[row].is_stopped else self._generation.ended[row]

    def cut(self, row: int) -> None:
        """Nobody waits for this row any more."""
        self._generation.end(row)

    def step(self) -> list[str]:
        """One token further: the new text of each row, often empty."""
        ran = [ended is None for ended in self._generation.ended]
        pieces = [""] * len(self._streams)
        for row, token in enumerate(self._generation.step()):
            stream = self._streams[row]
            if token is not None:
                self.completion_tokens[row] += 1
                pieces[row] = stream.push(token)
            if stream.is_stopped:
                self._generation.end(row)
            if ran[row] and self._generation.ended[row] is not None:
                pieces[row] += stream.end()
        return pieces


class QueryWorker:
    """Answers questions about the videos of one store with one language model.

    Args:
        store: where the artifacts are.
        checkpoint: the model that made them; an artifact of another is refused.
        devices: where the model goes, one or several (`sttm.models.placement`); default the GPU if there is one.
        cache: how much memory videos may take.
    """

    def __init__(
        self,
        store: Store,
        checkpoint: Checkpoint,
        devices: Devices | None = None,
        cache: CacheConfig | None = None,
    ) -> None:
        cache = cache or CacheConfig()
        self.store, self.checkpoint = store, checkpoint
        self.model = checkpoint.load_language_model(devices or first_gpus(1))
        self.family = checkpoint.family(with_processor=False)
        self.stop_ids = self.family.stop_ids(checkpoint.generation_config)
        self.disk = None if cache.disk is None else DiskCache(cache.disk, cache.disk_bytes)
        self._buffer = ReadBuffer()
        self.videos = CacheTier(self._read, self.model.layer_devices, cache.device_bytes, cache.host_bytes)

    @classmethod
    def open(
        cls,
        store: str,
        model: str | None = None,
        devices: Devices | None = None,
        cache: CacheConfig | None = None,
    ) -> "QueryWorker":
        """A worker for the store at a URL, with the model that made its newest artifact.

        Args:
            store: URL of the store.
            model: folder or Hugging Face id of the checkpoint; default the one that the newest artifact names.
            devices, cache: the constructor's.

        Raises:
            StoreError: the URL holds no store, or the store holds no video that can be asked about.
            ModelError: the checkpoint did not make the newest artifact.
        """
        opened = Store.open(store)
        return cls(opened, newest_checkpoint(opened, model), devices, cache)

    def load(self, identity: str) -> ReadyVideo:
        """A stored video, ready to be asked about; kept for the next question.

        Args:
            identity: of an artifact, or of several as `joined` writes it: one video of several, approximately, see
                `sttm.engine.compose`.

        Raises:
            MissingObjectError: nothing is committed under this identity.
            ArtifactError: a file is damaged.
            ModelError: another model made it.
            QuestionError: several that were indexed by different recipes.
        """
        return self.videos.get(identity)

    @property
    def cache_state(self) -> CacheState:
        """What is at hand, and how often it was found there."""
        held, hits = (0, 0) if self.disk is None else (self.disk.size_bytes, self.disk.hits)
        return CacheState({**self.videos.size_bytes, "disk": held}, {**self.videos.counts, "disk": hits})

    def question_ids(self, video: ReadyVideo, query: Query) -> list[int]:
        """Token ids of a query's turns, which `start` can put to the model.

        Raises:
            ValueError: the turns do not end with a question.
            QuestionError: a text holds a control token of the model, or is too long for it.
        """
        ids = turns_ids(self.family, query.turns)
        require_room(self.model, video, len(ids), query.sampling.max_tokens)
        return ids

    def start(
        self, video: ReadyVideo, queries: Sequence[Query], questions: Sequence[Sequence[int]] | None = None
    ) -> Answers:
        """Feed questions; the texts then come step by step.

        Args:
            video: what they are about.
            queries: fed as one batch, padded to the longest.
            questions: what `question_ids` gave for each, where it has been called already.

        Raises:
            ValueError, QuestionError: as for `question_ids`.
        """
        if questions is None:
            questions = [self.question_ids(video, query) for query in queries]
        return Answers(self.model, video, questions, queries, self.family.tokenizer, self.stop_ids)

    def choose(
        self,
        video: ReadyVideo,
        turns: Sequence[Sequence[str]],
        options: Sequence[Sequence[str]],
        max_rows: int = 64,
    ) -> list[Choice]:
        """For each question (its turns) the likeliest of its options, by likelihood of the whole answer.

        Args:
            video: what they are about.
            turns, options: of each question.
            max_rows: questions, or options, fed at once; memory grows with it.

        Raises:
            ValueError, QuestionError: as for `start`.
        """
        return finished(self.choosing(video, turns, options, max_rows))

    def choosing(
        self,
        video: ReadyVideo,
        turns: Sequence[Sequence[str]],
        options: Sequence[Sequence[str]],
        max_rows: int = 64,
    ) -> Pieces[list[Choice]]:
        """`choose` piece by piece, so that other work, or a look at who still waits, can come between."""
        end = int(self.family.tokenizer.eos_token_id)
        questions = [turns_ids(self.family, turn) for turn in turns]
        ids = [[[*text_ids(self.family, text), end] for text in row] for row in options]
        for question, row in zip(questions, ids, strict=True):
            require_room(self.model, video, len(question), max(map(len, row)))
        scores = yield from scoring(self.model, video, questions, ids, max_rows)
        return [
            Choice(int(s.argmax()), tuple(s.softmax(0).tolist()), len(q))
            for s, q in zip(scores, questions, strict=True)
        ]

    def talk(self, video: ReadyVideo) -> Conversation:
        """Several turns about a video that reuse the tokens of the earlier ones."""
        return Conversation(self.model, video, self.family, self.stop_ids)

    def _read(self, identities: str) -> ReadyVideo:
        caches = [self._cache(identity) for identity in identities.split(_AND)]
        if len(caches) == 1:
            return ready(self.model, caches[0])
        try:
            return compose(self.model, caches)
        except ValueError as error:
            raise QuestionError(f"these videos cannot be asked about together: {error}") from None

    def _cache(self, identity: str) -> KVCache:
        manifest = self.store.manifest(identity)
        require_same_model(manifest, self.checkpoint)
        if self.disk is not None:
            return self.disk.load(self.store.storage, manifest, self.model.device, self._buffer)
        return self.store.load_kv(identity, self.model.device, self._buffer)


def joined(identities: Sequence[str]) -> str:
    """What `QueryWorker.load` takes for several videos shown one after the other."""
    return _AND.join(identities)
