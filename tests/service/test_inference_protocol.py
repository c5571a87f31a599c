"""The Open Inference Protocol against the real gateway: Triton's own client, and bytes that it would not send."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from fastapi import FastAPI
from tiny_model import ALPHA, CLASSES, SHAPE, clean_images, grey_images, npz_of, publish_version
from tritonclient.utils import InferenceServerException

from service.app import create_app
from service.auth import ensure_admin_key
from service.serving.protocol.outputs import DEFAULT, OUTPUTS
from service.settings import Settings
from tests.service.live import serving
from tests.service.migrated import migrated

MAX_BYTES = 200_000
INFER = "/v2/models/signs/infer"
Headers = dict[str, str]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    home = tmp_path_factory.mktemp("home")
    settings = Settings(home=home, serving_threads=1, max_predict_bytes=MAX_BYTES, max_predict_images=100).resolved()
    return migrated(settings)


@pytest.fixture(scope="module")
def app(settings: Settings) -> FastAPI:
    app = create_app(settings)
    for _ in range(2):
        publish_version(app.state.database, app.state.storage, "signs")
    return app


@pytest.fixture(scope="module")
def http(app: FastAPI, settings: Settings) -> Iterator[httpx.Client]:
    with serving(app, key=ensure_admin_key(settings)) as client:
        yield client


@pytest.fixture
def headers(http: httpx.Client) -> Headers:
    """To be copied for each call: the client adds to what it is given."""
    return {"Authorization": http.headers["Authorization"]}


@pytest.fixture
def client(http: httpx.Client) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"{http.base_url.host}:{http.base_url.port}") as client:
        yield client


def tensor(images: np.ndarray, *, binary: bool, datatype: str = "UINT8") -> list[triton.InferInput]:
    given = triton.InferInput("images", list(images.shape), datatype)
    given.set_data_from_numpy(images, binary_data=binary)
    return [given]


def told(http: httpx.Client, images: np.ndarray, **query: Any) -> list[dict[str, Any]]:
    answer = http.post("/v1/models/signs/predict", content=npz_of(images), params=query)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["predictions"]
    return found


def refused(answer: httpx.Response, status: int, code: str) -> str:
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/json"
    error: str = problem["error"]
    return error


def test_health_needs_no_key_and_the_rest_does(client: triton.InferenceServerClient, http: httpx.Client) -> None:
    assert client.is_server_live() and client.is_server_ready()
    with pytest.raises(InferenceServerException, match="API key") as raised:
        client.get_server_metadata()
    assert raised.value.status() == "401"
    with pytest.raises(InferenceServerException, match="API key"):
        client.infer("signs", tensor(grey_images(1), binary=True))


def test_metadata_of_server_and_model(client: triton.InferenceServerClient, headers: Headers) -> None:
    server = client.get_server_metadata(dict(headers))
    assert server["name"] == "winnow" and "binary_tensor_data" in server["extensions"]
    model = client.get_model_metadata("signs", headers=dict(headers))
    assert (model["name"], model["versions"]) == ("signs", ["1", "2"])
    assert model["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, *SHAPE]}]
    assert [output["name"] for output in model["outputs"]] == list(DEFAULT)
    assert model["outputs"][0]["shape"] == [-1, len(CLASSES)]
    assert client.get_model_metadata("signs", "1", headers=dict(headers))["versions"] == ["1"]
    config = client.get_model_config("signs", headers=dict(headers))
    assert config["input"][0]["dims"] == list(SHAPE) and config["max_batch_size"] == 100
    assert {output["name"] for output in config["output"]} == set(OUTPUTS)


@pytest.mark.parametrize("binary", [True, False])
def test_the_client_gets_what_predict_says(
    client: triton.InferenceServerClient, headers: Headers, http: httpx.Client, binary: bool
) -> None:
    images = np.concatenate([clean_images(6, seed=2)[0], grey_images(2)])
    wanted = told(http, images)
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in OUTPUTS]
    given = tensor(images, binary=binary)
    result = client.infer("signs", given, outputs=outputs, headers=dict(headers), request_id="a-7")
    response = result.get_response()
    assert (response["model_name"], response["model_version"], response["id"]) == ("signs", "2", "a-7")
    assert response["parameters"]["alpha"] == ALPHA
    found = {name: result.as_numpy(name) for name in OUTPUTS}
    assert found["probabilities"].dtype == np.float32 and found["probabilities"].shape == (8, 3)
    assert found["probabilities"].tolist() == [pytest.approx(each["probabilities"], abs=1e-7) for each in wanted]
    texts = {name: [getattr(v, "decode", lambda v=v: v)() for v in found[name]] for name in ("label", "reason")}
    assert texts["label"] == [each["label"] or "" for each in wanted]
    assert texts["reason"] == [each["reason"] or "" for each in wanted]
    assert {"", "uncertain"} <= set(texts["reason"])
    assert found["abstained"].dtype == bool and found["abstained"].tolist() == [each["abstained"] for each in wanted]
    assert found["p_value"].tolist() == [each["p_value"] for each in wanted]
    assert [i for i, each in zip(found["index"].tolist(), wanted, strict=True) if not each["abstained"]] == [
        each["index"] for each in wanted if not each["abstained"]
    ]
    for name in ("entropy", "mutual_information", "kl"):
        assert found[name].tolist() == [each["uncertainty"][name] for each in wanted]


def test_without_outputs_the_four_come_and_in_binary(client: triton.InferenceServerClient, headers: Headers) -> None:
    result = client.infer("signs", tensor(clean_images(3, seed=1)[0], binary=True), headers=dict(headers))
    assert [output["name"] for output in result.get_response()["outputs"]] == list(DEFAULT)
    assert all("binary_data_size" in output["parameters"] for output in result.get_response()["outputs"])
    assert result.as_numpy("label").tolist()[0].decode() in CLASSES


def test_floats_are_the_same_images(client: triton.InferenceServerClient, headers: Headers) -> None:
    images = clean_images(5, seed=4)[0]
    whole = client.infer("signs", tensor(images, binary=True), headers=dict(headers))
    for binary in (True, False):
        floats = tensor((images / 255).astype(np.float32), binary=binary, datatype="FP32")
        found = client.infer("signs", floats, headers=dict(headers))
        assert np.array_equal(found.as_numpy("p_value"), whole.as_numpy("p_value"))
    with pytest.raises(InferenceServerException, match="0 to 1"):
        client.infer("signs", tensor(images.astype(np.float32), binary=True, datatype="FP32"), headers=dict(headers))
    with pytest.raises(InferenceServerException, match="0 to 1"):
        nan = tensor(np.full((1, *SHAPE), np.nan, np.float32), binary=True, datatype="FP32")
        client.infer("signs", nan, headers=dict(headers))


def test_parameters_choose(client: triton.InferenceServerClient, headers: Headers, http: httpx.Client) -> None:
    images = clean_images(60, seed=3)[0]

    def ask(**parameters: Any) -> triton.InferResult:
        return client.infer("signs", tensor(images, binary=True), headers=dict(headers), parameters=parameters)

    strict, lax = ask(alpha=0.01), ask(alpha=0.5)
    assert (strict.get_response()["parameters"]["alpha"], lax.get_response()["parameters"]["alpha"]) == (0.01, 0.5)
    assert strict.as_numpy("abstained").sum() < lax.as_numpy("abstained").sum()
    assert lax.as_numpy("abstained").tolist() == [each["abstained"] for each in told(http, images, alpha=0.5)]
    one, again, other = ask(seed=1, mc_passes=8), ask(seed=1, mc_passes=8), ask(seed=2, mc_passes=8)
    assert np.array_equal(one.as_numpy("probabilities"), again.as_numpy("probabilities"))
    assert not np.array_equal(one.as_numpy("probabilities"), other.as_numpy("probabilities"))


def test_classification_as_triton_writes_it(client: triton.InferenceServerClient, headers: Headers) -> None:
    outputs = [triton.InferRequestedOutput("probabilities", class_count=2)]
    images, labels = clean_images(4, seed=5)
    found = client.infer("signs", tensor(images, binary=True), outputs=outputs, headers=dict(headers))
    rows = [[text.decode().split(":") for text in row] for row in found.as_numpy("probabilities")]
    assert [int(row[0][1]) for row in rows] == labels.tolist()
    assert all(row[0][2] == CLASSES[int(row[0][1])] and float(row[0][0]) >= float(row[1][0]) for row in rows)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests(client: triton.InferenceServerClient, headers: Headers, algorithm: str) -> None:
    images = clean_images(3, seed=6)[0]
    how: dict[str, Any] = {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
    plain = client.infer("signs", tensor(images, binary=True), headers=dict(headers))
    packed = client.infer("signs", tensor(images, binary=True), headers=dict(headers), **how)
    assert np.array_equal(plain.as_numpy("probabilities"), packed.as_numpy("probabilities"))


def test_versions_and_aliases(client: triton.InferenceServerClient, headers: Headers, http: httpx.Client) -> None:
    given = tensor(grey_images(1), binary=True)
    http.put("/v1/models/signs/aliases/champion", json={"version": 1}).raise_for_status()
    try:
        for model, version, answering in (
            ("signs", "", "1"),
            ("signs", "2", "2"),
            ("signs@2", "", "2"),
            ("signs:champion", "", "1"),
            ("signs", "champion", "1"),
        ):
            found = client.infer(model, given, model_version=version, headers=dict(headers)).get_response()
            assert (found["model_name"], found["model_version"]) == ("signs", answering)
    finally:
        http.put("/v1/models/signs/aliases/champion", json={"version": 2})


def test_errors_reach_the_client_as_the_protocol_says(
    client: triton.InferenceServerClient, headers: Headers, http: httpx.Client
) -> None:
    given = tensor(grey_images(1), binary=True)

    def error(model: str, inputs: list[triton.InferInput], **how: Any) -> tuple[str, str]:
        with pytest.raises(InferenceServerException) as raised:
            client.infer(model, inputs, headers=dict(headers), **how)
        return raised.value.status(), raised.value.message()

    assert error("nothing", given)[0] == "404"
    assert error("signs", given, model_version="9")[0] == "404"
    assert error("signs@1", given, model_version="1")[0] == "400"
    status, message = error("signs", tensor(np.zeros((1, 4, 4, 3), np.uint8), binary=True))
    assert status == "400" and "8, 8, 3)" in message
    status, message = error("signs", given, outputs=[triton.InferRequestedOutput("logits")])
    assert status == "400" and "probabilities" in message
    status, message = error("signs", given, parameters={"aplha": 0.1})
    assert status == "400" and "alpha" in message
    assert error("signs", given, parameters={"alpha": 1e-9})[0] == "400"
    assert error("signs", given, priority=3)[0] == "400"
    assert error("signs", tensor(grey_images(101), binary=True))[0] == "413"
    assert error("signs", given, timeout=1)[0] == "503"
    assert 'winnow_inference_refusals_total{code="deadline_exceeded"} 1.0' in http.get("/metrics").text
    with pytest.raises(InferenceServerException, match="no model nothing"):
        client.get_model_metadata("nothing", headers=dict(headers))


def test_the_repository_lists_loads_and_unloads(
    client: triton.InferenceServerClient, headers: Headers, http: httpx.Client
) -> None:
    def states() -> dict[str, str]:
        index = client.get_model_repository_index(headers=dict(headers))
        return {each["version"]: each["state"] for each in index if each["name"] == "signs"}

    client.load_model("signs", headers=dict(headers))
    assert states()["2"] == "READY" and client.is_model_ready("signs", "2", headers=dict(headers))
    client.unload_model("signs", headers=dict(headers))
    assert states() == {"1": "UNAVAILABLE", "2": "UNAVAILABLE"}
    assert not client.is_model_ready("signs", headers=dict(headers))
    assert http.post("/v2/repository/index", json={"ready": True}).json() == []
    client.infer("signs", tensor(grey_images(1), binary=True), headers=dict(headers))
    assert states() == {"1": "UNAVAILABLE", "2": "READY"}
    with pytest.raises(InferenceServerException, match="no model nothing"):
        client.load_model("nothing", headers=dict(headers))
    with pytest.raises(InferenceServerException, match="no parameters"):
        client.load_model("signs", headers=dict(headers), config="{}")
    key = http.post("/v1/keys", json={"name": "p", "scopes": ["predict"]}).json()["secret"]
    weak = {"Authorization": f"Bearer {key}"}
    assert client.get_model_repository_index(headers=dict(weak))
    for act in (client.load_model, client.unload_model):
        with pytest.raises(InferenceServerException, match="scope admin") as raised:
            act("signs", headers=dict(weak))
        assert raised.value.status() == "403"


def test_another_tenants_models_are_not_there(http: httpx.Client) -> None:
    http.post("/v1/tenants", json={"name": "acme"}).raise_for_status()
    made = http.post("/v1/tenants/acme/keys", json={"name": "first", "scopes": ["admin"]})
    acme = {"Authorization": f"Bearer {made.json()['secret']}"}
    assert http.post("/v2/repository/index", headers=acme).json() == []
    assert http.get("/v2/models/stats", headers=acme).json() == {"model_stats": []}
    for path in ("", "/ready", "/config", "/stats", "/versions/1", "/versions/1/stats"):
        answer = http.get(f"/v2/models/signs{path}", headers=acme)
        assert (answer.status_code, answer.json()["code"]) == (404, "model_not_found"), path
    refused(http.post(INFER, content=body(), headers=acme), 404, "model_not_found")
    for act in ("load", "unload"):
        refused(http.post(f"/v2/repository/models/signs/{act}", headers=acme), 404, "model_not_found")


def test_statistics_count(client: triton.InferenceServerClient, headers: Headers) -> None:
    def counted() -> dict[str, Any]:
        (found,) = client.get_inference_statistics("signs", "2", headers=dict(headers))["model_stats"]
        return dict(found)

    before = counted()
    client.infer("signs", tensor(grey_images(5), binary=True), headers=dict(headers))
    after = counted()
    assert after["inference_count"] - before["inference_count"] == 5
    assert after["inference_stats"]["success"]["count"] - before["inference_stats"]["success"]["count"] == 1
    assert after["inference_stats"]["compute_infer"]["ns"] > before["inference_stats"]["compute_infer"]["ns"]
    everything = client.get_inference_statistics(headers=dict(headers))["model_stats"]
    assert {"signs"} == {each["name"] for each in everything}


def test_asking_asynchronously(http: httpx.Client, headers: Headers) -> None:
    address = f"{http.base_url.host}:{http.base_url.port}"
    with triton.InferenceServerClient(address, concurrency=4) as client:
        images = clean_images(12, seed=8)[0]
        waiting = [
            client.async_infer("signs", tensor(each[None], binary=True), headers=dict(headers)) for each in images
        ]
        found = [asked.get_result().as_numpy("p_value")[0] for asked in waiting]
    assert found == [each["p_value"] for each in told(http, images)]


def body(**changes: Any) -> bytes:
    images = grey_images(1)
    given = {"name": "images", "datatype": "UINT8", "shape": [1, *SHAPE], "data": images.ravel().tolist()}
    return json.dumps({"inputs": [{**given, **changes}]}).encode()


BAD_TENSORS: list[tuple[bytes, str]] = [
    (body(name="image"), "bad_tensor"),
    (body(datatype="FP64"), "bad_tensor"),
    (body(datatype=None), "bad_tensor"),
    (body(shape=[1, 8, 8]), "bad_tensor"),
    (body(shape=[-1, 8, 8, 3]), "bad_tensor"),
    (body(shape=[True, 8, 8, 3]), "bad_tensor"),
    (body(shape=[1] * 20), "bad_tensor"),
    (body(shape="many"), "bad_tensor"),
    (body(data=None), "bad_tensor"),
    (body(data=[0.5] * 192), "bad_tensor"),
    (body(data=[256] * 192), "bad_tensor"),
    (body(data=["a"] * 192), "bad_tensor"),
    (body(data=[[1], [1, 2]]), "bad_tensor"),
    (body(data=[1] * 191), "bad_tensor"),
    (body(parameters={"shared_memory_region": "x"}), "bad_tensor"),
    (body(parameters={"binary_data_size": 192}), "bad_tensor"),
    (body(parameters={"binary_data_size": "192"}), "bad_tensor"),
    (body(parameters=[]), "bad_tensor"),
    (b"{", "malformed_json"),
    (b"[]", "bad_inference_request"),
    (b"{}", "bad_inference_request"),
    (b'{"inputs": []}', "bad_inference_request"),
    (b'{"inputs": [1]}', "bad_tensor"),
    (b'{"inputs": [], "input": 1}', "unknown_field"),
    (b"[" * 100_000, "malformed_json"),
    (body()[:-1] + b', "id": 7}', "bad_inference_request"),
    (body()[:-1] + b', "parameters": 7}', "bad_inference_request"),
    (body()[:-1] + b', "parameters": {"alpha": "x"}}', "bad_inference_request"),
    (body()[:-1] + b', "parameters": {"alpha": true}}', "bad_inference_request"),
    (body()[:-1] + b', "parameters": {"seed": 1.5}}', "bad_inference_request"),
    (body()[:-1] + b', "outputs": 7}', "bad_inference_request"),
    (body()[:-1] + b', "outputs": [{"name": ["x"]}]}', "unknown_output"),
    (body()[:-1] + b', "outputs": [{"name": "label"}, {"name": "label"}]}', "bad_inference_request"),
    (body()[:-1] + b', "outputs": [{"name": "label", "parameters": {"classification": 2}}]}', "bad_inference_request"),
    (body()[:-1] + b', "outputs": [{"name": "label", "parameters": {"x": 2}}]}', "unknown_parameter"),
]


@pytest.mark.parametrize(("sent", "code"), BAD_TENSORS, ids=range(len(BAD_TENSORS)))
def test_a_request_that_is_not_right_is_told_what_is_wrong(http: httpx.Client, sent: bytes, code: str) -> None:
    assert len(refused(http.post(INFER, content=sent), 400, code)) > 20


@pytest.mark.parametrize("length", ["-1", "x", "99999999", "1e3", "", "٣"])
def test_a_header_length_that_is_not_right_is_refused(http: httpx.Client, length: str) -> None:
    headers = {"Inference-Header-Content-Length": length.encode()}
    refused(http.post(INFER, content=body(), headers=headers), 400, "bad_header_length")  # type: ignore[arg-type]


def test_bytes_that_do_not_add_up_are_refused(http: httpx.Client) -> None:
    pixels = grey_images(1).tobytes()
    for size, tail in ((192, pixels[:-1]), (192, pixels + b"x"), (191, pixels[:-1]), (None, pixels)):
        parameters = None if size is None else {"binary_data_size": size}
        header = json.dumps(
            {"inputs": [{"name": "images", "datatype": "UINT8", "shape": [1, *SHAPE], "parameters": parameters}]}
        ).encode()
        headers = {"Inference-Header-Content-Length": str(len(header))}
        refused(http.post(INFER, content=header + tail, headers=headers), 400, "bad_tensor")


def test_bodies_that_are_damaged_packed_or_too_large(http: httpx.Client) -> None:
    def ask(content: bytes, encoding: str) -> httpx.Response:
        return http.post(INFER, content=content, headers={"Content-Encoding": encoding})

    refused(ask(body(), "br"), 415, "unknown_encoding")
    refused(ask(body(), "gzip"), 400, "damaged_body")
    refused(ask(gzip.compress(body())[:-5], "gzip"), 400, "damaged_body")
    refused(ask(gzip.compress(body()) + b"more", "gzip"), 400, "damaged_body")
    refused(ask(gzip.compress(bytes(200 * MAX_BYTES)), "gzip"), 413, "body_too_large")
    refused(ask(zlib.compress(bytes(MAX_BYTES + 1)), "deflate"), 413, "body_too_large")
    refused(http.post(INFER, content=bytes(MAX_BYTES + 1)), 413, "body_too_large")
    assert http.post(INFER, content=body()).status_code == 200


def test_routes_that_are_not_there_answer_in_the_protocols_form(http: httpx.Client) -> None:
    refused(http.get("/v2/nothing"), 404, "no_such_route")
    refused(http.get(INFER), 405, "method_not_allowed")
    refused(http.post("/v2/repository/index", content=b"{"), 400, "malformed_json")
    refused(http.post("/v2/repository/index", json={"x": 1}), 400, "bad_inference_request")
    refused(http.post("/v2/repository/index", content=bytes(100_000)), 400, "bad_inference_request")
    assert http.post("/v2/repository/index").status_code == 200
    assert http.get("/v1/nothing").headers["content-type"] == "application/problem+json"
