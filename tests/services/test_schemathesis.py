"""schemathesis against the description of every service: whatever is sent, it answers in its own words.

To each operation go requests that fit its description and requests that do not, with a credential that opens everything
and without one. None may end in a 5xx, in a reply of another form than described, or in one that tells of the inside.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

from gateway.app import create_app
from tests.gateway_world import Gateway, add_version
from tests.role_servers import TOKEN, RoleServer, role_servers
from tests.servers import RedisServer
from tests.unit.test_stores_pairs import pair
from tests.unit.test_stores_reviews import item
from vcllm.contracts.keys import Scope
from vcllm.contracts.manifests import Role
from vcllm.stores.aliases import AliasStore
from vcllm.stores.pairs import PairStream
from vcllm.stores.reviews import ReviewStore

EXAMPLES = 8
"""Of each operation and kind of request."""
COSTLY = {"POST /v1/files": 2}
"""Every file that fits is checked by a process of its own."""
INSIDE = ("Traceback", "site-packages", 'File "', "redis://", ".py", TOKEN, str(Path(__file__).parents[2]))
"""What no reply has in it."""
ROW = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}

Names = Mapping[str, str]
"""What stands in an address, by the parameter's name."""


class Fuzz:
    """Asks one service, and remembers what it answered."""

    def __init__(self, description: dict[str, Any], url: str, *secrets: str) -> None:
        self.schema = schemathesis.openapi.from_dict(description)
        self.url = url
        self.secrets = (*INSIDE, *secrets)
        self.seen: dict[str, set[int]] = {}
        """Operation to the statuses that came."""
        self._session = requests.Session()

    def ask_everything(
        self, mode: GenerationMode, headers: Mapping[str, str], names: Callable[[str], Names] | None = None
    ) -> None:
        """names: of an operation's label; None: anything that fits the description, or does not."""
        operations = [found.ok() for found in self.schema.get_all_operations()]
        for operation in sorted(operations, key=lambda one: one.method == "delete"):  # what it takes away comes last
            path = None
            if names is not None:
                known = names(operation.label)
                path = {parameter.name: known[parameter.name] for parameter in operation.path_parameters}
            with suppress(Unsatisfiable):  # nothing can be wrong where there is nothing to fill in
                self._ask(operation, operation.as_strategy(mode, path_parameters=path), headers)

    def close(self) -> None:
        self._session.close()

    def _ask(self, operation: Any, strategy: Any, headers: Mapping[str, str]) -> None:
        @settings(
            max_examples=COSTLY.get(operation.label, EXAMPLES),
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=strategy)
        def ask(case: Any) -> None:
            reply = case.call(base_url=self.url, session=self._session, headers=dict(headers), timeout=20)
            self.seen.setdefault(operation.label, set()).add(reply.status_code)
            self._look_at(case, reply)

        ask()

    def _look_at(self, case: Any, reply: Any) -> None:
        said = f"{reply.headers}\n{reply.text}"
        assert reply.status_code < 500, (case.as_curl_command(), said)
        for inside in self.secrets:
            assert inside not in said, (inside, case.as_curl_command(), said)
        if reply.status_code >= 400:
            assert set(reply.json()["error"]) >= {"message", "type", "param", "code"}, said
        case.operation.validate_response(reply, case=case)


def described(app: Any, *, locked: bool = False, **values: list[Any]) -> dict[str, Any]:
    """Its description. locked: credentials are made up; otherwise nothing is said of them, and they are as given.

    values: for `Model_field` the values that are sent there; without them nothing that is named would exist.
    """
    description = copy.deepcopy(app.openapi())
    for where, allowed in values.items():
        model, _, name = where.partition("_")
        description["components"]["schemas"][model]["properties"][name] = {"enum": allowed}
    if not locked:
        for operations in description["paths"].values():
            for operation in operations.values():
                operation.pop("security", None)
    return description


@pytest.fixture
def admin(gateway: Gateway) -> dict[str, str]:
    return {"authorization": f"Bearer {gateway.key(Scope.ADMIN)[0]}"}


@pytest.fixture
def names(gateway: Gateway) -> Callable[[str], Names]:
    """One of everything that an address can name."""
    add_version(gateway.settings, "v-1")
    AliasStore(gateway.redis).promote("actor", "v-1")
    PairStream(gateway.redis, "line").add(pair(1))
    ReviewStore(gateway.redis, "line").add(item(1, "line"))
    admin = gateway[Scope.ADMIN]
    campaign = admin.post("/v1/campaigns", json={"recipe": "tiny", "lineage": "line"}).json()
    admin.post("/v1/campaigns/line/abort")  # whoever follows it comes to an end
    form = {"files": {"file": ("a.jsonl", json.dumps(ROW))}, "data": {"purpose": "fine-tune"}}
    file = admin.post("/v1/files", **form).json()["id"]
    tune = admin.post("/v1/fine_tuning/jobs", json={"model": "v-1", "training_file": file}).json()["id"]
    known = {"version": "v-1", "model": "v-1", "lineage": "line", "role": "actor", "review": item(1, "line").id}
    known |= {"pair": pair(1).id, "file_id": file, "key_id": gateway.key(Scope.CHAT)[1]}
    return lambda operation: known | {"job_id": tune if "/fine_tuning/" in operation else campaign["job"]}


@pytest.fixture
def fuzz_of(gateway: Gateway) -> Iterator[Callable[[dict[str, Any]], Fuzz]]:
    opened: list[Fuzz] = []

    def make(description: dict[str, Any]) -> Fuzz:
        fuzz = Fuzz(description, gateway.url, gateway.settings.redis_url, str(gateway.settings.home))
        opened.append(fuzz)
        return fuzz

    yield make
    for fuzz in opened:
        fuzz.close()


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_the_gateway_answers_an_administrator(
    gateway: Gateway, fuzz_of: Callable[[dict[str, Any]], Fuzz], admin: dict[str, str], mode: GenerationMode
):
    """Whatever is asked, mostly of what does not exist."""
    fuzz = fuzz_of(described(create_app(gateway.settings)))

    fuzz.ask_everything(mode, admin)

    assert 401 not in set().union(*fuzz.seen.values())
    assert len(fuzz.seen) > (55 if mode is GenerationMode.POSITIVE else 30)


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_the_gateway_answers_of_what_exists(
    gateway: Gateway,
    fuzz_of: Callable[[dict[str, Any]], Fuzz],
    admin: dict[str, str],
    names: Callable[[str], Names],
    mode: GenerationMode,
):
    """Every name in an address, and those of recipes, models and files in bodies, are of something."""
    values = {"JobCreate_recipe": ["tiny"], "JobCreate_stage": [None, "sft"], "CampaignCreate_recipe": ["tiny"]}
    values |= {"FineTuningCreate_model": ["v-1"], "FineTuningCreate_training_file": [names("")["file_id"]]}
    fuzz = fuzz_of(described(create_app(gateway.settings), **values))

    fuzz.ask_everything(mode, admin, names)

    if mode is GenerationMode.POSITIVE:
        answered = [operation for operation, statuses in fuzz.seen.items() if min(statuses) < 300]
        assert len(answered) > 45, sorted(set(fuzz.seen) - set(answered))


def test_the_gateway_answers_a_stranger(gateway: Gateway, fuzz_of: Callable[[dict[str, Any]], Fuzz]):
    """Without a credential, and with made-up ones: 401, whatever else may be in the request."""
    fuzz = fuzz_of(described(create_app(gateway.settings), locked=True))

    fuzz.ask_everything(GenerationMode.POSITIVE, {})

    for operation, statuses in fuzz.seen.items():
        assert statuses == ({200} if "/health/" in operation else {401}), operation


@pytest.fixture(scope="module")
def roles(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Role, RoleServer]]:
    with role_servers(redis_server.url, tmp_path_factory.mktemp("roles")) as servers:
        yield servers


@pytest.fixture(params=["attacker", "actor", "critic"])
def role(request: pytest.FixtureRequest, roles: dict[Role, RoleServer]) -> RoleServer:
    return roles[request.param]


def work(fuzz: Fuzz) -> dict[str, set[int]]:
    """What came of the operations that do something."""
    return {operation: seen for operation, seen in fuzz.seen.items() if operation.startswith("POST")}


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_a_model_server_answers_a_service(role: RoleServer, mode: GenerationMode):
    """Of the installation, whatever it asks."""
    values = {"ChatRequest_model": ["vc-llm", "v1", "v2"]} if role.role == "actor" else {}
    with closing(Fuzz(described(role.app, **values), role.url, str(role.home))) as fuzz:
        fuzz.ask_everything(mode, role.authorization)

    assert len(work(fuzz)) == sum("post" in operations for operations in role.app.openapi()["paths"].values())
    for operation, seen in work(fuzz).items():
        assert (200 if mode is GenerationMode.POSITIVE else 400) in seen, operation


def test_a_model_server_answers_a_stranger(role: RoleServer):
    """401, whatever else may be in the request."""
    with closing(Fuzz(described(role.app, locked=True), role.url, str(role.home))) as fuzz:
        fuzz.ask_everything(GenerationMode.POSITIVE, {})

    for operation, seen in fuzz.seen.items():
        assert seen == ({200} if "/health/" in operation else {401}), operation
