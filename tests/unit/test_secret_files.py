"""Secrets in files: how `vcllm secrets` writes them, and how every service reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError
from pydantic_settings import SettingsError
from typer.testing import CliRunner

from services.actor.settings import ActorSettings
from vcllm.cli import app
from vcllm.commands.secrets import SCRAPE_TOKEN, VARIABLES
from vcllm.launch.credentials import load_credentials
from vcllm.serving.run import CannotStart, read_settings
from vcllm.settings import Settings
from vcllm.web.tokens import scrape_token


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "a secret"
    made.write_text("long and random\n")
    return made


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of this machine's own is read."""
    monkeypatch.chdir(tmp_path)
    for name in ("INTERNAL_TOKEN", "PEPPER", "REDIS_PASSWORD", "REDIS_URL"):
        monkeypatch.delenv(f"VCLLM_{name}", raising=False)


def write_secrets(*options: str) -> str:
    return CliRunner().invoke(app, ["secrets", *options], env={"COLUMNS": "400"}).output


def contents(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.iterdir()}


@pytest.mark.parametrize("name", ["internal_token", "pepper", "redis_password"])
def test_a_secret_is_read_from_the_file_that_is_named(name: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"VCLLM_{name.upper()}_FILE", str(file))

    assert getattr(Settings(), name).get_secret_value() == "long and random"


def test_the_variable_itself_still_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VCLLM_PEPPER", "told")

    assert Settings().pepper.get_secret_value() == "told"


def test_a_role_server_reads_the_key_of_its_upstream_from_a_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACTOR_UPSTREAM_KEY_FILE", str(file))

    assert ActorSettings().upstream_key.get_secret_value() == "long and random"


def test_only_secrets_are_read_from_files(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`VCLLM_HOME_FILE` is nobody's setting."""
    monkeypatch.setenv("VCLLM_HOME_FILE", str(file))

    assert Settings().home == Path("var")


def test_a_missing_file_is_named_with_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Going on without the secret would be worse than not starting."""
    monkeypatch.setenv("VCLLM_PEPPER_FILE", "/run/secrets/nothing")

    with pytest.raises(SettingsError, match=r"VCLLM_PEPPER_FILE names /run/secrets/nothing, .* No such file"):
        Settings()


@pytest.mark.parametrize(("content", "reason"), [(b" \n", "is empty"), (b"\xff\xfe\x00", "it is not text")])
def test_a_file_without_a_secret_is_refused(
    content: bytes, reason: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_bytes(content)
    monkeypatch.setenv("VCLLM_INTERNAL_TOKEN_FILE", str(file))

    with pytest.raises(SettingsError, match=reason):
        Settings()


def test_a_secret_that_is_given_twice_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever was taken, somebody would wonder; the message holds neither."""
    monkeypatch.setenv("VCLLM_PEPPER", "told")
    monkeypatch.setenv("VCLLM_PEPPER_FILE", str(file))

    with pytest.raises(SettingsError, match="Leave one of them out") as refusal:
        Settings()
    assert "told" not in str(refusal.value) and "random" not in str(refusal.value)


def test_an_empty_variable_does_not_hide_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compose sets a variable that is nowhere said to nothing."""
    monkeypatch.setenv("VCLLM_PEPPER", "")
    monkeypatch.setenv("VCLLM_PEPPER_FILE", str(file))

    assert Settings().pepper.get_secret_value() == "long and random"


def test_a_role_server_says_what_is_wrong_with_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VCLLM_INTERNAL_TOKEN_FILE", "/run/secrets/nothing")

    with pytest.raises(CannotStart, match="VCLLM_INTERNAL_TOKEN_FILE names /run/secrets/nothing"):
        read_settings(ActorSettings)


@pytest.mark.parametrize(
    ("address", "joined"),
    [
        ("redis://redis:6379/0", "redis://:p%2F%40%3Aw@redis:6379/0"),
        ("rediss://redis", "rediss://:p%2F%40%3Aw@redis"),
        ("redis://someone@[::1]:6379/2?a=b", "redis://someone:p%2F%40%3Aw@[::1]:6379/2?a=b"),
    ],
)
def test_the_password_of_redis_is_put_into_its_address(
    address: str, joined: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text("p/@:w")
    monkeypatch.setenv("VCLLM_REDIS_PASSWORD_FILE", str(file))
    monkeypatch.setenv("VCLLM_REDIS_URL", address)

    assert Settings().redis_url == joined


@pytest.mark.parametrize("address", ["redis://:another@redis:6379/0", "unix:///run/redis.sock"])
def test_an_address_that_takes_no_password_is_refused(
    address: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VCLLM_REDIS_PASSWORD_FILE", str(file))
    monkeypatch.setenv("VCLLM_REDIS_URL", address)

    with pytest.raises(ValidationError, match="write the address as redis://host:port/0"):
        Settings()


def test_credentials_that_files_give_are_not_kept_anew(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`vcllm keys` in a container, whose home cannot be written."""
    for name in ("INTERNAL_TOKEN", "PEPPER", "REDIS_PASSWORD"):
        monkeypatch.setenv(f"VCLLM_{name}_FILE", str(file))

    credentials = load_credentials(Settings(home=tmp_path / "home"))

    assert credentials.redis_password.get_secret_value() == "long and random"
    assert not (tmp_path / "home").exists()


def test_secrets_for_compose_are_written_once(tmp_path: Path) -> None:
    """Whoever is not let into the folder sees none; who gets a file mounted can read it, whatever account that is."""
    said = write_secrets()
    first = contents(tmp_path / "secrets")
    again = write_secrets()

    assert contents(tmp_path / "secrets") == first
    assert set(first) == {*VARIABLES, SCRAPE_TOKEN} and len(set(first.values())) == len(first)
    assert all(len(first[name].strip()) == 64 for name in VARIABLES)
    assert "Keep the folder to yourself" in said and "has all secrets already" in again
    assert not [secret for secret in first.values() if secret.strip() in said + again]
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "secrets").iterdir()} == {0o444}


def test_a_lost_secret_is_made_anew_and_the_others_are_kept(tmp_path: Path) -> None:
    """Also one that an interrupted copy left empty."""
    write_secrets()
    first = contents(tmp_path / "secrets")
    (tmp_path / "secrets" / "pepper").unlink()
    (tmp_path / "secrets" / "internal_token").chmod(0o600)
    (tmp_path / "secrets" / "internal_token").write_text("\n")

    write_secrets()

    second = contents(tmp_path / "secrets")
    assert {name for name in first if first[name] != second[name]} == {"pepper", "internal_token", SCRAPE_TOKEN}


def test_prometheus_gets_a_token_that_opens_nothing_but_metrics(tmp_path: Path) -> None:
    """What the servers expect of whoever reads metrics, and not the token it is made from."""
    write_secrets()
    made = contents(tmp_path / "secrets")

    assert made[SCRAPE_TOKEN].strip() == scrape_token(SecretStr(made["internal_token"].strip()))
    assert made["internal_token"].strip() not in made[SCRAPE_TOKEN]


def test_secrets_of_an_earlier_version_are_taken_over(tmp_path: Path) -> None:
    """Another pepper would make all API keys useless."""
    (tmp_path / ".env").write_text("# mine\nVCLLM_PEPPER=old pepper\nREDIS_PASSWORD='old password'\nVCLLM_TAG=x\n")

    said = write_secrets()

    made = contents(tmp_path / "secrets")
    assert made["pepper"] == "old pepper\n" and made["redis_password"] == "old password\n"
    assert ".env need not hold VCLLM_PEPPER, REDIS_PASSWORD any more" in said
