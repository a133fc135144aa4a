"""Why something is as it is: the last word of the manifest first, then what followed from it, and nothing else."""

from __future__ import annotations

from typing import Any

from reconciler.core.chain import chain


def op(ref: str, verb: str, opened: float, closed: float | None = None, outcome: str = "done", **intent: Any) -> Any:
    return {"ref": ref, "verb": verb, "opened": opened, "closed": closed, "outcome": outcome, "intent": intent}


def event(at: float, ref: str, type_: str, message: str = "m") -> Any:
    return {"at": at, "ref": ref, "type": type_, "message": message}


def texts(ref: str, needs: list[str], operations: list[Any], events: list[Any]) -> list[str]:
    return [f"{link.at:g} {link.ref} {link.text}" for link in chain(ref, needs, operations, events)]


def test_a_chain_begins_with_the_manifest_and_ends_with_the_last_that_happened() -> None:
    operations = [
        op("model/chat", "fetch", 3.0, 5.5, reason="not here yet"),
        op("server/other", "start", 4.0, 4.5, reason="not running"),
        op(
            "server/chat", "start", 6.0, 7.25, "PROCESS_EXITED",
            reason="its settings changed", fields=[["models.chat.context", 2048, 4096], ["a.b", "x", "y"]],
        ),
    ]  # fmt: skip
    events = [
        event(1.0, "manifest", "Accepted", "generation 1"),
        event(1.5, "model/chat", "Failed", "long ago"),
        event(2.0, "manifest", "Accepted", "generation 2"),
        event(5.5, "model/chat", "Fetch", "fetch it"),
        event(7.0, "server/chat", "Failed", "PROCESS_EXITED: it ended"),
        event(7.5, "server/chat", "Failed", "PROCESS_EXITED: it ended again"),
        event(8.0, "server/other", "Failed", "no matter"),
        event(9.0, "manifest", "Rejected", "stack.yaml:1:1"),
    ]
    assert texts("server/chat", ["model/chat", "engine/embedded"], operations, events) == [
        "2 manifest Accepted: generation 2",
        "3 model/chat fetch, because not here yet: done after 2.5 s",
        "6 server/chat start, because its settings changed (models.chat.context: 2048 → 4096; a.b: x → y): "
        "PROCESS_EXITED after 1.2 s",
        "7.5 server/chat Failed: PROCESS_EXITED: it ended again",
        "9 manifest Rejected: stack.yaml:1:1",
    ]


def test_going_back_is_a_cause_too() -> None:
    events = [event(1.0, "manifest", "Accepted"), event(2.0, "manifest", "RolledBack", "generation 2 → 1")]
    assert texts("server/chat", [], [op("server/chat", "start", 3.0, reason="x")], events) == [
        "2 manifest RolledBack: generation 2 → 1",
        "3 server/chat start, because x: under way",
    ]


def test_a_manifest_that_made_nothing_of_it_is_no_cause() -> None:
    operations = [op("server/chat", "start", 2.0, 3.0, reason="not running"), op("server/new", "start", 6.0, 7.0)]
    events = [event(1.0, "manifest", "Accepted", "generation 1"), event(5.0, "manifest", "Accepted", "generation 2")]
    assert texts("server/chat", [], operations, events) == [
        "1 manifest Accepted: generation 1",
        "2 server/chat start, because not running: done after 1.0 s",
        "5 manifest Accepted: generation 2",
    ]


def test_one_to_which_nothing_was_done_has_the_last_word_of_the_manifest() -> None:
    events = [event(1.0, "manifest", "Accepted", "1"), event(2.0, "manifest", "Accepted", "2")]
    assert texts("server/chat", [], [], events) == ["2 manifest Accepted: 2"]
    assert texts("server/chat", [], [], []) == []


def test_without_a_manifest_in_the_log_all_that_is_known_is_told() -> None:
    operations = [op("model/chat", "fetch", 1.0, 2.0, reason="x"), op("model/chat", "verify", 9.0, 9.0, reason="y")]
    assert len(texts("model/chat", [], operations, [event(5.0, "model/chat", "Quarantined")])) == 3


def test_an_event_that_the_journal_tells_is_not_told_twice() -> None:
    operations = [op("model/chat", "fetch", 1.0, 2.0, reason="x")]
    told = [event(2.0, "model/chat", "Fetch"), event(1.5, "model/chat", "Failed")]
    told += [event(3.0, "model/chat", "Fetch"), event(3.5, "model/chat", "Failed"), event(1.5, "server/chat", "Failed")]
    assert [text[:22] for text in texts("model/chat", ["server/chat"], operations, told)] == [
        "1 model/chat fetch, be",
        "1.5 server/chat Failed",
        "3 model/chat Fetch: m",
        "3.5 model/chat Failed:",
    ]
