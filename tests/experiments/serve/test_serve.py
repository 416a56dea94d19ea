"""The whole server in processes, under bad requests and lost replicas; run by `make test-serve`."""

import collections
import concurrent.futures
import http.client
import io
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from experiments.app.files import digest, write_json
from osgd_jax import AnytimePredictor
from tests.helpers.anytime_nets import Steps

psutil = pytest.importorskip("psutil")
pytest.importorskip("ray")
pytest.importorskip("starlette")

SHAPE = (3, 2)
CHROMIUM = shutil.which("chromium")


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    file = tmp_path_factory.mktemp("net") / "net.anytime"
    predictor = AnytimePredictor(Steps())
    predictor.export(file, input_shape=SHAPE)
    about = {"classes": list("abcd"), "input_shape": SHAPE, "dtype": "float32"}
    write_json(file.with_name("net.anytime.json"), about | {"sha256": digest(file)})
    return file, predictor


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Server:
    """`python -m experiments.serve` in a process."""

    def __init__(self, file, *options):
        self.port = free_port()
        command = [sys.executable, "-m", "experiments.serve", file, "--port", self.port, *options]
        self.process = subprocess.Popen(
            list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self.process.stdout.readline().startswith("Serving")

    def ask(self, method="POST", path="/predict?deadline=1000", body=b"", timeout=60):
        """Return the status and the body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def replicas(self):
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if "ServeReplica" in " ".join(named(child))]

    def stop(self):
        """Return the exit status and what was printed after the start."""
        self.process.send_signal(signal.SIGTERM)
        printed, _ = self.process.communicate(timeout=60)
        return self.process.returncode, printed


def named(process):
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.fixture(scope="module")
def server(exported):
    server = Server(exported[0], "--replicas", "2", "--max-batch", "4", "--max-body", "20000")
    yield server
    if server.process.poll() is None:
        server.stop()


def test_answers_are_those_of_the_predictor(server, exported):
    xs = np.random.default_rng(0).normal(size=(4, *SHAPE)).astype(np.float32)
    status, body = server.ask(body=npy(xs))
    assert status == 200
    logits = exported[1].predict(xs).logits
    for answer, row in zip(json.loads(body)["answers"], np.asarray(logits), strict=True):
        assert answer["output"] == 3
        shares = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        np.testing.assert_allclose(list(answer["probabilities"].values()), shares, atol=1e-5)


def test_counts_of_all_replicas_are_added_up(server):
    before = counted(server)
    for _ in range(10):
        server.ask(body=npy(np.zeros(SHAPE, np.float32)))
    assert counted(server) == before + 10


def counted(server):
    time.sleep(0.5)  # counts travel apart from answers
    text = server.ask("GET", "/metrics")[1]
    return sum(
        float(line.split(" ")[1])
        for line in text.splitlines()
        if line.startswith('anytime_responses_total{status="200"}')
    )


def hostile(server, kind, rng):
    """Send one request of a kind; return its status, or "closed" where we close the connection."""
    good = npy(np.zeros(SHAPE, np.float32))
    bodies = {
        "good": good,
        "truncated": good[:-5],
        "text": b"hello",
        "shape": npy(np.zeros((9, 9), np.float32)),
        "many": npy(np.zeros((50, *SHAPE), np.float32)),
        "huge": bytes(30_000),
        "empty": b"",
    }
    if kind in bodies:
        return server.ask(body=bodies[kind])[0]
    if kind == "hurried":
        return server.ask(path="/predict?deadline=0.01", body=good)[0]
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    with connection:
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(good)}\r\n\r\n"
        connection.sendall(head.encode() + good[: rng.randrange(len(good))])
        if kind == "closed":
            return "closed"
        time.sleep(0.2)  # slow
        connection.sendall(good)
        return int(connection.recv(100).split()[1])


KINDS = ["good", "truncated", "text", "shape", "many", "huge", "empty", "hurried", "closed", "slow"]


def test_bad_requests_under_load_all_get_a_status_and_leave_nothing_behind(server):
    count = int(os.environ.get("OSGD_JAX_REQUESTS", "2000"))
    rng = random.Random(0)
    kinds = [rng.choice(KINDS) for _ in range(count)]
    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        list(pool.map(lambda kind: hostile(server, kind, rng), kinds[:200]))  # warm
        before = [(p.memory_info().rss, p.num_threads()) for p in server.replicas()]
        statuses = list(pool.map(lambda kind: hostile(server, kind, rng), kinds))
    seen = collections.defaultdict(set)
    for kind, status in zip(kinds, statuses, strict=True):
        seen[kind].add(status)
    assert seen.pop("good") <= {200, 503}
    assert seen.pop("hurried") <= {200, 503}
    assert seen.pop("slow") <= {200, 400, 503}
    assert seen.pop("closed") == {"closed"}
    assert seen.pop("huge") == {413}
    assert all(statuses == {400} for statuses in seen.values()), seen
    after = [(p.memory_info().rss, p.num_threads()) for p in server.replicas()]
    for (memory, threads), (more, others) in zip(before, after, strict=True):
        assert more < memory + 50e6
        assert others <= threads + 4
    assert json.loads(server.ask("GET", "/healthz")[1])["waiting"] == 0


def test_a_lost_replica_comes_back_while_the_other_answers(server):
    body = npy(np.zeros(SHAPE, np.float32))
    first, _ = sorted(replica.pid for replica in server.replicas())
    os.kill(first, signal.SIGKILL)
    statuses, end = collections.Counter(), time.monotonic() + 90
    while time.monotonic() < end:
        statuses[server.ask(body=body)[0]] += 1
        alive = {replica.pid for replica in server.replicas()}
        if first not in alive and len(alive) == 2 and statuses[200] > 50:
            break
    assert len(alive) == 2
    # Requests that were in the lost process fail; later ones are answered.
    assert statuses[200] > 0.9 * statuses.total()


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_person_drops_an_image_and_moves_the_slider(tmp_path):
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    from tests.experiments.serve.test_service import CLASSES, Colors
    from tests.experiments.serve.test_service import SHAPE as IMAGE

    file = tmp_path / "net.anytime"
    AnytimePredictor(Colors()).export(file, input_shape=IMAGE)
    about = {"classes": CLASSES, "input_shape": IMAGE, "dtype": "uint8", "sha256": digest(file)}
    write_json(tmp_path / "net.anytime.json", about)
    pixels = np.zeros(IMAGE, np.uint8)
    pixels[1, 0, 1] = 200
    Image.fromarray(pixels).save(tmp_path / "image.png")
    options = webdriver.ChromeOptions()
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-background-networking"):
        options.add_argument(f"--{flag}")
    server = Server(file, "--max-batch", "2")
    browser = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        browser.get(f"http://127.0.0.1:{server.port}/")
        browser.find_element(By.ID, "file").send_keys(str(tmp_path / "image.png"))
        answer = browser.find_element(By.ID, "answer")
        WebDriverWait(browser, 20).until(lambda _: "Output 3" in answer.text)
        assert answer.text.startswith("bee")
        slide = "arguments[0].value = 1; arguments[0].dispatchEvent(new Event('input'))"
        browser.execute_script(slide, browser.find_element(By.ID, "deadline"))
        error = browser.find_element(By.ID, "error")
        shown = browser.find_element(By.ID, "shown")
        WebDriverWait(browser, 20).until(lambda _: shown.text == "1")
        WebDriverWait(browser, 20).until(lambda _: error.text or "Output" in answer.text)
    finally:
        browser.quit()
        server.stop()


def test_a_stop_signal_answers_those_that_wait(server):
    body = npy(np.zeros(SHAPE, np.float32))
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        futures = [pool.submit(server.ask, body=body) for _ in range(16)]
        time.sleep(0.05)
        code, printed = server.stop()
    assert code == 0
    assert "stopping" in printed
    statuses = [future.result()[0] for future in futures]
    assert set(statuses) <= {200, 404, 503}  # Ray answers 404 where nothing serves any more
    assert 200 in statuses
    with pytest.raises(ConnectionError):
        server.ask(body=body)


def test_a_file_that_was_not_exported_is_refused(tmp_path):
    (tmp_path / "x").write_bytes(b"x")
    command = [sys.executable, "-m", "experiments.serve", str(tmp_path / "x")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("does not exist; copy it along with x.")
