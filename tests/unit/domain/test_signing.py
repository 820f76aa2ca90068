"""Signatures are those of the Standard Webhooks specification; secrets follow from the master key and nothing else."""

from __future__ import annotations

import base64
import hashlib
import hmac

from bo_service.domain.ids import WebhookId
from bo_service.domain.signing import MasterKey, shown, signature_headers

MASTER = MasterKey(b"m" * 32)


def test_the_specifications_own_example_comes_out() -> None:
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    found = signature_headers(
        "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}', secrets=[secret]
    )
    assert found == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_two_secrets_sign_side_by_side() -> None:
    first, second = signature_headers("id", 7, b"body", secrets=[b"a", b"b"])["webhook-signature"].split(" ")
    for secret, signature in ((b"a", first), (b"b", second)):
        digest = hmac.new(secret, b"id.7.body", hashlib.sha256).digest()
        assert signature == "v1," + base64.b64encode(digest).decode()


def test_a_secret_is_32_bytes_shown_with_its_prefix() -> None:
    secret = MASTER.secret(WebhookId("w"), 1)
    assert len(secret) == 32
    assert shown(secret).startswith("whsec_")
    assert base64.b64decode(shown(secret).removeprefix("whsec_")) == secret


def test_webhook_generation_and_master_key_each_change_the_secret() -> None:
    secrets = {
        key.secret(WebhookId(webhook), generation)
        for key in (MASTER, MasterKey(b"n" * 32))
        for webhook in ("w", "v")
        for generation in (1, 2, 11)
    }
    assert len(secrets) == 12


def test_neither_repr_nor_check_tells_a_key_or_a_secret() -> None:
    secret = MASTER.secret(WebhookId("w"), 1)
    assert "mmm" not in repr(MASTER)
    assert MASTER.check(WebhookId("w"), 1) not in secret.hex()
    assert MASTER.check(WebhookId("w"), 1) != MASTER.check(WebhookId("w"), 2)
