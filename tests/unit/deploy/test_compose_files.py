"""The compose files: what each service has, and that no secret is in an environment."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from tests.support.deploy_files import DEPLOY

COMPOSE = DEPLOY / "compose"
ONE_SHOT = {"setup", "accounts"}


def services(name: str = "docker-compose.yml") -> dict[str, dict[str, Any]]:
    return dict(yaml.safe_load((COMPOSE / name).read_text())["services"])


def test_compose_services_are_restarted_confined_and_checked() -> None:
    for name, service in services().items():
        assert service["restart"] == {"setup": "no", "accounts": "on-failure"}.get(
            name, "unless-stopped"
        )
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in service["security_opt"]
        assert service["logging"]["options"]["max-size"]
        if name not in ONE_SHOT:
            assert service["healthcheck"]["test"][0] == "CMD", name


def test_compose_environments_hold_settings_alone() -> None:
    for file in ("docker-compose.yml", "dsa.yml"):
        for name, service in services(file).items():
            assert set(service.get("environment", {})) <= {
                "GPU_WORKERS",
                "PUBLIC_URL",
                "THREADS",
                "TMPDIR",
                "VARIANT",
                "WORKERS",
            }, name
            assert "env_file" not in service


def test_compose_volumes_of_a_role_reach_no_other() -> None:
    allowed = {
        "authority": {"setup"},
        "administrator": {"accounts"},
        "scheduler-files": {"setup", "accounts", "scheduler"},
        "girder-files": {"setup", "girder"},
        "worker-files": {"setup", "worker", "worker-gpu"},
        "proxy-files": {"setup", "proxy"},
        "client-files": {"setup"},
        "girder-data": {"girder"},
        "mongo-data": {"mongo"},
        "monitoring": {"setup", "accounts", "prometheus"},
    }
    found: dict[str, set[str]] = {}
    for name, service in services().items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if not source.startswith((".", "/")):
                found.setdefault(source, set()).add(name)
    assert found == allowed
    assert set(yaml.safe_load((COMPOSE / "docker-compose.yml").read_text())["volumes"]) == set(
        allowed
    )


def test_compose_database_is_reached_by_girder_alone() -> None:
    networks = {name: set(each.get("networks", [])) for name, each in services().items()}
    assert {name for name, found in networks.items() if "database" in found} == {
        "mongo",
        "redis",
        "girder",
    }
    assert networks["mongo"] == networks["redis"] == {"database"}
    document = yaml.safe_load((COMPOSE / "docker-compose.yml").read_text())
    assert document["networks"]["database"] == {"internal": True}


def test_compose_publishes_the_proxy_and_the_scheduler_on_loopback() -> None:
    ports = {name: each["ports"] for name, each in services().items() if "ports" in each}
    assert ports == {
        "proxy": ["${HTTPS_PORT:-8443}:8443"],
        "scheduler": ["${SCHEDULER_PORT:-127.0.0.1:8786}:8786"],
    }


@pytest.mark.parametrize("name", ["docker-compose.yml", "dsa.yml"])
def test_compose_settings_are_in_the_example_with_their_defaults(name: str) -> None:
    text = (COMPOSE / name).read_text()
    used = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", text))
    lines = (COMPOSE / ".env.example").read_text().splitlines()
    shown = dict(line.lstrip("#").split("=", 1) for line in lines if re.match(r"#?[A-Z_]+=", line))
    assert {key: shown.get(key) for key in used} == used


@pytest.mark.parametrize(("name", "role"), [("docker-compose.yml", "dask"), ("dsa.yml", "dsa")])
def test_compose_services_build_the_image_that_they_name(name: str, role: str) -> None:
    for service, each in services(name).items():
        image = each["image"].split(":-")[1].rstrip("}") if "image" in each else ""
        if image.startswith("girder-dask"):
            suffix = image.removeprefix("girder-dask").removesuffix(":local").lstrip("-")
            assert each["build"]["args"]["ROLE"] == (suffix or role), service
    shared = {"setup", "girder", "accounts", "scheduler", "worker"}
    assert all("build" in services(name)[service] for service in shared)
