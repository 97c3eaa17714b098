"""A store opened for asking: its videos, their caches and tokens, and answers from one language model."""

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sttm.errors import StoreError, SttmError
from sttm.store.catalog.row import CatalogRow
from sttm.store.catalog.view import CatalogView
from sttm.store.recipes import ChosenRecipe, choose_recipe
from sttm.store.store import Store

if TYPE_CHECKING:  # torch takes seconds to import, and listing videos needs none of it
    import torch

    from sttm.engine.sampling import SamplingConfig
    from sttm.kv_cache import KVCache
    from sttm.models.placement import Devices
    from sttm.query.cache_tier import CacheConfig
    from sttm.query.worker import QueryWorker
    from sttm.store.tokens import Tokens


@dataclass(frozen=True)
class Answer:
    """The answer to one question about one video. `str(answer)` is its text.

    Attributes:
        video: id of the video.
        name: file name of the video.
        question: the question.
        answer: text of the answer, or the likeliest of the options; empty where there is an error.
        probabilities: probability of each option, normalised over the options; empty without options.
        load_s: seconds until the video's cache was loaded; near 0 where it was loaded already.
        answer_s: seconds from then to the end of the answer.
        error: why there is no answer; empty where there is one.
    """

    video: str
    name: str
    question: str
    answer: str = ""
    probabilities: tuple[float, ...] = ()
    load_s: float = 0.0
    answer_s: float = 0.0
    error: str = ""

    def __str__(self) -> str:
        return self.answer or f"({self.error})"


class Archive:
    """The videos of one store under one recipe, to be listed, read and asked about. Make it with `sttm.open`.

    The language model is loaded at the first question, and caches stay on its device for further questions. One archive
    may be used from several threads; questions are then answered one after another.

    Attributes:
        store: the store.
        recipe: the recipe whose caches are used, and which others the store holds.
    """

    def __init__(
        self,
        store: Store,
        recipe: ChosenRecipe,
        model: str | None,
        devices: "Devices | None",
        cache: "CacheConfig | None",
    ) -> None:
        self.store, self.recipe = store, recipe
        self._model, self._devices, self._cache = model, devices, cache
        self._view = CatalogView(store.storage, recipe_digest=recipe.digest)
        self._worker: QueryWorker | None = None
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls,
        store: str | Path,
        *,
        recipe: str | None = None,
        model: str | None = None,
        devices: "Devices | None" = None,
        cache: "CacheConfig | None" = None,
    ) -> "Archive":
        """Open a store that holds indexed videos.

        Args:
            store: folder or `s3://` URL of the store.
            recipe: first digits of the recipe whose caches to use, as `sttm store ls` shows it; None takes the newest.
            model: folder or Hugging Face id of the checkpoint; None takes the one that the caches name. A checkpoint
                that did not make the caches is refused.
            devices: where the model goes, one device or several; None takes the first GPU, or the CPU.
            cache: memory and disk for the videos that stay loaded.

        Raises:
            StoreError: there is no store, it holds no video that can be asked about, or no such recipe.
        """
        opened = Store.open(str(store))
        return cls(opened, choose_recipe(opened, recipe), model, devices, cache)

    def videos(self) -> list[CatalogRow]:
        """The videos that can be asked about, in the order in which they were indexed. Reads the whole catalog."""
        return [row for row in self._view.rows() if row.status == "ok"]

    def find(self, video: str) -> CatalogRow:
        """The catalog row of one video.

        Args:
            video: id, URI or file name of the video.

        Raises:
            StoreError: no video or several go by this name, or indexing it failed.
        """
        return self._view.find(video)

    def ask(
        self,
        video: str,
        question: str,
        *,
        options: Sequence[str] = (),
        history: Sequence[str] = (),
        sampling: "SamplingConfig | None" = None,
    ) -> Answer:
        """Answer one question about one video from its stored cache.

        Args:
            video: id, URI or file name of the video.
            question: the question.
            options: texts of which the likeliest is chosen; without options an answer is generated.
            history: earlier questions and answers about the video, alternating, for a follow-up question.
            sampling: how the answer is generated; None takes the likeliest token each time, 64 tokens at most.

        Raises:
            QuestionError: the question is empty, too long for the model, or holds a control token.
            StoreError: no video or several go by this name, or its stored cache is damaged.
            ModelError: the checkpoint cannot be loaded, or did not make this cache.
        """
        return self._ask(self.find(video), question, options, history, sampling)

    def ask_all(
        self,
        question: str,
        *,
        videos: Sequence[str] | None = None,
        options: Sequence[str] = (),
        sampling: "SamplingConfig | None" = None,
    ) -> Iterator[Answer]:
        """Ask every video the same question. A video that cannot be asked gives an `Answer` with an `error`.

        For many questions about many videos `sttm answer` uses all GPUs of a cluster.

        Args:
            question: the question.
            videos: ids, URIs or file names of the videos to ask; None asks all of them.
            options: texts of which the likeliest is chosen; without options an answer is generated.
            sampling: how answers are generated; None takes the likeliest token each time, 64 tokens at most.

        Raises:
            QuestionError: the question or an option cannot be asked of any video.
            ModelError: the checkpoint cannot be loaded.
        """
        _require_askable(question, options)
        self._loaded()
        for name in [row.video_id for row in self.videos()] if videos is None else videos:
            try:
                yield self._ask(self.find(name), question, options, (), sampling)
            except SttmError as error:
                yield Answer(name, name, question, error=str(error))

    def kv(self, video: str, device: "torch.device | str" = "cpu") -> "KVCache":
        """The stored KV cache of a video, every byte verified: per layer keys (before RoPE) and values.

        Args:
            video: id, URI or file name of the video.
            device: where the tensors go.

        Raises:
            StoreError: no video or several go by this name, or its stored cache is damaged.
        """
        return self.store.load_kv(self.find(video).identity, device)

    def tokens(self, video: str) -> "Tokens":
        """The merged visual tokens of a video: features bfloat16 [M, C], their boxes and times.

        Args:
            video: id, URI or file name of the video.

        Raises:
            StoreError: no video or several go by this name, or its stored tokens are damaged.
        """
        return self.store.load_tokens(self.find(video).identity)

    def _ask(
        self,
        row: CatalogRow,
        question: str,
        options: Sequence[str],
        history: Sequence[str],
        sampling: "SamplingConfig | None",
    ) -> Answer:
        from sttm.engine.sampling import SamplingConfig
        from sttm.query.question import Query

        _require_askable(question, options)
        turns, worker = (*history, question), self._loaded()
        with self._lock:
            started = time.perf_counter()
            prepared = worker.load(row.identity)
            loaded = time.perf_counter()
            probabilities: tuple[float, ...] = ()
            if options:
                (choice,) = worker.choose(prepared, [turns], [options])
                text, probabilities = options[choice.index], choice.probabilities
            else:
                answers = worker.start(prepared, [Query(turns, sampling or SamplingConfig())])
                while answers.is_running:
                    answers.step()
                text = answers.texts[0].strip()
            ended = time.perf_counter()
        return Answer(row.video_id, row.name, question, text, probabilities, loaded - started, ended - loaded)

    def _loaded(self) -> "QueryWorker":
        """The worker, with its model loaded."""
        from sttm.query.checkpoint import open_checkpoint
        from sttm.query.worker import QueryWorker

        with self._lock:
            if self._worker is None:
                newest = self._view.newest()
                if newest is None:
                    raise StoreError(
                        f"{self.store.storage.url} holds no video that can be asked about; index some first"
                    )
                checkpoint = open_checkpoint(self.store.manifest(newest.identity), self._model)
                self._worker = QueryWorker(self.store, checkpoint, self._devices, self._cache)
            return self._worker


def _require_askable(question: str, options: Sequence[str]) -> None:
    from sttm.errors import QuestionError
    from sttm.query.question import fault

    if cause := fault(question, options):
        raise QuestionError(f"cannot ask {question[:80]!r}: {cause}")
