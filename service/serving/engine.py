"""The serving engine: finds the version that a reference names, loads it on demand, and predicts off the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar

from service.db import Database
from service.errors import WinnowError
from service.references import ModelRef, parse_model_ref
from service.registry.bundle import load
from service.registry.repository import resolve
from service.serving.admission import Gate
from service.serving.answers import DEFAULTS, Answers, Observed, Options, Prediction
from service.serving.batches import Images
from service.serving.errors import BadImages, DeadlineExceeded, EngineClosed
from service.serving.inputs import Source
from service.serving.loaded import Key, Loaded
from service.serving.predict import Predictor
from service.serving.sessions import Runtime, look, plan_providers
from service.settings import Settings
from service.storage import Storage
from service.tables import DEFAULT
from service.tenancy import TenantStorage

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
        self.watchers: list[Callable[[Observed], None]] = []
        self.refusals: list[Callable[[str, WinnowError], None]] = []

    def close(self) -> None:
        """Finish what is being computed, drop what waits, let the models go."""
        self._closed = True
        for pool in (self._loading, self._computing):
            pool.shutdown(wait=True, cancel_futures=True)
        self._loaded.clear()

    def admit(self, *, tenant: str = "") -> AbstractContextManager[None]:  # noqa: ARG002 - shares come with the batcher
        """A place for one request, from before its body is read until its answer is made. Raises QueueFull."""
        if self._closed:
            raise _closed()
        return self._gate.enter()

    async def infer(
        self,
        model: str | ModelRef,
        images: Images,
        options: Options = DEFAULTS,
        *,
        tenant: str = DEFAULT,
        deadline: float | None = None,
    ) -> Answers:
        """What one version says of images uint8 (n, h, w, c) of its shape. deadline: of time.monotonic()."""
        found = await self.model(model, tenant=tenant)
        if images.ndim != 4 or images.shape[1:] != found.image_shape or not len(images):
            raise BadImages(
                f"The images have shape {images.shape}; {found.reference} takes (n, "
                f"{', '.join(map(str, found.image_shape))}), n at least 1.",
                code="bad_image_shape",
            )
        if deadline is not None and time.monotonic() >= deadline:
            raise DeadlineExceeded("The deadline passed before the images were looked at.")
        alpha = found.alpha if options.alpha is None else options.alpha
        found.check_alpha(alpha)
        answers = await self._in(self._computing, lambda: found.predict(images, alpha=alpha))
        for watch in self.watchers:
            watch(Observed(tenant, images, options, answers))
        return answers

    async def model(self, reference: str | ModelRef, *, tenant: str = DEFAULT) -> Predictor:
        """The version that the reference means to this tenant, loaded if need be."""
        key = await asyncio.to_thread(self._resolve, tenant, reference)
        model = self._loaded.peek(key)
        return await self._in(self._loading, lambda: self._loaded.get(key)) if model is None else model

    async def predict(
        self,
        reference: str | ModelRef,
        open_source: Callable[[Shape], Source],
        *,
        alpha: float | None,
        tenant: str = DEFAULT,
    ) -> Answer:
        """Predict all images of a source that is opened for the model's image shape; alpha None is the model's own.

        Works batch by batch, so that memory stays flat and no request keeps the others waiting for longer than one.
        """
        model = await self.model(reference, tenant=tenant)
        name = parse_model_ref(model.reference)
        model.check_alpha(model.alpha if alpha is None else alpha)
        source = await self.off_loop(lambda: open_source(model.image_shape))
        batches = source.batches(model.batch)
        predictions: list[Prediction] = []
        while (images := await self.off_loop(lambda: next(batches, None))) is not None:
            predictions += (await self.infer(name, images, Options(alpha), tenant=tenant)).predictions()
        return Answer(model.reference, model.digest, model.alpha if alpha is None else alpha, predictions)

    async def off_loop(self, work: Callable[[], ResultT]) -> ResultT:
        """Run blocking work, such as decoding an image, in a thread of the engine's."""
        return await self._in(self._computing, work)

    async def _in(self, pool: ThreadPoolExecutor, work: Callable[[], ResultT]) -> ResultT:
        try:
            future = asyncio.get_running_loop().run_in_executor(pool, work)
        except RuntimeError as error:  # the pool takes nothing more
            raise _closed() from error
        return await future

    def _resolve(self, tenant: str, reference: str | ModelRef) -> Key:
        with self._database.of(tenant).session() as session:
            row = resolve(session, reference)
            return tenant, row.name, row.version

    def _load(self, key: Key) -> Predictor:
        tenant, name, version = key
        with self._database.of(tenant).session() as session:
            row = resolve(session, ModelRef(name, version))
        bundle = load(TenantStorage(self._storage, tenant), row.prefix, row.files)
        batch = self._settings.predict_batch
        return Predictor(bundle, self._runtime, name=row.name, version=row.version, batch=batch)


def _closed() -> EngineClosed:
    return EngineClosed("The gateway is shutting down. Repeat the request in a moment.")
