"""The key `bo up` keeps for the user who starts it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bo_service.credentials import Credentials, read_credentials, write_credentials
from bo_service.local_user import local_key

A, B = "http://127.0.0.1:8000", "http://127.0.0.1:8001"


def test_a_second_service_leaves_the_first_ones_key_and_its_place(services, tmp_path: Path) -> None:
    path = tmp_path / "credentials.json"
    write_credentials(Credentials().with_key(A, "bo_of_another_database", is_current=True), path)
    made = local_key(path, B, uow=services.uow, answers=lambda url: url == A)
    assert (made.current_url, made.former_url) == (A, A)
    assert read_credentials(path).keys == {A: "bo_of_another_database", B: made.key}
    again = local_key(path, B, uow=services.uow, answers=lambda _: False)
    assert (again.key, again.current_url) == (made.key, B)


def test_another_database_at_the_same_url_and_back_again(services, tmp_path: Path) -> None:
    path = tmp_path / "credentials.json"
    first = local_key(path, A, uow=services.uow)
    found = read_credentials(path)
    write_credentials(found.with_key(A, "bo_of_another_database", is_current=True), path)
    assert local_key(path, A, uow=services.uow) == first
    assert read_credentials(path).key_for(A) == first.key


def test_a_service_that_moved_keeps_its_key(services, tmp_path: Path) -> None:
    path = tmp_path / "credentials.json"
    first = local_key(path, A, uow=services.uow)
    moved = local_key(path, B, uow=services.uow, answers=lambda _: False)
    assert (moved.key, moved.current_url, moved.former_url) == (first.key, B, A)


def test_services_that_start_at_once_lose_no_key(services, tmp_path: Path) -> None:
    path = tmp_path / "home" / "credentials.json"
    urls = [f"http://127.0.0.1:{port}" for port in range(9000, 9016)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda url: local_key(path, url, uow=services.uow, answers=lambda _: True), urls))
    assert sorted(read_credentials(path).keys) == urls
