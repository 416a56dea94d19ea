"""The HTTP routes without Ray; `make test-serve` has what they need."""

import concurrent.futures
import io
import json

import numpy as np
import pytest
from PIL import Image

from osgd_jax import AnytimePredictor, AnytimeServer
from tests.helpers.anytime_nets import Given

pytest.importorskip("httpx2")
pytest.importorskip("prometheus_client")
applications = pytest.importorskip("starlette.applications")
routing = pytest.importorskip("starlette.routing")
testclient = pytest.importorskip("starlette.testclient")
service = pytest.importorskip("experiments.serve.service")
metrics = pytest.importorskip("experiments.serve.metrics")

SHAPE = (2, 2, 3)
CLASSES = ["ant", "bee", "cat"]


class Colors(Given):
    """Output k says which color channel of the image's pixel k is strongest."""

    in_channels, spatial_dims = 3, 2

    def advance(self, k, carry):
        return carry.reshape(carry.shape[0], 4, 3)[:, k], carry


class Counts(metrics.Metrics):
    """Metrics in this process."""

    async def text(self):
        return super().text()


@pytest.fixture(scope="module")
def client():
    predictor = AnytimePredictor(Colors())
    about = {"classes": CLASSES, "input_shape": SHAPE, "dtype": "uint8"}
    limits = service.Limits(deadline=5.0, body_bytes=100_000, body_seconds=5, examples=4)
    with AnytimeServer(predictor, input_shape=SHAPE, max_batch=4, capacity=8) as server:
        handle = service.Service(server, about, limits, Counts()).handle
        routes = [routing.Route("/{path:path}", handle, methods=["GET", "POST", "PUT"])]
        yield testclient.TestClient(applications.Starlette(routes=routes))


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def png(pixels, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def test_images_and_arrays_are_answered_alike(client):
    pixels = np.zeros(SHAPE, np.uint8)
    pixels[1, 0, 1] = 200  # pixel 2, of the last output: the second class
    for body in (png(pixels), npy(pixels), npy(pixels.astype(np.float32))):
        response = client.post("/predict?deadline=5000", content=body)
        assert response.status_code == 200
        (answer,) = response.json()["answers"]
        assert answer["class"] == "bee"
        assert answer["output"] == 3
        assert sum(answer["probabilities"].values()) == pytest.approx(1)
        assert answer["probabilities"]["bee"] == pytest.approx(1)
        assert answer["queue_ms"] >= 0 < answer["stages_ms"]
        assert answer["late_ms"] == 0


def test_headers_are_read_in_many_threads(client):
    good = npy(np.zeros(SHAPE, np.float32))
    damaged = [good[:i] + byte + good[i + 1 :] for i in range(10, 70) for byte in (b"(", b"\0")]
    bodies = [good, *damaged] * 3
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(lambda x: client.post("/predict", content=x).status_code, bodies))
    assert set(statuses) == {200, 400}
    assert statuses[0] == 200


def test_a_header_is_read_again_after_a_fault_of_the_parser():
    """The fault needs threads of other libraries and comes once in ten thousand requests."""
    body, tries = npy(np.zeros(SHAPE, np.float32)), []

    def read_header(file):
        tries.append(file.tell())
        header = np.lib.format.read_array_header_1_0(file)
        if len(tries) < 3:
            raise SystemError("AST constructor recursion depth mismatch")
        return header

    file = io.BytesIO(body)
    np.lib.format.read_magic(file)
    assert service._parsed(read_header, file)[0] == SHAPE
    assert tries == [8, 8, 8]


def test_a_body_may_hold_several_examples(client):
    arrays = np.zeros((3, *SHAPE), np.float32)
    for i in range(3):
        arrays[i, 1, 0, i] = 9
    answers = client.post("/predict", content=npy(arrays)).json()["answers"]
    assert [answer["class"] for answer in answers] == CLASSES


def test_a_confident_request_leaves_early(client):
    pixels = np.zeros(SHAPE, np.uint8)
    pixels[0, 0, 2] = 99
    (answer,) = client.post("/predict?confidence=0.9", content=npy(pixels)).json()["answers"]
    assert (answer["class"], answer["output"]) == ("cat", 1)


def header(shape, kind="<f4"):
    text = str({"descr": kind, "fortran_order": False, "shape": shape}).ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    ("query", "body", "status", "message"),
    [
        ("", b"", 400, "The body must be an image or a .npy array, got no bytes."),
        ("", b"hello", 400, "The image"),
        ("", png(np.zeros(SHAPE, np.uint8))[:40], 400, "The image"),
        ("", npy(np.zeros(SHAPE, np.float32))[:100], 400, "not a readable .npy array"),
        ("", npy(np.zeros(SHAPE, np.float32))[:-4], 400, "not a readable .npy array"),
        ("", header((1 << 40, 2, 2, 3)), 400, "not a readable .npy array"),
        ("", header((-1, 2, 2, 3)), 400, "not a readable .npy array"),
        ("", npy(np.array([{"a": 1}], object)), 400, "not a readable .npy array"),
        ("", npy(np.zeros(SHAPE)).replace(b"2, 3)", b"2, 3 "), 400, "not a readable .npy array"),
        ("", npy(np.zeros(SHAPE)).replace(b"(2, 2, 3", b"-" * 8), 400, "not a readable .npy array"),
        ("", npy(np.zeros((5, *SHAPE))), 400, "1 to 4 examples, got (5, 2, 2, 3)"),
        ("", npy(np.zeros((0, *SHAPE))), 400, "1 to 4 examples, got (0, 2, 2, 3)"),
        ("", npy(np.zeros((3, 3, 3))), 400, "must have the shape (2, 2, 3)"),
        ("", npy(np.array(["a"] * 12).reshape(SHAPE)), 400, "must hold numbers, got <U1"),
        ("", png(np.zeros((8000, 7000), np.uint8), "GIF"), 413, "at most 50000000 pixels"),
        ("", b"x" * 100_001, 413, "at most 100000 bytes"),
        ("deadline=0", npy(np.zeros(SHAPE)), 400, "deadline must be above 0 and at most 5000 ms"),
        ("deadline=nan", npy(np.zeros(SHAPE)), 400, "deadline must be above 0"),
        ("deadline=6000", npy(np.zeros(SHAPE)), 400, "at most 5000 ms, got 6000"),
        ("deadline=soon", npy(np.zeros(SHAPE)), 400, "deadline must be a number, got 'soon'"),
        ("confidence=2", npy(np.zeros(SHAPE)), 400, "confidence=2.0 must be a number in (0, 1]"),
        ("sure=1", npy(np.zeros(SHAPE)), 400, "There is no parameter sure"),
        ("deadline=0.0001", npy(np.zeros(SHAPE)), 503, "Overloaded"),
    ],
)
def test_bad_requests_get_a_status_and_one_sentence(client, query, body, status, message):
    response = client.post(f"/predict?{query}", content=body)
    assert response.status_code == status
    assert message in response.json()["error"]
    assert "\n" not in response.json()["error"]


def test_a_body_of_unknown_length_is_cut_at_the_limit(client):
    response = client.post("/predict", content=(b"x" * 1000 for _ in range(200)))
    assert response.status_code == 413


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/predict", 405), ("POST", "/", 405), ("GET", "/x", 404)]
)
def test_other_routes(client, method, path, status):
    assert client.request(method, path).status_code == status


def test_health_page_and_counts(client):
    assert client.get("/healthz").json() == {"status": "ok", "waiting": 0}
    assert 'max="5000"' in client.get("/").text
    before = counted(client, 'anytime_answers_total{output="3"}')
    client.post("/predict", content=npy(np.zeros((2, *SHAPE), np.float32)))
    assert counted(client, 'anytime_answers_total{output="3"}') == before + 2
    assert counted(client, 'anytime_responses_total{status="200"}') >= 1
    assert counted(client, 'anytime_seconds_count{part="queue"}') >= 2


def counted(client, name):
    lines = [line.split(" ") for line in client.get("/metrics").text.splitlines()]
    return sum(float(value) for label, value, *_ in lines if label == name)


def test_answers_are_strict_json(client):
    pixels = np.full(SHAPE, 1e30, np.float32)
    response = client.post("/predict", content=npy(pixels))
    json.loads(response.text, parse_constant=pytest.fail)
