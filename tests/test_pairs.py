"""Two deployments in pairs, on a card that is not there: the blocks, what they show, and what may go wrong."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from fakes.simulated_study import study_plan

from orchestrator.campaign import Campaign
from orchestrator.cli import main
from orchestrator.commands.display import Quiet
from orchestrator.errors import StackError
from orchestrator.journal import Journal, read_events, read_records
from orchestrator.judge.pairs import blocks_in_words
from orchestrator.launch.running import Server
from orchestrator.records import AnyEvent, CellFinished, CellStarted, LevelCommitted, ServerFailure, Turn
from orchestrator.simulation import Simulation, VirtualServer
from reports.exports.tables import level_rows, request_rows
from reports.html import write_report
from reports.pairs import PairsResult
from reports.result import write_result
from reports.run import read_run
from stacks.base import Deployment, Stack

PLAN = """
title = "a against b"
seed = 3
[model]
id = "meta-llama/Llama-3.1-8B-Instruct"
context_tokens = 4096
[slo]
ttft_ms = 1500
tpot_ms = 60
[defaults]
launch = "simulated"
card = "RTX-4090-24GB"
[[deployment]]
name = "a"
stack = "vllm"
[[deployment]]
name = "b"
stack = "vllm"
[[workload]]
name = "chat"
prompt_tokens = "lognormal:200:150"
output_tokens = "lognormal:40:20"
levels = [6]
[ramp]
requests = 40
requests_per_user = 1
min_seconds = 0
[[compare]]
a = "a"
b = "b"
workload = "chat"
pairs = 4
requests = 200
"""
ID = "a--b--chat"
SLOWER = 1.1
"""A step of B takes so much longer, so that a closed loop makes 1 / SLOWER of the tokens."""


class Card(Simulation):
    """A card on which something happens to the servers of a comparison."""

    def __init__(self, *, slower: Callable[[str, float], float] = lambda *_: 1.0, fails: str = "") -> None:
        """`slower`: by deployment and clock (s). `fails`: the turns that do not come up, ``2b 3a``."""
        super().__init__(3)
        self.slower = slower
        self.fails = {(int(word[:-1]), word[-1]) for word in fails.split()}
        self.turn: Turn | None = None

    @contextlib.asynccontextmanager
    async def open_server(self, stack: Stack, deployment: Deployment, **more: Any) -> AsyncIterator[Server]:
        async with super().open_server(stack, deployment, **more) as server:
            if self.turn is not None and (self.turn.pair, self.turn.side) in self.fails:
                raise StackError("The port is taken.", failure_class="port-taken")
            assert isinstance(server, VirtualServer)
            server.engine._slowdown = lambda now_s: self.slower(deployment.name, now_s)
            yield server


class Told(Quiet):
    """Tells the card which turn comes, and stops after so many levels of pairs."""

    def __init__(self, card: Card, stops_after: int | None = None) -> None:
        self.card = card
        self.left = stops_after

    def cell_started(self, cell: object, attempt: int, turn: Turn | None = None) -> None:
        self.card.turn = turn

    def level_committed(self, cell: object, commit: LevelCommitted) -> None:
        if self.left is not None and commit.run.spec.purpose == "pair":
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt


def run(root: Path, card: Card | None = None, text: str = PLAN) -> PairsResult:
    plan, card = study_plan(text), card or Card()
    with Journal.create(root, plan.text) as journal:
        assert asyncio.run(Campaign(plan, journal, Told(card), site=card).run()) == []
    (found,) = write_result(root).comparisons
    return found


def words(found: PairsResult) -> dict[str, str]:
    return {claim.metric: claim.word for claim in found.claims}


def turns(events: list[AnyEvent]) -> tuple[Turn, ...]:
    return tuple(e.turn for e in events if isinstance(e, CellStarted) and e.cell == ID and e.turn is not None)


def pair_commits(events: list[AnyEvent]) -> list[LevelCommitted]:
    own = (event for event in events if isinstance(event, LevelCommitted) and event.cell == ID)
    return [event for event in own if event.run.spec.purpose == "pair"]


@pytest.fixture(scope="module")
def slower_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs") / "slower"
    run(root, Card(slower=lambda name, _: SLOWER if name == "b" else 1.0))
    return root


@pytest.fixture(scope="module")
def slower(slower_run: Path) -> PairsResult:
    (found,) = write_result(slower_run).comparisons
    return found


# --- what is measured -------------------------------------------------------------------------------------------


def test_every_turn_has_a_server_of_its_own_in_the_planned_order(slower_run: Path, slower: PairsResult) -> None:
    events = read_events(slower_run)
    assert turns(events) == slower.asked.order
    assert blocks_in_words(turns(events)) == slower.order in ("ABBA BAAB", "BAAB ABBA")
    commits = pair_commits(events)
    assert [commit.attempt for commit in commits] == list(range(1, 9))
    assert [event.outcome for event in events if isinstance(event, CellFinished)] == ["measured"] * 3
    assert (slower.outcome, slower.concurrency, len(slower.counted)) == ("measured", 6, 4)


def lengths(root: Path, commit: LevelCommitted) -> list[tuple[int, int]]:
    """Of the measured requests, in issue order."""
    records = sorted(read_records(root, commit), key=lambda record: record.seq)
    return [(record.asked_in, record.asked_out) for record in records if record.phase == "measured"]


def test_both_sides_of_a_pair_are_asked_the_same_in_the_same_order(slower_run: Path) -> None:
    events = read_events(slower_run)
    by_pair: dict[int, list[LevelCommitted]] = {}
    for turn, commit in zip(turns(events), pair_commits(events), strict=True):
        by_pair.setdefault(turn.pair, []).append(commit)
    lists = []
    for one, other in by_pair.values():
        assert one.run.spec == other.run.spec
        assert one.workload_sha256 == other.workload_sha256
        asked = [lengths(slower_run, commit) for commit in (one, other)]
        assert len(asked[0]) == 200
        assert asked[0] == asked[1]
        lists.append(tuple(asked[0]))
    assert len(set(lists)) == 4, "every pair has a list of its own"


def test_a_sentinel_stands_before_every_level_and_after_the_last_of_each_side(slower_run: Path) -> None:
    own = [e for e in read_events(slower_run) if isinstance(e, LevelCommitted) and e.cell == ID]
    by_attempt: dict[int, list[str]] = {}
    for commit in own:
        by_attempt.setdefault(commit.attempt, []).append(commit.run.spec.purpose)
    assert [by_attempt[n] for n in range(1, 9)] == [["sentinel", "pair"]] * 6 + [["sentinel", "pair", "sentinel"]] * 2
    seeds = {(c.attempt, c.run.spec.seed) for c in own if c.run.spec.purpose == "sentinel"}
    assert len(seeds) == 10, "no server is asked a prompt twice"


def test_the_search_knows_nothing_of_it(slower_run: Path) -> None:
    found = write_result(slower_run)
    assert [cell.asked.cell for cell in found.cells] == ["a--chat", "b--chat"]
    assert [[level.purpose for level in cell.levels] for cell in found.cells] == [["ladder"], ["ladder"]]
    assert [len(cell.servers) for cell in found.cells] == [1, 1]


# --- what it shows ----------------------------------------------------------------------------------------------


def test_the_interval_holds_what_is_known_of_the_slower_side(slower: PairsResult) -> None:
    throughput = slower.claims[0]
    assert (throughput.metric, throughput.pairs) == ("Output throughput", 4)
    assert throughput.lower is not None
    assert throughput.upper is not None
    assert throughput.lower < 1 / SLOWER < throughput.upper
    assert throughput.upper - throughput.lower < 0.06
    assert throughput.word == "worse"
    assert slower.withheld == ()


def test_a_against_a_is_no_different(tmp_path: Path) -> None:
    found = run(tmp_path / "run")
    assert len(found.counted) == 4
    assert words(found)["Output throughput"] == "no different"
    assert words(found)["TTFT p95"] in ("no different", "not decided")


def test_a_drift_leaves_the_ratio_and_takes_the_word(tmp_path: Path) -> None:
    found = run(tmp_path / "run", Card(slower=lambda name, now_s: 1 + now_s / 2000))
    assert len(found.counted) == 4
    throughput = found.claims[0]
    assert throughput.lower is not None
    assert throughput.upper is not None
    assert throughput.lower < 1 < throughput.upper, "blocks take out a drift that goes on evenly"
    assert throughput.word == "not decided"
    assert throughput.p_adjusted is None
    assert found.withheld == ("The machine drifted: sentinels of a and b moved by more than 3 % from the first.",)


# --- what goes wrong --------------------------------------------------------------------------------------------


def test_a_side_that_does_not_come_up_makes_its_pair_void_and_no_other(tmp_path: Path) -> None:
    found = run(tmp_path / "run", Card(fails="2b"))
    assert [bool(pair.void) for pair in found.pairs] == [False, True, False, False]
    assert found.pairs[1].void == "B could not be measured (port-taken): The port is taken."
    assert (found.outcome, len(found.counted), found.claims[0].pairs) == ("measured", 3, 3)
    events = read_events(tmp_path / "run")
    assert len(turns(events)) in (7, 8), "the other side of a void pair is not measured any more"
    assert sum(turn.pair == 2 and turn.side == "b" for turn in turns(events)) == 1


def test_a_side_that_fails_twice_in_a_row_ends_it_and_the_pairs_before_it_count(tmp_path: Path) -> None:
    found = run(tmp_path / "run", Card(fails="3b 4b"))
    assert (found.outcome, len(found.counted)) == ("failed", 2)
    assert "twice in a row" in found.note
    assert [bool(pair.void) for pair in found.pairs] == [False, False, True, True]
    (ended,) = [e for e in read_events(tmp_path / "run") if isinstance(e, CellFinished) and e.cell == ID]
    assert ended.failure is not None
    assert ended.failure.failure_class == "port-taken"
    assert found.claims[0].pairs == 2


class DiesAtWork(Card):
    """The server of a turn dies during its level."""

    @contextlib.asynccontextmanager
    async def open_server(self, stack: Stack, deployment: Deployment, **more: Any) -> AsyncIterator[Server]:
        async with super().open_server(stack, deployment, **more) as server:
            if self.turn == Turn(pair=1, side="a"):
                dead = asyncio.get_running_loop().create_future()
                dead.set_result(ServerFailure(failure_class="server-died", message="It is gone."))
                server.died = lambda: dead  # type: ignore[assignment, method-assign, return-value]
            yield server


def test_a_side_that_dies_makes_its_pair_void(tmp_path: Path) -> None:
    found = run(tmp_path / "run", DiesAtWork())
    assert found.pairs[0].void == "A could not be measured (server-died): It is gone."
    assert len(found.counted) == 3
    assert found.outcome == "measured"


@pytest.mark.parametrize("stops_after", [3, 8])
def test_it_goes_on_in_the_middle_of_a_block_and_measures_nothing_twice(
    slower_run: Path, slower: PairsResult, tmp_path: Path, stops_after: int
) -> None:
    plan, root = study_plan(PLAN), tmp_path / "run"
    card = Card(slower=lambda name, _: SLOWER if name == "b" else 1.0)
    with Journal.create(root, plan.text) as journal, pytest.raises(KeyboardInterrupt):
        asyncio.run(Campaign(plan, journal, Told(card, stops_after), site=card).run())
    before = pair_commits(read_events(root))
    assert len(before) == stops_after
    with Journal.resume(root) as journal:
        card.passes(max(event.at_ns for event in journal.events))
        assert asyncio.run(Campaign(plan, journal, Told(card), site=card).run()) == []
    after = pair_commits(read_events(root))
    assert after[:stops_after] == before
    assert [c.run.spec for c in after] == [c.run.spec for c in pair_commits(read_events(slower_run))]
    (found,) = write_result(root).comparisons
    assert len(found.counted) == 4
    assert [(p.a and p.a.list_sha256) for p in found.pairs] == [(p.a and p.a.list_sha256) for p in slower.pairs]


def test_a_budget_cuts_between_pairs_and_says_so(tmp_path: Path) -> None:
    found = run(tmp_path / "run", text=PLAN + "[budget]\nminutes = 9\n")
    assert found.outcome == "cut"
    assert found.note.startswith("the time budget has no room for pair ")
    assert 0 < len(found.counted) < 4
    assert [pair.void for pair in found.pairs if pair.void] == ["not measured"] * (4 - len(found.counted))


def test_where_a_side_holds_nothing_a_concurrency_must_be_named(tmp_path: Path) -> None:
    card = Card(slower=lambda name, _: 20.0 if name == "b" else 1.0)
    found = run(tmp_path / "run", card)
    assert (found.outcome, found.concurrency, found.counted) == ("failed", None, ())
    assert found.note == "b held no level, so there is none to compare at; name a concurrency under [[compare]]"
    named = run(tmp_path / "named", card, PLAN + "concurrency = 2\n")
    assert (named.outcome, named.concurrency, len(named.counted)) == ("measured", 2, 4)
    assert words(named)["Output throughput"] == "worse"


def changed(run: Path, to: Path, change: Callable[[dict[str, Any]], None]) -> PairsResult:
    """The comparison of a run whose journal lines were changed."""
    shutil.copytree(run, to)
    lines = [json.loads(line) for line in (to / "journal.jsonl").read_text().splitlines()]
    for line in lines:
        change(line)
    (to / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (found,) = write_result(to).comparisons
    return found


def is_pair_of(line: dict[str, Any], attempts: set[int]) -> bool:
    committed = line["event"] == "level-committed" and line["cell"] == ID
    return committed and line["attempt"] in attempts and line["run"]["spec"]["purpose"] == "pair"


def test_an_invalid_level_makes_its_pair_void(slower_run: Path, slower: PairsResult, tmp_path: Path) -> None:
    def change(line: dict[str, Any]) -> None:
        if is_pair_of(line, {1}):
            line["verdict"] |= {"valid": False, "invalid": ["The client was too slow."]}

    found = changed(slower_run, tmp_path / "run", change)
    side = slower.asked.order[0].side.upper()
    assert [pair.void for pair in found.pairs] == [f"{side} is INVALID: The client was too slow.", "", "", ""]
    assert found.claims[0].pairs == 3
    assert found.pairs[0].a is not None, "it is shown all the same"


def test_a_break_on_one_side_makes_its_pair_void(slower_run: Path, slower: PairsResult, tmp_path: Path) -> None:
    def change(line: dict[str, Any]) -> None:
        if is_pair_of(line, {8}):
            line["verdict"] |= {"verdict": "FAIL", "hard_break": "hang"}

    found = changed(slower_run, tmp_path / "run", change)
    assert found.pairs[3].void == f"{slower.asked.order[-1].side.upper()} broke (hang)"
    assert len(found.counted) == 3


def test_nothing_is_claimed_where_a_side_decides_how_long_its_answers_are(slower_run: Path, tmp_path: Path) -> None:
    def change(line: dict[str, Any]) -> None:
        for cell in line.get("asked", {}).get("cells", ()):
            if cell["deployment"] == "b":
                cell["lengths_forced"] = False

    found = changed(slower_run, tmp_path / "run", change)
    (why,) = found.withheld
    assert why.startswith("How long an answer is, b decided: ")
    assert [claim.word for claim in found.claims[:2]] == ["not decided"] * 2
    assert found.claims[0].why == why
    assert found.claims[0].lower is not None


def test_nothing_is_claimed_where_a_prefix_cache_helped_one_side(slower_run: Path, tmp_path: Path) -> None:
    def change(line: dict[str, Any]) -> None:
        if is_pair_of(line, {1}):
            line["stats"]["cached_tokens"] = 500

    found = changed(slower_run, tmp_path / "run", change)
    assert found.withheld == ("Prompts were found in a prefix cache on one side only.",)
    assert found.claims[0].word == "not decided"


# --- what is told -----------------------------------------------------------------------------------------------


def test_the_report_has_a_section_of_it(slower_run: Path, slower: PairsResult) -> None:
    page = write_report(slower_run, slower_run / "page.html").read_text()
    section = page[page.index('<section id="versus"') :]
    section = section[: section.index("</section>")]
    assert ">b against a <" in section
    assert f"4 of 4 pairs at 6 users count, in the order {slower.order}." in " ".join(
        section.replace("\u00a0", " ").split()
    )
    assert section.count("<td>yes</td>") == 4 + 10
    (slower_run / "page.html").unlink()


def test_a_journal_that_names_a_cell_that_is_not_there_is_shown_and_trusted_with_nothing(
    slower_run: Path, tmp_path: Path
) -> None:
    def change(line: dict[str, Any]) -> None:
        for pairs in line.get("asked", {}).get("comparisons", ()):
            pairs["b"] = "<script>alert(1)</script>"

    found = changed(slower_run, tmp_path / "run", change)
    assert (found.b, found.claims[2].b.value) == ("<script>alert(1)</script>", None)
    page = write_report(tmp_path / "run").read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt; against a" in page
    assert "<script>alert" not in page


def test_it_is_printed_by_compare_and_show(slower_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told(*words: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main([*words])
        assert ended.value.code == 0
        return capsys.readouterr().out

    out = told("compare", str(slower_run))
    assert "chat: B = b against A = a" in out
    assert "4 of 4 pairs at 6 users count" in out
    assert "worse         4 pairs tell them apart" in out
    (found,) = json.loads(told("compare", str(slower_run), "--json"))
    assert found["claims"][0]["word"] == "worse"
    assert "In pairs, chat: b against a:" in told("show", str(slower_run))


def test_two_run_options_do_not_belong_to_one_run(slower_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["compare", str(slower_run), "--a", "a"])
    assert ended.value.code == 2
    assert "belong to two runs" in capsys.readouterr().err


def test_its_levels_and_requests_are_exported(slower_run: Path) -> None:
    rows = [row for row in level_rows(write_result(slower_run)) if row["cell"] == ID]
    assert [row["deployment"] for row in rows] == ["a", "b"] * 4
    assert {row["purpose"] for row in rows} == {"pair"}
    requests = [row for row in request_rows(read_run(slower_run)) if row["cell"] == ID and row["phase"] == "measured"]
    assert len(requests) == 8 * 200 + 10 * 30
