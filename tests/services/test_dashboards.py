"""Dashboard, alert rules and scrape configuration speak of what the services really tell."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr
from redis import Redis

from services.actor.settings import ActorSettings
from services.trainer.metrics import registry_of
from tests.gateway_world import Gateway
from tests.servers import serve
from vcllm.launch.services import SERVICES
from vcllm.serving.service import connect, serve_role
from vcllm.serving.writers import EngineCollector
from vcllm.settings import Settings
from vcllm.stores.models import ModelStore
from vcllm.web.tokens import scrape_token

ROOT = Path(__file__).parents[2]
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy/grafana/vcllm.json").read_text())
ALERTS: dict[str, Any] = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())
SCRAPING: dict[str, Any] = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
OVERLAY: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.observability.yml").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
QUERIES = {
    **{f"{panel['title']} {target['refId']}": target["expr"] for panel in PANELS for target in panel["targets"]},
    **{rule["alert"]: rule["expr"] for rule in RULES},
}
OF_PROMETHEUS = {"up"}
SERIES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}


class NoVersions:
    """Opens none."""

    def checksum(self, version: str) -> str:
        raise AssertionError("there is no version to ask about")


def families_of(text: str) -> list[Metric]:
    return list(text_string_to_metric_families(text))


def scraped(url: str) -> list[Metric]:
    token = scrape_token(SecretStr("internal"))
    reply = httpx.get(f"{url}/metrics", headers={"authorization": f"Bearer {token}"}, verify=False)
    assert reply.status_code == 200, reply.text
    return families_of(reply.text)


@pytest.fixture(scope="module")
def told(running: Gateway, tmp_path_factory: pytest.TempPathFactory) -> list[Metric]:
    """The families of metrics of a gateway, a role server and the trainer, as a scrape sees them."""
    shared = Settings(
        redis_url=running.settings.redis_url, home=tmp_path_factory.mktemp("actor"), internal_token="internal"
    )
    serving: Any = connect("actor", ActorSettings(), shared, ModelStore(shared.models), NoVersions())  # type: ignore[type-var]
    with serve(serve_role(serving, shared, EngineCollector(serving.pool))) as url:
        role = scraped(url)
    with Redis.from_url(running.settings.redis_url, decode_responses=True) as redis:
        trainer = families_of(generate_latest(registry_of(redis)).decode())
    running[None].get("/v1/canary", params={"canary": "canary"}, headers={"x-request-id": "canary"})
    return [*scraped(running.url), *role, *trainer]


@pytest.fixture(scope="module")
def series(told: list[Metric]) -> set[str]:
    return {f"{family.name}{end}" for family in told for end in SERIES.get(family.type, ())}


WORDS = {"by", "without", "and", "or", "unless", "on", "ignoring", "bool", "offset", "group_left", "group_right"}


def metrics_in(query: str) -> Iterator[str]:
    """Every name in a PromQL expression that is neither a function, a keyword nor a label."""
    bare = re.sub(r'"[^"]*"', "", query)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", bare)
    bare = re.sub(r"\b(by|without|on|ignoring)\s*\([^)]*\)", " ", bare)
    for found in re.finditer(r"(?<![\w.$])([A-Za-z_:][\w:]*)\s*(\()?", bare):
        if found[2] is None and found[1] not in WORDS:
            yield found[1]


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("up == 0", ["up"]),
        ('sum by (job, le) (rate(a_bucket{code=~"5..", b="c"}[5m])) / sum(rate(a_sum[$__rate_interval])) > 500e6',
         ["a_bucket", "a_sum"]),
        ("time() - max(vc_looked) > 120 and on (job) vc_up", ["vc_looked", "vc_up"]),
    ],
)  # fmt: skip
def test_names_are_found_in_a_query(query: str, names: list[str]):
    """Else the tests below would pass whatever the files say."""
    assert list(metrics_in(query)) == names


@pytest.mark.parametrize("name", QUERIES)
def test_a_query_asks_for_what_is_told(name: str, series: set[str]):
    """A panel or a rule on a name that nobody tells is silent for ever."""
    asked = set(metrics_in(QUERIES[name]))

    assert asked
    assert asked <= series | OF_PROMETHEUS


@pytest.mark.parametrize("name", QUERIES)
def test_a_query_is_balanced(name: str):
    """The least that can be said of it without Prometheus."""
    query = QUERIES[name]

    for opening, closing in ("()", "{}", "[]"):
        assert query.count(opening) == query.count(closing)
    assert query.count('"') % 2 == 0


def test_what_is_told_of_jobs_several_times_is_never_summed():
    """Two workers and the reaper tell the same."""
    shared = ("vc_job_", "vc_lease_", "vc_reaper_", "vc_pairs_")

    for name, query in QUERIES.items():
        if any(metric.startswith(shared) for metric in metrics_in(query)):
            assert "sum" not in query, name


def test_no_label_comes_from_a_request(told: list[Metric]):
    """A key, a user or a text as a label would grow without end, and would be read by whoever sees the dashboard."""
    labels = {label for family in told for sample in family.samples for label in sample.labels}

    known = {
        "role",
        "route",
        "code",
        "replica",
        "dir",
        "reason",
        "where",
        "state",
        "queue",
        "lineage",
        "version",
        "sha",
    }
    assert labels <= known | {"le"}
    assert "canary" not in str(told)


def test_every_alert_says_what_to_do():
    """And to whom it matters."""
    for rule in RULES:
        assert rule["labels"]["severity"] in ("page", "warn"), rule["alert"]
        assert rule["annotations"]["summary"] and rule["annotations"]["action"], rule["alert"]


def test_panels_have_places_and_names_of_their_own():
    """Grafana drops one of two that do not."""
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in DASHBOARD["panels"]]

    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert len(set(places)) == len(places)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in DASHBOARD["panels"])


def test_every_service_is_scraped_on_its_port():
    """Those of the launcher, by the names that compose gives them."""
    scraped = {
        (name, config["port"])
        for job in SCRAPING["scrape_configs"]
        for config in job["dns_sd_configs"]
        for name in config["names"]
    }
    ports = {service.name: service.port or 9108 for service in SERVICES}

    assert scraped == set(ports.items())
    assert SCRAPING["rule_files"] == ["/etc/prometheus/alerts.yml"]


def test_the_overlay_opens_the_workers_metrics_where_they_are_scraped():
    """Inside, for they ask nobody who they are; their host publishes no port."""
    for service in SERVICES:
        told = OVERLAY["services"][service.name]["environment"]
        assert told["VCLLM_LOG_FORMAT"] == "${VCLLM_LOG_FORMAT:-json}"
        if service.port is None:
            assert (told["TRAINER_METRICS_HOST"], told["TRAINER_METRICS_PORT"]) == ("0.0.0.0", "9108")


def test_what_the_overlay_mounts_is_there():
    """And it publishes the dashboard to this machine only."""
    for name in ("prometheus", "grafana"):
        container = OVERLAY["services"][name]
        sources = [volume.split(":")[0] for volume in container["volumes"]]
        assert all((ROOT / source).exists() for source in sources if source.startswith("./")), name
        assert container["read_only"] and container["cap_drop"] == ["ALL"]
    assert OVERLAY["services"]["grafana"]["ports"] == ["${VCLLM_GRAFANA_PUBLISH:-127.0.0.1:3000}:3000"]
    assert "ports" not in OVERLAY["services"]["prometheus"]


def test_grafana_finds_its_source_by_the_name_that_panels_use():
    """A panel without it shows nothing."""
    folder = ROOT / "deploy/grafana/provisioning"
    [source] = yaml.safe_load((folder / "datasources/prometheus.yml").read_text())["datasources"]
    [provider] = yaml.safe_load((folder / "dashboards/vcllm.yml").read_text())["providers"]

    assert {panel["datasource"]["uid"] for panel in PANELS} == {source["uid"]}
    mounts = OVERLAY["services"]["grafana"]["volumes"]
    assert any(mount.split(":")[1] == f"{provider['options']['path']}/vcllm.json" for mount in mounts)
