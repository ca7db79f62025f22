"""A run that learns another run's answers: the loss beside timm's, what the teacher sees, resuming, refusals."""

import shutil
from pathlib import Path

import pytest
import torch
from timm.task import LogitDistillationTask
from torch import nn
from torchvision.transforms import v2

from handler.integrity import hash_file
from imgcls.archive.card import write_card
from imgcls.errors import UsageError
from imgcls.training.config import TrainConfig, read_config
from imgcls.training.distillation import Teacher
from imgcls.training.record import RECORD_FILE, ParentRecord, format_record, read_record
from model.errors import WeightsError
from model.network import SimpleCNN
from model.normalise import Normalise
from model.spec import WEIGHTS_FILE, ModelSpec

CPU = torch.device("cpu")
SMALL = ("--parameters", '{"widths": [4], "dropout": 0.3}')


def make_spec(**fields: object) -> ModelSpec:
    chosen = {
        "network": "simple_cnn",
        "channels": 3,
        "size": 8,
        "resize": 8,
        "mean": (0.4, 0.5, 0.6),
        "std": (0.2,) * 3,
    }
    return ModelSpec(**chosen | {"classes": ("a", "b", "c")} | fields)


def make_teacher(spec: ModelSpec, student: ModelSpec, **settings: object) -> Teacher:
    torch.manual_seed(0)
    network = SimpleCNN(channels=spec.channels, size=spec.size, classes=len(spec.classes))
    config = TrainConfig(teacher=Path("runs/teacher"), **settings)
    return Teacher(network, spec, student=student, config=config, sha256="0" * 64, device=CPU)


def draw_pixels(size: int = 8) -> torch.Tensor:
    return torch.randint(256, (6, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_the_loss_is_that_of_timm_for_each_image():
    spec = make_spec(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))  # timm's, where a network says nothing
    teacher = make_teacher(spec, spec, teacher_weight=0.7, teacher_temperature=3)
    student, labels = SimpleCNN(channels=3, size=8, classes=3), torch.tensor([0, 1, 2, 2, 1, 0])
    student.in_chans = student.num_classes = 3
    student.pretrained_cfg = {"mean": spec.mean, "std": spec.std}
    images = Normalise(spec)(draw_pixels())
    task = LogitDistillationTask(
        student, teacher.network, task_loss_weight=0.3, temperature=3, criterion=nn.CrossEntropyLoss(), verbose=False
    )
    expected = task(images, labels)["loss"].item()
    logits = student(images)
    losses = teacher.blend(nn.functional.cross_entropy(logits, labels, reduction="none"), logits, images).detach()
    assert losses.shape == (6,)
    assert losses.mean() == pytest.approx(expected, rel=1e-5)
    assert losses.min() < losses.mean() < losses.max()


def test_the_teacher_sees_the_pixels_with_its_own_mean_and_standard_deviation():
    spec, student = make_spec(), make_spec(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    teacher, pixels = make_teacher(spec, student), draw_pixels()
    expected = teacher.network(Normalise(spec)(pixels))
    assert torch.allclose(teacher.answer(Normalise(student)(pixels)), expected, atol=1e-4)


def test_the_teacher_sees_mixed_images_mixed():
    spec, student = make_spec(), make_spec(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    teacher, pixels, labels = make_teacher(spec, student), draw_pixels(), torch.tensor([0, 1, 2, 2, 1, 0])
    mix = v2.MixUp(alpha=1.0, num_classes=3)
    torch.manual_seed(4)
    own, _ = mix(Normalise(student)(pixels), labels)
    torch.manual_seed(4)
    theirs, _ = mix(Normalise(spec)(pixels), labels)
    assert torch.allclose(teacher.answer(own), teacher.network(theirs), atol=1e-4)


def test_a_teacher_of_another_size_and_more_classes_answers_for_the_students_classes():
    spec, student = make_spec(size=16, resize=16, classes=("c", "x", "a", "b")), make_spec()
    teacher, pixels = make_teacher(spec, student), draw_pixels()
    larger = nn.functional.interpolate(Normalise(spec)(pixels), size=16, mode="bilinear", antialias=True)
    assert torch.allclose(teacher.answer(Normalise(student)(pixels)), teacher.network(larger)[:, [2, 3, 0]], atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"classes": ("a", "b")}, r"does not know 1 of the 3 classes, such as 'c'; it knows 2, such as 'a'"),
        ({"channels": 1, "mean": (0.5,), "std": (0.5,)}, "takes 1-channel images, and the images are 3-channel images"),
        (
            {"ranges": ((0, 9),) * 3},
            r"takes 3-channel images of ranges \[\[0, 9\], \[0, 9\], \[0, 9\]\], and the images",
        ),
    ],
)
def test_a_teacher_of_other_classes_or_images_is_refused(fields, message):
    with pytest.raises(UsageError, match=message):
        make_teacher(make_spec(**fields), make_spec())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--drop-gradients", "4"), "teacher is given, and drop_gradients"),
        (("--dp-noise", "1"), "teacher does not go together with dp_noise"),
        (("--teacher-weight", "0"), "teacher_weight: Input should be greater than 0"),
        (("--teacher-temperature", "0"), "teacher_temperature: Input should be greater than 0"),
        (("--teacher-temperature", "1e20"), "teacher_temperature: Input should be less than or equal to 100"),
        (("--teacher-weight", "1", "--class-weights"), "teacher_weight is 1, and class_weights or label_smoothing"),
    ],
)
def test_settings_that_do_not_go_with_a_teacher_are_refused(flags, message):
    with pytest.raises(UsageError, match=message):
        read_config(["--teacher", "runs/teacher", *flags], description="")


def test_a_temperature_without_a_teacher_is_refused():
    with pytest.raises(UsageError, match="teacher_weight or teacher_temperature is given without a teacher"):
        read_config(["--teacher-temperature", "3"], description="")


@pytest.fixture
def teacher(tmp_path, train_photos):
    train_photos(tmp_path / "teacher", "--parameters", '{"widths": [16]}', "--lr", 0.1, epochs=6)
    return tmp_path / "teacher"


def test_a_run_with_a_teacher_is_resumed_to_the_bit_and_with_this_teacher_only(tmp_path, train_photos, train, teacher):
    options = ("--teacher", teacher, *SMALL, "--mixup", 0.2, "--accumulate", 2)
    train_photos(tmp_path / "whole", *options, epochs=3)
    train_photos(tmp_path / "parts", *options, epochs=1)
    train_photos(tmp_path / "parts", *options, "--resume", epochs=3)
    train_photos(tmp_path / "alone", *SMALL, "--mixup", 0.2, "--accumulate", 2, epochs=3)
    whole, parts, alone = ((tmp_path / run / WEIGHTS_FILE).read_bytes() for run in ("whole", "parts", "alone"))
    assert whole == parts != alone
    shutil.copytree(teacher, tmp_path / "moved")
    train_photos(tmp_path / "parts", "--teacher", tmp_path / "moved", *options[2:], "--resume", epochs=4)
    with pytest.raises(UsageError, match=r"was trained with --teacher .*, now None"):
        train_photos(tmp_path / "parts", *SMALL, "--mixup", 0.2, "--accumulate", 2, "--resume", epochs=4)
    train_photos(teacher, "--overwrite", "--parameters", '{"widths": [16]}', "--seed", 1)
    now = hash_file(teacher / WEIGHTS_FILE)[:12]
    with pytest.raises(UsageError, match=f"has the weights {now}; the run was taught by (?!{now}).{{12}}; give"):
        train_photos(tmp_path / "parts", *options, "--resume", epochs=5)


def test_what_only_the_teacher_knows_is_learnt(tmp_path, train_photos, train, teacher, monkeypatch):
    """With all weight on the teacher, labels that say nothing leave the network as it is without them."""
    options = ("--teacher", teacher, "--teacher-weight", 1, "--lr", 0.05, *SMALL)
    train_photos(tmp_path / "run", *options, epochs=4)
    monkeypatch.setattr(train.nn.CrossEntropyLoss, "forward", lambda self, logits, targets: 0 * logits.sum(1))
    train_photos(tmp_path / "blind", *options, epochs=4)
    assert (tmp_path / "run/weights.safetensors").read_bytes() == (tmp_path / "blind/weights.safetensors").read_bytes()


def test_the_record_and_the_card_name_the_teacher_and_not_its_folder(tmp_path, train_photos, teacher):
    run = tmp_path / "run"
    train_photos(run, "--teacher", teacher)
    sha256 = hash_file(teacher / WEIGHTS_FILE)
    assert read_record(run / RECORD_FILE).teacher == ParentRecord(name="teacher", sha256=sha256)
    write_card(run, name="colors", version="1.0", weights_sha256=hash_file(run / WEIGHTS_FILE))
    card = (run / "MODEL_CARD.md").read_text()
    assert f"learnt the answers of: teacher, SHA-256 `{sha256[:12]}`" in card
    assert str(teacher) not in card


def test_a_teacher_that_learnt_what_is_held_out_now_is_warned_of(tmp_path, train_photos, teacher, photos, capsys):
    def find_warning(name: str, *flags: object, data: Path = photos) -> str:
        train_photos(tmp_path / "runs" / name, "--teacher", teacher, *flags, data=data)
        return "".join(line for line in capsys.readouterr().err.splitlines() if "other splits" in line)

    assert not find_warning("same")
    warning = f"warning: {teacher} seems to have been trained on other splits of this data"
    assert find_warning("seed", "--seed", 5).startswith(warning)
    (tmp_path / "link").symlink_to(photos)
    assert find_warning("link", "--seed", 5, data=tmp_path / "link").startswith(warning)
    fewer = tmp_path / "elsewhere" / photos.name  # other data in a folder of the same name
    shutil.copytree(photos, fewer)
    next(path for path in sorted(fewer.rglob("*")) if path.is_file()).unlink()
    assert not find_warning("fewer", data=fewer)
    record = read_record(teacher / RECORD_FILE)
    splits = {name: split.model_copy(update={"sha256": None}) for name, split in record.data.splits.items()}
    private = record.model_copy(update={"data": record.data.model_copy(update={"splits": splits})})
    (teacher / RECORD_FILE).write_text(format_record(private))  # as an archive of a private run holds it
    assert not find_warning("private", "--seed", 5)
    (teacher / RECORD_FILE).unlink()
    assert not find_warning("none", "--seed", 5)


def test_a_teacher_that_is_not_there_or_is_this_run_is_refused_before_anything_is_written(
    tmp_path, train_photos, teacher
):
    before = hash_file(teacher / WEIGHTS_FILE)
    with pytest.raises(UsageError, match=r"nowhere: is no run directory, spec\.yaml is not in it; make one with"):
        train_photos(tmp_path / "run", "--teacher", tmp_path / "nowhere")
    with pytest.raises(UsageError, match="--teacher and --out are both"):
        train_photos(teacher, "--teacher", teacher, "--overwrite")
    broken = tmp_path / "broken"
    broken.mkdir()
    shutil.copy(teacher / "spec.yaml", broken)
    with pytest.raises(UsageError, match=r"broken: is no run directory, weights\.safetensors is not in it"):
        train_photos(teacher, "--teacher", broken, "--overwrite")
    (broken / WEIGHTS_FILE).write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"broken/weights\.safetensors: cannot be read"):
        train_photos(teacher, "--teacher", broken, "--overwrite")
    assert hash_file(teacher / WEIGHTS_FILE) == before
