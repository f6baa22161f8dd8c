"""The server's own page: drop an image, see the classes, and whether these bits are the validated
ones.

Takes a `Service`. The page is one file without outside resources; `POST /images` takes an image
file.
"""

import asyncio
import functools
import time
from dataclasses import asdict
from pathlib import Path

from deploy.compare.bits import Array
from deploy.predict.predictor import LogitSource, Prediction, Predictor
from deploy.server.application import Page, Request, Response, json_response
from deploy.server.protocol import ProtocolError
from deploy.server.service import Service
from export.bundle import CARD, Bundle
from export.preprocess import ImageError

_LARGEST_IMAGE = 16 * 2**20
_AT_ONCE = 2
"""How many images are decoded at the same time: a file of a megabyte may hold many megapixels."""
_TOP = 5
_POLICY = "default-src 'none'; img-src blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'"
_HEADERS = ((b"content-security-policy", _POLICY.encode()), (b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"))


def pages_of(service: Service) -> dict[str, Page]:
    """Return the paths of the page."""
    images = _Images(service)
    return {
        "/": Page("GET", _page, open_to_all=True),
        "/about": Page("GET", functools.partial(_about, service)),
        "/images": Page("POST", images.answer, most_bytes=_LARGEST_IMAGE),
    }


@functools.cache
def _html() -> bytes:
    return Path(__file__).with_name("image_page.html").read_bytes()


async def _page(request: Request) -> Response:
    return Response(_html(), "text/html; charset=utf-8", 200, _HEADERS)


async def _about(service: Service, request: Request) -> Response:
    """Return what the page shows of the model."""
    model = service.model
    facts = {
        "model": service.spec.name,
        "version": service.version,
        "form": model.form,
        "runtime": model.runtime,
        "batching": model.batching,
        "verified": model.verified,
        "ready": service.ready,
        "bundle_sha256": model.sha256,
        "classes": len(model.labels),
        "input": list(service.spec.input.sizes),
        "card": "" if model.bundle is None else _card(model.bundle),
    }
    return json_response(facts)


def _card(bundle: Bundle) -> str:
    return bundle.read(CARD).decode(errors="replace") if bundle.has(CARD) else ""


class _Images:
    """Answers image files, decoded by the bundle's recipe."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._decoding = asyncio.Semaphore(_AT_ONCE)

    async def answer(self, request: Request) -> Response:
        service = self._service
        model, loop = service.model, asyncio.get_running_loop()
        if model.bundle is None:
            raise ProtocolError(404, "this server has no recipe for images")

        def logits(pixels: Array) -> Array:
            """Run in the thread that decodes; the service belongs to the loop's."""
            return asyncio.run_coroutine_threadsafe(service.infer(pixels, None), loop).result()

        predictor = Predictor(model.bundle.manifest, LogitSource(logits, {}, 1))
        started = time.perf_counter_ns()
        try:
            async with self._decoding:
                found = await loop.run_in_executor(None, predictor.predict, request.body)
        except ImageError as error:
            service.note("http", "invalid", started)
            raise ProtocolError(400, f"the image cannot be used: {error}") from error
        service.note("http", "ok", started)
        return json_response({**_told(found), "milliseconds": round((time.perf_counter_ns() - started) / 1e6, 2), "bits": model.bits})


def _told(found: Prediction) -> dict[str, object]:
    return {"classes": [asdict(each) for each in found.classes[:_TOP]], "sha256_of_pixels": found.sha256_of_pixels}
