"""The command line. Heavy imports are inside the commands, so that `--help` is fast."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import click

from rlhf_marl.cli.reward import reward
from rlhf_marl.errors import RlhfMarlError, UsageError
from rlhf_marl.sanitise import printable

_ADAPTERS = click.option(
    "--adapters",
    type=click.Choice(["best", "last"]),
    help="Adapters of the best checkpoint or the last; by default the best where training was validated.",
)
_CONFIG_KEYS = {"ignore_unknown_options": True, "allow_extra_args": True}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="rlhf-marl")
def cli() -> None:
    """Multi-agent RLHF: LoRA agents with their own reward models and gossiping critics."""


@cli.command(context_settings=_CONFIG_KEYS)
@click.argument("config")
@click.option("--run-dir", type=click.Path(path_type=Path), help="Output folder; by default runs/<config>-<time>.")
@click.option("--resume", is_flag=True, help="Continue from the newest checkpoint in --run-dir.")
@click.option("--profile", is_flag=True, help="Print the time per stage at the end.")
@click.option(
    "--report-every",
    type=click.IntRange(1),
    metavar="K",
    help="Write report.html every K iterations; the page reloads itself.",
)
@click.option("--dry-run", is_flag=True, help="Only check the config and print what it would cost, as `check` does.")
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def train(
    config: str,
    run_dir: Path | None,
    resume: bool,
    profile: bool,
    report_every: int | None,
    dry_run: bool,
    overrides: tuple[str, ...],
) -> None:
    """Train the agents that CONFIG describes.

    CONFIG is a YAML file. Options after CONFIG override its keys: --actor.signal td_q
    --agents.1.reward_model reward_models/courteous.yaml. `rlhf-marl schema` lists all keys with their meaning.
    """
    from rlhf_marl.config import load_config

    if dry_run:
        from rlhf_marl.cli.check import check as check_only

        check_only(load_config(config, overrides), config, device=None, probe=False, as_json=False)
        return
    from rlhf_marl.api import train as run

    run(
        load_config(config, overrides),
        run_dir=run_dir,
        resume=resume,
        name=config,
        profile=profile,
        report_every=report_every,
    )


@cli.command(context_settings=_CONFIG_KEYS)
@click.argument("config")
@click.option("--probe", is_flag=True, help="Also load the models and measure the time of an update.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Where it would train; by default as here.")
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def check(config: str, probe: bool, device: str | None, as_json: bool, overrides: tuple[str, ...]) -> None:
    """Check a config without loading weights, and estimate its costs.

    Finds every file and model, reads cards and templates, and prints what would be trained, the peak memory, tokens
    per update, disk space, and what is downloaded or trained on first use. Options after CONFIG override its keys.
    """
    from rlhf_marl.cli.check import check as run
    from rlhf_marl.config import load_config

    run(load_config(config, overrides), config, device=device, probe=probe, as_json=as_json)


@cli.command(context_settings=_CONFIG_KEYS)
@click.argument("config")
@click.option(
    "--over",
    multiple=True,
    required=True,
    metavar="KEY=VALUES",
    help="Key and its values, such as seed=0..4 or topology.gossip_rounds=0,20; repeatable.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Output folder; by default sweeps/<config>.")
@click.option("--jobs", type=click.IntRange(1), help="Runs at a time; by default 1, or what has room in the cluster.")
@click.option(
    "--runtime",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Where runs are trained: here, or on the Ray cluster at --runtime.address.",
)
@click.option("--evaluate", is_flag=True, help="Also evaluate every run on held-out questions.")
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def sweep(
    config: str,
    over: tuple[str, ...],
    out: Path | None,
    jobs: int | None,
    runtime: Literal["local", "ray"],
    evaluate: bool,
    overrides: tuple[str, ...],
) -> None:
    """Train every combination of some keys' values.

    Each combination is a run directory, out/<arm>/<seed>. The same command again skips finished runs and resumes
    interrupted ones. Writes sweep.html and sweep.json: means with intervals over seeds, and differences between arms,
    paired by seed. Options after CONFIG override its keys in all runs.
    """
    from rlhf_marl.cli.sweep import sweep as run

    run(config, over, out, jobs, runtime, evaluate, overrides)


@cli.command(context_settings=_CONFIG_KEYS)
@click.argument("config")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("study"), show_default=True, help="Results folder."
)
@click.option("--quick", is_flag=True, help="20 seeds and a tenth of the steps: minutes, with wide intervals.")
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def study(config: str, out: Path, quick: bool, overrides: tuple[str, ...]) -> None:
    """Run the grid-world study that CONFIG describes.

    Writes figures, results.json and claims.md. Settings that are already in the folder are not run again, so the same
    command continues an interrupted study. The outputs cover only the last run: figures that it does not draw are
    removed. Options after CONFIG override its keys: --seeds 40 --experiments "[fig2, fig5]".
    """
    if not all(find_spec(name) for name in ("numba", "matplotlib")):
        raise UsageError("study: needs numba and matplotlib: pip install '.[study]' in the toolkit's folder")
    from rlhf_marl.gridworld.study.config import load_study
    from rlhf_marl.gridworld.study.run import run_study

    chosen = load_study(config, overrides)
    run_study(chosen.quick() if quick else chosen, out, lambda line: click.echo(line, err=True))
    click.echo((out / "claims.md").read_text("utf-8"))


@cli.command()
@click.argument("run_dir", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--questions", default="prompts/evaluation.jsonl", show_default=True, help="JSON Lines of questions.")
@click.option(
    "--turns", type=click.IntRange(1), default=1, show_default=True, help="Turns if a question has no follow-ups."
)
@click.option("--max-new-tokens", type=click.IntRange(1), help="Token limit of an answer; by default as in training.")
@click.option(
    "--judges", multiple=True, metavar="CARD", help="Held-out reward model, instead of the shipped ones; repeatable."
)
@click.option("--judge", metavar="CARD", help="A chat judge for win rates, instead of the held-out reward models.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Seed of the sampled answers.")
@click.option("--limit", type=click.IntRange(1), help="Number of questions, spread evenly over the kinds.")
@_ADAPTERS
@click.option("--json", "output", type=click.Path(path_type=Path), help="Also write the numbers to this file.")
@click.option("--markdown", "document", type=click.Path(path_type=Path), help="Also write the tables to this file.")
def evaluate(run_dir: tuple[Path, ...], output: Path | None, document: Path | None, **options: Any) -> None:
    """Compare trained agents with their base model.

    Uses questions that the agents of RUN_DIR were not trained on. Several runs are evaluated in turn and shown side by
    side. An earlier evaluation with the same settings is reused.
    """
    from rlhf_marl.cli.evaluate import evaluate as run

    run(run_dir, options, output, document)


@cli.command()
@click.argument("run_dir", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Output file; by default report.html, in RUN_DIR or, for several runs, in the working folder.",
)
def report(run_dir: tuple[Path, ...], out: Path | None) -> None:
    """Write an HTML report of one or more runs.

    The report is one file that opens offline and shows several runs side by side. Of damaged or unfinished runs, and
    of runs of other versions, it shows what can be read.
    """
    from rlhf_marl.reporting.page import write_report

    click.echo(write_report(run_dir, out))


@cli.command()
@click.argument("folder", default="runs", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the runs as JSON.")
def runs(folder: Path, as_json: bool) -> None:
    """List runs with their state, last reward and verdicts.

    Lists every run directory in or below FOLDER, by default runs, the oldest first.
    """
    from rlhf_marl.cli.runs import runs as show

    show(folder, as_json=as_json)


@cli.command()
@click.argument("file", default="config.yaml", type=click.Path(path_type=Path))
@click.option("--model", help="Chat model: hub id, local folder, or package:<import name>/<file>.")
@click.option("--reward", "rewards", multiple=True, metavar="CARD", help="Reward card of an agent; repeat per agent.")
@click.option("--graph", help="Communication graph, such as ring, complete or star.")
@click.option("--question", help="First prompt of every dialogue.")
@click.option("--iterations", type=click.IntRange(1), help="Number of iterations.")
@click.option("--yes", is_flag=True, help="Ask nothing: use defaults for what is not given.")
def init(file: Path, yes: bool, **given: Any) -> None:
    """Write a commented config to start from.

    On a terminal, asks for what the options do not give. Shipped reward cards may be given by name: --reward harmless.
    """
    from rlhf_marl.cli.init import init as write

    write(file, given, ask=not yes)


cli.add_command(reward)


@cli.command()
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option("--agent", type=int, required=True, help="Number of the agent, from 0.")
@click.option("--to", type=click.Path(path_type=Path), required=True, help="A new folder, or an unchanged export.")
@_ADAPTERS
@click.option("--merge", is_flag=True, help="Export the full model, with the adapter merged into its weights.")
@click.option("--push", metavar="OWNER/NAME", help="Also upload to the Hub. Needs HF_TOKEN or `hf auth login`.")
@click.option("--public", is_flag=True, help="With --push: publish. Without it, a new repository is private.")
def export(
    run_dir: Path,
    agent: int,
    to: Path,
    adapters: Literal["best", "last"] | None,
    merge: bool,
    push: str | None,
    public: bool,
) -> None:
    """Export a trained agent in the Hugging Face Hub's format.

    Writes a folder with the agent's adapter (or the merged model), the tokenizer and a model card.
    """
    from rlhf_marl.hub.export import export as write

    click.echo(write(run_dir, agent=agent, to=to, merge=merge, push=push, public=public, adapters=adapters))


@cli.command()
@click.argument("run_dir", type=click.Path(path_type=Path))
@_ADAPTERS
@click.option("--max-tokens", type=click.IntRange(1), help="Token limit of an answer; by default as in training.")
@click.option(
    "--temperature", type=click.FloatRange(0, 2), help="Of the agents, 0 for the likeliest answer; as in training."
)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Seed of the sampled answers.")
@click.option("--no-scores", is_flag=True, help="Do not load the agents' reward models.")
def chat(
    run_dir: Path,
    adapters: Literal["best", "last"] | None,
    max_tokens: int | None,
    temperature: float | None,
    seed: int,
    no_scores: bool,
) -> None:
    """Talk to a run's team or agents.

    Each line of input is a question, or a command such as /agent 1, /team, /base, /scores, /save FILE; /help lists
    them. The agents' reward models score every answer.
    """
    from rlhf_marl.cli.chat import chat as talk
    from rlhf_marl.serving.answers import Sampling

    if temperature is not None and 0 < temperature < 0.001:
        raise UsageError(f"--temperature: {temperature} given; use 0, or 0.001 to 2")
    talk(run_dir, adapters, Sampling(seed, 0, max_tokens, temperature), scores=not no_scores)


@cli.command()
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address; any but a loopback one needs a key.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any free port.")
@click.option(
    "--api-key-env",
    default="RLHF_MARL_API_KEY",
    show_default=True,
    metavar="NAME",
    help="Environment variable with the key that clients must send.",
)
@_ADAPTERS
@click.option("--max-tokens", type=click.IntRange(1), default=1024, show_default=True, help="Largest max_tokens.")
@click.option(
    "--queue", type=click.IntRange(1, 1024), default=16, show_default=True, help="Requests that may wait at a time."
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=300,
    show_default=True,
    help="Seconds that a request may take, with waiting.",
)
def serve(
    run_dir: Path,
    host: str,
    port: int,
    api_key_env: str,
    adapters: Literal["best", "last"] | None,
    max_tokens: int,
    queue: int,
    timeout: float,
) -> None:
    """Serve a run's models in OpenAI's format.

    Answers /v1/models and /v1/chat/completions, with base, agent-0, ... and team as models, until Ctrl-C.
    """
    if not all(find_spec(name) for name in ("starlette", "uvicorn")):
        raise UsageError("serve: needs starlette and uvicorn: pip install '.[serve]' in the toolkit's folder")
    from rlhf_marl.cli.serve import serve as run
    from rlhf_marl.serving.app import Limits

    run(run_dir, host, port, api_key_env, adapters, Limits(max_tokens, queue, timeout))


@cli.command()
def schema() -> None:
    """Print the JSON Schema of training configs.

    Editors can use it for completion. It is also the reference of all keys.
    """
    from rlhf_marl.config import Config

    click.echo(json.dumps(Config.model_json_schema(), indent=2))


def main() -> None:
    """Entry point: a mistake is one line on stderr and exit code 2, a stopped run or a full disk 3, Ctrl-C 130."""
    try:
        cli(standalone_mode=False)
    except RlhfMarlError as error:
        for line in str(error).split("\n"):
            click.echo(f"error: {printable(line)}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        from rlhf_marl.files.atomic import FULL

        click.echo(printable(f"error: {error.filename or 'file'}: {error.strerror or error}"), err=True)
        sys.exit(3 if error.errno in FULL else 1)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:  # click turns KeyboardInterrupt into Abort
        sys.exit(130)
