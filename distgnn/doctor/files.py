"""Access to the data and to where results go, wherever they are."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from distgnn import publishing, storage
from distgnn.config import Config
from distgnn.doctor.finding import FAIL, OK, Examination, Finding, refusal
from distgnn.doctor.machine import nearest_folder
from distgnn.types import UserError

_READ_BYTES = 1 << 16
_AWS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_ENDPOINT_URL",
    "AWS_DEFAULT_REGION",
)
_AZURE = ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_CONNECTION_STRING")
_VARIABLES = {
    "s3": _AWS,
    "s3a": _AWS,
    "gs": ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CLOUD_PROJECT"),
    "gcs": ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CLOUD_PROJECT"),
    "abfs": _AZURE,
    "abfss": _AZURE,
    "az": _AZURE,
    "http": ("HTTP_PROXY", "NO_PROXY"),
    "https": ("HTTPS_PROXY", "NO_PROXY"),
}
UNANSWERED = "check that the store can be reached from here: its address, the network, and the proxy variables"


def access_advice(uri: str) -> str:
    """What access to a URI depends on: the variables of its store, with those that are set (never their values)."""
    if storage.is_local(uri):
        return "check the path and its permissions"
    protocol = uri.split("://", 1)[0]
    names = _VARIABLES.get(protocol)
    if names is None:
        return f"check the path, and the credentials that fsspec's {protocol} filesystem reads"
    states = ", ".join(f"{name} ({'set' if os.environ.get(name) else 'not set'})" for name in names)
    return f"check the path and the environment: {states}"


def check_data(examination: Examination) -> list[Finding]:
    """The prepared dataset, the log or the name that a run would start from, and the run that is to be evaluated."""
    config = examination.config
    findings = []
    if config.run.path:
        findings.append(_read("run.path", config.run.path, lambda uri: _look_at_run(uri)))
    if config.data.path:
        findings.append(_read("data.path", config.data.path, lambda uri: _look_at_dataset(uri, examination)))
    elif config.data.input:
        for key in ("input", "valid_input", "test_input"):
            if uri := getattr(config.data, key):
                findings.append(_read(f"data.{key}", uri, lambda uri: _look_at_log(uri, examination)))
        examination.timestamps = bool(config.data.timestamp_column)
        examination.weights = bool(config.data.weight_column)
    elif not config.run.path:
        findings.append(_look_up_name(config, examination))
    columns = {"user": config.data.user_column, "item": config.data.item_column}
    for role, column in columns.items():
        if uri := getattr(config.data, f"{role}_features"):
            look = partial(_look_at_features, column=column, role=role, examination=examination)
            findings.append(_read(f"data.{role}_features", uri, look))
    return findings


def _read(what: str, uri: str, look: Callable[[str], str]) -> Finding:
    try:
        return Finding(OK, what, look(uri))
    except UserError as error:
        return refusal(what, str(error), access_advice(uri))


def _look_at_run(uri: str) -> str:
    storage.read_bytes(storage.join(uri, "config.toml"))
    return f"{uri}: its config.toml is read"


def _look_at_dataset(uri: str, examination: Examination) -> str:
    from distgnn.partition.dataset import PreparedDataset

    dataset = PreparedDataset.open(uri, verify=False)
    examination.n_nodes = dataset.n_users + dataset.n_items
    examination.n_edges = dataset.n_train
    examination.n_by_role = {"user": dataset.n_users, "item": dataset.n_items}
    examination.feature_widths |= dataset.feature_widths()
    return (
        f"{dataset.name} in {uri}: {dataset.n_users:,} users, {dataset.n_items:,} items, {dataset.n_train:,} training "
        "edges (its files are checked when the run starts)"
    )


def _look_at_log(uri: str, examination: Examination) -> str:
    from distgnn.data.log_files import find_log_files, reading
    from distgnn.data.readers import estimate_rows

    form = examination.config.data.format
    files = find_log_files(uri, form)
    with reading(files[0].name), files[0].open_raw() as stream:
        stream.read(_READ_BYTES)
    rows = estimate_rows(uri, format=form)
    examination.n_rows += rows
    return f"{uri}: {len(files)} {files[0].format} file{'s' * (len(files) > 1)}, about {rows:,} interactions"


def _look_at_features(uri: str, column: str, role: str, examination: Examination) -> str:
    from distgnn.data.features import FeatureTable

    table = FeatureTable(uri, column, role)
    examination.feature_widths[role] = table.width
    return f"{uri}: {table.rows:,} rows, {len(table.columns)} columns, {table.width:,} values a row"


def _look_up_name(config: Config, examination: Examination) -> Finding:
    from distgnn.data.registry import list_datasets
    from distgnn.partition.sources import DEFAULT_DATASET

    name = config.data.name or DEFAULT_DATASET
    what = "data.name"
    entry = next((entry for entry in list_datasets() if entry.name == name), None)
    if entry is None:
        return Finding(FAIL, what, f"unknown dataset {name!r}", "distgnn datasets lists those that can be named")
    if entry.state.startswith("unusable"):
        return refusal(what, f"{name} is {entry.state}", f"repair or remove {entry.source}")
    if entry.n_users and entry.n_items:
        examination.n_nodes = entry.n_users + entry.n_items
        examination.n_by_role = {"user": entry.n_users, "item": entry.n_items}
    examination.n_rows = entry.n_train or 0
    figure = f"{name}, {entry.state}"
    if entry.state == "downloadable":
        figure += f" from {entry.source}, which is not tried here"
    return Finding(OK, what, figure)


def check_output(examination: Examination) -> list[Finding]:
    """Writes, reads back and removes a small file beside the run directory to be."""
    out = examination.config.run.out or "runs"
    what = "run.out"
    folder = _parent(out)
    uri = storage.join(folder, f".distgnn-doctor-{uuid.uuid4().hex}")
    content = uuid.uuid4().bytes
    try:
        storage.write_bytes(uri, content)
        try:
            if storage.read_bytes(uri) != content:
                advice = "the store gives back something else than was written: write elsewhere"
                return [Finding(FAIL, what, f"{folder}: a file written there comes back altered", advice)]
        finally:
            found, path = storage.filesystem(uri)
            with suppress(Exception):
                found.rm_file(path)
        if storage.exists(uri):
            advice = "allow deleting there: old checkpoints are removed as new ones are written"
            return [Finding(FAIL, what, f"{folder}: a file written there cannot be removed", advice)]
        if examination.config.run.out and not examination.config.run.resume:
            publishing.refuse_used(out)
    except UserError as error:
        if "is in use" in str(error):
            advice = "choose another run.out, remove it, or go on with it by run.resume = true (--resume)"
            return [Finding(FAIL, what, f"{out} holds something already", advice)]
        return [refusal(what, str(error), access_advice(out))]
    return [Finding(OK, what, f"{folder}: a file was written, read back and removed")]


def _parent(out: str) -> str:
    """The folder that a run directory goes into; of a local one the nearest that exists, so that none is made."""
    if storage.is_local(out):
        return str(nearest_folder(storage.local_path(out).parent))
    head, _, last = out.rstrip("/").rpartition("/")
    return out.rstrip("/") if head.endswith("/") or not last else head
