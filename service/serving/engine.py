"""The serving engine: finds the version that a reference names, loads it on demand, and predicts off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar

from service.db import Database
from service.references import ModelRef
from service.registry.bundle import load
from service.registry.repository import resolve
from service.serving.admission import Gate
from service.serving.batches import Images
from service.serving.errors import EngineClosed
from service.serving.inputs import Source
from service.serving.loaded import Key, Loaded
from service.serving.predict import Prediction, Predictor
from service.serving.sessions import Runtime, look, plan_providers
from service.settings import Settings
from service.storage import Storage

WORKERS = 2  # one decodes while another computes; each ONNX call has threads of its own
ResultT = TypeVar("ResultT")
Shape = tuple[int, int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """Predictions, and which bundle really made them under which α."""

    model: str  # name@version, whatever reference was asked for
    bundle: str
    alpha: float
    predictions: list[Prediction]


class Engine:
    """One for a process. Takes requests from an event loop; loads and computes in threads of its own."""

    def __init__(self, database: Database, storage: Storage, settings: Settings) -> None:
        """Raises CudaMissing where the settings demand CUDA and this machine has none."""
        self._database = database
        self._storage = storage
        self._settings = settings
        self._runtime = Runtime(
            plan_providers(look(), require_cuda=settings.require_cuda), threads=settings.serving_threads
        )
        self._loaded: Loaded[Predictor] = Loaded(settings.loaded_models, self._load)
        self._gate = Gate(WORKERS + settings.predict_queue)
        self._computing = ThreadPoolExecutor(WORKERS, thread_name_prefix="predict")
        self._loading = ThreadPoolExecutor(1, thread_name_prefix="load-model")  # traffic goes on meanwhile
        self._closed = False

    def close(self) -> None:
        """Finish what is being computed, drop what waits, let the models go."""
        self._closed = True
        for pool in (self._loading, self._computing):
            pool.shutdown(wait=True, cancel_futures=True)
        self._loaded.clear()

    def admit(self) -> AbstractContextManager[None]:
        """A place for one request, from before its body is read until its answer is made. Raises QueueFull."""
        if self._closed:
            raise _closed()
        return self._gate.enter()

    async def predict(
        self, reference: str | ModelRef, open_source: Callable[[Shape], Source], *, alpha: float | None
    ) -> Answer:
        """Predict all images of a source that is opened for the model's image shape; alpha None is the model's own.

        Works batch by batch, so that memory stays flat and no request keeps the others waiting for longer than one.
        """
        key = await asyncio.to_thread(self._resolve, reference)
        model = self._loaded.peek(key)
        if model is None:
            model = await self._in(self._loading, lambda: self._loaded.get(key))
        return await self._predict(str(ModelRef(*key)), model, open_source, model.alpha if alpha is None else alpha)

    async def _predict(
        self, name: str, model: Predictor, open_source: Callable[[Shape], Source], alpha: float
    ) -> Answer:
        model.check_alpha(alpha)
        source = await self._in(self._computing, lambda: open_source(model.image_shape))
        batches = source.batches(model.batch)
        predictions: list[Prediction] = []
        while found := await self._in(self._computing, lambda: _next_batch(model, batches, alpha)):
            predictions += found
        return Answer(name, model.digest, alpha, predictions)

    async def _in(self, pool: ThreadPoolExecutor, work: Callable[[], ResultT]) -> ResultT:
        try:
            future = asyncio.get_running_loop().run_in_executor(pool, work)
        except RuntimeError as error:  # the pool takes nothing more
            raise _closed() from error
        return await future

    def _resolve(self, reference: str | ModelRef) -> Key:
        with self._database.session() as session:
            row = resolve(session, reference)
            return row.name, row.version

    def _load(self, key: Key) -> Predictor:
        with self._database.session() as session:
            row = resolve(session, ModelRef(*key))
        bundle = load(self._storage, row.prefix, row.files)
        return Predictor(bundle, self._runtime, batch=self._settings.predict_batch)


def _next_batch(model: Predictor, batches: Iterator[Images], alpha: float) -> list[Prediction]:
    """Decode and predict; nothing when there are no more."""
    images = next(batches, None)
    return [] if images is None else model.predict(images, alpha=alpha)


def _closed() -> EngineClosed:
    return EngineClosed("The gateway is shutting down. Repeat the request in a moment.")
