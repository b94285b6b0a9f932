"""Every case of the benchmark suite does the work that it says, whoever does it; no times."""

import dataclasses
import itertools
import json
import os
import pathlib
import signal
import sys

import numpy as np
import pytest

import pescador

BENCH = pathlib.Path(__file__).parents[1] / "bench"
sys.path.insert(0, str(BENCH))

import cases  # noqa: E402
import charts  # noqa: E402
import contestants  # noqa: E402
import data  # noqa: E402
import goals  # noqa: E402
import jobs  # noqa: E402
import parallel  # noqa: E402
import plan  # noqa: E402
import process  # noqa: E402
import publish  # noqa: E402
import report  # noqa: E402
import resume  # noqa: E402
import run  # noqa: E402
import suite  # noqa: E402
import summary  # noqa: E402

COUNT = 12


def job_of(name, contestant):
    it = suite.CASES[name]
    package = pescador if contestant in contestants.API else None
    try:
        return suite.build(name, it.tiny or it.short[0], contestant, package)
    except jobs.Skip as skip:
        pytest.skip(str(skip))


def samples_of(name, contestant):
    job = job_of(name, contestant)
    try:
        return job.samples(COUNT)
    finally:
        job.close()


def streams_of(samples):
    """The numbers that sources yield; a case that starts streams gives them with the stream."""
    return {sample[1] if isinstance(sample, tuple) else sample for sample in samples}


NAMES = sorted(suite.CASES)
BY_HAND = sorted(
    (name, hand)
    for name, it in suite.CASES.items()
    for hand in ("hand", "hand-blocks", "ours-function")
    if hand in it.builders
)


@pytest.mark.parametrize("name", NAMES)
def test_a_case_gives_as_many_samples_as_are_asked_for(name):
    assert len(samples_of(name, "ours")) == COUNT


@pytest.mark.parametrize(("name", "hand"), BY_HAND)
def test_the_loop_by_hand_does_the_same_work(name, hand):
    ours, by_hand = samples_of(name, "ours"), samples_of(name, hand)
    if isinstance(ours[0], list):
        # Lists of samples.
        ours, by_hand = list(itertools.chain(*ours)), list(itertools.chain(*by_hand))
    if suite.CASES[name].same:
        np.testing.assert_equal(by_hand, ours)
    elif name in ("resume", "seeds"):
        assert len(by_hand) == len(ours)
    elif isinstance(ours[0], dict):
        assert [{k: v.shape for k, v in b.items()} for b in by_hand] == [
            {k: v.shape for k, v in b.items()} for b in ours
        ]
    else:
        n = suite.CASES[name].tiny.get("n", 100)
        assert streams_of(ours) | streams_of(by_hand) <= set(range(n))
        assert len(streams_of(ours)) > 1
        assert len(streams_of(by_hand)) > 1


@pytest.mark.parametrize("name", NAMES)
def test_a_round_takes_what_it_reports(name):
    job = job_of(name, "ours")
    try:
        jobs.warm_up(job, 3, seconds=0.01)
        done, seconds = jobs.timed(job, 3)
        assert done >= 3
        assert done < 3 + job.per
        assert seconds > 0
    finally:
        job.close()


def bytes_of(rows):
    """What is in each row of arrays that have as many, key after key."""
    return {b"".join(v.tobytes() for v in row) for row in zip(*rows.values(), strict=True)}


@pytest.mark.parametrize("name", ["job", "in_memory", "windows"])
def test_the_loop_in_c_copies_samples_from_where_they_lie(name):
    n = suite.CASES[name].tiny["n"]
    if name == "windows":
        spectrograms = [np.load(path) for path in data.spectrograms(n)]
        starts = range(len(spectrograms[0]) - cases.FRAMES + 1)
        files = [{"data": [one[i : i + cases.FRAMES] for i in starts]} for one in spectrograms]
    elif name == "job":
        files = [data.mapped(path) for path in data.recordings(n)]
    else:
        files = cases.in_memory_files(n)
    batches = job_of(name, "limit").iterator
    found = set().union(*(bytes_of(batch) for batch in itertools.islice(batches, COUNT)))
    assert found <= set().union(*map(bytes_of, files))
    assert len(found) > COUNT


def test_the_loop_in_c_takes_as_many_samples_of_a_file_as_asked():
    files = [{"y": np.full(3, i)} for i in range(100)]
    try:
        batches = cases.batches_in_c(files, 64, n_open=1, rate=8)
        drawn = np.concatenate([batch["y"].copy() for batch in itertools.islice(batches, 1000)])
    except jobs.Skip as skip:
        pytest.skip(str(skip))
    assert set(drawn) == set(range(100))
    assert drawn.size / np.count_nonzero(np.diff(drawn)) == pytest.approx(8, rel=0.05)


@pytest.mark.parametrize("mux", ["stochastic", "shuffled"])
def test_the_plan_that_is_timed_is_that_of_the_samples(mux):
    job = suite.build("parallel_plan", {"mux": mux}, "ours", pescador)
    planned = [visit.path[0] for visit in itertools.islice(job.setup(), 500)]
    samples = pescador.Seeded(parallel.small_ones(pescador, mux), 0).iterate(500)
    assert planned == [int(sample["x"][0]) for sample in samples]


def test_the_processor_time_of_a_round_is_that_of_all_processes():
    # Each of 50 samples computes for 2 ms in one of the workers; a few were made before.
    job = suite.build("parallel_compute", {"workers": 2, "ms": 2}, "ours", pescador)
    job.first = 1
    jobs.timed(job, 200)
    if job.cpu is None:
        pytest.skip("the system does not say")
    assert job.cpu > 100 * 2e-3


@pytest.mark.parametrize(("long", "expected"), [({50}, 1), ({50, 51}, 5)])
def test_waits_are_for_items_and_pauses_are_none(monkeypatch, long, expected):
    now = [0]

    def pause(seconds):
        now[0] += seconds

    def stream():
        for i in itertools.count():
            pause(5 if i in long else 1)
            yield i

    monkeypatch.setattr(jobs, "perf_counter", lambda: now[0])
    monkeypatch.setattr(jobs, "sleep", pause)
    job = jobs.Waits(stream, batch=10, pause=1000, first=10)
    assert job.take(100) == (100, 100 * expected)


def test_a_stream_that_ends_is_no_result():
    with pytest.raises(jobs.Ended):
        jobs.Items(iter(range(10))).take(20)


def test_a_round_is_as_long_as_asked():
    class Steady:
        block = 30

        def take(self, count):
            return count, count * 1e-3

    # In whole blocks.
    assert jobs.calibrate(Steady(), 0.1) == 90


def test_a_round_takes_whole_batches_of_those_that_unpack_them():
    # What is left of a batch costs nothing, so a round of less would look fast.
    job = cases.unpacked(itertools.repeat(range(cases.BLOCK)))
    assert jobs.calibrate(job, 1e-3) % cases.BLOCK == 0


def test_a_restored_run_goes_on_with_the_sample_that_was_to_come():
    restored = samples_of("resume", "hand")
    assert restored == [restored[0]] * COUNT
    with pytest.raises(ValueError, match="goes on with 0, not with 5"):
        resume.job("restore", 5, lambda state: iter(range(9)), lambda stream: None)


@pytest.fixture
def profile(monkeypatch):
    """A profile that is over in a moment; all contestants run in this environment."""
    monkeypatch.setattr(contestants, "python_of", lambda env: sys.executable)
    return dataclasses.replace(plan.PROFILES["short"], rounds=2, round=1e-3, warm=1e-3, patience=60)


def test_a_run_has_as_many_rounds_of_each_contestant_as_asked_for(profile):
    selected = plan.select_cases(["shuffled/n=10", "bound"], "short")
    groups = plan.groups(selected, ["limit", "ours", "hand", "webdataset"], None)
    found = {"results": {}, "versions": {}, "skipped": []}
    run.measure_all(groups, profile, None, found)
    assert set(found["results"]) == {"shuffled/n=10", "bound"}
    for by in found["results"].values():
        assert set(by) == {"limit", "ours", "hand"}
        for result in by.values():
            assert len(result["rounds"]) == 2
            assert all(count > 0 and seconds > 0 for count, seconds in result["rounds"])
    assert found["versions"]["ours"]["numpy"] == np.__version__
    reason = "ModuleNotFoundError: No module named 'webdataset'"
    assert found["skipped"] == [["shuffled/n=10", "webdataset", reason]]


def test_a_worker_that_is_killed_or_late_says_so_and_is_asked_no_more(profile):
    work = plan.Work(*suite.find("bound"), ["hand"])
    killed, late = (process.Process("hand", work, profile, 1e-3) for _ in range(2))
    killed.start()
    killed.kill()
    killed.prepare()
    assert killed.failure.startswith("the worker ended with status -9")
    # Or it might have its answer before we look.
    os.kill(late.process.pid, signal.SIGSTOP)
    late.ask(patience=0)
    assert late.failure == "took more than 0 s"
    for it in (killed, late):
        it.round()
        assert it.rounds == []
        assert it.process.poll() is not None
        it.close()


def test_files_are_written_once_in_a_run_and_removed_at_its_end(monkeypatch):
    monkeypatch.setenv(contestants.FILES, "")
    it = suite.CASES["job"]
    with data.folder_of_files():
        folder = pathlib.Path(os.environ[contestants.FILES])
        data.write_files(it, it.tiny)
        there = data.recordings(it.tiny["n"])
        stamps = [os.stat(path).st_mtime_ns for path in there]
        data.write_files(it, it.tiny)
        assert [os.stat(path).st_mtime_ns for path in there] == stamps
        assert {pathlib.Path(path).parent.parent for path in there} == {folder}
    assert not folder.exists()


def test_the_environment_of_ours_is_made_anew_when_any_file_of_the_package_changes(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(contestants, "ROOT", tmp_path)
    module = tmp_path / "pescador" / "sources" / "rows.py"
    module.parent.mkdir(parents=True)
    for file in ("CMakeLists.txt", "pyproject.toml"):
        (tmp_path / file).touch()
    module.write_text("a")
    before = contestants.content_of("ours")
    module.write_text("b")
    assert contestants.content_of("ours") != before


def test_every_contestant_of_a_case_is_known():
    for it in suite.CASES.values():
        assert set(it.builders) <= set(contestants.CONTESTANTS) | {"pescador"}
    assert {it.env for it in contestants.CONTESTANTS.values()} <= set(contestants.ENV)


def test_every_case_says_in_which_way_another_does_it():
    for it in suite.CASES.values():
        assert all(it.ways[name] for name in report.OTHERS if name in it.builders)


def test_every_contestant_has_a_line_of_its_own_in_the_charts():
    lines = [charts.style(name) for name in contestants.CONTESTANTS if name != "limit"]
    assert len(set(lines)) == len(lines)


def test_identifiers_are_unique_and_can_be_found():
    found = [it.identifier(p) for it in suite.CASES.values() for p in it.grid("full")]
    assert len(set(found)) == len(found)
    for identifier in found:
        it, params = suite.find(identifier)
        assert it.identifier(params) == identifier


def test_goals_and_core_cases_are_cases_of_the_short_profile():
    short = {it.identifier(p) for it in suite.CASES.values() for p in it.grid("short")}
    assert set(goals.CORE) | set(summary.MEMORY) <= short
    assert {side[0] for goal in goals.GOALS for side in (goal.slow, goal.fast)} <= short
    assert {pace.identifier for pace in goals.PACES} | set(goals.MAIN) <= short


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["shuffled/n=10"], ["shuffled/n=10"]),
        (["tree"], ["tree/depth=2"]),
        (["tree*"], ["tree/depth=2", "tree/depth=3", "tree/depth=2/outer=stochastic"]),
    ],
)
def test_cases_are_selected_by_pattern(patterns, expected):
    selected = plan.select_cases(patterns, "short")
    assert [it.identifier(params) for it, params in selected] == expected


def test_a_pattern_that_matches_no_case_is_an_error():
    with pytest.raises(SystemExit, match="--only nothing matches no case"):
        plan.select_cases(["nothing"], "short")


def test_cases_that_a_goal_compares_are_measured_side_by_side():
    selected = plan.select_cases(None, "short")
    planned = plan.groups(selected, ["ours"], None)
    groups = [{work.identifier for work in group} for group in planned]
    compared = [{goal.slow[0], goal.fast[0]} for goal in goals.GOALS]
    compared += [{pace.identifier, pace.over} for pace in goals.PACES if pace.over]
    for both in compared:
        assert any(both <= group for group in groups)
    assert sum(map(len, groups)) == len(selected)


def test_ratios_are_of_what_was_measured_in_the_same_round(results):
    # The machine halves its speed after the second round, and one contestant stops there.
    seconds = {"ours": [1e-8, 1e-8, 2e-8, 2e-8, 2e-8], "peer": [3e-8, 3e-8]}
    results["results"] = {"bound": measured(**seconds)}
    by = summary.summary_of(results)["cases"]["bound"]["by"]
    assert by["peer"]["ratio"] == pytest.approx(3)


def measured(size=None, **by):
    """What was measured of a case; seconds per unit by contestant."""
    return {
        name: {"rounds": [[1000, s * 1000] for s in seconds], "size": size, "memory": 0}
        for name, seconds in by.items()
    }


@pytest.fixture
def results():
    return {
        "date": "2030-01-01T00:00:00+00:00",
        "make": "make bench",
        "commit": None,
        "machine": {"cpu": "a", "processors": 2, "memory_gb": 4, "system": "b c"},
        "versions": {"ours": {"pescador": "3", "numpy": "2", "python": "3.11"}},
        "results": {
            "shuffled/n=10": measured(
                limit=[1e-8] * 3,
                ours=[4e-8, 5e-8, 6e-8],
                peer=[8e-6, 7e-6, 6.5e-6],
                hand=[4e-8] * 3,
                grain=[6e-6] * 3,
            ),
            "job/rate=1": measured(ours=[6e-6] * 3),
            "in_memory": measured(ours=[2e-7] * 3),
            "parallel_waits/opening=0": measured(ours=[1e-3] * 3),
            "parallel_waits/opening=20": measured(ours=[4e-3] * 3),
            "parallel_npz/workers=2": {
                "ours": measured(ours=[2e-5] * 3)["ours"] | {"cpu": [0.03, 0.04, 0.05]}
            },
            "resume/step=save/samples=10000": measured(hand=[1e-4] * 3, size=3984),
        },
        "skipped": [["all", "torch", "not installed"]],
    }


def test_the_table_says_ratios_goals_losses_and_who_is_missing(results):
    text = report.table(summary.summary_of(results))
    assert "50 ns ±10%" in text
    assert "| peer / ours | at least 120x | 140x | yes |" in text
    assert "| hand / ours | at least 2x | 0.80x | **no** |" in text
    assert "| ours | at most 5 µs | 6 µs | **no** |" in text
    assert "| ours | at most 200 ns | 200 ns | yes |" in text
    assert "| ours | at most 2 ms more | 3 ms | **no** |" in text
    assert "20 µs ±0%, 13.2 MB/s, 40 µs CPU |" in text
    assert "| `shuffled/n=10` | hand | 40 ns ±0% | 50 ns ±10% | 1.25x |" in text
    way = suite.CASES["shuffled"].ways["grain"]
    assert f"| `shuffled/n=10` | 50 ns ±10% | grain | 6 µs ±0% | 120x | {way} |" in text
    assert "| torch | not installed | all |" in text
    assert "| 100 µs ±0%, 3,984 B |" in text


def test_the_readme_says_what_is_faster_than_ours(results):
    text = publish.readme_part(summary.summary_of(results))
    assert "| `ShuffledMux`, 10 streams | sample | 50 ns | 7 µs | 40 ns | 10 ns |" in text
    assert "Faster than ours: hand on `ShuffledMux`, 10 streams (1.25x)." in text


def test_a_summary_is_read_back_as_it_was_written(results):
    short = summary.summary_of(results)
    assert summary.summary_of(json.loads(summary.as_text(short))) == short


def test_readme_and_table_show_the_published_summary():
    published = json.loads((publish.PUBLISHED / "summary.json").read_text(encoding="utf-8"))
    readme = publish.README.read_text(encoding="utf-8")
    assert publish.with_part(readme, publish.readme_part(published)) == readme
    table = (publish.PUBLISHED / "table.md").read_text(encoding="utf-8")
    assert table == report.table(published)


def test_what_is_published_is_a_table_a_chart_and_a_short_summary():
    sizes = {path.name: path.stat().st_size for path in publish.PUBLISHED.iterdir()}
    assert set(sizes) == {"summary.json", "table.md", f"{charts.CHART}.svg"}
    assert sizes["summary.json"] <= 50_000
