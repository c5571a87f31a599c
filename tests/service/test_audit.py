"""The audit log: what is told, that it cannot be told otherwise afterwards, and that it shows where somebody tried."""

from __future__ import annotations

import hashlib
import io
import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import structlog
from hypothesis import HealthCheck, given
from hypothesis import settings as deadlines
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.exc import DatabaseError, IntegrityError
from typer.testing import CliRunner, Result

from service.api.schemas import encode_cursor
from service.app import create_app
from service.audit import BEGINNING, STACK, Action, Actor, Head, Sealed, append, verify
from service.auth import ensure_admin_key
from service.cli import app as winnow
from service.client import ProblemError, WinnowClient
from service.db import Database
from service.errors import Corrupt, InvalidInput
from service.settings import Settings
from service.storage import LocalStorage
from tests.service.conftest import MakeDataset
from tests.service.live import serving
from tests.service.tiny_model import publish_version

SEALED = ("seq", "at", "actor_id", "actor", "action", "subject", "request_id", "details", "prev_hash", "tenant")
COLUMNS = (*SEALED, "hash")
ENTRIES = 4


def tell(database: Database, subject: str = "job x", **details: object) -> None:
    with database.transaction() as session:
        append(session, Actor("k1", "camera", "r-1"), Action.JOB_SUBMITTED, subject, **details)


@pytest.fixture
def log(database: Database) -> Database:
    """A log of a few entries, whose guards against change somebody has taken away."""
    for number in range(ENTRIES):
        tell(database, f"job {number}", inputs={"dataset": f"signs@{number + 1}"}, note="é")
    with database.transaction() as session:
        of_postgresql = database.engine.dialect.name == "postgresql"
        names = ["append_only ON audit_log"] if of_postgresql else ["no_update", "no_delete"]
        for name in names:
            session.execute(text(f"DROP TRIGGER audit_log_{name}"))
    return database


def fault(database: Database, expected: Head | None = None) -> str | None:
    with database.session() as session:
        return verify(session, expected).fault


def head(database: Database) -> Head:
    with database.session() as session:
        return verify(session).head


def after(database: Database, statement: str, **values: object) -> str | None:
    """The fault that shows once `statement` was run; nothing stays changed."""
    with database.transaction() as session:
        session.execute(text(statement), values)
        found = verify(session).fault
        session.rollback()
    return found


@pytest.mark.both_databases
def test_a_log_as_it_was_written_is_intact(log: Database) -> None:
    with log.session() as session:
        found = verify(session)
    assert found.intact and found.entries == found.head.seq == ENTRIES
    assert Head.parse(str(found.head)) == found.head


def test_an_empty_log_is_intact(database: Database) -> None:
    assert fault(database) is None and head(database) == Head(0, BEGINNING)


@pytest.mark.both_databases
def test_the_hash_is_what_the_docs_say(log: Database) -> None:
    with log.session() as session:
        *fields, stored = session.execute(text(f"SELECT {', '.join(COLUMNS)} FROM audit_log WHERE seq = 2")).one()  # noqa: S608
    written = json.dumps(fields, separators=(",", ":")).encode("ascii")
    assert hashlib.sha256(written).hexdigest() == stored
    assert json.loads(fields[7]) == {"inputs": {"dataset": "signs@2"}, "note": "é"}


@pytest.mark.parametrize("column", COLUMNS)
def test_any_flipped_bit_of_any_column_is_found(log: Database, column: str) -> None:
    for seq in range(1, ENTRIES + 1):
        with log.session() as session:
            value = session.execute(text(f"SELECT {column} FROM audit_log WHERE seq = :seq"), {"seq": seq}).scalar_one()  # noqa: S608
        bits = range(16) if column == "seq" else range(8 * len(value.encode()))
        for bit in bits if seq == 2 else [*bits][:: len(bits) // 8]:  # all of one row, some of each
            change = "CAST(:value AS TEXT)" if column != "seq" else ":value"
            where = f"UPDATE audit_log SET {column} = {change} WHERE seq = :seq"  # noqa: S608
            flipped = value ^ (1 << bit) if column == "seq" else flip(value, bit)
            try:
                assert after(log, where, value=flipped, seq=seq) is not None, (seq, bit)
            except IntegrityError:
                assert column == "seq"  # the number of another row
    assert fault(log) is None


def flip(value: str, bit: int) -> bytes:
    data = bytearray(value.encode())
    data[bit // 8] ^= 1 << bit % 8
    return bytes(data)


@pytest.mark.parametrize("seq", range(1, ENTRIES + 1))
def test_a_removed_entry_is_found(log: Database, seq: int) -> None:
    assert after(log, "DELETE FROM audit_log WHERE seq = :seq", seq=seq) is not None


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_log SET seq = CASE seq WHEN 2 THEN -3 ELSE -2 END WHERE seq IN (2, 3)",
        "UPDATE audit_log SET seq = seq + 100",
        "UPDATE audit_log SET request_id = NULL WHERE seq = 1",
        "UPDATE audit_log SET request_id = '' WHERE seq = 1",
        "UPDATE audit_log SET details = ' ' || details WHERE seq = 1",
        "UPDATE audit_log SET action = CAST(action AS BLOB) WHERE seq = 1",
        "UPDATE audit_log SET hash = upper(hash) WHERE seq = 1",
        f"INSERT INTO audit_log (seq, {', '.join(COLUMNS[1:])}) SELECT 5, {', '.join(COLUMNS[1:])} FROM audit_log "  # noqa: S608
        "WHERE seq = 4",
        "UPDATE audit_log SET tenant = NULL WHERE seq = 1",
        "DELETE FROM audit_log",
        "DELETE FROM audit_head",
        "UPDATE audit_head SET seq = 3",
        "UPDATE audit_head SET hash = 'a' || substr(hash, 2) || 'b'",
        "UPDATE audit_head SET hash = CAST(X'FF' AS TEXT)",
    ],
)
def test_other_ways_to_tamper_are_found(log: Database, statement: str) -> None:
    assert after(log, statement) is not None


@pytest.mark.both_databases
def test_two_entries_in_each_others_place_are_found(log: Database) -> None:
    with log.transaction() as session:
        for change in ("-seq", "CASE seq WHEN -2 THEN 3 ELSE 2 END"):
            session.execute(text(f"UPDATE audit_log SET seq = {change} WHERE abs(seq) IN (2, 3)"))  # noqa: S608
    assert fault(log) == "Entry 2 does not follow on entry 1: one of them was changed or moved."


@pytest.mark.both_databases
def test_a_log_written_anew_is_found_by_a_head_that_was_noted(log: Database) -> None:
    noted = head(log)
    with log.transaction() as session:
        session.execute(text("DELETE FROM audit_log WHERE seq > 2"))
        kept = session.execute(text("SELECT hash FROM audit_log WHERE seq = 2")).scalar_one()
        session.execute(text("UPDATE audit_head SET seq = 2, hash = :kept"), {"kept": kept})
    assert fault(log) is None
    assert fault(log, noted) == "The log ends with entry 2; entry 4 was noted and is gone."
    for number in range(3):
        tell(log, f"job other {number}")
    assert fault(log) is None
    assert fault(log, noted) == "Entry 4 is not the one that was noted: the log was written anew."
    assert fault(log, head(log)) is None


@pytest.mark.both_databases
def test_the_database_itself_refuses_changes(database: Database) -> None:
    tell(database)
    for statement in ("UPDATE audit_log SET actor = 'x'", "DELETE FROM audit_log"):
        with pytest.raises(DatabaseError, match="append-only"), database.transaction() as session:
            session.execute(text(statement))
    assert fault(database) is None and head(database).seq == 1


@pytest.mark.both_databases
def test_an_entry_comes_with_its_change_or_not_at_all(database: Database) -> None:
    class Oops(Exception):
        pass

    with pytest.raises(Oops), database.transaction() as session:
        append(session, STACK, Action.KEY_CREATED, "k")
        raise Oops
    assert head(database) == Head(0, BEGINNING)
    with database.transaction() as session:
        session.execute(text("DELETE FROM audit_head"))
    with pytest.raises(Corrupt):
        tell(database)


@pytest.mark.both_databases
def test_many_at_once_make_one_chain(database: Database) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: tell(database, f"job {number}"), range(80)))
    assert fault(database) is None and head(database).seq == 80


TEXTS = st.text('a",', max_size=3)  # few, so that what is joined carelessly comes out the same
FIELDS = st.tuples(TEXTS, TEXTS, TEXTS, st.none() | TEXTS, TEXTS)


@given(FIELDS, FIELDS)
@deadlines(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_entries_that_differ_have_other_hashes(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    def seal(fields: tuple[Any, ...]) -> str:
        actor_id, actor, subject, request_id, details = fields
        return Sealed(1, "now", actor_id, actor, "a", subject, request_id, details, BEGINNING).seal()

    assert (seal(one) == seal(other)) == (one == other)


@pytest.mark.parametrize(
    "words", ["", "4", "4:", "4:abc", "-1:" + "0" * 64, "4:" + "A" * 64, "9" * 5000 + ":" + "0" * 64]
)
def test_what_is_no_head(words: str) -> None:
    with pytest.raises(InvalidInput):
        Head.parse(words)


# Over HTTP


@pytest.fixture
def client(settings: Settings, database: Database) -> Iterator[WinnowClient]:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # stdout is the command's
    key = ensure_admin_key(settings)
    with serving(create_app(settings), key=key) as http, WinnowClient(str(http.base_url), key) as opened:
        yield opened
    structlog.reset_defaults()


def told(client: WinnowClient) -> list[tuple[str, str]]:
    """(action, subject), oldest first, without the key that the test itself uses."""
    return [(entry.action, entry.subject) for entry in client.audit.entries()][::-1][1:]


def npz() -> io.BytesIO:
    buffer = io.BytesIO()
    np.savez(buffer, images=np.zeros((4, 8, 8), np.uint8), labels=np.arange(4))
    buffer.seek(0)
    return buffer


def test_every_change_is_told_with_who_and_what(
    client: WinnowClient, database: Database, storage: LocalStorage, make_dataset: MakeDataset
) -> None:
    publish_version(database, storage, "signs")
    publish_version(database, storage, "signs")
    dataset = make_dataset("signs", {"a": 600, "b": 600})
    key = client.keys.create("camera-7", ["upload", "jobs"])
    with WinnowClient(client.url, key.secret) as camera:
        ingest = camera.upload_dataset("signs", npz())
        job = camera.submit("sanitise", dataset=dataset, idempotency_key="once")
        camera.submit("sanitise", dataset=dataset, idempotency_key="once")  # nothing new
        camera.cancel(job.id)
        camera.cancel(job.id)
        camera.retry(job.id)
        with pytest.raises(ProblemError):
            camera.submit("sanitise", dataset="none@1")
        put(camera, "/v1/models/signs/aliases/champion", {"version": 1})
        put(camera, "/v1/models/signs/aliases/champion", {"version": 1})
        put(camera, "/v1/models/signs/aliases/champion", {"version": 2})
    client.keys.rotate(key.id)
    client.keys.revoke(key.id)
    client.keys.revoke(key.id)
    assert told(client) == [
        ("key.created", key.id),
        ("upload.accepted", "dataset signs"),
        ("job.submitted", f"job {job.id}"),
        ("job.cancelled", f"job {job.id}"),
        ("job.retried", f"job {job.id}"),
        ("alias.moved", "model signs:champion"),
        ("alias.moved", "model signs:champion"),
        ("key.rotated", key.id),
        ("key.revoked", key.id),
    ]
    moved, first = client.audit.entries(action="alias.moved")
    assert (json.loads(moved.details), json.loads(first.details)) == ({"now": 2, "was": 1}, {"now": 1, "was": None})
    assert (moved.actor_id, moved.actor) == (key.id, "camera-7") and moved.request_id
    uploaded = next(client.audit.entries(action="upload.accepted"))
    assert json.loads(uploaded.details)["job"] == ingest.id
    found = client.audit.verify()
    assert found.intact and found.entries == 10
    everything = json.dumps([entry.model_dump() for entry in client.audit.entries()])
    assert key.secret not in everything and key.secret[9:] not in everything


def put(client: WinnowClient, path: str, body: dict[str, Any]) -> None:
    client._send("PUT", path, json=body)


@pytest.mark.both_databases
def test_the_log_is_read_page_by_page(client: WinnowClient, database: Database) -> None:
    for number in range(250):
        tell(database, f"job {number}")
    assert [entry.seq for entry in client.audit.entries()] == list(range(251, 0, -1))
    with pytest.raises(ProblemError, match="SEQ:HASH"):
        client.audit.verify(expect="4:x")
    with pytest.raises(ProblemError):
        list(client.audit.entries(action="no.such"))
    for cursor in ("9" * 5000, "-1", "x"):
        with pytest.raises(ProblemError) as refused:
            client._send("GET", "/v1/audit", params={"cursor": encode_cursor(cursor)})
        assert refused.value.code == "bad_cursor"


Command = Callable[..., Result]


@pytest.fixture
def command(client: WinnowClient, settings: Settings) -> Command:
    env = {"COLUMNS": "200", "WINNOW_HOME": str(settings.home), "WINNOW_KEY": None, "WINNOW_URL": client.url}
    return lambda *arguments: CliRunner().invoke(winnow, ["audit", *arguments], env=env)


def test_the_command_line_verifies_with_and_without_the_service(
    client: WinnowClient, command: Command, log: Database
) -> None:
    sound = head(log)
    ways: list[tuple[str, ...]] = [("verify",), ("verify", "--url", client.url)]
    for way in ways:
        ran = command(*way)
        assert ran.exit_code == 0 and f"intact: {sound}" in ran.stdout
        assert command(*way, "--expect", str(sound)).exit_code == 0
        assert command(*way, "--expect", f"2:{'0' * 64}").exit_code == 1
        assert "SEQ:HASH" in command(*way, "--expect", "x").stderr
    with log.transaction() as session:
        session.execute(text("UPDATE audit_log SET actor = 'nobody' WHERE seq = 3"))
    for way in ways:
        ran = command(*way, "--json")
        assert ran.exit_code == 1
        assert json.loads(ran.stdout)["fault"] == "Entry 3 is not what was written."
        assert "NOT intact: Entry 3" in command(*way).stdout


def test_the_command_line_lists(command: Command, database: Database) -> None:
    tell(database, "job [red]x", note="[bold]")
    shown = command("list").stdout
    assert "camera" in shown and "job [red]x" in shown and '{"note":"[bold]"}' in shown
    assert [row["seq"] for row in json.loads(command("list", "--limit", "1", "--json").stdout)] == [2]


def test_there_is_nothing_to_verify_without_a_database(tmp_path: Any) -> None:
    ran = CliRunner().invoke(winnow, ["audit", "verify", "--home", str(tmp_path)], env={"WINNOW_URL": None})
    assert ran.exit_code == 1 and "no database" in ran.stderr
    assert list(tmp_path.iterdir()) == []
