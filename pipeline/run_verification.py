"""One request, one verification: of a bundle's own chain or of a pair of forms.

Takes a request and a console; publishes the verdict. Imports code that needs torch only if a
bundle's graphs are rebuilt.
"""

from collections.abc import Iterator

from pydantic import JsonValue

from deploy.compare.bits import Arrays
from deploy.report.differences import pictures_of
from deploy.report.publish import Destinations, publish
from deploy.report.verification import Verification, printable
from deploy.verify.pair import compare_pair
from deploy.verify.request import BundleRequest, PairRequest, VerifyRequest
from pipeline.progress import Console, Outcome, shown


def verify(request: VerifyRequest, destinations: Destinations, console: Console) -> Outcome:
    """Run a verification, write the requested files, and return the result.

    What is verified stays as it is.
    """
    earlier = destinations.prepared()
    found = run_verification(request, console)
    publication = publish(found, destinations, earlier)
    told: dict[str, JsonValue] = {**_subject(request), **({"report": str(publication.report)} if publication.report else {})}
    lines = [*found.lines, *(f"{kind}: {path}" for kind, path in told.items()), *publication.lines(destinations.against)]
    facts: dict[str, JsonValue] = {**told, "verification": found.as_json}
    if publication.changes is not None:
        facts["changes"] = list[JsonValue](publication.changes)
    return Outcome(facts, "\n".join(map(printable, lines)), found.failure, found.verdict.interrupted, publication.unwritten)


def run_verification(request: VerifyRequest, console: Console) -> Verification:
    """Compare what is requested and judge it."""
    match request:
        case BundleRequest():
            from export.bundle import open_bundle
            from pipeline.bundle.contents import samples_of
            from pipeline.bundle.verify_bundle import verify_bundle

            bundle = open_bundle(request.folder)
            return verify_bundle(bundle, samples_of(bundle, request.samples), request, console)
        case PairRequest():
            return _of_a_pair(request, console)
    raise TypeError(f"no verification of a {type(request).__name__}")


def _of_a_pair(request: PairRequest, console: Console) -> Verification:
    def with_progress(batches: Iterator[Arrays], number: int) -> Iterator[Arrays]:
        return shown(console, batches, "comparing", number)

    result = compare_pair(request, with_progress)
    facts = {"reference": request.reference.name, "candidate": request.candidate.name}
    return Verification(result.verdict, (), (), facts, pictures=pictures_of(result.rows))


def _subject(request: VerifyRequest) -> dict[str, str]:
    match request:
        case BundleRequest():
            return {"bundle": str(request.folder)}
        case PairRequest():
            return {"reference": str(request.reference), "candidate": str(request.candidate)}
    raise TypeError(f"no verification of a {type(request).__name__}")
