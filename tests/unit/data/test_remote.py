"""Rows of an object store and of a web server are those of the same files here, and every failure names its cure."""

from __future__ import annotations

import gzip
import json
import socket
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.tiny_tokenizers import tiny_tokenizer

from whet.config import DatasetConfig, load_config
from whet.config.explain import explain
from whet.config.load import make_config
from whet.config.resolve import resolve
from whet.core.errors import DataError
from whet.core.types import Hardware
from whet.data import remote
from whet.data.prepare import prepare
from whet.data.scan import ScanCache, descriptors
from whet.data.sources import locate

ROWS = [{"text": "first"}, {"text": "zweite, ü"}, {"text": "третья 🙂"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
MOTO = pytest.importorskip("moto.server")
S3FS = pytest.importorskip("s3fs")


@pytest.fixture(scope="module")
def endpoint():
    server = MOTO.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint, monkeypatch, tmp_path):
    """An empty bucket ``rows`` of an S3 that the environment names, as a user's environment does."""
    import urllib.request

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing-secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/moto-api/reset", method="POST")).close()
    S3FS.S3FileSystem.clear_instance_cache()
    store = S3FS.S3FileSystem(skip_instance_cache=True)
    store.mkdir("rows")

    def put(key, content):
        store.pipe_file(f"rows/{key}", content)

    yield put
    S3FS.S3FileSystem.clear_instance_cache()


@pytest.fixture
def web(tmp_path, monkeypatch):
    """A web server for a folder that it also gives."""
    monkeypatch.chdir(tmp_path)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    served = tmp_path / "served"
    served.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(served)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield served, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


class _Quiet(SimpleHTTPRequestHandler):
    def send_head(self):
        if self.path.startswith("/status/"):
            self.send_error(int(self.path.rpartition("/")[2].removesuffix(".jsonl")))
            return None
        return super().send_head()

    def log_message(self, *arguments):
        pass


def source(path, **options):
    return locate(DatasetConfig(path=str(path), **options), "a.yaml:3:5")


def values(path, **options):
    """The rows of a source, which are those of its chunks too."""
    found = source(path, **options)
    rows = list(found.rows())
    assert [row for chunk in found.chunks() for row in chunk.rows()] == rows
    return [row.value for row in rows]


def parquet():
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(ROWS), sink)
    return sink.getvalue().to_pybytes()


def test_objects_are_read_as_files_are(bucket):
    for key, content in {
        "a.jsonl": LINES,
        "a.jsonl.gz": gzip.compress(LINES),
        "a.parquet": parquet(),
        "a.json": json.dumps(ROWS).encode(),
        "a.csv": 'text\nfirst\n"zweite, ü"\nтретья 🙂\n'.encode(),
    }.items():
        bucket(key, content)
        assert values(f"s3://rows/{key}") == ROWS, key
    assert values("s3://rows/a.jsonl", split="train[1:]", shards=2, shards_idx=0) == [ROWS[1]]
    assert next(source("s3://rows/a.jsonl").rows()).place == "s3://rows/a.jsonl:1"
    assert values("json", data_files=("s3://rows/a.jsonl", "s3://rows/a.jsonl.gz")) == ROWS * 2


def test_prefixes_and_patterns_are_read_in_the_order_of_their_names(bucket):
    for key in ("data/b", "data/a", "data/deep/c", "data/test"):
        bucket(f"{key}.jsonl", json.dumps({"name": key}).encode())
    bucket("data/README.md", b"about the rows")
    bucket("data/.hidden.jsonl", LINES)
    names = ["data/a", "data/b", "data/deep/c"]
    assert [value["name"] for value in values("s3://rows/data")] == names
    assert [value["name"] for value in values("s3://rows/data/")] == names
    assert [value["name"] for value in values("s3://rows/data", split="test")] == ["data/test"]
    assert [value["name"] for value in values("s3://rows/data/*.jsonl")] == ["data/a", "data/b", "data/test"]
    assert [value["name"] for value in values("s3://rows/data/**/*.jsonl")] == [*names, "data/test"]
    assert [value["name"] for value in values("s3://rows/data", data_files="deep/*")] == ["data/deep/c"]
    with pytest.raises(DataError, match=r"no file matches 's3://rows/data/\*\.csv' -> check the address, and the pat"):
        source("s3://rows/data/*.csv")


def test_saved_datasets_are_read_from_a_bucket(bucket, tmp_path):
    datasets = pytest.importorskip("datasets")
    saved = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": saved, "test": saved.select([1])}).save_to_disk(tmp_path / "saved")
    for path in (tmp_path / "saved").rglob("*"):
        if path.is_file():
            bucket(f"saved/{path.relative_to(tmp_path / 'saved')}", path.read_bytes())
    assert values("s3://rows/saved") == ROWS
    assert values("s3://rows/saved", split="test") == [ROWS[1]]
    assert values("s3://rows/saved/train", split="train[:1]") == ROWS[:1]
    with pytest.raises(DataError, match=r"'s3://rows/saved' has no split 'dev' -> it has: test, train"):
        source("s3://rows/saved", split="dev")


def test_an_object_that_changed_has_another_stamp_and_is_read_again(bucket):
    bucket("a.jsonl", LINES)
    cache = ScanCache("scans")
    (before,) = descriptors(source("s3://rows/a.jsonl"), cache)
    stamp = source("s3://rows/a.jsonl").stamp()
    (known,) = descriptors(source("s3://rows/a.jsonl"), cache)
    assert (known.digest, known.lines) == (before.digest, None)
    bucket("a.jsonl", LINES.replace(b"first", b"First"))
    assert source("s3://rows/a.jsonl").stamp() not in (None, stamp)
    (after,) = descriptors(source("s3://rows/a.jsonl"), cache)
    assert after.digest != before.digest
    assert b"First" in after.load()


def test_missing_keys_and_buckets_are_errors_with_a_cure(bucket):
    bucket("chat.jsonl", LINES)
    with pytest.raises(
        DataError,
        match=r"^a\.yaml:3:5: there is no 's3://rows/chats\.jsonl' -> did you mean 's3://rows/chat\.jsonl'\?$",
    ):
        source("s3://rows/chats.jsonl")
    with pytest.raises(DataError, match=r"^a\.yaml:3:5: there is no 's3://other/a\.jsonl'.* -> check the address"):
        source("s3://other/a.jsonl")
    with pytest.raises(DataError, match=r"data_files: no file 's3://rows/b\.csv' -> name files of the folder"):
        source("s3://rows", data_files="b.csv")


def test_an_object_that_goes_away_or_is_broken_names_itself(bucket):
    bucket("a.jsonl", LINES)
    found = source("s3://rows/a.jsonl")
    S3FS.S3FileSystem(skip_instance_cache=True).rm("rows/a.jsonl")
    S3FS.S3FileSystem().invalidate_cache()
    with pytest.raises(DataError, match=r"^s3://rows/a\.jsonl: there is no 's3://rows/a\.jsonl'"):
        list(found.chunks())
    bucket("cut.jsonl.gz", gzip.compress(LINES * 1000)[:-40])
    with pytest.raises(
        DataError, match=r"^s3://rows/cut\.jsonl\.gz: cannot be read \(.*\) -> check that the file is wh"
    ):
        list(source("s3://rows/cut.jsonl.gz").chunks())
    bucket("cut.parquet", parquet()[:-40])
    with pytest.raises(DataError, match=r"^s3://rows/cut\.parquet: cannot be read"):
        list(source("s3://rows/cut.parquet").rows())


def test_storage_options_reach_the_store_and_no_message(bucket, endpoint, monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    options = {"key": "my-key-id", "secret": "hunter2hunter2", "endpoint_url": endpoint}
    bucket("a.jsonl", LINES)
    dataset = {"storage_options": options}
    assert values("s3://rows/a.jsonl", **dataset) == ROWS
    assert "hunter2" not in repr(DatasetConfig(path="s3://rows/a.jsonl", **dataset))
    assert "hunter2" not in str(DatasetConfig(path="s3://rows/a.jsonl", **dataset).model_dump(mode="json"))
    assert "hunter2" not in repr(source("s3://rows/a.jsonl", **dataset))
    with pytest.raises(DataError, match=r"there is no 's3://rows/b\.jsonl'") as caught:
        source("s3://rows/b.jsonl", **dataset)
    assert "hunter2" not in str(caught.value)
    with pytest.raises(DataError, match=r"check `storage_options`, which is given to s3fs") as caught:
        source("s3://rows/a.jsonl", storage_options={**options, "hunter2hunter2": 1})
    assert "hunter2hunter2" not in str(caught.value)
    with pytest.raises(DataError, match=r"storage_options are for URLs, and 'a\.jsonl' is none"):
        source("a.jsonl", **dataset)


def test_storage_options_of_a_yaml_are_typed_and_hidden(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(
        "base_model: m\nlearning_rate: 1e-4\ndatasets:\n  - path: s3://rows/a.jsonl\n    type: chat_template\n"
        "    storage_options: {anon: no, secret: hunter2hunter2, config_kwargs: {retries: {max_attempts: 3}}}\n"
    )
    config = load_config(file)
    options = config.data.datasets[0].storage_options.get_secret_value()
    assert (options["secret"], options["config_kwargs"]) == ("hunter2hunter2", {"retries": {"max_attempts": 3}})
    shown = {row.key: row.value for row in explain(config)}
    assert shown["datasets.0.storage_options"] == "***"
    assert "hunter2" not in str(shown) + repr(config)


def test_a_set_prepared_from_a_bucket_is_reused_and_holds_no_secret(bucket, endpoint, monkeypatch, tmp_path):
    chat = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "yes"}]} for n in range(9)
    ]
    bucket("chat.jsonl.gz", gzip.compress("".join(json.dumps(row) + "\n" for row in chat).encode()))
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    options = {"key": "my-key-id", "secret": "hunter2hunter2", "endpoint_url": endpoint}
    dataset = {"path": "s3://rows/chat.jsonl.gz", "type": "chat_template", "storage_options": options}
    values = {"base_model": "m", "learning_rate": 1e-4, "sequence_len": 64, "datasets": [dataset]}
    config = make_config(values, check_files=False)
    resolved, tokenizer = resolve(config, Hardware("cpu")), tiny_tokenizer("chatml")
    first = prepare(config, resolved, tokenizer)
    assert len(first.train) == 9
    assert first.train.place(8) == "s3://rows/chat.jsonl.gz:9"
    monkeypatch.setattr("whet.data.files.FileSource.chunks", None)
    assert prepare(config, resolved, tokenizer).path == first.path
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written
    for secret in (b"hunter2", b"my-key-id"):
        assert not [path for path in written if secret in path.read_bytes()]


def test_without_credentials_the_error_says_which_to_set(bucket, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    S3FS.S3FileSystem.clear_instance_cache()
    message = r"'s3://rows/a\.jsonl' may not be read \(.*\) -> set AWS_ACCESS_KEY_ID .*for a public bucket write"
    with pytest.raises(DataError, match=message):
        source("s3://rows/a.jsonl")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError("Access Denied"), r"may not be read \(Access Denied\) -> set AWS_ACCESS_KEY_ID"),
        (type("ConfigFileNotFound", (Exception,), {})("no file"), r"may not be read \(no file\) -> set AWS_ACCESS"),
        (ValueError("give account_name with credentials"), r"may not be read \(give .*\) -> set AWS_ACCESS_KEY_ID"),
        (TimeoutError(), r"cannot be read \(TimeoutError\) -> check the address and the network"),
        (KeyError("Body"), r"cannot be read \(KeyError: 'Body'\) -> check the address"),
    ],
)
def test_whatever_a_store_raises_is_an_error_with_a_cure(bucket, monkeypatch, error, message):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(S3FS.S3FileSystem, "info", fail)
    with pytest.raises(DataError, match=rf"^a\.yaml:3:5: 's3://rows/a\.jsonl' {message}"):
        source("s3://rows/a.jsonl")


def test_a_store_that_does_not_answer_is_an_error(bucket, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    S3FS.S3FileSystem.clear_instance_cache()
    with pytest.raises(DataError, match=r"cannot be read \(EndpointConnectionError.*and AWS_ENDPOINT_URL where it"):
        source("s3://rows/a.jsonl")


@pytest.mark.parametrize(
    ("url", "package"),
    [
        ("s3://b/a.jsonl", "s3fs"),
        ("gs://b/a.jsonl", "gcsfs"),
        ("abfss://b@c/a.jsonl", "adlfs"),
        ("adl://b/a.jsonl", "adlfs"),
        ("oci://b@c/a.jsonl", "ocifs"),
    ],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch, url, package):
    def missing(scheme):
        raise ImportError("Install it")

    monkeypatch.setattr("fsspec.get_filesystem_class", missing)
    with pytest.raises(DataError, match=rf"needs the package {package}, .* -> pip install {package}$"):
        source(url)


def test_files_of_a_web_server_are_read(web):
    served, address = web
    (served / "a.jsonl").write_bytes(LINES)
    (served / "a.jsonl.gz").write_bytes(gzip.compress(LINES))
    (served / "a.parquet").write_bytes(parquet())
    for name in ("a.jsonl", "a.jsonl.gz", "a.parquet"):
        assert values(f"{address}/{name}") == ROWS
    assert next(source(f"{address}/a.jsonl?token=hunter2").rows()).place == f"{address}/a.jsonl:1"
    assert "hunter2" not in source(f"{address}/a.jsonl?token=hunter2").name


def test_a_file_of_a_web_server_has_a_stamp_that_changes_with_it(web):
    import os

    served, address = web
    (served / "a.jsonl").write_bytes(LINES)
    os.utime(served / "a.jsonl", (10**9, 10**9))
    before = source(f"{address}/a.jsonl").stamp()
    assert source(f"{address}/a.jsonl").stamp() == before
    os.utime(served / "a.jsonl", (10**9 + 5, 10**9 + 5))
    assert before is not None
    assert source(f"{address}/a.jsonl").stamp() != before


def test_failures_of_a_web_server_are_errors_without_the_query(web):
    _, address = web
    with pytest.raises(DataError, match=rf"^{address}/none\.jsonl: there is no '{address}/none\.jsonl' -> ") as caught:
        list(source(f"{address}/none.jsonl?sig=hunter2").rows())
    assert "hunter2" not in str(caught.value)
    with pytest.raises(DataError, match=r"may not be read \(HTTP status 403\) -> check that the address may be read"):
        list(source(f"{address}/status/403.jsonl").rows())
    with pytest.raises(
        DataError, match=r"cannot be read \(ClientResponseError: 500.* -> check the address and the net"
    ):
        list(source(f"{address}/status/500.jsonl").rows())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(
        DataError, match=rf"'http://127\.0\.0\.1:{port}/a\.jsonl' cannot be read .*check the address an"
    ):
        list(source(f"http://127.0.0.1:{port}/a.jsonl").chunks())


def test_an_address_of_this_machine_is_a_path(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(LINES)
    (chunk,) = source(f"file://{tmp_path}/a.jsonl").chunks()
    assert chunk.span is not None
    assert values(f"file://{tmp_path}/a.jsonl") == ROWS


def test_addresses_are_shown_without_passwords(monkeypatch):
    assert remote.shown("s3://key:secret@bucket/a.jsonl") == "s3://bucket/a.jsonl"
    assert remote.shown("https://host/a.jsonl?X-Amz-Signature=1") == "https://host/a.jsonl"
