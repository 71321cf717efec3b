"""The judge against a server on this machine that misbehaves, and the official files where they are there."""

import hashlib
import json
import os
import signal
import time

import pytest

from tests.conftest import ROOT
from tests.judge_server import Judge, completion, error
from vera.config import checked, resolve
from vera.errors import ConfigError, DataError, JudgeError, RecordError
from vera.judge.endpoint import JudgeSettings, read_key
from vera.judge.grade import items, judge, messages, read_answers
from vera.judge.judgement import Answers, write
from vera.judge.prompts import read_prompts
from vera.judge.questions import QuestionSource, described, load_questions
from vera.judge.sources import fetch, in_folder
from vera.judge.verdicts import read_verdict
from vera.records import interrupt

KEY = "sk-secret-0123456789"


@pytest.fixture
def server():
    servers = []

    def start(script=lambda n, body: "Fine. Rating: [[7]]"):
        servers.append(Judge(script))
        return servers[-1]

    yield start
    for each in servers:
        each.close()


def source(name="mt_bench", **changes) -> QuestionSource:
    overrides = [f"questions={name}", *(f"questions.{key}={value}" for key, value in changes.items())]
    return checked(QuestionSource, resolve("judge", overrides)["questions"])


def settings(server, **changes) -> JudgeSettings:
    base = {"base_url": server if isinstance(server, str) else server.url, "timeout_seconds": 10, "prompts": "own"}
    return checked(JudgeSettings, {**resolve("judge", [])["judge"], **base, **changes}, "judge")


def answer_file(folder, questions, name="model", text="five"):
    """FastChat's format, without a record."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.jsonl"
    rows = [
        {"question_id": q.id, "choices": [{"index": 0, "turns": [f"{text} {turn}" for turn in q.turns]}]}
        for q in questions.questions
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def ask(tmp_path):
    """Grade the synthetic questions; returns (record, path)."""

    def run(server, name="mt_bench", grading=None, **changes):
        chosen = source(name, synthetic=True, **({"grading": grading} if grading else {}))
        questions = load_questions(chosen, tmp_path)
        files = [answer_file(tmp_path / "answers", questions)]
        if chosen.grading == "pairwise":
            files.append(answer_file(tmp_path / "answers", questions, "other", "six"))
        return judge(files, chosen, settings(server, **changes), KEY, tmp_path / "results", tmp_path / "cache")

    return run


def verdict_lines(tmp_path):
    return [
        json.loads(line) for path in (tmp_path / "results/judged").glob("*.jsonl") for line in path.read_text().splitlines()
    ]


def user_text(body):
    return body["messages"][-1]["content"]


def test_every_turn_is_graded_and_kept_verbatim(server, ask, tmp_path):
    verdict = "Größe, “quotes”\nand lines.\nRating: [[7.5]]"
    there = server(lambda n, body: verdict if "2 + 3" in user_text(body) else "Rating: [[4]]")
    record, path = ask(there)
    assert record.verdicts == 6 and record.unreadable == [] and len(there.requests) == 6
    (score,) = record.scores
    assert score["n"] == 6 and score["mean"] == pytest.approx((2 * 7.5 + 4 * 4) / 6)
    assert score["by_turn"] == {"1": pytest.approx(15.5 / 3), "2": pytest.approx(15.5 / 3)}
    assert score["by_category"]["math"] == 7.5
    lines = verdict_lines(tmp_path)
    assert {line["item"] for line in lines} == {f"{q}/{turn}/a" for q in (1, 2, 3) for turn in (1, 2)}
    assert sum(line["verdict"] == verdict for line in lines) == 2
    assert record.judge["model"] == "gpt-4" and record.judge["prompts"] == "own"
    assert record.provenance["served_models"] == ["judge-0001"] and record.cost["prompt_tokens"] == 60
    body = there.requests[0]["body"]
    assert body["temperature"] == 0 and body["max_tokens"] == 2048 and there.requests[0]["path"] == "/v1/chat/completions"
    assert path.is_file() and path.with_suffix(".jsonl").is_file()


def test_the_second_turn_shows_both_and_mathematics_its_reference(server, ask):
    there = server()
    ask(there)
    texts = [user_text(request["body"]) for request in there.requests]
    assert sum("Double it." in text and "What is 2 + 3?" in text and "<reference>\n10\n" in text for text in texts) == 1
    assert sum("Double it." not in text and "What is 2 + 3?" in text and "<reference>\n5\n" in text for text in texts) == 1
    assert sum("reference" in text for text in texts) == 2


def test_retries_with_growing_pauses_and_the_servers_own(server, ask):
    failures = {0: error(429, "slow down"), 1: error(500, "oops"), 2: error(503, "busy")}
    there = server(lambda n, body: failures.get(n, "[[5]]"))
    record, _ = ask(there, concurrency=1)
    assert record.scores[0]["n"] == 6 and len(there.requests) == 9

    plain = server(lambda n, body: (429, {"error": {"message": "slow"}}, {}) if n < 2 else "[[5]]")
    ask(plain, concurrency=1, model="another")
    times = [request["at"] for request in plain.requests[:3]]
    assert times[1] - times[0] > 0.3 and times[2] - times[1] > times[1] - times[0]


def test_a_timeout_is_tried_again(server, ask):
    def script(n, body):
        time.sleep(1.0 if n == 0 else 0)
        return "[[5]]"

    there = server(script)
    record, _ = ask(there, timeout_seconds=0.3, concurrency=1)
    assert record.scores[0]["n"] == 6 and len(there.requests) == 7


def test_no_more_requests_at_once_than_allowed(server, ask):
    def script(n, body):
        time.sleep(0.05)
        return "[[5]]"

    there = server(script)
    ask(there, concurrency=2)
    assert there.most_at_once == 2


def test_an_unreadable_verdict_is_asked_again_then_reported_and_in_no_mean(server, ask, tmp_path):
    there = server(lambda n, body: "I would say eight." if "three colours" in user_text(body) else "[[4]]")
    record, path = ask(there, attempts=3)
    assert record.unreadable == ["1/1/a", "1/2/a"] and record.scores[0]["n"] == 4 and record.scores[0]["mean"] == 4
    assert len(there.requests) == 4 + 2 * 3
    kept = [line for line in verdict_lines(tmp_path) if line["question_id"] == 1]
    assert [line["verdict"] for line in kept] == ["I would say eight."] * 6 and all(line["scores"] is None for line in kept)
    assert json.loads(path.read_text())["unreadable"]

    there.script = lambda n, body: "[[10]]"  # the same judge, later: only the two are asked for
    again, same = ask(there, attempts=3)
    assert same == path and len(there.requests) == 12
    assert again.unreadable == [] and again.scores[0]["mean"] == pytest.approx((4 * 4 + 2 * 10) / 6)


def test_an_empty_verdict_is_unreadable_and_none_at_all_is_an_error(server, ask, tmp_path):
    there = server(lambda n, body: (200, completion(None), {}))
    with pytest.raises(JudgeError, match="not one of 6 verdicts holds a rating as the prompt asks for it"):
        ask(there, attempts=1)
    assert not list((tmp_path / "results/judged").glob("*.json")) and len(verdict_lines(tmp_path)) == 6


def test_a_rerun_asks_only_what_is_missing(server, ask, tmp_path):
    there = server(lambda n, body: "[[6]]" if n < 3 else error(404, "no such model"))
    with pytest.raises(JudgeError, match=r"HTTP 404: no such model; 3 new verdicts are kept"):
        ask(there, concurrency=1)
    assert len(there.requests) == 4
    assert not list((tmp_path / "results/judged").glob("*.json"))
    (verdicts,) = (tmp_path / "results/judged").glob("*.jsonl")
    with verdicts.open("a") as file:
        file.write('{"item": "2/2/a", "sco')  # the machine went down here
    before = len(there.requests)
    there.script = lambda n, body: "[[6]]"
    record, path = ask(there, concurrency=1)
    assert len(there.requests) - before == 3 and record.scores[0]["n"] == 6
    text, count = path.read_text(), len(there.requests)
    ask(there)
    assert path.read_text() == text and len(there.requests) == count


def said(body):
    """The question that a request is about: 1, 2 or 3 of the synthetic ones."""
    text = user_text(body)
    return 1 + ["three colours" in text, "What is rain" in text, "2 + 3" in text].index(True)


@pytest.mark.parametrize("status", [400, 413, 422])
def test_an_item_that_is_refused_for_good_is_its_own_affair(status, server, ask):
    there = server(lambda n, body: error(status, "too long") if said(body) == 1 else "[[6]]")
    record, path = ask(there, retries=2)
    assert record.unreadable == ["1/1/a", "1/2/a"]
    assert (record.scores[0]["n"], record.scores[0]["mean"]) == (4, 6) and len(there.requests) == 6  # no second try
    assert set(record.failed) == {"1/1/a", "1/2/a"} and f"HTTP {status}: too long" in record.failed["1/1/a"]
    assert json.loads(path.read_text())["cost"] == {"requests": 4, "prompt_tokens": 40, "completion_tokens": 20}
    there.script = lambda n, body: "[[8]]"
    again, _ = ask(there)
    assert again.unreadable == [] and again.failed == {} and len(there.requests) == 8


def test_an_item_that_never_gets_an_answer_is_named_too(server, ask):
    there = server(lambda n, body: error(500, "broken") if said(body) == 2 else "[[6]]")
    record, _ = ask(there, retries=1, concurrency=1)
    assert record.unreadable == ["2/1/a", "2/2/a"] and "HTTP 500: broken, asked 2 times" in record.failed["2/2/a"]


def test_an_endpoint_that_goes_down_is_left_alone_and_makes_no_record(server, ask, tmp_path):
    there = server(lambda n, body: "[[6]]" if n == 0 else error(429, "You exceeded your current quota"))
    with pytest.raises(JudgeError, match=r"HTTP 429: You exceeded.*; 1 new verdicts are kept, the same command asks"):
        ask(there, retries=0, concurrency=1)
    assert len(there.requests) == 5 and not list((tmp_path / "results/judged").glob("*.json"))
    there.script = lambda n, body: "[[6]]"
    assert ask(there)[0].scores[0]["n"] == 6 and len(there.requests) == 10


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        ({"error": {"message": "Rate limit", "code": 429}}, "HTTP 429: Rate limit, asked 2 times"),
        ({"error": {"message": "filtered", "code": "content_filter"}}, "HTTP 400: filtered"),
        ({"error": "overloaded"}, "HTTP 500: overloaded, asked 2 times"),
        ({**completion("x"), "choices": [{"index": 0, "message": {}, "error": {"message": "cut", "code": 502}}]}, "HTTP 502"),
        ({"choices": None}, "no chat completion"),
    ],
    ids=["429", "filter", "word", "choice", "nothing"],
)
def test_errors_inside_http_200(payload, expected, server, ask):
    there = server(lambda n, body: (200, payload, {}) if said(body) == 1 else "[[6]]")
    record, _ = ask(there, retries=1, concurrency=2)
    assert record.unreadable == ["1/1/a", "1/2/a"] and expected in record.failed["1/1/a"]


def test_a_key_that_is_refused_inside_http_200_stops(server, ask):
    there = server(lambda n, body: (200, {"error": {"message": "no", "code": "invalid_api_key"}}, {}))
    with pytest.raises(JudgeError, match="refuses the key"):
        ask(there, concurrency=1)
    assert len(there.requests) == 1


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        ("Half an emoji \ud83d. [[7]]", "Half an emoji \ufffd. [[7]]"),
        ("\u2028, \u2029 and \u0085. [[7]]", "\u2028, \u2029 and \u0085. [[7]]"),
        (
            [{"type": "reasoning", "text": "[[1]]"}, {"type": "text", "text": "Good \ud83d"}, {"text": "\ude00. [[7]]"}],
            "Good 😀. [[7]]",
        ),
        ([{"type": "output_text", "text": {"value": "[[7]]"}}], "[[7]]"),
        ("nul \x00 and \r\n[[7]]\r\n", "nul \x00 and \r\n[[7]]\r\n"),
    ],
    ids=["half", "separators", "parts", "value", "controls"],
)
def test_any_text_survives(content, kept, server, ask, tmp_path):
    there = server(lambda n, body: (200, completion(content), {}))
    record, _ = ask(there)
    assert record.scores[0]["mean"] == 7
    (file,) = (tmp_path / "results/judged").glob("*.jsonl")
    lines = [json.loads(line) for line in file.read_bytes().decode().split("\n")[:-1]]
    assert [line["verdict"] for line in lines] == [kept] * 6
    assert ask(there)[0] == record and len(there.requests) == 6


def test_answers_of_another_program_hold_any_text(tmp_path, server):
    chosen = source(synthetic=True)
    path = answer_file(tmp_path, load_questions(chosen, tmp_path), text="half \ud83d of \u2028 it")
    there = server()
    judge([path], chosen, settings(there), KEY, tmp_path, tmp_path)
    assert any("half \ufffd of \u2028 it" in user_text(request["body"]) for request in there.requests)


def slowly(n, body):
    """Several requests are under way at once."""
    time.sleep(0.15)
    return "[[6]]"


@pytest.mark.parametrize("kind", ["ctrl-c", "signal", "disk", "bug"])
def test_whatever_ends_it_nothing_more_is_asked_and_what_is_under_way_is_kept(kind, server, ask, tmp_path, monkeypatch):
    import vera.judge.grade as module

    there, real, calls = server(slowly), module.append_line, []
    monkeypatch.setattr(module, "GLANCE", 0.01)

    def append(path, line):
        calls.append(line)
        if kind == "disk" and len(calls) == 1:
            raise OSError(28, "No space left on device")
        real(path, line)
        if kind == "ctrl-c" and len(calls) == 1:
            raise KeyboardInterrupt
        if kind == "signal" and len(calls) == 1:
            signal.raise_signal(signal.SIGTERM)

    def progress(done, total):
        if kind == "bug":
            raise ZeroDivisionError

    monkeypatch.setattr(module, "append_line", append)
    chosen = source("mt_bench", synthetic=True)
    path = answer_file(tmp_path / "answers", load_questions(chosen, tmp_path))
    expected = {"ctrl-c": KeyboardInterrupt, "signal": interrupt.Interrupted, "disk": RecordError, "bug": ZeroDivisionError}[
        kind
    ]
    with pytest.raises(expected), interrupt.handled():
        judge([path], chosen, settings(there, concurrency=2), KEY, tmp_path / "results", tmp_path, on_progress=progress)
    asked = len(there.requests)
    assert asked <= 4 and len({line["item"] for line in verdict_lines(tmp_path)}) == asked
    monkeypatch.setattr(module, "append_line", real)
    record, _ = judge([path], chosen, settings(there), KEY, tmp_path / "results", tmp_path)
    assert record.scores[0]["n"] == 6 and len(there.requests) == 6 and record.cost["requests"] == 6


def test_another_rule_reads_the_kept_verdicts_again(server, ask):
    there = server(lambda n, body: "First [[9]], but no. Rating: [[6]]")
    record, path = ask(there)
    assert record.scores[0]["mean"] == 6 and record.judge["parse"] == "own"
    other, same = ask(there, parse="fastchat", counts_as="gpt-4")
    assert other.scores[0]["mean"] == 9 and same == path and len(there.requests) == 6
    assert other.judge["parse"] == "fastchat" and other.judge["counts_as"] == "gpt-4"
    assert ask(there)[0].scores == record.scores and len(there.requests) == 6


def test_a_record_of_the_answers_that_comes_later_is_taken_without_a_request_and_not_forgotten(server, tmp_path):
    chosen = source(synthetic=True)
    questions = load_questions(chosen, tmp_path)
    path = answer_file(tmp_path / "answers", questions)
    there = server()

    def graded():
        written = judge([path], chosen, settings(there), KEY, tmp_path / "results", tmp_path)[1]
        (answer,) = json.loads(written.read_text())["answers"]
        return answer["model"], answer["checkpoint"], answer["run"] and answer["run"]["seed"]

    assert graded() == (None, None, None)
    run = {"model": "llama_7b", "task": "alpaca", "method": "lora", "seed": 3, "cell_id": "c" * 64}
    found = {"schema": 1, "status": "done", "identity": "a" * 64, "model": "llama_7b", "checkpoint": "last"}
    found |= {"run": {**run, "follows_seed": [], "config": {}}, "adapter_sha256": None, "settings": {}, "cut": 0}
    found |= {"questions": described(chosen, questions), "shortened": 0, "cost": {}, "provenance": {}}
    write(path.with_suffix(".json"), Answers(**found))
    assert graded() == ("llama_7b", "last", 3)
    path.with_suffix(".json").unlink()
    assert graded() == ("llama_7b", "last", 3) and len(there.requests) == 6


def test_fastchats_way_is_one_choice():
    def composed(questions):
        values = resolve("judge", [f"questions={questions}", "judging=fastchat"])
        return checked(JudgeSettings, values["judge"], "judge")

    single, pair = composed("mt_bench"), composed("vicuna_bench")
    assert (single.parse, single.temperature, single.max_tokens, single.attempts) == ("fastchat", 0.0, 2048, 1)
    assert (pair.parse, pair.orders, pair.temperature, pair.max_tokens) == ("fastchat", "first", 0.2, 1024)
    changed = resolve("judge", ["judging=fastchat", "judge.temperature=0.5"])["judge"]
    assert checked(JudgeSettings, changed, "judge").temperature == 0.5


@pytest.mark.parametrize("key", ["temperature", "max_tokens", "seed"])
def test_a_key_beside_the_judges_is_refused(key):
    for word in (f"+{key}=1", f"++{key}=1", f"{key}=1"):
        with pytest.raises(
            ConfigError, match=f"^{key} is not a key of the configuration; top level has: cache_dir, data_root, judge"
        ):
            resolve("judge", [word])
    with pytest.raises(ConfigError, match=r"by_grading.attempts is not a key"):
        resolve("judge", ["judging=fastchat", "+by_grading.attempts=1"])
    assert resolve("judge", ["+mine=0.5", "judge.temperature=${mine}"])["judge"]["temperature"] == 0.5


def test_another_judge_makes_another_record(server, ask, tmp_path):
    there = server(lambda n, body: {"gpt-4": "[[6]]", "org/judge:2": "[[9]]"}[body["model"]])
    first, path = ask(there)
    text = path.read_text()
    second, other = ask(there, model="org/judge:2")
    assert other != path and path.read_text() == text and "org-judge-2" in other.name
    assert (first.scores[0]["mean"], second.scores[0]["mean"]) == (6, 9)
    assert ask(there, temperature=1.0)[1] not in (path, other)


def test_of_single_answers_an_order_decides_nothing(server, ask):
    asked = []
    there = server(lambda n, body: asked.append(n) or "[[6]]")
    (first, path), count = ask(there), len(asked)
    again, same = ask(there, orders="first", parse="fastchat")
    assert same == path and len(asked) == count and first.scores == again.scores


def test_references_that_no_question_needs_may_be_missing(tmp_path):
    (tmp_path / "question.jsonl").write_text(json.dumps({**GOOD, "category": "writing"}) + "\n")
    assert load_questions(source(data_dir=tmp_path), tmp_path).references == {}
    (tmp_path / "question.jsonl").write_text(json.dumps({**GOOD, "category": "math"}) + "\n")
    with pytest.raises(DataError, match="holds no reference_answer"):
        load_questions(source(data_dir=tmp_path), tmp_path)


def test_an_order_of_single_answers_is_refused_before_it_makes_another_judge():
    from vera.commands import judge as command

    for given in ("judge.orders=first", "++judge.orders=both"):
        with pytest.raises(
            ConfigError, match=r"judge\.orders is of pairs, and questions=mt_bench is graded one answer at a time"
        ):
            command._config(["a.jsonl"], ["questions=mt_bench", given])
    with pytest.raises(ConfigError, match="results_dir: it must be a folder, got ''"):
        command._config(["a.jsonl"], ["questions=mt_bench", "results_dir="])
    assert command._config(["a.jsonl", "b.jsonl"], ["questions=vicuna_bench", "judge.orders=first"])[1].orders == "first"
    assert command._config(["a.jsonl"], ["questions=mt_bench", "judging=fastchat"])[1].orders == "first"


def test_pairs_are_asked_in_both_orders_and_scored_by_file(server, ask):
    def script(n, body):
        five_first = user_text(body).index("five") < user_text(body).index("six")
        return "Scores: [[8, 3]]" if five_first else "Scores: [[5, 6]]"  # the first place earns something here

    there = server(script)
    record, path = ask(there, "vicuna_bench")
    assert len(there.requests) == 6 and [score["mean"] for score in record.scores] == [7, 4]
    assert [answer["name"] for answer in record.answers] == ["model", "other"] and "--vs--" in path.name
    one, _ = ask(there, "vicuna_bench", orders="first")
    assert [score["mean"] for score in one.scores] == [8, 3] and len(there.requests) == 9


def test_a_question_of_a_pair_that_is_read_in_one_order_alone_is_in_no_mean(server, ask, tmp_path):
    """The judge gives the first place 8 and the second 2, and sometimes says nothing of the other order."""

    def script(n, body):
        five_first = user_text(body).index("five") < user_text(body).index("six")
        return "Scores: [[8, 2]]" if five_first or said(body) not in silent else "Hm."

    silent, there = {1, 2}, server(script)
    record, path = ask(there, "vicuna_bench", attempts=1)
    assert [(score["mean"], score["n"]) for score in record.scores] == [(5, 2)] * 2
    assert record.unreadable == ["1/1/ba", "2/1/ba"] and record.alone == 2
    path.unlink()
    silent = {1, 2, 3}
    with pytest.raises(JudgeError, match="of no question the verdicts in both orders hold scores"):
        ask(there, "vicuna_bench", attempts=1, temperature=0.5)
    assert not list((tmp_path / "results/judged").glob("*.json"))
    silent = {1}
    one, _ = ask(there, "vicuna_bench", attempts=1, orders="first")
    assert [(score["mean"], score["n"]) for score in one.scores] == [(8, 3), (2, 3)] and one.alone == 0
    there.script = lambda n, body: "Hm." if said(body) == 1 else "Scores: [[6, 4]]"
    neither, _ = ask(there, "vicuna_bench", attempts=1, model="another")
    assert neither.alone == 0 and [(score["mean"], score["n"]) for score in neither.scores] == [(5, 4)] * 2
    there.script = lambda n, body: "Hm." if said(body) == 1 else "Rating: [[6]]"
    single, _ = ask(there, attempts=1)
    assert (single.alone, single.scores[0]["n"]) == (0, 4)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (lambda n, body: error(401, f"Incorrect API key provided: {KEY}"), "refuses the key in OPENAI_API_KEY (HTTP 401)"),
        (lambda n, body: error(403, "no"), "refuses the key in OPENAI_API_KEY (HTTP 403)"),
        (lambda n, body: error(404, f"no model gpt-4 for {KEY}"), "HTTP 404: no model gpt-4 for [key]"),
        (lambda n, body: error(500, f"{KEY} crashed"), "HTTP 500: [key] crashed"),
        (lambda n, body: (200, b"<html>login</html>", {"content-type": "text/html"}), "no chat completion"),
        (lambda n, body: (200, b"{nonsense", {}), "no chat completion"),
        (lambda n, body: (200, {"choices": []}, {}), "no chat completion"),
    ],
    ids=["401", "403", "404", "500", "html", "nonsense", "no choices"],
)
def test_an_endpoint_that_fails_is_one_line_without_the_key(script, words, server, ask, tmp_path):
    with pytest.raises(JudgeError) as caught:
        ask(server(script), retries=1)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert KEY not in str(caught.value) and KEY[-4:] not in str(caught.value)
    assert not list((tmp_path / "results/judged").glob("*.json"))


def test_an_endpoint_that_is_down_or_too_slow(server, ask):
    there = server()
    address = there.url
    there.close()
    with pytest.raises(JudgeError, match=r"at http://127.0.0.1:\d+/v1 cannot be reached"):
        ask(address, retries=0)

    def slow(n, body):
        time.sleep(0.5)
        return "[[5]]"

    with pytest.raises(JudgeError, match=r"did not answer within 0.1 s, asked 1 times"):
        ask(server(slow), timeout_seconds=0.1, retries=0, concurrency=1)


def test_the_key_is_sent_and_written_nowhere(server, ask, tmp_path):
    there = server(lambda n, body: f"Your key is {KEY}. [[5]]")
    ask(there)
    assert all(request["headers"]["authorization"] == f"Bearer {KEY}" for request in there.requests)
    files = [path for path in (tmp_path / "results").rglob("*") if path.is_file()]
    assert any(path.suffix == ".jsonl" for path in files)
    for path in files:
        assert KEY.encode() not in path.read_bytes(), path


def test_a_stand_in_for_a_key_leaves_verdicts_alone(server, tmp_path):
    chosen = source(synthetic=True)
    files = [answer_file(tmp_path, load_questions(chosen, tmp_path))]
    there = server(lambda n, body: "None is better. [[5]]")
    record, path = judge(files, chosen, settings(there), "5", tmp_path, tmp_path)
    assert record.scores[0]["mean"] == 5 and json.loads(path.with_suffix(".jsonl").read_text().splitlines()[0])["verdict"] == (
        "None is better. [[5]]"
    )


def test_the_command_line(script, server, tmp_path):
    def run(*arguments, **environment):
        environment = {"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "OPENAI_LOG": "debug", **environment}
        return script("judge.py", *arguments, f"results_dir={tmp_path / 'results'}", cwd=tmp_path, environment=environment)

    chosen = source("mt_bench", synthetic=True)
    path = answer_file(tmp_path, load_questions(chosen, tmp_path))
    there = server(lambda n, body: "[[8]]" if n != 2 else error(500, f"broken {KEY}"))
    base = [str(path), "questions.synthetic=true", f"judge.base_url={there.url}"]
    assert run("nope.jsonl").stderr == "error: nope.jsonl is no file\n"
    without = run(*base)
    assert without.returncode == 1 and without.stderr == (
        "error: set OPENAI_API_KEY to the endpoint's key (any word where the endpoint asks for none)\n"
    )
    odd = run(*base, OPENAI_API_KEY=f"{KEY}\x7f")
    assert odd.returncode == 1 and KEY not in odd.stderr and len(odd.stderr.splitlines()) == 1
    done = run(*base, OPENAI_API_KEY=f"{KEY}\n")
    assert done.returncode == 0, done.stderr
    assert "8.00 of 10  (n=6; turn 1 8.00, turn 2 8.00)" in done.stdout
    assert KEY not in done.stdout + done.stderr
    secret = run(*base[:2], "judge.base_url=http://me:hunter2@host/v1", OPENAI_API_KEY=KEY)
    assert secret.returncode == 1 and "hunter2" not in secret.stderr and len(secret.stderr.splitlines()) == 1
    unknown = run(*base, "judge.modl=x", OPENAI_API_KEY=KEY)
    assert unknown.returncode == 1 and "judge.modl" in unknown.stderr and len(unknown.stderr.splitlines()) == 1


def test_keys_that_cannot_be_sent(monkeypatch):
    for value in ("a b", "schlüssel"):
        monkeypatch.setenv("OPENAI_API_KEY", value)
        with pytest.raises(ConfigError) as caught:
            read_key(settings("http://x/v1"))
        assert value not in str(caught.value)


RATINGS = [
    ("Rating: [[7]]", 7),
    ("Fine. Rating: [[7.5]]", 7.5),
    ("**Rating:** [[7]]", 7),
    ("**Rating**: [[7]].", 7),
    ("Good.\n\n[[7]]/10", 7),
    ("Therefore, my final rating is [[9]]", 9),
    ("I would give this answer a score of [[8]].", 8),
    ("In R, lst[[2]] is right.\nRating: [[7]]", 7),
    ("```r\nRating: [[2]]\n```\nRating: [[7]]", 7),
    ("```\nRating: [[7]]\n```", 7),
    ("One\u2028two \u0085. Rating: [[7]]", 7),
    ("In R, lst[[2]] is right", None),
    ("It should use the list, e.g. [[2]]", None),
    ("```r\nx <- lst\n[[2]]\n```", None),
    ("The highest rating is [[10]]", None),
    ("On a scale from [[1]] to [[10]]", None),
    ("[[3]] or rather [[4]]", None),
    ("Rating: [[3]]\nOr rather:\nRating: [[4]]", None),
    ("Rating: [[7]]\nThe answer could be longer.", None),
    ("I cannot give this a rating of [[10]].", None),
    ("We would not go as far as a score of [[9]].", None),
    ("It is not an answer that I can give a score of [[9]].", None),
    ("I don’t think that it earns a rating of [[10]].", None),
    ("With a source we would have given a score of [[9]].", None),
    ("It is not complete, so I would give it a rating of [[4]].", 4),
    ("I can't find any errors, so I give it a rating of [[9]].", 9),
    ("While I cannot check every fact, I'd still give it a rating of [[8]].", 8),
    ("I would have to give it a rating of [[6]].", 6),
    ("I do not agree, and I would not give it a rating of [[9]].", None),
    ("It is not an answer that I would give a score of [[9]].", None),
    ("Rating: [[0]]", None),
    ("Rating: [[11]]", None),
    ("Rating: 7", None),
    ("[7]", None),
    ("", None),
]


@pytest.mark.parametrize(("verdict", "expected"), RATINGS)
def test_a_rating_is_read_at_the_end_and_never_guessed(verdict, expected):
    assert read_verdict(verdict, "stop", "rating") == (None if expected is None else (expected,))


PAIRS = [
    ("pair", "Both are fine.\nScores: [[8, 6]]", (8, 6)),
    ("pair", "Both are fine.\n[[8, 6]]", (8, 6)),
    ("pair", "I grade on a scale of (1, 10).\nAssistant A: 9, Assistant B: 3.", None),
    ("pair", "f(2, 5) is right", None),
    ("pair", "The matrix is [[1, 2]]", None),
    ("pair", "8 9\nBoth are fine", None),
    ("pair", "Scores: [[8, 12]]", None),
    ("pair", "Scores: [[8/10]]", None),
    ("pair", "Scores (A, B): [[8, 9]]", (8, 9)),
    ("pair", "Scores (a, b): [[8, 9]]", (8, 9)),
    ("pair", "Scores (B, A): [[8, 9]]", None),
    ("pair", "Scores (as a tuple of B, A): [[8, 9]]", None),
    ("pair", "Scores for B and A: [[8, 9]]", None),
    ("pair", "For B and A, scores: [[8, 9]]", None),
    ("pair", "I would give B and A scores of [[8, 9]]", None),
    ("pair", "**Scores (B, A):**\n[[8, 9]]", None),
    ("pair", "B is better than A, so my scores: [[8, 9]]", (8, 9)),
    ("pair", "B is better than A.\n[[8, 9]]", (8, 9)),
    ("pair", "Since B, a fuller answer, is better than A, here are my scores:\n[[8, 9]]", (8, 9)),
    ("pair", "2. Scores for the 2 assistants, turn 2: [[8, 9]]", (8, 9)),
    ("pair", "Scores for assistants 2 and 1: [[8, 9]]", None),
    ("pair", "Scores from 1 to 10 for B and A: [[8, 9]]", None),
    ("pair", "Scores for the second and the first answer:\n[[8, 9]]", None),
    ("pair", "Scores (b, a): [[8, 9]]", None),
    ("pair", "Scores for Assistant B: [[8, 9]]", None),
    ("first line", "8 6\nBoth are fine.", (8, 6)),
    ("first line", "\n 8.5, 6 \nx", (8.5, 6)),
    ("first line", "(8, 6)", None),
    ("first line", "Scores below.\n8 6", None),
    ("first line", "86", None),
    ("first line", "8 12", None),
    ("first line", "Both.\nScores: [[8, 6]]", None),
    ("tuple", "The first is wrong.\n(4, 9)", (4, 9)),
    ("tuple", "So the tuple is (9, 2).", (9, 2)),
    ("tuple", "Here are the scores of the 2 assistants:\n(9, 2)", (9, 2)),
    ("tuple", "Assistant 2 is right, Assistant 1 is not:\n(2, 9)", (2, 9)),
    ("tuple", "scores = (9, 2)\nThe first is right.", (9, 2)),
    ("tuple", "Final scores (Assistant 2, Assistant 1): (8, 9)", None),
    ("tuple", "Final scores (Assistant 1, Assistant 2), 1 to 10: (8, 9)", None),
    ("tuple", "Final scores (Assistant 1, Assistant 2): (8, 9)", (8, 9)),
    ("tuple", "Assistant 2 is right and Assistant 1 is not, so the tuple is (2, 9).", (2, 9)),
    ("tuple", "They meet in the point (3, 4)", None),
    ("tuple", "(9, 2) or (2, 9)", None),
    ("tuple", "8 9", None),
]


@pytest.mark.parametrize(("form", "verdict", "expected"), PAIRS)
def test_a_pair_is_read_in_the_form_that_was_asked_for(form, verdict, expected):
    assert read_verdict(verdict, None, form) == expected


def test_a_verdict_that_was_cut_is_unreadable():
    for finish in ("length", "content_filter", "max_tokens", "abort"):
        assert read_verdict("Rating: [[7]]", finish, "rating") is None
        assert read_verdict("8 9\nAssistant 1 is", finish, "first line") is None
    assert read_verdict("Rating: [[7]]", "eos_token", "rating") == (7,)


@pytest.mark.parametrize(
    ("form", "verdict", "expected"),
    [
        ("rating", "[[8]] at first, then [[5]]", (8,)),
        ("rating", "Rating: [7]", (7,)),
        ("rating", "Of [3] the [[7.]]", (7,)),
        ("rating", "lst[[2]] is right, but the", (2,)),
        ("rating", "seven", None),
        ("rating", "[[85]]", None),
        ("pair", "x [[8,6]] y [[1,2]]", (8, 6)),
        ("first line", "8 6\n", (8, 6)),
        ("first line", "8,6", (8, 6)),
        ("first line", "8, 6", None),  # two separators in a row make three words
        ("first line", "Hm.\n8 6", None),
        ("tuple", "9 2", (9, 2)),
        ("tuple", "(9, 2)", None),
    ],
)
def test_fastchats_rule(form, verdict, expected):
    assert read_verdict(verdict, "length", form, "fastchat") == expected


GOOD = {"question_id": 1, "category": "writing", "turns": ["a", "b"]}


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([GOOD, GOOD], "line 2: question_id 1 occurs twice"),
        ([GOOD, {**GOOD, "question_id": 2}, {**GOOD, "question_id": "1"}], "line 3: question_id 1 occurs twice"),
        ([{**GOOD, "turns": ["a"]}], "line 1: question 1 has 1 turns, not 2"),
        ([{**GOOD, "turns": ["a", " "]}], "line 1: question 1 has an empty turn"),
        ([{**GOOD, "turns": "ab"}], "line 1: turns of question 1 must be a list"),
        ([{**GOOD, "category": None}], "line 1: question 1 has no category"),
        ([{"turns": ["a", "b"]}], "line 1: question_id must be a number or a word"),
        (["{"], "line 1: not JSON"),
        (["[1]"], "line 1: not a JSON object"),
        ([], "no questions"),
    ],
)
def test_question_files_are_checked_by_line(lines, words, tmp_path):
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (tmp_path / "question.jsonl").write_text(text)
    with pytest.raises(DataError) as caught:
        load_questions(source(data_dir=tmp_path), tmp_path)
    assert words in str(caught.value) and "question.jsonl" in str(caught.value)


def test_answers_that_do_not_fit_the_questions(tmp_path, server):
    chosen = source(synthetic=True)
    questions = load_questions(chosen, tmp_path)
    path = answer_file(tmp_path, questions)
    rows = path.read_text().splitlines()
    path.write_text("\n".join(rows[:1]) + "\n")
    with pytest.raises(DataError, match="has no answer to question 2 and 1 more"):
        read_answers(path, questions, 2)
    path.write_text("\n".join([*rows, rows[0].replace(": 1,", ': "1",', 1)]) + "\n")
    with pytest.raises(DataError, match="line 4: question_id 1 occurs twice"):
        read_answers(path, questions, 2)
    with pytest.raises(DataError, match="cannot be read"):
        read_answers(tmp_path / "none.jsonl", questions, 2)
    pair = source("vicuna_bench", synthetic=True)
    with pytest.raises(ConfigError, match="graded pairwise: give 2 answer files"):
        judge([path], pair, settings("http://x/v1"), KEY, tmp_path, tmp_path)
    same = answer_file(tmp_path, load_questions(pair, tmp_path))
    with pytest.raises(ConfigError, match="are the same answers; a pair is of two"):
        judge([same, same], pair, settings("http://x/v1"), KEY, tmp_path, tmp_path)


def test_files_without_a_folder_are_fetched_once_and_checked(tmp_path):
    origin = tmp_path / "origin.jsonl"
    origin.write_text(json.dumps(GOOD) + "\n")
    pinned = source().files.questions.model_copy(update={"url": origin.as_uri()})
    with pytest.raises(DataError, match="is not the expected file: SHA-256"):
        fetch(pinned, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    pinned = pinned.model_copy(update={"sha256": hashlib.sha256(origin.read_bytes()).hexdigest()})
    assert fetch(pinned, tmp_path / "cache").official
    origin.unlink()
    assert fetch(pinned, tmp_path / "cache").data == (json.dumps(GOOD) + "\n").encode()
    with pytest.raises(DataError, match=r"question\.jsonl with questions.data_dir"):
        load_questions(source(), tmp_path)
    with pytest.raises(DataError, match=r"holds no question\.jsonl"):
        load_questions(source(data_dir=tmp_path), tmp_path)


def test_verdicts_that_somebody_edited_are_refused(server, ask, tmp_path):
    there = server()
    ask(there)
    (path,) = (tmp_path / "results/judged").glob("*.jsonl")
    before = path.read_bytes()
    path.write_bytes(b"garbage\n" + before)
    with pytest.raises(RecordError, match="line 1: not a verdict"):
        ask(there)
    path.write_bytes(b"\xff\n" + before)
    with pytest.raises(RecordError, match="not UTF-8 at byte 0"):
        ask(there)


@pytest.fixture(scope="session")
def shared_judge():
    folder = ROOT.parent / "shared" / "data"
    if not (folder / "mt_bench").is_dir():
        pytest.skip("no MT-Bench files beside the project")
    return folder


def test_the_official_files_and_prompts(shared_judge, tmp_path):
    chosen = source(data_dir=shared_judge / "mt_bench")
    questions = load_questions(chosen, tmp_path)
    assert len(questions.questions) == 80 and questions.official and len(questions.references) == 30
    prompts = read_prompts(in_folder(chosen.files.prompts["single"], shared_judge / "mt_bench"), "single")
    assert prompts.source == "official"
    answers = [read_answers(answer_file(tmp_path, questions), questions, 2)]
    wanted = items(questions, chosen, "both")
    assert len(wanted) == 160
    for item in wanted:
        asked = messages(item, prompts, chosen, questions, answers)
        assert (
            item.question.turns[item.turn - 1] in asked[-1]["content"]
            and "[[rating]]" in asked[0]["content"] + asked[-1]["content"]
        )
        reference = "Reference Answer|>" in asked[-1]["content"] or "Reference Answer]" in asked[-1]["content"]
        assert reference == (item.question.id in questions.references)
    vicuna = load_questions(source("vicuna_bench", data_dir=shared_judge / "vicuna_bench"), tmp_path)
    assert len(vicuna.questions) == 80 and vicuna.official


def test_vicuna_eval_one_answer_at_a_time(server, ask):
    there = server()
    record, _ = ask(there, "vicuna_bench", grading="single")
    assert len(there.requests) == 3 and record.scores[0]["by_turn"] == {"1": 7}


def test_without_the_official_wording_nothing_is_asked_unless_ours_is_chosen(tmp_path, server):
    (tmp_path / "question.jsonl").write_text(json.dumps({**GOOD, "turns": ["a"]}) + "\n")
    chosen = source("vicuna_bench", data_dir=tmp_path)
    questions = load_questions(chosen, tmp_path)
    files = [answer_file(tmp_path, questions, name, name) for name in ("one", "two")]
    notes = []
    there = server(lambda n, body: "Scores: [[3, 4]]")

    def grade(**changes):
        return judge(files, chosen, settings(there, **changes), KEY, tmp_path, tmp_path / "cache", on_note=notes.append)[0]

    for choice in ("auto", "official"):
        with pytest.raises(DataError, match=r"wording is missing: .*HF_HUB_OFFLINE=1; put it into .*judge\.prompts=own"):
            grade(prompts=choice)
    assert not there.requests
    record = grade(prompts="own")
    assert record.judge["prompts"] == "own" and not record.questions.official
    assert notes == ["not official: the questions and the judge's wording; Tables 4 and 13 do not show the scores"]
    one, there.script = chosen.model_copy(update={"grading": "single"}), lambda n, body: "Rating: [[5]]"
    judge(files[:1], one, settings(there, prompts="own"), KEY, tmp_path, tmp_path / "cache", on_note=notes.append)
    assert "wording and the way of grading; Tables 4 and 13 do not" in notes[-1]


def test_a_file_of_prompts_that_is_not_the_official_one(server, tmp_path, ask):
    chosen = source("vicuna_bench", data_dir=tmp_path)
    row = {"system_prompt": "", "prompt_template": "{question}|{answer_1}|{answer_2}|{how}", "defaults": {"how": "grade {x}"}}
    rows = [{**row, "category": category} for category in ("general", "coding", "math")]
    (tmp_path / "prompt.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = read_prompts(in_folder(chosen.files.prompts["pairwise"], tmp_path), "pairwise")
    assert prompts.source == "other"
    asked = prompts.choose("pairwise", "roleplay", 1, False).messages({"question": "q", "answer_1": "{a}", "answer_2": "b"})
    assert asked == [{"role": "user", "content": "q|{a}|b|grade {x}"}]
    (tmp_path / "prompt.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    with pytest.raises(DataError, match="no judge prompt for math"):
        read_prompts(in_folder(chosen.files.prompts["pairwise"], tmp_path), "pairwise")
    rows[2]["prompt_template"] = "{question} {nonsense}"
    (tmp_path / "prompt.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="judge prompt math has a field that is not known"):
        read_prompts(in_folder(chosen.files.prompts["pairwise"], tmp_path), "pairwise")


def test_a_path_on_the_judge_s_command_line_is_read_as_a_path(monkeypatch):
    from vera.commands import judge as command

    seen = []
    monkeypatch.setattr(command, "_groups", lambda files, overrides: seen.extend(overrides) or [])
    monkeypatch.setattr("sys.argv", ["judge.py", "a.jsonl", "questions.data_dir=~/mt bench", "judge.model=x"])
    assert command.main() == 0
    assert seen == [f"questions.data_dir='{os.path.expanduser('~')}/mt bench'", "judge.model=x"]
