"""Recordings to be written down: forms, as good and as bad as they come."""

from __future__ import annotations

import asyncio
import json
from asyncio import StreamWriter
from email.parser import BytesParser
from email.policy import HTTP
from pathlib import Path
from typing import Any

import openai
import psutil
from hypothesis import given
from hypothesis import strategies as st

from reconciler.gateway import multipart
from reconciler.gateway.errors import Refusal
from tests.gateway.harness import (
    SESSION_KEY,
    Asked,
    Gateway,
    error_of,
    model,
    provider,
    raw_exchange,
    response,
    route,
    status_of,
    stub,
    target,
)

SOUND = b"RIFF\x00\xff\r\n--not-the-boundary\r\n\x00--X" * 50
PATH = "/v1/audio/transcriptions"


async def hears(asked: Asked, writer: StreamWriter) -> None:
    writer.write(response(b'{"text":"Good morning."}'))


def fields_of(asked: Asked) -> dict[str, bytes]:
    """The parts of a form as another reader takes them."""
    head = f"Content-Type: {asked.header('content-type')}\r\n\r\n".encode()
    message = BytesParser(policy=HTTP).parsebytes(head + asked.body)
    parts = [(part.get_param("name", header="content-disposition"), part) for part in message.iter_parts()]
    return {str(name): part.get_payload(decode=True) for name, part in parts}  # type: ignore[misc,union-attr]


def form(*parts: bytes, mark: bytes = b"X", end: bytes = b"--\r\n") -> bytes:
    return b"".join(b"--" + mark + b"\r\n" + part + b"\r\n" for part in parts) + b"--" + mark + end


def field(name: str, value: str) -> bytes:
    return f'Content-Disposition: form-data; name="{name}"\r\n\r\n{value}'.encode()


FILE = b'Content-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n' + SOUND
MODEL = field("model", "chat")
KIND = "multipart/form-data; boundary=X"


async def send(gateway: Gateway, body: bytes, kind: str | None = KIND, *headers: str) -> bytes:
    lines = [f"POST {PATH} HTTP/1.1", "Host: localhost", *headers, f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"Content-Type: {kind}"] if kind is not None else []
    head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
    return await asyncio.to_thread(raw_exchange, gateway.port, head + body, 20)


async def test_the_official_client(gateway: Gateway) -> None:
    async with stub(hears) as upstream:
        gateway.use({"chat": model(target(upstream.port))})
        async with openai.AsyncOpenAI(base_url=f"{gateway.base}/v1", api_key="k", max_retries=0) as api:
            said = await api.audio.transcriptions.create(
                model="chat", file=("ä b.wav", SOUND), language="de", timestamp_granularities=["word", "segment"]
            )
        assert said.text == "Good morning."
        (asked,) = upstream.asked
        assert asked.line == "POST /v1/audio/transcriptions HTTP/1.1"
        assert asked.header("authorization") == f"Bearer {SESSION_KEY}"
        got = fields_of(asked)
        assert (got["model"], got["file"], got["language"]) == (b"chat", SOUND, b"de")


async def test_a_provider_is_asked_for_its_own_name(gateway: Gateway) -> None:
    async with stub(hears) as upstream:
        rewrite = {"set": {"language": "en"}, "default": {"temperature": 0}, "strip": ["prompt"]}
        far = provider(f"http://127.0.0.1:{upstream.port}/api/v1", ["whisper-1"], request=rewrite)
        gateway.use(providers={"far": far}, routes={"ears": route("far/whisper-1")})
        parts = [field("prompt", "secret"), FILE, field("language", "de"), field("model", "ears"), field("x[]", "1")]
        assert status_of(await send(gateway, form(*parts, field("x[]", "2")))) == 200
        (asked,) = upstream.asked
        assert asked.line == "POST /api/v1/audio/transcriptions HTTP/1.1"
        got = fields_of(asked)
        assert got.pop("file") == SOUND
        assert got == {"language": b"en", "temperature": b"0", "model": b"whisper-1", "x[]": b"2"}
        assert asked.body.count(b'name="x[]"') == 2


async def test_the_next_one_is_asked_with_the_same_file(gateway: Gateway) -> None:
    async def refuses(asked: Asked, writer: StreamWriter) -> None:
        writer.write(response(b"{}", "503 Service Unavailable"))

    async with stub(refuses) as first, stub(hears) as second:
        providers = {
            "one": provider(f"http://127.0.0.1:{first.port}/v1", ["a"]),
            "two": provider(f"http://127.0.0.1:{second.port}/v1", ["b"]),
        }
        gateway.use(providers=providers, routes={"ears": route("one/a", "two/b")})
        got = await send(gateway, form(field("model", "ears"), FILE))
        assert status_of(got) == 200
        assert fields_of(first.asked[0]) == {"model": b"a", "file": SOUND}
        assert fields_of(second.asked[0]) == {"model": b"b", "file": SOUND}


async def test_a_text_answer_and_a_target_that_does_not_do_it(gateway: Gateway) -> None:
    async def text(asked: Asked, writer: StreamWriter) -> None:
        writer.write(response(b"1\n00:00 --> 00:01\nGood morning.\n", content_type="text/plain"))

    async def no(asked: Asked, writer: StreamWriter) -> None:
        writer.write(response(b'{"error":{"code":501,"message":"This model hears nothing","type":"x"}}', "501 No"))

    async with stub(text) as one, stub(no) as two:
        far = provider("", ["m"], speaks={"anthropic": f"http://127.0.0.1:{one.port}/v1"})
        models = {"chat": model(target(one.port)), "deaf": model(target(two.port)), "soon": model(None)}
        gateway.use(models, providers={"far": far})
        got = await send(gateway, form(MODEL, FILE))
        assert (status_of(got), b"Good morning.\n" in got) == (200, True)
        got = await send(gateway, form(field("model", "deaf"), FILE))
        assert (status_of(got), b"This model hears nothing" in got) == (501, True)
        got = await send(gateway, form(field("model", "far/m"), FILE))
        assert (status_of(got), error_of(got)["code"]) == (400, "not_offered")
        got = await send(gateway, form(field("model", "soon"), FILE))
        assert (status_of(got), error_of(got)["code"]) == (503, "model_not_ready")
        got = await send(gateway, form(field("model", "nobody"), FILE))
        assert (status_of(got), error_of(got)["code"]) == (404, "model_not_found")


MANY = b"\r\n".join(b"X-%d: a" % i for i in range(50)) + b"\r\n"
BAD: list[tuple[bytes, str | None, int]] = [
    (form(MODEL, FILE), "multipart/form-data", 400),
    (form(MODEL, FILE), "multipart/form-data; charset=utf-8", 400),
    (form(MODEL, FILE), "multipart/form-data; boundary=", 400),
    (form(MODEL, FILE), 'multipart/form-data; boundary=""', 400),
    (form(MODEL, FILE), 'multipart/form-data; boundary="X', 400),
    (form(MODEL, FILE), "multipart/form-data; boundary=Y", 400),
    (form(MODEL, FILE), "multipart/form-data; boundary=X; boundary=Y", 400),
    (form(MODEL, FILE), "multipart/form-data; boundary=X, boundary=Y", 400),
    (form(MODEL, FILE, mark=b"a" * 71), "multipart/form-data; boundary=" + "a" * 71, 400),
    (form(MODEL, FILE), "multipart/mixed; boundary=X", 415),
    (form(MODEL, FILE), "application/json", 415),
    (form(MODEL, FILE), "text/plain; boundary=X", 415),
    (form(MODEL, FILE), None, 415),
    (b'{"model":"chat"}', KIND, 400),
    (b"", KIND, 400),
    (b"--X--\r\n", KIND, 400),
    (form(FILE), KIND, 400),
    (form(field("model", ""), FILE), KIND, 400),
    (form(MODEL, MODEL, FILE), KIND, 400),
    (form(MODEL, FILE, field("model", "other")), KIND, 400),
    (form(FILE.replace(b'"file"', b'"model"')), KIND, 400),
    (form(FILE.replace(b'"file"', b'"model"'), MODEL), KIND, 400),
    (form(MODEL, FILE.replace(b'"file"', b'"model"')), KIND, 400),
    (form(MODEL, field("language", "a"), field("language", "b")), KIND, 400),
    (form(MODEL, FILE, end=b""), KIND, 400),
    (form(MODEL, FILE, end=b"-"), KIND, 400),
    (form(MODEL, FILE)[:-200], KIND, 400),
    (form(MODEL, FILE) + form(field("model", "other")), KIND, 400),
    (form(MODEL, FILE) + b"x", KIND, 400),
    (b"preamble\r\n" + form(MODEL, FILE), KIND, 400),
    (b"\r\n" + form(MODEL, FILE), KIND, 400),
    (form(MODEL, FILE).replace(b"--X\r\n", b"--X \r\n"), KIND, 400),
    (form(MODEL, FILE).replace(b"--X\r\n", b"--X\n"), KIND, 400),
    (form(MODEL, FILE).replace(b"--X\r\n", b"--Xa\r\n"), KIND, 400),
    (form(MODEL, FILE).replace(b"\r\n", b"\n"), KIND, 400),
    (form(b"\r\nchat", FILE), KIND, 400),
    (form(b"X: y\r\n\r\nchat", FILE), KIND, 400),
    (form(MODEL.replace(b"form-data", b"attachment"), FILE), KIND, 400),
    (form(MODEL.replace(b'name="model"', b"x=y"), FILE), KIND, 400),
    (form(MODEL.replace(b'name="model"', b'name="model"; name="x"'), FILE), KIND, 400),
    (form(MODEL.replace(b'name="model"', b"name*=utf-8''model"), FILE), KIND, 400),
    (form(MODEL.replace(b'name="model"', b'name="model'), FILE), KIND, 400),
    (form(MODEL.replace(b'name="model"', b'name="model" x'), FILE), KIND, 400),
    (form(b"Content-Disposition: form-data; name=a\r\n" + MODEL, FILE), KIND, 400),
    (form(b"Content-Transfer-Encoding: base64\r\n" + MODEL, FILE), KIND, 400),
    (form(b"X: a\r\n b\r\n" + MODEL, FILE), KIND, 400),
    (form(b"X : a\r\n" + MODEL, FILE), KIND, 400),
    (form(b"X: \x00\r\n" + MODEL, FILE), KIND, 400),
    (form(MANY + MODEL, FILE), KIND, 400),
    (form(b"X: " + b"a" * 100_000 + b"\r\n" + MODEL, FILE), KIND, 400),
    (form(MODEL, *(field(f"f{i}", "x") for i in range(101))), KIND, 400),
    (form(field("model", "a" * 100_000), FILE), KIND, 400),
    (form(MODEL, b'Content-Disposition: form-data; name="language"\r\n\r\n\xff'), KIND, 400),
    (form(b'Content-Disposition: form-data; name="\xff"\r\n\r\n', MODEL), KIND, 400),
    (form(MODEL, field("base_url", "http://evil.example/v1"), FILE), KIND, 400),
]


async def test_forms_that_are_none(gateway: Gateway) -> None:
    async with stub(hears) as upstream:
        gateway.use({"chat": model(target(upstream.port))})
        for body, kind, status in BAD:
            got = await send(gateway, body, kind)
            assert status_of(got) == status, (kind, body[:300], got)
            error_of(got)
        assert not upstream.asked
        assert status_of(await send(gateway, form(MODEL, FILE), KIND, "Content-Encoding: gzip")) == 415
        assert status_of(await send(gateway, form(MODEL, FILE), 'Multipart/Form-Data;charset=x; Boundary="X"')) == 200


@given(st.binary(max_size=300), st.lists(st.sampled_from([b"--X", b"\r\n", b"--", MODEL, FILE, b"X"]), max_size=12))
def test_any_bytes_are_a_form_or_refused(noise: bytes, pieces: list[bytes]) -> None:
    body = b"".join(pieces) + noise
    try:
        found = multipart.parse(KIND, body)
    except Refusal:
        return
    assert found.encoded(found.document) == body


@given(
    st.dictionaries(st.text("abcdef_", min_size=1, max_size=5), st.text(max_size=20), max_size=5),
    st.dictionaries(st.text("abcdef_", min_size=1, max_size=5), st.text(max_size=20), max_size=5),
)
def test_a_rewritten_form_says_what_was_wanted(before: dict[str, str], after: dict[str, str]) -> None:
    parts = [field(name, value) for name, value in before.items()]
    mark = b"unlikely-in-a-text-4711"
    kind = f"multipart/form-data; boundary={mark.decode()}"
    found = multipart.parse(kind, form(FILE, *parts, MODEL, mark=mark))
    again = multipart.parse(kind, found.encoded({**after, "model": "other"}))
    assert again.fields == {**after, "model": "other"}
    assert again.files == ("file",)
    assert FILE in again.body


async def test_the_limit_holds_and_the_file_is_in_memory_about_once(make_gateway: Any) -> None:
    """The peak above the resting size is well under twice the file."""
    gateway = make_gateway()
    gateway.start()
    megabyte = 1 << 20

    async def counts(asked: Asked, writer: StreamWriter) -> None:
        writer.write(response(json.dumps({"text": str(len(asked.body))}).encode()))

    async with stub(counts) as upstream:
        gateway.use({"chat": model(target(upstream.port))}, limits={"body": 100 * megabyte})
        assert status_of(await send(gateway, form(MODEL, FILE))) == 200
        assert gateway.process is not None
        before = psutil.Process(gateway.process.pid).memory_info().rss
        body = form(MODEL, FILE + bytes(60 * megabyte))
        got = await send(gateway, body)
        assert f'"{len(body)}"'.encode() in got
        status = Path(f"/proc/{gateway.process.pid}/status")
        if status.exists():  # elsewhere nobody says how large it has been
            peak = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
            print(f"peak {(peak * 1024 - before) / megabyte:.0f} MB above {before / megabyte:.0f} for a file of 60")
            assert peak * 1024 - before < 1.6 * len(body)
        got = await send(gateway, form(MODEL, FILE + bytes(100 * megabyte)))
        assert (status_of(got), error_of(got)["code"]) == (413, "body_too_large")
