"""What is asked of Docker, Podman and Apptainer for a container."""

from __future__ import annotations

import csv
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import dask
import pytest

from girder_dask.docker import apptainer, container, descriptions, engines
from girder_dask.docker.engine_api import EngineApi, EngineRefusal
from girder_dask.docker.images import Image
from girder_dask.docker.plan import ContainerPlan, Mount
from girder_dask.docker.settings import ContainerSettings
from girder_dask.errors import ContainerError, ContainerFailed, GirderDaskError

DOCKER = engines.EngineFacts("Docker 20.10", is_podman=False, is_rootless=False)
PODMAN = engines.EngineFacts("Podman 4.3", is_podman=True, is_rootless=True)
MOUNTS = [Mount('/w/a, "b".png', "/inputs/1/x"), Mount("/w/o", "/outputs", read_only=False)]


def plan(**more: Any) -> ContainerPlan:
    named = {"image": "tool:1", "command": ["-i", "x"], "mounts": MOUNTS, "user": "7:8", **more}
    return ContainerPlan(**named)


def described(facts: engines.EngineFacts = DOCKER, **more: Any) -> dict[str, Any]:
    describe = descriptions.for_podman if facts.is_podman else descriptions.for_docker
    return describe(facts, Image("sha256:1", "d"), plan(**more))


def settings(**values: Any) -> ContainerSettings:
    with dask.config.set({f"girder.docker.{key}": value for key, value in values.items()}):
        return ContainerSettings.read()


# -- engines with a socket ----------------------------------------------------------------------


def test_a_container_has_no_rights_by_default() -> None:
    found = described()
    host = found["HostConfig"]
    assert (found["Image"], found["User"], host["NetworkMode"]) == ("sha256:1", "7:8", "none")
    assert (host["CapDrop"], host["SecurityOpt"]) == (["ALL"], ["no-new-privileges"])
    assert host["LogConfig"] == {"Type": "none"}
    assert not {"Privileged", "Binds", "DeviceRequests", "Memory", "NanoCpus"} & host.keys()
    assert [mount["ReadOnly"] for mount in host["Mounts"]] == [True, False]
    assert "NVIDIA_VISIBLE_DEVICES=void" in found["Env"]
    found = described(PODMAN)
    assert (found["image"], found["user"]) == ("sha256:1", "7:8")
    assert (found["cap_drop"], found["no_new_privileges"]) == (["all"], True)
    assert found["netns"] == {"nsmode": "none"}
    assert [mount["options"] for mount in found["mounts"]] == [["rbind", "ro"], ["rbind", "rw"]]
    assert found["mounts"][0]["source"] == '/w/a, "b".png'
    assert not {"privileged", "cap_add", "networks"} & found.keys()
    assert described(PODMAN, network="site")["networks"] == {"site": {}}


def test_limits_and_gpus_are_those_of_the_job() -> None:
    more = {"cpus": 1.5, "memory_bytes": 1000, "gpus": ("1", "3")}
    found = described(**more)
    host = found["HostConfig"]
    assert (host["NanoCpus"], host["Memory"], host["MemorySwap"]) == (1_500_000_000, 1000, 1000)
    assert host["DeviceRequests"] == [
        {"Driver": "nvidia", "DeviceIDs": ["1", "3"], "Capabilities": [["gpu"]]}
    ]
    assert "NVIDIA_VISIBLE_DEVICES=1,3" in found["Env"]
    found = described(PODMAN, **more)
    assert found["devices"] == [{"path": "nvidia.com/gpu=1"}, {"path": "nvidia.com/gpu=3"}]
    assert found["resource_limits"] == {
        "pids": {"limit": 4096},
        "cpu": {"period": 100_000, "quota": 150_000},
        "memory": {"limit": 1000, "swap": 1000},
    }


def test_the_user_in_a_rootless_engine_is_that_of_the_worker() -> None:
    assert described(PODMAN)["userns"] == {"nsmode": "keep-id"}
    rootless_docker = engines.EngineFacts("Docker 28", is_podman=False, is_rootless=True)
    assert described(rootless_docker)["User"] == "0:0"


class _WithoutKeepId(EngineApi):
    """A rootless Podman of an account without additional ids: it refuses ``keep-id``."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def call(self, *_names: Any, body: Any = None, **_more: Any) -> Any:
        self.asked.append((body["user"], body.get("userns")))
        if "userns" in body:
            raise EngineRefusal("keep-id requires additional UIDs", status=500)
        return {"Id": "c"}


def test_a_rootless_podman_without_more_ids_runs_as_its_account() -> None:
    engine = _WithoutKeepId()
    assert container._create(engine, PODMAN, Image("sha256:1", "d"), plan()) == "c"
    assert engine.asked == [("7:8", {"nsmode": "keep-id"}), ("0:0", None)]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ('exec: "x": executable file not found in $PATH', "no such program"),
        ("bind source path does not exist: /w", "give it its --local-directory as a volume"),
        ('could not select device driver "nvidia"', "NVIDIA Container Toolkit"),
        ("No command specified", "no command of its own"),
        ("disk full", "refused to run tool:1: disk full"),
    ],
)
def test_a_refusal_says_what_to_do(message: str, expected: str) -> None:
    assert expected in container._problem(plan(), message)


def test_errors_keep_what_they_say_when_pickled() -> None:
    import pickle

    failed = pickle.loads(pickle.dumps(ContainerFailed("ended", exit_code=3)))
    assert (str(failed), failed.exit_code, failed.permanent) == ("ended", 3, False)
    assert pickle.loads(pickle.dumps(ContainerError("no", permanent=True))).permanent


# -- the choice of an engine --------------------------------------------------------------------


def test_choose_takes_the_first_engine_that_is_there(tmp_path: Path) -> None:
    nothing = {"XDG_RUNTIME_DIR": str(tmp_path), "PATH": str(tmp_path)}
    named = {**nothing, "DOCKER_HOST": f"unix://{tmp_path}/d", "CONTAINER_HOST": "tcp://x"}
    with pytest.raises(ContainerError, match=rf"{tmp_path}/d.*the program apptainer"):
        engines.choose("auto", {**named, "CONTAINER_HOST": f"unix://{tmp_path}/c"})
    program = tmp_path / "singularity"
    program.write_text("")
    program.chmod(0o755)
    assert engines.choose("apptainer", named).program == str(program)
    (tmp_path / "podman").mkdir()
    (tmp_path / "podman" / "podman.sock").write_text("")
    assert engines.choose("podman", named).socket == f"{tmp_path}/podman/podman.sock"
    (tmp_path / "d").write_text("")
    assert engines.choose("auto", named).socket == f"{tmp_path}/d"
    assert engines.choose("unix:///x/y.sock", named).socket == "/x/y.sock"


def test_choose_refuses_what_is_no_engine() -> None:
    with pytest.raises(ContainerError, match=r"is 'tcp://x' in Dask's configuration\. Set it to"):
        engines.choose("tcp://x")
    with pytest.raises(ContainerError, match="runs no containers"):
        engines.choose("none")


# -- settings -----------------------------------------------------------------------------------


def test_images_are_those_of_the_operator_for_everybody() -> None:
    listed = settings(images=["tool", "a.org/**:1"])
    for trusted in (True, False):
        listed.check_image("tool:3", trusted=trusted)
        with pytest.raises(ContainerError, match=r"a\.org/x:2 may not run"):
            listed.check_image("a.org/x:2", trusted=trusted)
    settings(images=None).check_image("any:1", trusted=True)
    with pytest.raises(ContainerError, match="may not run code of their own"):
        settings(images=None).check_image("any:1", trusted=False)
    with pytest.raises(ContainerError, match="Those that may are: none"):
        settings(images=[]).check_image("any:1", trusted=True)


@pytest.mark.parametrize("wrong", [{"pull": "maybe"}, {"user": "root"}, {"images": [3]}])
def test_a_setting_that_is_wrong_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(GirderDaskError, match=f"girder.docker.{next(iter(wrong))} is"):
        settings(**wrong)


# -- Apptainer, whose command is a stand-in: there is no package of it ---------------------------

_STAND_IN = """#!{python}
import json, os, sys
if sys.argv[1] == "--version":
    print("apptainer version 1.3.0")
    sys.exit()
own = {{k: v for k, v in os.environ.items() if k.startswith("APPTAINERENV_")}}
print(json.dumps([sys.argv[1:], own]))
print("é", file=sys.stderr)
sys.exit(5 if "fail" in sys.argv else 0)
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> str:
    """A program that prints its arguments and the variables of the container."""
    program = tmp_path / "apptainer"
    program.write_text(_STAND_IN.format(python=sys.executable))
    program.chmod(0o755)
    return str(program)


def run_stand_in(program: str, capfd: Any, *command: str) -> tuple[list[str], dict[str, str]]:
    from girder_dask import docker

    with dask.config.set({"girder.docker.engine": "apptainer"}), pytest.MonkeyPatch.context() as m:
        m.setenv("PATH", str(Path(program).parent), prepend=":")
        m.setattr(tempfile, "tempdir", str(Path(program).parent))  # the outputs are the caller's
        docker.run("ghcr.io/site/tool:2", list(command), env={"LEVEL": "1,2"}, entrypoint="/t")
    said = capfd.readouterr()
    assert said.err == "é\n"
    arguments, variables = json.loads(said.out)
    return arguments, variables


def test_apptainer_gets_the_whole_container(stand_in: str, capfd: Any) -> None:
    arguments, variables = run_stand_in(stand_in, capfd, "-i", "x y")
    mounts = [value for flag, value in itertools.pairwise(arguments) if flag == "--mount"]
    assert arguments[0] == "exec"
    assert arguments[-4:] == ["docker://ghcr.io/site/tool:2", "/t", "-i", "x y"]
    assert {"--containall", "--no-privs", "--net"} < set(arguments)
    assert arguments[arguments.index("--network") + 1] == "none"
    assert [mount.rpartition("destination=")[2] for mount in mounts] == [
        "/outputs",
        "/girder/progress",
    ]
    assert variables["APPTAINERENV_LEVEL"] == "1,2"
    assert variables["APPTAINERENV_GIRDER_PROGRESS"] == "/girder/progress"
    assert variables["APPTAINERENV_CUDA_VISIBLE_DEVICES"] == ""


def test_apptainer_fails_with_the_exit_code(stand_in: str, capfd: Any) -> None:
    with pytest.raises(ContainerFailed, match=r"exit code 5\. Its last lines are above") as raised:
        run_stand_in(stand_in, capfd, "fail")
    assert raised.value.exit_code == 5


def test_apptainer_gets_gpus_limits_and_any_path() -> None:
    more = {"gpus": ("1",), "cpus": 2.0, "memory_bytes": 100, "workdir": "/d", "network": "bridge"}
    words = apptainer.command("apptainer", plan(**more), settings(**{"apptainer-limits": True}))
    assert words[words.index("--cpus") + 1] == "2"
    assert words[words.index("--memory") + 1] == "100"
    assert words[words.index("--pwd") + 1] == "/d"
    assert "--nv" in words
    assert "--net" not in words
    assert apptainer.environment(plan(**more))["APPTAINERENV_CUDA_VISIBLE_DEVICES"] == "1"
    (mount,) = csv.reader([words[words.index("--mount") + 1]])
    assert mount == ["type=bind", 'source=/w/a, "b".png', "destination=/inputs/1/x", "ro"]
    assert "--cpus" not in apptainer.command("apptainer", plan(cpus=2.0), settings())


def test_apptainer_takes_files_of_the_operator_only(tmp_path: Path) -> None:
    (tmp_path / "tool.sif").write_text("")
    with_files = settings(**{"sif-directory": str(tmp_path), "pull": "never"})
    words = apptainer.command("apptainer", plan(image="tool.sif"), with_files)
    assert str(tmp_path / "tool.sif") in words
    for image, why in (("other.sif", "no image other.sif"), ("busybox:1", "would pull the image")):
        with pytest.raises(ContainerError, match=why):
            apptainer.command("apptainer", plan(image=image), with_files)
    with pytest.raises(ContainerError, match="no directory of such files"):
        apptainer.command("apptainer", plan(image="tool.sif"), settings())


def test_apptainer_is_ended_with_its_run(tmp_path: Path) -> None:
    program = tmp_path / "apptainer"
    program.write_text("#!/bin/sh\ntrap '' TERM\necho begun\nsleep 1000\n")
    program.chmod(0o755)
    script = (
        "import signal, sys\n"
        "from girder_dask.docker import apptainer, output, plan, settings\n"
        "def stop(): raise KeyboardInterrupt\n"
        "class Writer(output.OutputWriter):\n"
        "    def write(self, name, data): raise KeyboardInterrupt\n"
        "apptainer._GRACE_S = 0.1\n"
        "try:\n"
        "    apptainer.run_by_apptainer(sys.argv[1], plan.ContainerPlan('x', [], [], '1:1'),\n"
        "        settings.ContainerSettings.read(), writer=Writer(), also=[], is_canceled=bool)\n"
        "except KeyboardInterrupt:\n"
        "    print('ended')\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", script, str(program)], capture_output=True, text=True, timeout=60
    )
    assert told.stdout == "ended\n", told.stderr
