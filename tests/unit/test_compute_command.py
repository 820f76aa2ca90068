"""`bo compute`: which devices its workers get."""

from __future__ import annotations

import pytest

from workers.compute import chosen_devices, device_environment, main, parser


@pytest.fixture(autouse=True)
def _no_device_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BO_DEVICE", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def devices(*arguments: str, n_visible: int) -> list[str]:
    return chosen_devices(parser().parse_args(arguments), n_visible=lambda: n_visible)


def test_the_queue_gpu_takes_every_device_that_is_there() -> None:
    assert devices("--queues", "gpu", n_visible=2) == ["cuda:0", "cuda:1"]
    assert devices("--queues", "cpu,llm", n_visible=2) == [""]


def test_without_a_device_the_queue_gpu_is_served_only_where_that_is_meant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ValueError, match="no CUDA device is visible for gpu; --devices cpu"):
        devices("--queues", "gpu", n_visible=0)
    assert devices("--queues", "gpu", "--devices", "cpu", n_visible=0) == ["cpu"]
    monkeypatch.setenv("BO_DEVICE", "cpu")
    assert devices("--queues", "gpu", n_visible=0) == ["cpu"]


def test_processes_do_not_share_a_gpu() -> None:
    with pytest.raises(ValueError, match="processes would share a GPU"):
        devices("--queues", "gpu", "--concurrency", "2", n_visible=1)
    assert devices("--queues", "gpu", "--devices", "cpu", "--concurrency", "2", n_visible=1) == ["cpu"]


def test_a_worker_sees_its_device_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    found = device_environment("cuda:1")
    assert (found["BO_DEVICE"], found["CUDA_VISIBLE_DEVICES"]) == ("cuda", "1")
    # as a scheduler hands them out: the second of those given
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-8932f937")
    assert device_environment("cuda:1")["CUDA_VISIBLE_DEVICES"] == "GPU-8932f937"
    assert device_environment("cuda:0")["CUDA_VISIBLE_DEVICES"] == "2"
    with pytest.raises(ValueError, match="cuda:2 is not among CUDA_VISIBLE_DEVICES=2,GPU-8932f937"):
        device_environment("cuda:2")


def test_a_mistake_is_told_with_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(SystemExit) as ended:
        main(["--queues", "gpu", "--devices", "cuda:0,cuda:7"])
    assert ended.value.code == 2
    assert "cuda:7 is not among" in capsys.readouterr().err
