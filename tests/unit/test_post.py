"""One message: to the checked address and no other, in limited time, over TLS that knows the host."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest

from bo_service.domain.target import AllowList
from bo_service.receivers import Receivers
from tests.receiver import Receiver, listening
from workers.post import Poster

LOCAL = AllowList.of(["127.0.0.1"])
HEADERS = {"webhook-id": "m1"}


def test_a_message_arrives_as_it_was_given() -> None:
    with listening(Receiver()) as receiver:
        answer = Poster(Receivers(LOCAL))(receiver.url + "?a=b", HEADERS, b'{"x":1}')
    assert answer.status == 204
    (message,) = receiver.messages
    assert (message.path, message.body, message.id) == ("/hook?a=b", b'{"x":1}', "m1")
    assert message.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert message.headers["content-type"] == "application/json"
    assert "authorization" not in message.headers


def test_a_name_whose_answer_changes_between_check_and_connection_gains_nothing() -> None:
    """The checked address is the one that is called; the next check sees the new answer and refuses."""
    answers = iter([["127.0.0.2"], ["127.0.0.1"]])
    receivers = Receivers(AllowList.of(["127.0.0.2"]), lambda *_: [ip_address(a) for a in next(answers)])
    with listening(Receiver(host="127.0.0.2")) as checked, listening(Receiver(port=checked.port)) as inside:
        poster = Poster(receivers)
        url = f"http://rebinding.example:{checked.port}/hook"
        assert poster(url, HEADERS, b"{}").status == 204
        refused = poster(url, HEADERS, b"{}")
    assert refused.status is None
    assert "url" in (refused.error or "")
    assert len(checked.messages) == 1
    assert checked.messages[0].headers["host"] == f"rebinding.example:{checked.port}"
    assert inside.messages == []


def test_a_redirect_is_not_followed() -> None:
    with listening(Receiver()) as inside:
        away = {"Location": inside.url}
        with listening(Receiver(statuses=[302, 307], headers=away)) as receiver:
            poster = Poster(Receivers(LOCAL))
            assert [poster(receiver.url, HEADERS, b"{}").status for _ in range(2)] == [302, 307]
    assert inside.messages == []


def test_proxies_of_the_environment_are_not_used(monkeypatch) -> None:
    with listening(Receiver()) as receiver, listening(Receiver()) as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert Poster(Receivers(LOCAL))(receiver.url, HEADERS, b"{}").status == 204
    assert proxy.messages == []


@contextmanager
def talking(*parts: bytes, pause: float = 0.0, for_ever: bool = False) -> Iterator[int]:
    """A server that says these bytes to whoever comes, however slowly; gives its port."""
    over = threading.Event()

    def serve(listener: socket.socket) -> None:
        while not over.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5)
                try:
                    connection.recv(65_536)
                    for part in parts:
                        connection.sendall(part)
                        over.wait(pause)
                    while for_ever and not over.is_set():
                        connection.sendall(parts[-1])
                        over.wait(pause)
                except OSError:
                    pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        over.set()
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def test_a_receiver_that_answers_byte_by_byte_is_left_when_the_time_is_over() -> None:
    with talking(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n", pause=0.1, for_ever=True) as port:
        started = time.monotonic()
        answer = Poster(Receivers(LOCAL), seconds=1.0)(f"http://127.0.0.1:{port}/", HEADERS, b"{}")
        seconds = time.monotonic() - started
    assert answer.error == "no answer within 1 s"
    assert seconds < 10


def test_a_talkative_receiver_is_cut_off_and_its_status_counts() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n"
    with talking(head, b"x" * 65_536, for_ever=True) as port:
        answer = Poster(Receivers(LOCAL), seconds=30.0)(f"http://127.0.0.1:{port}/", HEADERS, b"{}")
    assert answer.status == 200


@pytest.mark.parametrize("said", [b"SSH-2.0-OpenSSH_9\r\n", b"", b"HTTP/1.1 abc\r\n\r\n"])
def test_what_is_no_http_is_an_error_in_words(said: bytes) -> None:
    with talking(said) as port:
        answer = Poster(Receivers(LOCAL))(f"http://127.0.0.1:{port}/", HEADERS, b"{}")
    assert answer.status is None
    assert answer.error


def test_nobody_there_is_an_error_in_words() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    answer = Poster(Receivers(LOCAL))(f"http://127.0.0.1:{port}/", HEADERS, b"{}")
    assert "ConnectError" in (answer.error or "")


def certificate(folder: Path, host: str) -> tuple[Path, Path]:
    """A certificate that signs itself, for a host; skips where nothing can make one."""
    key, cert = folder / f"{host}.key", folder / f"{host}.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        f"/CN={host}",
    ]
    command += ["-addext", f"subjectAltName=DNS:{host}", "-keyout", str(key), "-out", str(cert)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no certificate: {error}")
    return key, cert


def test_the_certificate_must_be_the_hosts_though_an_address_is_called(tmp_path: Path) -> None:
    key, cert = certificate(tmp_path, "hooks.example")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(cert, key)
    trusting = ssl.create_default_context(cafile=str(cert))
    receivers = Receivers(LOCAL, lambda *_: [ip_address("127.0.0.1")])
    with listening(Receiver(), tls=server) as receiver:
        right = Poster(receivers, tls=trusting)(f"https://hooks.example:{receiver.port}/", HEADERS, b"{}")
        wrong = Poster(receivers, tls=trusting)(f"https://other.example:{receiver.port}/", HEADERS, b"{}")
        stranger = Poster(receivers)(f"https://hooks.example:{receiver.port}/", HEADERS, b"{}")
    assert right.status == 204
    assert "CERTIFICATE_VERIFY_FAILED" in (wrong.error or "")
    assert "CERTIFICATE_VERIFY_FAILED" in (stranger.error or "")
    assert len(receiver.messages) == 1
