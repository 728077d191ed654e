"""`plast doctor --distributed`: what it finds in facts about machines that are written down by hand."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT

from launcher.doctor import findings as findings_of
from launcher.doctor.facts import code_hashes
from launcher.doctor.findings import rank_findings
from launcher.doctor.machine import Finding
from launcher.doctor.machines import _marked_folder, last_line, run_distributed_doctor
from plast_train.errors import UserError
from plast_train.runtime.cluster_check import RankSpec, bus_bandwidth, pair_rounds

H200 = {"name": "NVIDIA H200", "memory_bytes": 150 * 10**9}
A100 = {"name": "NVIDIA A100", "memory_bytes": 85 * 10**9}


def facts(*changes: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """Of as many alike machines as there are changes, each with its own."""
    alike = {
        "ranks": 2,
        "gpus": [H200, H200],
        "versions": {"python": "3.11.7", "torch": "2.13.0", "NCCL": "2.27.3", "driver": "570.86"},
        "code": {"a.py": "1", "b.py": "2"},
        "out": "/runs/x",
        "folder_error": "",
        "disks": {
            "run folder": {"path": "/runs", "free": 10**12},
            "temporary folder": {"path": "/tmp", "free": 10**11},
        },
        "interfaces": [],
        "seconds": 4.0,
    }
    return {
        node: alike
        | {"host": f"n{node + 1}"}
        | {k: alike[k] | v if k in ("versions", "code", "disks") else v for k, v in change.items()}
        for node, change in enumerate(changes)
    }


def told(findings: Iterator[Finding]) -> list[tuple[str, str, str]]:
    found = list(findings)
    assert all(finding.remedy for finding in found)
    return [(finding.level, finding.subject, finding.text) for finding in found]


def test_alike_machines_have_nothing_wrong() -> None:
    alike = facts({}, {}, {})
    assert findings_of.can_exchange(alike)
    for check in ("version", "code", "gpu", "disk", "start"):
        assert told(getattr(findings_of, f"{check}_findings")(alike)) == []
    assert told(findings_of.folder_findings(alike, {n: [0, 1, 2] for n in range(3)})) == []
    assert told(findings_of.clock_findings(alike, {n: (0.01 * n, 0.001) for n in range(3)})) == []


def test_the_machine_with_other_versions_is_named_be_it_the_first() -> None:
    odd = facts({"versions": {"torch": "2.12.0"}}, {}, {"versions": {"driver": "550.54"}})
    assert told(findings_of.version_findings(odd)) == [
        ("fail", "node 1 (n1)", "has torch 2.12.0, the others 2.13.0"),
        ("warn", "node 3 (n3)", "has driver 550.54, the others 570.86"),
    ]
    assert not findings_of.can_exchange(odd)
    two = facts({}, {"versions": {"NCCL": None}})
    assert told(findings_of.version_findings(two)) == [
        ("fail", "node 2 (n2)", "has NCCL -, the others 2.27.3")
    ]


def test_files_that_differ_are_named() -> None:
    ((level, subject, text),) = told(
        findings_of.code_findings(facts({}, {"code": {"b.py": "3", "c.py": "4"}}))
    )
    assert (level, subject) == ("fail", "node 2 (n2)")
    assert "b.py and 1 more differ" in text


def test_the_code_s_hash_follows_its_files(tmp_path: Path) -> None:
    (tmp_path / "launcher").mkdir()
    (tmp_path / "launcher" / "x.py").write_text("1")
    (tmp_path / "launcher" / "x.pyc").write_text("1")
    before = code_hashes(tmp_path)
    (tmp_path / "launcher" / "x.py").write_text("2")
    assert list(before) == ["launcher/x.py"] and code_hashes(tmp_path) != before
    assert {"launcher/cli.py", "plast_train/errors.py", "ds_configs/zero2.json"} <= set(code_hashes(ROOT))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"gpus": [H200]}, "has 1 GPU, but --nproc asks for 2 ranks"),
        ({"gpus": [H200], "ranks": 1}, "has 1 GPU, the others 2"),
        ({"gpus": []}, "has no GPU, the others 2"),
        ({"gpus": [A100, A100]}, "has GPUs NVIDIA A100 85 GB, the others NVIDIA H200 150 GB"),
    ],
)
def test_the_machine_with_other_gpus_is_named(change: dict[str, Any], text: str) -> None:
    found = told(findings_of.gpu_findings(facts({}, change, {})))
    assert ("fail", "node 2 (n2)", text) in found
    assert {subject for _, subject, _ in found} == {"node 2 (n2)"}
    assert not findings_of.can_exchange(facts({}, change, {}))


def test_fewer_gpus_are_enough_for_fewer_ranks() -> None:
    uneven = facts({"ranks": 1}, {"ranks": 1, "gpus": [H200]}, {"ranks": 1})
    assert told(findings_of.gpu_findings(uneven)) == [("warn", "node 2 (n2)", "has 1 GPU, the others 2")]
    assert findings_of.can_exchange(uneven)


def test_gpus_of_several_kinds_in_each_machine_are_refused() -> None:
    mixed = facts({"gpus": [H200, A100]}, {"gpus": [A100, H200]})
    assert [subject for _, subject, _ in told(findings_of.gpu_findings(mixed))] == [
        "node 1 (n1)",
        "node 2 (n2)",
    ]


@pytest.mark.parametrize("odd", [0, 1, 2])
def test_the_machine_with_another_folder_is_named(odd: int) -> None:
    others = [node for node in range(3) if node != odd]
    sees = {node: [odd] if node == odd else others for node in range(3)}
    ((level, subject, text),) = told(findings_of.folder_findings(facts({}, {}, {}), sees))
    assert (level, subject) == ("fail", f"node {odd + 1} (n{odd + 1})")
    assert "not shared" in text


def test_a_slow_start_is_told() -> None:
    ((level, subject, _),) = told(findings_of.start_findings(facts({}, {"seconds": 50.0})))
    assert (level, subject) == ("warn", "node 2 (n2)")


def test_full_disks_and_clocks() -> None:
    full = facts({}, {"disks": {"temporary folder": {"path": "/tmp", "free": 10**6}}})
    assert told(findings_of.disk_findings(full)) == [
        ("fail", "node 2 (n2)", "0.0 GB free for the temporary folder /tmp")
    ]
    # The first one's clock is the wrong one here: all others seem to be off against it.
    offsets = {0: (0.0, 0.0), 1: (-90.0, 0.01), 2: (-90.1, 0.01)}
    assert told(findings_of.clock_findings(facts({}, {}, {}), offsets)) == [
        ("fail", "node 1 (n1)", "its clock is 90.0 s ahead of the others'")
    ]
    assert told(findings_of.clock_findings(facts({}, {}), {0: (0.0, 0.0), 1: (-2.0, 0.1)})) == [
        ("warn", "node 2 (n2)", "its clock is 2.0 s behind the others'")
    ]
    unsure = {0: (0.0, 0.0), 1: (2.0, 1.5)}
    assert told(findings_of.clock_findings(facts({}, {}), unsure)) == []


FAST, SLOW, BROKEN = {"bandwidth": 10e9}, {"bandwidth": 1e9}, {"error": "timeout"}


def results(nodes: int, bad: int, result: dict[str, Any]) -> dict[int, dict[int, dict[str, Any]]]:
    """Of all pairs of a ring, those with machine `bad` being `result`."""
    pairs: dict[int, dict[int, dict[str, Any]]] = {node: {} for node in range(nodes)}
    for a, b in (pair for pairs_of in pair_rounds(nodes) for pair in pairs_of):
        pairs[a][b] = pairs[b][a] = result if bad in (a, b) else FAST
    return pairs


@pytest.mark.parametrize("bad", [0, 1, 3])
def test_the_machine_that_is_cut_off_or_slow_is_named(bad: int) -> None:
    four, name = facts({}, {}, {}, {}), f"node {bad + 1} (n{bad + 1})"
    found = told(findings_of.network_findings(four, results(4, bad, BROKEN)))
    assert [(level, subject) for level, subject, _ in found] == [("fail", name)] * 2
    found = told(findings_of.network_findings(four, results(4, bad, SLOW)))
    assert [(level, subject) for level, subject, _ in found] == [("warn", name)]


def test_a_rank_that_fails_is_named_and_not_those_that_waited_for_it() -> None:
    three = facts({}, {}, {})
    pairs = {0: {1: BROKEN, 2: FAST}, 2: {1: BROKEN, 0: FAST}}
    found = told(rank_findings(three, pairs, {}, {0: [], 1: ["local rank 0: no GPU"], 2: []}))
    assert found == [("fail", "node 2 (n2)", "all-reduce: local rank 0: no GPU")]
    found = told(rank_findings(three, {}, {}, {0: [], 2: []}))
    assert found == [("fail", "node 2 (n2)", "its ranks stopped responding")]
    found = told(rank_findings(three, {}, {1: {"error": "no shared memory"}}, {0: [], 1: [], 2: []}))
    assert found == [("fail", "node 2 (n2)", "no all-reduce inside it: no shared memory")]


def test_the_last_line_of_a_failed_rank_is_its_error() -> None:
    trace = "Traceback …\nRuntimeError: CUDA error: out of memory\nframe #0: c10::Error\n  (x)\n"
    assert last_line(trace) == "RuntimeError: CUDA error: out of memory"
    assert last_line("killed\n\n") == "killed" and last_line("") == ""


@pytest.mark.parametrize("nodes", range(1, 10))
def test_neighbours_meet_in_rounds(nodes: int) -> None:
    rounds = pair_rounds(nodes)
    for pairs in rounds:
        busy = [node for pair in pairs for node in pair]
        assert len(busy) == len(set(busy))
    ring = {frozenset((node, (node + 1) % nodes)) for node in range(nodes)} if nodes > 1 else set()
    assert {frozenset(pair) for pairs in rounds for pair in pairs} == ring
    assert len(rounds) <= 3


def test_bus_bandwidth_is_that_of_nccl_tests() -> None:
    assert bus_bandwidth(1000, 2.0, 2) == 500
    assert bus_bandwidth(1000, 2.0, 8) == pytest.approx(875)


def test_ranks_are_counted_one_after_the_other_also_where_machines_differ() -> None:
    counts = [2, 1, 3]
    specs = [RankSpec("n1", 1, node, counts, n, 25.0) for node in range(3) for n in range(counts[node])]
    assert [spec.rank for spec in specs] == list(range(6))


@pytest.mark.parametrize("ends", [(0, 1), (1, 0)])
@pytest.mark.parametrize("made", [False, True])
def test_nothing_is_left_in_any_order(tmp_path: Path, ends: tuple[int, int], made: bool) -> None:
    run = tmp_path / "runs" / "RUN"
    if made:
        run.mkdir(parents=True)
    marks = [_marked_folder(run, node == 0) for node in range(2)]
    for mark in marks:
        folder, nonce, problem = mark.__enter__()
        assert (folder / nonce).exists() and not problem
    for node in ends:
        marks[node].__exit__(None, None, None)
    assert run.exists() == made and not folder.exists()


def test_a_killed_doctors_file_is_removed(tmp_path: Path) -> None:
    with _marked_folder(tmp_path / "RUN", True) as (folder, nonce, _):
        (folder / "stale").touch()
        assert nonce != "stale"
    assert not folder.exists()


def test_all_that_end_at_once_leave_nothing(tmp_path: Path) -> None:
    run = tmp_path / "RUN"
    for _ in range(100):
        marks = [_marked_folder(run, node == 0) for node in range(4)]
        folders = {mark.__enter__()[0] for mark in marks}
        ends = [threading.Thread(target=mark.__exit__, args=(None, None, None)) for mark in marks]
        for end in ends:
            end.start()
        for end in ends:
            end.join()
        assert not run.exists() and not any(folder.exists() for folder in folders)


def test_a_job_of_several_nodes_without_their_numbers_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    monkeypatch.delenv("NNODES", raising=False)
    with pytest.raises(UserError, match=r"NNODES=\$SLURM_NNODES"):
        run_distributed_doctor(tmp_path / "RUN", 1, 1)
    assert not (tmp_path / "RUN").exists()
