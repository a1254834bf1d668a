"""The images, really built and run: read-only, as an unprivileged user, without capabilities.

They download some 2 GB and take minutes, so that they are asked for: `make test-images`, or TEST_IMAGES=1.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import write_tiny_teacher
from support.certificates import Authority
from support.images import PATIENCE, Image, Workshop, need_tools, running

from shared.channel import ChannelConfig
from teacher_server.client import query
from teacher_server.client.config import QueryConfig

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(os.environ.get("TEST_IMAGES") != "1", reason="downloads 2 GB: `make test-images` builds them"),
]

TRAINER_ONLY = {"kahip", "polars", "tensorboard", "optuna", "wandb", "matplotlib", "student_trainer"}


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    need_tools()
    folder = tmp_path_factory.mktemp("images")
    built = Workshop(folder)
    yield built
    built.close()
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def teacher_image(workshop: Workshop) -> Image:
    return workshop.build("teacher")


def free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def installed(image: Image) -> set[str]:
    (packages,) = (image.root / "opt/venv/lib").glob("python3.*/site-packages")
    return {path.name for path in packages.iterdir()}


def probe_of(image: Image, port: int) -> list[str]:
    """The image's health check, asking another port than its own."""
    kind, *command = image.config["Healthcheck"]["Test"]
    assert kind == "CMD"
    return [text.replace(":9464", f":{port}") for text in command]


def test_the_teacher_s_image_holds_nothing_of_the_trainer(teacher_image: Image) -> None:
    assert {"teacher_server", "shared", "torch", "numba"} <= installed(teacher_image)
    assert not installed(teacher_image) & TRAINER_ONLY
    print(f"teacher's image: {teacher_image.bytes() / 1e6:.0f} MB of files")


def test_the_teacher_s_image_probes_scores_and_drains(
    teacher_image: Image, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With TLS and client certificates, which the health check has none of."""
    authority, models = Authority(tmp_path / "pki"), tmp_path / "models"
    certificate, key = authority.issue("server")
    caller = authority.issue("caller")
    models.mkdir()
    write_tiny_teacher(models / "teacher.safetensors")
    for path in (certificate, key, authority.ca):
        shutil.copy(path, models / path.name)
    for path in (models, *models.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)
    port, metrics = free_ports(2)
    command = [
        "serve", "--teacher", "/models/teacher.safetensors", "--listen", f"127.0.0.1:{port}",
        "--metrics-listen", f"127.0.0.1:{metrics}", f"tls.certificate=/models/{certificate.name}",
        f"tls.key=/models/{key.name}", f"tls.client_ca=/models/{authority.ca.name}",
    ]  # fmt: skip
    with running(teacher_image, tmp_path / "container", command, {models: "/models"}) as container:
        container.wait_for("listening on")
        deadline = time.monotonic() + PATIENCE
        while (probed := container.execute(probe_of(teacher_image, metrics))).returncode:
            assert probed.stdout.startswith(("NOT_SERVING", "UNAVAILABLE")), probed.stderr
            assert time.monotonic() < deadline, container.log.read_text()
        assert probed.stdout == "SERVING\n"
        channel = ChannelConfig(ca=authority.ca, certificate=caller[0], key=caller[1])
        query.run(QueryConfig(address=f"127.0.0.1:{port}", history=(1, 2), candidates=(3, 4), channel=channel))
        assert sum(json.loads(capsys.readouterr().out)["probabilities"]) == pytest.approx(1, abs=2e-3)
        refused = container.execute(["touch", "/opt/venv/x"])
        assert refused.returncode and "Read-only file system" in refused.stderr
        who = container.execute(["id", "-u"])
        assert who.stdout == "10001\n"
        assert container.stop() == 0
        log = container.log.read_text()
        assert "drained" in log
        assert "compiled functions cannot be kept" not in log, "something was not compiled when the image was built"


def test_the_trainer_s_image_works(workshop: Workshop, tmp_path: Path) -> None:
    image = workshop.build("trainer")
    assert installed(image) >= TRAINER_ONLY
    assert not installed(image) & {"teacher_server", "grpc_reflection", "uvloop"}
    print(f"trainer's image: {image.bytes() / 1e6:.0f} MB of files")
    runs = tmp_path / "runs"
    runs.mkdir(mode=0o777)
    runs.chmod(0o777)
    with running(image, tmp_path / "container", ["demo-city", "--out", "/runs/city"], {runs: "/runs:rw"}) as container:
        assert container.running.wait(PATIENCE) == 0, container.log.read_text()
    assert (runs / "city").stat().st_uid == 10001
