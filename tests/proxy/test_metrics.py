# SPDX-License-Identifier: Apache-2.0
"""What a worker counts, and the page of /metrics as Prometheus' own parser reads it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from tests.reports import partition, report, view
from xksfast.errors import XksErrorName
from xksfast.proxy.exposition import render
from xksfast.proxy.metrics import BOUNDS_NS, OPERATION_LABELS, RESULT_LABELS, Metrics
from xksfast.status import Counters, merge

ENCRYPT = OPERATION_LABELS.index("Encrypt")


@given(st.one_of(st.integers(0, 2**40), st.sampled_from(BOUNDS_NS), st.sampled_from([bound + 1 for bound in BOUNDS_NS])))
def test_a_duration_is_counted_in_the_first_bucket_that_holds_it(duration_ns: int) -> None:
    metrics = Metrics()
    metrics.count_one(ENCRYPT, "ok", duration_ns)
    if not duration_ns:
        return
    ((operation, counts, sum_ns),) = metrics.durations()
    expected = next((i for i, bound in enumerate(BOUNDS_NS) if duration_ns <= bound), len(BOUNDS_NS))
    assert (operation, counts.index(1), sum(counts), sum_ns) == ("Encrypt", expected, 1, duration_ns)


@pytest.mark.parametrize("result", RESULT_LABELS)
def test_every_result_of_the_api_has_a_counter(result: str) -> None:
    metrics = Metrics()
    for _ in range(3):
        metrics.count_one(ENCRYPT, result, 1000)
    assert ("Encrypt", result, 3) in metrics.requests()
    assert sum(count for _, _, count in metrics.requests()) == 3
    assert set(RESULT_LABELS) == {"ok"} | {name.error_name for name in XksErrorName}


def test_a_request_without_an_xks_path_is_counted_as_none() -> None:
    metrics = Metrics()
    metrics.count_one(0, "InvalidUriPathException", 1000)
    assert ("none", "InvalidUriPathException", 1) in metrics.requests()
    assert ("none", "ok", 0) not in metrics.requests()


# --- the page


def page(*views: Any, names: tuple[str, ...] = ("p0",)) -> str:
    status = merge(
        views, Counters(), partition_names=names, version="1.2.3", pid=1, started_unix_s=100.5, now_unix_s=160.0
    )  # fmt: skip
    return render(status).decode()


def families(text: str) -> dict[str, Any]:
    found = {family.name: family for family in text_string_to_metric_families(text)}
    for family in found.values():
        assert family.documentation, family.name
        assert family.type in ("counter", "gauge", "histogram"), family.name
    return found


def values(text: str, name: str) -> dict[tuple[tuple[str, str], ...], float]:
    """Samples of exactly this name, by their labels."""
    return {
        tuple(sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


def test_every_family_has_help_type_unit_and_samples_of_its_own_name_only() -> None:
    text = page(view(0, report(1, p0=partition(opens=1, last_open_unix_s=5))))
    found = families(text)
    assert text.count("# TYPE ") == text.count("# HELP ") == len(found)
    for name, family in found.items():
        assert name.startswith("xksfast_") or name == "process_start_time_seconds"
        assert all(sample.name.startswith(name) for sample in family.samples)
        assert len({(s.name, *sorted(s.labels.items())) for s in family.samples}) == len(family.samples), f"{name}: twice"
        if family.type == "counter":
            assert all(sample.name == f"{name}_total" for sample in family.samples)
        if family.type == "histogram":
            assert name.endswith("_seconds")


def test_the_page_shows_what_the_issue_of_an_operator_needs_of_each_partition() -> None:
    found = families(page(view(0, report(1, p0=partition()))))
    for name in (
        "state", "in_service", "route_reason", "in_flight", "limit", "concurrency", "sessions", "lost_threads", "share",
        "median_seconds", "p95_seconds", "oldest_call_seconds", "slow_start_factor", "call_duration_seconds", "calls", "errors",
        "faults", "breaker_opens", "logins", "info",
    ):  # fmt: skip
        samples = found[f"xksfast_partition_{name}"].samples
        assert samples, name
        assert all(sample.labels["partition"] == "p0" for sample in samples)


def test_a_partition_is_counted_in_the_state_that_each_worker_sees() -> None:
    out = partition(state="recovering", in_service=False, route_reason="out_of_service")
    text = page(view(0, report(1, p0=partition())), view(1, report(2, p0=out)))
    states = {dict(labels)["state"]: value for labels, value in values(text, "xksfast_partition_state").items()}
    assert states == {"ready": 1, "recovering": 1, "starting": 0, "refused": 0}
    reasons = {dict(labels)["reason"]: value for labels, value in values(text, "xksfast_partition_route_reason").items()}
    assert reasons == {"eligible": 1, "out_of_service": 1}
    assert list(values(text, "xksfast_partition_in_service").values()) == [1]


def test_histograms_are_cumulative_and_end_with_all() -> None:
    text = page(view(0, report(1, 5, p0=partition())))
    for name in ("xksfast_request_duration_seconds", "xksfast_partition_call_duration_seconds"):
        buckets = values(text, f"{name}_bucket")
        by_bound = sorted((float(dict(labels)["le"]), value) for labels, value in buckets.items())
        counts = [value for _, value in by_bound]
        assert counts == sorted(counts)
        assert by_bound[-1][0] == float("inf")
        (count,) = values(text, f"{name}_count").values()
        assert counts[-1] == count > 0
    ((_, sum_s),) = values(text, "xksfast_request_duration_seconds_sum").items()
    assert sum_s == pytest.approx(5 * 0.0005 + 0.03)


def test_a_worker_that_does_not_answer_is_shown_down() -> None:
    text = page(view(0, report(1, p0=partition())), view(1, report(2, p0=partition()), answered=False))
    assert values(text, "xksfast_worker_up") == {(("worker", "0"),): 1.0, (("worker", "1"),): 0.0}


@given(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"), max_size=32)
)
def test_a_token_label_of_any_characters_comes_out_as_it_went_in(label: str) -> None:
    text = page(view(0, report(1, p0=partition(token_label=label))))
    ((labels, value),) = values(text, "xksfast_partition_info").items()
    assert dict(labels)["token_label"] == label.strip()
    assert value == 1


@pytest.mark.parametrize("label", ['quo"te', "back\\slash", "new\nline", 'all\\"\nx', "a,b={c}"])
def test_what_label_values_must_escape_is_escaped(label: str) -> None:
    text = page(view(0, report(1, p0=partition(token_label=label))))
    ((labels, _),) = values(text, "xksfast_partition_info").items()
    assert dict(labels)["token_label"] == label


def test_a_proxy_without_partitions_has_none_on_the_page() -> None:
    text = page(view(0, report(1)), names=())
    assert values(text, "xksfast_requests_total")
    assert values(text, "xksfast_partition_state") == {}
