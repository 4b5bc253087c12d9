"""The errors that ftpack raises, each with what happened, where, and what to do next.

The tree, with the exit code that the command line gives for each branch:

    FtpackError                      1   something failed during the work
    ├── UsageError                   2   an option has a value that is wrong for any model
    │   ├── UnknownQuantError
    │   └── InvalidNameError
    ├── InputRefusedError            3   the input cannot be packaged as it is
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
    ├── PromptRefusedError           1   a renderer does not accept a conversation
    ├── PromptDifferenceError        5   the model is made, but a prompt differs from training
    └── DaemonError                  4   the Ollama daemon cannot be reached, or has stopped
        └── RegistrationError        1   it refused or misread the model that it was sent
"""

from __future__ import annotations

from collections.abc import Sequence

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

# Next steps that several errors share.
RESTORE_FILE = "Restore the file from the training run, or download it again."
RESTORE_CONFIG = "Restore the configuration from the training run."
SAVE_MODEL_AGAIN = "Download or save the model again."
SAVE_ADAPTER_AGAIN = "Save the adapter again with PEFT's save_pretrained."
CHECK_BASE_OR_ADAPTER = "Check --base, or save the adapter again with PEFT's save_pretrained."
MERGE_WITH_PEFT = (
    "Merge it with PEFT (merge_and_unload, save_pretrained) and package the merged folder."
)
NAME_BASE = "Use --base PATH_OR_ID to name the model that was fine-tuned."
USE_16_BIT_ORIGINAL = "Use the 16-bit model that it was quantized from: --base PATH_OR_ID."
USE_EARLIER_CHECKPOINT = (
    "The training run diverged or overflowed; use an earlier training checkpoint."
)
CHOOSE_OUT = "Choose another folder with --out."
CHOOSE_OUT_OR_FORCE = "Choose another folder with --out, or overwrite it with --force."

_LISTED = 6


class FtpackError(Exception):
    """Something went wrong; `next_step` says what the user can do about it.

    Args:
        message: what happened, with the file, the key and the value.
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
    """The input cannot be packaged as it is."""

    exit_code = 3


class SourceNotFoundError(InputRefusedError):
    """There is no such folder, training checkpoint or Hub id."""


class NotAModelError(InputRefusedError):
    """The folder exists, but holds neither an adapter nor a model."""


class MissingWeightsError(InputRefusedError):
    """A configuration whose weights are missing."""


class CorruptFileError(InputRefusedError):
    """A file that is not valid in the format that its name promises."""


class UnsupportedError(InputRefusedError):
    """A method, format or architecture that ftpack does not package."""


class BaseNotFoundError(InputRefusedError):
    """The adapter's base model cannot be found."""


class BaseMismatchError(InputRefusedError):
    """The base's tensors differ in shape from those that the adapter was trained on."""


class AdapterMismatchError(InputRefusedError):
    """Adapter tensors that no module uses, or targeted modules without adapter tensors."""


class NonFiniteError(InputRefusedError):
    """NaN or Inf in a weight."""


class ChatTemplateError(InputRefusedError):
    """No chat template, or one that does not render."""


class DiskSpaceError(InputRefusedError):
    """Too little disk space for the output."""


class OutputExistsError(InputRefusedError):
    """The output folder holds other files that would be overwritten."""


class ToolchainError(InputRefusedError):
    """llama.cpp's converter or library is missing, or has the wrong version."""


class PromptRefusedError(FtpackError):
    """A renderer does not accept a conversation: its chat template raises, or lacks a feature."""


class PromptDifferenceError(FtpackError):
    """The rendered prompt differs from the training prompt."""

    exit_code = 5


class DaemonError(FtpackError):
    """The Ollama daemon could not be reached, or stopped during the work."""

    exit_code = 4


class RegistrationError(DaemonError):
    """The daemon answered, but the registered model is not the one that was built."""

    exit_code = 1


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its type's name if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def listed(names: Sequence[str], separator: str = ", ", limit: int = _LISTED) -> str:
    """The first `limit` names, and how many more there are."""
    more = f"{separator}... ({len(names) - limit} more)" if len(names) > limit else ""
    return separator.join(names[:limit]) + more
