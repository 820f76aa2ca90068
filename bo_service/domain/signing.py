"""Signatures of the Standard Webhooks specification; their secrets follow from a master key and are kept nowhere."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from bo_service.domain.ids import WebhookId

PREFIX: Final = "whsec_"
MIN_KEY_CHARACTERS: Final = 32


@dataclass(frozen=True, slots=True)
class MasterKey:
    """The key all secrets of webhooks follow from; never shown, not even by repr."""

    value: bytes = field(repr=False)

    def secret(self, webhook_id: WebhookId, generation: int) -> bytes:
        """32 bytes: HMAC-SHA256 of the webhook and the secret's generation under this key."""
        name = f"bo-service/webhook/{webhook_id}/{generation}"
        return hmac.digest(self.value, name.encode(), hashlib.sha256)

    def check(self, webhook_id: WebhookId, generation: int) -> str:
        """What the database keeps to know the right key again; says nothing about the secret."""
        return hmac.new(self.secret(webhook_id, generation), b"check", hashlib.sha256).hexdigest()[:16]


def shown(secret: bytes) -> str:
    """A secret as its receiver writes it down: whsec_ and base64."""
    return PREFIX + base64.b64encode(secret).decode()


def signature_headers(
    message_id: str, timestamp: int, body: bytes, *, secrets: Sequence[bytes]
) -> dict[str, str]:
    """The three headers; one signature a secret, separated by spaces. `timestamp` in Unix seconds."""
    signed = b".".join((message_id.encode(), str(timestamp).encode(), body))
    signatures = [
        "v1," + base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode() for secret in secrets
    ]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(signatures),
    }
