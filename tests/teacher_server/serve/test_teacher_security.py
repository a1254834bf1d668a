"""Who may ask a teacher, over what, and what those are told who may not."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import grpc
import numpy as np
import pytest
from conftest import REPOSITORY, RunningTeacher, start_teacher
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from support.certificates import Authority
from support.scrapes import samples, wait_until

from shared import config
from shared.channel import ChannelConfig, Tokens
from shared.errors import ConfigError, TeacherError, Unauthenticated, Unavailable
from shared.rpc.credentials import authorization
from shared.rpc.teacher.v1 import teacher_pb2 as pb
from shared.rpc.teacher.v1 import teacher_pb2_grpc as rpc
from shared.wire import HistoryMode, ScoreQuery
from student_trainer.distill.client import GrpcTeacher
from student_trainer.distill.config import ClientConfig
from student_trainer.train.config import TrainConfig
from teacher_server.__main__ import main
from teacher_server.client import healthcheck, info

pytestmark = pytest.mark.integration

TOKEN, OTHER = "a-token-of-thirty-two-characters", "another-token-of-many-characters"


def ask(address: str, **channel: object) -> str:
    """The revision that a server tells."""
    return info.ask(address, 10, ChannelConfig.model_validate(channel)).weights_revision


def train_client(address: str, transport: str = "stream", **channel: object) -> str:
    """The revision that a trainer's client learns when it connects."""
    settings = {"channel": channel, "connect_seconds": 3, "transport": transport}
    client = GrpcTeacher(address, ClientConfig.model_validate(settings))
    try:
        return client.info.weights_revision
    finally:
        client.close()


def refused(address: str, **channel: object) -> bool:
    try:
        ask(address, **channel)
    except TeacherError:
        return True
    return False


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "pki")


EXPIRY = ("teacher_certificate_expiry_timestamp_seconds", ("certificate",))


def tls(pair: tuple[Path, Path]) -> list[str]:
    return [f"tls.certificate={pair[0]}", f"tls.key={pair[1]}"]


def test_encrypted_and_only_so(tiny_teacher: Path, authority: Authority, tmp_path: Path) -> None:
    stranger = Authority(tmp_path / "other", "stranger")
    with start_teacher(tiny_teacher, *tls(authority.issue("server"))) as server:
        revision = server.ready["weights_revision"]
        assert ask(server.address, ca=authority.ca) == revision
        assert train_client(server.address, ca=authority.ca) == revision
        assert train_client(f"ipv4:{server.address}", ca=authority.ca, server_name="teacher.test") == revision
        for wrong in ({}, {"tls": True}, {"ca": stranger.ca}, {"ca": authority.ca, "server_name": "elsewhere.test"}):
            with pytest.raises(Unavailable):
                ask(server.address, **wrong)
        with pytest.raises(Unavailable, match=r"(?i)certificate|handshake|ssl"):
            train_client(server.address, ca=stranger.ca)
        assert healthcheck.main([server.address, "--ca", str(authority.ca)]) == 0
        assert healthcheck.main([server.address, "--ca", str(stranger.ca)]) == 1


def test_an_expired_certificate_is_refused(tiny_teacher: Path, authority: Authority) -> None:
    with start_teacher(tiny_teacher, *tls(authority.issue("server", hours=-1))) as server:
        assert refused(server.address, ca=authority.ca)


def test_callers_show_certificates(tiny_teacher: Path, authority: Authority, tmp_path: Path) -> None:
    stranger = Authority(tmp_path / "other", "stranger")
    with start_teacher(tiny_teacher, *tls(authority.issue("server")), f"tls.client_ca={authority.ca}") as server:
        for name, pair, welcome in (
            ("right", authority.issue("trainer"), True),
            ("of another authority", stranger.issue("trainer"), False),
            ("expired", authority.issue("late", hours=-1), False),
        ):
            channel = {"ca": authority.ca, "certificate": pair[0], "key": pair[1]}
            assert refused(server.address, **channel) != welcome, name
        assert refused(server.address, ca=authority.ca), "none"


def test_certificates_are_renewed_without_a_restart(tiny_teacher: Path, authority: Authority, tmp_path: Path) -> None:
    """Also one that cannot be used, which changes nothing."""
    pair, successor = authority.issue("server"), Authority(tmp_path / "next", "successor")
    with start_teacher(tiny_teacher, *tls(pair)) as server:
        assert not refused(server.address, ca=authority.ca)
        pair[1].write_text("damaged")
        assert not refused(server.address, ca=authority.ca)
        end = samples(server.metrics)[EXPIRY]
        for path, fresh in zip(pair, successor.issue("server", hours=3), strict=True):
            path.write_bytes(fresh.read_bytes())
        assert refused(server.address, ca=authority.ca)
        assert not refused(server.address, ca=successor.ca)
        assert 2 * 3600 <= samples(server.metrics)[EXPIRY] - end < 3 * 3600
        assert server.process.poll() is None


def test_a_trainer_takes_renewed_certificates(tiny_teacher: Path, authority: Authority, tmp_path: Path) -> None:
    """After a restart of the teacher with another authority, without one of the trainer."""
    successor, mine = Authority(tmp_path / "next", "successor"), authority.issue("trainer")
    channel = {"ca": authority.ca, "certificate": mine[0], "key": mine[1]}
    history, lengths, candidates, counts = (np.array(values, np.int32) for values in ([1, 2], [2], [3, 4], [2]))
    query = ScoreQuery(HistoryMode.WINDOW, history, lengths, candidates, counts)
    with start_teacher(tiny_teacher, *tls(authority.issue("server")), f"tls.client_ca={authority.ca}") as server:
        client = GrpcTeacher(server.address, ClientConfig.model_validate({"channel": channel}))
        before = client.submit(query).result(30)
    try:
        waiting = client.submit(query)
        successors = (successor.ca, *successor.issue("trainer"))
        for path, fresh in zip((authority.ca, *mine), successors, strict=True):
            path.write_bytes(fresh.read_bytes())
        secured = [*tls(successor.issue("server")), f"tls.client_ca={successor.ca}"]
        with start_teacher(tiny_teacher, *secured, listen=server.address):
            assert np.array_equal(waiting.result(60).log_probs, before.log_probs)
    finally:
        client.close()


@pytest.mark.parametrize("transport", ["stream", "unary"])
def test_tokens(tiny_teacher: Path, tmp_path: Path, transport: str) -> None:
    known, mine = tmp_path / "tokens", tmp_path / "token"
    known.write_text(f"# of trainers\n{TOKEN}\n")
    mine.write_text(TOKEN)
    with start_teacher(tiny_teacher, f"tokens={known}") as server:
        assert train_client(server.address, transport, token_file=mine) == server.ready["weights_revision"]
        assert healthcheck.main([server.address]) == 0
        with pytest.raises(Unauthenticated, match="token_file"):
            ask(server.address)
        mine.write_text(OTHER)
        with pytest.raises(TeacherError, match="token"):
            train_client(server.address, transport, token_file=mine)
        page = urllib.request.urlopen(f"http://{server.metrics}/metrics").read().decode()
        assert 'teacher_rejected_total{reason="unauthenticated"} 0.0' not in page
        assert TOKEN not in page and OTHER not in page


def test_tokens_rotate_without_a_restart(tiny_teacher: Path, tmp_path: Path) -> None:
    """The new one beside the old, then without it; a file that became unusable changes nothing."""
    known, old, new = (tmp_path / name for name in ("tokens", "old", "new"))
    known.write_text(TOKEN)
    old.write_text(TOKEN)
    new.write_text(OTHER)
    with start_teacher(tiny_teacher, f"tokens={known}") as server:
        assert refused(server.address, token_file=new)
        known.write_text(f"{TOKEN}\n{OTHER}\n")
        assert not refused(server.address, token_file=new)
        assert not refused(server.address, token_file=old)
        known.write_text("short")
        assert not refused(server.address, token_file=new)
        known.write_text(OTHER)
        assert refused(server.address, token_file=old)
        assert not refused(server.address, token_file=new)


def counts(server: RunningTeacher, name: str) -> dict[str, float]:
    """A metric by caller."""
    found = samples(server.metrics)
    return {labels[0]: value for (metric, labels), value in found.items() if metric == name}


@pytest.mark.parametrize("transport", ["stream", "unary"])
def test_a_caller_s_name_is_its_token_s(tiny_teacher: Path, tmp_path: Path, transport: str) -> None:
    """Whatever it calls itself; two tokens may have one name."""
    known, mine = tmp_path / "tokens", tmp_path / "token"
    third = TOKEN[::-1]
    known.write_text(f"# of teams\nalice: {TOKEN}\nalice:   {third}\nbob: {OTHER}\n")
    with start_teacher(tiny_teacher, f"tokens={known}") as server:
        for token, positions in ((TOKEN, 1), (third, 2), (OTHER, 4)):
            mine.write_text(token)
            settings = {"channel": {"token_file": mine}, "name": "bob", "transport": transport}
            client = GrpcTeacher(server.address, ClientConfig.model_validate(settings))
            client.submit(windows(positions)).result(60)
            client.close()
        assert counts(server, "teacher_caller_positions_total") == {"alice": 3, "bob": 4}
        assert counts(server, "teacher_caller_requests_total") == {"alice": 2, "bob": 1}


def windows(positions: int) -> ScoreQuery:
    ones = np.ones(positions, np.int32)
    return ScoreQuery(HistoryMode.WINDOW, ones, ones, ones, ones)


@pytest.mark.parametrize("transport", ["stream", "unary"])
def test_a_quota_slows_its_caller_alone(tiny_teacher: Path, tmp_path: Path, transport: str) -> None:
    """The first request may be of any size and puts its caller into debt, for longer than the test lasts."""
    known = tmp_path / "tokens"
    known.write_text(f"alice: {TOKEN}\nbob: {OTHER}\n")
    quota = ["quotas.alice.positions_per_second=0.001", "quotas.alice.share=2"]
    with start_teacher(tiny_teacher, f"tokens={known}", *quota) as server:
        clients = {}
        for name, token in (("alice", TOKEN), ("bob", OTHER)):
            (tmp_path / name).write_text(token)
            settings = {"channel": {"token_file": tmp_path / name}, "transport": transport}
            clients[name] = GrpcTeacher(server.address, ClientConfig.model_validate(settings))
        try:
            clients["alice"].submit(windows(10)).result(60)
            slowed = clients["alice"].submit(windows(10))
            wait_until(lambda: counts(server, "teacher_caller_limited_total").get("alice", 0) >= 1)
            for _ in range(3):
                clients["bob"].submit(windows(10)).result(60)
            assert not slowed.done()
            assert counts(server, "teacher_caller_limited_total").keys() == {"alice"}
            refused = samples(server.metrics)["teacher_rejected_total", ("quota",)]
            assert (refused > 0) == (transport == "unary")
            server.process.terminate()  # a drain does not wait for who waits for its quota
            assert server.process.wait(60) == 0
        finally:
            for client in clients.values():
                client.close()


def test_the_scheme_is_written_in_any_case(tiny_teacher: Path, tmp_path: Path) -> None:
    known = tmp_path / "tokens"
    known.write_text(TOKEN)
    with start_teacher(tiny_teacher, f"tokens={known}") as server, grpc.insecure_channel(server.address) as channel:
        get = rpc.TeacherServiceStub(channel).GetTeacher
        for scheme in ("Bearer", "bearer", "BEARER"):
            assert get(pb.GetTeacherRequest(), metadata=[("authorization", f"{scheme} {TOKEN}")]).weights_revision
            for wrong in (f"Basic {TOKEN}", f"{scheme}{TOKEN}", TOKEN, f"{scheme} {TOKEN}x", scheme, ""):
                with pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"):
                    get(pb.GetTeacherRequest(), metadata=[("authorization", wrong)])


def test_a_token_of_the_environment(tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_TOKEN", f"{TOKEN} {OTHER}")
    with start_teacher(tiny_teacher) as server:
        assert not refused(server.address)
        monkeypatch.setenv("TEACHER_TOKEN", OTHER)
        assert not refused(server.address)
        monkeypatch.delenv("TEACHER_TOKEN")
        assert refused(server.address)


def test_reflection_on_or_off(tiny_teacher: Path) -> None:
    def services(address: str) -> list[str]:
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        with grpc.insecure_channel(address) as channel:
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            (answer,) = stub.ServerReflectionInfo(iter([request]), timeout=10)
        return [service.name for service in answer.list_services_response.service]

    with start_teacher(tiny_teacher) as server:
        assert "teacher.v1.TeacherService" in services(server.address)
    with start_teacher(tiny_teacher, "reflection=off") as server, pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"):
        services(server.address)


def serve_refusal(tiny_teacher: Path, capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What `serve` says when it does not start."""
    assert main(["serve", "--teacher", str(tiny_teacher), "--metrics-listen", "off", *arguments]) == 2
    return capfd.readouterr().err


def test_off_loopback_needs_encryption_or_consent(
    tiny_teacher: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(TOKEN)
    assert "--insecure" in serve_refusal(tiny_teacher, capfd, "--listen", "0.0.0.0:0")
    message = serve_refusal(tiny_teacher, capfd, "--listen", "0.0.0.0:0", "--insecure", f"tokens={tokens}")
    assert "unencrypted" in message and TOKEN not in message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tls.certificate={a.crt}", "go together"),
        ("tls.client_ca={ca}", "needs the teacher's own"),
        ("tls.certificate={a.crt} tls.key={b.key}", "no certificate and its unencrypted key"),
        ("tls.certificate={nowhere} tls.key={b.key}", "cannot read"),
        ("tls.certificate={text} tls.key={b.key}", "not a PEM file"),
        ("tls.certificate={a.crt} tls.key={a.key} tls.client_ca={text}", "not a PEM file"),
        ("tokens={nowhere}", "cannot read the tokens"),
        ("tokens={empty}", "holds no token"),
        ("tokens={text}", "token 1 has 5 characters; 16 are the least"),
        ("tokens={blank}", "printable"),
        ("tokens={mixed}", "some tokens have a name and others have none"),
        ("tokens={twice}", "token 2 is the same as an earlier one of 'a'"),
        ("tokens={odd}", "the name of token 1 is not"),
        ("tokens={named} quotas.bob.share=2", "quotas.bob: no token has this name; there are alice"),
        ("tokens={plain} quotas.bob.share=2", "tokens have no names (name: token)"),
        ("quotas.bob.share=2", "tokens have no names (name: token)"),
        ("tokens={named} quotas.alice.share=0", "quotas.alice.share"),
        ("tokens={named} quotas.alice.shares=2", "unknown setting quotas.alice.shares"),
    ],
)
def test_what_cannot_be_used_is_refused_at_the_start(
    tiny_teacher: Path,
    authority: Authority,
    tmp_path: Path,
    override: str,
    message: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    places = {f"{name}{path.suffix}": path for name in "ab" for path in authority.issue(name)} | {"ca": authority.ca}
    texts = {"text": "short", "empty": "# nothing\n", "blank": "sixteen characters with blanks", "plain": TOKEN}
    texts |= {"mixed": f"a: {TOKEN}\n{OTHER}", "twice": f"a: {TOKEN}\nb: {TOKEN}", "odd": f"a.b: {TOKEN}"}
    for name, text in (texts | {"named": f"alice: {TOKEN}"}).items():
        places[name] = tmp_path / name
        places[name].write_text(text)
    places["nowhere"] = tmp_path / "nowhere"
    for name, path in places.items():
        override = override.replace(f"{{{name}}}", str(path))
    assert message in serve_refusal(tiny_teacher, capfd, "--listen", "127.0.0.1:0", *override.split())


@pytest.mark.parametrize(
    ("target", "stays"),
    [
        ("127.0.0.1:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("unix:/x", True),
        ("dns:///localhost:1", True),
        ("ipv4:127.0.0.1:1,127.0.0.2:1", True),
        ("ipv4:127.0.0.1:1,10.0.0.1:1", False),
        ("dns:///teacher:1", False),
        ("10.0.0.1:1", False),
        ("xds:///127.0.0.1:1", False),
    ],
)
def test_a_token_never_leaves_the_machine_in_the_clear(target: str, stays: bool, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    if stays:
        assert authorization(ChannelConfig(token_file=file), [target])() == (("authorization", f"Bearer {TOKEN}"),)
    else:
        with pytest.raises(ConfigError, match="unencrypted") as caught:
            authorization(ChannelConfig(token_file=file), ["127.0.0.1:1", target])
        assert TOKEN not in str(caught.value)
    assert authorization(ChannelConfig(token_file=file, tls=True), [target])()


def test_no_secret_is_shown(tiny_teacher: Path, tmp_path: Path) -> None:
    """Neither in the log at its most talkative nor in what is printed."""
    known = tmp_path / "tokens"
    known.write_text(TOKEN)
    command = [sys.executable, "-m", "teacher_server", "query", "--log-level", "debug", "--candidates", "1,2"]
    with start_teacher(tiny_teacher, f"tokens={known}") as server:
        for token, code in ((TOKEN, 0), (OTHER, 2)):
            mine = tmp_path / "mine"
            mine.write_text(token)
            asked = [*command, "--address", server.address, f"channel.token_file={mine}"]
            done = subprocess.run(asked, capture_output=True, text=True, check=False, cwd=REPOSITORY)
            assert done.returncode == code, done.stderr
            assert token not in done.stdout + done.stderr
            if code == 0:
                assert "probabilities" in json.loads(done.stdout)


def test_what_a_run_saves_names_files_and_holds_no_secret(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """config.yaml, the checkpoint's settings and what Weights & Biases is told are one dump of the settings."""
    certificate, key = authority.issue("trainer")
    token = tmp_path / "token"
    token.write_text(TOKEN)
    monkeypatch.setenv("TEACHER_TOKEN", OTHER)
    channel = {"ca": authority.ca, "certificate": certificate, "key": key, "token_file": token}
    values = {"data": tmp_path, "out": tmp_path / "run", "teacher": "host:1", "client": {"channel": channel}}
    settings = TrainConfig.model_validate(values)
    config.save(settings, "train", tmp_path / "config.yaml")
    saved = (tmp_path / "config.yaml").read_text() + repr(settings) + json.dumps(settings.model_dump(mode="json"))
    assert str(token) in saved and str(key) in saved
    secrets = [TOKEN, OTHER, *key.read_text().splitlines()[1:-1]]
    assert [secret for secret in secrets if secret in saved] == []


def test_every_setting_of_a_channel_is_a_path_a_switch_or_the_server_s_name() -> None:
    """A setting that could hold a secret itself would be saved and logged with the others."""
    kinds = {name: str(field.annotation) for name, field in ChannelConfig.model_fields.items()}
    textual = {name for name, kind in kinds.items() if "Path" not in kind and "bool" not in kind}
    assert textual == {"server_name"}


@pytest.mark.parametrize("sent", ["", "x", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "\u00e9" * 16, "\ud800"])
def test_a_token_that_is_nearly_one(tmp_path: Path, sent: str) -> None:
    known = tmp_path / "tokens"
    known.write_text(f"{OTHER}\n{TOKEN}\n")
    tokens = Tokens(known)
    assert tokens.holds(TOKEN) and tokens.holds(OTHER)
    assert not tokens.holds(sent)
    known.write_text(f"a: {OTHER}\nb: {TOKEN}\n")
    named = Tokens(known)
    assert (named.name_of(TOKEN), named.name_of(OTHER), named.name_of(sent)) == ("b", "a", None)


def test_tokens_do_not_get_names_while_the_teacher_serves(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Else a name that a caller gave itself would be taken for a token's."""
    known = tmp_path / "tokens"
    known.write_text(TOKEN)
    tokens = Tokens(known)
    known.write_text(f"alice: {OTHER}\n")
    assert tokens.name_of(TOKEN) == "" and tokens.name_of(OTHER) is None
    assert "when the teacher is restarted" in caplog.text
    assert Tokens(known).first == OTHER


def test_tokens_that_cannot_be_read_are_not_shown(tmp_path: Path) -> None:
    known = tmp_path / "tokens"
    for text in ("short-secret", f"{TOKEN}\nshort-secret", f"{TOKEN[:20]}\u00e9{TOKEN}"):
        known.write_text(text)
        with pytest.raises(ConfigError) as caught:
            Tokens(known)
        assert "short-secret" not in str(caught.value) and TOKEN[:20] not in str(caught.value)
