import hashlib
import json
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt

from imgcls.archive.card import write_card
from imgcls.errors import ArchiveError
from model.engines.records import REFERENCE_RECORD, Comparison, EngineRecord, dump_records
from model.errors import ModelError

SCORES = {"samples": 1234, "accuracy": 0.5, "precision_macro": 0.25, "recall_macro": 0.125, "f1_macro": 0.0625}


def hash_weights(run: Path) -> str:
    return hashlib.sha256((run / "weights.safetensors").read_bytes()).hexdigest()


def write_metrics(run: Path, **change: object) -> None:
    metrics = {"weights_sha256": hash_weights(run), "test_sets": {"clean": SCORES}, **change}
    (run / "metrics.json").write_text(json.dumps(metrics))


def make_card(run: Path, *, license: str | None = None) -> str:
    write_card(run, name="colors", version="1.5", weights_sha256=hash_weights(run), license=license)
    return (run / "MODEL_CARD.md").read_text()


def section(card: str, title: str) -> str:
    return card.split(f"\n## {title}\n")[1].split("\n## ")[0].strip()


@pytest.fixture
def run(tmp_path, write_run) -> Path:
    return write_run(tmp_path / "run")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, train_photos) -> Path:
    run = tmp_path_factory.mktemp("runs") / "trained"
    train_photos(run, "--seed", 7)
    return run


def test_a_card_of_weights_from_elsewhere_says_what_is_not_known(run):
    card = make_card(run)
    assert section(card, "Data") == "Not recorded: the weights did not come with a train_record.json."
    assert section(card, "Training") == "- settings: not recorded, the run holds no train_config.yaml"
    assert section(card, "Measured on test sets").startswith("Not measured: ")
    assert section(card, "Engines").startswith("Eager fp32 only: the reference")
    assert section(card, "Licence").startswith("Not stated: ")
    assert "Nobody has recorded how often it is right." in section(card, "Limits")


def test_a_card_tells_data_code_and_settings_of_a_trained_run_but_not_where_they_lay(trained, photos):
    card = make_card(trained)
    record = json.loads((trained / "train_record.json").read_text())
    train = record["data"]["splits"]["train"]
    assert f"| train | 26 | 3 | 8 to 9 | `{train['sha256'][:12]}` |" in section(card, "Data")
    assert "Source: photos0" in section(card, "Data")  # the last name of the folder
    training = section(card, "Training")
    assert f"hash `{record['code']['sha256'][:12]}`" in training
    assert f"torch {record['versions']['torch']}" in training
    assert "- on: cpu, seed 7" in training and "- started from: random weights" in training
    assert "| `batch_size` | 8 |" in training
    assert str(photos.parent) not in card and str(trained.parent) not in card


def test_a_card_of_a_private_run_tells_epsilon_and_delta_and_of_another_nothing(tmp_path, train_photos, trained):
    run = tmp_path / "private"
    train_photos(run, "--dp-noise", 2, "--dp-delta", 1e-3, "--parameters", '{"widths": [3]}')
    epsilon = json.loads((run / "train_record.json").read_text())["privacy"]["epsilon"]
    training = section(make_card(run), "Training")
    assert f"- privacy: ({epsilon:.3g}, 0.001)-differentially private for each training image, by 3 steps" in training
    assert "with noise 2 and clip 1" in training
    assert "differentially private" not in make_card(trained)


@pytest.mark.parametrize(("dirty", "text"), [(True, "**with uncommitted changes**"), (False, "`, hash `")])
def test_a_card_says_whether_the_code_was_the_commits(tmp_path, write_run, trained, dirty, text):
    run = write_run(tmp_path / "run")
    record = json.loads((trained / "train_record.json").read_text())
    record["code"] |= {"git_commit": "c0ffee" * 6 + "beef", "git_dirty": dirty}
    (run / "train_record.json").write_text(json.dumps(record))
    assert "git commit `c0ffeec0ffee`" in (training := section(make_card(run), "Training"))
    assert text in training


def test_a_card_shows_the_metrics_of_each_test_set(run):
    numbers = {
        name: {"recall": recall, "support": 5} for name, recall in {"red": 1, "green": 0.5, "blue": 0.75}.items()
    }
    write_metrics(run, test_sets={"clean": SCORES | {"per_class": numbers}, "dark|room": SCORES | {"accuracy": 0.25}})
    card = make_card(run)
    table = section(card, "Measured on test sets")
    assert "| test set | samples | accuracy | precision | recall | F1 |" in table
    assert "| clean | 1,234 | 0.5000 | 0.2500 | 0.1250 | 0.0625 |" in table
    assert "| dark\\|room | 1,234 | 0.2500 |" in table
    assert "weakest classes on the test set clean: green (50% found), blue (75% found)." in section(card, "Limits")


def test_a_card_shows_how_near_each_engine_comes_and_why_one_was_refused(run):
    found = Comparison(
        compared_on="clean",
        images=270,
        largest_logit_difference=0.012345,
        top1_agreement=0.9963,
        top1_loss=0,
        probability_shift=0,
        accuracy=0.5,
        reference_accuracy=0.75,
    )
    engines = [
        REFERENCE_RECORD,
        EngineRecord(engine="openvino-int8", comparison=found, status="accepted", reason="within its tolerance"),
        EngineRecord(engine="compiled", reproducible=False, status="refused", reason="could not | be built"),
    ]
    (run / "engines.json").write_text(dump_records(engines))
    rows = section(make_card(run), "Engines").splitlines()[2:]
    assert len(rows) == 3
    assert rows[1] == (
        "| openvino-int8 | cpu | 99.63% of 270 images | 0.01235 | 0.5000 (eager 0.7500) | yes | within its tolerance |"
    )
    assert rows[2].endswith("| no | **refused**: could not \\| be built |")


@pytest.mark.parametrize(
    ("license", "fields"),
    [
        (None, {}),
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("ask: the *owner*", {"license": "other", "license_name": "ask: the *owner*"}),
    ],
)
def test_the_front_matter_is_yaml_that_model_hubs_read(run, license, fields):
    _, front, _ = make_card(run, license=license).split("---\n", 2)
    tags = {"pipeline_tag": "image-classification", "tags": ["imgcls", "torchserve", "simple_cnn"]}
    assert yaml.safe_load(front) == tags | fields


def test_no_name_breaks_out_of_the_cards_markup(tmp_path, write_run, trained):
    run = write_run(tmp_path / "run")
    record = json.loads((trained / "train_record.json").read_text())
    record["data"]["source"] = "a\n## b <script>|`"
    (run / "train_record.json").write_text(json.dumps(record))
    (run / "train_config.yaml").write_text("lr: 0.1\nnetwork: |-\n  x\n\n  ## y | [z](w) <script>\n")
    write_metrics(run, test_sets={"<script>": SCORES})
    html = MarkdownIt("commonmark").enable("table").render(make_card(run, license="# l\n<script>").split("---\n", 2)[2])
    assert "<script>" not in html and "<h2>b" not in html and "<h2>y" not in html and "<h1>l" not in html
    assert html.count("<h2>") == 8
    assert "a ## b &lt;script&gt;|`" in html  # and it is shown as it is


@pytest.mark.parametrize(
    ("file", "text", "error", "message"),
    [
        ("metrics.json", "[]", ArchiveError, r"metrics\.json: is not what imgcls evaluate writes"),
        ("metrics.json", '{"weights_sha256": "0", "test_sets": {}}', ArchiveError, "was measured on other weights"),
        ("metrics.json", '{"weights_sha256": "0", "test_sets": {"a": {"samples": 3}}}', ArchiveError, "accuracy"),
        (
            "train_config.yaml",
            "- 1",
            ArchiveError,
            r"train_config\.yaml: is not what train\.py writes .*; mend or delete",
        ),
        ("train_config.yaml", "a: [", ArchiveError, r"train_config\.yaml: is not what train\.py writes"),
        ("train_record.json", "{}", ArchiveError, r"^train_record\.json: is not what train\.py writes .*; delete it"),
        ("engines.json", "{", ModelError, r"engines\.json: cannot be read"),
    ],
)
def test_a_file_that_is_not_ours_is_one_line_that_names_it(run, file, text, error, message):
    (run / file).write_text(text)
    with pytest.raises(error, match=message) as caught:
        make_card(run)
    assert "\n" not in str(caught.value) and str(run) not in str(caught.value)


def test_metrics_that_are_no_numbers_are_refused(run):
    write_metrics(run, test_sets={"clean": SCORES | {"accuracy": float("nan")}})
    with pytest.raises(ArchiveError, match=r"metrics\.json: is not what imgcls evaluate writes .*accuracy"):
        make_card(run)
