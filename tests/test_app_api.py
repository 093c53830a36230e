"""The HTTP API against a stand-in for the work: answers, limits, hostile clients."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app_stand_ins import disc_picture, zipped
from maquette.app.jobs import GenerateRequest, JobQueue, Report
from maquette.app.limits import Limits
from maquette.errors import InvalidInputError
from pipeline_scenes import ball_views, write_views_folder
from test_app_service import png_header

pytest.importorskip("fastapi")
testclient = pytest.importorskip("starlette.testclient")

from maquette.app.api import build_api  # noqa: E402

PICTURE = disc_picture((200, 10, 30), 64)
LIMITS = Limits(max_upload_bytes=200_000, max_prompt_chars=200, queue_capacity=4)
GO = threading.Event()


def work(request: GenerateRequest, folder: Path, report: Report) -> list[str]:
    """Echoes the request into a file; the prompt may ask for more."""
    report("echoing", 0.25)
    if request.prompt == "wait":
        while not GO.is_set():
            report("holding", 0.5)
            time.sleep(0.002)
    if request.prompt == "fail":
        raise InvalidInputError("<b>no</b> object")
    if request.prompt == "crash":
        raise ZeroDivisionError
    size = len(request.picture or b"") + len(request.views or b"")
    (folder / "report.json").write_text(json.dumps({"prompt": request.prompt, "bytes": size, "seed": request.seed}))
    (folder / "asset.glb").write_bytes(b"glTF" * 100_000)
    return ["small"]


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[JobQueue]:
    GO.clear()
    made = JobQueue(work, tmp_path, capacity=LIMITS.queue_capacity, timeout_s=30, keep_s=60)
    yield made
    GO.set()
    made.close()


@pytest.fixture
def client(queue: JobQueue) -> Any:
    return testclient.TestClient(build_api(queue, LIMITS))


def end_of(client: Any, job_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        state: dict[str, Any] = client.get(f"/api/jobs/{job_id}").json()
        if state["finished"] is not None:
            return state
        time.sleep(0.005)
    raise AssertionError(state)


def test_submit_wait_and_fetch(client: Any) -> None:
    answer = client.post("/api/jobs", files={"picture": ("p.png", PICTURE)}, data={"prompt": "a ball", "seed": "7"})
    assert answer.status_code == 202
    state = answer.json()
    assert state["status"] == "queued" and answer.headers["location"] == f"/api/jobs/{state['id']}"
    end = end_of(client, state["id"])
    assert (end["status"], end["fraction"], end["files"]) == ("done", 1.0, ["asset.glb", "report.json"])
    assert end["warnings"] == ["small"]
    report = client.get(f"/api/jobs/{state['id']}/files/report.json")
    assert report.json() == {"prompt": "a ball", "bytes": len(PICTURE), "seed": 7}
    glb = client.get(f"/api/jobs/{state['id']}/files/asset.glb")
    assert glb.content == b"glTF" * 100_000 and glb.headers["content-length"] == "400000"
    assert glb.headers["content-type"] == "model/gltf-binary"
    assert "attachment" in glb.headers["content-disposition"]


def test_a_prompt_alone_and_views_alone(client: Any, tmp_path: Path) -> None:
    assert client.post("/api/jobs", data={"prompt": "a chair"}).status_code == 202
    write_views_folder(tmp_path / "ball", ball_views())
    views = zipped(tmp_path / "ball")
    state = client.post("/api/jobs", files={"views": ("v.zip", views)}, data={"formats": "PLY, glb,ply"}).json()
    assert end_of(client, state["id"])["status"] == "done"
    assert client.get(f"/api/jobs/{state['id']}/files/report.json").json()["bytes"] == len(views)


def test_states_of_waiting_running_failed_and_cancelled_jobs(client: Any) -> None:
    running = client.post("/api/jobs", data={"prompt": "wait"}).json()["id"]
    waiting = client.post("/api/jobs", data={"prompt": "fail"}).json()
    crashing = client.post("/api/jobs", data={"prompt": "crash"}).json()
    while client.get(f"/api/jobs/{running}").json()["stage"] != "holding":
        time.sleep(0.002)
    assert client.get(f"/api/jobs/{running}").json()["fraction"] == 0.5
    assert client.get(f"/api/jobs/{crashing['id']}").json()["position"] == 2
    assert client.delete(f"/api/jobs/{running}").json()["status"] == "cancelled"
    failed = end_of(client, waiting["id"])
    assert failed["status"] == "failed" and failed["message"] == "<b>no</b> object" and failed["files"] == []
    assert "unexpectedly" in end_of(client, crashing["id"])["message"]


def test_a_full_queue_says_so_and_when_to_come_back(client: Any) -> None:
    first = client.post("/api/jobs", data={"prompt": "wait"}).json()["id"]
    while client.get(f"/api/jobs/{first}").json()["status"] != "running":
        time.sleep(0.002)
    codes = [client.post("/api/jobs", data={"prompt": "a"}).status_code for _ in range(6)]
    assert codes == [202] * 4 + [503] * 2
    refused = client.post("/api/jobs", data={"prompt": "a"})
    assert int(refused.headers["retry-after"]) >= 1 and "queue is full" in refused.json()["detail"]
    assert client.get("/api/health").json()["waiting"] == 4
    GO.set()


@pytest.mark.parametrize(
    ("files", "data", "code", "words"),
    [
        ({}, {}, 422, "nothing to start from"),
        ({}, {"prompt": "a", "seed": "x"}, 422, "seed: "),
        ({}, {"prompt": "a", "seed": "-1"}, 422, "seed must lie"),
        ({}, {"prompt": "a", "seed": "9" * 5000}, 422, "seed"),
        ({}, {"prompt": "a", "steps": "1e99"}, 422, "steps"),
        ({}, {"prompt": "a", "guidance": "nan"}, 422, "guidance"),
        ({}, {"prompt": "a", "guidance": "-inf"}, 422, "guidance"),
        ({}, {"prompt": "a", "formats": "exe,ply"}, 422, "exe"),
        ({}, {"prompt": "a", "model": "../../etc"}, 422, "no model"),
        ({}, {"prompt": "a", "cut_out_by": "axe"}, 422, "cut_out_by"),
        ({}, {"prompt": "a", "fit_mesh": "perhaps"}, 422, "fit_mesh"),
        ({}, {"prompt": "a" * 201}, 422, "200 characters"),
        ({}, {"prompt": "a\0b"}, 422, "control characters"),
        ({}, {"picture": "not a file"}, 422, "picture"),
        ({"picture": ("a.png", b"no picture")}, {}, 422, "not a readable"),
        ({"picture": ("a.png", b"")}, {}, 422, "not a readable"),
        ({"picture": ("a.png", png_header(30_000, 30_000))}, {}, 422, "pixels"),
        ({"views": ("a.zip", b"PK")}, {}, 422, "not a readable .zip"),
        ({"views": ("a.zip", b"PK")}, {"prompt": "a"}, 422, "views go alone"),
        ({"picture": ("a.png", PICTURE + b"\0" * 200_000)}, {}, 413, "at most 200,000"),
        ({"picture": ("a.png", b"\0" * 300_000)}, {}, 413, "more than 264,000 bytes"),
    ],
)  # fmt: skip
def test_bad_requests_are_refused_in_words(
    client: Any, files: dict[str, Any], data: dict[str, str], code: int, words: str
) -> None:
    answer = client.post("/api/jobs", files=files or None, data=data)
    assert answer.status_code == code and words in answer.json()["detail"], answer.text
    assert client.get("/api/health").json()["waiting"] == 0


def test_bodies_of_other_kinds(client: Any) -> None:
    for kind, body in (("application/json", b"{}"), ("text/plain", b"a"), ("image/png", PICTURE)):
        assert client.post("/api/jobs", content=body, headers={"content-type": kind}).status_code == 415
    assert client.post("/api/jobs").status_code == 422
    for kind in ("multipart/form-data", "multipart/form-data; boundary=x", 'multipart/form-data; boundary="é"'):
        broken = client.post("/api/jobs", content=b"--y\r\nbroken", headers={"content-type": kind.encode()})
        assert broken.status_code in (400, 422) and broken.json()["detail"]


@pytest.mark.parametrize("charset", ["unicode_escape", "utf-7", "undefined", "utf-16", "rot13", "punycode"])
def test_strange_encodings_of_fields(client: Any, charset: str) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\n\\ud800+2AA-\r\n--x--\r\n'
    kind = f"multipart/form-data; boundary=x; charset={charset}"
    answer = client.post("/api/jobs", content=body, headers={"content-type": kind})
    assert answer.status_code in (400, 422) and answer.json()["detail"]


def test_a_long_body_is_cut_off_whatever_its_length_says(client: Any) -> None:
    sent = 0

    def stream() -> Iterator[bytes]:
        nonlocal sent
        yield b'--x\r\nContent-Disposition: form-data; name="picture"; filename="a.png"\r\n\r\n'
        for _ in range(100):
            sent += 10_000
            yield b"\0" * 10_000

    kind = {"content-type": "multipart/form-data; boundary=x"}
    for more in ({}, {"content-length": "10"}, {"content-length": "-5"}, {"content-length": "zehn"}):
        answer = client.post("/api/jobs", content=stream(), headers={**kind, **more})
        assert answer.status_code == 413 and "264,000" in answer.json()["detail"], more
    assert client.post("/api/jobs", content=b"", headers={**kind, "content-length": "9" * 400}).status_code == 413


STRANGE_NAMES = [
    *("../report.json", "..%2Freport.json", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "/etc/passwd", "report.json%00", "%ff"),
    *("%2e%2e", ".", "nothing.ply", "..\\report.json", "report.json/", "%3Cscript%3E"),
]


@pytest.mark.parametrize("name", STRANGE_NAMES)
def test_names_of_files_lead_nowhere_else(client: Any, name: str) -> None:
    state = client.post("/api/jobs", data={"prompt": "a"}).json()
    end_of(client, state["id"])
    answer = client.get(f"/api/jobs/{state['id']}/files/{name}")
    assert answer.status_code in (404, 405) and "glTF" not in answer.text and "root:" not in answer.text
    assert "prompt" not in answer.text and not answer.headers["content-type"].startswith("text/html")


@pytest.mark.parametrize("job_id", ["..", "%2e%2e", "..%2f..%2fetc", "a" * 5000, "%00", "<script>", "%ff%fe", "jobs-"])
def test_ids_lead_nowhere_else(client: Any, job_id: str) -> None:
    for call in (client.get, client.delete):
        answer = call(f"/api/jobs/{job_id}")
        assert answer.status_code in (404, 405) and answer.headers["content-type"] == "application/json"
    assert client.get(f"/api/jobs/{job_id}/files/report.json").status_code == 404


def test_html_in_prompts_is_data(client: Any) -> None:
    html = '<script>alert("x")</script><img src=x onerror=alert(1)>'
    state = client.post("/api/jobs", data={"prompt": html}).json()
    assert end_of(client, state["id"])["status"] == "done"
    report = client.get(f"/api/jobs/{state['id']}/files/report.json")
    assert report.json()["prompt"] == html and report.headers["content-type"] == "application/json"
    assert report.headers["x-content-type-options"] == "nosniff"
    assert report.headers["content-disposition"].startswith("attachment")
    refused = client.post("/api/jobs", data={"prompt": "a", "model": html})
    assert refused.headers["content-type"] == "application/json" and "no model" in refused.json()["detail"]
    assert refused.headers["x-content-type-options"] == "nosniff"


def test_uploads_are_not_read_when_the_queue_is_full(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = client.post("/api/jobs", data={"prompt": "wait"}).json()["id"]
    while client.get(f"/api/jobs/{first}").json()["status"] != "running":
        time.sleep(0.002)
    for _ in range(4):
        client.post("/api/jobs", data={"prompt": "a"})
    monkeypatch.setattr(Limits, "check", lambda *_: pytest.fail("the upload was looked at"))
    assert client.post("/api/jobs", files={"picture": ("p.png", PICTURE)}).status_code == 503


def test_without_fastapi_the_extra_is_named() -> None:
    code = "import sys; sys.modules['fastapi'] = None; import maquette.app.api"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "MissingDependencyError" in done.stderr and "maquette[app]" in done.stderr


def test_many_cancel_the_same_job(client: Any, queue: JobQueue) -> None:
    job_id = client.post("/api/jobs", data={"prompt": "wait"}).json()["id"]
    codes: list[tuple[int, str]] = []

    def cancel() -> None:
        answer = client.delete(f"/api/jobs/{job_id}")
        codes.append((answer.status_code, answer.json()["status"]))

    threads = [threading.Thread(target=cancel) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [(200, "cancelled")] * 12
    assert end_of(client, client.post("/api/jobs", data={"prompt": "a"}).json()["id"])["status"] == "done"


def test_pages_of_other_sites_cannot_start_jobs(client: Any) -> None:
    for other in ("cross-site", "same-site"):  # the same site at another port is another program
        headers = {"sec-fetch-site": other}
        assert client.post("/api/jobs", data={"prompt": "a"}, headers=headers).status_code == 403
        assert client.delete("/api/jobs/x", headers=headers).status_code == 403
    assert client.post("/api/jobs", data={"prompt": "a"}, headers={"sec-fetch-site": "same-origin"}).status_code == 202


def test_models_health_and_the_closed_queue(client: Any, queue: JobQueue) -> None:
    models = {model["name"]: model for model in client.get("/api/models").json()}
    assert models["lgm-mini"]["available"] and not models["lgm-mini"]["from_one_picture"]
    assert models["gamba-mini"]["from_one_picture"]
    health = client.get("/api/health").json()
    assert health["status"] == "ok" and health["limits"]["max_upload_bytes"] == 200_000
    queue.close()
    assert client.get("/api/health").status_code == 503
    assert client.post("/api/jobs", data={"prompt": "a"}).status_code == 503


def test_the_page_about_the_api_lists_everything_and_loads_nothing(client: Any) -> None:
    schema = client.get("/openapi.json").json()
    page = client.get("/api/docs").text
    for path, methods in schema["paths"].items():
        assert path in page or path.replace("{", "&#123;") in page
        for operation in methods.values():
            assert all(code in page for code in operation["responses"])
    for field in ("negative_prompt", "fit_mesh", "fraction", "from_one_picture"):
        assert field in page
    assert "http://" not in page and "https://" not in page and "<script" not in page
    assert set(schema["paths"]) == {
        "/api/jobs", "/api/jobs/{job_id}", "/api/jobs/{job_id}/files/{name}", "/api/models", "/api/health"
    }  # fmt: skip


def test_a_removed_file_is_not_an_error_of_the_server(client: Any, queue: JobQueue) -> None:
    state = client.post("/api/jobs", data={"prompt": "a"}).json()
    end_of(client, state["id"])
    queue.file(state["id"], "asset.glb").unlink()
    assert client.get(f"/api/jobs/{state['id']}/files/asset.glb").status_code == 404


def quick(request: GenerateRequest, folder: Path, report: Report) -> None:
    report("echoing", 0.5)
    (folder / "report.json").write_text(json.dumps({"prompt": request.prompt}))


def test_schemathesis_finds_no_error_of_the_server(tmp_path: Path) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, given, settings, strategies

    queue = JobQueue(quick, tmp_path, capacity=10_000, timeout_s=5, keep_s=30)
    schema = schemathesis.openapi.from_asgi("/openapi.json", build_api(queue, LIMITS))
    checks = [schemathesis.checks.not_a_server_error]
    seen: dict[str, set[int]] = {}
    slow = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]

    def examples_of(operation: Any) -> Callable[[], None]:
        @settings(max_examples=60, deadline=None, database=None, derandomize=True, suppress_health_check=slow)
        @given(case=operation.as_strategy(), real=strategies.booleans())
        def check(case: Any, real: bool) -> None:
            if real and "job_id" in case.path_parameters:
                case.path_parameters["job_id"] = queue.submit(GenerateRequest(prompt="a")).id
            if real and isinstance(case.body, dict):  # few random forms would be taken as they are
                case.body = {key: value for key, value in case.body.items() if key not in ("picture", "views")}
                case.body.update(prompt="a", model="lgm-mini", formats="ply", cut_out_by="plain")
            response = case.call()
            seen.setdefault(operation.label, set()).add(response.status_code)
            case.validate_response(response, checks=checks)
            if response.status_code >= 400:
                assert response.json()["detail"]

        return check  # type: ignore[no-any-return]

    try:
        for result in schema.get_all_operations():
            examples_of(result.ok())()
    finally:
        queue.close()
    assert len(seen) == 6
    assert 202 in seen["POST /api/jobs"] and 200 in seen["DELETE /api/jobs/{job_id}"]
    assert {200, 404} <= seen["GET /api/jobs/{job_id}"]
