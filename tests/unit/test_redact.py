"""Secrets are taken out where a message or record is made; a kept detector's patterns are the net under ours."""

from __future__ import annotations

import json
import logging
import os
import random
import string
from pathlib import Path
from types import SimpleNamespace

import pytest
from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
from detect_secrets.plugins.base import RegexBasedDetector
from hypothesis import given, settings
from hypothesis import strategies as st

from moecap.errors import MoecapError
from moecap.jobs import failures
from moecap.jobs.workflow import script
from moecap.redact import REMOVED, redact, redact_data
from moecap.scrub import Scrubber

ALPHANUMERIC = string.ascii_letters + string.digits


def some(length: int, letters: str = ALPHANUMERIC, seed: int = 0) -> str:
    return "".join(random.Random(f"{length}{letters}{seed}").choices(letters, k=length))


JWT = f"eyJhbGciOiJIUzI1NiJ9.eyJ{some(40)}.{some(43)}"
# Made here, by the issuers' rules; nobody's.
TOKENS = {
    "hugging face": f"hf_{some(34)}",
    "openai": f"sk-proj-{some(48)}",
    "anthropic": f"sk-ant-api03-{some(93)}",
    "nvidia": f"nvapi-{some(64)}",
    "google": f"AIza{some(35)}",
    "gitlab": f"glpat-{some(20)}",
    "gitlab job": f"glcbt-64_{some(20)}",
    "github": f"ghp_{some(36)}",
    "github, fine": f"github_pat_{some(22)}_{some(59)}",
    "aws": f"AKIA{some(16, string.ascii_uppercase + string.digits)}",
    "aws, for a while": f"ASIA{some(16, string.ascii_uppercase + string.digits)}",
    "slack": f"xoxb-{some(12, string.digits)}-{some(24)}",
    "groq": f"gsk_{some(52)}",
    "replicate": f"r8_{some(37)}",
    "npm": f"npm_{some(36)}",
    "stripe": f"sk_live_{some(24)}",
    "jwt": JWT,
    "key": f"-----BEGIN RSA PRIVATE KEY-----\n{some(64)}\n-----END RSA PRIVATE KEY-----",
}
PLAIN = some(24, string.ascii_lowercase)  # nothing of its own says that it is one
CONTEXTS = {
    "token@": "https://{}@hub.example/org/model",
    "user:password@": "https://me:{}@hub.example/org/model is not there",
    "a second @": "http://me:x@{}@hub.example:8080",
    "?token": "GET https://hub.example/m/resolve/x?token={}&y=1 failed",
    "&access_token": "https://hub.example/?a=b&access_token={}",
    "signed by aws": "https://cdn.example/f?X-Amz-Date=1&X-Amz-Signature={}",
    "signed by google": "https://cdn.example/f?X-Goog-Credential={}",
    "sas": "https://x.blob.core.windows.net/f?sv=1&sig={}",
    "signed for a while": "https://cdn.example/f?Policy=p&Signature={}&Key-Pair-Id=K",
    "in a page": '<a href="https://hub.example/m?x=1&amp;token={}">',
    "bearer": "Authorization: Bearer {}",
    "bearer, alone": "sent bearer {}",
    "basic": "authorization: Basic {}",
    "in a dict": "{{'Authorization': 'Bearer {}'}}",
    "x-api-key": "x-api-key: {}",
    "a cookie": "Cookie: session={}",
    "a variable": "HF_TOKEN={} snakemake",
    "a variable, exported": "export OPENAI_API_KEY='{}'",
    "a key in YAML": "api_key: {}",
    "a key in JSON": '{{"client_secret": "{}"}}',
    "a setting": "aws_secret_access_key = {}",
    "an argument": "vllm serve m --api-key {} --port 8",
}


@pytest.mark.parametrize("name", TOKENS)
def test_tokens_of_known_issuers(name: str) -> None:
    for text in ("{}", "error: {}.", '"{}"', "url/{}/x", "a={}, b", "({})"):
        assert TOKENS[name] not in redact(text.format(TOKENS[name]), {})
    assert redact(f"before {TOKENS[name]} after", {}) == f"before {REMOVED} after"


@pytest.mark.parametrize("name", CONTEXTS)
def test_secrets_by_where_they_stand(name: str) -> None:
    said = redact(CONTEXTS[name].format(PLAIN), {})
    assert PLAIN not in said and REMOVED in said
    assert redact(said, {}) == said, "once is enough"


@pytest.mark.parametrize(
    "text",
    [
        "tokens/s and 3/4",
        "git@github.com:org/repo.git and ssh://git@github.com/org/repo",
        "https://huggingface.co/org/model?download=true",
        "generated_tokens: 4711",
        "results/models/demo-moe/int8/manifest.json: SHA-256 is " + "0123456789abcdef" * 4,
        "put it into the environment variable HF_TOKEN (never into a config file), and start again",
        "HF_TOKEN is not set",
        "judge: {api_key_env: OPENAI_API_KEY}",
        "pad_token: <pad>, eos_token: </s>",
        "a task-specific skill-based desk-organization",
        "bearer of news",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text, {}) == text


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("HF_TOKEN", "correct-horse-battery"),
        ("JUDGE_API_KEY", "correct-horse-battery"),
        ("DB_PASSWORD", "correct horse"),
        ("MY_JUDGE_KEY", "correct-horse-7"),
        ("SERVICE_AUTH", "0123456789abcd-f"),
        ("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG"),
    ],
)
def test_values_of_secret_variables_wherever_they_stand(variable: str, value: str) -> None:
    assert redact(f"the server said: {value}!", {variable: value}) == f"the server said: {REMOVED}!"


def test_a_password_in_an_endpoint_is_removed_as_it_stands_and_as_it_is_meant() -> None:
    env = {"HF_ENDPOINT": "https://me:p%40ss-w0rd@hub.example"}
    assert redact("401 for p%40ss-w0rd, that is p@ss-w0rd", env) == f"401 for {REMOVED}, that is {REMOVED}"
    assert redact(env["HF_ENDPOINT"], env) == f"https://{REMOVED}@hub.example"
    assert redact("TOK3N", {"HTTPS_PROXY": "http://TOK3N@proxy:1"}) == REMOVED


@pytest.mark.parametrize("value", ["/etc/secret", "$OTHER", "1234567890", "short"])
def test_what_a_secret_variable_may_hold_without_being_one(value: str) -> None:
    assert redact(f"see {value}", {"API_TOKEN": value}) == f"see {value}"


DETECTORS = {
    name: kind
    for name, kind in get_mapping_from_secret_type_to_class().items()
    if issubclass(kind, RegexBasedDetector) and "IP" not in name
}
# A line of the detector's own kind that our forms leave alone, and why.
LEFT = {
    "Public IPv4": "an address is no secret",
    "Cloudant Credentials": "a service that nothing here speaks to",
    "IBM Cloud IAM Key": "a service that nothing here speaks to",
    "IBM COS HMAC Credentials": "a service that nothing here speaks to",
    "SoftLayer Credentials": "a service that nothing here speaks to",
    "Private Key": "it goes by the first line; the key below it is tested above",
    "Azure Storage Account access key": "`AccountKey=`: by name, as a variable",
}


@pytest.mark.parametrize("name", sorted(set(DETECTORS) - set(LEFT)))
def test_nothing_that_a_kept_detector_knows_passes(name: str) -> None:
    """Strings of its own patterns, generated; what it saw before it sees no more."""
    detector = DETECTORS[name]()

    @settings(max_examples=10, database=None, derandomize=True)
    @given(st.one_of(*(st.from_regex(pattern, fullmatch=True, alphabet=PRINTABLE) for pattern in detector.denylist)))
    def holds(secret: str) -> None:
        found = set(detector.analyze_string(secret))
        said = redact(secret, {})
        assert not {f for f in found if f and f in said}, said

    holds()


PRINTABLE = st.characters(min_codepoint=32, max_codepoint=126)


# -- where messages and records are made -------------------------------------------------------------------------------

SECRET = f"hf_{some(34)}"
TEXT = f"GET https://me:{PLAIN}@hub.example/m?X-Amz-Signature={PLAIN} with {SECRET}"


def test_errors_hold_none() -> None:
    error = MoecapError(TEXT)
    assert SECRET not in str(error) + repr(error) + str(error.args) and PLAIN not in str(error)


def test_logs_failure_records_and_the_terminal_hold_none(tmp_path: Path, monkeypatch, capfd) -> None:
    """Of a job that fails with a secret in its error, after libraries printed and logged it."""
    from moecap.jobs import workflow

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JUDGE_API_KEY", "correct-horse-battery")
    said = f"{TEXT} correct-horse-battery"
    job = SimpleNamespace(
        rule="evaluate", log=["logs/x.log"], config={"results": "results"}, wildcards=_Wildcards(dataset="d")
    )
    saved = [os.dup(1), os.dup(2)]
    try:
        with pytest.raises(SystemExit), script(job):
            workflow.tell(said)
            logging.getLogger("httpx").warning("%s", said)
            os.write(2, f"{said}\n".encode())
            raise RuntimeError(said)
    finally:
        for number, copy in enumerate(saved, 1):
            os.dup2(copy, number)
            os.close(copy)
        logging.basicConfig(force=True)
    record = (tmp_path / "results/failures/evaluate/d.json").read_text()
    log = (tmp_path / "logs/x.log").read_text()
    for text in (record, log, "".join(capfd.readouterr())):
        assert SECRET not in text and PLAIN not in text and "correct-horse" not in text
        assert "hub.example" in text, "it still says where"
    assert "RuntimeError" in record


class _Wildcards(dict):
    def __iter__(self):
        return iter(self.values())


def test_records_hold_none(tmp_path: Path) -> None:
    failures.record_failures(tmp_path / "x.json", [{"class": "transient", "message": TEXT, "point": {"note": [TEXT]}}])
    text = (tmp_path / "x.json").read_text()
    assert SECRET not in text and PLAIN not in text and json.loads(text)["class"] == "transient"


def test_data_by_key_and_by_form() -> None:
    given_ = {"api_key": PLAIN, "base_url": f"https://{PLAIN}@x/v1", "n": 3, "list": [TEXT]}
    assert PLAIN not in json.dumps(redact_data(given_, {})) and redact_data(given_, {})["n"] == 3


def test_a_script_in_a_page_stays_a_program(tmp_path: Path) -> None:
    """`key=` and `password:` are names in a program; a secret in one of its strings is still a secret."""
    page = (
        f'<p>{TEXT}</p><script>a&&key=function(){{}};x={{password:secretOf(y)}};u="https://x/?token={PLAIN}"</script>'
    )
    clean = Scrubber(tmp_path, environment={}, names=()).markup(page)
    assert PLAIN not in clean and SECRET not in clean
    assert 'a&&key=function(){};x={password:secretOf(y)};u="https://x/?token=[removed]"</script>' in clean


def test_long_texts_take_no_longer_than_their_length(tmp_path: Path) -> None:
    """No pattern goes back over a long word again and again."""
    for text in ("a" * 20_000, "a-" * 10_000, "https://" + "a." * 10_000, "eyJ" * 6_000, "=" * 20_000):
        assert redact(text, {}) == text


def test_a_config_that_holds_a_secret_is_named_by_its_key() -> None:
    """Before anything is copied: into params, Snakemake's records, logs, archives."""
    from moecap.redact import secrets_in

    config = {"results": "results", "judge": {"api_key": PLAIN, "api_key_env": "JUDGE_API_KEY"}, "n": [1, SECRET]}
    config |= {"engine_env": {"HF_ENDPOINT": f"https://me:{PLAIN}@hub.example"}, "data_files": {"d": "a/b.jsonl"}}
    assert list(secrets_in(config)) == ["judge.api_key", "n.1", "engine_env.HF_ENDPOINT"]


def test_a_filter_for_somebody_elses_logger() -> None:
    from moecap.redact import filter_log

    record = logging.LogRecord("snakemake", logging.ERROR, "", 0, "%s failed", (TEXT,), None)
    assert filter_log(record) and SECRET not in record.getMessage() and record.getMessage().endswith("failed")
    record = logging.LogRecord("snakemake", logging.INFO, "", 0, None, (), None)
    assert filter_log(record) and record.msg is None
