"""The status page of a running daemon, in headless Chromium and as JSON."""

import json
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from milo_discovery import DiscoveryClient
from tests.end_to_end.process.conftest import Workspace, directory, workspace
from tests.end_to_end.process.daemon import DaemonProcess
from tests.end_to_end.process.watching import until
from tests.support.browser import Browser, browsing, running, violations
from tests.support.contrast import CONTRASTS
from tests.tooling.deploy.web import get

__all__ = ["directory", "workspace"]

WIDE, NARROW = (1280, 900), (390, 844)
OWN_IDENTITY = {"name": "own", "type": "project-kubeconfig", "share_discovery_identity": True}


@pytest.fixture(scope="module")
def chromium() -> Iterator[str]:
    with running() as url:
        yield url


@pytest.fixture
async def browser(chromium: str) -> AsyncIterator[Browser]:
    async with browsing(chromium) as found:
        yield found


async def page_of(daemon: DaemonProcess) -> str:
    await daemon.start()
    await daemon.wait_for_output('"synced"')
    return str(daemon.events("started")[-1]["http"])


def shows(words: str) -> str:
    return f"document.body.innerText.includes({words!r})"


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["1280 px", "390 px"])
async def test_status_page_updates_live_at_each_width(
    workspace: Workspace, browser: Browser, size: tuple[int, int]
) -> None:
    workspace.sandbox.projects.create("alpha", ready=True, organization="acme")
    workspace.sandbox.projects.create("waiting", ready=False)
    async with workspace.daemon(http_listen="127.0.0.1:0") as daemon, workspace.client() as client:
        url = await page_of(daemon)
        watch = client.watch(label_selector="env=prod")
        await watch.synced()
        await browser.resize(*size)
        await browser.open(f"{url}/")
        for words in ("STREAMING", "alpha", "acme", "waiting", "not ready", "env in (prod)", "any caller of"):
            await browser.until(shows(words))
        workspace.sandbox.projects.create("beta", ready=True)
        await browser.until(shows("beta"))
        workspace.sandbox.projects.delete("alpha")
        await browser.until(shows("DISENGAGED"))
        await browser.until("document.title.startsWith('STREAMING · 1 engaged')")
        assert await browser.evaluate("document.documentElement.scrollWidth <= innerWidth"), "content is cut off"
        cells = "[...document.querySelector('#clusters ~ table td').parentElement.children]"
        tops = await browser.evaluate(f"new Set({cells}.map(cell => cell.getBoundingClientRect().top)).size")
        assert (tops > 1) == (size == NARROW), "rows are stacked on phones only"
        assert browser.complaints == []
        await daemon.kill()
        await browser.until(shows("NO CONNECTION"))
        await browser.until(shows("this page is out of date"))
        assert await browser.evaluate("document.querySelector('.banner').className") == "banner bad"
        assert await browser.evaluate("document.title.startsWith('NO CONNECTION')")


async def test_status_page_of_a_killed_daemon_shows_age_of_its_data_at_any_scroll_position(
    workspace: Workspace, browser: Browser
) -> None:
    for number in range(60):
        workspace.sandbox.projects.create(f"p-{number}", ready=True)
    async with workspace.daemon(http_listen="127.0.0.1:0") as daemon:
        url = await page_of(daemon)
        await browser.resize(360, 640)
        await browser.open(f"{url}/")
        await browser.until(shows("STREAMING"))
        assert await browser.evaluate(
            "[...document.querySelectorAll('input')].every(each => each.getBoundingClientRect().right <= innerWidth)"
        )
        await browser.evaluate("scrollTo(0, document.body.scrollHeight)")
        await daemon.kill()
        await browser.until(shows("NO CONNECTION"))
        assert await browser.evaluate("document.querySelector('.banner').getBoundingClientRect().top >= 0")
        grey = "getComputedStyle(document.querySelector('#clusters').parentElement).filter"
        assert "grayscale" in await browser.evaluate(grey)
        ages = "[...document.querySelectorAll('#clusters ~ table time')].map(each => each.textContent).join()"
        before, banner = await browser.evaluate(ages), "document.querySelector('.banner').textContent"
        old = await browser.evaluate(banner)
        await browser.until(f"{banner} !== {old!r}")
        assert await browser.evaluate(ages) == before


@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_status_page_has_readable_contrast_in_each_theme(
    workspace: Workspace, browser: Browser, theme: str
) -> None:
    workspace.sandbox.projects.create("alpha", ready=True, organization="acme")
    workspace.sandbox.projects.create("waiting", ready=False)
    settings = {"kubeconfigs": {"issuers": [OWN_IDENTITY]}}
    async with workspace.daemon(http_listen="127.0.0.1:0", **settings) as daemon, workspace.client() as client:
        url = await page_of(daemon)
        await client.watch().synced()
        workspace.sandbox.projects.create("gone", ready=True)
        await daemon.wait_for_output('"gone"')
        workspace.sandbox.projects.delete("gone")
        await daemon.wait_for_output('"disengaged"')
        await browser.theme(theme)

        async def has_readable_text(path: str, words: str) -> None:
            await browser.open(f"{url}{path}")
            await browser.until(shows(words))
            ratios = await browser.evaluate(CONTRASTS)
            assert len(ratios) > 20
            assert [ratio for ratio in ratios if ratio["ratio"] < 4.5] == []

        for path in ("/", "/?cluster=alpha", "/?state=engaged"):
            await has_readable_text(path, "STREAMING")
        await browser.open(f"{url}/")
        await browser.until(shows("DISENGAGED"))
        color = "getComputedStyle([...document.querySelectorAll('.tag')].find(tag => tag.innerText === '{}')).color"
        engaged, disengaged = [await browser.evaluate(color.format(kind)) for kind in ("ENGAGED", "DISENGAGED")]
        assert engaged != disengaged
        await workspace.sandbox.stop()
        await daemon.wait_for_output('"source lost"')
        await browser.resize(*NARROW)
        for path in ("/", "/?cluster=alpha"):
            await has_readable_text(path, "STALE")


async def test_status_page_search_results_link_to_explanations(workspace: Workspace, browser: Browser) -> None:
    for number in range(120):
        workspace.sandbox.projects.create(f"p-{number:03}", ready=True, organization=f"org-{number % 7}")
    workspace.sandbox.projects.create("shop-prod", ready=True, organization="shop", labels={"env": "prod"})
    async with workspace.daemon(http_listen="127.0.0.1:0", kubeconfigs={"issuers": [OWN_IDENTITY]}) as daemon:
        url = await page_of(daemon)
        async with workspace.client() as client:
            await client.watch(label_selector="env=prod").synced()
            await browser.resize(*WIDE)
            await browser.open(f"{url}/")
            await browser.until(shows("1 to 50 of 121"))
            await browser.evaluate("[...document.querySelectorAll('nav a')].find(a => a.text === 'next').click()")
            await browser.until(shows("51 to 100 of 121"))
            await browser.evaluate(
                "document.querySelector('input[type=search]').value = 'SHOP env=prod'; document.forms[0].submit()"
            )
            await browser.until("location.hash === '#clusters' && " + shows("shop-prod"))
            top = "document.getElementById('clusters').getBoundingClientRect().top"
            assert 0 <= await browser.evaluate(top) < WIDE[1] / 2, "the results are not in view"
            await browser.evaluate("[...document.querySelectorAll('a')].find(a => a.text === 'shop-prod').click()")
            for words in ("it is ready", "own (project-kubeconfig)", "ENGAGED", "env in (prod)"):
                await browser.until(shows(words))
            workspace.sandbox.projects.delete("shop-prod")
            await browser.until(shows("DISENGAGED"))
        assert browser.complaints == []


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["1280 px", "390 px"])
async def test_status_page_has_no_accessibility_violation(
    workspace: Workspace, browser: Browser, size: tuple[int, int]
) -> None:
    workspace.sandbox.projects.create("alpha", ready=True, organization="acme")
    for number in range(60):
        workspace.sandbox.projects.create(f"p-{number}", ready=number > 2)
    async with workspace.daemon(http_listen="127.0.0.1:0", kubeconfigs={"issuers": [OWN_IDENTITY]}) as daemon:
        url = await page_of(daemon)
        await browser.resize(*size)
        for path in ("/", "/?cluster=alpha", "/?q=p&page=2"):
            await browser.open(f"{url}{path}")
            await browser.until(shows("STREAMING"))
            assert await violations(browser) == []


async def test_status_page_can_be_used_by_keyboard_while_clusters_change(
    workspace: Workspace, browser: Browser
) -> None:
    for number in range(40):
        workspace.sandbox.projects.create(f"p-{number:02}", ready=True)
    async with workspace.daemon(http_listen="127.0.0.1:0") as daemon:
        url = await page_of(daemon)
        await browser.open(f"{url}/?state=engaged")
        await browser.until(shows("p-39"))
        focused = "(document.activeElement.textContent || document.activeElement.name)"
        await browser.press("Tab")
        assert await browser.evaluate(focused) == "q", "the search field does not have the first focus"
        reached = set()
        for number in range(40):
            workspace.sandbox.projects.create(f"a-{number:02}", ready=True)
            if number % 10 == 0:
                await browser.until(shows(f"a-{number:02}"))
            await browser.press("Tab")
            reached.add(await browser.evaluate(focused))
        assert len([element for element in reached if element.startswith(("a-", "p-"))]) > 10, (
            "the focus did not move through the rows"
        )
        row = await browser.evaluate(focused)
        await browser.evaluate("getSelection().selectAllChildren(document.activeElement.closest('tr').firstChild)")
        workspace.sandbox.projects.create("a-last", ready=True)
        await browser.until(shows("a-last"))
        assert await browser.evaluate(focused) == row, "a change moved the focus"
        assert await browser.evaluate("getSelection().toString()") == row, "a change removed the selection"
        await browser.press("Enter")
        await browser.until(shows("it is ready"))
        assert browser.complaints == []


async def test_paused_status_page_does_not_change(workspace: Workspace, browser: Browser) -> None:
    workspace.sandbox.projects.create("alpha", ready=True)
    async with workspace.daemon(http_listen="127.0.0.1:0") as daemon:
        url = await page_of(daemon)
        await browser.open(f"{url}/")
        await browser.until(shows("alpha"))
        await browser.evaluate("document.getElementById('pause').click()")
        await browser.until(shows("Paused."))
        workspace.sandbox.projects.create("beta", ready=True)
        await daemon.wait_for_output('"beta"')
        await browser.evaluate("poll()")
        assert not await browser.evaluate(shows("beta"))
        await browser.evaluate("document.getElementById('pause').click()")
        await browser.until(shows("beta"))


async def test_status_page_shows_values_of_tenants_as_text(workspace: Workspace, browser: Browser) -> None:
    hostile = "<img src=x onerror=alert(1)>\u202ex\x1b"
    workspace.sandbox.projects.create("alpha", ready=True, organization=hostile)
    async with workspace.daemon(http_listen="127.0.0.1:0") as daemon:
        url = await page_of(daemon)
        await browser.open(f"{url}/")
        await browser.until(shows("<img src=x onerror=alert(1)>\\u{202e}x\\u{1b}"))
        assert await browser.evaluate("document.images.length") == 0
        assert browser.complaints == []


async def test_status_page_filters_clusters_by_search_and_state(workspace: Workspace) -> None:
    for name in ("alpha", "beta"):
        workspace.sandbox.projects.create(name, ready=True, labels={"env": "prod"}, organization=f"org-of-{name}")
    workspace.sandbox.projects.create("alphabet", ready=False, labels={"env": "dev"})
    async with workspace.daemon(http_listen="127.0.0.1:0") as daemon:
        url = await page_of(daemon)

        async def shown(query: str) -> list[str]:
            return [row["name"] for row in json.loads(await get(f"{url}/?json&{query}"))["clusters"]]

        assert await shown("") == ["alphabet", "alpha", "beta"]
        assert await shown("q=ALPHA") == ["alphabet", "alpha"]
        assert await shown("state=engaged") == ["alpha", "beta"]
        assert await shown("q=alpha&state=ready") == ["alpha"]
        assert await shown("q=env%3Dprod") == ["alpha", "beta"]
        assert await shown("q=org-of-beta") == ["beta"]
        assert await shown("q=env+alphabet") == ["alphabet"]
        assert await shown("page=7") == ["alphabet", "alpha", "beta"], "page 7 is not the last one"
        assert await shown("state=unreachable") == []


async def test_explanation_names_what_delays_a_deletion(workspace: Workspace) -> None:
    workspace.sandbox.projects.create("alpha", ready=True, finalizers=["example.com/cleanup"])
    async with workspace.daemon(http_listen="127.0.0.1:0") as daemon:
        url = await page_of(daemon)
        workspace.sandbox.projects.delete("alpha")

        async def explained() -> dict[str, object]:
            found: dict[str, object] = json.loads(await get(f"{url}/?json&cluster=alpha"))["explanation"]
            return found

        while not (found := await explained())["deletionRequestedAt"]:
            pass
    assert found["deletionWaitsFor"] == "waiting for finalizers: example.com/cleanup"


async def test_status_lists_recent_changes_and_deleted_clusters(workspace: Workspace) -> None:
    workspace.sandbox.projects.create("alpha", ready=True)
    async with workspace.daemon(http_listen="127.0.0.1:0") as daemon:
        url = await page_of(daemon)
        workspace.sandbox.projects.delete("alpha")
        await daemon.wait_for_output('"disengaged"')
        status = json.loads(await get(f"{url}/?json"))
    [happened] = status["recentChanges"]
    assert (happened["type"], happened["cluster"], happened["reason"]) == ("DISENGAGED", "alpha", "DELETED")
    assert [(row["name"], row["state"], row["endpoint"]) for row in status["clusters"]] == [("alpha", "deleted", "")]


async def test_status_names_the_host_the_subscriber_and_what_engaged_at_the_start(workspace: Workspace) -> None:
    workspace.sandbox.projects.create("alpha", ready=True)
    async with workspace.daemon(http_listen="127.0.0.1:0") as daemon, workspace.client() as client:
        url = await page_of(daemon)
        watch = client.watch(subscriber="dns", confirm_releases=True)
        await watch.synced()
        workspace.sandbox.projects.create("beta", ready=True)
        await until(watch, lambda seen: "beta" in seen.clusters)
        status = json.loads(await get(f"{url}/?json"))
        assert status["identity"]["host"] == socket.gethostname()
        assert {row["name"]: row["sinceStart"] for row in status["clusters"]} == {"alpha": True, "beta": False}
        [subscriber] = status["subscribers"]
        assert subscriber["subscriber"] == "dns"


async def test_status_page_of_a_stale_daemon_links_the_runbook(workspace: Workspace, browser: Browser) -> None:
    workspace.sandbox.projects.create("alpha", ready=True)
    async with workspace.daemon(http_listen="127.0.0.1:0") as daemon, workspace.client() as client:
        url = await page_of(daemon)
        await client.watch(subscriber="dns", confirm_releases=True).synced()
        await browser.open(f"{url}/")
        for words in (f" on {socket.gethostname()} ", "the daemon's start", "dns: any caller of"):
            await browser.until(shows(words))
        await workspace.sandbox.stop()
        for words in ("Clusters stay engaged as last known.", "next try "):
            await browser.until(shows(words))
        links = "[...document.querySelectorAll('.banner a')].map(each => each.href)"
        [runbook] = await browser.evaluate(links)
    assert (Path(__file__).parents[3] / runbook.partition("/blob/main/")[2]).exists()


async def test_status_says_when_a_missing_directory_is_read_again(workspace: Workspace) -> None:
    files = {"mode": "kubeconfig-directory", "settings": {"path": str(workspace.directory / "none")}}
    async with workspace.daemon(http_listen="127.0.0.1:0", discovery_kubeconfig=None, **files) as daemon:
        await daemon.start()
        await daemon.wait_for_output('"source unreachable"')
        source = json.loads(await get(f"{daemon.events('started')[-1]['http']}/?json"))["source"]
    assert (source["state"], source["reason"]) == ("STALE", "FileNotFound")
    assert source["retryAt"] > source["since"]


async def test_status_page_and_metrics_hide_names_if_http_names_is_nobody(workspace: Workspace) -> None:
    workspace.sandbox.projects.create("alpha", ready=True)
    async with workspace.daemon(http_listen="127.0.0.1:0", http_names="nobody") as daemon:
        url = await page_of(daemon)
        async with DiscoveryClient(workspace.address) as client:
            watch = client.watch(names=["alpha"])
            await watch.synced()
            workspace.sandbox.projects.delete("alpha")
            await daemon.wait_for_output('"disengaged"')
            for query in ("", "?json", "?json&q=alpha"):
                page = (await get(f"{url}/{query}")).decode()
                assert "alpha" not in page.replace("q=alpha", "").replace('value="alpha"', "")
            assert "alpha" not in (await get(f"{url}/metrics")).decode()
