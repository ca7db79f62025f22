"""The --out folder: what was found, ready to be served, and all that was measured.

model-config.yaml   the recommended settings, as the tuned archive holds them
NAME.mar            the archive with them: recorded anew, verified, unsigned
config.properties   the frontend's settings that every candidate was measured with, log4j2.xml among them
tune.json tune.png  every measurement, and the plot
"""

import json
import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from imgcls.archive.publish import replace_archive
from imgcls.archive.verify import verify_archive
from imgcls.errors import UsageError
from imgcls.files import refuse_unwritable, write_atomic
from imgcls.tuning.repack import CONFIG_FILE, make_model_config, repack
from imgcls.tuning.report import as_dict
from imgcls.tuning.run import Tuned
from imgcls.tuning.settings import write_tuned_config

RESULT_FILE, PLOT_FILE, PROPERTIES_FILE = "tune.json", "tune.png", "config.properties"


@dataclass(frozen=True)
class Written:
    """What lies in the --out folder; None: not written."""

    result: Path
    plot: Path | None
    model_config: Path | None = None
    config: Path | None = None
    archive: Path | None = None

    def as_dict(self) -> dict[str, str | None]:
        """Returns it for machines."""
        return {name: str(path.absolute()) if path else None for name, path in vars(self).items()}


def refuse_out(out: Path, *, archive: Path, config: Path) -> None:
    """Raises UsageError, before it takes minutes, where the folder cannot be written or holds what is tuned."""
    there = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UsageError(f"--out: {there} is a file; name a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"--out: {there} cannot be written; name another folder")
    for own, mine in ((archive, out / archive.name), (config, out / PROPERTIES_FILE)):
        if own.resolve() == mine.resolve():
            raise UsageError(f"--out: {out} holds {own.name}, which would be overwritten; name another folder")


def write_tuned(tuned: Tuned, out: Path) -> Written:
    """Writes the measurements, and with a recommendation what serves it; a file that is there is replaced whole.

    Raises:
        ArchiveError: the archive cannot be read any more or was replaced, or what was written is not what it should be.
        RunError: the folder cannot be written.
    """
    with refuse_unwritable(out, advice="make room, or name another folder with --out, and tune again"):
        out.mkdir(parents=True, exist_ok=True)
        return _write(tuned, out)


def _write(tuned: Tuned, out: Path) -> Written:
    plot = _write_plot(tuned, out)
    result = out / RESULT_FILE
    write_atomic(result, json.dumps(as_dict(tuned), indent=1, ensure_ascii=False) + "\n")
    if tuned.verdict.recommended is None:
        return Written(result, plot)
    options = tuned.options
    text = make_model_config(tuned.model_config, tuned.verdict.recommended, cores=tuned.machine.cores)
    archive = _write_archive(options.archive, out, model_config=text, tree_sha256=tuned.tree_sha256)
    write_atomic(out / CONFIG_FILE, text)
    config = write_tuned_config(tuned.config, out / PROPERTIES_FILE, source=options.config)
    return Written(result, plot, out / CONFIG_FILE, config, archive)


def describe_use(tuned: Tuned, written: Written, *, name: str | None = None) -> str:
    """Returns the commands that serve what was found."""
    recommended = tuned.verdict.recommended
    if written.archive is None or written.config is None or recommended is None:
        return ""
    trust = ["--trust", str(tuned.trust_file)] if tuned.trust_file else []
    serve = ["imgcls", "serve", str(written.archive), "--ts-config", str(written.config), *trust]
    lines = [f"serve   {shlex.join(serve)}"]
    if tuned.trust_file:
        lines.append(
            "        (it is not signed: sign it first with imgcls archive sign, where the trust file asks for it)"
        )
    is_auto = recommended.threads == max(1, tuned.machine.cores // recommended.workers)
    if is_auto:  # `archive build` has no option for threads
        build = ["imgcls", "archive", "build", "RUN", "--name", name or tuned.model, "--version", tuned.version]
        build += ["--workers", str(recommended.workers), "--batch-size", str(recommended.batch_size)]
        build += ["--max-batch-delay-ms", str(recommended.max_batch_delay_ms), "--engine", recommended.engine]
        lines.append(f"build   {shlex.join(build)}  # with the --engines of before: the same archive, from its run")
    return "\n".join(lines)


def _write_archive(source: Path, out: Path, *, model_config: str, tree_sha256: str) -> Path:
    target, new = out / source.name, out / f".{source.name}.new"
    new.unlink(missing_ok=True)
    try:
        verify_archive(repack(source, new, model_config=model_config, tree_sha256=tree_sha256))
        replace_archive(new, target)
    finally:
        new.unlink(missing_ok=True)
    return target


def _write_plot(tuned: Tuned, out: Path) -> Path | None:
    try:
        from imgcls.tuning.plot import plot_outcomes
    except ModuleNotFoundError:  # matplotlib: the numbers are in the result all the same
        return None
    machine = tuned.machine
    title = f"{tuned.model} {tuned.version} on {machine.cores} cores, {machine.processor}, {machine.time[:10]}"
    png = plot_outcomes(tuned.outcomes, slo=tuned.options.slo, recommended=tuned.verdict.recommended, title=title)
    write_atomic(out / PLOT_FILE, png)
    return out / PLOT_FILE
