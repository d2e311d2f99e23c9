"""The manifests of ``deploy/kubernetes``: their schemas, and what they refer to in each other."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from girder_dask.cli.site.command import write_site
from girder_dask.cli.site.files import Site
from tests.support.deploy_files import DEPLOY
from tests.support.kustomize import pod_specs, render

KUBERNETES = DEPLOY / "kubernetes"
# The oldest and the newest for which the package has schemas and that the page names.
VERSIONS = ["1.31", "1.34"]
BY_KUBERNETES = {"kube-root-ca.crt"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``girder-dask init`` writes, with a credential."""
    directory = tmp_path_factory.mktemp("kubernetes") / "files"
    directory.mkdir()
    write_site(Site("girder", "scheduler", ("worker",), tls=True), directory)
    (directory / "scheduler" / "girder.credential").write_text("a-key\n")
    return directory


@pytest.fixture(scope="module")
def rendered(files: Path) -> list[dict[str, Any]]:
    return [*render(KUBERNETES / "site", files), *render(KUBERNETES / "gpu")]


def of_kind(rendered: list[dict[str, Any]], *kinds: str) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in rendered if each["kind"] in kinds}


def workloads(rendered: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return of_kind(rendered, "Deployment", "StatefulSet")


def containers(rendered: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for each in rendered:
        for spec in pod_specs(each):
            for container in [*spec.get("initContainers", []), *spec["containers"]]:
                yield f"{each['metadata']['name']}/{container['name']}", container


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_manifests_match_their_schemas(
    rendered: list[dict[str, Any]], version: str
) -> None:
    assert len(rendered) > 20
    for resource in rendered:
        kubernetes_validate.validate(resource, version, strict=True)


def test_kubernetes_schemas_refuse_a_key_that_does_not_exist(
    rendered: list[dict[str, Any]],
) -> None:
    broken = yaml.safe_load(yaml.safe_dump(workloads(rendered)["girder"]))
    broken["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, VERSIONS[-1], strict=True)


def test_kubernetes_names_are_unique(rendered: list[dict[str, Any]]) -> None:
    names = [(each["kind"], each["metadata"]["name"]) for each in rendered]
    assert len(names) == len(set(names))


def test_kubernetes_volumes_are_there_and_mounted(rendered: list[dict[str, Any]]) -> None:
    secrets, maps = of_kind(rendered, "Secret"), of_kind(rendered, "ConfigMap")
    claims = of_kind(rendered, "PersistentVolumeClaim")
    for name, workload in workloads(rendered).items():
        (spec,) = pod_specs(workload)
        volumes = {each["name"]: each for each in spec["volumes"]}
        templates = workload["spec"].get("volumeClaimTemplates", [])
        volumes |= {each["metadata"]["name"]: each for each in templates}
        all_containers = [*spec.get("initContainers", []), *spec["containers"]]
        mounted = {mount["name"] for each in all_containers for mount in each["volumeMounts"]}
        assert mounted == set(volumes), name
        for volume in volumes.values():
            if "secret" in volume:
                assert volume["secret"]["secretName"] in secrets or name == "worker-gpu"
            if "configMap" in volume:
                assert volume["configMap"]["name"] in {*maps, *BY_KUBERNETES}
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in claims


def test_kubernetes_secrets_have_what_the_start_of_a_role_reads(
    rendered: list[dict[str, Any]], files: Path
) -> None:
    for role in ("girder", "scheduler", "worker"):
        (secret,) = [
            each for name, each in of_kind(rendered, "Secret").items() if name.startswith(role)
        ]
        written = {path.name for path in (files / role).iterdir()}
        unused = {name for name in written if name.endswith((".conf", ".service", ".timer"))}
        assert set(secret["stringData"]) == written - unused
        config = yaml.safe_load(secret["stringData"]["dask.yaml"])
        for pair in config["distributed"]["comm"]["tls"].values():
            for path in [pair] if isinstance(pair, str) else pair.values():
                assert path.startswith(f"/etc/girder_dask/{role}/")
                assert Path(path).name in secret["stringData"]


def test_kubernetes_pods_stay_when_certificates_and_credential_are_replaced(
    rendered: list[dict[str, Any]], files: Path, tmp_path: Path
) -> None:
    renewed = tmp_path / "files"
    shutil.copytree(files, renewed)
    (renewed / "scheduler" / "girder.credential").write_text("another-key\n")
    (renewed / "worker" / "worker.pem").write_text("another certificate\n")
    after = render(KUBERNETES / "site", renewed)
    assert workloads(after).items() <= workloads(rendered).items()
    assert of_kind(after, "Secret") != of_kind(rendered, "Secret")


def test_kubernetes_selectors_choose_the_pods_of_one_workload(
    rendered: list[dict[str, Any]],
) -> None:
    labels = {
        name: each["spec"]["template"]["metadata"]["labels"]
        for name, each in workloads(rendered).items()
    }

    def chosen(selector: dict[str, str]) -> set[str]:
        return {name for name, found in labels.items() if selector.items() <= found.items()}

    for name, each in workloads(rendered).items():
        assert chosen(each["spec"]["selector"]["matchLabels"]) == {name}
    for name, service in of_kind(rendered, "Service").items():
        assert chosen(service["spec"]["selector"]) == {name}
        ports = {
            port["name"]
            for pod in pod_specs(workloads(rendered)[name])
            for container in pod["containers"]
            for port in container.get("ports", [])
        }
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for budget in of_kind(rendered, "PodDisruptionBudget").values():
        assert chosen(budget["spec"]["selector"]["matchLabels"]) == {"worker", "worker-gpu"}
    for policy in of_kind(rendered, "NetworkPolicy").values():
        peers = [peer for rule in policy["spec"].get("ingress", []) for peer in rule["from"]]
        for peer in peers:
            selector = peer.get("podSelector", {}).get("matchLabels", {})
            assert "app" not in selector or chosen(selector), selector


def test_kubernetes_policies_name_ports_of_their_pods(rendered: list[dict[str, Any]]) -> None:
    for name, policy in of_kind(rendered, "NetworkPolicy").items():
        for rule in policy["spec"].get("ingress", []):
            for port in rule.get("ports", []):
                (spec,) = pod_specs(workloads(rendered)[name])
                names = [each["name"] for c in spec["containers"] for each in c.get("ports", [])]
                assert port["port"] in names


def test_kubernetes_policies_let_girder_alone_reach_its_database(
    rendered: list[dict[str, Any]],
) -> None:
    policies = of_kind(rendered, "NetworkPolicy")
    assert policies["nothing"]["spec"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    for name in ("mongo", "redis"):
        (rule,) = policies[name]["spec"]["ingress"]
        assert rule["from"] == [{"podSelector": {"matchLabels": {"app": "girder"}}}]
        assert policies[name]["spec"].get("egress") is None


def test_kubernetes_addresses_of_the_files_are_services(
    rendered: list[dict[str, Any]], files: Path
) -> None:
    services = of_kind(rendered, "Service")
    worker = (files / "worker" / "worker.env").read_text()
    assert (
        f"SCHEDULER=tls://scheduler:{services['scheduler']['spec']['ports'][0]['port']}" in worker
    )
    config = yaml.safe_load((files / "scheduler" / "dask.yaml").read_text())
    port = services["girder"]["spec"]["ports"][0]["port"]
    assert config["girder"]["api-url"] == f"http://girder:{port}/api/v1"
    (ingress,) = of_kind(rendered, "Ingress").values()
    backend = ingress["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]
    assert backend["port"]["name"] == services[backend["name"]]["spec"]["ports"][0]["name"]


def test_kubernetes_containers_are_confined_and_have_resources(
    rendered: list[dict[str, Any]],
) -> None:
    for name, container in containers(rendered):
        confined = container["securityContext"]
        assert confined["readOnlyRootFilesystem"] is True, name
        assert confined["allowPrivilegeEscalation"] is False, name
        assert confined["capabilities"] == {"drop": ["ALL"]}, name
        assert set(container["resources"]["requests"]) == {"cpu", "memory"}, name
        assert "memory" in container["resources"]["limits"], name
    for each in rendered:
        for spec in pod_specs(each):
            assert spec["securityContext"]["runAsNonRoot"] is True
            assert spec["enableServiceLinks"] is False
            assert spec["automountServiceAccountToken"] is False


def test_kubernetes_processes_have_probes(rendered: list[dict[str, Any]]) -> None:
    without = {name for name, each in containers(rendered) if not {"livenessProbe"} <= each.keys()}
    assert without == {"worker/directory", "worker-gpu/directory", "scheduler/autoscaler"}


def test_kubernetes_workers_end_after_the_grace_of_their_jobs(
    rendered: list[dict[str, Any]],
) -> None:
    from dask.utils import parse_timedelta

    found = workloads(rendered)
    (scheduler,) = pod_specs(found["scheduler"])
    env = {each["name"]: each["value"] for each in scheduler["containers"][0]["env"]}
    grace_s = parse_timedelta(env["DASK_GIRDER__SCHEDULER__LEAVE_GRACE"])
    for name in ("worker", "worker-gpu"):
        (worker,) = pod_specs(found[name])
        assert worker["terminationGracePeriodSeconds"] >= grace_s + 60


def test_kubernetes_autoscaler_may_change_the_number_of_workers_alone(
    rendered: list[dict[str, Any]],
) -> None:
    (role,) = of_kind(rendered, "Role").values()
    (rule,) = role["rules"]
    assert rule["resources"] == ["deployments/scale"]
    assert rule["resourceNames"] == ["worker", "worker-gpu"]
    for name in rule["resourceNames"]:
        assert "replicas" not in workloads(rendered)[name]["spec"]
    (binding,) = of_kind(rendered, "RoleBinding").values()
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    accounts = of_kind(rendered, "ServiceAccount")
    (scheduler,) = pod_specs(workloads(rendered)["scheduler"])
    assert binding["subjects"][0]["name"] == scheduler["serviceAccountName"]
    assert scheduler["serviceAccountName"] in accounts
    holders = [
        container["name"]
        for container in scheduler["containers"]
        if "token" in {mount["name"] for mount in container["volumeMounts"]}
    ]
    assert holders == ["autoscaler"]
