#!/usr/bin/env python
"""Trains an image classifier on labelled images and writes a run directory.

    python train.py                                             # handwritten digits, in seconds
    python train.py --data photos/ --network timm/resnet18 --epochs 30 --out runs/photos
    python train.py --config runs/photos/train_config.yaml --lr 0.02 --out runs/photos-2
    python train.py --config runs/photos/train_config.yaml --resume      # after a kill, a crash or Ctrl-C

What comes next: `imgcls evaluate RUN`, then `./build_mar.sh RUN`.
"""

import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

from imgcls.errors import DataError, ImgclsError, describe_missing

try:
    import torch
    from torch import nn

    from imgcls.data.checks import check_source
    from imgcls.data.digests import hash_source
    from imgcls.data.images import Problem, count_files
    from imgcls.data.sources import open_source
    from imgcls.training.augment import augment
    from imgcls.training.batches import Batches, open_batches
    from imgcls.training.checkpoint import Checkpoints, Epoch, Part, Progress
    from imgcls.training.config import read_config
    from imgcls.training.gradient_filter import GradientFilter
    from imgcls.training.optimise import make_optimiser, make_schedule
    from imgcls.training.progress import EpochProgress, log
    from imgcls.training.randomness import Draw, be_deterministic, generator_at, seed_everything
    from imgcls.training.record import write_record
    from imgcls.training.recording import make_record
    from imgcls.training.run import open_run, write_config, write_history, write_setup, write_weights
    from imgcls.training.start import (
        choose_device,
        decide_spec,
        set_threads,
        start_network,
        with_pretraining,
        with_statistics,
    )
    from imgcls.training.stopping import Stop, Stopped, catch_signals
    from model.errors import ModelError
    from model.normalise import Normalise
except ModuleNotFoundError as missing:
    sys.exit(f"error: {describe_missing(missing)}")
except KeyboardInterrupt:  # the imports take seconds
    sys.exit(130)


def main(arguments: Sequence[str]) -> int:
    """Trains one classifier; returns the exit status."""
    # Setup: configuration, run directory, device and random state.
    config = set_threads(read_config(arguments, description=str(__doc__)))
    if config.deterministic:
        be_deterministic()
    device = choose_device(config.device)
    seed_everything(config.seed)

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
    criterion = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing, reduction="none")
    optimiser = make_optimiser(network, config)
    schedule = make_schedule(optimiser, config, steps=config.epochs * len(train))
    record = make_record(config, source, digests, device=device)
    names, classes = train.names, len(spec.classes)
    gradient_filter = GradientFilter(network, config, run=run, names=names, classes=classes, device=device)
    parts: dict[str, Part] = {"network": network, "optimiser": optimiser, "schedule": schedule}
    parts["filter"] = gradient_filter
    checkpoints = Checkpoints(run, config, parts)
    if config.resume:
        progress = checkpoints.restore(spec=spec, steps_per_epoch=len(train))
    else:
        write_setup(run, spec=spec, val=source.splits["val"], golden=config.golden)
        progress = Progress(steps_per_epoch=len(train))
        checkpoints.save(progress)
    write_record(run, record, first_epoch=progress.epoch, first_step=progress.total_steps)
    write_config(run, config)
    parameters = sum(p.numel() for p in network.parameters())
    shape = f"{spec.channels} x {spec.size} x {spec.size}"
    log(f"{spec.network}: {parameters:,} parameters, {shape} input, {len(spec.classes)} classes, on {device}")

    # Loop: steps, then validation; the best weights by validation are the run's. It stops between steps only, so that
    # the checkpoint then written is whole.
    try:
        with catch_signals() as stop:
            while (number := progress.epoch) <= config.epochs:
                network.train()
                started, seen_before = time.perf_counter(), progress.seen
                with EpochProgress(f"epoch {number}/{config.epochs}", batches=len(train), done=progress.step) as bar:
                    for batch in train.draw(number, first=progress.step):
                        # Images. What augmentation draws is a function of the position, so that it need not be stored.
                        generator = generator_at(Draw.AUGMENT, config.seed, number, progress.step)
                        pixels = batch.pixels.to(device, non_blocking=True)
                        labels = batch.labels.to(device, non_blocking=True)
                        pixels = augment(pixels, flip=config.flip, shift=config.shift, generator=generator)
                        images = normalise(pixels).contiguous(memory_format=torch.channels_last)
                        # Forward and backward; samples that the filter drops weigh nothing.
                        gradient_filter.begin_step()
                        logits = network(images)  # (B, classes)
                        weights = gradient_filter.weigh(batch, logits, labels, progress)
                        loss = (criterion(logits, labels) * weights).sum()
                        optimiser.zero_grad(set_to_none=True)
                        loss.backward()
                        # Step, unless the filter skips it.
                        is_allowed, value = gradient_filter.allows(batch, loss, progress)
                        if is_allowed:
                            optimiser.step()
                            schedule.step()
                        # Checkpoint and log.
                        right = int((logits.argmax(1) == labels).sum())
                        progress.add_step(loss=value, right=right, images=len(labels), is_counted=is_allowed)
                        if config.checkpoint_every and progress.total_steps % config.checkpoint_every == 0:
                            checkpoints.save(progress)
                        bar.step(loss=value, images=len(labels))
                        stop.check()
                images_per_s = (progress.seen - seen_before) / (time.perf_counter() - started)
                # Validate. The best epoch's weights, the history and the checkpoint are written in this order, so that
                # a run that is killed between two of them does this again.
                val_loss, val_accuracy = validate(network, normalise, val, device=device, stop=stop)
                remark = gradient_filter.end_epoch(progress)
                epoch = Epoch(
                    epoch=number,
                    lr=optimiser.param_groups[0]["lr"],
                    train_loss=progress.train_loss,
                    train_accuracy=progress.train_accuracy,
                    val_loss=val_loss,
                    val_accuracy=val_accuracy,
                    images_per_s=images_per_s,
                )
                if is_best := val_accuracy > max((row.val_accuracy for row in progress.history), default=-1.0):
                    write_weights(run, network)
                progress.end_epoch(epoch)
                write_history(run, progress.history)
                checkpoints.save(progress)
                log(
                    f"epoch {number}/{config.epochs}  train loss {epoch.train_loss:.4f}  val loss {val_loss:.4f}  "
                    f"val accuracy {val_accuracy:.4f}{' (best)' * is_best}  {images_per_s:,.0f} images/s{remark}"
                )
    except Stopped:
        checkpoints.save(progress)
        if not progress.history:  # so that what was learnt can be served
            write_weights(run, network)
        log(
            f"interrupted after {progress.step} steps of epoch {progress.epoch}; {run} holds the "
            f"{'best' if progress.history else 'unfinished'} weights; go on with --resume"
        )
        return 130
    log(f"wrote {run}; next: imgcls evaluate {run}, then ./build_mar.sh {run}")
    return 0


@torch.inference_mode()
def validate(
    network: nn.Module, normalise: Normalise, val: Batches, *, device: torch.device, stop: Stop
) -> tuple[float, float]:
    """Returns mean cross entropy and accuracy on a split."""
    network.eval()
    loss_sum, right = 0.0, 0
    for pixels, labels, _ in replace(val, batch_size=256).draw():
        stop.check()
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
    """Ends the program on SIGTERM as on Ctrl-C; in the loop `catch_signals` takes both."""
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
        print("interrupted outside a step; what the last checkpoint holds is kept", file=sys.stderr)
        sys.exit(130)
