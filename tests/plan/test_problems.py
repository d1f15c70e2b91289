"""Wrong plans: every problem at once, each with file, key, what was found and what would do; and never a secret."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import PlanError, Problem
from orchestrator.plan import load_plan, parse_plan

SOUND = """
[model]
id = "org/model"
[[deployment]]
name = "one"
stack = "vllm"
[[workload]]
name = "chat"
preset = "azure-conv-2023"
"""


def problems_of(text: str, *overrides: str, base: Path = Path("/nowhere")) -> list[Problem]:
    with pytest.raises(PlanError) as caught:
        parse_plan(text.encode(), "p.toml", overrides, base=base, environ={})
    assert caught.value.exit_code == 2
    assert caught.value.problems
    return list(caught.value.problems)


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    found = problems_of(
        """
titel = "x"
seed = -1
[model]
id = "./no.gguf"
context_tokens = "lots"
[slo]
ttft_ms = -5
attainment = 1.5
tpot_ms = nan
[[deployment]]
stack = "vlm"
luanch = "docker"
launch = "podman"
[[deployment]]
name = "b b"
stack = "vllm"
max_num_seqs = 3
gpus = ["x", 0, 0]
secrets = ["NOPE"]
shm_bytes = "8 parsecs"
[[workload]]
preset = "azure-conv"
[[workload]]
name = "w"
trace = "missing.csv"
[[workload]]
prompt_tokens = "normale:5"
[[workload]]
name = "zz"
[ramp]
start = 0
max = "10"
[budgett]
""",
        base=tmp_path,
    )
    assert [problem.where.removeprefix("p.toml: ") for problem in found] == [
        "titel", "budgett", "seed", "model.context_tokens", "slo.ttft_ms", "slo.attainment", "slo.tpot_ms",
        "ramp.start", "ramp.max", "deployment[0].model", "deployment[0].luanch", "deployment[0].launch",
        "deployment[0].stack", "deployment[1].model", "deployment[1].max_num_seqs", "deployment[1].shm_bytes",
        "deployment[1].gpus", "deployment[1].gpus", "deployment[1].name",
        "workload[0].preset", "workload[1].trace", "workload[2].output_tokens", "workload[2].prompt_tokens",
        "workload[3]", "secrets",
    ]  # fmt: skip
    for problem in found:
        assert problem.message.endswith("."), problem
        assert len(str(problem)) < 400


@pytest.mark.parametrize(
    ("change", "where", "said"),
    [
        # spelling
        ("[slo]\nttft = 5", "slo.ttft", 'Did you mean "ttft_ms"?'),
        ("[slo]\nqqqq = 5", "slo.qqqq", "Known keys: ttft_ms, tpot_ms"),
        ("[[deployments]]\nstack = 'vllm'", "deployments", 'Did you mean "deployment"?'),
        # types and bounds
        ("[slo]\nttft_ms = true", "slo.ttft_ms", "found True: expected a number, got true or false."),
        ("[slo]\nttft_ms = [1]", "slo.ttft_ms", "found [1]: expected a number, got a list."),
        ("[slo]\nttft_ms = '5'", "slo.ttft_ms", 'a duration is a number or a text such as "30s"'),
        ("[slo]\nattainment = 0", "slo.attainment", "found 0.0, allowed is above 0 and at most 1."),
        ("[slo]\nerror_budget = 1.1", "slo.error_budget", "allowed is at least 0 and at most 1."),
        ("[slo]\ntpot_ms = inf", "slo.tpot_ms", "found inf, expected a finite number."),
        ("[slo]\nattainment = 'none'", "slo.attainment", "expected a number, got a text"),
        ("[ramp]\nmax = 0", "ramp.max", "found 0, allowed is at least 1"),
        ("[ramp]\nmax = 1.5", "ramp.max", "expected a whole number, got a number."),
        ("[ramp]\nfactor = 1", "ramp.factor", "allowed is above 1"),
        ("[ramp]\nprecision = 0", "ramp.precision", "allowed is above 0"),
        ("[ramp]\nrequests = 5", "ramp.requests", "allowed is at least 20"),
        ("[ramp]\nstart = 9\nmax = 8", "ramp.start", "is 9, above ramp.max, which is 8."),
        ("[ramp]\nmin_seconds = 9\nmax_seconds = 8", "ramp.min_seconds", "is 9, above ramp.max_seconds (8)."),
        ("[budget]\nminutes = -1", "budget.minutes", "allowed is above 0"),
        ("[[workload]]\npreset = 'rag-2025'\nprompt_scale = 0", "workload[1].prompt_scale", "allowed is above 0"),
        ("[[workload]]\npreset = 'rag-2025'\nlevels = [1, 0]", "workload[1].levels", "found 0, allowed is at least 1"),
        ("[[workload]]\npreset = 'rag-2025'\nlevels = [2, 2]", "workload[1].levels", "names a concurrency twice."),
        ("[[workload]]\npreset = 'rag-2025'\nlevels = ['a']", "workload[1].levels", "expected a whole number, got"),
        # sources
        ("[[workload]]\npreset = 'rag'", "workload[1].preset", 'Did you mean "rag-2025"?'),
        ("[[workload]]\npreset = 'rag-2025'\ntrace = 'x'", "workload[1]", "names more than one source."),
        ("[[workload]]\npreset = 'rag-2025'\noutput_tokens = 5", "workload[1].output_tokens", "Use output_scale."),
        ("[[workload]]\ntrace = 'no.csv'", "workload[1].trace", "does not exist."),
        ("[[workload]]\nname = 'chat'\npreset = 'rag-2025'", "workload[1].name", "is the name of workload[0] too."),
        ("[[workload]]\nname = 'CHAT'\npreset = 'rag-2025'", "workload[1].name", "is the name of workload[0] too."),
        ("[[workload]]\nname = '../x'\npreset = 'rag-2025'", "workload[1].name", "use letters, digits"),
        ("[[workload]]\nname = 'a--b'\npreset = 'rag-2025'", "workload[1].name", "use letters, digits"),
        ("[[workload]]\nname = 'a.'\npreset = 'rag-2025'", "workload[1].name", "a letter or digit at both ends"),
        ("[[workload]]\nname = ''\npreset = 'rag-2025'", "workload[1].name", "use letters, digits"),
        (f"[[workload]]\nname = '{'a' * 65}'\npreset = 'rag-2025'", "workload[1].name", "at most 64"),
        # deployments
        ("[defaults]\nurl = 'http://h'", "defaults.url", "belongs to one deployment"),
        ("[defaults]\ngpu = 0", "defaults.gpu", 'Did you mean "gpus"?'),
        ("[defaults]\nshm_bytes = 0", "defaults.shm_bytes", "found 0, allowed is at least 1."),
        ("[[deployment]]\nname = 'x'", "deployment[1].stack", "is missing."),
        ("[[deployment]]\nstack = 'vlm'", "deployment[1].stack", "vllm"),
        ("[[deployment]]\nstack = 'vllm'\nlaunch = 'dokcer'", "deployment[1].launch", 'Did you mean "docker"?'),
        ("[[deployment]]\nstack = 'vllm'\nquantization = 'fp9'", "deployment[1].quantization", "fp8"),
        ("[[deployment]]\nstack = 'vllm'\nlaunch = 'external'", "deployment[1].url", "is missing"),
        ("[[deployment]]\nstack = 'vllm'\nurl = 'http://h'", "deployment[1].url", 'It needs launch = "external".'),
        ("[[deployment]]\nstack = 'vllm'\nlaunch = 'process'\nimage = 'i'", "deployment[1].image", '= "docker".'),
        ("[[deployment]]\nstack = 'vllm'\nmodel = './m'", "deployment[1].model", "'/nowhere/m' does not exist."),
        ("[[deployment]]\nstack = 'vllm'\nmodel = 'q4.gguf'", "deployment[1].model", "'/nowhere/q4.gguf' does not"),
        ("[[deployment]]\nstack = 'vllm'\ngpus = ['all', 0]", "deployment[1].gpus", '"all" stands alone.'),
        ("[[deployment]]\nstack = 'vllm'\ngpus = 0\ntensor_parallel = 2", "deployment[1].tensor_parallel", "names 1."),
        ("[[deployment]]\nstack = 'vllm'\ngpus = [-1]", "deployment[1].gpus", "found '-1', expected an index"),
        ("[[deployment]]\nstack = 'vllm'\nargs = \"--x 'y\"", "deployment[1].args", "expected a list, got a text."),
        ("[[deployment]]\nstack = 'vllm'\nenv = { A = true }", "deployment[1].env", "expected a text, got true or"),
    ],
)  # fmt: skip
def test_one_problem(change: str, where: str, said: str) -> None:
    told = problems_of(SOUND + change)
    assert where in [problem.where.removeprefix("p.toml: ") for problem in told]
    (text,) = [str(problem) for problem in told if problem.where == f"p.toml: {where}"]
    assert said in text


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://host", "expected an http or https URL"),
        ("localhost:8000", "expected an http or https URL"),
        ("http://", "expected an http or https URL"),
        ("http://host:99999", "expected an http or https URL"),
        ("http://[::1", "expected an http or https URL"),
        ("http://user:pw123@host", "carries a password"),
    ],
)
def test_a_wrong_url(url: str, said: str) -> None:
    told = problems_of(SOUND + f"[[deployment]]\nstack = 'external'\nlaunch = 'external'\nurl = '{url}'\n")
    assert [said in str(problem) for problem in told if problem.where.endswith(".url")] == [True]
    assert "pw123" not in str(told)


def test_missing_sections() -> None:
    told = [str(problem) for problem in problems_of("")]
    assert told == [
        "p.toml: deployment: there is none, at least one is needed. "
        "Write [[deployment]] with two brackets, once for each.",
        "p.toml: workload: there is none, at least one is needed. Write [[workload]] with two brackets, once for each.",
    ]
    told = [str(problem) for problem in problems_of("[deployment]\nstack = 'vllm'\n[[workload]]\npreset = 'rag-2025'")]
    assert told == [
        "p.toml: deployment: found a table, at least one is needed. "
        "Write [[deployment]] with two brackets, once for each."
    ]
    told = [
        str(problem) for problem in problems_of("[[deployment]]\nstack = 'vllm'\n[[workload]]\npreset = 'rag-2025'")
    ]
    assert told == ["p.toml: deployment[0].model: is missing. Give it here, or for all deployments as [model] id."]


def test_a_context_that_cuts_most_requests_must_be_asked_for() -> None:
    text = SOUND.replace("azure-conv-2023", "mooncake-conv-2025").replace("[[dep", "context_tokens = 2048\n[[dep")
    (problem,) = problems_of(text)
    assert str(problem) == (
        "p.toml: workload[0]: 81% of its requests do not fit the 2048 tokens of deployment one (64 are kept for the "
        "chat template). Raise context_tokens, scale the lengths down, or accept the cut by context_tokens = 2048 here."
    )
    accepted = text + "context_tokens = 2048\n"
    assert parse_plan(accepted.encode(), "p.toml", base=Path("/")).cells()[0].workload.context_tokens == 2048
    (problem,) = problems_of(text + "context_tokens = 4096\n")
    assert str(problem).startswith("p.toml: workload[0].context_tokens: is 4096, but deployment one serves only 2048.")


def test_too_many_entries_are_told_and_not_dropped() -> None:
    text = SOUND + "".join(f"[[deployment]]\nname = 'd{i}'\nstack = 'vllm'\n" for i in range(300))
    told = problems_of(text)
    assert [str(problem) for problem in told] == [
        "p.toml: deployment: there are 301, at most 256 are allowed. Split the plan."
    ]


# --- secrets ------------------------------------------------------------------------------------------------------

TOKEN = "hf_" + "Abc123" * 5


@pytest.mark.parametrize(
    "change",
    [
        f"[[deployment]]\nstack = 'vllm'\nenv = {{ HF_TOKEN = '{TOKEN}' }}",
        "[[deployment]]\nstack = 'vllm'\nenv = { OPENAI_API_KEY = 'Abc123Abc123' }",
        "[[deployment]]\nstack = 'vllm'\nenv = { my_password = 'Abc123Abc123' }",
        "[[deployment]]\nstack = 'vllm'\nargs = ['--api-key', 'Abc123Abc123']",
        "[[deployment]]\nstack = 'vllm'\nargs = ['--hf-token=Abc123Abc123']",
        "[[deployment]]\nstack = 'vllm'\nlaunch = 'process'\ncommand = \"vllm --token Abc123Abc123\"",
        f"[[deployment]]\nstack = 'vllm'\nsecrets = ['{TOKEN}']",
        "[[deployment]]\nstack = 'vllm'\nsecrets = ['Abc123-not-a-name']",
        f"[[deployment]]\nstack = 'vllm'\ndtype = '{TOKEN}'",
        f"[[deployment]]\nstack = 'vllm'\ngpus = ['{TOKEN}']",
        f"[slo]\nttft_ms = '{TOKEN}'",
        f"title = '{TOKEN}'",
        f"[whatever]\nx = [[{{ y = '{TOKEN}' }}]]",
    ],
)
def test_a_plan_with_a_secret_is_refused_without_showing_it(change: str) -> None:
    text = f"{change}\n{SOUND}" if change.startswith("title") else SOUND + change
    told = problems_of(text)
    said = [
        problem for problem in told if re.search("must not carry|command line|environment variable", problem.message)
    ]
    assert len(said) == 1  # told once, though two rules see it
    assert "Abc123" not in str(told)


def test_a_secret_that_is_not_set_is_named_once_with_all_who_need_it() -> None:
    more = "".join(f'[[deployment]]\nname = "n{n}"\nstack = "vllm"\n' for n in range(9))
    shared = f'[defaults]\nsecrets = ["HF_TOKEN"]\n{SOUND}{more}'
    (problem,) = problems_of(shared)
    assert str(problem) == (
        "p.toml: secrets: the environment variable HF_TOKEN is not set, which one, n0, n1, n2, n3, n4, n5, n6 and "
        "2 more must have. Export it before the run, or take it out."
    )
    shown = parse_plan(shared.encode(), "p.toml", base=Path("/nowhere"), environ={}, only_shown=True)
    assert shown.lacking == (problem,)


def test_ordinary_names_are_no_secrets() -> None:
    env = "env = { TOKENIZERS_PARALLELISM = 'false', MAX_TOTAL_TOKENS = '5', MAX_BATCH_PREFILL_TOKENS = '9'}"
    args = "args = ['--tokenizer', 'x', '--max-total-tokens=5', '--skip-tokenizer-init', '--ssl-keyfile', 'f']"
    plan = parse_plan(
        f"{SOUND}\n[[deployment]]\nname = 'b'\nstack = 'vllm'\n{env}\n{args}".encode(), "p", base=Path("/")
    )
    assert len(plan.deployments[1].env) == 3


# --- bytes that are no plan ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"[model\n", r"is not a plan in TOML: Expected '\]' .*\(at line 1, column 7\)"),
        (b"a = 1\na = 2\n", r"Cannot overwrite a value \(at line 2, column 6\)"),
        (b"\xff", "is not UTF-8 text"),
        (b"#" * (2**20 + 1), "is larger than 1 MiB"),
        (b"a=" + b"[" * 5000, "is nested too deeply"),
        (b".".join([b"a"] * 3000) + b" = 1", "is nested too deeply for a plan"),
        (b"a = " + b"9" * 5000, "too many digits"),
    ],
)
def test_bytes_that_are_no_plan(text: bytes, said: str) -> None:
    with pytest.raises(PlanError, match=said) as caught:
        parse_plan(text, "p.toml", base=Path("/"))
    assert len(caught.value.problems) == 1


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="the plan cannot be read: No such file or directory"):
        load_plan(tmp_path / "none.toml")
    with pytest.raises(PlanError, match="cannot be read: Is a directory"):
        load_plan(tmp_path)


scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12))
KEYS = st.sampled_from(
    [
        "name", "stack", "launch", "model", "gpus", "env", "args", "command", "url", "mounts", "secrets",
        "preset", "trace", "levels", "prompt_tokens", "output_tokens", "max", "minutes", "ttft_ms",
        "context_tokens", "id", "seed", "workers", "x",
    ]
)  # fmt: skip


@settings(max_examples=200)
@given(
    st.sampled_from(
        ["model", "slo", "ramp", "budget", "client", "deployment.0", "workload.0", "deployment.0.env", "workload"]
    ),
    KEYS,
    st.one_of(scalars, st.lists(scalars, max_size=3)),
)
def test_no_value_does_worse_than_a_plan_error(table: str, key: str, value: object) -> None:
    """Any value under any key: a plan or a list of problems, never a traceback."""
    overrides = [f"{table}.{key}=" + ("none" if value is None else _toml(value))]
    try:
        plan = parse_plan(SOUND.encode(), "p.toml", overrides, base=Path("/nowhere"), environ={})
    except PlanError:
        return
    assert len(plan.cells()) == 1
    assert plan.expected_seconds(plan.cells()[0]) > 0


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(_toml(entry) for entry in value if entry is not None)}]"
    return repr(value) if isinstance(value, (int, float)) else str(value)


@pytest.mark.parametrize(
    ("deployment", "why"),
    [
        ('stack = "sglang"', "SGLang tells no length that fits"),
        ('stack = "vllm"\nlaunch = "external"\nurl = "http://h:1"', "the server is not ours to start"),
    ],
)
def test_a_context_is_shrunk_only_where_the_engine_says_to_what(deployment: str, why: str) -> None:
    text = SOUND.replace('stack = "vllm"', f'{deployment}\non_no_room = "shrink_context"')
    assert [why in str(problem) for problem in problems_of(text)] == [True]
    (problem,) = problems_of(SOUND.replace('stack = "vllm"', 'stack = "vllm"\non_no_room = "shrink"'))
    assert "shrink_context" in str(problem)
