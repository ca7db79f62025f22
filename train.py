#!/usr/bin/env python
"""Trains an image classifier on labelled images and writes a run directory.

    python train.py                                             # handwritten digits, in seconds
    python train.py --data photos/ --network timm/resnet18 --epochs 30 --out runs/photos
    python train.py --config runs/photos/train_config.yaml --lr 0.02 --out runs/photos-2

What comes next: `imgcls evaluate RUN`, then `./build_mar.sh RUN`.
"""

import math
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

from imgcls.errors import DataError, ImgclsError, RunError, describe_missing

try:
    import torch
    from torch import nn

    from imgcls.data.checks import check_source
    from imgcls.data.digests import hash_source
    from imgcls.data.images import Problem, count_files
    from imgcls.data.sources import open_source
    from imgcls.training.augment import augment
    from imgcls.training.batches import Batches, open_batches
    from imgcls.training.config import read_config
    from imgcls.training.optimise import make_optimiser, make_schedule, restore_schedule
    from imgcls.training.progress import EpochProgress, log
    from imgcls.training.record import write_record
    from imgcls.training.recording import make_record
    from imgcls.training.run import (
        Epoch,
        open_run,
        read_checkpoint,
        save_epoch,
        write_config,
        write_setup,
        write_weights,
    )
    from imgcls.training.start import (
        choose_device,
        decide_spec,
        seed_everything,
        start_network,
        with_pretraining,
        with_statistics,
    )
    from model.errors import ModelError
    from model.normalise import Normalise
except ModuleNotFoundError as missing:
    sys.exit(f"error: {describe_missing(missing)}")
except KeyboardInterrupt:  # the imports take seconds
    sys.exit(130)


def main(arguments: Sequence[str]) -> int:
    """Trains one classifier; returns the exit status."""
    # Setup: configuration, run directory, device and random state.
    config = read_config(arguments, description=str(__doc__))
    if config.threads:
        torch.set_num_threads(config.threads)
    device = choose_device(config.device)
    generator = seed_everything(config.seed)

    # Data: its splits, and what is wrong with them. Class order is sorted, so it is the same in every run.
    source = open_source(
        config.data, seed=config.seed, val_fraction=config.val_fraction, test_fraction=config.test_fraction
    )
    for split in ("train", "val"):
        if split not in source.splits:
            raise DataError(f"{config.data}: has no {split} split; give a folder with train/, or one folder a class")
    report(source.problems, where="listing", strict=config.strict)
    digests = hash_source(source)  # for the warnings, and for the run's record
    for warning in check_source(source, digests):
        log(f"warning: {warning}")
    config = with_pretraining(config)
    spec = decide_spec(config, source.splits["train"])
    run = open_run(config)
    train, bad_train = open_batches(source.splits["train"], spec, config, shuffle=True)
    val, bad_val = open_batches(source.splits["val"], spec, config, shuffle=False)
    report([*bad_train, *bad_val], where="decoding", strict=config.strict)
    spec = with_statistics(spec, config, train.sample_pixels())

    # Network, loss, optimiser and schedule. channels_last is what convolutions are fastest in, on CPU and GPU.
    network = start_network(spec, config).to(device).to(memory_format=torch.channels_last)
    normalise = Normalise(spec).to(device)
    criterion = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
    optimiser = make_optimiser(network, config)
    schedule = make_schedule(optimiser, config, steps=config.epochs * len(train))
    history: list[Epoch] = []
    record = make_record(config, source, digests, device=device)
    if config.resume:
        state, history = read_checkpoint(run, spec=spec)
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
        restore_schedule(schedule, state["schedule"])
        generator.set_state(state["generator"])
    else:
        write_setup(run, spec=spec, val=source.splits["val"], golden=config.golden)
    write_record(run, record, first_epoch=len(history) + 1)
    write_config(run, config)
    parameters = sum(p.numel() for p in network.parameters())
    shape = f"{spec.channels} x {spec.size} x {spec.size}"
    log(f"{spec.network}: {parameters:,} parameters, {shape} input, {len(spec.classes)} classes, on {device}")

    # Loop: one epoch of steps, then validation; the best weights by validation are the run's, the last its checkpoint.
    try:
        for number in range(len(history) + 1, config.epochs + 1):
            network.train()
            started, loss_sum, right, seen = time.perf_counter(), 0.0, 0, 0
            with EpochProgress(f"epoch {number}/{config.epochs}", batches=len(train)) as progress:
                for pixels, labels in train.draw(generator):
                    pixels, labels = pixels.to(device, non_blocking=True), labels.to(device, non_blocking=True)
                    pixels = augment(pixels, flip=config.flip, shift=config.shift, generator=generator)
                    images = normalise(pixels).contiguous(memory_format=torch.channels_last)
                    logits = network(images)  # (B, classes)
                    loss = criterion(logits, labels)
                    if not math.isfinite(value := loss.item()):
                        raise RunError(f"the loss is {value} in epoch {number}; lower --lr, which is {config.lr:g}")
                    optimiser.zero_grad(set_to_none=True)
                    loss.backward()
                    optimiser.step()
                    schedule.step()
                    loss_sum += value * len(labels)
                    right += int((logits.argmax(1) == labels).sum())
                    seen += len(labels)
                    progress.step(loss=value, images=len(labels))
            images_per_s = seen / (time.perf_counter() - started)
            val_loss, val_accuracy = validate(network, normalise, val, device=device)
            epoch = Epoch(
                epoch=number,
                lr=optimiser.param_groups[0]["lr"],
                train_loss=loss_sum / seen,
                train_accuracy=right / seen,
                val_loss=val_loss,
                val_accuracy=val_accuracy,
                images_per_s=images_per_s,
            )
            state = {
                "optimiser": optimiser.state_dict(),
                "schedule": schedule.state_dict(),
                "generator": generator.get_state(),
            }
            mark = " (best)" if save_epoch(run, epoch, history, network=network, state=state) else ""
            log(
                f"epoch {number}/{config.epochs}  train loss {epoch.train_loss:.4f}  val loss {val_loss:.4f}  "
                f"val accuracy {val_accuracy:.4f}{mark}  {images_per_s:,.0f} images/s"
            )
    except KeyboardInterrupt:
        # Keep what was learnt: the best epoch is on disk; before the first epoch's end the weights of this moment are.
        if not history:
            write_weights(run, network)
        held, onward = ("best", "go on with --resume") if history else ("unfinished", "start again with --overwrite")
        log(f"interrupted after {len(history)} of {config.epochs} epochs; {run} holds the {held} weights; {onward}")
        return 130
    log(f"wrote {run}; next: imgcls evaluate {run}, then ./build_mar.sh {run}")
    return 0


@torch.inference_mode()
def validate(network: nn.Module, normalise: Normalise, val: Batches, *, device: torch.device) -> tuple[float, float]:
    """Returns mean cross entropy and accuracy on a split."""
    network.eval()
    loss_sum, right = 0.0, 0
    for pixels, labels in replace(val, batch_size=256).draw(torch.Generator()):
        images = normalise(pixels.to(device)).contiguous(memory_format=torch.channels_last)
        logits = network(images)  # (B, classes)
        loss_sum += nn.functional.cross_entropy(logits, labels.to(device), reduction="sum").item()
        right += int((logits.argmax(1) == labels.to(device)).sum())
    return loss_sum / len(val.data), right / len(val.data)


def report(problems: Sequence[Problem], *, where: str, strict: bool) -> None:
    """Names the files that cannot be used; with `strict` they end the run."""
    for problem in problems[:20]:
        log(f"left out: {problem.name}: {problem.reason}")
    if problems:
        log(f"files left out while {where}: {count_files(problems)}")
    if problems and strict:
        first = f"{problems[0].name}: {problems[0].reason}"
        raise DataError(
            f"{count_files(problems)} files cannot be used, first {first}; mend them, or leave --strict off"
        )


def interrupt(*_: object) -> None:
    """Ends training on SIGTERM as Ctrl-C does, so that a scheduler's stop keeps what was learnt."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, interrupt)
    try:
        sys.exit(main(sys.argv[1:]))
    except (ImgclsError, ModelError, OSError) as err:  # OSError: a disk that is full or may not be written
        print(f"error: {err}", file=sys.stderr)
        sys.exit(getattr(err, "exit_code", 1))
    except torch.OutOfMemoryError as err:
        print(f"error: {str(err).splitlines()[0]}; lower --batch-size or --size", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted before the first step; nothing was trained", file=sys.stderr)
        sys.exit(130)
