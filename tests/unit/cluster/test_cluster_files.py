"""The files of cluster/ that no test can run: each against its schema, and what the schema cannot know."""

from __future__ import annotations

import copy
import json
import re
import shlex
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from distgnn import cli
from distgnn.config_reading import load_config

ROOT = Path(__file__).parents[3]
CLUSTER = ROOT / "cluster"
SCHEMA = json.loads((ROOT / "tests" / "data" / "rayjob.schema.json").read_text(encoding="utf-8"))
IN_IMAGE = "/home/ray/distgnn/"  # the image's copy of jobs/

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def launcher() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((CLUSTER / "ray-cluster.yaml").read_text(encoding="utf-8"))
    return content


@pytest.fixture
def job() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((CLUSTER / "kuberay-rayjob.yaml").read_text(encoding="utf-8"))
    return content


def check_launcher(content: dict[str, Any]) -> dict[str, Any]:
    """As `ray up` prepares and checks it."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared: dict[str, Any] = prepare_config(copy.deepcopy(content))
    validate_config(prepared)
    return prepared


def check_job(content: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(SCHEMA).validate(content)


def test_the_launcher_takes_its_file(launcher: dict[str, Any]) -> None:
    prepared = check_launcher(launcher)
    (node_type,) = prepared["available_node_types"].values()
    assert node_type["max_workers"] == len(launcher["provider"]["worker_ips"]) == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.update(cluster_nmae=c.pop("cluster_name")),
        lambda c: c.update(auht={}),
        lambda c: c.update(initialization_commands="sudo true"),
        lambda c: c["auth"].update(ssh_usr="me"),
        lambda c: c.update(docker={"imgae": "distgnn"}),
    ],
)
def test_the_launcher_refuses_a_spoiled_file(launcher: dict[str, Any], change: Change) -> None:
    change(launcher)
    with pytest.raises((jsonschema.ValidationError, SystemExit)):
        check_launcher(launcher)


def test_the_docker_section_that_is_commented_out(launcher: dict[str, Any]) -> None:
    text = (CLUSTER / "ray-cluster.yaml").read_text(encoding="utf-8")
    section = re.search(r"^# docker:\n(#   .*\n)+", text, re.MULTILINE)
    assert section is not None
    launcher |= yaml.safe_load(re.sub(r"^# ", "", section.group(), flags=re.MULTILINE))
    assert check_launcher(launcher)["docker"]["container_name"] == "distgnn"


def test_every_node_is_started_with_a_token(launcher: dict[str, Any]) -> None:
    for where in ("head_start_ray_commands", "worker_start_ray_commands"):
        (start,) = [command for command in launcher[where] if "ray start" in command]
        assert start.index("RAY_AUTH_MODE=token") < start.index("ray start")
    assert "~/.ray/auth_token" in launcher["file_mounts"]
    assert "--dashboard-host=127.0.0.1" in " ".join(launcher["head_start_ray_commands"])


def test_the_job_follows_the_schema(job: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    check_job(job)


def head(content: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = content["spec"]["rayClusterSpec"]["headGroupSpec"]
    return found


def container(content: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = head(content)["template"]["spec"]["containers"][0]
    return found


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.update(apiVersion="ray.io/v1alpha1"),
        lambda c: c["spec"].pop("rayClusterSpec"),
        lambda c: c["spec"].update(entryPoint="python x.py"),
        lambda c: c["spec"].update(submissionMode="KubernetesMode"),
        lambda c: c["spec"].update(activeDeadlineSeconds="86400"),
        lambda c: c["spec"].pop("shutdownAfterJobFinishes"),
        lambda c: c["spec"]["rayClusterSpec"].update(rayVersion=2.6),
        lambda c: c["spec"]["rayClusterSpec"].update(workerGroups=[]),
        lambda c: c["spec"]["rayClusterSpec"]["authOptions"].update(mode="tokens"),
        lambda c: c["spec"]["rayClusterSpec"]["authOptions"].update(secret="x"),
        lambda c: c["spec"]["rayClusterSpec"]["workerGroupSpecs"][0].update(replica=2),
        lambda c: c["spec"]["rayClusterSpec"]["workerGroupSpecs"][0].pop("groupName"),
        lambda c: head(c)["rayStartParams"].update({"num-cpus": 0}),
        lambda c: head(c)["template"]["spec"].update(container=[]),
        lambda c: container(c).pop("image"),
        lambda c: container(c).update(envfrom=[]),
        lambda c: container(c)["resources"]["limits"].update(memory="8 GB"),
        lambda c: head(c)["template"]["spec"]["volumes"][0]["emptyDir"].update(size="2Gi"),
    ],
)
def test_a_spoiled_job_is_refused(job: dict[str, Any], change: Change) -> None:
    change(job)
    with pytest.raises(jsonschema.ValidationError):
        check_job(job)


def test_the_job_asks_for_a_token_and_shares_memory(job: dict[str, Any]) -> None:
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["authOptions"]["secretName"] in (CLUSTER / "README.md").read_text(encoding="utf-8")
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for pod in (group["template"]["spec"] for group in groups):
        assert pod["securityContext"]["runAsNonRoot"] is True
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        for one in pod["containers"]:
            mounts = {mount["mountPath"]: mount["name"] for mount in one["volumeMounts"]}
            assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
            assert one["resources"]["limits"]["memory"]


def test_the_job_runs_what_is_in_the_image(job: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    python, script, *options = shlex.split(job["spec"]["entrypoint"])
    assert python == "python"
    for path in [script, *(option for option in options if option.startswith(IN_IMAGE))]:
        assert (ROOT / path.removeprefix(IN_IMAGE)).is_file(), path
    options = [option.replace(IN_IMAGE, f"{ROOT}/") for option in options]
    arguments = cli.build_parser().parse_args(["train", *options])
    config = load_config(arguments.config, cli._overrides(arguments))
    groups = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert config.cluster.workers == sum(group["replicas"] for group in groups)
    assert config.data.path.startswith("s3://")


def test_ray_is_of_one_version(job: dict[str, Any]) -> None:
    pinned = re.search(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert pinned is not None
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == pinned.group(1)


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Instruction and arguments, comments left out and continued lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            word, _, rest = line.strip().partition(" ")
            yield word.upper(), rest.strip()


@pytest.fixture
def dockerfile() -> list[tuple[str, str]]:
    return list(instructions((CLUSTER / "Dockerfile").read_text(encoding="utf-8")))


def test_the_image_starts_from_a_fixed_python(dockerfile: list[tuple[str, str]]) -> None:
    known = {"FROM", "ARG", "RUN", "WORKDIR", "COPY", "USER", "ENV", "CMD"}
    assert {word for word, _ in dockerfile} <= known
    assert dockerfile[0][0] == "FROM"
    (base,) = [rest for word, rest in dockerfile if word == "FROM"]
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", base)
    minor = re.findall(r"3\.(\d+)", base)[0]
    supported = re.findall(r"Python :: 3\.(\d+)", (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert minor in supported


def test_the_image_copies_what_is_there(dockerfile: list[tuple[str, str]]) -> None:
    patterns = (CLUSTER / "Dockerfile.dockerignore").read_text(encoding="utf-8").split("\n")
    kept = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    copied = [
        source
        for word, rest in dockerfile
        if word == "COPY"
        for source in [part for part in rest.split() if not part.startswith("--")][:-1]
    ]
    assert {"constraints.txt", "pyproject.toml", "distgnn", "jobs"} <= set(copied)
    for source in copied:
        assert (ROOT / source).exists(), source
        assert any(fnmatch(source, pattern) for pattern in kept), f"{source} is kept out of the build"


def test_the_image_installs_the_tested_versions_and_is_not_root(dockerfile: list[tuple[str, str]]) -> None:
    installs = [rest for word, rest in dockerfile if word == "RUN" and "pip install" in rest]
    assert all("constraints.txt" in rest for rest in installs)
    words = [word for word, _ in dockerfile]
    (user,) = [rest for word, rest in dockerfile if word == "USER"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    assert words.index("USER") > max(n for n, word in enumerate(words) if word in ("RUN", "COPY"))
    (arguments,) = [rest for word, rest in dockerfile if word == "ARG"]
    assert arguments == "TORCH_INDEX=https://download.pytorch.org/whl/cpu"
    assert any("RAY_AUTH_MODE=token" in rest for word, rest in dockerfile if word == "ENV")


def test_the_image_is_named_by_the_version() -> None:
    for file in ("Dockerfile", "README.md", "ray-cluster.yaml", "kuberay-rayjob.yaml"):
        tags = re.findall(r"distgnn:(\d[\w.]*)", (CLUSTER / file).read_text(encoding="utf-8"))
        assert set(tags) == {metadata.version("distgnn")}, file
