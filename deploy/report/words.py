"""The verdict of verification.json in words: a title, sentences, and the figures beside them."""

import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from deploy.report.drawing import NOTHING, figure, number_in, percent
from deploy.report.views import CheckView, Json, LinkView, Tone
from deploy.verify.verdict import ENOUGH, weakness

_LONGEST_REASON = 240
_PRECISION = "precision"
_OF_THE_BATCH = ("statistics", "mixup")
"""The kinds of parts that made a sample's training outputs depend on its batch."""


@dataclass(frozen=True)
class Summary:
    """The verdict as sentences, and the figures beside it."""

    passed: bool
    word: str
    title: str
    sentences: tuple[str, ...]
    tiles: tuple[tuple[str, str, Tone], ...]


def is_of_a_pair(facts: Json) -> bool:
    """Whether it compares two given forms, about whose training nothing is known."""
    return {"reference", "candidate"} <= facts.keys()


def summary(verification: Json, links: Sequence[LinkView], invariance: Sequence[CheckView], *, of_a_pair: bool) -> Summary:
    verdict = verification.get("verdict")
    ran = [link for link in links if link.tone != "absent"]
    failed = [link for link in ran if link.tone == "failed"]
    held = len(ran) - len(failed)
    tones = [*(link.tone for link in links), *(check.tone for check in invariance)]
    passed = verdict == "pass" and held > 0 and "failed" not in tones
    title = _title_of_a_pass(tones, of_a_pair=of_a_pair) if passed else "The outputs are not shown to be the same."
    if failed:
        title = "The outputs are not the same."
    elif verdict == "incomplete":
        title = "The comparison was interrupted: some samples were not compared."
    sentences = [
        *(_training_only(verification) if passed and not of_a_pair else ()),
        *_not_foldable(verification.get("not_foldable")),
        *_held(ran, held),
        *_failures(failed, invariance),
        *_absent(links),
        *_weak(ran, verification.get("errors")),
        *_contradiction(verdict, passed, links),
    ]
    word = "PASS" if passed else "INCOMPLETE" if verdict == "incomplete" and not failed else "FAIL"
    return Summary(passed, word, title, tuple(sentences), _tiles(links, ran, held))


def _title_of_a_pass(tones: Sequence[Tone], *, of_a_pair: bool) -> str:
    if "tolerance" in tones:
        return "The outputs are as near as a human said they must be."
    return "Both are the same function." if of_a_pair else "What was validated is what will run."


def _training_only(verification: Json) -> list[str]:
    """What training had and deployment lacks, and from when on training lacked it too.

    It is empty if this was not recorded.
    """
    listed: Sequence[Json] | None = verification.get("training_only")
    if listed is None:
        return []
    computed = [str(part.get("what")) for part in listed if part.get("kind") == _PRECISION]
    parts = [part for part in listed if part.get("kind") != _PRECISION]
    to_the_end = [part for part in parts if part.get("off_since_step") is None]
    sentences = [*_acting(to_the_end), *_frozen(verification, parts, to_the_end)] or ["The training graph had nothing that the deployed one lacks."]
    return [*sentences, *(f"{what[:1].upper()}{what[1:]}." for what in computed)]


def _acting(parts: Sequence[Json]) -> list[str]:
    if not parts:
        return []
    number = "1 part" if len(parts) == 1 else f"{len(parts)} parts"
    another = ", so its training graph differed from the deployed one" if any(part.get("kind") in _OF_THE_BATCH for part in parts) else ""
    counted = spoken_counts(str(part.get("what")) for part in parts)
    return [f"Training also had {number} that deployment lacks, switched off for this comparison: {counted}{another}."]


def _frozen(verification: Json, parts: Sequence[Json], to_the_end: Sequence[Json]) -> list[str]:
    """From which step on the two graphs were the same, and how that changed the accuracy."""
    frozen: Json | None = verification.get("frozen_statistics")
    off = [str(part.get("what")) for part in parts if part.get("off_since_step") is not None]
    if not frozen or not off:
        return []
    but = " but for what is named above" if to_the_end else ""
    since, last = figure(frozen.get("since_step")), figure(frozen.get("last_step"))
    return [
        f"After step {since} of {last} the training graph and the deployed graph were identical{but}: {spoken_counts(off)} had been recomputed "
        f"over the whole training set and frozen; {spoken_accuracies(frozen)}."
    ]


def spoken_accuracies(frozen: Json) -> str:
    """The effect of freezing the statistics."""
    moments = {"before": "accuracy_before", "right after recomputing": "accuracy_recomputed", "at the end": "accuracy_at_end"}
    known = {when: number_in(frozen.get(key)) for when, key in moments.items()}
    return "test accuracy " + ", ".join(f"{NOTHING if share is None else f'{share:.2%}'} {when}" for when, share in known.items())


def _not_foldable(listed: Sequence[Json] | None) -> list[str]:
    """What is deployed as it was trained, because no plain layer computes it."""
    counted = spoken_counts(str(part.get("what")) for part in listed or ())
    return [f"Not foldable: {counted}. These layers are deployed as they were trained, with their own operations in the file."] if counted else []


def spoken_counts(words: Iterable[str]) -> str:
    """How often each text occurs, in the order of first occurrence."""
    return "; ".join(f"{count} x {what}" for what, count in Counter(words).items())


def _held(ran: Sequence[LinkView], held: int) -> list[str]:
    if not ran:
        return ["Nothing was compared, and a comparison that compared nothing is a failure."]
    tones = [link.tone for link in ran]
    counts = sorted({int(link.record.get("samples") or 0) for link in ran})
    samples = " to ".join(f"{count:,}" for count in dict.fromkeys((counts[0], counts[-1])))
    kinds = [
        (tones.count("bitwise"), "to the last bit"),
        (tones.count("budget"), "within the derived budget"),
        (tones.count("tolerance"), "within a tolerance that a human chose"),
    ]
    how = " and ".join(f"{count} {text}" for count, text in kinds if count)
    links = "link was" if len(ran) == 1 else "links were"
    which = "all hold" if held == len(ran) else f"{held} of them {'holds' if held == 1 else 'hold'}"
    hold = f"{which}: {how}" if held else "none of them holds"
    return [f"{len(ran)} {links} compared on {samples} samples; {hold}."]


def _failures(failed: Sequence[LinkView], invariance: Sequence[CheckView]) -> list[str]:
    sentences = [f"{link.name} failed: {_reason(link.record)}." for link in failed]
    checks = [check.record for check in invariance if check.tone == "failed"]
    return sentences + [f"{record.get('stage')} failed the check {record.get('check')}: {_reason(record)}." for record in checks]


def _absent(links: Sequence[LinkView]) -> list[str]:
    absent = [f"{link.name} ({_reason(link.record)})" for link in links if link.tone == "absent"]
    return [f"Not run, and so not part of this verdict: {'; '.join(absent)}."] if absent else []


def _weak(ran: Sequence[LinkView], errors: object) -> list[str]:
    """The outputs that show hardly any fault; see `weak_outputs` of the verdict."""
    known = [each for each in errors if isinstance(each, Mapping)] if isinstance(errors, Sequence) else []
    allowed = {(each.get("stage"), each.get("output")): number_in((each.get("budget") or {}).get("max")) for each in known}
    found: dict[str, float] = {}
    for link in ran:
        for output in link.record.get("outputs") or ():
            least = ENOUGH * (allowed.get((link.record.get("to"), output.get("name"))) or 0.0)
            spread = number_in(output.get("spread"))
            if spread is not None and spread <= least and int(output.get("num_samples") or 0) > 1:
                found[str(output.get("name"))] = spread
    return [f"{weakness(name, spread)}." for name, spread in found.items()]


def _contradiction(verdict: object, passed: bool, links: Sequence[LinkView]) -> list[str]:
    if verdict not in ("pass", "fail", "incomplete"):
        return ["The data holds no verdict of “pass”, “fail” or “incomplete”."]
    if verdict == "pass" and not passed:
        called = ", ".join(link.name for link in links if link.contradicts)
        return ["The data says “pass”, and its own figures contradict it" + (f" at {called}." if called else ".")]
    return []


def _reason(record: Json) -> str:
    reason = textwrap.shorten(str(record.get("reason") or "no reason was given"), _LONGEST_REASON, placeholder=" (and so on)")
    return reason.rstrip(".")


def _tiles(links: Sequence[LinkView], ran: Sequence[LinkView], held: int) -> tuple[tuple[str, str, Tone], ...]:
    shares = [link.share for link in ran if link.share is not None]
    changes = sum(int(link.record.get("top1_changes") or 0) for link in ran)
    ties = sum(int(link.record.get("ties") or 0) for link in ran)
    bitwise = sum(link.tone == "bitwise" for link in ran)
    worst = max(shares, default=None)
    return (
        (f"{held} of {len(ran)}", "links that ran hold", "bitwise" if ran and held == len(ran) else "failed"),
        (str(bitwise), "with the same bits", "bitwise" if bitwise else "absent"),
        (
            percent(worst),
            "of the budget used at most",
            "absent" if worst is None else "budget" if worst <= 1 else "failed",
        ),
        (f"{changes:,}", f"top-1 changes, {ties:,} of them ties", "budget" if changes == ties else "failed"),
        (str(len(links) - len(ran)), "links not run", "absent"),
    )
