"""The sentences of a lake anew: ``python -m jobs.extract --lake IN --out OUT --strategy rules|endpoint|vllm``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from pydantic import ValidationError

from jobs.command import main, whole_number
from rayzero.config import ConfigError
from rayzero.reports.extraction.base import Strategy, Tally
from rayzero.reports.extraction.cache import AnswerCache
from rayzero.reports.extraction.endpoint import Endpoint, EndpointSettings
from rayzero.reports.extraction.rules import Rules
from rayzero.reports.extraction.styles import STYLES, find_style
from rayzero.studies.card import write_card
from rayzero.studies.lake import open_lake
from rayzero.studies.sentences import Rewritten, rewrite_sentences
from rayzero.studies.vllm_batches import VllmBatches, VllmSettings

REPORT_EVERY = 5.0
"""Seconds between lines of progress."""
KEY = "RAYZERO_EXTRACTION_API_KEY"
"""The variable that holds the endpoint's key; a key on the command line would show in the list of processes."""


def run(arguments: Sequence[str]) -> None:
    """Parse ``arguments``, run one extraction, and describe the new lake in its data card."""
    options = _parser().parse_args(arguments)
    result = rewrite_sentences(
        open_lake(options.lake),
        options.out,
        _strategy(options),
        find_style(options.style),
        cache=AnswerCache(options.cache) if options.cache else None,
        cpus=options.cpus,
        on_progress=_Printer(),
    )
    print(summary(result))
    print(f"data card   {write_card(result.lake)}")


def summary(result: Rewritten) -> str:
    """What was written and what it cost, for a terminal."""
    total, tally = result.lake.counts["total"], result.tally
    rate = tally.done / max(tally.seconds, 1e-9)
    lines = [
        f"lake        {result.lake.url}",
        f"studies     {total.get('studies', 0)} with {tally.reports} different reports",
        f"sentences   {total.get('sentences', 0)}  ({total.get('without_sentences', 0)} studies have none)",
        f"reports     {tally.answered} answered, {tally.cached} from the cache, {tally.fallbacks.total()} by rules",
        *(f"    {count:6d}  {reason}" for reason, count in tally.fallbacks.most_common()),
        f"tokens      {tally.prompt_tokens} read, {tally.completion_tokens} written, {tally.retries} retries",
        f"speed       {rate:.1f} reports/s over {tally.seconds:.1f} s",
    ]
    return "\n".join(lines)


class _Printer:
    """One line of progress every few seconds, and one at the end."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, tally: Tally) -> None:
        if tally.seconds < self._next and tally.done < tally.reports:
            return
        self._next = tally.seconds + REPORT_EVERY
        rate = tally.done / max(tally.seconds, 1e-9)
        tokens = tally.prompt_tokens + tally.completion_tokens
        print(
            f"extract: {tally.done}/{tally.reports} reports, {rate:.1f} reports/s, {tally.cached} cached, "
            f"{tally.fallbacks.total()} by rules, {tokens} tokens",
            flush=True,
        )


def _strategy(options: argparse.Namespace) -> Strategy:
    """The strategy asked for. Raises ConfigError for a setting that it needs and lacks, or one out of range."""
    if options.strategy == "rules":
        if options.model or options.url or options.cache:
            raise ConfigError("--model, --url and --cache are a model's; add --strategy endpoint, or vllm")
        return Rules()
    if not options.model:
        raise ConfigError(f"--strategy {options.strategy} needs --model")
    if options.strategy == "endpoint" and not options.url:
        raise ConfigError("--strategy endpoint needs --url, such as http://127.0.0.1:8001/v1")
    sampling = {"model": options.model, "temperature": options.temperature, "max_tokens": options.max_tokens}
    try:
        if options.strategy == "vllm":
            settings = VllmSettings(**sampling, engines=options.engines, gpus_per_engine=options.gpus_per_engine)
            return VllmBatches(settings)
        return Endpoint(
            EndpointSettings(
                **sampling,
                base_url=options.url,
                api_key=os.environ.get(KEY, "none"),
                concurrency=options.concurrency,
                timeout=options.timeout,
            )
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"--{first['loc'][0]}={first['input']!r}: {first['msg']}".replace("_", "-")) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jobs.extract",
        description="Write a lake with the sentences of its reports made anew. A report that a model fails on gets "
        "its sentences from the rules; it is counted, and named in the quarantine table with stage 'sentences'. "
        f"The key of an endpoint is read from {KEY}.",
    )
    parser.add_argument("--lake", required=True, help="folder or URL of the lake to read")
    parser.add_argument("--out", required=True, help="folder or URL of the lake to write; may be the same")
    parser.add_argument("--strategy", choices=("rules", "endpoint", "vllm"), default="rules")
    parser.add_argument("--style", choices=sorted(STYLES), default="minimal", help="which sentences (default minimal)")
    parser.add_argument("--cache", help="folder or URL that keeps a model's answers for the next time")
    parser.add_argument("--cpus", type=whole_number(1), help="tasks that copy at once (default: one per CPU)")
    model = parser.add_argument_group("a model")
    model.add_argument("--model", help="its name at the endpoint; for vllm a hub id or a folder")
    model.add_argument("--temperature", type=float, default=0.0)
    model.add_argument("--max-tokens", type=whole_number(1), default=1024, help="longest answer")
    endpoint = parser.add_argument_group("--strategy endpoint")
    endpoint.add_argument("--url", help="base address of the OpenAI-compatible API, ending in /v1")
    endpoint.add_argument("--concurrency", type=whole_number(1), default=32, help="requests at a time")
    endpoint.add_argument("--timeout", type=float, default=120.0, help="seconds to wait for one answer")
    batches = parser.add_argument_group("--strategy vllm")
    batches.add_argument("--engines", type=whole_number(1), default=1, help="copies of the model")
    batches.add_argument("--gpus-per-engine", type=whole_number(1), default=1, help="GPUs that share one copy")
    return parser


if __name__ == "__main__":
    main(run)
