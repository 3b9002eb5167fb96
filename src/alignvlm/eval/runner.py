"""Run an answerer over a task: in batches, resumable, into one result file."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from ..errors import ConfigError, DataError
from ..inference.answerers import Answerer, Query, Reply
from .intervals import LEVEL, RESAMPLES, bootstrap_interval
from .results import Partial, Result, differences, environment, read_result, write_result
from .shown import SHOWN, check_shown, pages_sha256

if TYPE_CHECKING:
    from .tasks import Sample, Task


def evaluate(
    answerer: Answerer,
    task: Task,
    out: str | Path,
    *,
    limit: int | None = None,
    batch_size: int = 4,
    seed: int = 0,
    overwrite: bool = False,
    quiet: bool | None = None,
    resamples: int = RESAMPLES,
) -> Result:
    """Answer a task's samples, score them and write the result file.

    Replies are kept in ``OUT.partial.jsonl`` as they come. Called again with the same settings, an
    interrupted run goes on and a finished one is read back (``Result.found``), if the pages shown
    are still the same; batches are fixed by index, so scores, intervals, predictions and settings
    are those of an unbroken run, to the byte.

    Args:
        out: the JSON file.
        limit: only so many samples, spread evenly over the split (its first ones often share a
            document).
        batch_size: samples a batch; part of the settings, since rounding depends on it.
        seed: of the bootstrap.
        overwrite: discard what ``out`` and its partial file hold.
        quiet: no progress bar; default: where stderr is not a terminal.
        resamples: of the bootstrap.

    Raises:
        ConfigError: a limit or batch size below 1.
        DataError: ``out`` or its partial file is of other settings or other pages, or a page cannot
            be used.
        OSError: the disk is full; there is no half result, and the run can go on.
    """
    out = Path(out)
    if batch_size < 1 or (limit is not None and limit < 1):
        raise ConfigError("batch size and limit must be at least 1")
    chosen = spread(len(task), limit)
    samples = [task.sample(index) for index in chosen]
    if not samples:
        raise DataError(f"{task.name} {task.split} has no samples")
    settings = _settings(answerer, task, samples, limit, batch_size, seed, resamples)
    out.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out.with_name(out.name + ".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise DataError(f"{out}: another run is writing this file") from None
    try:
        return _locked(answerer, task, chosen, samples, out, settings, overwrite, quiet)
    finally:
        with suppress(OSError):  # while it is ours; Windows keeps open files
            Path(lock.lock_file).unlink()
        lock.release()


def spread(count: int, limit: int | None) -> list[int]:
    """``limit`` of ``count`` indices, evenly spaced, in order; all of them without a limit."""
    wanted = count if limit is None else min(count, limit)
    return [index * count // wanted for index in range(wanted)]


def _locked(
    answerer: Answerer,
    task: Task,
    chosen: Sequence[int],
    samples: Sequence[Sample],
    out: Path,
    settings: dict[str, Any],
    overwrite: bool,
    quiet: bool | None,
) -> Result:
    growing = out.with_name(out.name + ".partial.jsonl")
    if overwrite:
        out.unlink(missing_ok=True)
        growing.unlink(missing_ok=True)
    elif out.exists():
        found = _finished(out, settings)
        if answerer.needs_pages:
            check_shown(task, chosen, found.predictions, out, quiet=quiet)
        return found
    batch_size = settings["run"]["batch_size"]
    partial = Partial(growing, settings, batch_size, [sample.id for sample in samples])
    try:
        if answerer.needs_pages:
            done = len(partial.rows)
            check_shown(task, chosen[:done], partial.rows, growing, quiet=quiet)
        _answer(answerer, task, chosen, samples, partial, batch_size, quiet)
    finally:
        partial.close()
    result = _score(task, samples, partial.rows, settings)
    write_result(result, out)
    growing.unlink()
    return result


def _finished(out: Path, settings: dict[str, Any]) -> Result:
    result = read_result(out)
    if differing := differences(result.settings, settings):
        key, was, now = differing[0]
        raise DataError(
            f"{out} exists, with {key} = {was!r:.60}, now {now!r:.60}; name another file, or "
            "--overwrite"
        )
    return replace(result, found=True)


def _settings(
    answerer: Answerer,
    task: Task,
    samples: Sequence[Sample],
    limit: int | None,
    batch_size: int,
    seed: int,
    resamples: int,
) -> dict[str, Any]:
    digest = hashlib.sha256()
    for sample in samples:
        row = [sample.id, sample.group, sample.prompt, list(sample.answers)]
        digest.update(json.dumps(row).encode())
    settings = {
        "task": {
            "name": task.name,
            "split": task.split,
            "metrics": [metric.name for metric in task.metrics],
            "samples": len(samples),
            "samples_sha256": digest.hexdigest(),
            "max_new_tokens": task.max_new_tokens,
            **task.settings(),
        },
        "answerer": {"name": answerer.name, **answerer.settings()},
        "run": {"limit": limit, "batch_size": batch_size, "seed": seed},
        "bootstrap": {"resamples": resamples, "level": LEVEL, "over": "group"},
    }
    return json.loads(json.dumps(settings, allow_nan=False))  # as it is read back


def _answer(
    answerer: Answerer,
    task: Task,
    chosen: Sequence[int],
    samples: Sequence[Sample],
    partial: Partial,
    batch_size: int,
    quiet: bool | None,
) -> None:
    """Answer what is not answered yet, batch after batch."""
    metric, verdicts = task.metrics[0], []
    with tqdm(
        total=len(samples),
        initial=len(partial.rows),
        desc=f"{task.name} {answerer.name}",
        unit="sample",
        disable=quiet,  # None: where stderr is no terminal
    ) as bar:
        while (start := len(partial.rows)) < len(samples):
            batch = samples[start : start + batch_size]
            partial.append(_batch(answerer, task, batch, chosen[start : start + batch_size]))
            if not bar.disable:
                said = list(zip(samples, partial.rows, strict=False))[len(verdicts) :]
                verdicts += [metric.verdict(row["prediction"], s.answers) for s, row in said]
                score = metric.aggregate(verdicts)
                bar.set_postfix_str(f"{metric.name} {score:.3f}", refresh=False)
            bar.update(len(batch))


def _batch(
    answerer: Answerer, task: Task, samples: Sequence[Sample], indices: Sequence[int]
) -> list[dict[str, Any]]:
    begun = time.perf_counter()
    pages = [task.pages(index) if answerer.needs_pages else [] for index in indices]
    shown = [{SHOWN: pages_sha256(own)} if own else {} for own in pages]  # an answerer may draw
    queries = [
        Query(sample.id, own, sample.prompt, task.max_new_tokens)
        for sample, own in zip(samples, pages, strict=True)
    ]
    try:
        replies = answerer.answer(queries)
    except DataError as error:
        names = ", ".join(sample.id for sample in samples)
        raise DataError(f"{task.name} {task.split}, among samples {names}: {error}") from None
    seconds = (time.perf_counter() - begun) / len(samples)
    return [
        {**_row(sample, reply), **own, "seconds": round(seconds, 6)}
        for sample, reply, own in zip(samples, replies, shown, strict=True)
    ]


def _row(sample: Sample, reply: Reply) -> dict[str, Any]:
    counts = ("visual_tokens", "kept_visual_tokens", "new_tokens")
    said = {name: getattr(reply, name) for name in counts if getattr(reply, name)}
    return {"id": sample.id, "prediction": reply.text, **said, **reply.details}


def _score(
    task: Task,
    samples: Sequence[Sample],
    rows: Sequence[dict[str, Any]],
    settings: dict[str, Any],
) -> Result:
    """Verdicts are computed here, from what was said, so a resumed run has today's."""
    groups = [sample.group for sample in samples]
    verdicts: list[dict[str, dict[str, float]]] = [{} for _ in samples]
    metrics = {}
    for metric in task.metrics:
        own = metric.verdicts([row["prediction"] for row in rows], [s.answers for s in samples])
        for verdict, one in zip(verdicts, own, strict=True):
            verdict[metric.name] = one
        interval = bootstrap_interval(
            groups,
            own,
            metric.aggregate,
            seed=settings["run"]["seed"],
            resamples=settings["bootstrap"]["resamples"],
        )
        metrics[metric.name] = {"score": float(metric.aggregate(own)), "interval": list(interval)}
    predictions = [
        {
            "id": sample.id,
            "group": sample.group,
            "prompt": sample.prompt,
            "answers": list(sample.answers),
            "prediction": row["prediction"],
            "verdict": verdict,
            **{k: v for k, v in row.items() if k not in ("id", "prediction", "seconds")},
        }
        for sample, row, verdict in zip(samples, rows, verdicts, strict=True)
    ]
    first = metrics[task.metrics[0].name]
    seconds = sum(row["seconds"] for row in rows)
    return Result(
        score=first["score"],
        interval=tuple(first["interval"]),
        metrics=metrics,
        predictions=predictions,
        settings=settings,
        environment=environment(),
        timing={"seconds": round(seconds, 3), "seconds_per_sample": seconds / len(rows)},
    )
