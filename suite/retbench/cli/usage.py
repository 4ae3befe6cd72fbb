"""Messages about wrong words of a command line: what is wrong, the value, and what to do."""

from difflib import get_close_matches
from typing import Any

from retbench.errors import shown, unknown_name

_POINTS = {
    **dict.fromkeys(
        ("context", "context-len", "context-length", "ctx", "seq-len", "length"), ("context_len", "[8K]")
    ),
    **dict.fromkeys(("batch", "batch-size"), ("batch_size", "[8]")),
}
"""Options that people expect, with the field of a workload's table that each means, and an example of its value."""
_EXAMPLES = {"size": "25M", "rounds": "3", "threads": "2", "seed": "1", "cuda_graph": "false"}


def describe_usage_error(error: Any) -> str:
    """Return an error of the command line's parser as one message.

    Args:
        error: typer's UsageError, or a subclass of it.
    """
    if error.ctx is None:
        return _without_context(error)
    command = f"retbench{error.ctx.command_path.removeprefix(error.ctx.find_root().info_name or '')}"
    advice, parameter = f"See `{command} --help`.", getattr(error, "param", None)
    if hasattr(error, "possibilities"):
        return f"`{command}` has no option {error.option_name}. {_suggest(error) or advice}"
    if hasattr(error, "param_type") and parameter is not None:
        option = "" if parameter.param_type_name == "argument" else parameter.opts[0]
        needed = f"{option} {parameter.metavar or ''}".strip().rstrip(".")
        return f"`{command}` needs {needed}. {parameter.help or ''} {advice}"
    if parameter is not None:
        name = parameter.metavar if parameter.param_type_name == "argument" else parameter.opts[0]
        return f"{name} {_reason(error)}. {advice}"
    known = getattr(error.ctx.command, "commands", {})
    if error.message.startswith("No such command"):
        return str(unknown_name("command", error.message.split("'")[1], known, where=f"`{command}`"))
    return f"`{command}`: {_sentence(error.message)}. {advice}"


def _without_context(error: Any) -> str:
    if hasattr(error, "option_name"):  # its value is missing at the end of the line
        return f"{error.option_name} needs a value. Give one, or leave the option out."
    return f"{_sentence(error.message)}."


def _sentence(text: str) -> str:
    text = text.strip().rstrip(".").removeprefix("Got ").replace("argument(s)", "argument")
    return text[:1].lower() + text[1:]


def _reason(error: Any) -> str:
    """Return what is wrong with a value: in the words of this package where pydantic found it."""
    cause = error.__cause__
    if cause is None or not hasattr(cause, "errors"):
        return f"has a wrong value: {_sentence(error.message)}"
    from retbench.strict import reason_of

    (fault, *_) = cause.errors()
    return f"is {shown(fault['input'])}: {reason_of(fault)}"


def _suggest(error: Any) -> str:
    """Return a remedy for an unknown option: a field that `--set` replaces, or the option with the nearest name."""
    name = str(error.option_name).lstrip("-")
    if any("--set" in one.opts for one in error.ctx.command.params):
        from retbench.config.experiment import Profile

        field = name.replace("-", "_")
        if field in Profile.model_fields:
            example = f"{field}={_EXAMPLES.get(field, 'VALUE')}"
            return f"It is a field of the experiment's profile: use --set {example}."
        if name in _POINTS:
            field, value = _POINTS[name]
            return (
                f"Use --set workloads.WORKLOAD.{field}=VALUE, such as --set workloads.decode.{field}={value}."
            )
    options = {opt for one in error.ctx.command.params for opt in one.opts}
    if name == "results" and "--out" in options:  # commands that read records call it so
        return "Did you mean --out?"
    near = get_close_matches(str(error.option_name), error.possibilities or (), n=1)
    return f"Did you mean {near[0]}?" if near else ""
