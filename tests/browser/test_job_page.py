"""The page of a job, in a real browser, while the job runs."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect, sync_playwright

# Chromium's own services are not to be had where tests run, and not wanted.
_OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
#: Milliseconds that a change may take to be seen, by a browser on a busy machine.
_LIVE = 60_000
expect.set_options(timeout=_LIVE)

#: Four of eight steps before there is a file ``path``, and the others after that.
_STEPS = """
import pathlib, time
for n in range(1, 9):
    print("step", n)
    while n == 4 and not pathlib.Path(path).exists():
        time.sleep(0.02)
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    assert path is not None, "Chromium is not installed: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=_OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, girder_stack: Any, girder_user: Any) -> Iterator[Page]:
    """Give a page of a browser in which the user is logged in."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    token = json.dumps(girder_user.client.token)
    context.add_init_script(f"window.localStorage.setItem('girderToken', {token})")
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    context.close()
    assert errors == []


def start_slow(client: Any, seconds: float, steps: int) -> str:
    answer = client.post(
        "my_plugin/task/slow",
        parameters={"args": json.dumps([seconds, steps])},
    )
    return str(answer["id"])


def show_ended(job_id: str) -> None:
    """Have a job be SUCCESS again, which it is for the scheduler. Run it in Girder."""
    from bson import ObjectId
    from girder_jobs.models.job import Job

    Job().collection.update_one({"_id": ObjectId(job_id)}, {"$set": {"status": 3}})


def test_status_and_log_change_without_a_reload(
    girder_stack: Any, girder_user: Any, page: Page, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    given = {"args": json.dumps([_STEPS]), "kwargs": json.dumps({"path": str(go)})}
    job_id = girder_user.client.post("my_plugin/task/does", parameters=given)["id"]
    page.goto(f"{girder_stack.girder}/#job/{job_id}")
    page.evaluate("window.notReloaded = true")
    expect(page.locator(".g-job-status-badge")).to_contain_text("Running", timeout=_LIVE)
    log = page.locator(".g-job-log-container")
    expect(log).to_contain_text("step 4", timeout=_LIVE)
    expect(log).not_to_contain_text("step 5")
    go.touch()
    expect(log).to_contain_text("step 8", timeout=_LIVE)
    expect(page.locator(".g-job-status-badge")).to_contain_text("Success", timeout=_LIVE)
    assert page.evaluate("window.notReloaded") is True
    page.screenshot(path=str(tmp_path / "job.png"))
    assert log.inner_text().split() == [word for i in range(1, 9) for word in ("step", str(i))]


def test_log_is_whole_whatever_the_page_hears_of_it(
    girder_stack: Any, girder_user: Any, page: Page
) -> None:
    """What it has fetched it may hear again, and it may have missed something."""
    job_id = start_slow(girder_user.client, 0.1, 2)
    girder_stack.wait(job_id)
    page.goto(f"{girder_stack.girder}/#job/{job_id}")
    log = page.locator(".g-job-log-container")
    whole = "step 1\nstep 2\n"
    expect(log).to_have_text(whole, timeout=_LIVE, use_inner_text=True)
    size = girder_user.client.get(f"job/{job_id}")["dask"]["log_bytes"]

    def hear(text: str, *sizes: int) -> None:
        data = {"_id": job_id, "overwrite": False, "text": text, "sizes": sizes}
        trigger = "data => girder.utilities.eventStream.trigger('g:event.job_log', { data })"
        page.evaluate(trigger, data)

    hear("step 1\n", 0, size // 2)
    assert log.inner_text() == whole
    hear("<b>more</b>\n", size, size + 9)
    assert log.inner_text() == whole + "<b>more</b>\n"
    # The page has missed what is between: it fetches the log, to which nothing was added in truth.
    with page.expect_response(re.compile(f"/job/{job_id}$")):
        hear("step 4\n", size + 20, size + 30)
    expect(log).to_have_text(whole, timeout=_LIVE, use_inner_text=True)


def test_page_can_cancel_and_names_the_state(
    girder_stack: Any, girder_user: Any, page: Page
) -> None:
    job_id = start_slow(girder_user.client, 600, 600)
    page.goto(f"{girder_stack.girder}/#job/{job_id}")
    badge = page.locator(".g-job-status-badge")
    expect(badge).to_contain_text("Running", timeout=_LIVE)
    page.locator(".g-job-cancel").click()
    expect(badge).to_contain_text("Cancel", timeout=_LIVE)
    expect(badge).to_contain_text("Canceled", timeout=_LIVE)


def test_page_says_why_a_job_waits(girder_stack: Any, girder_user: Any, page: Page) -> None:
    def start() -> str:
        from my_worker_tasks import noop

        return str(noop.apply_async(resources={"gpu": 9}).id)

    job_id = girder_stack.call(start, user=girder_user)
    page.goto(f"{girder_stack.girder}/#job/{job_id}")
    why = re.compile("Waiting: .* the resources gpu=9")
    expect(page.locator(".g-dask-waits")).to_have_text(why, timeout=_LIVE)
    expect(page.locator(".g-job-log-container")).to_have_text(why)
    girder_user.client.put(f"job/{job_id}/cancel")
    expect(page.locator(".g-job-status-badge")).to_contain_text("Canceled", timeout=_LIVE)
    expect(page.locator(".g-dask-waits")).to_have_count(0)


def test_page_lists_the_artifacts(girder_stack: Any, girder_user: Any, page: Page) -> None:
    job_id = start_slow(girder_user.client, 0.1, 1)
    girder_stack.wait(job_id)
    for name in ("plots/<b> coins.txt", "report.txt"):
        girder_user.client.post(f"job/{job_id}/artifact", {"name": name}, data=b"24 coins")
    page.goto(f"{girder_stack.girder}/#job/{job_id}")
    links = page.locator(".g-dask-artifacts a")
    expect(links).to_have_text(["plots/<b> coins.txt", "report.txt"], timeout=_LIVE)
    address = links.first.get_attribute("href")
    assert address is not None
    page.context.add_cookies(
        [{"name": "girderToken", "value": girder_user.client.token, "url": girder_stack.girder}]
    )
    answer = page.request.get(girder_stack.girder + address if address[0] == "/" else address)
    assert answer.body() == b"24 coins"


def test_page_of_a_map_shows_its_bar_and_its_children(
    girder_stack: Any, girder_user: Any, page: Page, tmp_path: Path
) -> None:
    def start() -> list[str]:
        from my_worker_tasks import slow

        jobs = slow.map([0.5] * 30, [1] * 30, girder_job_title="<b>thirty")
        return [str(jobs.id), *(str(job.id) for job in jobs)]

    parent, *children = girder_stack.call(start, user=girder_user)
    page.goto(f"{girder_stack.girder}/#job/{parent}")
    page.evaluate("window.notReloaded = true")
    bar = page.locator(".g-dask-progress .progress-bar")
    expect(bar).to_be_visible(timeout=_LIVE)
    expect(page.locator(".g-dask-progress")).to_contain_text("of 30 jobs have ended")
    links = page.locator(".g-dask-children a")
    expect(links).to_have_count(20, timeout=_LIVE)
    expect(page.locator(".g-dask-children li").last).to_have_text("and 10 more")
    expect(bar).to_have_text("100%", timeout=_LIVE)
    expect(page.locator(".g-dask-children")).to_contain_text("Success", timeout=_LIVE)
    assert page.evaluate("window.notReloaded") is True
    page.screenshot(path=str(tmp_path / "map.png"))

    links.first.click()
    expect(page.locator(".g-dask-parent a")).to_have_text("<b>thirty", timeout=_LIVE)
    assert page.url.endswith(f"#job/{children[0]}")
    page.locator(".g-dask-parent a").click()
    expect(links).to_have_count(20, timeout=_LIVE)


def test_page_shows_the_progress_of_a_job(girder_stack: Any, girder_user: Any, page: Page) -> None:
    job_id = start_slow(girder_user.client, 0.1, 1)
    girder_stack.wait(job_id)

    def report(job_id: str) -> None:
        from girder_jobs.models.job import Job

        job = Job().load(job_id, force=True)
        Job().collection.update_one(
            {"_id": job["_id"]},
            {"$set": {"progress": {"total": 8.0, "current": 2.0, "message": "<i>Reading"}}},
        )

    girder_stack.call(report, job_id)
    page.goto(f"{girder_stack.girder}/#job/{job_id}")
    expect(page.locator(".g-dask-progress .progress-bar")).to_have_text("25%", timeout=_LIVE)
    expect(page.locator(".g-dask-progress")).to_contain_text("<i>Reading")


EVIL = "</div><img src=x onerror='window.attacked = true'><script>window.attacked = true</script>"


def forge(job_id: str, text: str) -> None:
    """Write text into all that a page shows of a job. Run it in Girder."""
    from bson import ObjectId
    from girder_jobs.models.job import Job

    progress = {"total": 5, "current": 1, "message": text}
    fields = {"title": text, "type": text, "log": [text], "progress": progress, "dask.waits": text}
    Job().collection.update_one({"_id": ObjectId(job_id)}, {"$set": {**fields, "status": 1}})


def test_page_reads_nothing_of_a_job_as_html(
    girder_stack: Any, girder_user: Any, page: Page
) -> None:
    job_id = start_slow(girder_user.client, 0.1, 1)
    girder_stack.wait(job_id)
    name = EVIL.replace("/", "")
    girder_user.client.post(f"job/{job_id}/artifact", {"name": name}, data=b"24 coins")
    girder_stack.call(forge, job_id, EVIL)
    page.goto(f"{girder_stack.girder}/#job/{job_id}")
    expect(page.locator(".g-dask-artifacts a")).to_have_text([name], timeout=_LIVE)
    expect(page.locator(".g-dask-waits")).to_contain_text("<script>")
    expect(page.locator(".g-job-log-container")).to_contain_text("<script>")
    assert page.evaluate("window.attacked") is None
    girder_stack.call(show_ended, job_id)


def test_an_artifact_runs_nothing_on_the_origin_of_girder(
    girder_stack: Any, girder_user: Any, browser: Any
) -> None:
    job_id = start_slow(girder_user.client, 0.1, 1)
    girder_stack.wait(job_id)
    html = b"<p>shown</p><script>document.body.textContent = 'run'</script>"
    options = {"name": "page.html", "mimeType": "text/html"}
    made = girder_user.client.post(f"job/{job_id}/artifact", options, data=html)
    context = browser.new_context()
    context.add_cookies(
        [{"name": "girderToken", "value": girder_user.client.token, "url": girder_stack.girder}]
    )
    page = context.new_page()
    # Girder's own route shows it as a page.
    page.goto(f"{girder_stack.api}/file/{made['_id']}/download?contentDisposition=inline")
    expect(page.locator("body")).to_have_text(re.compile("^shown"))
    assert page.evaluate("window.origin") == "null"
    context.close()


def test_page_names_the_states_of_our_own(girder_stack: Any, girder_user: Any, page: Page) -> None:
    job_id = start_slow(girder_user.client, 0.1, 1)
    girder_stack.wait(job_id)

    def pretend(job_id: str, status: int) -> None:
        from bson import ObjectId
        from girder_jobs.models.job import Job

        Job().collection.update_one({"_id": ObjectId(job_id)}, {"$set": {"status": status}})

    page.goto(f"{girder_stack.girder}/#job/{job_id}")
    badge = page.locator(".g-job-status-badge")
    for status, text in ((820, "Fetching input"), (823, "Pushing output"), (824, "Canceling")):
        girder_stack.call(pretend, job_id, status)
        page.reload()
        expect(badge).to_contain_text(text, timeout=_LIVE)
    girder_stack.call(show_ended, job_id)
