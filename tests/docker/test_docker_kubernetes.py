"""The Kubernetes manifests: schemas, what overlays change, and that the pieces fit each other and the daemon."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from prometheus_client import CollectorRegistry
from support import kustomize
from support.command_lines import parsed_settings
from support.kustomize import Resource

import shared
from teacher_server.metrics import Metrics
from teacher_server.serve.config import ServeConfig

FOLDER = REPOSITORY / "docker" / "kubernetes"
OVERLAYS = sorted(path.name for path in (FOLDER / "overlays").iterdir())
TEACHERS, TRAINERS = {"cpu", "gpu", "replicas"}, {"train", "train-distributed"}
SCHEMAS = Path(__file__).with_name("crds")
BUILT = {name: kustomize.build(FOLDER / "overlays" / name) for name in OVERLAYS}

each_overlay = pytest.mark.parametrize("name", OVERLAYS)
each_teacher = pytest.mark.parametrize("name", sorted(TEACHERS))
each_trainer = pytest.mark.parametrize("name", sorted(TRAINERS))


def one(name: str, kind: str) -> Resource:
    (found,) = [resource for resource in BUILT[name] if resource["kind"] == kind]
    return found


def pods(name: str) -> list[Resource]:
    """Pod templates of an overlay: of a Deployment, a Job or the replicas of a PyTorchJob."""
    found: list[Resource] = []
    for resource in BUILT[name]:
        spec = resource["spec"]
        specs = spec.get("pytorchReplicaSpecs", {"": spec}).values()
        found += [each["template"] for each in specs if "template" in each]
    return found


def container_of(pod: Resource) -> Resource:
    (container,) = pod["spec"]["containers"]
    assert isinstance(container, dict)
    return container


def test_every_overlay_is_known() -> None:
    assert set(OVERLAYS) == TEACHERS | TRAINERS


def validated(resource: Resource) -> None:
    """Raises if a resource is not what Kubernetes, or the owner of its kind, takes; unknown fields are refused."""
    own = SCHEMAS / f"{resource['kind'].lower()}.json"
    if own.exists():
        jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed (extra dev)")
        jsonschema.Draft202012Validator(json.loads(own.read_text())).validate(resource)
        for template in [spec["template"] for spec in resource["spec"].get("pytorchReplicaSpecs", {}).values()]:
            pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template}
            validated(pod)
        return
    kubernetes_validate = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate is not installed (extra dev)"
    )
    kubernetes_validate.validate(resource, kubernetes_validate.latest_version(), strict=True)


@each_overlay
def test_resources_are_what_kubernetes_takes(name: str) -> None:
    for resource in BUILT[name]:
        validated(resource)


@pytest.mark.parametrize(
    ("overlay", "kind", "spoil"),
    [
        ("cpu", "Deployment", lambda spec: spec["template"]["spec"]["containers"][0].update(redinessProbe={})),
        ("cpu", "PodDisruptionBudget", lambda spec: spec.update(minAvailble=1)),
        ("cpu", "PodMonitor", lambda spec: spec["podMetricsEndpoints"][0].update(scrapeTimout="4s")),
        ("train-distributed", "PyTorchJob", lambda spec: spec["runPolicy"].update(backofLimit=1)),
        (
            "train-distributed",
            "PyTorchJob",
            lambda spec: spec["pytorchReplicaSpecs"]["Worker"]["template"]["spec"].update(volume=[]),
        ),
    ],
)
def test_a_misspelt_field_is_refused(overlay: str, kind: str, spoil: Callable[[Resource], None]) -> None:
    spoilt: Resource = json.loads(json.dumps(one(overlay, kind)))
    spoil(spoilt["spec"])
    with pytest.raises(Exception, match=r"redinessProbe|minAvailble|scrapeTimout|backofLimit|volume"):
        validated(spoilt)


@each_overlay
def test_kustomize_builds_the_same(name: str) -> None:
    real = kustomize.really_built(FOLDER / "overlays" / name)
    if real is None:
        pytest.skip("neither kustomize nor kubectl is installed")
    assert {kustomize.identity(each): each for each in real} == {kustomize.identity(each): each for each in BUILT[name]}


def test_patches_that_meet_nothing_are_refused(tmp_path: Path) -> None:
    """What the tests above rest on where the real program is missing."""
    copied, overlay = tmp_path / "kubernetes", tmp_path / "kubernetes/overlays/gpu"
    for spoil, message in (
        (
            lambda: (overlay / "gpu.yaml").write_text("[{op: replace, path: /spec/x/y, value: 1}]"),
            "no place",
        ),
        (lambda: (overlay / "gpu.yaml").write_text("[{op: remove, path: /spec/repliccas}]"), "no place"),
        (lambda: (overlay / "gpu.yaml").write_text("[{op: add, path: /spec, value: 1}]"), "would replace"),
        (lambda: _sub(overlay / "kustomization.yaml", "name: teacher}", "name: techer}"), "is not there"),
        (lambda: _sub(overlay / "kustomization.yaml", "teacher-server,", "teachr-server,"), "no container"),
    ):
        shutil.rmtree(copied, ignore_errors=True)
        shutil.copytree(FOLDER, copied)
        spoil()
        with pytest.raises(ValueError, match=message):
            kustomize.build(overlay)


def _sub(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def serve_settings(name: str, monkeypatch: pytest.MonkeyPatch) -> ServeConfig:
    (pod,) = pods(name)
    settings = parsed_settings("teacher-server", container_of(pod)["args"], monkeypatch)
    assert isinstance(settings, ServeConfig)
    return settings


@each_teacher
def test_the_teacher_s_command_fits_its_pod(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, (pod,) = serve_settings(name, monkeypatch), pods(name)
    container = container_of(pod)
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    assert settings.tls.certificate and settings.tls.key and settings.tokens
    for path in (settings.teacher, settings.tls.certificate, settings.tls.key, settings.tokens):
        assert str(path.parent) in mounts
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports["grpc"] == int(settings.listen.rpartition(":")[2])
    assert ports["metrics"] == int(settings.metrics_listen.rpartition(":")[2])
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pause + settings.drain_seconds < pod["spec"]["terminationGracePeriodSeconds"]


@each_teacher
def test_probes_work_with_tls_and_know_the_states(name: str) -> None:
    (pod,) = pods(name)
    container = container_of(pod)
    paths = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")}
    assert paths["startup"]["path"] == paths["readiness"]["path"] == "/readyz"
    assert paths["liveness"]["path"] == "/healthz", "a teacher that drains is not restarted"
    assert {place["port"] for place in paths.values()} == {"metrics"}
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 600


@each_overlay
def test_pods_are_restricted(name: str) -> None:
    for pod in pods(name):
        spec, container = pod["spec"], container_of(pod)
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] == 10001
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
        assert "memory" in container["resources"]["limits"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}
        for volume in spec["volumes"]:
            assert volume.keys() & {"persistentVolumeClaim", "secret", "emptyDir"}


@each_overlay
def test_labels_and_names_fit(name: str) -> None:
    """Services, budgets, policies and monitors select the pods; claims and targets are there."""
    labels = [pod["metadata"]["labels"] for pod in pods(name)]
    claims = {resource["metadata"]["name"] for resource in BUILT[name] if resource["kind"] == "PersistentVolumeClaim"}
    used = {
        volume["persistentVolumeClaim"]["claimName"]
        for pod in pods(name)
        for volume in pod["spec"]["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert used == claims
    for resource in BUILT[name]:
        spec = resource["spec"]
        selector = spec.get("podSelector", spec.get("selector"))
        if selector is not None:
            wanted = selector.get("matchLabels", selector)
            assert all(wanted.items() <= each.items() for each in labels), resource["kind"]


@each_teacher
def test_the_service_is_headless_and_its_ports_are_the_pod_s(name: str) -> None:
    service, (pod,) = one(name, "Service"), pods(name)
    assert service["spec"]["clusterIP"] == "None"
    ports = {port["name"] for port in container_of(pod)["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    assert {endpoint["port"] for endpoint in one(name, "PodMonitor")["spec"]["podMetricsEndpoints"]} <= ports
    allowed = {port["port"] for rule in one(name, "NetworkPolicy")["spec"]["ingress"] for port in rule["ports"]}
    assert allowed == ports


@each_trainer
def test_trainers_may_call_the_teacher_that_they_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    service = one("cpu", "Service")
    port = service["spec"]["ports"][0]["port"]
    teacher, trainer = pods("cpu")[0]["metadata"]["labels"], pods(name)[0]["metadata"]["labels"]
    for pod in pods(name):
        settings: Any = parsed_settings("student-trainer", container_of(pod)["args"], monkeypatch)
        assert settings.teacher == f"dns:///{service['metadata']['name']}:{port}"
        assert settings.resume
        mounts = [mount["mountPath"] for mount in container_of(pod)["volumeMounts"]]
        for path in (settings.client.channel.ca, settings.client.channel.token_file):
            assert str(path.parent) in mounts
    asked, *_ = one("cpu", "NetworkPolicy")["spec"]["ingress"]
    assert asked["from"][0]["podSelector"]["matchLabels"].items() <= trainer.items()
    left = one(name, "NetworkPolicy")["spec"]["egress"][0]
    assert left["to"][0]["podSelector"]["matchLabels"].items() <= teacher.items()
    assert left["ports"] == [{"protocol": "TCP", "port": port}]


def test_a_gpu_is_asked_for_and_not_by_two_pods_at_once() -> None:
    assert "nvidia.com/gpu" not in container_of(pods("cpu")[0])["resources"]["limits"]
    for name in ("gpu", "replicas"):
        (pod,) = pods(name)
        assert container_of(pod)["resources"]["limits"]["nvidia.com/gpu"] == 1
        assert one(name, "Deployment")["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == 0
    (job,) = pods("train")
    assert container_of(job)["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_the_autoscaler_follows_a_metric_of_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = CollectorRegistry()
    Metrics(registry)
    spec = one("replicas", "HorizontalPodAutoscaler")["spec"]
    (metric,) = spec["metrics"]
    assert metric["pods"]["metric"]["name"] in {family.name for family in registry.collect()}
    assert spec["scaleTargetRef"]["name"] == one("replicas", "Deployment")["metadata"]["name"]
    assert "replicas" not in one("replicas", "Deployment")["spec"], "the next apply would undo the autoscaler's"
    full = serve_settings("replicas", monkeypatch).batching.max_queued_positions
    assert 0 < int(metric["pods"]["target"]["averageValue"]) < full
    assert one("replicas", "PersistentVolumeClaim")["spec"]["accessModes"] == ["ReadOnlyMany"]


def test_a_job_that_has_bad_input_is_not_repeated() -> None:
    rules = one("train", "Job")["spec"]["podFailurePolicy"]["rules"]
    assert rules[0]["onExitCodes"]["containerName"] == container_of(pods("train")[0])["name"]
    assert rules[0]["onExitCodes"]["values"] == [2]


@each_overlay
def test_images_are_of_this_version(name: str) -> None:
    for container in kustomize.containers(BUILT[name]):
        assert re.fullmatch(rf"registry\.example/\S+:{re.escape(shared.__version__)}-(cpu|cuda)", container["image"])


def test_comments_name_what_is_there() -> None:
    """Secrets that the comments make are those that pods use, with the keys that commands read."""
    for folder, built in (("teacher", "cpu"), ("trainer", "train")):
        comment = (FOLDER / folder / "kustomization.yaml").read_text()
        made = set(re.findall(r"kubectl create secret (?:tls|generic) (\S+)", comment))
        used = {v["secret"]["secretName"] for pod in pods(built) for v in pod["spec"]["volumes"] if "secret" in v}
        assert made == used
    for path in FOLDER.rglob("kustomization.yaml"):
        for named in re.findall(r"kubectl apply -k (\S+)", path.read_text()):
            assert REPOSITORY / named == path.parent
