"""What kustomize makes of the folders in ``deploy/kubernetes``, as far as these use it.

Resources, components, generators of secrets and config maps, images and the namespace are handled;
anything else in a ``kustomization.yaml`` is an error.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

__all__ = ["pod_specs", "render"]

_KNOWN = {
    "apiVersion",
    "kind",
    "namespace",
    "resources",
    "components",
    "images",
    "generatorOptions",
}
_GENERATORS = {"secretGenerator": "Secret", "configMapGenerator": "ConfigMap"}
_CLUSTER_WIDE = {"Namespace"}


def render(directory: Path, files: Path | None = None) -> list[dict[str, Any]]:
    """Return the resources of a kustomization.

    Parameters
    ----------
    directory
        The folder with ``kustomization.yaml``.
    files
        A directory that stands for ``files/`` in it.
    """
    text = (directory / "kustomization.yaml").read_text()
    document = yaml.safe_load(text)
    assert set(document) <= _KNOWN | set(_GENERATORS), set(document)
    found: list[dict[str, Any]] = []
    for name in [*document.get("resources", []), *document.get("components", [])]:
        path = directory / name
        if path.is_dir():
            found += render(path, files)
        else:
            found += [each for each in yaml.safe_load_all(path.read_text()) if each]
    options = document.get("generatorOptions", {})
    assert set(options) <= {"disableNameSuffixHash"}, options
    for generator, kind in _GENERATORS.items():
        for entry in document.get(generator, []):
            has_hash = not options.get("disableNameSuffixHash", False)
            found.append(_generated(kind, entry, directory, files, has_hash=has_hash))
    names = {
        (each["kind"], each["metadata"].pop("generatedFrom")): each["metadata"]["name"]
        for each in found
        if "generatedFrom" in each["metadata"]
    }
    images = {each["name"]: each["newTag"] for each in document.get("images", [])}
    for each in found:
        if "namespace" in document and each["kind"] not in _CLUSTER_WIDE:
            each["metadata"]["namespace"] = document["namespace"]
        for spec in pod_specs(each):
            _refer(spec, names)
            for container in _containers(spec):
                if container["image"] in images:
                    container["image"] += f":{images[container['image']]}"
    return found


def pod_specs(resource: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the specification of the pods of a resource, if it has any."""
    if resource["kind"] in {"Deployment", "StatefulSet"}:
        yield resource["spec"]["template"]["spec"]


def _containers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [*spec.get("initContainers", []), *spec["containers"]]


def _generated(
    kind: str, entry: dict[str, Any], directory: Path, files: Path | None, *, has_hash: bool
) -> dict[str, Any]:
    """Return a secret or a config map, whose name may have a hash of its content."""
    data = {}
    for name in entry["files"]:
        path = directory / name
        if files is not None and name.startswith("files/"):
            path = files / name.removeprefix("files/")
        data[path.name] = path.read_text()
    digest = hashlib.sha256(repr(data).encode()).hexdigest()[:10]
    name = f"{entry['name']}-{digest}" if has_hash else entry["name"]
    metadata = {"name": name, "generatedFrom": entry["name"]}
    key = "stringData" if kind == "Secret" else "data"
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata, key: data}


def _refer(spec: dict[str, Any], names: dict[tuple[str, str], str]) -> None:
    """Let the volumes of pods name the secrets and config maps that were generated."""
    for volume in spec.get("volumes", []):
        for kind, source, key in (
            ("Secret", "secret", "secretName"),
            ("ConfigMap", "configMap", "name"),
        ):
            if source in volume:
                name = volume[source][key]
                volume[source][key] = names.get((kind, name), name)
