"""What a run starts from: weights of a file, statistics of the pixels, memory, and a learning rate that was found."""

import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.models import adapt_input_conv

from imgcls.data.sources import open_source
from imgcls.errors import DataError, RunError, UsageError
from imgcls.training import lr_finder
from imgcls.training.batches import measure_own_bytes, open_batches
from imgcls.training.config import read_config
from imgcls.training.distributed import World
from imgcls.training.start import start_network, with_restart, with_statistics
from model.network import build_network
from model.spec import ModelSpec

SPEC = ModelSpec(channels=1, size=8, resize=8, mean=(0.0,), std=(1.0,), classes=("a", "b"))
PIXELS = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)


def configure(*flags: object):
    return read_config([str(flag) for flag in flags], description="")


@pytest.mark.parametrize("classes", [("a", "b"), ("a", "b", "c")])
def test_weights_of_a_file_are_counted_and_what_stays_fresh_is_named(tmp_path, capsys, classes):
    file = tmp_path / "other.safetensors"
    save_file(build_network(SPEC).state_dict(), file)
    start_network(SPEC.model_copy(update={"classes": classes}), configure("--weights", file), PIXELS)
    fresh = "; fresh: classifier.4.weight, classifier.4.bias" if len(classes) == 3 else ""
    assert capsys.readouterr().err == f"took {4 if fresh else 6} of 6 tensors of {file}{fresh}\n"


@pytest.mark.parametrize(("channels", "network"), [(1, "timm/resnet18"), (4, "timm/resnet18"), (2, "simple_cnn")])
def test_the_first_convolution_of_colours_is_adapted_as_timm_does(tmp_path, capsys, channels, network):
    sizes = {"network": network, "size": 32, "resize": 32}
    rgb = SPEC.model_copy(update={"channels": 3, "mean": (0.0,) * 3, "std": (1.0,) * 3, **sizes})
    own = SPEC.model_copy(update={"channels": channels, "mean": (0.0,) * channels, "std": (1.0,) * channels, **sizes})
    name = "conv1.weight" if network.startswith("timm/") else "features.0.0.weight"
    state, file = build_network(rgb).state_dict(), tmp_path / "rgb.safetensors"
    save_file(state, file)
    started = start_network(own, configure("--weights", file), PIXELS).state_dict()
    assert torch.equal(started[name], adapt_input_conv(channels, state[name]))
    assert all(torch.equal(started[each], state[each]) for each in state if each != name)
    remark = f"; {name} adapted from 3 to {channels} channels"
    assert capsys.readouterr().err == f"took {len(state)} of {len(state)} tensors of {file}{remark}\n"


def test_a_network_of_one_channel_gives_no_colours(tmp_path, capsys):
    file = tmp_path / "gray.safetensors"
    save_file(build_network(SPEC).state_dict(), file)
    rgb = SPEC.model_copy(update={"channels": 3, "mean": (0.0,) * 3, "std": (1.0,) * 3})
    start_network(rgb, configure("--weights", file), PIXELS)
    assert capsys.readouterr().err == f"took 5 of 6 tensors of {file}; fresh: features.0.0.weight\n"


def test_weights_that_torch_pickled_are_refused_with_a_command_that_converts_them(tmp_path):
    file, state = tmp_path / "it's old.pth", build_network(SPEC).state_dict()
    torch.save({"state_dict": state}, file)
    with pytest.raises(RunError, match=r"cannot be read as safetensors: .*; convert it with python -c ") as caught:
        start_network(SPEC, configure("--weights", file), PIXELS)
    words = shlex.split(str(caught.value).partition("convert it with ")[2])
    assert words[3:] == ["then", "give", "--weights", str(file.with_suffix(".safetensors"))]
    subprocess.run([sys.executable, "-c", words[2].removesuffix(",")], check=True)
    made = load_file(file.with_suffix(".safetensors"))
    assert all(torch.equal(made[name], tensor) for name, tensor in state.items())


def test_a_file_that_is_missing_gets_no_command(tmp_path):
    with pytest.raises(RunError, match="cannot be read as safetensors: ") as caught:
        start_network(SPEC, configure("--weights", tmp_path / "none.pth"), PIXELS)
    assert "convert" not in str(caught.value)


def test_statistics_are_those_of_all_pixels_to_the_last_written_digit():
    pixels = torch.randint(256, (700, 3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixels[:, 1] //= 9
    pixels[:, 2] = 7  # no spread
    spec = SPEC.model_copy(update={"channels": 3, "mean": (0.0,) * 3, "std": (1.0,) * 3})
    measured = with_statistics(spec, configure(), pixels)
    scaled = pixels.double() / 255
    assert measured.mean == tuple(round(value, 4) for value in scaled.mean((0, 2, 3)).tolist())
    assert measured.std == (*(round(value, 4) for value in scaled.std((0, 2, 3)).tolist()[:2]), 0.001)


def test_statistics_make_no_copy_in_floats(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "float", lambda self: pytest.fail("a copy of the pixels in floats"))
    with_statistics(SPEC, configure(), PIXELS)


def write_cgroup(folder: Path, *, limit: str) -> None:
    for name, text in {"max": limit, "current": "700", "stat": "anon 400\ninactive_file 200"}.items():
        (folder / f"memory.{name}").write_text(f"{text}\n")


def test_memory_is_that_of_the_container_shared_by_the_processes_on_it(tmp_path, monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=9000))
    monkeypatch.setattr("imgcls.memory.CGROUP", tmp_path)
    assert measure_own_bytes() == 9000
    write_cgroup(tmp_path, limit="max")
    assert measure_own_bytes() == 9000
    write_cgroup(tmp_path, limit="100000")
    assert measure_own_bytes() == 9000
    write_cgroup(tmp_path, limit="1500")
    assert measure_own_bytes() == 1000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert measure_own_bytes() == 250
    write_cgroup(tmp_path, limit="300")
    assert measure_own_bytes() == 0


def test_a_split_larger_than_the_containers_memory_is_decoded_on_demand(tmp_path, photos, monkeypatch):
    images = open_source(str(photos)).splits["train"]
    spec = SPEC.model_copy(update={"channels": 3, "classes": images.classes, "mean": (0.0,) * 3, "std": (1.0,) * 3})
    monkeypatch.setattr("imgcls.memory.CGROUP", tmp_path)
    kinds = []
    for limit in ("100000000", "1500"):
        write_cgroup(tmp_path, limit=limit)
        opened, _ = open_batches(images, spec, configure(), shuffle=True, world=World())
        kinds.append(type(opened.data).__name__)
    assert kinds == ["PixelSet", "PixelDataset"]


def test_noise_of_the_first_steps_is_not_taken_for_a_learning_rate(monkeypatch):
    rates = [10.0**power for power in range(40)]
    losses = [2.5, 2.2] + [2.3] * 18 + [2.3 - 0.1 * step for step in range(10)] + [1.5] * 10
    monkeypatch.setattr(lr_finder, "sweep", lambda *_, **__: (rates, losses))

    def find() -> float:
        return lr_finder.find_lr(build_network(SPEC), None, None, configure(), device=torch.device("cpu"))

    assert 19 <= rates.index(find()) <= 29
    losses[20:] = [2.3] * 20  # 2.2 is below 0.95 of the first loss, and of nothing that came after
    with pytest.raises(RunError, match="the loss hardly falls"):
        find()
    del rates[8:], losses[8:]
    with pytest.raises(RunError, match="the loss hardly falls"):
        find()


def test_several_processes_seek_no_learning_rate(photos):
    images = open_source(str(photos)).splits["train"]
    with pytest.raises(UsageError, match=r"^--find-lr is for one process, not 2; run python train\.py$"):
        open_batches(images, SPEC, configure("--find-lr"), shuffle=True, world=World(1, 2))


def test_all_processes_that_are_started_anew_go_on_where_the_main_one_has_a_checkpoint(tmp_path, monkeypatch):
    class Node(World):
        """A process on a node that does not have the run directory, told what the main one says."""

        def ask_main(self, function):
            assert not function()
            return True

    run = tmp_path / "run"
    config = configure("--out", run)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert not with_restart(config, World()).resume
    assert with_restart(config, Node(1, 2)).resume
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "00000000.pt").touch()
    assert with_restart(config, World()).resume
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert not with_restart(config, World()).resume


def test_processes_that_have_other_images_than_the_main_one_are_refused(monkeypatch):
    theirs = []

    def gather(found: list, own: str) -> None:
        found[:] = [theirs[0], own] if theirs else [own, own]
        theirs.append(own)

    monkeypatch.setattr("torch.distributed.all_gather_object", gather)
    one, other = {"train": (b"1", b"2")}, {"train": (b"1", b"3")}
    World(0, 2).require_same(one, what="the images of photos")
    World(1, 2).require_same(one, what="the images of photos")
    with pytest.raises(
        DataError, match=r"^the images of photos: process 1 of 2 has others than the main one; bring the"
    ):
        World(1, 2).require_same(other, what="the images of photos")
    World().require_same(other, what="the images of photos")
