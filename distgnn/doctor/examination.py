"""All checks in their order, printed as they are made."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from distgnn import storage
from distgnn.config import Config
from distgnn.doctor import files, installation, machine, ray_cluster
from distgnn.doctor.finding import FAIL, Check, Examination, Finding, guarded

SECONDS = 30.0  # that a check may take
_BUSY = "the machine is overloaded or a disk hangs: look at it with top and df"

# The data goes before what depends on its size.
CHECKS = (
    Check("Python", installation.check_python, _BUSY),
    Check("packages", installation.check_packages, _BUSY),
    Check("kernels", installation.check_kernels, _BUSY),
    Check("data", files.check_data, files.UNANSWERED),
    Check("run.out", files.check_output, files.UNANSWERED),
    Check("cores", machine.check_cores, _BUSY),
    Check("memory", machine.check_memory, _BUSY),
    Check("shared memory", machine.check_shared_memory, _BUSY),
    Check("disk", machine.check_disks, _BUSY),
    Check("GPUs", machine.check_gpus, "check nvidia-smi: a device or the driver hangs"),
    Check("Ray", ray_cluster.check_ray, ray_cluster.UNANSWERED),
)


def examine(config: Config, seconds: float = SECONDS) -> Iterator[Finding]:
    """Check what a run with this configuration needs, one check after the other.

    Args:
        config: of the run to come.
        seconds: after which a check that gives no answer is a failure.
    """
    examination = Examination(config)
    for check in CHECKS:
        yield from guarded(check, examination, seconds)


def run_doctor(config: Config, json_uri: str = "") -> int:
    """Print the findings, write them to `json_uri` too where it is given; 0 if nothing fails, else 2.

    Raises:
        UserError: `json_uri` cannot be written.
    """
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # clients left behind would print tracebacks
    findings = []
    for finding in examine(config):
        print(finding, flush=True)
        findings.append(finding)
    failed = sum(finding.status == FAIL for finding in findings)
    print(f"{failed} of {len(findings)} fail" if failed else "nothing fails")
    if json_uri:
        storage.write_json(json_uri, {"ok": failed == 0, "findings": [finding.to_dict() for finding in findings]})
    return 2 if failed else 0
