"""The serving engine: finds the version that a reference names, loads it on demand, and answers in batches."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from service.db import Database
from service.errors import WinnowError
from service.references import ModelRef, parse_model_ref
from service.registry.bundle import load
from service.registry.repository import resolve
from service.serving.admission import Admission, Gate
from service.serving.answers import DEFAULTS, Answers, Observed, Options, Prediction
from service.serving.batcher import Batcher
from service.serving.batches import Images
from service.serving.calling import Calling
from service.serving.errors import BadImages, DeadlineExceeded, EngineClosed, QueueFull, TenantQueueFull
from service.serving.inputs import Source
from service.serving.loaded import Key, Loaded
from service.serving.routes import Place, Routes
from service.serving.served import Served
from service.serving.sessions import Runtime, look, plan_providers
from service.settings import Settings
from service.storage import Storage
from service.tables import DEFAULT
from service.tenancy import TenantStorage

DECODERS = 2
AHEAD = 4  # calls' worth of images that a large request has decoded at once
ResultT = TypeVar("ResultT")
Shape = tuple[int, int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """Predictions, and which bundle really made them under which α."""

    model: str  # name@version, whatever reference was asked for
    bundle: str
    alpha: float
    predictions: list[Prediction]


@dataclass(frozen=True, slots=True)
class Load:
    """What is in house at this moment."""

    inside: int  # requests, from before their body is read until they are answered
    queued_requests: int
    queued_images: int
    computing: int  # calls


class Engine:
    """One for a process. Takes requests from an event loop; loads, decodes and computes in threads of its own."""

    def __init__(self, database: Database, storage: Storage, settings: Settings) -> None:
        """Raises CudaMissing where the settings demand CUDA and this machine has none."""
        self._database, self._storage, self._settings = database, storage, settings
        plan = plan_providers(look(), require_cuda=settings.require_cuda, tensorrt_wanted=settings.tensorrt)
        self._runtime = Runtime(plan)
        self._loaded: Loaded[Served] = Loaded(settings.loaded_models, settings.loaded_bytes, self._load)
        self._routes = Routes(self._look, self._loaded.peek, self._load_off_loop)
        self._gate = Gate(settings.serving_threads + settings.predict_queue)
        self._batcher = Batcher(settings.serving_threads, delay_s=settings.predict_delay_ms / 1000)
        self._decoding = ThreadPoolExecutor(DECODERS, thread_name_prefix="decode")
        self._loading = ThreadPoolExecutor(1, thread_name_prefix="load-model")  # traffic goes on meanwhile
        self._looking = ThreadPoolExecutor(1, thread_name_prefix="look-up-model")
        self._closed = False
        self.watchers: list[Callable[[Observed], None]] = []

    @property
    def refusals(self) -> list[Callable[[str, WinnowError], None]]:
        """Called with the tenant and the error for each request that found no place, or waited for too long."""
        return self._gate.refusals

    @property
    def closing(self) -> bool:
        """Whether it takes nothing more."""
        return self._closed

    def close(self) -> None:
        """Finish what is being computed, drop what waits, let the models go."""
        self._closed = True
        self._batcher.close()
        for pool in (self._loading, self._looking, self._decoding):
            pool.shutdown(wait=True, cancel_futures=True)
        self._loaded.clear()

    def admit(self, *, tenant: str = DEFAULT) -> Admission:
        """A place for one request, from before its body is read until its answer is made.

        Raises QueueFull, TenantQueueFull or EngineClosed.
        """
        if self._closed:
            raise _closed()
        return self._gate.enter(tenant)

    def ask(self, *, tenant: str = DEFAULT) -> Admission | QueueFull | TenantQueueFull | EngineClosed:
        """As `admit`; what it would raise is handed back."""
        return _closed() if self._closed else self._gate.ask(tenant)

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
        place = tenant, model if isinstance(model, ModelRef) else parse_model_ref(model)
        served = self._routes.peek(place) or await self._find(place)
        return await self._ask(served, images, options, tenant, deadline)

    async def model(self, reference: str | ModelRef, *, tenant: str = DEFAULT) -> Served:
        """The version that the reference means to this tenant, loaded if need be."""
        place = tenant, reference if isinstance(reference, ModelRef) else parse_model_ref(reference)
        return self._routes.peek(place) or await self._find(place)

    async def load(self, reference: str | ModelRef, *, tenant: str = DEFAULT) -> Served:
        """Have exactly the version that the reference means now in memory. Raises what makes it unusable."""
        ref = reference if isinstance(reference, ModelRef) else parse_model_ref(reference)
        return await self._load_off_loop(await self._look((tenant, ref)))

    async def try_bundle(self, prefix: str, digests: Mapping[str, str], *, tenant: str = DEFAULT) -> None:
        """Load and warm a bundle that no version points at yet, and let it go. Raises what makes it unusable."""

        def tried() -> None:
            bundle = load(TenantStorage(self._storage, tenant), prefix, digests)
            Served(bundle, self._runtime, name="tried", version=1, batch=self._settings.predict_batch)

        await self._in(self._loading, tried)

    async def unload(self, name: str, *, tenant: str = DEFAULT) -> list[str]:
        """Let all versions of a model go from memory; asked for again, they are loaded again."""
        keys = [key for key, _ in self._loaded.items() if key[:2] == (tenant, name)]
        return [str(ModelRef(key[1], key[2])) for key in keys if self._loaded.drop(key)]

    def changed(self, name: str, *, tenant: str = DEFAULT) -> None:
        """An alias of this model has moved: follow it with the next request."""
        self._routes.changed(tenant, name)

    def loaded(self) -> list[Served]:
        """In memory and warm at this moment."""
        return [served for _, served in self._loaded.items()]

    def in_memory(self) -> list[tuple[str, str]]:
        """Tenant and name@version of all that is loaded."""
        return [(key[0], served.reference) for key, served in self._loaded.items()]

    def is_ready(self, reference: str | ModelRef, *, tenant: str = DEFAULT) -> bool:
        """Whether a request would be answered at once, as far as is known without looking."""
        ref = reference if isinstance(reference, ModelRef) else parse_model_ref(reference)
        key = self._routes.key((tenant, ref)) or (tenant, ref.name, ref.version or 0)
        return self._loaded.peek(key) is not None

    def load_state(self) -> Load:
        requests, images = self._batcher.waiting()
        return Load(self._gate.inside, requests, images, self._batcher.computing)

    async def predict(
        self,
        reference: str | ModelRef,
        open_source: Callable[[Shape], Source],
        options: Options = DEFAULTS,
        *,
        tenant: str = DEFAULT,
        deadline: float | None = None,
    ) -> Answer:
        """Predict all images of a source that is opened for the model's image shape.

        One version answers all of them. Works a few calls at a time, so that memory stays flat.
        """
        served = await self.model(reference, tenant=tenant)
        served.how(options)
        source = await self.off_loop(lambda: open_source(served.image_shape))
        batches = source.batches(AHEAD * served.batch)
        predictions: list[Prediction] = []
        while (images := await self.off_loop(lambda: next(batches, None))) is not None:
            predictions += (await self._ask(served, images, options, tenant, deadline)).predictions()
        alpha = served.alpha if options.alpha is None else options.alpha
        return Answer(served.reference, served.bundle, alpha, predictions)

    async def off_loop(self, work: Callable[[], ResultT]) -> ResultT:
        """Run blocking work, such as decoding an image, in a thread of the engine's."""
        return await self._in(self._decoding, work)

    async def _ask(
        self, served: Served, images: Images, options: Options, tenant: str, deadline: float | None
    ) -> Answers:
        if images.ndim != 4 or images.shape[1:] != served.image_shape or not len(images) or images.dtype != "u1":
            raise BadImages(
                f"The images are {images.dtype} of shape {images.shape}; {served.reference} takes uint8 "
                f"({', '.join(map(str, ('n', *served.image_shape)))}), n at least 1.",
                code="bad_image_shape",
            )
        calling = served.calling(served.how(options)) or await self._make_calling(served, options)
        until = time.monotonic() + self._settings.predict_timeout_ms / 1000 if deadline is None else deadline
        alone = self._gate.inside == 1
        try:
            answers = await self._batcher.answer(
                served, calling, images, options, tenant=tenant, deadline=until, alone=alone
            )
        except DeadlineExceeded as error:
            self._gate.tell(tenant, error)
            raise
        for watch in self.watchers:
            watch(Observed(tenant, images, options, answers))
        return answers

    async def _make_calling(self, served: Served, options: Options) -> Calling:
        return await self._in(self._loading, lambda: served.make_calling(served.how(options)))

    async def _find(self, place: Place) -> Served:
        if self._closed:
            raise _closed()
        return await self._routes.find(place)

    async def _look(self, place: Place) -> Key:
        tenant, reference = place

        def resolved() -> Key:
            with self._database.of(tenant).session() as session:
                row = resolve(session, reference)
                return tenant, row.name, row.version

        return await self._in(self._looking, resolved)

    async def _load_off_loop(self, key: Key) -> Served:
        served = self._loaded.peek(key)
        return await self._in(self._loading, lambda: self._loaded.get(key)) if served is None else served

    async def _in(self, pool: ThreadPoolExecutor, work: Callable[[], ResultT]) -> ResultT:
        try:
            future = asyncio.get_running_loop().run_in_executor(pool, work)
        except RuntimeError as error:  # the pool takes nothing more
            raise _closed() from error
        return await future

    def _load(self, key: Key) -> Served:
        tenant, name, version = key
        with self._database.of(tenant).session() as session:
            row = resolve(session, ModelRef(name, version))
        bundle = load(TenantStorage(self._storage, tenant), row.prefix, row.files)
        return Served(bundle, self._runtime, name=name, version=version, batch=self._settings.predict_batch)


def _closed() -> EngineClosed:
    return EngineClosed("The gateway is shutting down. Repeat the request in a moment.")
