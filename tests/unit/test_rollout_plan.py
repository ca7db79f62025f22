"""A plan is read, refused with the key that is wrong, and printed so that it reads the same again."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from imgcls.errors import UsageError
from imgcls.rollout.errors import PlanError
from imgcls.rollout.plan import Analysis, Canary, CanaryStep, Hook, Plan, Shadow, read_plan
from imgcls.rollout.thresholds import LatencyP99, Thresholds

FULL = """
workers = 2
golden = false

[shadow]
percent = 0

[canary]
steps = [{ weight = 1, hold_s = 5 }, { weight = 99.5, hold_s = 60 }]

[analysis]
on_inconclusive = "abort"

[analysis.metrics]
accuracy = false
error_rate = { max = 0.01, max_increase = false }

[[hooks.before_canary]]
exec = ["notify", "a \\"quoted\\" word", "\\u007f"]
on_failure = "ignore"

[[hooks.after_abort]]
webhook = "https://example.org/hook"
"""


def read(tmp_path, text, name="plan.toml"):
    path = tmp_path / name
    path.write_text(text)
    return read_plan(path)


def test_empty_file_is_the_default_plan(tmp_path):
    assert read(tmp_path, "") == read(tmp_path, "", "plan.yaml") == Plan()


def test_every_key_is_read(tmp_path):
    plan = read(tmp_path, FULL)
    assert plan.workers == 2
    assert [step.weight for step in plan.canary.steps] == [1, 99.5]
    assert plan.analysis.metrics.accuracy is None
    assert plan.analysis.metrics.error_rate.max_increase is None
    assert plan.hooks["before_canary"][0].exec == ("notify", 'a "quoted" word', "\x7f")
    assert plan.hooks["after_abort"][0].on_failure == "abort"


def test_toml_and_yaml_say_the_same(tmp_path):
    yaml = "canary: {steps: [{weight: 7, hold_s: 3}]}\nanalysis: {metrics: {p99_ms: {max: 80, max_ratio: null}}}\n"
    toml = (
        "[canary]\nsteps = [{weight = 7, hold_s = 3}]\n[analysis.metrics]\np99_ms = {max = 80.0, max_ratio = false}\n"
    )
    assert read(tmp_path, yaml, "plan.yml") == read(tmp_path, toml)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "[canary]\nsteps = [{weight=5}, {weight=25}, {weight=120}]",
            "canary.steps[2].weight is 120; expected above 25 and below 100",
        ),
        (
            "[canary]\nsteps = [{weight=5}, {weight=5}]",
            "canary.steps[1].weight is 5; expected above 5 and below 100",
        ),
        ("[canary]\nsteps = [{weight=0}]", "canary.steps[0].weight is 0; expected above 0 and below 100"),
        ("[canary]\nsteps = [{hold_s=1}]", "canary.steps[0].weight is missing; expected a number"),
        ("[canary]\nsteps = [{weight=true}]", "canary.steps[0].weight is true; expected a number"),
        ("[shadow]\npercent = 120", "shadow.percent is 120; expected 0 to 100"),
        ("[canary]\nsteps = [{weight=0.001}]", "canary.steps[0].weight is 0.001; expected at most two decimals"),
        ("[canary]\nsteps = [{weight=99.999}]", "canary.steps[0].weight is 99.999; expected at most two decimals"),
        ("[shadow]\npercent = 0.004", "shadow.percent is 0.004; expected at most two decimals"),
        ("[analysis]\ninterval_s = 1e-300", "analysis.interval_s is 1e-300; expected 0.1 to 86400"),
        (
            "hooks.after_drain = [{exec=['a'], timeout_s=1e12}]",
            "hooks.after_drain[0].timeout_s is 1e+12; expected above 0 and 86400 or below",
        ),
        ("[shadow]\npercnt = 1", "shadow.percnt is no key of a plan; meant percent?"),
        ("[shadow]\nhold_s = nan", "shadow.hold_s is nan; expected 0 to 2592000"),
        ('workers = "3"', "workers is '3'; expected a whole number, 1 to 1000"),
        ("workers = 2000", "workers is 2000; expected 1 to 1000"),
        ("[canary]\nsteps = [{weight=5, hold_s=1e308}]", "canary.steps[0].hold_s is 1e+308; expected 0 to 2592000"),
        ("keep_warm_s = inf", "keep_warm_s is inf; expected 0 to 2592000"),
        ("ready_timeout_s = 1e10", "ready_timeout_s is 1e+10; expected above 0 and 2592000 or below"),
        (f"[shadow]\nmin_samples = {10**400}", f"shadow.min_samples is {10**400}; expected 1 to 1000000000"),
        ("golden = 1", "golden is 1; expected true or false"),
        ("analysis = 3", "analysis is 3; expected a section of keys"),
        (
            '[analysis]\non_inconclusive = "wait"',
            "analysis.on_inconclusive is 'wait'; expected pause, promote or abort",
        ),
        ("[analysis.metrics.error_rate]\nmax = 2", "analysis.metrics.error_rate.max is 2; expected 0 to 1"),
        (
            "hooks.before_canry = [{exec=['a']}]",
            "hooks.before_canry is no key of a plan; meant before_canary?",
        ),
        ("hooks.before_canary = [{exce=['a']}]", "hooks.before_canary[0].exce is no key of a plan; meant exec?"),
        ("hooks.before_canary = [{}]", "hooks.before_canary[0] is neither; expected exec or webhook, one of them"),
        (
            "hooks.after_drain = [{webhook='ftp://a'}]",
            "hooks.after_drain[0].webhook is 'ftp://a'; expected an http or https address",
        ),
    ],
)
def test_what_is_wrong_is_named_on_one_line(tmp_path, text, problem):
    with pytest.raises(PlanError) as caught:
        read(tmp_path, text)
    assert str(caught.value) == f"{tmp_path / 'plan.toml'}: {problem}"


def test_a_key_of_yaml_that_stands_twice_is_refused_and_a_merge_is_not(tmp_path):
    with pytest.raises(PlanError, match=r"plan\.yaml: interval_s is there twice; .*line 1"):
        read(tmp_path, "analysis: {interval_s: 5.0, max_wait_s: 1.0, interval_s: 6.0}", "plan.yaml")
    steps = "[{<<: *hold, weight: 3.0}, {<<: *hold, hold_s: 9.0, weight: 4.0}]"
    merged = f"shadow: &hold {{hold_s: 5.0}}\ncanary: {{steps: {steps}}}"
    assert [step.hold_s for step in read(tmp_path, merged, "plan.yaml").canary.steps] == [5.0, 9.0]


def test_unreadable_plans_are_usage_errors(tmp_path):
    for text, name in (("a =", "plan.toml"), ("a: [", "plan.yaml"), ("{}", "plan.json"), ("- 1", "list.yaml")):
        with pytest.raises(UsageError) as caught:
            read(tmp_path, text, name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
        assert caught.value.exit_code == 2
    with pytest.raises(PlanError, match=r"missing\.toml: cannot be read"):
        read_plan(tmp_path / "missing.toml")


def test_printed_plan_reads_the_same_again(tmp_path):
    for plan in (Plan(), read(tmp_path, FULL)):
        assert read(tmp_path, plan.as_toml(), "printed.toml") == plan


percents = st.floats(0.1, 99.9).map(lambda value: round(value, 2))
limits = st.none() | st.floats(0.001, 1e4)


@settings(max_examples=60, deadline=None)
@given(
    weights=st.lists(percents, unique=True, max_size=5).map(sorted),
    percent=st.just(0.0) | percents,
    workers=st.none() | st.integers(1, 64),
    p99=st.none() | st.builds(LatencyP99, max=limits, max_ratio=limits),
    command=st.lists(st.text(), min_size=1, max_size=3),
)
def test_any_plan_survives_being_printed(tmp_path_factory, weights, percent, workers, p99, command):
    plan = Plan(
        workers=workers,
        shadow=Shadow(percent=percent),
        canary=Canary(steps=tuple(CanaryStep(weight=weight) for weight in weights)),
        analysis=Analysis(metrics=Thresholds(p99_ms=p99)),
        hooks={"before_promote": (Hook(exec=tuple(command)),)},
    )
    assert read(tmp_path_factory.mktemp("plan"), plan.as_toml()) == plan


def sections(model: type[BaseModel]) -> list[type[BaseModel]]:
    return [model, *(each for child in model.__subclasses__() for each in sections(child))]


def test_every_key_has_a_comment():
    from imgcls.rollout.thresholds import Section

    bare = [
        (model, key)
        for model in sections(Section)
        for key, field in model.model_fields.items()
        if not field.description
    ]
    assert not bare


def test_schedule_counts_the_looks_of_shadow_and_canary():
    plan = Plan(
        shadow=Shadow(hold_s=60),
        canary=Canary(steps=(CanaryStep(weight=5, hold_s=25), CanaryStep(weight=50, hold_s=0))),
        analysis=Analysis(interval_s=10, max_wait_s=95),
    )
    schedule = plan.schedule()
    assert (schedule.steps, schedule.waits) == (3, 10)
    assert schedule.interims == 5 + 2 + 0 + 3 * 10
    assert plan.model_copy(update={"shadow": Shadow(percent=0)}).schedule().steps == 2
