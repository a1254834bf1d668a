"""Kustomize, as far as docker/kubernetes uses it: resources, images and JSON patches (RFC 6902), all strict.

A patch that meets no resource, or an operation on what is not there, is an error. The real program, where there is one,
must build the same.
"""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

Resource = dict[str, Any]
NAME = "kustomization.yaml"
KNOWN = {"apiVersion", "kind", "resources", "images", "patches"}


def build(folder: Path) -> list[Resource]:
    """The resources of a base or an overlay, in order.

    Raises:
        ValueError: a patch or an image name meets nothing, or an operation has no place; says which.
    """
    content = yaml.safe_load((folder / NAME).read_text())
    if unknown := content.keys() - KNOWN:
        raise ValueError(f"{folder}: {', '.join(unknown)} is not used here")
    resources = [resource for name in content["resources"] for resource in _read(folder / name)]
    names = [identity(resource) for resource in resources]
    if len(set(names)) < len(names):
        raise ValueError(f"{folder}: the same resource twice in {names}")
    for patch in content.get("patches", []):
        _patch(resources, patch["target"], yaml.safe_load((folder / patch["path"]).read_text()), folder)
    for image in content.get("images", []):
        replaced = [
            container for container in containers(resources) if container["image"].split(":")[0] == image["name"]
        ]
        if not replaced:
            raise ValueError(f"{folder}: no container has the image {image['name']}")
        for container in replaced:
            container["image"] = f"{image['newName']}:{image['newTag']}"
    return resources


def identity(resource: Resource) -> tuple[str, str]:
    """Kind and name."""
    return resource["kind"], resource["metadata"]["name"]


def containers(value: Any) -> Iterator[Resource]:
    """Everything with an image, however deep."""
    if isinstance(value, dict):
        if isinstance(value.get("image"), str):
            yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from containers(item)


def _read(path: Path) -> list[Resource]:
    return build(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text()))


def _patch(resources: list[Resource], target: dict[str, str], operations: list[Resource], folder: Path) -> None:
    met = [
        resource
        for resource in resources
        if resource["kind"] == target["kind"] and re.fullmatch(target["name"], resource["metadata"]["name"])
    ]
    if not met:
        raise ValueError(f"{folder}: a patch is for {target}, which is not there")
    for resource in met:
        for operation in operations:
            _apply(resource, operation)


def _apply(resource: Resource, operation: Resource) -> None:
    first, *parts = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")]
    assert first == ""
    *way, last = parts
    place: Any = resource
    try:
        for part in way:
            place = place[int(part) if isinstance(place, list) else part]
        key: Any = int(last) if isinstance(place, list) else last
        if operation["op"] == "remove":
            del place[key]
        elif operation["op"] == "replace":
            place[key]  # it has to be there
            place[key] = copy.deepcopy(operation["value"])
        elif operation["op"] == "add" and isinstance(place, dict) and key not in place:
            place[key] = copy.deepcopy(operation["value"])
        else:
            raise ValueError(f"{identity(resource)}: {operation} would replace what is there")
    except (KeyError, IndexError, TypeError):
        raise ValueError(f"{identity(resource)}: {operation} has no place") from None


def really_built(folder: Path) -> list[Resource] | None:
    """What the real program makes of a folder; None where there is none."""
    for name, command in (("kustomize", ["build"]), ("kubectl", ["kustomize"])):
        if found := shutil.which(name):
            done = subprocess.run([found, *command, str(folder)], capture_output=True, text=True, check=True)
            return list(yaml.safe_load_all(done.stdout))
    return None
