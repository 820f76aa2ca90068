"""Settings: typed, frozen, read once from BO_* environment variables and from files of secrets."""

from __future__ import annotations

import os
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from bo_service.secret_files import secret

SQLITE: Final = ("sqlite", "sqlite+pysqlite")
POSTGRESQL: Final = ("postgresql", "postgres", "postgresql+psycopg")
BROKERS: Final = ("redis", "rediss", "redis+socket", "sentinel", "amqp", "amqps", "pyamqp")
SQLITE_EXAMPLE: Final = "sqlite:////srv/bo.db"
POSTGRESQL_EXAMPLE: Final = "postgresql+psycopg://user:password@host/database"


def default_home() -> Path:
    """Where an embedded service keeps its data: BO_HOME, else a folder in the user's home."""
    return Path(os.environ.get("BO_HOME") or Path.home() / ".local" / "share" / "bo-service")


class SecretFiles(PydanticBaseSettingsSource):
    """Settings from files named like their variables in small letters: `bo_database_url`."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[str | None, str, bool]:
        """The text of a field's file, if there is one."""
        return secret(f"bo_{field_name}"), field_name, self.field_is_complex(field)

    def __call__(self) -> dict[str, Any]:
        """Every field that has a file; lists are JSON, as in the environment. Raises: SecretUnreadable."""
        found: dict[str, Any] = {}
        for name, field in self.settings_cls.model_fields.items():
            text, key, is_complex = self.get_field_value(field, name)
            if text is not None:
                found[key] = self.prepare_field_value(name, field, text, is_complex)
        return found


class Settings(BaseSettings):
    """Every setting of the service; each is the environment variable BO_ plus its name in capitals.

    A setting may also be a file of BO_SECRETS_DIR; the environment wins.
    """

    model_config = SettingsConfigDict(
        env_prefix="BO_",
        frozen=True,
        extra="ignore",
        hide_input_in_errors=True,  # some of it is secret
    )

    home: Path = Field(default_factory=default_home)
    """Folder for the SQLite file and the local credentials."""

    database_url: str = Field("", repr=False)
    """sqlite:///path or postgresql+psycopg://user:password@host/database; empty for an SQLite file in `home`."""

    local_key: bool = True
    """Whether `bo up` makes an admin key for the local user and keeps it in `home`; off in containers."""

    require_keys: bool = True
    """Whether requests need an API key; without keys everyone is admin of the default project."""

    compute: Literal["embedded", "external"] = "embedded"
    """Who runs jobs: one child of the HTTP process, or workers started by somebody else."""

    broker_url: str = Field("redis://127.0.0.1:6379/0", repr=False)
    """Celery's broker where `compute` is external: redis:// or amqp://."""

    job_resend_seconds: float = Field(15.0, gt=0)
    """A job, or a push to a fleet, whose message brought nobody for so long gets another one."""

    compute_max_tasks: int = Field(1000, ge=1)
    """A compute process, embedded or of `bo compute`, is replaced after so many jobs."""

    compute_max_megabytes: int = Field(4096, ge=256)
    """A compute process that holds more memory after a job is replaced; one that holds half as much again is ended,
    and its job counts as crashed."""

    database_pool_size: int = Field(20, ge=1)
    """Connections to PostgreSQL one process keeps, and requests an HTTP process works on at the same time."""

    database_statement_seconds: float = Field(30.0, gt=0)
    """PostgreSQL ends a statement that takes longer."""

    device: str = "cpu"
    """What a compute worker computes on: cpu, cuda, cuda:1, ..."""

    compute_threads: int = Field(1, ge=1)
    """Threads of one fit; a suggestion replays to the last digit only with as many."""

    job_lease_seconds: float = Field(15.0, gt=0)
    """A compute worker that is silent for so long has lost its job; a living one renews it all the while it fits."""

    fit_deadline_seconds: float = Field(120.0, gt=0)
    """A fit that takes longer no longer holds up claims: they get labelled space-filling suggestions."""

    job_deadline_seconds: float = Field(1800.0, gt=0)
    """A job that takes longer is ended and counts as crashed."""

    reaper_seconds: float = Field(2.0, gt=0)
    """Time between two rounds of the reaper."""

    max_body_megabytes: float = Field(1.0, gt=0)
    """Larger request bodies are refused, except imports."""

    max_import_megabytes: float = Field(64.0, gt=0)
    """Larger imports of trials are refused."""

    max_wait_seconds: float = Field(30.0, ge=0)
    """Longest time a claim may wait for a suggestion."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """How much the processes write to stderr."""

    log_format: Literal["text", "json"] = "text"
    """Log lines for people, or a JSON object a line with request, study, trial and job ids."""

    tracing: bool = False
    """Send OpenTelemetry traces from request to fit; the OTEL_EXPORTER_OTLP_* variables say where to."""

    rate_limit: float = Field(1000.0, ge=0)
    """Requests a second one API key may make to one HTTP process, twice as many in a burst; 0 for no limit."""

    cors_origins: list[str] = []
    """Web origins whose pages may call the API, as JSON: ["https://example.org"]; none by default."""

    trusted_proxies: list[str] = []
    """Proxies whose X-Forwarded-For is believed, addresses and networks as JSON: ["10.1.0.0/16"]; none by default."""

    secret_key: SecretStr | None = Field(None, min_length=32)
    """From which the secrets of webhooks follow, at least 32 random characters; by default made and kept in `home`."""

    webhook_allow: list[str] = []
    """Hosts and networks inside that webhooks may call, as JSON: ["hooks.lan", "10.1.0.0/16"]; none by default."""

    fail_points: str = ""
    """For fault tests alone: where a process kills itself; see bo_service/storage/fail_points.py."""

    @field_validator("secret_key", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        # compose files pass variables that nobody set as empty ones
        return None if value == "" else value

    @field_validator("database_url")
    @classmethod
    def _is_database(cls, url: str) -> str:
        scheme, separator, rest = url.partition("://")
        if not url or (separator and scheme in SQLITE):
            return url
        if not separator or scheme not in POSTGRESQL:
            raise ValueError(
                f"only sqlite and postgresql: write it like {SQLITE_EXAMPLE} or {POSTGRESQL_EXAMPLE}"
            )
        # SQLAlchemy would look for another driver
        return f"postgresql+psycopg://{rest}"

    @field_validator("broker_url")
    @classmethod
    def _is_broker(cls, url: str) -> str:
        scheme, separator, _ = url.partition("://")
        if url and (not separator or scheme not in BROKERS):
            raise ValueError(
                "only Redis and RabbitMQ: write it like redis://host:6379/0 or amqp://user:password@host"
            )
        return url

    @field_validator("database_url", "broker_url")
    @classmethod
    def _has_one_at(cls, url: str) -> str:
        # what follows the first @ of a password would be taken for the host, and told in errors
        if not url.startswith("sqlite") and url.partition("?")[0].count("@") > 1:
            raise ValueError("has more than one @: write the one in the password as %40")
        return url

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, given: list[str]) -> list[str]:
        # the server would take what is none for the name of a host, and trust nobody
        for text in given:
            try:
                ip_network(text)
            except ValueError as error:
                raise ValueError(f'{error}: give addresses and networks, such as ["10.1.0.0/16"]') from error
        return given

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  pydantic names the arguments
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then the environment, then files."""
        return init_settings, env_settings, SecretFiles(settings_cls)

    def resolved_database_url(self) -> str:
        """The database's URL, SQLite in `home` by default."""
        return self.database_url or f"sqlite:///{self.home.expanduser().resolve() / 'bo.db'}"

    def compute_environment(self) -> dict[str, str]:
        """The environment of a process that fits models: the libraries read their threads from it when loaded."""
        threads = str(self.compute_threads)
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        return dict(os.environ) | dict.fromkeys(names, threads)
