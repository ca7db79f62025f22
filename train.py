#!/usr/bin/env python
"""Trains an image classifier on labelled images and writes a run directory.

    python train.py                                             # handwritten digits, in seconds
    python train.py --data photos/ --network timm/resnet18 --epochs 30 --out runs/photos
    python train.py --config runs/photos/train_config.yaml --lr 0.02 --out runs/photos-2
    python train.py --config runs/photos/train_config.yaml --resume      # after a kill, a crash or Ctrl-C
    torchrun --nproc-per-node 4 train.py --data photos/                  # several processes, here or on several nodes

What comes next: `imgcls evaluate RUN`, then `./build_mar.sh RUN`.
"""

import shlex
import signal
import sys
import time
from collections.abc import Sequence

from imgcls.errors import DataError, ImgclsError, describe_missing

try:
    import torch
    from torch import nn

    from imgcls.data.checks import check_source
    from imgcls.data.digests import hash_source
    from imgcls.data.images import Problem, count_files
    from imgcls.data.sources import open_source
    from imgcls.training.augment import augment, make_mix
    from imgcls.training.balance import weigh_classes
    from imgcls.training.batches import Batches, choose_least_part, open_batches
    from imgcls.training.checkpoint import Checkpoints, Epoch, Part, Progress
    from imgcls.training.config import TrainConfig, read_config
    from imgcls.training.distillation import open_teacher
    from imgcls.training.distributed import World, delay_averaging, join_world
    from imgcls.training.exhaustion import name_what_ran_out
    from imgcls.training.gradient_filter import GradientFilter
    from imgcls.training.head import set_training
    from imgcls.training.lr_finder import find_lr
    from imgcls.training.optimise import make_ema, make_optimiser, make_scaler, make_schedule
    from imgcls.training.privacy import open_privacy
    from imgcls.training.progress import EpochProgress, log
    from imgcls.training.randomness import Draw, be_deterministic, drawing_at, generator_at, seed_everything
    from imgcls.training.record import write_record
    from imgcls.training.recording import make_record
    from imgcls.training.run import open_run, write_config, write_history, write_setup, write_weights
    from imgcls.training.start import (
        choose_device,
        decide_spec,
        set_threads,
        start_network,
        with_precision,
        with_pretraining,
        with_restart,
        with_statistics,
    )
    from imgcls.training.step_filter import refuse_diverged
    from imgcls.training.stopping import Stop, Stopped, catch_signals
    from model.errors import ModelError
    from model.normalise import Normalise
except ModuleNotFoundError as missing:
    sys.exit(f"error: {describe_missing(missing)}")
except KeyboardInterrupt:  # the imports take seconds
    sys.exit(130)


AMP = {None: None, "bf16": torch.bfloat16, "fp16": torch.float16}


def main(arguments: Sequence[str]) -> int:
    """Trains one classifier; returns the exit status."""
    config = with_precision(set_threads(read_config(arguments, description=str(__doc__))))
    if config.deterministic:
        be_deterministic()
    with name_what_ran_out(config.out), join_world(choose_device(config.device)) as world:
        return train_classifier(with_restart(config, world), world)


def train_classifier(config: TrainConfig, world: World) -> int:
    """Trains as configured, as one process or one of several; returns the exit status."""
    # Data: its splits, and what is wrong with them. Class order is sorted, so it is the same in every run.
    seed_everything(config.seed)
    device, run = world.device, config.out
    source = open_source(
        config.data, seed=config.seed, val_fraction=config.val_fraction, test_fraction=config.test_fraction, plain=True
    )
    source.require("train", "val")
    report(source.problems, where="listing", strict=config.strict)
    digests = hash_source(source)  # for the warnings, and for the run's record
    world.require_same((source.classes, digests), what=f"the images of {config.data}")
    for warning in check_source(source, digests):
        log(f"warning: {warning}")
    config = with_pretraining(config)
    spec = decide_spec(config, source.splits["train"])
    world.ask_main(lambda: open_run(config))
    train, bad_train = open_batches(source.splits["train"], spec, config, shuffle=True, world=world)
    val, bad_val = open_batches(source.splits["val"], spec, config, shuffle=False, world=world)
    report([*bad_train, *bad_val], where="decoding", strict=config.strict)
    pixels = train.sample_pixels()
    spec = with_statistics(spec, config, pixels)

    # Network, loss, optimiser and schedule. channels_last is what convolutions are fastest in, on CPU and GPU.
    classes = len(spec.classes)
    network = start_network(spec, config, pixels).to(device).to(memory_format=torch.channels_last)
    normalise, least = Normalise(spec).to(device), choose_least_part(network, config, world)
    if config.find_lr:
        print(f"--lr {find_lr(network, normalise, train, config, device=device):.2g}")
        return 0
    class_weights = weigh_classes(train.labels, classes=classes).to(device) if config.class_weights else None
    criterion = nn.CrossEntropyLoss(class_weights, label_smoothing=config.label_smoothing, reduction="none")
    teacher = open_teacher(config, spec, source, digests, device=device)
    optimiser = make_optimiser(network, config)
    schedule = make_schedule(optimiser, config, steps_per_epoch=len(train))
    scaler, mix = make_scaler(config, device), make_mix(config, classes=classes)
    ema = make_ema(network, config)
    judged = ema.module if ema else network  # whose weights are validated and become the run's
    gradient_filter = GradientFilter(network, config, run=run, names=train.names, classes=classes, world=world)
    privacy = open_privacy(network, optimiser, config, train, run=run, world=world)

    # Where the run stands: at its start, or at a checkpoint.
    parts: dict[str, Part | None] = {"network": network, "optimiser": optimiser, "schedule": schedule, "scaler": scaler}
    parts |= {"filter": gradient_filter, "ema": ema, "privacy": privacy, "teacher": teacher}
    checkpoints = Checkpoints(run, config, parts, world=world)
    record = make_record(config, source, digests, device=device)
    world.draw_apart(config.seed)
    if config.resume:
        progress = checkpoints.restore(spec=spec, steps_per_epoch=len(train))
    else:
        world.ask_main(lambda: write_setup(run, spec=spec, val=source.splits["val"], golden=config.golden))
        progress = Progress(steps_per_epoch=len(train))
        checkpoints.save(progress)
    if world.is_main:
        write_record(run, record, first_epoch=progress.epoch, first_step=progress.total_steps)
        write_config(run, config)
    parameters = sum(p.numel() for p in network.parameters())
    shape, where = f"{spec.channels} x {spec.size} x {spec.size}", f"{world.describe()} in {config.amp or 'float32'}"
    log(f"{spec.network}: {parameters:,} parameters, {shape} input, {classes} classes, on {where}")

    # Loop: steps, then validation. It stops between steps only, so that the checkpoint then written is whole.
    forward: nn.Module | None = None
    try:
        with catch_signals() as stop:
            while (number := progress.epoch) <= config.epochs and not progress.is_stale(config.patience):
                set_training(network, is_frozen=number <= config.freeze_epochs)
                if forward is None or number == config.freeze_epochs + 1:  # what learns has changed
                    forward = None  # the one before lets go of the gradients
                    forward = world.wrap(network)
                    if config.compile:
                        forward.compile()
                started, seen_before = time.perf_counter(), progress.seen
                with EpochProgress(f"epoch {number}/{config.epochs}", batches=len(train), done=progress.step) as bar:
                    for batch in train.draw(number, first=progress.step):
                        # Augment. What is drawn is a function of the position, so that it need not be stored.
                        position = (config.seed, number, progress.step)
                        pixels = augment(
                            batch.pixels.to(device, non_blocking=True),
                            flip=config.flip,
                            vertical_flip=config.vertical_flip,
                            shift=config.shift,
                            generator=generator_at(Draw.AUGMENT, *position),
                            places=batch.places,
                            count=len(batch.among),
                        )
                        # Forward and backward, part by part; samples that the filter drops weigh nothing.
                        optimiser.zero_grad(set_to_none=True)
                        gradient_filter.begin_step()
                        loss, right = torch.zeros((), device=device), torch.zeros((), device=device)
                        pieces = batch._replace(pixels=pixels).split(config.accumulate, least=least)
                        for place, part in enumerate(pieces, start=1):
                            images = normalise(part.pixels).contiguous(memory_format=torch.channels_last)
                            labels = targets = part.labels.to(device, non_blocking=True)
                            if mix:
                                with drawing_at(Draw.MIX, *position, place, world.rank):
                                    images, targets = mix(images, labels)
                            with delay_averaging(forward, is_last=place == len(pieces)):
                                with torch.autocast(device.type, AMP[config.amp], enabled=bool(config.amp)):
                                    logits = forward(images)  # (B, classes)
                                    weights = gradient_filter.weigh(part, logits, progress)
                                    losses = criterion(logits, targets)  # (B,)
                                    if teacher:
                                        losses = teacher.blend(losses, logits, images)
                                    part_loss = (losses * weights).sum()
                                scaler.scale(part_loss * world.size).backward()  # which takes the mean over processes
                            loss += part_loss.detach()
                            right += (logits.argmax(1) == labels).sum()
                        # Step, unless the filter skips it. In a private run both see the private gradient only.
                        if privacy:
                            privacy.privatise(progress)
                        scaler.unscale_(optimiser)
                        totals = world.sum(loss, right, stop.is_asked)
                        is_allowed, value = gradient_filter.allows(batch, totals[0], progress=progress, scaler=scaler)
                        if is_allowed:
                            scaler.step(optimiser)
                            schedule.step()
                        scaler.update()
                        # Checkpoint and log.
                        images_done = len(batch.among)
                        progress.add_step(loss=value, right=int(totals[1]), images=images_done, is_counted=is_allowed)
                        if ema and is_allowed:
                            ema.update(network, step=progress.total_steps)
                        if config.checkpoint_every and progress.total_steps % config.checkpoint_every == 0:
                            checkpoints.save(progress)
                        bar.step(loss=value, images=images_done)
                        if totals[2]:  # a signal has come, to this process or another
                            raise Stopped
                images_per_s = (progress.seen - seen_before) / (time.perf_counter() - started)
                # Validate. The epoch's weights, the history and the checkpoint are written in this order, so that
                # a run that is killed between two of them does this again.
                val_loss, val_accuracy = validate(judged, normalise, val, world=world, stop=stop)
                remark = gradient_filter.end_epoch(progress) + (privacy.write() if privacy else "")
                refuse_diverged(judged, val_loss, epoch=number, lr=config.lr)
                epoch = Epoch(
                    epoch=number,
                    lr=max(optimiser.param_groups[-1]["lr"], 0.0),  # one-cycle's line goes on after the last step
                    train_loss=progress.train_loss,
                    train_accuracy=progress.train_accuracy,
                    val_loss=val_loss,
                    val_accuracy=val_accuracy,
                    images_per_s=images_per_s,
                )
                is_best = progress.is_better(epoch)
                progress.end_epoch(epoch)
                if world.is_main:
                    if is_best or config.select == "last":
                        write_weights(run, judged)
                    write_history(run, progress.history)
                checkpoints.save(progress)
                log(
                    f"epoch {number}/{config.epochs}  train loss {epoch.train_loss:.4f}  val loss {val_loss:.4f}  "
                    f"val accuracy {val_accuracy:.4f}{' (best)' * is_best}  {images_per_s:,.0f} images/s{remark}"
                )
    except Stopped:
        checkpoints.save(progress)
        if privacy:
            log(f"private so far: {privacy.write().strip()}")
        if world.is_main and not progress.history:  # so that what was learnt can be served
            write_weights(run, judged)
        log(
            f"interrupted after {progress.step} steps of epoch {progress.epoch}; {run} holds the "
            f"{config.select if progress.history else 'unfinished'} weights; go on with --resume"
        )
        return 130
    if progress.epoch <= config.epochs:
        log(f"stopped early: {config.patience} epochs without a better validation accuracy")
    if privacy:
        log(f"the training images are private with {privacy.describe()}; what is not: docs/training.md")
    pasted = shlex.quote(str(run))
    log(f"wrote {run}; next: imgcls evaluate {pasted}, then ./build_mar.sh {pasted}")
    return 0


@torch.inference_mode()
def validate(
    network: nn.Module, normalise: Normalise, val: Batches, *, world: World, stop: Stop
) -> tuple[float, float]:
    """Returns mean cross entropy and accuracy on a split, over all processes."""
    network.eval()
    world.share_buffers(network)
    loss_sum, right = 0.0, 0
    for batch in val.draw():
        if world.size == 1:
            stop.check()
        images = normalise(batch.pixels.to(world.device)).contiguous(memory_format=torch.channels_last)
        logits, labels = network(images), batch.labels.to(world.device)  # (B, classes)
        loss_sum += nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        right += int((logits.argmax(1) == labels).sum())
    totals = world.sum(loss_sum, right)
    return float(totals[0]) / len(val.data), float(totals[1]) / len(val.data)


def report(problems: Sequence[Problem], *, where: str, strict: bool) -> None:
    """Names the files that cannot be used; with `strict` they end the run."""
    for problem in problems[:20]:
        log(f"left out: {problem}")
    if problems:
        log(f"files left out while {where}: {count_files(problems)}")
    if problems and strict:
        raise DataError(
            f"{count_files(problems)} files cannot be used, first {problems[0]}; mend them, or leave --strict off"
        )


def interrupt(*_: object) -> None:
    """Ends the program on SIGTERM as on Ctrl-C; in the loop `catch_signals` takes both."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, interrupt)
    try:
        sys.exit(main(sys.argv[1:]))
    except (ImgclsError, ModelError, OSError) as err:  # OSError: what cannot be read, or may not be written
        print(f"error: {err}", file=sys.stderr)
        sys.exit(getattr(err, "exit_code", 1))
    except KeyboardInterrupt:
        print("interrupted outside a step; what the last checkpoint holds is kept", file=sys.stderr)
        sys.exit(130)
