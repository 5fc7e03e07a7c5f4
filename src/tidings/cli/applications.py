"""Finding an app by ``module:app``."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from types import ModuleType

from ..app import App
from ..errors import ConfigurationError, TidingsError


def load(spec: str) -> App:
    """The app that ``module:app`` names; ``module`` alone will do if it has just one.

    Raises:
        ConfigurationError: there is no such module or app, or importing it failed.
    """
    name, _, attribute = spec.partition(":")
    if not name or any(not part.isidentifier() for part in name.split(".")):
        raise ConfigurationError(f"{spec!r}: name an app as module:app, for example shop:app")
    module = _import(name)
    apps = {found: value for found, value in vars(module).items() if isinstance(value, App)}
    there = "it has " + ", ".join(f"{name}:{found}" for found in apps) if apps else "there is no App in it"
    if not attribute:
        if len(set(map(id, apps.values()))) == 1:
            return next(iter(apps.values()))
        raise ConfigurationError(f"{spec}: which app? {there}")
    value: object = module
    for part in attribute.split("."):
        value = getattr(value, part, None)
    if value is None:
        raise ConfigurationError(f"the module {name} has no {attribute!r}; {there}")
    if not isinstance(value, App):
        raise ConfigurationError(f"{spec} is not an App (its type is {type(value).__name__}); {there}")
    return value


def _import(name: str) -> ModuleType:
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except TidingsError:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise ConfigurationError(f"there is no module {error.name!r} in {here} nor on Python's path") from error
        raise ConfigurationError(f"importing {name} failed: {error}{_where(error)}") from error
    except Exception as error:
        raise ConfigurationError(f"importing {name} failed: {type(error).__name__}: {error}{_where(error)}") from error


def _where(error: BaseException) -> str:
    """The line of the user's code that failed."""
    if isinstance(error, SyntaxError):
        return ""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    return f" ({os.path.basename(frames[-1].filename)}, line {frames[-1].lineno})" if len(frames) > 1 else ""
