"""The errors that ftpack raises, each with what happened, where, and what to do next.

The tree, with the exit code that the command line gives for each branch:

    FtpackError                      1   something failed while working
    ├── UsageError                   2   an option has a value that no model could make right
    │   ├── UnknownQuantError
    │   └── InvalidNameError
    ├── InputRefusedError            3   what was given cannot be packaged as it is
    │   ├── SourceNotFoundError
    │   ├── NotAModelError
    │   ├── MissingWeightsError
    │   ├── CorruptFileError
    │   ├── UnsupportedError
    │   ├── BaseNotFoundError
    │   ├── BaseMismatchError
    │   ├── AdapterMismatchError
    │   ├── NonFiniteError
    │   ├── ChatTemplateError
    │   ├── DiskSpaceError
    │   ├── OutputExistsError
    │   └── ToolchainError
    ├── PromptRefusedError           1   a renderer does not take a conversation
    ├── PromptDifferenceError        5   registered, but the prompt is not the prompt of training
    └── DaemonError                  4   the Ollama daemon is not there, or went away
        └── RegistrationError        1   it answered, and refused or misread what it was given
"""

from __future__ import annotations

__all__ = [
    "AdapterMismatchError",
    "BaseMismatchError",
    "BaseNotFoundError",
    "ChatTemplateError",
    "CorruptFileError",
    "DaemonError",
    "DiskSpaceError",
    "FtpackError",
    "InputRefusedError",
    "InvalidNameError",
    "MissingWeightsError",
    "NonFiniteError",
    "NotAModelError",
    "OutputExistsError",
    "PromptDifferenceError",
    "PromptRefusedError",
    "RegistrationError",
    "SourceNotFoundError",
    "ToolchainError",
    "UnknownQuantError",
    "UnsupportedError",
    "UsageError",
]

_SHOWN = 6


class FtpackError(Exception):
    """Something went wrong; `next_step` says what the user can do about it.

    Args:
        message: what happened, naming the file, the key and the value found.
        next_step: one sentence in the imperative, usually with a command.
    """

    exit_code = 1

    def __init__(self, message: str, *, next_step: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step


class UsageError(FtpackError):
    """An option has a value that is wrong for any model."""

    exit_code = 2


class UnknownQuantError(UsageError):
    """A quant name that llama.cpp does not have."""


class InvalidNameError(UsageError):
    """A model name that Ollama would refuse."""


class InputRefusedError(FtpackError):
    """What was given cannot be packaged as it is."""

    exit_code = 3


class SourceNotFoundError(InputRefusedError):
    """There is no such folder, checkpoint or Hub id."""


class NotAModelError(InputRefusedError):
    """The folder is there, but holds neither an adapter nor a model."""


class MissingWeightsError(InputRefusedError):
    """A configuration without the weights that belong to it."""


class CorruptFileError(InputRefusedError):
    """A file that cannot be read as what its name says."""


class UnsupportedError(InputRefusedError):
    """A method, format or architecture that ftpack does not package."""


class BaseNotFoundError(InputRefusedError):
    """The adapter's base model is nowhere to be found."""


class BaseMismatchError(InputRefusedError):
    """The base's tensors do not have the shapes that the adapter was trained on."""


class AdapterMismatchError(InputRefusedError):
    """Adapter tensors that nothing would use, or targeted modules without any."""


class NonFiniteError(InputRefusedError):
    """NaN or Inf in a weight."""


class ChatTemplateError(InputRefusedError):
    """No chat template, or one that does not render."""


class DiskSpaceError(InputRefusedError):
    """Not enough room for what would be written."""


class OutputExistsError(InputRefusedError):
    """The output folder holds something else that would be overwritten."""


class ToolchainError(InputRefusedError):
    """llama.cpp's converter or library is missing or of another version."""


class PromptRefusedError(FtpackError):
    """A renderer does not take a conversation: its chat template raises, or it lacks an ability."""


class PromptDifferenceError(FtpackError):
    """What renders the prompts does not render what the model was trained with."""

    exit_code = 5


class DaemonError(FtpackError):
    """The Ollama daemon could not be reached, or went away midway."""

    exit_code = 4


class RegistrationError(DaemonError):
    """The daemon answered, but what is registered is not what was built."""

    exit_code = 1


def first_line(error: BaseException) -> str:
    """What an error says, in short."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def listed(names: list[str], separator: str = ", ") -> str:
    """The first of some names, and how many more there are."""
    more = f"{separator}... ({len(names) - _SHOWN} more)" if len(names) > _SHOWN else ""
    return separator.join(names[:_SHOWN]) + more
