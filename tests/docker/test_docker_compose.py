"""The compose files: the schema, the commands, and what keeps the services apart from the host."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.command_lines import parsed_settings

DOCKER = Path(__file__).resolve().parents[2] / "docker"
FILES = ("compose.yaml", "compose.gpu.yaml")
PROGRAM = {"teacher": "teacher-server", "trainer": "student-trainer"}


def read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((DOCKER / name).read_text())
    return content


SERVICES: dict[str, dict[str, Any]] = read("compose.yaml")["services"]
each_service = pytest.mark.parametrize("name", SERVICES)


def read_volume(text: str) -> tuple[str, str]:
    """Source (the default, where a variable may replace it) and target of a volume in short syntax."""
    match = re.match(r"(?:\$\{\w+:-)?([^:}]+)\}?:([^:]+)", text)
    assert match is not None, text
    return match[1], match[2]


@pytest.mark.parametrize("name", FILES)
def test_it_follows_the_compose_specification(name: str) -> None:
    compose_spec = pytest.importorskip("compose_spec", reason="compose-spec is not installed")
    content = {key: value for key, value in read(name).items() if not key.startswith("x-")}
    compose_spec.ComposeSpecification.model_validate(content, extra="forbid")


def test_the_specification_refuses_a_misspelt_key() -> None:
    compose_spec = pytest.importorskip("compose_spec", reason="compose-spec is not installed")
    content = {"services": {"teacher": {"image": "a", "healtcheck": {"interval": "1s"}}}}
    with pytest.raises(ValueError, match="healtcheck"):
        compose_spec.ComposeSpecification.model_validate(content, extra="forbid")


@pytest.mark.parametrize("files", [FILES[:1], FILES])
def test_compose_reads_it(files: tuple[str, ...]) -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        pytest.skip("docker compose is not installed")
    arguments = [part for name in files for part in ("-f", str(DOCKER / name))]
    done = subprocess.run([docker, "compose", *arguments, "config", "--quiet"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", PROGRAM)
def test_the_command_is_one_that_the_program_takes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = parsed_settings(PROGRAM[name], SERVICES[name]["command"], monkeypatch).model_dump(mode="json")
    mounts = [read_volume(volume)[1] for volume in SERVICES[name]["volumes"]]
    for key in {"teacher": ("teacher",), "trainer": ("data", "out")}[name]:
        assert any(settings[key].startswith(mount) for mount in mounts), key


def test_the_daemon_may_drain_before_it_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = parsed_settings("teacher-server", SERVICES["teacher"]["command"], monkeypatch).model_dump()
    grace = float(SERVICES["teacher"]["stop_grace_period"].removesuffix("s"))
    unit = (DOCKER / "systemd" / "teacher-server.service").read_text()
    stop = re.search(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert stop is not None
    assert settings["drain_seconds"] < min(grace, float(stop[1]))


def test_the_image_s_own_command_is_the_service_s() -> None:
    dockerfile = (DOCKER / "teacher.Dockerfile").read_text()
    (command,) = re.findall(r"^CMD (\[.+\])$", dockerfile, re.MULTILINE)
    assert yaml.safe_load(command) == SERVICES["teacher"]["command"]


def test_the_documented_commands_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    comments = re.findall(r"^#.*run --rm trainer (\S.*--.*)$", (DOCKER / "compose.yaml").read_text(), re.MULTILINE)
    assert comments
    for comment in comments:
        parsed_settings("student-trainer", comment.split(), monkeypatch)


def test_ports_agree() -> None:
    command = SERVICES["teacher"]["command"]
    listen, metrics = (command[command.index(flag) + 1] for flag in ("--listen", "--metrics-listen"))
    dockerfile = (DOCKER / "teacher.Dockerfile").read_text()
    assert f"EXPOSE {listen.split(':')[1]} {metrics.split(':')[1]}" in dockerfile
    assert f"http://127.0.0.1:{metrics.split(':')[1]}" in dockerfile, "the health check asks another port"
    trainer = SERVICES["trainer"]["command"]
    assert trainer[trainer.index("--teacher") + 1] == f"teacher:{listen.split(':')[1]}"
    scrape = yaml.safe_load((DOCKER / "prometheus/prometheus.yml").read_text())["scrape_configs"]
    assert scrape[0]["static_configs"][0]["targets"] == [f"teacher:{metrics.split(':')[1]}"]


@each_service
def test_ports_are_this_host_s_only(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))


@each_service
def test_a_service_is_restricted(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


@each_service
def test_memory_and_logs_are_bounded(name: str) -> None:
    service = SERVICES[name]
    assert re.fullmatch(r"\d+[mg]|\$\{\w+:-\d+g\}", service["mem_limit"])
    assert service["logging"] == {"driver": "json-file", "options": {"max-size": "20m", "max-file": "5"}}


@pytest.mark.parametrize("name", PROGRAM)
def test_descriptors_suffice_for_the_connections(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = parsed_settings("teacher-server", SERVICES["teacher"]["command"], monkeypatch).model_dump()
    limit = SERVICES[name]["ulimits"]["nofile"]
    assert limit["soft"] == limit["hard"] > 10 * settings["max_connections"]


@each_service
def test_images_are_pinned(name: str) -> None:
    image = SERVICES[name]["image"]
    if "build" in SERVICES[name]:
        assert image.endswith(":cpu")
    else:
        assert re.fullmatch(r"\S+:v?\d+\.\d+\.\d+", image)


@each_service
def test_mounted_files_exist(name: str) -> None:
    for volume in SERVICES[name]["volumes"]:
        source, _ = read_volume(volume)
        if source.startswith("./"):
            assert (DOCKER / source).is_dir()
        else:
            assert source in read("compose.yaml")["volumes"]


@each_service
def test_dependencies_wait_for_health(name: str) -> None:
    for dependency, how in SERVICES[name].get("depends_on", {}).items():
        assert how == {"condition": "service_healthy"}
        own = SERVICES[dependency].get("build", {}).get("dockerfile")
        assert "healthcheck" in SERVICES[dependency] or "HEALTHCHECK --" in (DOCKER.parent / own).read_text()


def test_services_share_a_network_with_whom_they_talk_to() -> None:
    networks = {name: set(service["networks"]) for name, service in SERVICES.items()}
    for one, other in (
        ("trainer", "teacher"),
        ("prometheus", "teacher"),
        ("grafana", "prometheus"),
        ("prometheus", "trainer"),
    ):
        assert networks[one] & networks[other], (one, other)
    assert not networks["trainer"] & networks["grafana"]


def test_the_gpu_file_changes_images_and_devices_only() -> None:
    base = re.search(r"^ARG BASE=(\S+)$", (DOCKER / "teacher.Dockerfile").read_text(), re.MULTILINE)
    assert base is not None
    for name, service in read("compose.gpu.yaml")["services"].items():
        assert name in PROGRAM
        assert set(service) == {"image", "build", "deploy"}
        assert service["image"] == SERVICES[name]["image"].replace(":cpu", ":cuda")
        assert service["build"]["args"] == {"BASE": base.group(1), "TORCH_INDEX_URL": ""}
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert device["capabilities"] == ["gpu"]
