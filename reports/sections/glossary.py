"""The report's own glossary: every term that a table or a chart uses, with the end points of its interval."""

from __future__ import annotations

from typing import NamedTuple

from reports.figures import NONE


class Term(NamedTuple):
    key: str
    name: str
    meaning: str


TERMS: tuple[Term, ...] = (
    Term(
        "concurrency",
        "Concurrent users",
        "Virtual users of a closed loop, each with one request in flight: the next is sent when the last ended.",
    ),
    Term(
        "ttft",
        "TTFT",
        "Time to first token: from sending a request to the arrival of the first event with text or token ids.",
    ),
    Term(
        "tpot",
        "TPOT",
        "Time per output token: from the first to the last token, divided by the output tokens less one.",
    ),
    Term("e2e", "E2E", "End-to-end time: from sending a request to the arrival of its last token."),
    Term(
        "p95",
        "p50, p95",
        "Nearest-rank percentiles over all measured requests of a level. A failed request counts as infinitely slow: "
        "with more than 5 % of failures p95 has no value. Under 59 requests p95 rests on the slowest few.",
    ),
    Term("slo", "SLO", "The limits that a request must keep to be good, and the share of requests that must be good."),
    Term(
        "attainment",
        "Good requests",
        "Share of the offered requests that did not fail and kept every limit of the SLO.",
    ),
    Term(
        "throughput",
        "Output throughput",
        "Output tokens that arrived in the steady window (from the issue of the first measured request to the issue of "
        "the last one), divided by its length.",
    ),
    Term(
        "window",
        "Steady window",
        "From the issue of the first measured request of a level to the issue of the last: the load is whole in it.",
    ),
    Term("c_ok", "Holds", "The highest concurrency that was measured and passed."),
    Term("c_bad", "Breaks at", "The lowest concurrency above it that was measured and failed."),
    Term(
        "due", "Due", "When a request of an open loop was to be sent. Fixed before the run; its times count from then."
    ),
    Term(
        "rate_ok",
        "Independent arrivals",
        "The highest mean rate, in requests per second, at which requests that come independently of each other "
        "(Poisson) met the limits in fresh runs.",
    ),
    Term(
        "rate_sign",
        "May be signed",
        "The mean rate at which the expected traffic, with its swings, was replayed and held; and the most users at "
        "once that this takes, at most 80 % of what holds.",
    ),
    Term(
        "pass",
        "PASS, FAIL, UNDECIDED",
        "Whether a level kept the criteria; UNDECIDED: the requests were too few to tell.",
    ),
    Term(
        "valid",
        "INVALID",
        "The measurement itself is void, for example because the load generator was the limit. It says nothing about "
        "the server and is never a break.",
    ),
    Term(
        "step",
        "Step",
        "Why a level was measured. bracket: users are doubled until a level breaks. bisect: between what held and what "
        "broke. confirm, confirm-break: the same again in fresh runs. rate, confirm-rate: independent arrivals. "
        "replay: the expected traffic. sentinel: one user at intervals, compared with itself, so that a drift of the "
        "machine shows; recovery: after the break; these two are not judged against the limits. soak: for long.",
    ),
    Term(
        "prefill",
        "Prefill, decode",
        "Prefill: the server reads a prompt, all of its tokens at once, before the first token of the answer. Decode: "
        "it writes the answer, one token of every request under way in each step.",
    ),
    Term(
        "queue",
        "In flight, waiting, preempted",
        "In flight: requests sent and not answered, on average. Waiting: those that the server has not begun. "
        "Preempted: begun, and put back because the KV cache was full.",
    ),
    Term(
        "fragile",
        "FRAGILE",
        "The KV cache is what the weights and everything else leave of the card, and that is so little that 1 GiB more "
        "of anything takes over a tenth of it.",
    ),
    Term(
        "signed",
        "SIGNED, PROVISIONAL, REFUSED",
        "SIGNED: every step of the method was done and held. PROVISIONAL: a concurrency held, but a step is missing or "
        "flagged, and each one is named. REFUSED: there is nothing to sign.",
    ),
    Term("weights", "Weights", "Memory of the model's weights as the engine reports it after loading."),
    Term(
        "kv",
        "KV cache",
        "Keys and values of the tokens of running requests. Most engines reserve the whole pool at the start, whatever "
        "the format of the weights.",
    ),
    Term("compute", "Compute buffers", "Activations and scratch space of the engine, as it reports them."),
    Term("graphs", "Graphs", "Memory of captured CUDA graphs, as the engine reports it."),
    Term(
        "rest",
        "Everything else",
        "Peak less the reported items: runtime, code, buffers that the engine does not name. Negative where memory is "
        "reserved but was never touched, which does not count as used.",
    ),
    Term(
        "peak",
        "Peak under load",
        "The largest memory of the server seen once a second: of its card where there is one, else of its container, "
        "else the proportional set size (PSS) of its process tree.",
    ),
    Term(
        "n_eff",
        "Effective n",
        "How many independent requests would say as much as those that were measured. Neighbours share the batches of "
        "the server and so are alike; the design effect is by how much that inflates the variance.",
    ),
    Term(
        "cost",
        "Cost",
        "Of a million output tokens: the plan's price of an hour of the deployment, divided by the output tokens of an "
        "hour at the users that may be signed; where those were not measured, at the most users that held.",
    ),
    Term(
        "energy",
        "Energy",
        "Of a million output tokens, at the same users as the cost: mean power of the cards over the steady window, as "
        "NVML tells it, divided by the output throughput. The rest of the machine is not in it.",
    ),
    Term(
        "predicted",
        "Predicted",
        "By `loadproof size`, before the start. The interval is the one that holds nine of ten measured starts of its "
        "class.",
    ),
    Term(
        "calibrated",
        "Calibrated",
        "The prediction corrected by what the first start of the same engine, version and card taught in this run.",
    ),
    Term(
        "unexplained",
        "Unexplained",
        "The measured total less the items, each as measured, or as predicted where nobody reports it.",
    ),
    Term(
        "lag",
        "Loop lag, read backlog, send lag",
        "How late loadproof itself was: in waking up, in reading what had come, and in sending what was due. A late "
        "read does not move a stamp of the kernel.",
    ),
    Term(
        "stamps",
        "Kernel stamps",
        "Arrivals stamped by the kernel at the socket. The others are stamped when loadproof reads them: later "
        "when it is busy.",
    ),
    Term(
        "clamped",
        "Cut to the context",
        "Requests whose lengths were cut because the pair did not fit the model's context.",
    ),
    Term("none", NONE, "Not reported. It does not mean 0."),
)
