"""Runs side by side and the gate: what is refused, what intervals decide, what stays open."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from fakes.run_directory import FakeCell, asked_cell, build_run

from orchestrator.errors import JournalError
from orchestrator.judge.claims import Claim
from orchestrator.judge.search import SearchRules
from orchestrator.records import Slo
from reports.comparison import compare
from reports.gate import gate
from reports.html import render_comparison
from reports.result import Result, result
from reports.run import read_run

SEARCH = SearchRules(start=2, maximum=16, confirm=1, precision=0.2)
FOUR_RUNS = SearchRules(start=4, maximum=4, confirm=3)
"""One level, held and confirmed three times: four pairs."""


def cell(
    name: str = "vllm", slower: float = 1.0, workload: str = "chat", rules: SearchRules = FOUR_RUNS, **more: object
) -> FakeCell:
    return FakeCell(
        asked_cell(name, workload, **more),
        rules=rules,
        ttft_ms=lambda c: (60 + 30 * c) * slower,
        tpot_ms=lambda c: (9 + 1.9 * c) * slower,
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Result]:
    def make(*cells: FakeCell, slo: Slo | None = None, host: dict[str, str | float | None] | None = None) -> Result:
        root = tmp_path_factory.mktemp("runs") / "run"
        return result(read_run(build_run(root, cells, slo=slo, host=host)))

    return make


@pytest.fixture(scope="module")
def base(made: Callable[..., Result]) -> Result:
    return made(cell())


def claims(a: Result, b: Result) -> dict[str, Claim]:
    (one,) = compare(a, b).cells
    return {claim.metric: claim for claim in one.claims}


def test_a_run_is_no_different_from_itself(base: Result) -> None:
    (one,) = compare(base, base).cells
    assert one.reference == base.cells[0].verdict.c_ok
    throughput, ttft, holds = one.claims
    assert throughput.word == ttft.word == "no different"
    assert (throughput.ratio, throughput.lower, throughput.upper) == (1.0, 1.0, 1.0)
    assert throughput.pairs == 4
    assert holds.word == "not decided"
    assert one.differs == ()


def test_a_slower_stack_is_worse_with_an_interval_and_an_adjusted_p(base: Result, made: Callable[..., Result]) -> None:
    found = claims(base, made(cell(slower=1.3)))
    throughput, ttft = found["Output throughput"], found["TTFT p95"]
    assert (throughput.word, ttft.word) == ("worse", "worse")
    assert throughput.lower is not None
    assert throughput.upper is not None
    assert throughput.lower < throughput.ratio < throughput.upper < 1  # type: ignore[operator]
    assert ttft.ratio == pytest.approx(1.3, rel=0.02)
    assert throughput.p is not None
    assert throughput.p_adjusted is not None
    assert throughput.p <= throughput.p_adjusted < 0.05
    assert found["Holds"].word == "not decided"


def test_better_is_the_other_way_round(base: Result, made: Callable[..., Result]) -> None:
    found = claims(base, made(cell(slower=0.5)))
    assert {found[name].word for name in ("Output throughput", "TTFT p95")} == {"better"}


def test_what_holds_is_told_apart_by_brackets_that_do_not_overlap(made: Callable[..., Result]) -> None:
    fast, slow = made(cell(slower=0.5, rules=SEARCH)), made(cell(rules=SEARCH))
    assert claims(slow, fast)["Holds"].word == "better"
    assert claims(slow, fast)["Holds"].why == "B held 16 users, and A broke at 12"
    assert claims(fast, slow)["Holds"].word == "worse"
    assert claims(slow, slow)["Holds"].word == "not decided"


def test_one_pair_is_decided_by_intervals_within_the_runs_alone(made: Callable[..., Result]) -> None:
    def once(slower: float) -> Result:
        return made(cell(slower=slower, rules=SearchRules(levels=(4,))))

    near = claims(once(1.0), once(1.01))["Output throughput"]
    assert (near.pairs, near.lower, near.p, near.word) == (1, None, None, "not decided")
    far = claims(once(1.0), once(2.0))["Output throughput"]
    assert far.word == "worse"
    assert "one pair" in far.why


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"slo": Slo(ttft_ms=500.0, tpot_ms=60.0)}, "limits"),
        ({"more": {"context_tokens": 4096}}, "limits"),
        ({"more": {"lengths_forced": False}}, "lengths"),
        ({"more": {"mean_output_tokens": 99.0}}, "lengths"),
        ({"host": {"cpu_model": "Another CPU"}}, "machine"),
        ({"host": {"cpu_model": "Example CPU 3000", "cpu_cores": 8.0, "gpu:1": "H100"}}, "machine"),
    ],
)
def test_what_was_not_asked_on_the_same_terms_is_refused_and_named(
    base: Result, made: Callable[..., Result], change: dict[str, object], named: str
) -> None:
    other = made(cell(**change.get("more", {})), slo=change.get("slo"), host=change.get("host"))  # type: ignore[arg-type]
    with pytest.raises(JournalError, match=f"{named} differs?"):
        compare(base, other)


def changed(found: Result, **level: object) -> Result:
    """The same run with every level changed."""
    levels = tuple(msgspec.structs.replace(one, **level) for one in found.cells[0].levels)
    return msgspec.structs.replace(found, cells=(msgspec.structs.replace(found.cells[0], levels=levels),))


def test_other_requests_token_sources_and_caches_are_refused(base: Result) -> None:
    with pytest.raises(JournalError, match="workload hash differs"):
        compare(base, changed(base, list_sha256="0" * 64), under_test=["workload"])
    with pytest.raises(JournalError, match=r"token source differs.*usage against token_ids"):
        compare(base, changed(base, tokens_from=("token_ids",)))
    stats = msgspec.structs.replace(base.cells[0].levels[0].stats, cached_tokens=100)
    with pytest.raises(JournalError, match="cache state differs"):
        compare(base, changed(base, stats=stats))


def test_the_difference_under_test_is_named_and_allowed(base: Result, made: Callable[..., Result]) -> None:
    other = made(cell(), host={"cpu_model": "Another CPU"})
    found = compare(base, other, under_test=["machine"])
    assert any("Another CPU" in text for text in found.cells[0].differs)
    newer = msgspec.structs.replace(base, loadproof_version="9.9")
    with pytest.raises(JournalError, match=r"version of the load generator differs.*0\.1\.0 against 9\.9"):
        compare(base, newer)


def test_two_deployments_of_one_run(made: Callable[..., Result]) -> None:
    both = made(cell("vllm", rules=SEARCH), cell("tgi", 1.4, rules=SEARCH, stack="tgi"))
    (one,) = compare(both, both, name_a="vllm", name_b="tgi").cells
    assert (one.a, one.b) == ("vllm", "tgi")
    assert "stack: llamacpp against tgi" in one.differs
    with pytest.raises(JournalError, match="no deployment 'sglang'"):
        compare(both, both, name_a="sglang")
    page = render_comparison(both, both, compare(both, both, name_a="vllm", name_b="tgi"))
    assert "B: tgi" in page
    assert page.count('class="chart levels"') == 4


def test_runs_without_a_cell_in_common(base: Result, made: Callable[..., Result]) -> None:
    with pytest.raises(JournalError, match="no cell in common"):
        compare(base, made(cell(workload="rag")))


def test_nothing_is_lost_on_the_way_to_json(base: Result) -> None:
    found = compare(base, base)
    assert msgspec.json.decode(msgspec.json.encode(found), type=type(found)) == found
    assert "NaN" not in msgspec.json.encode(found).decode()


# --- the gate ---------------------------------------------------------------------------------------------------


def test_the_gate_takes_the_worst_cell(base: Result, failures: Path, interrupted: Path) -> None:
    assert gate(base).word == "PROVISIONAL"
    assert gate(result(read_run(failures))).word == "REFUSED"
    found = gate(result(read_run(interrupted)))
    assert [one.word for one in found.cells] == ["PROVISIONAL", "PROVISIONAL", "UNDECIDED"]
    assert found.word == "UNDECIDED"


def test_a_cell_that_breaks_at_once_is_refused(made: Callable[..., Result]) -> None:
    assert gate(made(cell(slower=20.0))).word == "REFUSED"


def test_worse_than_the_baseline_is_refused_and_a_little_noise_is_not(
    base: Result, made: Callable[..., Result]
) -> None:
    assert gate(base, base).regressions == ()
    assert gate(made(cell(slower=1.002)), base).regressions == ()
    found = gate(made(cell(slower=1.3)), base)
    assert found.word == "REFUSED"
    assert any("Output throughput is 0.7" in text for text in found.regressions)
    assert gate(base, made(cell(slower=1.3))).regressions == (), "better is no regression"


def test_what_the_baseline_measured_and_this_run_did_not_is_undecided(
    base: Result, made: Callable[..., Result]
) -> None:
    found = gate(base, made(cell(), cell(workload="rag")))
    assert found.unmatched == ("vllm--rag",)
    assert found.word == "UNDECIDED"


def test_a_signed_run_passes(base: Result) -> None:
    verdict = msgspec.structs.replace(base.cells[0].verdict, verdict="SIGNED")
    signed = msgspec.structs.replace(base, cells=(msgspec.structs.replace(base.cells[0], verdict=verdict),))
    assert gate(signed).word == "SIGNED"


def test_a_journal_that_was_changed_by_hand_is_still_told(base: Result, tmp_path: Path, one: Path) -> None:
    root = shutil.copytree(one, tmp_path / "one")
    lines = (root / "journal.jsonl").read_text().splitlines()
    opened = json.loads(lines[0])
    opened["host"] = {}
    (root / "journal.jsonl").write_text("\n".join([json.dumps(opened), *lines[1:]]) + "\n")
    with pytest.raises(JournalError, match="machine differs in chat"):
        compare(result(read_run(one)), result(read_run(root)))
