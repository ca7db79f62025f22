"""What `imgcls tune` decides without a server: objectives, candidates, search, halving, verdict."""

import io
import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from imgcls.archive.verify import read_integrity
from imgcls.cli.main import app
from imgcls.errors import ArchiveError, RunError, UsageError
from imgcls.serving.config import read_config
from imgcls.tuning.candidates import Candidate, Space, combine, make_space
from imgcls.tuning.errors import CandidateError
from imgcls.tuning.halving import MOST_FINALS, Race
from imgcls.tuning.load import Stretch
from imgcls.tuning.machine import describe_machine
from imgcls.tuning.plot import plot_outcomes
from imgcls.tuning.report import as_dict, as_table, as_text
from imgcls.tuning.run import Tuned, TuneOptions
from imgcls.tuning.search import find_rate
from imgcls.tuning.slo import Slo, parse_duration, parse_slo
from imgcls.tuning.trial import Effort, Trial
from imgcls.tuning.verdict import Outcome, judge
from imgcls.tuning.write import write_tuned
from model.engines.records import REFERENCE_RECORD, EngineRecord

SLO = Slo(99, 50.0)
START = Candidate("eager", 2, 1, 8, 2)
SPACE = Space(("openvino", "eager"), ((2, 1), (1, 2)), ((8, 2), (1, 1)))
ACCEPTED = EngineRecord(engine="openvino", file="engines/model.onnx", status="accepted", reason="near")
GB = 1_000_000_000


def make_stretch(rate: float, *, slo_ms: float, answered: int = 100, failed: int = 0, dropped: int = 0) -> Stretch:
    return Stretch("open", 16, rate, answered, failed, dropped, rate, slo_ms / 2, slo_ms, slo_ms)


def play_server(rate: float, *, capacity: float = 100.0, service_ms: float = 10.0) -> Stretch:
    """A server whose latency grows without limit towards its capacity, as a queue's does."""
    return make_stretch(rate, slo_ms=service_ms / max(1e-6, 1 - rate / capacity))


def make_trial(rate: float, *, missed: float | None = None, slo_ms: float = 40.0, memory_mb: float = 500) -> Trial:
    stretch = make_stretch(rate or 10.0, slo_ms=slo_ms)
    return Trial(rate, missed, stretch, stretch, int(memory_mb * 1e6), 5.0, 10.0, (stretch,))


def make_outcome(candidate: Candidate, *rates: float, memory_mb: float = 500, slo_ms: float = 40.0) -> Outcome:
    trials = tuple(make_trial(rate, memory_mb=memory_mb, slo_ms=slo_ms) for rate in rates)
    return Outcome(candidate, trials[:1], trials[1:])


class TestObjective:
    @pytest.mark.parametrize(
        ("text", "slo"),
        [
            ("p99=50ms", Slo(99, 50)),
            (" P95 <= 0.2s", Slo(95, 200)),
            ("p99.9=1s", Slo(99.9, 1000)),
            ("p50<5ms", Slo(50, 5)),
        ],
    )
    def test_is_read_as_it_is_written(self, text, slo):
        assert parse_slo(text) == slo
        assert parse_slo(str(slo)) == slo

    @pytest.mark.parametrize(
        "text",
        [
            *("", "50ms", "p99", "p99=50", "p99=0ms", "p98=50ms", "mean=5ms", "p99=-5ms", "p100=5ms", "p99=601s"),
            f"p99={'9' * 400}ms",
        ],
    )
    def test_unknown_one_is_refused_in_one_line(self, text):
        with pytest.raises(UsageError, match="p99=50ms") as caught:
            parse_slo(text)
        assert "\n" not in str(caught.value)

    def test_needs_enough_answers_for_its_percentile(self):
        assert [Slo(percentile, 1).needed_samples for percentile in (50, 90, 99, 99.9)] == [2, 10, 100, 1000]

    @pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("5m", 300), ("1.5h", 5400)])
    def test_duration_is_read(self, text, seconds):
        assert parse_duration(text, option="--budget") == seconds

    @pytest.mark.parametrize("text", ["", "5", "0s", "-1m", "5 minutes", "50ms", f"{'9' * 400}s"])
    def test_bad_duration_names_its_option(self, text):
        with pytest.raises(UsageError, match="--budget"):
            parse_duration(text, option="--budget")


class TestCandidates:
    def make(self, model_config=None, records=(ACCEPTED, REFERENCE_RECORD), **changes) -> Space:
        values = {"slo": SLO, "cores": 4, "available_bytes": 64 * GB} | changes
        return make_space(model_config or {}, records, **values)

    def test_start_is_what_the_archive_does_now(self):
        config = {"minWorkers": 3, "batchSize": 5, "maxBatchDelay": 7, "handler": {"engine": "eager", "threads": 2}}
        assert self.make(config).start == Candidate("eager", 3, 2, 5, 7)

    def test_threads_that_the_handler_counts_are_cores_over_workers(self):
        config = {"minWorkers": 2, "handler": {"threads": "auto"}}
        assert (self.make(config).start.workers, self.make(config).start.threads) == (2, 2)

    def test_without_workers_there_is_one_a_core(self):
        assert (self.make({}).start.workers, self.make({}).start.threads) == (4, 1)

    def test_auto_starts_with_the_engine_that_the_handler_would_take(self):
        assert self.make({}).engines == ("openvino", "eager")

    def test_refused_engines_and_those_of_another_device_are_no_candidates(self):
        refused = ACCEPTED.model_copy(update={"status": "refused"})
        on_gpu = EngineRecord(engine="compiled-fp16", device="cuda", file="engines/x", status="accepted", reason="near")
        assert self.make(records=(refused, on_gpu, REFERENCE_RECORD)).engines == ("eager",)
        assert self.make(records=(refused, on_gpu, REFERENCE_RECORD), gpus=1).engines == ("compiled-fp16", "eager")

    def test_only_the_wanted_engines_are_candidates(self):
        assert self.make(only_engines=("eager",)).engines == ("eager",)

    def test_no_placement_asks_for_more_threads_than_cores(self):
        for cores in (1, 2, 3, 8, 64):
            placements = self.make(cores=cores).placements
            assert all(workers * threads <= cores for workers, threads in placements)
            assert len(set(placements)) == len(placements)

    def test_workers_that_memory_cannot_hold_are_left_out_and_said(self):
        space = self.make({"minWorkers": 1}, cores=16, available_bytes=2 * GB)
        assert max(workers for workers, _ in space.placements) <= 3
        assert "memory" in space.left_out[0]
        heavy = self.make({"minWorkers": 1}, cores=16, available_bytes=2 * GB, weights_bytes=GB)
        assert max(workers for workers, _ in heavy.placements) == 1

    def test_delay_that_would_eat_up_the_limit_is_left_out(self):
        delays = {delay for size, delay in self.make(slo=Slo(99, 10)).batches if size > 1}
        assert max(delays) <= 2.5

    def test_star_changes_one_setting_at_a_time(self):
        star = SPACE.star()
        assert star[0] == SPACE.start
        assert len(star) == len(set(star)) == 4
        pairs = [{"engine"}, {"workers", "threads"}, {"batch_size", "max_batch_delay_ms"}]
        for candidate in star[1:]:
            changed = {name for name, value in candidate.as_dict().items() if SPACE.start.as_dict()[name] != value}
            assert changed in pairs

    def test_winners_of_the_star_are_combined(self):
        scores = dict.fromkeys(SPACE.star(), 10.0) | {
            replace(SPACE.start, engine="eager"): 20.0,
            replace(SPACE.start, workers=1, threads=2): 5.0,
            replace(SPACE.start, batch_size=1, max_batch_delay_ms=1): 30.0,
        }
        assert combine(scores, SPACE) == Candidate("eager", 2, 1, 1, 1)


class TestSearch:
    @pytest.mark.parametrize("steps", [1, 2, 4, 8])
    def test_takes_no_more_stretches_than_steps(self, steps):
        count = itertools.count()
        found = find_rate(lambda rate: (next(count), play_server(rate))[1], SLO, saturation=100, steps=steps)
        assert len(found.stretches) == next(count) <= steps

    @pytest.mark.parametrize("near", [None, 60.0, 80.0, 95.0])
    def test_comes_near_the_highest_rate_that_meets_the_objective(self, near):
        found = find_rate(play_server, SLO, saturation=100, steps=8, near=near)  # 10 ms / (1 - r/100) = 50 ms at r = 80
        assert 72 <= found.rate <= 80
        assert found.missed is None or found.missed >= 80
        assert found.best.meets(SLO)

    def test_no_rate_above_the_saturation_is_tried(self):
        found = find_rate(lambda rate: make_stretch(rate, slo_ms=1), SLO, saturation=30, steps=6)
        assert found.rate <= 30
        assert found.missed is None

    def test_where_none_meets_it_the_nearest_miss_is_told(self):
        found = find_rate(lambda rate: make_stretch(rate, slo_ms=60 + rate), SLO, saturation=100, steps=4)
        assert found.rate == 0
        assert found.best.slo_ms == min(stretch.slo_ms for stretch in found.stretches)

    @pytest.mark.parametrize("loss", [{"failed": 1}, {"dropped": 1}, {"answered": 0}])
    def test_stretch_that_loses_requests_does_not_meet_it(self, loss):
        assert make_stretch(10, slo_ms=1).meets(SLO)
        assert not make_stretch(10, slo_ms=1, **loss).meets(SLO)

    def test_server_that_answers_nothing_ends_the_search(self):
        found = find_rate(lambda rate: make_stretch(rate, slo_ms=0, answered=0, failed=9), SLO, saturation=0, steps=5)
        assert found.rate == 0
        assert len(found.stretches) == 1


class Play:
    """A run of candidates with known rates; each takes as many seconds as its effort says, by a clock of its own."""

    def __init__(
        self, rates: dict[Candidate, float], *, seconds: float = 10.0, broken: tuple[Candidate, ...] = ()
    ) -> None:
        self.rates, self.seconds, self.broken, self.now = rates, seconds, broken, 0.0
        self.runs: list[Candidate] = []

    def run(self, candidate: Candidate, effort: Effort, near: float | None) -> Trial:
        self.now += self.seconds
        self.runs.append(candidate)
        if candidate in self.broken:
            raise CandidateError(f"{candidate}: broken")
        return replace(make_trial(self.rates.get(candidate, 1.0)), wall_s=self.seconds)

    def race(self, budget_s: float) -> Race:
        return Race(run=self.run, clock=lambda: self.now, budget_s=budget_s, stretch_s=1.0)


class TestHalving:
    def test_best_candidate_is_found_and_measured_again(self):
        best = Candidate("eager", 1, 2, 8, 2)
        play = Play({best: 50.0, SPACE.start: 20.0})
        outcomes = {outcome.candidate: outcome for outcome in play.race(600).hold(SPACE)}
        assert len(outcomes) == len(SPACE.grid())
        assert len(outcomes[best].finals) == MOST_FINALS
        assert judge(list(outcomes.values()), slo=SLO).recommended == best

    def test_budget_is_kept_but_for_what_was_begun(self):
        for budget_s in (1, 60, 120, 300):
            play = Play({SPACE.start: 20.0})
            race = play.race(budget_s)
            race.hold(SPACE)
            assert play.now <= max(budget_s, play.seconds) + play.seconds
            assert {*race.trials, *race.not_reached} == set(SPACE.grid())

    def test_start_is_measured_whatever_it_costs(self):
        play = Play({}, seconds=100)
        play.race(1).hold(SPACE)
        assert play.runs == [SPACE.start]

    def test_finalists_take_turns(self):
        play = Play({SPACE.start: 20.0, SPACE.star()[1]: 19.0})
        race = play.race(200)
        race.hold(SPACE)
        counts = [len(trials) for trials in race.finals.values()]
        assert len(counts) == 2
        assert max(counts) - min(counts) <= 1

    def test_candidate_that_cannot_be_served_is_left_out_and_named(self):
        broken = SPACE.star()[1]
        race = Play({}, broken=(broken,)).race(600)
        assert broken not in {outcome.candidate for outcome in race.hold(SPACE)}
        assert "broken" in race.failures[broken]

    def test_none_that_can_be_served_is_an_error(self):
        with pytest.raises(CandidateError, match="broken"):
            Play({}, broken=tuple(SPACE.grid())).race(600).hold(SPACE)

    def test_where_none_can_be_served_the_budget_is_kept_too(self):
        play = Play({}, broken=tuple(SPACE.grid()))
        with pytest.raises(CandidateError, match=r"no candidate could be served: .*broken; try imgcls serve"):
            play.race(45).hold(SPACE)
        assert play.now == 50

    def test_among_candidates_that_miss_it_the_nearer_ones_stay(self):
        near, far = make_trial(0, slo_ms=60), make_trial(0, slo_ms=600)
        race = Play({}).race(600)
        race.run = lambda candidate, effort, _: near if candidate.engine == "eager" else far
        outcomes = race.hold(SPACE)
        assert all(outcome.candidate.engine == "eager" for outcome in outcomes if outcome.finals)


class TestVerdict:
    A, B, C = START, replace(START, engine="openvino"), replace(START, batch_size=1)

    def test_clear_lead_is_successful(self):
        verdict = judge([make_outcome(self.A, 30, 29, 31), make_outcome(self.B, 60, 58, 62)], slo=SLO)
        assert (verdict.word, verdict.recommended, verdict.rivals) == ("successful", self.B, ())
        assert "2.00 times" in verdict.reason

    def test_overlapping_measurements_are_inconclusive_and_the_smaller_is_taken(self):
        outcomes = [make_outcome(self.A, 60, 50, 62, memory_mb=900), make_outcome(self.B, 59, 48, 55, memory_mb=600)]
        verdict = judge(outcomes, slo=SLO)
        assert (verdict.word, verdict.recommended, verdict.rivals) == ("inconclusive", self.B, (self.A,))
        assert "noise" in verdict.reason

    def test_step_of_the_search_counts_as_noise(self):
        coarse = replace(make_trial(50.0), missed=70.0)
        verdict = judge([Outcome(self.A, (coarse,), (coarse, coarse)), make_outcome(self.B, 55, 54, 56)], slo=SLO)
        assert verdict.word == "inconclusive"

    def test_first_look_does_not_beat_repeated_measurements(self):
        lucky = make_outcome(self.C, 500)
        verdict = judge([lucky, make_outcome(self.A, 30, 29, 31), make_outcome(self.B, 60, 58, 62)], slo=SLO)
        assert verdict.recommended == self.B

    def test_none_that_meets_it_has_failed_and_says_how_near_it_came(self):
        verdict = judge([make_outcome(self.A, 0, slo_ms=80), make_outcome(self.B, 0, slo_ms=66.6)], slo=SLO)
        assert (verdict.word, verdict.recommended) == ("failed", None)
        assert "openvino" in verdict.reason
        assert "66.6 ms" in verdict.reason

    def test_one_that_met_it_only_once_is_no_recommendation(self):
        finals = tuple(make_trial(0, slo_ms=80) for _ in range(3))
        verdict = judge([Outcome(self.A, (make_trial(20),), finals)], slo=SLO)
        assert (verdict.word, verdict.recommended) == ("failed", None)
        assert "once" in verdict.reason

    def test_one_that_there_was_no_time_to_repeat_has_not_failed_with_those_that_were(self):
        again = Outcome(self.A, (make_trial(20),), (make_trial(0, slo_ms=80),))
        verdict = judge([again, make_outcome(self.B, 19), make_outcome(self.C, 0, slo_ms=90)], slo=SLO)
        assert (verdict.word, verdict.recommended) == ("inconclusive", self.B)
        assert "no time to repeat it" in verdict.reason and str(self.A) in verdict.reason

    def test_candidate_that_was_measured_alone_says_so(self):
        assert "only one" in judge([make_outcome(self.A, 30, 29, 31)], slo=SLO).reason

    @pytest.mark.parametrize("rates", [(30,), (30, 29)])
    def test_without_repeats_the_noise_is_not_known(self, rates):
        verdict = judge([make_outcome(self.A, *rates), make_outcome(self.B, 90, 60)], slo=SLO)
        assert verdict.word == "inconclusive"
        assert verdict.recommended == self.B
        assert "noise is not known" in verdict.reason

    def test_one_candidate_has_no_rival(self):
        assert "no time to repeat it, so the noise" in judge([make_outcome(self.A, 30)], slo=SLO).reason
        both = [make_outcome(self.A, 30), make_outcome(self.B, 20)]
        assert "no time to repeat it and its rival, so the noise" in judge(both, slo=SLO).reason


class TestReport:
    @pytest.fixture
    def tuned(self) -> Tuned:
        outcomes = (make_outcome(START, 30, 29, 31), make_outcome(replace(START, engine="openvino"), 60, 58, 62))
        return Tuned(
            options=TuneOptions(Path("a.mar"), Path("config.properties"), SLO, 300.0, 2.0),
            machine=describe_machine(),
            model="a",
            version="1.0",
            tree_sha256="0" * 64,
            images="20 made JPEGs",
            trust_file=None,
            model_config={"minWorkers": 2},
            config={"metrics_mode": "log", "default_response_timeout": "7"},
            space=SPACE,
            outcomes=outcomes,
            failures={replace(START, workers=9): "9 workers: killed"},
            not_reached=(replace(START, workers=8),),
            verdict=judge(outcomes, slo=SLO),
            wall_s=299.0,
        )

    def test_table_puts_the_recommended_first_and_says_what_is_missing(self, tuned):
        head, first, second, *rest = as_table(tuned).splitlines()
        assert {"images/s at p99=50ms", "p50 ms", "p99 ms", "memory MB"} <= set(head.strip().split("  ")) | {
            part.strip() for part in head.split("  ")
        }
        assert first.startswith("*") and "openvino" in first and "60.0 (58.0 to 62.0)" in first
        assert "eager" in second
        assert any("killed" in line for line in rest) and any("1 more" in line for line in rest)

    def test_last_words_name_the_recommendation_and_why(self, tuned):
        assert as_text(tuned).startswith("recommended: openvino, 2 workers x 1 thread")
        assert "successful: " in as_text(tuned)

    def test_result_holds_every_measurement_and_the_machine(self, tuned):
        result = json.loads(json.dumps(as_dict(tuned)))
        assert result["recommended"] == replace(START, engine="openvino").as_dict()
        assert [len(each["trials"]) + len(each["finals"]) for each in result["candidates"]] == [3, 3]
        assert result["candidates"][0]["trials"][0]["stretches"][0]["p50_ms"] == 20.0
        assert result["machine"]["cores"] >= 1
        assert result["not_reached"][0]["workers"] == 8

    def test_settings_that_are_written_are_those_that_were_measured(self, tuned, archive: Path, tmp_path: Path):
        options = replace(tuned.options, archive=archive, config=tmp_path / "changed-since.properties")
        tree_sha256 = read_integrity(archive).tree_sha256
        written = write_tuned(replace(tuned, options=options, tree_sha256=tree_sha256), tmp_path / "out")
        assert written.config is not None
        assert read_config(written.config)["default_response_timeout"] == "7"

    def test_archive_that_was_replaced_is_not_given_the_numbers_of_the_one_before(
        self, tuned, archive: Path, tmp_path: Path
    ):
        replaced = replace(tuned, options=replace(tuned.options, archive=archive))
        with pytest.raises(ArchiveError, match="was replaced while it was tuned"):
            write_tuned(replaced, tmp_path / "out")
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["tune.json", "tune.png"]
        assert json.loads((tmp_path / "out" / "tune.json").read_text())["archive"]["tree_sha256"] == tuned.tree_sha256

    def test_measurements_that_cannot_be_written_are_told(self, tuned, archive: Path, tmp_path: Path, monkeypatch):
        monkeypatch.setattr("imgcls.tuning.run.tune", lambda options, **_: tuned)
        (tmp_path / "out" / "tune.json").mkdir(parents=True)
        result = run_tune(archive, tmp_path / "out", "--json")
        assert isinstance(result.exception, RunError)
        assert str(result.exception).startswith(f"{tmp_path / 'out'}: cannot be written: Is a directory")
        assert "60.0 (58.0 to 62.0)" in result.stderr and "recommended: openvino" in result.stderr

    def test_settings_of_an_earlier_tuning_are_not_taken_for_those_of_a_failed_one(
        self, tuned, archive: Path, tmp_path: Path, monkeypatch
    ):
        failed = replace(tuned, verdict=judge([make_outcome(START, 0, slo_ms=80)], slo=SLO))
        monkeypatch.setattr("imgcls.tuning.run.tune", lambda options, **_: failed)
        assert "earlier" not in run_tune(archive, tmp_path).stderr
        (tmp_path / archive.name).touch()
        result = run_tune(archive, tmp_path)
        assert result.exit_code == 1
        assert f"{tmp_path / archive.name} and its settings are of an earlier tuning" in result.stderr

    def test_plot_is_a_picture(self, tuned):
        many = [make_outcome(replace(START, batch_size=size), 10 + size) for size in range(1, 14)]
        png = plot_outcomes(many, slo=SLO, recommended=many[3].candidate, title="a 1.0 $x$")
        assert Image.open(io.BytesIO(png)).size[0] > 800


def run_tune(archive: Path, out: Path, *arguments: str):
    return CliRunner().invoke(app, ["tune", str(archive), "--slo", "p99=50ms", "--out", str(out), *arguments])
