"""A language model and the recently used videos of one store: loads videos and answers questions about them.

from sttm.query.question import Query
from sttm.query.worker import QueryWorker

worker = QueryWorker.open("/data/store")
video = worker.load(worker.store.find("clip.mp4").identity)
answers = worker.start(video, [Query(("What colour is the ball?",))])
while answers.is_running:
    answers.step()
print(answers.texts[0])
"""

from collections.abc import Sequence

from sttm.engine.compose import compose
from sttm.engine.context import require_room
from sttm.engine.likelihood import Steps, run_steps, scoring
from sttm.engine.ready_video import ReadyVideo, ready
from sttm.errors import QuestionError
from sttm.kv_cache import KVCache
from sttm.models.checkpoint import Checkpoint
from sttm.models.placement import Devices, first_gpus
from sttm.query.answers import Answers, Choice
from sttm.query.cache_tier import CacheConfig, CacheState, CacheTier, Identities
from sttm.query.checkpoint import newest_checkpoint, require_same_model
from sttm.query.disk_cache import DiskCache
from sttm.query.question import Query
from sttm.query.turns import text_ids, turns_ids
from sttm.store.kv.read_buffer import ReadBuffer
from sttm.store.store import Store


class QueryWorker:
    """Answers questions about the videos of one store with one language model.

    Args:
        store: the store that holds the artifacts.
        checkpoint: the model that made the artifacts. Artifacts of another model are refused.
        devices: one device for the model, or several to spread it over. The default is the GPU, or the CPU where there
            is no GPU.
        cache: memory and disk for videos that are kept for later questions.

    Attributes:
        store: the store.
        checkpoint: the model's checkpoint.
        model: the language model, loaded.
        family: the model's adapter, with its tokenizer.
        stop_ids: tokens that end an answer.
        videos: the videos kept in memory.
        disk: the copies of KV files kept on disk; None where no folder was named.
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
        recipe_digest: str | None = None,
    ) -> "QueryWorker":
        """A worker for the store at a URL, with the model that made its newest artifact.

        Args:
            store: URL of the store.
            model: folder or Hugging Face id of the checkpoint. The default is the one that the newest artifact names.
            devices: one device for the model, or several to spread it over.
            cache: memory and disk for videos that are kept for later questions.
            recipe_digest: look for the newest artifact among those of this recipe; None looks at all.

        Raises:
            StoreError: the URL holds no store, or the store holds no video that can be asked about.
            ModelError: the checkpoint did not make the newest artifact.
        """
        opened = Store.open(store)
        return cls(opened, newest_checkpoint(opened, model, recipe_digest), devices, cache)

    def load(self, *identities: str) -> ReadyVideo:
        """A stored video, ready to be asked about. It is kept for later questions.

        Args:
            identities: the identity of an artifact. Several are put together, approximately, as if shown one after
                the other; `sttm.engine.compose` measures what that costs.

        Raises:
            MissingObjectError: the store has no artifact with this identity.
            ArtifactError: a file of the artifact is damaged.
            ModelError: another model made the artifact.
            QuestionError: several artifacts were indexed with different recipes.
        """
        return self.videos.get(*identities)

    @property
    def cache_state(self) -> CacheState:
        """What the caches hold now, and how often they were used."""
        held, hits = (0, 0) if self.disk is None else (self.disk.size_bytes, self.disk.hits)
        return CacheState({**self.videos.size_bytes, "disk": held}, {**self.videos.counts, "disk": hits})

    def question_ids(self, video: ReadyVideo, query: Query) -> list[int]:
        """Token ids of a query's turns, as the model reads them after the video.

        Raises:
            ValueError: the turns do not end with a question.
            QuestionError: a turn holds a control token of the model, or the turns are too long for the model.
        """
        ids = turns_ids(self.family, query.turns)
        require_room(self.model, video, len(ids), query.sampling.max_tokens)
        return ids

    def start(
        self, video: ReadyVideo, queries: Sequence[Query], questions: Sequence[Sequence[int]] | None = None
    ) -> Answers:
        """Feed questions to the model as one batch. `Answers.step` then generates the answers token by token.

        Args:
            video: the video that the questions are about.
            queries: the questions.
            questions: what `question_ids` returned for each query, where it has been called already.

        Raises:
            ValueError: the turns of a query do not end with a question.
            QuestionError: a turn holds a control token of the model, or the turns are too long for the model.
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
        """The likeliest option of each question, by the likelihood of the option as the whole answer.

        Args:
            video: the video that the questions are about.
            turns: the turns of each question.
            options: the options of each question.
            max_rows: questions, or options, that are fed at once. Memory grows with it.

        Raises:
            ValueError: the turns of a question do not end with a question.
            QuestionError: a text holds a control token of the model, or a question is too long for the model.
        """
        return run_steps(self.choosing(video, turns, options, max_rows))

    def choosing(
        self,
        video: ReadyVideo,
        turns: Sequence[Sequence[str]],
        options: Sequence[Sequence[str]],
        max_rows: int = 64,
    ) -> Steps[list[Choice]]:
        """The work of `choose` in short steps, so that a scheduler can do other work between them."""
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

    def _read(self, identities: Identities) -> ReadyVideo:
        caches = [self._cache(identity) for identity in identities]
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
