"""Names the user's package in what fails in a model with mixers of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from retbench import mixers
from retbench.architectures.configs import ModelConfig
from retbench.errors import RetbenchError
from retbench.measure.limits import is_out_of_memory
from retbench.user_packages import OWN, fault, last_call, package_of


@contextmanager
def blaming_package(config: ModelConfig) -> Iterator[None]:
    """Raise what fails in a model with mixers of a user's package as a ConfigError that says where it failed.

    Other models raise their errors as they are: those would be faults of retbench. So do files that cannot be read or
    written.
    """
    try:
        yield
    except (RetbenchError, OSError):
        raise
    except Exception as error:
        packages = users_packages(config)
        if not packages or is_out_of_memory(error):
            raise
        raise fault(error, packages, _declared(config, error)) from error


def users_packages(config: ModelConfig) -> set[str]:
    """Return the import names of the users' packages that mixers of a model are of."""
    return {package_of(type(mixer)) for mixer in config.mixers} - {OWN}


def _declared(config: ModelConfig, error: Exception) -> str:
    """Return what the mixers of users' packages declare, if a form or a state failed that they do not have."""
    call = last_call(error, frozenset())
    if call.package != OWN or Path(call.path).parent != Path(mixers.__file__).parent:
        return ""
    return " ".join(
        f"The configuration of {mixer.title} has the forms {', '.join(mixer.forms)} and the state "
        f"{', '.join(f'{one.name} {one.shape}' for one in mixer.state) or 'of another layer'}."
        for mixer in config.mixers
        if package_of(type(mixer)) != OWN
    )
